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

import itertools

import ddt
from oslo_utils import units
from oslo_utils import uuidutils

from nova.compute import vm_states
from nova import exception
from nova import objects
from nova import test
from nova.tests.unit.virt.libvirt.sheepdog import base
from nova.virt.libvirt.sheepdog import disks
from nova.virt.libvirt import utils as libvirt_utils

# Sizes of the disks of a server before a resize and after it.
SIZE = 8 * units.Mi
LARGER = 16 * units.Mi
# Where the disks have no data before. Of an object that a snapshot has as well
# the simulator makes a copy, which takes its time.
FREE = 4 * units.Mi
# Disks of a server before the resize, and one that the new flavor adds.
NAMES = ['disk', 'disk.swap', 'disk.config', 'disk.eph0']
ADDED = 'disk.eph1'


class _DisksTestCase(base.SheepdogTestMixin, test.NoDBTestCase):

    def setUp(self):
        super().setUp()
        self.start_cluster()
        self.save = self.patch_object(objects.Instance, 'save')
        self.instance = self.disks = None
        self.make_server()

    def make_server(self):
        """Make the objects of a server that has no disks yet."""
        self.instance = objects.Instance(
            id=1, uuid=uuidutils.generate_uuid(),
            vm_state=vm_states.ACTIVE, task_state=None, deleted=False,
            system_metadata={}, image_ref=uuidutils.generate_uuid())
        self.disks = self.get_disks()

    def get_disks(self):
        """Return what another nova-compute would have of the disks."""
        return disks.Disks(self.instance, {'ephemerals': [
            {'device_name': '/dev/vdb'}, {'device_name': '/dev/vdc'}]})

    def get_vdi(self, name):
        return libvirt_utils.get_sheepdog_vdi(self.instance.uuid, name)

    def write(self, name, data, offset=0):
        """Write to a disk, as the guest does."""
        status, _out, err = self.sheepdog.run(
            'vdi', 'write', self.get_vdi(name), str(offset), str(len(data)),
            stdin=data)
        self.assertEqual((0, b''), (status, err))

    def create(self, *names, data=b'before'):
        for name in names:
            libvirt_utils.create_sheepdog_vdi(self.get_vdi(name), SIZE)
            self.write(name, data)

    def read(self, name, *options, offset=0):
        return self.dog('vdi', 'read', *options, self.get_vdi(name),
                        str(offset), '6')

    def get_found(self):
        """Return what there is of the server: names, tags and sizes."""
        return {(vdi['name'].partition('_')[2], vdi['tag'], vdi['size'])
                for vdi in self.sheepdog.vdis()
                if vdi['name'].startswith(self.instance.uuid)}

    def get_content(self):
        """Return the sizes of the working disks, and what they hold."""
        return {name: (size, self.read(name), self.read(name, offset=FREE))
                for name, tag, size in self.get_found()
                if not tag and name != 'state'}

    def get_tags(self):
        return {name for name, tag, _size in self.get_found()
                if tag == 'nova-resize'}

    BEFORE = {name: (SIZE, b'before', bytes(6)) for name in NAMES}
    AFTER = {name: (LARGER if name == 'disk' else SIZE, b'before', b'after!')
             for name in NAMES + [ADDED]}

    def keep_and_resize(self):
        """Do what a resize does of which the user thinks better later."""
        self.create(*NAMES)
        self.disks.keep()
        libvirt_utils.resize_sheepdog_vdi(self.get_vdi('disk'), LARGER)
        self.create(ADDED)
        for name in NAMES + [ADDED]:
            self.write(name, b'after!', FREE)


@ddt.ddt
class DisksTestCase(_DisksTestCase):

    def test_find(self):
        self.create('disk', 'disk.eph1', 'disk.rescue')
        self.assertEqual(['disk', 'disk.eph1'], self.disks.find())
        self.assertEqual(['disk.rescue'], self.disks.find(
            ['disk.swap', 'disk.rescue']))

    def test_number_of_ephemeral_disks_from_the_database(self):
        get = self.patch_object(
            objects.BlockDeviceMappingList, 'get_by_instance_uuid')
        get.return_value = [
            objects.BlockDeviceMapping(
                source_type=source, destination_type='local',
                guest_format=guest_format) for source, guest_format in (
                    ('image', None), ('blank', None), ('blank', 'swap'),
                    ('blank', 'ext4'))]
        self.assertEqual(
            ['disk', 'disk.local', 'disk.swap', 'disk.config', 'disk.eph0',
             'disk.eph1'], disks.Disks(self.instance).names)
        # The server may be deleted already.
        self.assertEqual('yes', get.call_args[0][0].read_deleted)

    def test_delete(self):
        server, other = self.instance, objects.Instance(
            id=2, uuid=uuidutils.generate_uuid(), deleted=False,
            vm_state=vm_states.ACTIVE, task_state=None, system_metadata={})
        for self.instance in server, other:
            self.create('disk', 'disk.swap', 'disk.rescue', 'scratch')
            for name, tag in (('disk', 'nova-snapshot'),
                              ('disk', 'nova-resize'),
                              ('disk.swap', 'nova-resize'),
                              ('disk.rescue', 'nova-snapshot'),
                              ('scratch', 'nova-snapshot')):
                libvirt_utils.snapshot_sheepdog_vdi(self.get_vdi(name), tag)
            state = disks.State(self.instance.uuid)
            state.kept, state.rescued = ['disk'], ['disk.rescue']
            state.save()
        left = self.get_found()
        self.instance = server
        self.sheepdog.reset_stats()
        self.disks.delete()
        self.assertEqual(set(), self.get_found())
        self.instance = other
        self.assertEqual(left, self.get_found())
        # One for each of the five snapshots, one for each of the five VDIs
        # and another that says that it has gone, and one for each of the
        # four disks that there are not.
        self.assertEqual({'vdi read': 1, 'vdi delete': 19},
                         self.sheepdog.stats()['calls'])

    def test_delete_of_disks_of_which_snapshots_are_left(self):
        self.create('disk')
        for tag in 'nova-snapshot', 'nova-resize':
            libvirt_utils.snapshot_sheepdog_vdi(self.get_vdi('disk'), tag)
        libvirt_utils.delete_sheepdog_vdi(self.get_vdi('disk'))
        self.disks.delete()
        self.assertEqual(set(), self.get_found())

    def test_delete_rescued(self):
        self.create('disk', 'disk.rescue')
        libvirt_utils.snapshot_sheepdog_vdi(
            self.get_vdi('disk.rescue'), 'nova-snapshot')
        for name in 'disk.rescue', 'disk.config.rescue':
            disks.note_rescued(self.instance.uuid, name)
        self.disks.delete_rescued()
        self.assertEqual({('disk', '', SIZE)}, self.get_found())

    def test_delete_of_rescued_disks_is_tried_again(self):
        self.create('disk.rescue')
        disks.note_rescued(self.instance.uuid, 'disk.rescue')
        self.sheepdog.fault('hang', subcommand='vdi delete', hole=True,
                            skip=1)
        self.assertRaises(exception.SheepdogError, self.disks.delete_rescued)
        self.disks.delete_rescued()
        self.assertEqual(set(), self.get_found())

    def test_delete_of_a_disk_that_stays(self):
        self.create('disk', 'disk.swap')
        # What dog reports as done was not.
        self.sheepdog.fault('reply', subcommand='vdi delete', times=None,
                            vdi=self.get_vdi('disk'))
        self.assertRaisesRegex(
            exception.SheepdogError, 'still there .* try again',
            self.disks.delete)
        # The others have gone all the same.
        self.assertEqual({'disk'},
                         {name for name, _tag, _size in self.get_found()})

    @ddt.data('before', 'after')
    def test_delete_tries_again_after_an_error(self, when):
        self.create('disk')
        self.sheepdog.fault(
            'reply', subcommand='vdi delete', vdi=self.get_vdi('disk'),
            when=when, status=1, err=b'failed to read a response\n')
        self.disks.delete()
        self.assertEqual(set(), self.get_found())

    def test_delete_that_was_cut_short_is_no_success(self):
        self.create('disk')
        # after both snapshots, which there are not
        self.sheepdog.fault('hang', subcommand='vdi delete', hole=True,
                            vdi=self.get_vdi('disk'), skip=2)
        self.assertRaises(exception.SheepdogError, self.disks.delete)
        self.assertEqual(bytes(6), self.read('disk'))
        self.disks.delete()
        self.assertEqual(set(), self.get_found())

    def delete_half(self):
        """Have a delete end that has emptied a disk."""
        self.create('disk')
        self.sheepdog.fault('hang', subcommand='vdi delete', hole=True,
                            vdi=self.get_vdi('disk'), skip=2)
        self.assertRaises(exception.SheepdogError, self.disks.delete)

    def test_guest_does_not_start_on_disks_whose_delete_failed(self):
        self.delete_half()
        self.assertRaisesRegex(
            exception.DiskNotFound, 'rebuild the server or delete it',
            disks.prepare, self.instance)

    @ddt.data({'vm_state': vm_states.BUILDING},
              {'vm_state': vm_states.SHELVED_OFFLOADED}, {'deleted': True})
    def test_delete_that_no_start_follows(self, how):
        for name, value in how.items():
            setattr(self.instance, name, value)
        self.delete_half()
        self.assertEqual({}, self.instance.system_metadata)
        self.save.assert_not_called()

    def test_guest_starts_on_what_follows_a_delete(self):
        self.delete_half()
        self.disks.delete()
        disks.prepare(self.instance)

    def test_delete_is_noted_before_it_begins(self):
        self.create('disk')
        self.save.side_effect = exception.InvalidInput(reason='no database')
        self.assertRaises(exception.InvalidInput, self.disks.delete)
        self.assertEqual(b'before', self.read('disk'))
        self.assertEqual({'sheepdog_deleting': 'True'},
                         self.instance.system_metadata)

    def test_delete_of_what_the_database_has_no_more(self):
        self.create('disk')
        self.save.side_effect = exception.InstanceNotFound(
            instance_id=self.instance.uuid)
        self.disks.delete()
        self.assertEqual(set(), self.get_found())

    def test_record_that_was_made_although_dog_failed(self):
        state = disks.State(self.instance.uuid)
        state.kept = ['disk']
        self.sheepdog.fault('reply', subcommand='vdi create', when='after',
                            status=137)
        self.assertRaises(exception.SheepdogError, state.save)
        state.kept = None
        state.save()
        self.assertEqual(set(), self.get_found())

    def test_check_exist(self):
        self.create('disk')
        disks.check_exist([self.get_vdi('disk')])
        self.assertRaisesRegex(
            exception.DiskNotFound,
            '%s.*rebuild the server or delete it' % self.get_vdi('disk.swap'),
            disks.check_exist, map(self.get_vdi, ['disk', 'disk.swap']))


@ddt.ddt
class StateTestCase(_DisksTestCase):

    def get_state(self):
        return disks.State(self.instance.uuid)

    def test_what_is_saved_is_read(self):
        state = self.get_state()
        self.assertEqual((None, False, [], None, False), (
            state.kept, state.reverting, state.rescued, state.arrival,
            state.exists))
        state.kept, state.reverting = ['disk'], True
        state.save()
        self.assertEqual(b'{', self.dog(
            'vdi', 'read', self.get_vdi('state'), '0', '1'))
        state = self.get_state()
        self.assertEqual((['disk'], True, None, True), (
            state.kept, state.reverting, state.arrival, state.exists))
        # A live migration notes what it needs and leaves the rest alone.
        state.arrival = {'host': 'one'}
        state.save()
        state = self.get_state()
        self.assertEqual((['disk'], True, {'host': 'one'}), (
            state.kept, state.reverting, state.arrival))

    def test_rescued_disks_are_noted(self):
        for name in 'disk.rescue', 'disk.config.rescue', 'disk.rescue':
            disks.note_rescued(self.instance.uuid, name)
        self.assertEqual(['disk.rescue', 'disk.config.rescue'],
                         self.get_state().rescued)

    def test_what_says_nothing_goes(self):
        state = self.get_state()
        state.save()
        state.arrival = {'host': 'one'}
        state.save()
        state = self.get_state()
        state.arrival = None
        state.save()
        self.assertEqual(set(), self.get_found())
        # It can be saved again.
        state.kept = ['disk']
        state.save()
        self.assertEqual(['disk'], self.get_state().kept)

    def test_record_whose_delete_was_cut_short_says_nothing(self):
        state = self.get_state()
        state.kept = ['disk']
        state.save()
        state.kept = None
        self.sheepdog.fault('hang', subcommand='vdi delete', hole=True)
        self.assertRaises(exception.SheepdogError, state.save)
        state = self.get_state()
        self.assertIsNone(state.kept)
        state.kept = ['disk.swap']
        state.save()
        self.assertEqual(['disk.swap'], self.get_state().kept)

    @ddt.data(b'garbage', b'{"kept": ["di', b'\xff\xfe')
    def test_garbage(self, garbage):
        self.create('state', data=garbage)
        self.assertRaisesRegex(
            exception.SheepdogError,
            '%s does not hold what Nova writes' % self.get_vdi('state'),
            self.get_state)
        # It does not keep its server from being deleted.
        self.disks.delete()
        self.assertEqual(set(), self.get_found())


@ddt.ddt
class KeepTestCase(_DisksTestCase):
    """What a resize does before the guest has its new flavor."""

    def test_keep_and_forget(self):
        self.create(*NAMES)
        self.disks.keep()
        state = disks.State(self.instance.uuid)
        self.assertEqual((sorted(NAMES), False),
                         (sorted(state.kept), state.reverting))
        self.assertEqual(set(NAMES), self.get_tags())
        self.write('disk', b'after!')
        self.assertEqual(b'before', self.read('disk', '-s', 'nova-resize'))
        self.disks.forget()
        self.assertEqual({(name, '', SIZE) for name in NAMES},
                         self.get_found())
        self.assertEqual(b'after!', self.read('disk'))

    def test_nothing_is_restored_once_it_is_forgotten(self):
        self.keep_and_resize()
        self.disks.forget()
        for undo in self.disks.restore, self.disks.finish_reversal:
            undo()
            self.assertEqual(self.AFTER, self.get_content())

    def test_snapshots_of_an_earlier_resize_are_replaced(self):
        self.create('disk', 'disk.swap')
        for name in 'disk', 'disk.swap':
            libvirt_utils.snapshot_sheepdog_vdi(self.get_vdi(name),
                                                'nova-resize')
        self.write('disk', b'since.')
        self.disks.keep()
        self.assertEqual(b'since.', self.read('disk', '-s', 'nova-resize'))
        self.disks.forget()
        self.assertEqual(set(), self.get_tags())

    def test_snapshots_without_a_record_are_never_restored(self):
        self.keep_and_resize()
        libvirt_utils.delete_sheepdog_vdi(self.get_vdi('state'))
        libvirt_utils.delete_sheepdog_vdi(self.get_vdi('disk.swap'))
        after = {name: content for name, content in self.AFTER.items()
                 if name != 'disk.swap'}
        for undo in self.disks.restore, self.disks.finish_reversal:
            undo()
            self.assertEqual(after, self.get_content())
        # They go when the server is deleted.
        self.disks.delete()
        self.assertEqual(set(), self.get_found())

    def test_keep_that_fails_keeps_nothing(self):
        self.patch_object(disks, 'PARALLEL', new=1)
        for number in itertools.count():
            self.make_server()
            self.create(*NAMES)
            self.sheepdog.reset_stats()
            self.sheepdog.fault('error', skip=number, result=0x15)
            is_kept = True
            try:
                self.disks.keep()
            except exception.SheepdogError:
                is_kept = False
            calls = sum(self.sheepdog.stats()['calls'].values())
            self.sheepdog.clear_faults()
            self.assertEqual(self.BEFORE, self.get_content(), number)
            if is_kept and number >= calls:
                break
            if not is_kept:
                self.assertEqual(set(), self.get_tags(), number)
                self.assertIsNone(disks.State(self.instance.uuid).kept)
        self.assertEqual(set(NAMES), self.get_tags())
        self.assertGreater(number, 3 * len(NAMES))

    def test_keep_finishes_a_reversal_first(self):
        self.keep_and_resize()
        self.sheepdog.fault('error', subcommand='vdi clone', times=None)
        self.assertRaises(exception.SheepdogError, self.disks.restore)
        self.sheepdog.clear_faults()
        self.disks.keep()
        self.assertEqual(self.BEFORE, self.get_content())
        self.assertEqual(b'before', self.read('disk', '-s', 'nova-resize'))
        self.assertFalse(disks.State(self.instance.uuid).reverting)

    def test_resize_goes_on_with_the_disks_that_it_kept(self):
        self.create(*NAMES)
        self.disks.keep()
        self.disks.prepare_resized()
        self.assertEqual(self.BEFORE, self.get_content())

    @ddt.data('disk', 'disk.config', 'disk.eph0')
    def test_kept_disk_is_missing(self, name):
        self.create(*NAMES)
        self.disks.keep()
        libvirt_utils.delete_sheepdog_vdi(self.get_vdi(name))
        self.assertRaisesRegex(
            exception.DiskNotFound, '%s.*before its resize' % self.get_vdi(
                name), self.disks.prepare_resized)

    def test_nothing_was_kept_and_the_root_disk_is_missing(self):
        """The server was on other storage, which was switched under it."""
        self.assertRaisesRegex(
            exception.DiskNotFound, 'knows nothing of this resize',
            self.disks.prepare_resized)
        # That of a server that boots from a volume is not on Sheepdog.
        self.instance.image_ref = ''
        self.disks.keep()
        self.disks.prepare_resized()

    def test_disks_of_a_resize_without_a_record_stay(self):
        self.create(*NAMES)
        self.assertRaises(exception.DiskNotFound, self.disks.prepare_resized)
        self.assertEqual(self.BEFORE, self.get_content())

    def test_missing_swap_is_made_anew(self):
        self.create(*NAMES)
        self.disks.keep()
        libvirt_utils.delete_sheepdog_vdi(self.get_vdi('disk.swap'))
        self.disks.prepare_resized()

    def test_half_resized(self):
        self.assertFalse(self.disks.are_half_resized())
        self.create(*NAMES)
        self.disks.keep()
        libvirt_utils.delete_sheepdog_vdi(self.get_vdi('disk.swap'))
        # It may be in use by now.
        self.create(ADDED)
        self.assertTrue(self.disks.are_half_resized())
        self.assertEqual(['disk', 'disk.config', 'disk.eph0', ADDED],
                         self.disks.find())

    def test_half_resized_and_a_disk_is_missing(self):
        self.create(*NAMES)
        self.disks.keep()
        libvirt_utils.delete_sheepdog_vdi(self.get_vdi('disk.eph0'))
        self.assertRaises(exception.DiskNotFound, self.disks.are_half_resized)

    def test_reversal_makes_all_disks(self):
        self.keep_and_resize()
        self.sheepdog.fault('error', subcommand='vdi clone')
        self.assertRaises(exception.SheepdogError, self.disks.restore)
        self.assertFalse(self.disks.are_half_resized())

    def test_what_is_in_the_way_of_an_added_disk_goes(self):
        self.create(*NAMES)
        self.disks.keep()
        # An earlier attempt left it.
        self.create(ADDED)
        self.disks.prepare_resized()
        self.assertEqual(self.BEFORE, self.get_content())

    def test_config_drive_that_is_new_stays(self):
        self.create('disk')
        self.disks.keep()
        self.create('disk.config')
        self.disks.prepare_resized()
        self.assertEqual(['disk', 'disk.config'], self.disks.find())


# Ways in which a call can fail, as the real dog was seen to fail.
FAILURES = {
    'refused in bytes': {'action': 'reply', 'status': 1,
                         'err': b'Fehler: \xfc\n'},
    'refused with exit status 0': {
        'action': 'reply', 'subcommand': 'vdi delete',
        'err': b'failed to read a response\n'},
    'done and killed': {'action': 'kill-client', 'when': 'after'},
    'cut short': {'action': 'drop', 'operation': '*_VDI'},
    'hung': {'action': 'hang', 'hole': True},
    'hung from then on': {'action': 'hang', 'hole': True, 'times': None},
}


@ddt.ddt
class RestoreTestCase(_DisksTestCase):

    def assert_restored(self, message=None):
        self.assertEqual({(name, '', SIZE) for name in NAMES},
                         self.get_found(), message)
        self.assertEqual(self.BEFORE, self.get_content(), message)

    def test_restore(self):
        self.keep_and_resize()
        self.disks.restore()
        self.assert_restored()
        # There is nothing left to do.
        self.write('disk', b'since.')
        self.disks.restore()
        self.disks.finish_reversal()
        self.assertEqual(b'since.', self.read('disk'))

    def test_disks_that_are_missing_or_read_as_zeros(self):
        self.keep_and_resize()
        libvirt_utils.delete_sheepdog_vdi(self.get_vdi('disk.eph0'))
        self.sheepdog.fault('hang', subcommand='vdi delete', hole=True)
        self.assertRaises(exception.SheepdogError, libvirt_utils.
                          delete_sheepdog_vdi, self.get_vdi('disk'))
        self.assertEqual(bytes(6), self.read('disk'))
        self.disks.restore()
        self.assert_restored()

    def test_start_before_a_reversal_changes_nothing(self):
        self.keep_and_resize()
        self.disks.finish_reversal()
        self.assertEqual(self.AFTER, self.get_content())
        self.assertEqual(set(NAMES), self.get_tags())

    def test_config_drive_that_the_resize_made_stays(self):
        self.create('disk')
        self.disks.keep()
        self.create('disk.config')
        self.disks.restore()
        self.assertEqual(['disk', 'disk.config'], self.disks.find())

    @ddt.data(*sorted(FAILURES))
    def test_failure_of_each_call(self, way):
        """The disks are never of two times, and the snapshots go last."""
        self.patch_object(disks, 'PARALLEL', new=1)
        for number in itertools.count():
            self.make_server()
            self.keep_and_resize()
            self.sheepdog.reset_stats()
            self.sheepdog.fault(skip=number, **FAILURES[way])
            is_restored = True
            try:
                self.disks.restore()
            except exception.SheepdogError:
                is_restored = False
            calls = sum(self.sheepdog.stats()['calls'].values())
            self.sheepdog.clear_faults()
            if not is_restored:
                # The guest is started, by a nova-compute that may be another.
                self.disks = self.get_disks()
                self.disks.finish_reversal()
                if self.get_content() == self.AFTER:
                    # It had not begun, and is called again.
                    self.assertEqual(set(NAMES), self.get_tags(), number)
                    self.assertLess(number, 3)
                    self.disks.restore()
            self.assertEqual(self.BEFORE, self.get_content(), number)
            # Snapshots that could not be deleted go with the server.
            if is_restored:
                self.assert_restored(number)
            self.disks.delete()
            self.assertEqual(set(), self.get_found())
            if is_restored and number >= calls:
                break
        self.assertGreater(number, 3 * len(NAMES))

    def test_failure_of_two_calls(self):
        """What was seen to go wrong in a row: a sheep hangs, twice."""
        self.patch_object(disks, 'PARALLEL', new=1)
        for first, second in itertools.product((2, 7, 14, 20), repeat=2):
            self.make_server()
            self.keep_and_resize()
            for number, undo in ((first, self.disks.restore),
                                 (second, self.get_disks().finish_reversal)):
                self.sheepdog.fault('hang', hole=True, skip=number)
                try:
                    undo()
                except exception.SheepdogError:
                    pass
                self.sheepdog.clear_faults()
            self.get_disks().restore()
            self.assertEqual(self.BEFORE, self.get_content())
