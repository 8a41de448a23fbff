# Licensed under the Apache License, Version 2.0 (the "License"); you may
# not use this file except in compliance with the License. You may obtain
# a copy of the License at
#
#      http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
# WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
# License for the specific language governing permissions and limitations
# under the License.

"""The commands that run in the patched Nova, up to where that begins."""

import json
import os
import re

import fixtures
import testtools

from graft import cli
from graft import patch
from graft.tests import base
from graft.tests import test_cli

COMMANDS = os.path.dirname(cli.COMMANDS)
# Writes what it is run with.
STUB = '''\
import json
import os
import sys


def run(arguments):
    with open(os.environ['CALLED'], 'w') as stream:
        json.dump([vars(arguments), sys.executable, __file__], stream)
    return 3
'''


class OperatorsTestCase(test_cli.CommandTestCase):
    make_tree = base.InstalledNova

    def setUp(self):
        super().setUp()
        parts = os.path.dirname(COMMANDS).split('/')
        for count in range(2, len(parts) + 1):
            base.write(self.tree.root,
                       {'/'.join([*parts[:count], '__init__.py']): ''})
        base.write(self.patch.root, {
            f'{COMMANDS}/__init__.py': '# Ours\n', cli.COMMANDS: STUB})
        self.called = self.tree.top / 'called'
        self.useFixture(fixtures.EnvironmentVariable(
            'CALLED', str(self.called)))

    def patch_nova(self):
        self.run_here('apply')

    def read_called(self):
        return json.loads(self.called.read_text())

    def doctor(self):
        status, out, error = self.run_here('doctor', '--json')
        self.assertEqual('', error)
        return status, json.loads(out)

    def test_run(self):
        self.patch_nova()
        status, out, error = self.run_here('vdis', '--host', '127.0.0.1',
                                           '--json')
        self.assertEqual((3, '', ''), (status, out, error))
        arguments, python, file = self.read_called()
        self.assertEqual({
            'command': 'vdis', 'config_file': None, 'os_cloud': None,
            'host': '127.0.0.1', 'port': None, 'json': True, 'clean': False,
            'yes': False}, arguments)
        self.assertEqual(str(self.tree.root / cli.COMMANDS), file)

    def test_python_of_that_nova(self):
        self.patch_nova()
        python = self.tree.top / 'bin/python3'
        python.parent.mkdir()
        python.write_text('#!/bin/sh\nshift 4\nprintf "%s\\n" "$@" > "$CALLED"'
                          '\n')
        python.chmod(0o755)
        self.assertEqual((0, '', ''), self.run_here('vdis'))
        self.assertIn(str(self.tree.root), self.called.read_text())

    def test_not_patched(self):
        self.fail_with('is not patched: run "nova-sheepdog apply"', 'vdis')

    def test_doctor_hands_on_what_it_found(self):
        self.patch_nova()
        self.assertEqual(3, self.run_here('doctor')[0])
        self.assertEqual(
            [('nova', 'warning'), ('patch', 'ok')],
            [(finding['check'], finding['state'])
             for finding in self.read_called()[0]['findings']])
        base.write(self.patch.root, {'nova/more': 'more'})
        self.run_here('doctor')
        finding = self.read_called()[0]['findings'][1]
        self.assertEqual('warning', finding['state'])
        self.assertEqual(f'nova-sheepdog apply --nova {self.tree.top}',
                         finding['remedy'])

    def assert_wrong(self, text, remedy):
        """The patch is wrong, and the host is not looked at."""
        status, findings = self.doctor()
        self.assertEqual(1, status)
        self.assertEqual(['wrong', 'not checked'],
                         [each['state'] for each in findings[1:]])
        self.assertIn(text, findings[1]['text'])
        self.assertIn(remedy, findings[1]['remedy'])
        self.assertFalse(self.called.exists())

    def test_doctor_without_the_patch(self):
        self.assert_wrong('not patched', 'nova-sheepdog apply --nova')

    def test_doctor_after_an_update(self):
        self.patch_nova()
        base.write(self.tree.root, {'nova/conf/libvirt.py': base.OPTIONS})
        self.assert_wrong('libvirt.py is Nova\'s own again',
                          'nova-sheepdog apply')

    def test_doctor_after_an_edit(self):
        self.patch_nova()
        with open(self.driver, 'a') as stream:
            stream.write('# edited\n')
        self.assert_wrong(f'Somebody changed {self.driver}',
                          'install this Nova again')

    def test_doctor_where_the_patch_does_not_fit(self):
        base.write(self.tree.root, {'nova/conf/libvirt.py': ''})
        self.assert_wrong('does not fit: nova/conf/libvirt.py',
                          'install a release of Nova')

    def test_doctor_without_a_nova(self):
        status, out, _error = self.run_command(
            'doctor', '--nova', str(self.patch.root))
        self.assertEqual(1, status)
        self.assertRegex(out, r'wrong +nova: No Nova in .*\nnot checked')

    def test_metrics_without_the_patch(self):
        self.assertIn('\nnova_sheepdog_patched 0\n', self.succeed('metrics'))
        path = self.tree.top / 'x.prom'
        self.assertEqual('', self.succeed('metrics', '--output', str(path)))
        self.assertIn('\nnova_sheepdog_patched 0\n', path.read_text())
        self.patch_nova()
        self.assertEqual(3, self.run_here('metrics')[0])

    def test_filters_that_are_lost(self):
        self.patch_nova()
        filters = self.tree.filters / 'sheepdog.filters'
        other = self.tree.top / 'rootwrap.conf'
        other.write_text('[DEFAULT]\nfilters_path = /nonexistent\n')
        self.assertTrue(filters.exists())
        self.assertIn('The rootwrap filters are not installed', self.succeed(
            'apply', '--rootwrap-conf', str(other)))


class MonitoringTestCase(testtools.TestCase):

    def test_examples_use_figures_that_there_are(self):
        root = patch.find_root()
        source = (root / COMMANDS / 'metrics.py').read_text()
        monitoring = root / 'packaging/monitoring'
        json.loads((monitoring / 'dashboard.json').read_text())
        for name in ('alerts.yaml', 'alerts_test.yaml', 'dashboard.json'):
            used = set(re.findall(r'nova_sheepdog_(\w+)',
                                  (monitoring / name).read_text()))
            self.assertLess(5, len(used))
            for figure in used:
                self.assertIn(f"    '{figure}': '", source)
