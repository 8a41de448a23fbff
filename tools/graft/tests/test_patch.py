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

import subprocess

import ddt
import fixtures
import testtools

import graft
from graft import patch
from graft import source
from graft.tests import base

PAGE = 'doc/source/admin/index.rst'


@ddt.ddt
class PatchTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.tree = self.useFixture(base.SourceTree())

    def read(self, name):
        path = self.tree.root / name
        return path.read_bytes() if path.exists() else None

    def changes(self, files):
        self.patch = self.useFixture(base.Patch(files))
        return patch.Patch(self.patch.root).changes(self.read, '34.0.0')

    def test_changes(self):
        changes = {change.path: change for change in self.changes({
            **base.PATCH, 'nova/virt/.hidden': '', 'nova/virt/a.pyc': '',
            'nova/__pycache__/b.py': ''})}
        self.assertEqual(set(base.PATCH), set(changes))
        driver = changes['nova/virt/libvirt/driver.py']
        self.assertEqual(base.DRIVER.encode(), driver.before)
        self.assertIn(b'def cleanup_sheepdog', driver.after)
        tool = changes['nova/virt/sheepdog/tool']
        self.assertEqual((None, b'#!/bin/sh\n', 0o755),
                         (tool.before, tool.after, tool.mode))

    def test_file_that_nova_has_as_it_is(self):
        base.write(self.tree.root, {'nova/conf/notes': 'same\n'})
        self.assertEqual([], self.changes({'nova/conf/notes': 'same\n'}))

    def test_all_problems_are_told(self):
        error = self.assertRaises(source.Misfit, self.changes, {
            'nova/conf/__init__.py': 'a = 1\n',
            'nova/conf/new.py': 'a = (\n',
            'nova/conf/other.py': 'from graft.fragment import after\n',
            'nova/conf/libvirt.py': 'from graft.fragment import after\n'
                                    "@after('', 'a')\n"
                                    'def b():\n    pass\n'})
        self.assertEqual(4, len(error.problems), error)
        for text in ('nova/conf/__init__.py: Nova 34.0.0 has a file of this',
                     'nova/conf/new.py:1: ',
                     'nova/conf/other.py: Nova 34.0.0 has no such file',
                     "nova/conf/libvirt.py:2: after 'a' in the module"):
            self.assertIn(text, str(error))

    @ddt.data(
        ('.. after: flavors\n\n   b\n\n.. after: flavors\n\n   c\n',
         base.INDEX.replace('flavors', 'flavors\n   b\n   c')),
        ('For us.\n\n.. after: quotas\n\nTwo\nlines.\n',
         base.INDEX.replace('quotas', 'quotas\n\nTwo\nlines.')),
        ('.. after: been read.\n\nAnd more.\n',
         base.INDEX + '\nAnd more.\n'))
    @ddt.unpack
    def test_page(self, fragment, expected):
        change, = self.changes({PAGE: fragment})
        self.assertEqual(expected, change.after.decode())

    @ddt.data(('been', '0 lines'), ('', '4 lines'))
    @ddt.unpack
    def test_page_that_does_not_fit(self, anchor, count):
        error = self.assertRaises(source.Misfit, self.changes, {
            PAGE: '.. after: flavors\n\n   a\n\n'
                  f'.. after: {anchor}\n\nb\n'})
        self.assertEqual(
            [f"{PAGE}: {count} read '{anchor}', not one (Nova 34.0.0)"],
            error.problems)

    def test_nova_without_documents(self):
        (self.tree.root / 'doc/source/conf.py').unlink()
        self.assertEqual([], self.changes({
            PAGE: base.PATCH[PAGE], 'releasenotes/notes/a': 'b'}))

    def test_no_empty_file(self):
        error = self.assertRaises(source.Misfit, self.changes, {'nova/a': ''})
        self.assertIn('nova/a: an empty file', str(error))

    def test_only_text(self):
        root = self.useFixture(base.Patch({'nova/a': ''})).root
        (root / 'nova/a').write_bytes(b'\xff')
        error = self.assertRaises(
            source.Misfit, patch.Patch(root).changes, self.read, '34.0.0')
        self.assertIn('nova/a: not a text in UTF-8', str(error))

    def test_fingerprint(self):
        def fingerprint(files):
            return patch.Patch(
                self.useFixture(base.Patch(files)).root).fingerprint

        one = fingerprint(base.PATCH)
        self.assertEqual(one, fingerprint(base.PATCH))
        self.assertNotEqual(one, fingerprint({**base.PATCH, 'nova/a': ''}))
        self.assertNotEqual(fingerprint({'nova/a': 'b'}),
                            fingerprint({'nova/ab': ''}))

    @ddt.data(('patch', '-p1', '--fuzz=0', '--force'), ('git', 'apply'))
    def test_diff(self, command):
        changes = self.changes(base.PATCH)
        # git asks for no repository here, but must not find one above.
        self.useFixture(fixtures.EnvironmentVariable(
            'GIT_CEILING_DIRECTORIES', str(self.tree.root.parent)))
        done = subprocess.run(
            command, cwd=self.tree.root, input=patch.diff(changes).encode(),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.assertEqual(0, done.returncode, done.stdout)
        self.assertNotIn(b'offset', done.stdout)
        for change in changes:
            path = self.tree.root / change.path
            self.assertEqual(change.after, path.read_bytes())
            if change.before is None:
                self.assertEqual(
                    change.mode & 0o100, path.stat().st_mode & 0o100)

    def test_diff_of_a_file_without_a_last_line_end(self):
        self.assertEqual(
            '--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n a\n-b\n'
            '\\ No newline at end of file\n+c\n'
            '\\ No newline at end of file\n',
            patch.diff([patch.Change('f', b'a\nb', b'a\nc')]).partition(
                '\n')[2])


class RootTestCase(testtools.TestCase):

    def test_of_a_checkout(self):
        root = patch.find_root()
        self.assertTrue((root / 'nova/virt/libvirt').is_dir())

    def test_of_an_installation(self):
        site = self.useFixture(fixtures.TempDir()).path
        base.write(site, {f'graft/files/{name}': content
                          for name, content in base.PATCH.items()})
        self.useFixture(fixtures.MonkeyPatch(
            'graft.patch.__file__', f'{site}/graft/patch.py'))
        self.assertEqual(f'{site}/graft/files', str(patch.find_root()))

    def test_missing(self):
        self.useFixture(fixtures.MonkeyPatch(
            'graft.patch.__file__', '/nonexistent/a/b/patch.py'))
        error = self.assertRaises(graft.GraftError, patch.find_root)
        self.assertIn('install nova-sheepdog again', str(error))
