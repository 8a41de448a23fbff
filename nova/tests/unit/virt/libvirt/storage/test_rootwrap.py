#    Licensed under the Apache License, Version 2.0 (the "License"); you may
#    not use this file except in compliance with the License. You may obtain
#    a copy of the License at
#
#         http://www.apache.org/licenses/LICENSE-2.0
#
#    Unless required by applicable law or agreed to in writing, software
#    distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
#    WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
#    License for the specific language governing permissions and limitations
#    under the License.

"""The runner against the real daemon of rootwrap, started without sudo."""

from concurrent import futures
import contextlib
import os
import signal
import subprocess
import sys
from unittest import mock

import ddt
import fixtures
from oslo_concurrency import processutils
import tenacity

from nova import test
from nova.virt.libvirt.storage import rootwrap

FILTERS = """\
[Filters]
sh: RegExpFilter, sh, root, sh, -c, .*
cat: CommandFilter, cat, root
ls: CommandFilter, ls, root
missing: CommandFilter, /no/such/program, root
"""


@ddt.ddt
class RootRunnerTestCase(test.NoDBTestCase):

    def setUp(self):
        super().setUp()
        # Both programs of rootwrap are installed beside Python.
        self.useFixture(fixtures.EnvironmentVariable('PATH', os.pathsep.join(
            [os.path.dirname(sys.executable), os.environ['PATH']])))
        directory = self.useFixture(fixtures.TempDir())
        self.pids = directory.join('pids')
        os.mkdir(directory.join('filters'))
        with open(directory.join('filters', 'own.filters'), 'w') as filters:
            filters.write(FILTERS)
        self.configuration = directory.join('rootwrap.conf')
        with open(self.configuration, 'w') as configuration:
            configuration.write('[DEFAULT]\nfilters_path=%s\n' %
                                directory.join('filters'))
        # It keeps a list of the daemons that were started.
        self.starter = directory.join('start')
        with open(self.starter, 'w') as starter:
            starter.write('#!/bin/sh\necho $$ >>%s\nexec "$@"\n' % self.pids)
        os.chmod(self.starter, 0o755)
        # Root would need no helper.
        self.useFixture(fixtures.MonkeyPatch('os.geteuid', lambda: 65534))
        self.runner = self._make()

    def _make(self, program='nova-rootwrap-daemon', limit=4):
        runner = rootwrap.RootRunner(
            limit, 'nova-rootwrap ' + self.configuration,
            [self.starter, program, self.configuration])
        self.addCleanup(runner.stop)
        return runner

    def _run(self, *command, **kwargs):
        return self.runner.execute(*command, title='it', **kwargs)

    def _daemons(self):
        """Process ids of the daemons that were started."""
        with open(self.pids) as pids:
            return [int(line) for line in pids]

    @tenacity.retry(stop=tenacity.stop_after_delay(30),
                    wait=tenacity.wait_fixed(0.05), reraise=True)
    def _assert_ended(self, *pids):
        for pid in pids:
            self.assertRaises(ProcessLookupError, os.kill, pid, 0)

    def test_result(self):
        self.assertEqual(('out', 'err'), self._run(
            'sh', '-c', 'printf out; printf err >&2'))
        self.assertEqual(('a\n\udcff', ''), self._run(
            'cat', data=b'a\n\xff'))
        self.assertEqual(1, len(self._daemons()))

    @ddt.data(('sh', '-c', 'printf out; printf err >&2; exit 3'),
              ('sh', '-c', 'kill -KILL $$'),
              ('id', '-u'),
              ('/no/such/program', '-x'))
    def test_error_is_that_of_nova_rootwrap(self, command):
        error = self.assertRaises(
            processutils.ProcessExecutionError, self._run, *command)
        known = subprocess.run(
            ['nova-rootwrap', self.configuration, *command],
            capture_output=True, text=True)
        self.assertEqual((known.returncode, known.stdout),
                         (error.exit_code, error.stdout))
        reasons = ('Unauthorized command', 'Executable not found')
        self.assertEqual([reason in known.stderr for reason in reasons],
                         [reason in error.stderr for reason in reasons])
        if not any(reason in known.stderr for reason in reasons):
            self.assertEqual(known.stderr, error.stderr)

        self.assertEqual(1, len(self._daemons()))

    def test_refusal_of_a_daemon_that_has_syslog(self):
        with mock.patch.object(rootwrap.client.Client, 'execute',
                               return_value=(99, '', '')):
            error = self.assertRaises(
                processutils.ProcessExecutionError, self._run, 'id')
        self.assertEqual(99, error.exit_code)
        self.assertIn('Unauthorized command: id', error.stderr)

    def test_daemon_that_died(self):
        self._run('cat')
        first, = self._daemons()
        os.kill(first, signal.SIGKILL)
        self._assert_ended(first)
        self.assertEqual(('again', ''), self._run('sh', '-c', 'printf again'))
        self.assertEqual(2, len(self._daemons()))

    def test_daemon_that_was_idle(self):
        self._run('cat')
        self.runner.IDLE = 0
        self._run('cat')
        first, _second = self._daemons()
        self._assert_ended(first)

    def test_stop(self):
        self._run('cat')
        self.runner.stop()
        self._assert_ended(*self._daemons())
        self.assertEqual(('late', ''), self._run('sh', '-c', 'printf late'))
        self.assertEqual(1, len(self._daemons()))

    def test_interrupted_call(self):
        class Interrupt(BaseException):
            pass

        self._run('cat')
        with mock.patch.object(rootwrap.client.Client, 'execute',
                               side_effect=Interrupt):
            # What keeps the traceback keeps the client.
            with contextlib.suppress(Interrupt):
                self._run('cat')
        self._assert_ended(*self._daemons())
        self._run('cat')
        self.assertEqual(2, len(self._daemons()))

    @ddt.data('false', '/no/such/daemon')
    def test_refusal_is_asked_for_once(self, program):
        self.runner = self._make(program)
        with mock.patch.object(rootwrap.LOG, 'info') as info:
            for _attempt in range(2):
                self.assertEqual(('out', ''),
                                 self._run('sh', '-c', 'printf out'))
        info.assert_called_once()
        message = info.call_args[0][0] % info.call_args[0][1]
        self.assertIn('nobody ALL = (root) NOPASSWD: %s %s' % (
            {'false': '/usr/bin/false'}.get(program, program),
            self.configuration), message)
        self.assertEqual(1, len(self._daemons()))

    @ddt.data('nova-rootwrap-daemon', 'false')
    def test_so_many_at_once(self, program):
        self.runner = self._make(program, limit=2)
        directory = self.useFixture(fixtures.TempDir())

        def wait_for(name):
            # Nothing blocks but the command, whatever a thread is here.
            return pool.submit(
                self._run, 'sh', '-c', 'touch %(file)s.runs; '
                'until [ -e %(file)s ]; do sleep 0.02; done' %
                {'file': directory.join(name)})

        with futures.ThreadPoolExecutor(3) as pool:
            first, second = wait_for('first'), wait_for('second')
            self._wait_for_files(directory.join('first.runs'),
                                 directory.join('second.runs'))
            third = pool.submit(self._run, 'ls', directory.path)
            open(directory.join('first'), 'w').close()
            # It ran after the first one had ended, and beside the second.
            self.assertEqual(['first', 'first.runs', 'second.runs'],
                             third.result(30)[0].split())
            self.assertTrue(first.done())
            self.assertFalse(second.done())
            open(directory.join('second'), 'w').close()
            second.result(30)

    @tenacity.retry(stop=tenacity.stop_after_delay(30),
                    wait=tenacity.wait_fixed(0.05), reraise=True)
    def _wait_for_files(self, *paths):
        self.assertEqual([], [path for path in paths
                              if not os.path.exists(path)])
