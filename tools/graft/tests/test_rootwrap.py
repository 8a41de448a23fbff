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

import ddt
import fixtures
import testtools

import graft
from graft import patch
from graft import record
from graft import rootwrap
from graft.tests import base
from graft import tree

NAME = 'etc/nova/rootwrap.d/sheepdog.filters'


@ddt.ddt
class PlaceTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.installed = self.useFixture(base.InstalledNova())
        self.filters = self.installed.filters / 'sheepdog.filters'
        self.nova = tree.find(self.installed.top)
        self.configuration = self.nova.find_rootwrap_configuration()
        self.source = self.installed.top / 'our patch'
        self.source.write_text('new')

    def place(self, configuration):
        return rootwrap.place(
            {'nova/a': self.source, NAME: self.source},
            record.Record(self.nova), configuration)

    def test_first_usable_directory(self):
        placed, hints = self.place(self.configuration)
        self.assertEqual([patch.Change(str(self.filters), None, b'new')],
                         placed)
        self.assertEqual(
            [f'The rootwrap filters are in {self.filters}, which '
             f'{self.configuration} names.'], hints)

    def assert_command(self, placed, hints, reason, target):
        self.assertEqual([], placed)
        self.assertEqual(1, len(hints))
        self.assertIn(reason, hints[0])
        self.assertEqual(
            'sudo install -D -o root -g root -m 0644 '
            f"'{self.source}' {target}",
            hints[0].splitlines()[1].strip())

    @ddt.data('owner', 'access', 'missing')
    def test_no_usable_directory(self, reason):
        if reason == 'owner':
            self.useFixture(fixtures.MonkeyPatch('graft.rootwrap.OWNER', -1))
        elif reason == 'access':
            self.useFixture(fixtures.MonkeyPatch(
                'os.access', lambda path, mode: False))
        else:
            self.installed.filters.rmdir()
        self.assert_command(
            *self.place(self.configuration),
            f'{self.configuration} names no directory of root',
            '/nonexistent/rootwrap.d/sheepdog.filters')

    def test_there_already(self):
        self.filters.write_text('new')
        self.assertEqual(
            ([], [f'The rootwrap filters are in {self.filters} already.']),
            self.place(self.configuration))

    def test_others_are_there(self):
        self.filters.write_text('old')
        self.assert_command(*self.place(self.configuration),
                            f'{self.filters} differs', self.filters)

    def test_ours_are_there(self):
        record.Record(self.nova).apply(
            [patch.Change(str(self.filters), None, b'old')], '1', 'a')
        placed, _ = self.place(self.configuration)
        self.assertEqual(1, len(placed))

    def test_no_configuration(self):
        self.useFixture(fixtures.MonkeyPatch(
            'graft.rootwrap.DEFAULT_DIRECTORY', self.installed.filters))
        self.assert_command(*self.place(None), 'came without a rootwrap.conf',
                            self.filters)

    @ddt.data(None, '', '[DEFAULT]\n', 'filters_path = /a\n')
    def test_bad_configuration(self, content):
        path = self.installed.top / 'rootwrap.conf'
        if content is not None:
            path.write_text(content)
        error = self.assertRaises(graft.GraftError, self.place, path)
        self.assertIn(f'{path}: ', str(error))
        self.assertIn('--rootwrap-conf', str(error))
