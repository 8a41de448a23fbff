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

import io
import json
import os
import pathlib
import subprocess

import ddt
import fixtures
import testtools

import graft
from graft import cli
from graft.tests import base


class CommandTestCase(testtools.TestCase):
    make_tree = base.SourceTree

    def setUp(self):
        super().setUp()
        self.tree = self.useFixture(self.make_tree())
        self.patch = self.useFixture(base.Patch(base.PATCH))
        self.pristine = base.read(self.tree.top)
        self.driver = self.tree.root / 'nova/virt/libvirt/driver.py'

    def run_command(self, *arguments):
        """Run nova-sheepdog.

        :returns: exit status, standard output and standard error
        """
        streams = [io.TextIOWrapper(io.BytesIO()) for _ in range(2)]
        with fixtures.MonkeyPatch('sys.stdout', streams[0]), \
                fixtures.MonkeyPatch('sys.stderr', streams[1]):
            try:
                status = cli.main(arguments)
            except SystemExit as end:
                status = end.code
        for stream in streams:
            stream.flush()
        return status, *(stream.buffer.getvalue().decode()
                         for stream in streams)

    def run_here(self, name, *more):
        return self.run_command(name, '--nova', str(self.tree.top), *more)

    def succeed(self, name, *more):
        status, out, error = self.run_here(name, *more)
        self.assertEqual((0, ''), (status, error))
        return out

    def fail_with(self, text, name, *more):
        before = base.read(self.tree.top)
        status, out, error = self.run_here(name, *more)
        self.assertEqual((1, ''), (status, out))
        self.assertIn(text, error)
        self.assertTrue(error.startswith('nova-sheepdog: '), error)
        self.assertEqual(before, base.read(self.tree.top))

    def assert_pristine(self):
        self.assertEqual(self.pristine, base.read(self.tree.top))


@ddt.ddt
class SourceTreeTestCase(CommandTestCase):

    def test_apply_and_revert(self):
        self.assertIn(
            f'Patched Nova 34.0.0 in {self.tree.root}: 2 files changed, 4 '
            'added.\n', out := self.succeed('apply'))
        self.assertIn('/usr/bin/nova-rootwrap-daemon /etc/nova/rootwrap', out)
        self.assertIn('cleanup_sheepdog', self.driver.read_text())
        self.assertEqual(
            f'Took the patch back from Nova 34.0.0 in {self.tree.root}.\n',
            self.succeed('revert'))
        self.assert_pristine()

    def test_twice_is_once(self):
        self.succeed('apply')
        once = base.read(self.tree.top)
        self.assertIn('patched already; nothing to do', self.succeed('apply'))
        self.assertEqual(once, base.read(self.tree.top))
        self.succeed('revert')
        self.assertIn('is not patched', self.succeed('revert'))
        self.assert_pristine()

    def test_status(self):
        first = f'Nova 34.0.0 in {self.tree.root}/nova\n'
        self.assertEqual((1, first + 'Not patched.\n', ''),
                         self.run_here('status'))
        self.succeed('apply')
        version = self.run_command('--version')[1].split()[1]
        patched = first + f'Patched by nova-sheepdog {version}.\n'
        self.assertEqual((0, patched, ''), self.run_here('status'))
        base.write(self.patch.root, {'nova/more': ''})
        status, out, _ = self.run_here('status')
        self.assertIn('"apply" puts it in its place', out)
        edited = self.driver.read_bytes() + b'a = 1\n'
        self.driver.write_text('a = 1\n')
        status, out, _ = self.run_here('status')
        self.assertEqual(1, status)
        self.assertIn(f'{self.driver} is of an update', out)
        self.driver.write_bytes(edited)
        status, out, _ = self.run_here('status')
        self.assertIn(f'Somebody changed {self.driver}.\n', out)

    def status(self):
        return json.loads(self.run_here('status', '--json')[1])

    def test_status_for_programs(self):
        expected = {
            'release': '34.0.0', 'package': f'{self.tree.root}/nova',
            'state': 'not patched', 'version': None, 'is_current': None,
            'files': {}}
        self.assertEqual(expected, self.status())
        self.succeed('apply')
        expected.update(state='patched', version=graft.__version__,
                        is_current=True)
        self.assertEqual(expected, self.status())
        base.write(self.tree.root, {'nova/conf/libvirt.py': base.OPTIONS})
        expected.update(state='patched in part', files={
            f'{self.tree.root}/nova/conf/libvirt.py': 'restored'})
        self.assertEqual(expected, self.status())
        self.change_manifest(state='applying')
        self.assertEqual('interrupted', self.status()['state'])

    def change_manifest(self, **values):
        path = self.tree.root / 'nova/.nova-sheepdog/manifest.json'
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    def test_another_version_of_the_patch(self):
        self.succeed('apply')
        self.change_manifest(version='0.0.1')
        base.write(self.patch.root, {
            'nova/virt/libvirt/driver.py':
                "from graft.fragment import after\n"
                "@after('', 'CONF = nova.conf.CONF')\n"
                "def _():\n    NEW = 1\n",
            'nova/more/new.py': 'new = 1\n'})
        (self.patch.root / 'nova/virt/notes.txt').unlink()
        self.assertIn('Took back the patch of nova-sheepdog 0.0.1.\nPatched',
                      self.succeed('apply'))
        self.assertIn('NEW = 1', self.driver.read_text())
        self.assertNotIn('sheepdog', self.driver.read_text())
        self.assertTrue((self.tree.root / 'nova/more/new.py').exists())
        self.assertFalse((self.tree.root / 'nova/virt/notes.txt').exists())
        self.succeed('revert')
        self.assert_pristine()

    def test_another_version_that_does_not_fit(self):
        self.succeed('apply')
        base.write(self.patch.root, {'nova/version.py': 'a = 1\n'})
        self.fail_with('nova/version.py: Nova 34.0.0 has a file', 'apply')

    @ddt.data('apply', 'revert')
    def test_interrupted(self, name):
        self.succeed('apply')
        # The way that a run leaves it which could not change all files.
        self.driver.write_text(base.DRIVER)
        self.change_manifest(state='applying')
        self.assertIn('was interrupted here', self.run_here('status')[1])
        self.assertIn('An earlier run was interrupted', self.succeed(name))
        if name == 'apply':
            self.assertEqual(0, self.run_here('status')[0])
            self.succeed('revert')
        self.assert_pristine()

    @ddt.data('apply', 'revert')
    def test_updated(self, name):
        self.succeed('apply')
        fixed = base.DRIVER.replace('# The', '# Fixed: the')
        base.write(self.tree.root, {**base.NOVA,
                                    'nova/virt/libvirt/driver.py': fixed})
        self.pristine['nova/virt/libvirt/driver.py'] = (
            self.driver.stat().st_mode, fixed.encode())
        self.assertIn('patches it if it fits', self.run_here('status')[1])
        self.succeed('check')
        out = self.succeed(name)
        if name == 'apply':
            self.assertIn('Nova was updated since it was patched.\n', out)
            self.assertIn('cleanup_sheepdog', self.driver.read_text())
            self.assertEqual('patched', self.status()['state'])
            self.succeed('revert')
        self.assert_pristine()

    def test_update_that_does_not_fit(self):
        self.succeed('apply')
        self.driver.write_text(base.DRIVER.replace("'rbd'", "'ceph'"))
        self.fail_with('The patch does not fit; nothing was changed', 'apply')
        self.succeed('revert')
        self.assertIn("'ceph'", self.driver.read_text())

    @ddt.data('apply', 'revert', 'diff', 'check')
    def test_somebody_changed_a_file(self, name):
        self.succeed('apply')
        with open(self.driver, 'a') as stream:
            stream.write('a = 1\n')
        self.fail_with(f'Not as it was:\n  {self.driver}\n', name)
        self.change_manifest(state='reverting')
        self.fail_with(f'Not as it was:\n  {self.driver}\n', name)

    @ddt.data('apply', 'revert')
    def test_somebody_removed_a_new_file(self, name):
        self.succeed('apply')
        notes = self.tree.root / 'nova/virt/notes.txt'
        notes.unlink()
        status, out, _ = self.run_here('status')
        self.assertEqual(1, status)
        self.assertIn(f'Somebody removed {notes}: "apply" brings', out)
        self.succeed(name)
        if name == 'apply':
            self.assertEqual(0, self.run_here('status')[0])
            self.succeed('revert')
        self.assert_pristine()

    @ddt.data('apply', 'diff', 'check')
    def test_does_not_fit(self, name):
        self.driver.write_text(base.DRIVER.replace("'rbd'", "'ceph'"))
        self.fail_with(
            'The patch does not fit; nothing was changed.\n'
            "  nova/virt/libvirt/driver.py:8: after \"if CONF.images_type == "
            "'rbd':\" in Driver.cleanup of nova/virt/libvirt/driver.py: no "
            'such statement; the nearest is "if CONF.images_type == \'ceph\':"'
            ' (Nova 34.0.0)\nTake a Nova of', name)

    def test_check(self):
        self.assertEqual('Nova 34.0.0: the patch fits, not tested.\n',
                         self.succeed('check'))
        self.assertIn('was not tested with it', self.succeed('apply'))
        base.write(self.patch.root, {'locks/nova-34.0.0.txt': ''})
        self.assertEqual('Nova 34.0.0: the patch fits, tested.\n',
                         self.succeed('check'))
        self.succeed('revert')
        self.assertNotIn('was not tested', self.succeed('apply'))

    def test_diff_makes_what_apply_makes(self):
        text = self.succeed('diff')
        other = self.useFixture(base.SourceTree()).top
        subprocess.run(['patch', '-s', '-p1', '--fuzz=0'], cwd=other,
                       input=text.encode(), check=True)
        self.succeed('apply', '--with-tests')
        self.assertEqual(text, self.succeed('diff'))
        made = {name: content for name, (_, content)
                in base.read(self.tree.top).items()
                if '.nova-sheepdog' not in name}
        self.assertEqual(made, {name: content for name, (_, content)
                                in base.read(other).items()})

    def test_tests_only_if_asked(self):
        name = 'nova/tests/fixtures/dog'
        base.write(self.patch.root, {name: 'woof'})
        self.succeed('apply')
        self.assertFalse((self.tree.root / name).exists())
        self.assertTrue(self.status()['is_current'])
        self.assertIn(name, self.succeed('diff'))
        self.assertIn('Took back', self.succeed('apply', '--with-tests'))
        self.assertTrue((self.tree.root / name).exists())
        self.assertTrue(self.status()['is_current'])
        # It was said before what is to do.
        self.assertNotIn('Still to do', self.succeed('apply'))
        self.assertFalse((self.tree.root / name).exists())

    def test_diff_for_an_installed_nova(self):
        base.write(self.patch.root, {'nova/tests/a': 'b'})
        for options, names, more in (
                (['--installed'], ['nova/virt/libvirt/driver.py'], ''),
                (['--prefix', '/opt/lib'], [
                    'opt/lib/nova/virt/libvirt/driver.py',
                    'opt/lib/nova/virt/sheepdog/__init__.py',
                    'etc/nova/rootwrap.d/sheepdog.filters'], 'opt/lib')):
            text = self.succeed('diff', *options)
            self.assertNotIn('nova/tests', text)
            self.assertEqual(bool(more), 'rootwrap' in text)
            root = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
            base.write(root / more, {
                name: content for name, content in base.NOVA.items()
                if name.startswith('nova/')})
            subprocess.run(
                ['patch', '-s', '-p0' if more else '-p1', '--fuzz=0'],
                cwd=root, input=text.encode(), check=True)
            for name in names:
                self.assertTrue((root / name).exists(), name)
            self.assertIn('cleanup_sheepdog', (root / names[0]).read_text())

    def test_already_patched_by_the_diff(self):
        subprocess.run(
            ['patch', '-s', '-p1', '--fuzz=0'], cwd=self.tree.root,
            input=self.succeed('diff').encode(), check=True)
        self.fail_with('has Driver.cleanup_sheepdog already', 'apply')

    def test_release(self):
        self.useFixture(fixtures.MonkeyPatch(
            'graft.tree.download', lambda release: cli.tree.find(
                self.tree.root)))
        status, out, error = self.run_command('diff', '--release', '34.0.0')
        self.assertEqual((0, ''), (status, error))
        self.assertIn('+++ b/nova/virt/libvirt/driver.py\n', out)
        self.assertEqual(
            (0, 'Nova 34.0.0: the patch fits, not tested.\n', ''),
            self.run_command('check', '--release', '34.0.0'))

    def test_no_nova(self):
        status, _, error = self.run_command('status', '--nova', '/nonexistent')
        self.assertEqual(1, status)
        self.assertIn('No Nova in /nonexistent', error)

    def test_not_permitted(self):
        def refuse(self, *arguments):
            raise PermissionError(13, 'Permission denied', '/a')

        self.useFixture(fixtures.MonkeyPatch(
            'graft.record.Record._keep', refuse))
        self.fail_with("'/a'. Run it as the user who owns this Nova", 'apply')

    def test_interrupted_by_the_operator(self):
        def interrupt(self, *arguments):
            raise KeyboardInterrupt()

        self.useFixture(fixtures.MonkeyPatch('graft.record.Record._save',
                                             interrupt))
        self.assertEqual((130, '', 'nova-sheepdog: Interrupted.\n'),
                         self.run_here('apply'))
        self.assert_pristine()

    @ddt.data((), ('bark',), ('diff', '--nova', 'a', '--release', '34.0.0'),
              ('apply', '--release', '34.0.0'))
    def test_bad_arguments(self, arguments):
        self.assertEqual(2, self.run_command(*arguments)[0])

    def test_nobody_reads_the_diff(self):
        reader, writer = os.pipe()
        os.close(reader)
        stream = open(writer, 'w')
        self.addCleanup(stream.close)
        errors = io.StringIO()
        with fixtures.MonkeyPatch('sys.stdout', stream), \
                fixtures.MonkeyPatch('sys.stderr', errors):
            self.assertEqual(1, cli.main(
                ['diff', '--nova', str(self.tree.root)]))
        self.assertEqual('', errors.getvalue())


class InstalledNovaTestCase(CommandTestCase):
    make_tree = base.InstalledNova

    def test_apply_and_revert(self):
        filters = self.tree.filters / 'sheepdog.filters'
        out = self.succeed('apply')
        self.assertIn('2 files changed, 4 added.\n', out)
        self.assertIn(f'The rootwrap filters are in {filters}', out)
        self.assertIn(
            f'{self.tree.top}/bin/nova-rootwrap-daemon '
            f'{self.tree.top}/etc/nova/rootwrap.conf\n', out)
        self.assertEqual(base.PATCH['etc/nova/rootwrap.d/sheepdog.filters'],
                         filters.read_text())
        self.assertFalse((self.tree.root / 'etc').exists())
        self.assertNotIn('sheepdog.filters', self.succeed('diff'))
        self.succeed('revert')
        self.assert_pristine()

    def test_rootwrap_configuration_that_is_named(self):
        filters = self.tree.top / 'other'
        filters.mkdir()
        base.write(self.tree.top, {
            'other.conf': f'[DEFAULT]\nfilters_path={filters}\n'})
        self.succeed('apply', '--rootwrap-conf',
                     str(self.tree.top / 'other.conf'))
        self.assertTrue((filters / 'sheepdog.filters').exists())

    def test_status_by_a_user_who_may_not_see_the_filters(self):
        self.succeed('apply')
        filters = self.tree.filters / 'sheepdog.filters'
        real = pathlib.Path.read_bytes

        def read_bytes(path):
            if path == filters:
                raise PermissionError(13, 'Permission denied', str(path))
            return real(path)

        with fixtures.MonkeyPatch('pathlib.Path.read_bytes', read_bytes):
            self.assertIn(f'Only root can see {filters}.\n',
                          self.succeed('status'))

    def test_moved(self):
        self.succeed('apply')
        moved = self.useFixture(fixtures.TempDir()).join('moved')
        self.tree.top.rename(moved)
        filters = self.tree.filters / 'sheepdog.filters'
        self.tree.top = moved
        self.assertIn(f'patched in another place; left {filters} there',
                      self.succeed('revert'))
