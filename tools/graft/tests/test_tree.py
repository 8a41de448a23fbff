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

import os
import sys

import ddt
import fixtures
import testtools

import graft
from graft.tests import base
from graft import tree


@ddt.ddt
class FindTestCase(testtools.TestCase):

    @ddt.data('', 'nova')
    def test_source_tree(self, below):
        top = self.useFixture(base.SourceTree()).top
        nova = tree.find(top / below)
        self.assertEqual((top, top / 'nova', True, '34.0.0'),
                         (nova.root, nova.package, nova.is_source,
                          nova.release))
        self.assertIsNone(nova.installation_record)
        self.assertEqual(b'[Filters]\n',
                         nova.read('etc/nova/rootwrap.d/compute.filters'))
        self.assertIsNone(nova.read('nova/none.py'))

    @ddt.data('', 'lib/python3.11/site-packages',
              'lib/python3.11/site-packages/nova')
    def test_installed(self, below):
        installed = self.useFixture(base.InstalledNova())
        nova = tree.find(str(installed.top / below))
        self.assertEqual((installed.root, False, '34.0.0'),
                         (nova.root, nova.is_source, nova.release))
        self.assertEqual(installed.record, nova.installation_record)
        self.assertEqual(installed.top / 'etc/nova/rootwrap.conf',
                         nova.find_rootwrap_configuration())
        self.assertEqual(base.DRIVER.encode(),
                         nova.read('nova/virt/libvirt/driver.py'))
        self.assertIsNone(nova.read('etc/nova/rootwrap.d/compute.filters'))

    def test_link_is_no_second_nova(self):
        top = self.useFixture(base.InstalledNova()).top
        (top / 'lib/python3').symlink_to('python3.11')
        tree.find(top)

    def test_installed_without_record(self):
        installed = self.useFixture(base.InstalledNova())
        installed.record.unlink()
        nova = tree.find(installed.top)
        self.assertIsNone(nova.installation_record)
        self.assertIsNone(nova.find_rootwrap_configuration())
        self.assertEqual('34.0.0', nova.release)

    def forget_nova(self):
        self.useFixture(fixtures.MonkeyPatch('sys.modules', {
            name: module for name, module in sys.modules.items()
            if name != 'nova'}))

    def test_importable(self):
        root = self.useFixture(base.SourceTree()).root
        self.useFixture(fixtures.MonkeyPatch(
            'sys.path', ['/nonexistent', str(root)]))
        self.forget_nova()
        self.assertEqual(root, tree.find().root)

    def test_own_nova_is_not_importable(self):
        root = self.useFixture(base.Patch(base.PATCH)).root
        self.useFixture(fixtures.MonkeyPatch('sys.path', [str(root)]))
        self.forget_nova()
        error = self.assertRaises(graft.GraftError, tree.find)
        self.assertIn('has no Nova to import', str(error))

    def test_none(self):
        root = self.useFixture(base.Patch(base.PATCH)).root
        error = self.assertRaises(graft.GraftError, tree.find, root)
        self.assertIn(f'No Nova in {root}', str(error))

    def test_two(self):
        installed = self.useFixture(base.InstalledNova())
        base.write(installed.top, base.NOVA)
        error = self.assertRaises(graft.GraftError, tree.find, installed.top)
        self.assertIn(f'{installed.root}/nova, {installed.top}/nova. Name '
                      'one of them with --nova', str(error))

    def test_release_of_a_git_tree(self):
        root = self.useFixture(base.SourceTree()).root
        (root / 'PKG-INFO').unlink()
        self.assertEqual('unknown', tree.find(root).release)
        tools = self.useFixture(fixtures.TempDir()).path
        base.write(tools, {'git': '#!/bin/sh\necho 34.0.0-5-g1234 "$@"\n'})
        os.chmod(f'{tools}/git', 0o755)
        self.useFixture(fixtures.EnvironmentVariable('PATH', tools))
        (root / '.git').mkdir()
        self.assertEqual(f'34.0.0-5-g1234 -C {root} describe --tags',
                         tree.find(root).release)


@ddt.ddt
class DownloadTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.cache = self.useFixture(fixtures.TempDir()).path
        self.index = self.useFixture(fixtures.TempDir()).path
        for name, value in (('XDG_CACHE_HOME', self.cache),
                            ('PIP_CONFIG_FILE', os.devnull),
                            ('PIP_NO_INDEX', '1'),
                            ('PIP_FIND_LINKS', self.index)):
            self.useFixture(fixtures.EnvironmentVariable(name, value))

    def test_download(self):
        archive = base.make_source(self.index)
        nova = tree.download('34.0.0')
        self.assertEqual('34.0.0', nova.release)
        for name, content in base.NOVA.items():
            self.assertEqual(content.encode(), nova.read(name))
        self.assertIsNone(nova.read('nova/none.py'))
        # The second time it comes from the cache.
        archive.unlink()
        tree.download('34.0.0')
        self.assertEqual(['nova-34.0.0'],
                         os.listdir(f'{self.cache}/nova-sheepdog'))

    def test_not_on_the_index(self):
        error = self.assertRaises(graft.GraftError, tree.download, '34.0.0')
        self.assertIn('pip could not download nova==34.0.0', str(error))
        self.assertIn('No matching distribution found', str(error))
        self.assertEqual([], os.listdir(f'{self.cache}/nova-sheepdog'))

    def test_release_not_in_full(self):
        base.make_source(self.index)
        error = self.assertRaises(graft.GraftError, tree.download, '34.0')
        self.assertIn('Name the release in full', str(error))

    @ddt.data('master', '34', '--pre', '34.0.0;b', '')
    def test_no_release(self, release):
        error = self.assertRaises(graft.GraftError, tree.download, release)
        self.assertIn('no version of Nova', str(error))
