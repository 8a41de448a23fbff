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

import csv
import fcntl
import json
import os
import py_compile
import shutil
import sys
import threading

import ddt
import fixtures
import testtools

import graft
from graft import patch
from graft import record
from graft.tests import base
from graft import tree

# What Python tells its audit hooks before it changes anything on a disk.
STEPS = ('os.rename', 'os.remove', 'os.mkdir', 'os.rmdir', 'os.chmod',
         'os.chown', 'os.utime')


def run_and_die(step, function):
    """Run a function in a child process that dies before a step.

    :param step: number of the change on the disk that is not made
    :param function: what to run
    :returns: whether the process died
    """
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status not in (0, 9):
            raise AssertionError(f'the child ended with {status}')
        return status == 9
    left = step

    def die(event, arguments):
        nonlocal left
        if event in STEPS or (event == 'open' and 'w' in str(arguments[1])):
            left -= 1
            if left < 0:
                os._exit(9)

    try:
        sys.addaudithook(die)
        function()
        os._exit(0)
    finally:
        os._exit(1)


class RecordTestCase(testtools.TestCase):
    make_tree = base.SourceTree

    def setUp(self):
        super().setUp()
        # The death of a process loses nothing that was written.
        self.useFixture(fixtures.MonkeyPatch('os.fsync', lambda number: None))
        self.tree = self.useFixture(self.make_tree())
        self.patch = patch.Patch(
            self.useFixture(base.Patch(base.PATCH)).root)
        self.pristine = base.read(self.tree.top)
        self.driver = self.tree.root / 'nova/virt/libvirt/driver.py'

    def record(self):
        return record.Record(tree.find(self.tree.root))

    def apply(self):
        done = self.record()
        changes = self.patch.changes(done.read, '34.0.0')
        if not done.nova.is_source:
            changes = [change for change in changes
                       if change.path.startswith('nova/')]
        changes += record.installation_record_change(done.nova, changes)
        done.apply(changes, self.patch.version, self.patch.fingerprint)

    def revert(self):
        self.record().revert()

    def roll_back(self):
        self.record().roll_back()

    def assert_pristine(self):
        self.assertEqual(self.pristine, base.read(self.tree.top))

    def assert_patched(self):
        for change in self.patch.changes(self.record().read, '34.0.0'):
            path = self.tree.root / change.path
            if self.record().nova.is_source or path.exists():
                self.assertEqual(change.after, path.read_bytes())


@ddt.ddt
class SourceTreeTestCase(RecordTestCase):

    def test_apply_and_revert(self):
        times = self.driver.stat().st_mtime_ns
        self.apply()
        self.assertTrue(self.record().is_applied)
        self.assertTrue(self.record().is_whole)
        self.assert_patched()
        self.assertEqual(0o640, self.driver.stat().st_mode & 0o777)
        tool = self.tree.root / 'nova/virt/sheepdog/tool'
        self.assertEqual(0o755, tool.stat().st_mode & 0o777)
        self.revert()
        self.assert_pristine()
        self.assertEqual(times, self.driver.stat().st_mtime_ns)

    def test_manifest(self):
        self.apply()
        manifest = self.record().manifest
        self.assertEqual(
            (graft.__version__, self.patch.fingerprint, '34.0.0'),
            tuple(manifest[key] for key in
                  ('version', 'fingerprint', 'release')))
        self.assertEqual(set(base.PATCH),
                         {entry['path'] for entry in manifest['files']})

    def test_version_control_does_not_see_it(self):
        self.apply()
        self.assertEqual('*\n', (self.tree.root / 'nova/.nova-sheepdog'
                                 '/.gitignore').read_text())

    def test_failure_takes_everything_back(self):
        self.useFixture(fixtures.MonkeyPatch(
            'os.replace', self._fail_on('driver.py')))
        error = self.assertRaises(OSError, self.apply)
        self.assertEqual('no space', str(error))
        self.assert_pristine()

    @staticmethod
    def _fail_on(name, replace=os.replace):
        def fail(source, target):
            if os.path.basename(target) == name:
                raise OSError('no space')
            replace(source, target)

        return fail

    def assert_not(self, done, *states):
        self.assertEqual(set(), set(done.states().values()) & set(states))

    def _each_death(self, function):
        """The states that a death leaves, and at last that of success."""
        step = 0
        while run_and_die(step, function):
            yield step
            step += 1
        # Were nothing counted, nothing would be tested.
        self.assertGreater(step, 10)

    def test_death_while_applying(self):
        for step in self._each_death(self.apply):
            done = self.record()
            if step:
                self.assert_not(done, record.EDITED, record.UPDATED)
                self.assertFalse(done.is_applied)
            self.roll_back()
            self.assert_pristine()
        self.assert_patched()

    def test_death_while_reverting(self):
        self.apply()
        for _ in self._each_death(self.revert):
            if self.record().is_interrupted:
                self.assert_not(self.record(), record.EDITED,
                                record.UPDATED)
                self.roll_back()
                self.assert_pristine()
                self.apply()
            self.assert_patched()
        self.assert_pristine()

    def test_death_while_mending(self):
        def apply_and_die():
            # Late, so that there is much to mend.
            self.assertTrue(run_and_die(30, self.apply))

        apply_and_die()
        for _ in self._each_death(self.roll_back):
            self.assert_not(self.record(), record.EDITED, record.UPDATED)
            self.roll_back()
            self.assert_pristine()
            apply_and_die()
        self.assert_pristine()

    def assert_states(self, **expected):
        """Compare the states of the files that are not as patched."""
        found = {path.name: state for path, state
                 in self.record().states().items() if state != record.PATCHED}
        self.assertEqual({name.replace('_', '.'): state
                          for name, state in expected.items()}, found)

    def test_somebody_changed_a_file(self):
        self.apply()
        tool = self.tree.root / 'nova/virt/sheepdog/tool'
        self.driver.write_text('import abc\n' + self.driver.read_text())
        tool.write_text('a')
        (self.tree.root / 'nova/virt/notes.txt').unlink()
        self.assert_states(driver_py=record.EDITED, tool=record.EDITED,
                           notes_txt=record.REMOVED)

    def test_update_of_some_files(self):
        self.apply()
        fixed = base.DRIVER.replace('# The', '# Fixed: the')
        base.write(self.tree.root, {'nova/virt/libvirt/driver.py': fixed,
                                    'nova/conf/libvirt.py': base.OPTIONS})
        self.assert_states(driver_py=record.UPDATED,
                           libvirt_py=record.RESTORED)
        self.assertEqual(base.OPTIONS.encode(), self.record().read(
            'nova/conf/libvirt.py'))
        self.assertEqual(fixed.encode(), self.record().read(
            'nova/virt/libvirt/driver.py'))
        # Ours is not Nova's.
        self.assertIsNone(self.record().read('nova/virt/notes.txt'))
        self.revert()
        self.assertEqual(fixed, self.driver.read_text())
        self.driver.write_text(base.DRIVER)
        self.driver.chmod(0o640)
        self.assert_pristine()

    def test_update_that_lacks_a_file(self):
        self.apply()
        options = self.tree.root / 'nova/conf/libvirt.py'
        options.unlink()
        self.assert_states(libvirt_py=record.UPDATED)
        self.revert()
        self.assertFalse(options.exists())

    def test_update_of_all_but_one_file(self):
        self.apply()
        base.write(self.driver.parent, {'driver.py': base.DRIVER})
        self.assertEqual(base.OPTIONS.encode(),
                         self.record().read('nova/conf/libvirt.py'))
        self.revert()
        self.assert_pristine()

    def test_record_of_an_older_nova_sheepdog(self):
        self.apply()
        path = self.tree.root / 'nova/.nova-sheepdog/manifest.json'
        manifest = json.loads(path.read_text())
        for entry in manifest['files']:
            entry.pop('added', None)
        path.write_text(json.dumps(manifest))
        self.assertTrue(self.record().is_whole)
        base.write(self.driver.parent, {'driver.py': 'a = 1'})
        self.assert_states(driver_py=record.UPDATED)

    def test_file_that_somebody_put_beside_ours(self):
        self.apply()
        stranger = self.tree.root / 'nova/virt/sheepdog/stranger'
        stranger.write_text('')
        self.revert()
        self.assertEqual(['stranger'], os.listdir(stranger.parent))
        shutil.rmtree(stranger.parent)
        self.assert_pristine()

    def test_pristine_copy_is_damaged(self):
        self.apply()
        copies = self.tree.root / 'nova/.nova-sheepdog/pristine'
        for path in copies.iterdir():
            path.write_text('a')
        error = self.assertRaises(graft.GraftError, self.revert)
        self.assertIn('is damaged. Install this Nova again', str(error))

    def test_manifest_is_damaged(self):
        self.apply()
        base.write(self.tree.root, {'nova/.nova-sheepdog/manifest.json': '{'})
        error = self.assertRaises(graft.GraftError, self.record)
        self.assertIn('Install this Nova again', str(error))

    def test_symbolic_link(self):
        target = self.driver.with_name('target.py')
        self.driver.rename(target)
        self.driver.symlink_to(target.name)
        self.pristine = base.read(self.tree.top)
        error = self.assertRaises(graft.GraftError, self.apply)
        self.assertIn(f'{self.driver} is a symbolic link', str(error))
        self.assert_pristine()

    def test_one_at_a_time(self):
        held = os.open(self.tree.root / 'nova', os.O_RDONLY)
        self.addCleanup(os.close, held)
        fcntl.flock(held, fcntl.LOCK_EX)
        order, waits, lock = [], threading.Event(), fcntl.flock

        def flock(descriptor, operation):
            waits.set()
            lock(descriptor, operation)

        def run():
            with self.record().locked():
                order.append('second')

        self.useFixture(fixtures.MonkeyPatch('fcntl.flock', flock))
        second = threading.Thread(target=run)
        second.start()
        waits.wait(60)
        order.append('first')
        lock(held, fcntl.LOCK_UN)
        second.join(60)
        self.assertEqual(['first', 'second'], order)

    def test_bytecode(self):
        ours = self.tree.root / 'nova/virt/sheepdog/__init__.py'
        before = py_compile.compile(self.driver)
        self.apply()
        self.revert()
        # It is as true as it was.
        self.assertTrue(os.path.exists(before))
        self.apply()
        py_compile.compile(self.driver)
        py_compile.compile(ours)
        other = self.driver.parent / '__pycache__/driver_other.a.pyc'
        other.write_text('')
        self.revert()
        self.assertFalse(os.path.exists(before))
        self.assertTrue(other.exists())
        self.assertFalse(ours.parent.exists())

    def test_release_installed_over_the_patched_one(self):
        self.apply()
        base.write(self.tree.root, {
            **base.NOVA, 'PKG-INFO': 'Version: 35\n',
            'nova/virt/libvirt/driver.py': 'new = 1\n',
            'nova/conf/libvirt.py': 'new = 2\n'})
        self.revert()
        self.assertEqual(set(self.pristine), set(base.read(self.tree.top)))
        self.assertEqual('new = 1\n', self.driver.read_text())


class InstalledNovaTestCase(RecordTestCase):
    make_tree = base.InstalledNova

    def test_record_is_true(self):
        self.apply()
        with open(self.tree.record, newline='') as stream:
            rows = {row[0]: row for row in csv.reader(stream)}
        on_disk = {os.path.relpath(os.path.join(directory, name),
                                   self.tree.root)
                   for directory, _, names in os.walk(self.tree.top)
                   for name in names}
        self.assertEqual(on_disk, set(rows))
        for name, row in rows.items():
            if row[1]:
                self.assertEqual(self.tree.record_row(name), row)
            else:
                self.assertIn(os.path.basename(name),
                              ('RECORD', 'manifest.json'))
        self.revert()
        self.assert_pristine()

    def test_copy(self):
        filters = self.tree.filters / 'sheepdog.filters'
        done = self.record()
        done.apply([patch.Change(str(filters), None, b'a')], '1', 'b')
        self.assertTrue(self.record().owns(filters))
        copy = self.useFixture(fixtures.TempDir()).join('copy')
        shutil.copytree(self.tree.top, copy)
        done = record.Record(tree.find(copy))
        self.assertTrue(done.is_whole)
        self.assertEqual([str(filters)], done.left_elsewhere)
        self.assertFalse(done.owns(filters))
        done.revert()
        self.assertTrue(filters.exists())
        self.revert()
        self.assert_pristine()
