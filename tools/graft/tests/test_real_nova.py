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
import pathlib
import shutil
import subprocess

import ddt
import fixtures
import testtools

import graft
from graft import patch
from graft import record
from graft import series
from graft.tests import base
from graft import tree


def real_novas():
    """Directories of the Novas to test with.

    NOVA_TREES names them, with colons between; without it, it is the Nova
    that this Python imports. A patched one counts as what it was before.
    """
    named = os.environ.get('NOVA_TREES')
    try:
        return named.split(':') if named else [str(tree.find().root)]
    except graft.GraftError:
        return []


@ddt.ddt
class RealNovaTestCase(testtools.TestCase):

    def make_tree(self, files):
        root = self.useFixture(fixtures.TempDir()).path
        for name, content in files.items():
            path = os.path.join(root, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, 'wb') as stream:
                stream.write(content)
        return root

    @ddt.data(*real_novas())
    def test_diff_makes_what_apply_makes(self, directory):
        nova = tree.find(directory)
        read = record.Record(nova).read
        changes = patch.Patch().changes(read, nova.release)
        pristine = {name: read(name) for name in base.NOVA
                    if name.startswith('nova/')}
        pristine.update({change.path: change.before for change in changes
                         if change.before is not None})
        expected = dict(pristine)
        expected.update({change.path: change.after for change in changes})
        self.useFixture(fixtures.EnvironmentVariable(
            'GIT_CEILING_DIRECTORIES', '/'))
        for command in (['patch', '-p1', '--fuzz=0', '--force'],
                        ['git', 'apply', '--whitespace=error']):
            root = self.make_tree(pristine)
            done = subprocess.run(
                command, cwd=root, input=patch.diff(changes).encode(),
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            self.assertEqual(0, done.returncode, done.stdout)
            self.assert_files(expected, root)
        root = self.make_tree(pristine)
        os.makedirs(f'{root}/etc/nova', exist_ok=True)
        copy = record.Record(tree.find(root))
        copy.apply(changes, '1', 'a')
        self.assert_files(expected, root)
        copy.revert()
        self.assert_files(pristine, root)

    @ddt.data(*real_novas())
    def test_series_makes_what_diff_makes(self, directory):
        nova = tree.find(directory)
        read = record.Record(nova).read
        the_patch = patch.Patch()
        changes = the_patch.changes(read, nova.release)
        root = self.make_tree({
            'nova/version.py': b'', **{
                change.path: change.before for change in changes
                if change.before is not None}})
        patches = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        count = series.Series(the_patch).write(patches, read, nova.release)

        def git(*arguments):
            done = subprocess.run(
                ['git', '-c', 'user.name=a', '-c', 'user.email=b@example',
                 *arguments], cwd=root, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True)
            self.assertEqual(0, done.returncode, done.stdout)
            return done.stdout

        git('init', '--quiet')
        git('add', '--all')
        git('commit', '--quiet', '--message', 'Nova')
        git('am', '--whitespace=error', *sorted(patches.iterdir()))
        self.assertEqual(count + 1, len(git('log', '--oneline').splitlines()))
        shutil.rmtree(os.path.join(root, '.git'))
        self.assert_files({'nova/version.py': b'', **{
            change.path: change.after for change in changes}}, root)

    def assert_files(self, expected, root):
        found = {name: content for name, (_, content)
                 in base.read(root).items() if content is not False and
                 '.nova-sheepdog' not in name}
        # Not one comparison of all: the message would be endless.
        self.assertEqual(set(expected), set(found))
        for name, content in expected.items():
            self.assertTrue(content == found[name], name)
