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
import os
import signal
import sys
import threading
from unittest import mock

import ddt
import fixtures
import tenacity

from nova import test
from nova.virt.libvirt.sheepdog import rootwrap

# Root runs nothing but what has a limit.
LIMITED = 'RegExpFilter, env, root, env, LC_ALL=C, PATH=.*, timeout, ' \
    '--kill-after=5, [0-9]+'
FILTERS = """\
[Filters]
sh: %(limited)s, sh, -c, .*
cat: %(limited)s, cat
missing: %(limited)s, /no/such/program
""" % {'limited': LIMITED}
CONFIGURATION = """\
[DEFAULT]
filters_path=%s
daemon_timeout=%d
"""


class _RootwrapTestCase(test.NoDBTestCase):

    def setUp(self):
        super().setUp()
        # Both programs of rootwrap are installed beside Python.
        self.useFixture(fixtures.EnvironmentVariable('PATH', os.pathsep.join(
            [os.path.dirname(sys.executable), os.environ['PATH']])))
        directory = self.useFixture(fixtures.TempDir())
        self.filters = directory.join('filters')
        os.mkdir(self.filters)
        with open(os.path.join(self.filters, 'own.filters'), 'w') as filters:
            filters.write(FILTERS)
        self.configuration = directory.join('rootwrap.conf')
        self.configure()
        # It keeps a list of the daemons that were started.
        self.pids = directory.join('pids')
        open(self.pids, 'w').close()
        self.starter = directory.join('start')
        with open(self.starter, 'w') as starter:
            starter.write('#!/bin/sh\necho $$ >>%s\nexec "$@"\n' % self.pids)
        os.chmod(self.starter, 0o755)
        # Root would need no helper.
        self.useFixture(fixtures.MonkeyPatch('os.geteuid', lambda: 65534))

    def configure(self, daemon_timeout=600, more=''):
        with open(self.configuration, 'w') as configuration:
            configuration.write(
                CONFIGURATION % (self.filters, daemon_timeout) + more)

    def make(self, program='nova-rootwrap-daemon', limit=4):
        """Make a Runner.

        :param program: what is to be its daemon, None for none
        """
        runner = rootwrap.Runner(
            limit, 'nova-rootwrap ' + self.configuration,
            program and [self.starter, program, self.configuration])
        self.addCleanup(runner.stop)
        return runner

    def fail(self, run, *command, timeout=60, **kwargs):
        """Return the CommandError of a command that fails."""
        return self.assertRaises(rootwrap.CommandError, run, *command,
                                 timeout=timeout, **kwargs)

    def get_daemons(self):
        """Return process ids of the daemons that were started."""
        with open(self.pids) as pids:
            return [int(line) for line in pids]

    @tenacity.retry(stop=tenacity.stop_after_delay(60),
                    wait=tenacity.wait_fixed(0.05), reraise=True)
    def assert_ended(self, *pids):
        for pid in pids:
            self.assertRaises(ProcessLookupError, os.kill, pid, 0)

    @tenacity.retry(stop=tenacity.stop_after_delay(60),
                    wait=tenacity.wait_fixed(0.05), reraise=True)
    def wait_for_files(self, *paths):
        self.assertEqual([], [path for path in paths
                              if not os.path.exists(path)])


@ddt.ddt
class ReasonTestCase(_RootwrapTestCase):
    """A failure has the same words, however the command was run."""

    def setUp(self):
        super().setUp()
        self.run_by = {
            'nobody': rootwrap.run,
            'nova-rootwrap': self.make(None).execute,
            'daemon': self.make().execute,
        }

    def assert_reason(self, reason, script, timed_out=False, timeout=60,
                      **kwargs):
        for name, run in self.run_by.items():
            error = self.fail(run, 'sh', '-c', script, timeout=timeout,
                              **kwargs)
            self.assertEqual((reason, timed_out),
                             (error.reason, error.timed_out), name)
            self.assertEqual(reason, str(error))

    def test_environment(self):
        for name, run in self.run_by.items():
            self.assertEqual(('C\n', ''), run(
                'sh', '-c', 'echo "$LC_ALL"', timeout=60), name)
        for name in 'nova-rootwrap', 'daemon':
            self.assertEqual((rootwrap.ROOT_PATH + '\n', ''), self.run_by[
                name]('sh', '-c', 'echo "$PATH"', timeout=60))

    @ddt.data(('out', 'printf out; exit 3'),
              ('err', 'printf out; printf err >&2; exit 3'),
              ('exit status 3', 'exit 3'),
              ('exit status 137', 'exit 137'),
              # dog says some things twice
              ('a; b', r"printf 'a\nb\na\n' >&2; exit 3"),
              # what cannot be stored as a fault of a server
              (r'no \udcff way', r"printf 'no \377 way' >&2; exit 3"),
              (r'no \udcff way', r"printf 'no \377 way'; exit 3"),
              # not rootwrap
              ('err', 'printf err >&2; exit 99'))
    @ddt.unpack
    def test_reason(self, reason, script):
        self.assert_reason(reason, script)

    def test_killed(self):
        for name, run in self.run_by.items():
            error = self.fail(run, 'sh', '-c', 'kill -KILL $$')
            self.assertFalse(error.timed_out, name)
            self.assertIn('exit status', error.reason)

    def test_no_answer(self):
        self.assert_reason(
            'no answer within [libvirt]images_sheepdog_timeout',
            'exec tail -f /dev/null', timed_out=True, timeout=1)

    def test_no_answer_and_deaf(self):
        # KILL ends timeout as well as the command.
        self.useFixture(fixtures.MonkeyPatch(
            'nova.virt.libvirt.sheepdog.rootwrap.limit',
            lambda command, timeout, *environment: [
                'env', 'LC_ALL=C', *environment, 'timeout',
                '--kill-after=1', str(timeout), *command]))
        with open(os.path.join(self.filters, 'own.filters'), 'a') as filters:
            filters.write('deaf: %s, sh, -c, .*\n' %
                          LIMITED.replace('kill-after=5', 'kill-after=1'))
        self.assert_reason(
            'no answer within [libvirt]images_sheepdog_timeout',
            "trap '' TERM; while :; do sleep 0.2; done", timed_out=True,
            timeout=1)

    def test_not_installed(self):
        for name, run in self.run_by.items():
            error = self.fail(run, '/no/such/program')
            self.assertFalse(error.timed_out, name)
            self.assertIn('not installed', error.reason)
            self.assertIn(rootwrap.ROOT_PATH, error.reason)
            self.assertIn('/no/such/program', error.reason)

    def test_refused(self):
        for name in 'nova-rootwrap', 'daemon':
            error = self.fail(self.run_by[name], 'id', '-u')
            self.assertIn('rootwrap does not allow it', error.reason, name)
            self.assertIn('sheepdog.filters', error.reason, name)

    def test_refused_by_sudo(self):
        words = 'sudo: a password is required'
        for name, run in self.run_by.items():
            error = self.fail(run, 'sh', '-c', 'echo "%s" >&2; exit 1' % words)
            self.assertIn('sudoers', error.reason, name)
            self.assertIn(words, error.reason, name)

    def test_refused_by_a_daemon_that_has_syslog(self):
        with mock.patch.object(rootwrap.client.Client, 'execute',
                               return_value=(99, '', '')):
            error = self.fail(self.run_by['daemon'], 'id')
        self.assertIn('rootwrap does not allow it', error.reason)

    def test_no_env(self):
        self.configure(more='exec_dirs=/no/such/directory\n')
        for name in 'nova-rootwrap', 'daemon':
            error = self.fail(self.run_by[name], 'cat')
            self.assertIn('Executable not found: env', error.reason, name)
        self.useFixture(fixtures.EnvironmentVariable(
            'PATH', '/no/such/directory'))
        for name in 'nobody', 'nova-rootwrap':
            error = self.fail(self.run_by[name], 'cat')
            self.assertIn('No such file or directory', error.reason, name)


@ddt.ddt
class RunnerTestCase(_RootwrapTestCase):

    def setUp(self):
        super().setUp()
        self.runner = self.make()

    def execute(self, *command, **kwargs):
        return self.runner.execute(*command, timeout=60, **kwargs)

    @ddt.data('nova-rootwrap-daemon', None)
    def test_result(self, program):
        self.runner = self.make(program)
        self.assertEqual(('out', 'err'), self.execute(
            'sh', '-c', 'printf out; printf err >&2'))
        # It can be stored as a part of a fault.
        self.assertEqual((r'\udcff', ''), self.execute(
            'sh', '-c', r"printf '\377'"))
        self.assertEqual(('a\n\u00ff', ''), self.execute(
            'cat', data='a\n\u00ff'))

    def test_daemon_that_died(self):
        self.runner = self.make(limit=1)
        self.execute('cat')
        first, = self.get_daemons()
        os.kill(first, signal.SIGKILL)
        self.assert_ended(first)
        self.assertEqual(('again', ''),
                         self.execute('sh', '-c', 'printf again'))
        self.assertEqual(2, len(self.get_daemons()))

    def test_daemon_that_was_idle(self):
        self.configure(daemon_timeout=0)
        self.runner = self.make(limit=1)
        self.execute('cat')
        self.assert_ended(*self.get_daemons())
        self.assertEqual(('again', ''),
                         self.execute('sh', '-c', 'printf again'))
        self.assertEqual(2, len(self.get_daemons()))

    def test_stop(self):
        self.execute('cat')
        self.execute('cat', urgent=True)
        self.assertEqual(2, len(self.get_daemons()))
        self.runner.stop()
        self.assert_ended(*self.get_daemons())
        self.assertRaisesRegex(rootwrap.CommandError, 'about to end',
                               self.execute, 'cat')

    @staticmethod
    def _count_sockets():
        count = 0
        for name in os.listdir('/proc/self/fd'):
            try:
                target = os.readlink('/proc/self/fd/' + name)
            except FileNotFoundError:
                # that of the directory itself
                continue
            count += target.startswith('socket:')
        return count

    def test_one_daemon_and_connection_for_each_worker(self):
        def use():
            # of a thread that was not there before
            with futures.ThreadPoolExecutor(1) as pool:
                pool.submit(self.execute, 'cat').result(60)

        self.runner = self.make(limit=1)
        use()
        sockets = self._count_sockets()
        for _attempt in range(10):
            use()
        self.assertEqual(1, len(self.get_daemons()))
        self.assertEqual(sockets, self._count_sockets())

    @ddt.data('false', '/no/such/daemon')
    def test_daemon_that_does_not_start_is_not_tried_again(self, program):
        self.runner = self.make(program)
        with mock.patch.object(rootwrap.LOG, 'info') as info:
            for _attempt in range(2):
                self.assertEqual(('out', ''),
                                 self.execute('sh', '-c', 'printf out'))
            self.assertEqual(('out', ''), self.execute(
                'sh', '-c', 'printf out', urgent=True))
        info.assert_called_once()
        message = info.call_args[0][0] % info.call_args[0][1]
        self.assertIn('nobody ALL = (root) NOPASSWD: %s %s' % (
            {'false': '/usr/bin/false'}.get(program, program),
            self.configuration), message)
        self.assertEqual(1, len(self.get_daemons()))

    def test_no_daemon(self):
        self.runner = self.make(None)
        self.assertEqual(('out', ''),
                         self.execute('sh', '-c', 'printf out'))
        self.assertEqual([], self.get_daemons())


@ddt.ddt
class QueueTestCase(_RootwrapTestCase):

    def setUp(self):
        super().setUp()
        self.directory = self.useFixture(fixtures.TempDir())
        self.callers = self.useFixture(_Callers()).pool

    def make(self, *args, **kwargs):
        self.runner = super().make(*args, **kwargs)

    def submit(self, *command, **kwargs):
        return self.callers.submit(self.runner.execute, *command, timeout=60,
                                   **kwargs)

    def start(self, name):
        """Start a command that runs until release() is called."""
        path = self.directory.join(name)
        future = self.submit(
            'sh', '-c', 'touch %(path)s.runs; until [ -e %(path)s ]; do '
            'sleep 0.02; done; rm %(path)s.runs' % {'path': path})
        self.wait_for_files(path + '.runs')
        self.addCleanup(self.release, name)
        return future

    def release(self, name):
        open(self.directory.join(name), 'w').close()

    def list_running(self, **kwargs):
        """Submit a command that lists the others that run."""
        return self.submit('sh', '-c', 'cd %s; ls -d *.runs || true' %
                           self.directory.path, **kwargs)

    @ddt.data('nova-rootwrap-daemon', None)
    def test_limit(self, program):
        self.make(program, limit=2)
        first, second = self.start('first'), self.start('second')
        third = self.list_running()
        self.release('first')
        # It ran after the first one had ended, and beside the second.
        self.assertEqual(['second.runs'], third.result(60)[0].split())
        first.result(60)
        self.assertFalse(second.done())
        self.release('second')
        second.result(60)

    @ddt.data('nova-rootwrap-daemon', None)
    def test_urgent(self, program):
        self.make(program, limit=1)
        first = self.start('first')
        waiting = self.list_running()
        self.assertEqual(
            ['first.runs'],
            self.list_running(urgent=True).result(60)[0].split())
        self.assertFalse(waiting.done())
        self.release('first')
        self.assertEqual([], waiting.result(60)[0].split())
        first.result(60)

    def test_check_when_its_turn_has_come(self):
        self.make(None, limit=1)
        first = self.start('first')
        running = threading.Event()
        checked = self.submit('cat', check=running.set)
        # What is asked for later has not run either.
        self.list_running(urgent=True).result(60)
        self.assertFalse(running.is_set())
        self.release('first')
        checked.result(60)
        self.assertTrue(running.is_set())
        first.result(60)

    def test_check_fails(self):
        def check():
            raise ZeroDivisionError()

        self.make(None, limit=1)
        path = self.directory.join('trace')
        refused = self.submit('sh', '-c', 'touch ' + path, check=check)
        self.assertRaises(ZeroDivisionError, refused.result, 60)
        self.assertFalse(os.path.exists(path))
        self.assertEqual(('out', ''), self.submit(
            'sh', '-c', 'printf out').result(60))

    def test_stop_lets_what_waits_end(self):
        self.make(limit=1)
        first = self.start('first')
        second = self.list_running()
        self.runner.stop()
        self.release('first')
        first.result(60)
        second.result(60)
        self.assert_ended(*self.get_daemons())


class _Callers(fixtures.Fixture):
    """Threads that call the Runner."""

    def _setUp(self):
        self.pool = futures.ThreadPoolExecutor(4)
        self.addCleanup(self.pool.shutdown)


@ddt.ddt
class ProcessTestCase(_RootwrapTestCase):
    """What runs the commands of this process."""

    def setUp(self):
        super().setUp()
        rootwrap.stop()
        self.addCleanup(rootwrap.stop)
        self.flags(rootwrap_config=self.configuration)
        self.flags(images_sheepdog_max_calls=3, group='libvirt')

    @ddt.data((65534, False, True), (65534, True, False), (0, False, False))
    @ddt.unpack
    def test_options(self, user, disable_rootwrap, has_daemon):
        self.flags(disable_rootwrap=disable_rootwrap, group='workarounds')
        self.useFixture(fixtures.MonkeyPatch('os.geteuid', lambda: user))
        with mock.patch.object(rootwrap, 'Runner') as runner:
            for _attempt in range(2):
                rootwrap.execute('cat', timeout=60, urgent=True)
        runner.assert_called_once_with(
            3, 'sudo' if disable_rootwrap else
            'sudo nova-rootwrap ' + self.configuration,
            ['sudo', '-n', 'nova-rootwrap-daemon', self.configuration]
            if has_daemon else None)
        self.assertEqual([mock.call('cat', timeout=60, urgent=True)] * 2,
                         runner.return_value.execute.mock_calls)

    def test_stop(self):
        directory = self.useFixture(fixtures.TempDir())
        with open(directory.join('sudo'), 'w') as sudo:
            # sudo -n nova-rootwrap-daemon
            sudo.write('#!/bin/sh\nshift\nexec %s "$@"\n' % self.starter)
        os.chmod(directory.join('sudo'), 0o755)
        self.useFixture(fixtures.EnvironmentVariable('PATH', os.pathsep.join(
            [directory.path, os.environ['PATH']])))
        for count in 1, 2:
            rootwrap.execute('cat', timeout=60)
            self.assertEqual(count, len(self.get_daemons()))
            rootwrap.stop()
            self.assert_ended(*self.get_daemons())
        # Nothing runs any more.
        rootwrap.stop()
