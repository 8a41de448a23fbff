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

import inspect
import os
import shutil
import threading
from unittest import mock

import ddt
from oslo_serialization import jsonutils
from oslo_utils.fixture import uuidsentinel as uuids
from oslo_utils import units

from nova.compute import task_states
import nova.conf
from nova import context
from nova import exception
from nova import objects
from nova import test
from nova.tests.unit.virt.libvirt.sheepdog import base
from nova.tests.unit.virt.libvirt.sheepdog import fake_libvirt
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt.sheepdog import disks
from nova.virt.libvirt.sheepdog import host as sheepdog_host
from nova.virt.libvirt.sheepdog import lease
from nova.virt.libvirt.sheepdog import migration
from nova.virt.libvirt.sheepdog import rootwrap
from nova.virt.libvirt.sheepdog import targets
from nova.virt.libvirt import utils as libvirt_utils

CONF = nova.conf.CONF
LIBVIRT = fake_libvirt.LIBVIRT
VDI = fake_libvirt.VDI
IQN = fake_libvirt.IQN


class OtherBackendTestCase(test.NoDBTestCase):
    """The object that the driver holds on hosts without Sheepdog."""

    def setUp(self):
        super().setUp()
        self.libvirt_host = mock.NonCallableMock()
        self.host = sheepdog_host.make_host(self.libvirt_host)

    def test_which_object_the_driver_holds(self):
        self.assertIs(sheepdog_host.Host, type(self.host))
        self.flags(images_type='sheepdog', group='libvirt')
        self.assertIs(
            sheepdog_host.SheepdogHost,
            type(sheepdog_host.make_host(self.libvirt_host)))

    def test_it_does_nothing_and_changes_no_result(self):
        self.assertFalse(self.host.caches_images)
        results = {
            'adapt_migration': (mock.sentinel.flags, mock.sentinel.xml),
            'allows_post_copy': True,
            'check_spawn': mock.sentinel.created_disks,
            'delete_disks_of_deleted': True,
            'has_left': False,
            'is_clean': True,
            'keeps_all_disks': False,
            'manage_image_cache': [],
            'may_lack_disks': False,
        }
        for name, method in inspect.getmembers(
                self.host, inspect.ismethod):
            arguments = {parameter: getattr(mock.sentinel, parameter)
                         for parameter in inspect.signature(
                             method).parameters}
            result = method(**arguments)
            if name == 'snapshot':
                with result:
                    continue
            self.assertEqual(results.get(name), result, name)
        self.assertEqual([], self.libvirt_host.mock_calls)

    def test_both_objects_are_called_alike(self):
        for name, function in inspect.getmembers(
                sheepdog_host.Host, inspect.isfunction):
            self.assertEqual(
                inspect.signature(function),
                inspect.signature(getattr(sheepdog_host.SheepdogHost, name)),
                name)


class _HostTestCase(base.SheepdogTestMixin, test.NoDBTestCase):

    def setUp(self):
        super().setUp()
        self.start_cluster()
        self.flags(force_raw_images=True, host='here')
        self.flags(virt_type='qemu', group='libvirt')
        self.patch_object(libvirt_guest, 'libvirt', new=LIBVIRT)
        # Its calls tell how often the database is asked.
        self.uuids_here = self.patch_object(
            objects.InstanceList, 'get_uuids_by_host',
            return_value=[uuids.instance])
        self.patch_object(
            objects.BlockDeviceMappingList, 'get_by_instance_uuid',
            return_value=objects.BlockDeviceMappingList())
        self.patch_object(objects.Instance, 'save')
        self.host = self.make_host()
        self.libvirt_host.get_guest.side_effect = (
            exception.InstanceNotFound(instance_id=uuids.instance))
        self.context = context.get_admin_context()
        self.instance = objects.Instance(
            id=1, uuid=uuids.instance, host='here', vm_state='active',
            task_state=None, deleted=False, image_ref=uuids.image,
            system_metadata={}, flavor=objects.Flavor(
                root_gb=1, ephemeral_gb=0, swap=0, extra_specs={}))

    def _create(self, *names, size=8 * units.Mi):
        """Make disks of the instance."""
        for name in names:
            libvirt_utils.create_sheepdog_vdi(
                libvirt_utils.get_sheepdog_vdi(uuids.instance, name), size)

    def _names(self):
        """Return the names of all VDIs."""
        return {vdi.name.partition('_')[2] for vdi in
                libvirt_utils.list_sheepdog_vdis() if vdi.tag is None}

    def _set_arrival(self, host='here'):
        """Note that a live migration to a host was begun."""
        state = disks.State(uuids.instance)
        state.arrival = {'host': host, 'portal': '127.0.0.2:3261'}
        state.save()

    def _get_arrival(self):
        return disks.State(uuids.instance).arrival

    @staticmethod
    def _error():
        return exception.TgtError(reason='no')


class _StartTestCase(_HostTestCase):

    def setUp(self):
        super().setUp()
        # It has tests of its own.
        self.watch = self.patch_object(self.host, '_watch')

    def _assert_refused(self, *words):
        error = self.assertRaises(
            exception.InvalidConfiguration, self.host.init_host)
        for word in words:
            self.assertIn(word, str(error))
        self.watch.assert_not_called()


@ddt.ddt
class OptionsTestCase(_StartTestCase):

    @ddt.data(
        ({'virt_type': 'lxc', 'group': 'libvirt'}, 'virt_type'),
        ({'force_raw_images': False}, 'force_raw_images'),
        ({'inject_partition': -1, 'group': 'libvirt'}, 'inject_partition'),
        ({'enabled': True, 'group': 'ephemeral_storage_encryption'},
         'ephemeral_storage_encryption'),
        ({'images_sheepdog_host': 'gateway', 'group': 'libvirt'},
         'images_sheepdog_host'),
        ({'images_sheepdog_host': '::1', 'group': 'libvirt'},
         'images_sheepdog_host'),
        ({'images_sheepdog_portal': '127.0.0.1', 'group': 'libvirt'},
         'images_sheepdog_portal'))
    @ddt.unpack
    def test_option(self, flags, option):
        self.flags(**flags)
        self._assert_refused(option)


@ddt.ddt
class StartTestCase(_StartTestCase):

    IS_REAL = True

    def setUp(self):
        super().setUp()
        self._set_emulator(shutil.which('qemu-system-x86_64'))

    def _set_emulator(self, path):
        domain = mock.Mock(emulator=path)
        capabilities = self.libvirt_host.get_capabilities.return_value
        capabilities.host.cpu.arch = 'x86_64'
        capabilities.guests = [
            mock.Mock(arch='x86_64', domains={'qemu': domain})]

    def _set_transport(self, transport):
        self.flags(images_sheepdog_transport=transport, group='libvirt')
        self.host.targets.transport = transport

    @ddt.data('auto', 'iscsi')
    def test_iscsi(self, transport):
        self._set_transport(transport)
        self.host.init_host()
        self.assertEqual('iscsi', self.host.targets.transport)
        self.wait_until(lambda: self.watch.called)

    def test_native_where_qemu_has_it(self):
        # what QEMU before 6.1 says where nobody listens
        script = 'echo "Failed to connect to 127.0.0.1:1" >&2; exit 1\n'
        self.install('qemu-img', script)
        self._set_emulator(self.install('qemu-system-x86_64', script))
        self._set_transport('auto')
        self.tgtd.stop()
        self.host.init_host()
        self.assertEqual('native', self.host.targets.transport)
        # It needs no targets, so there is nothing to watch.
        self.watch.assert_not_called()

    def test_native_with_a_qemu_that_lacks_it(self):
        self._set_transport('native')
        self._assert_refused('images_sheepdog_transport', 'before 6.1')

    def test_native_with_a_qemu_img_that_lacks_it(self):
        # the emulator runs in another container
        self._set_emulator('/no/such/emulator')
        self._set_transport('native')
        self._assert_refused('qemu-img has no sheepdog driver')

    def test_qemu_without_iscsi(self):
        self.install(
            'qemu-img', 'echo "Unknown driver \'iscsi\'" >&2; exit 1\n')
        self._assert_refused('images_sheepdog_transport', 'qemu-block-extra')

    def test_no_qemu_img(self):
        self.install_only('env', 'timeout', 'dog', 'tgtadm')
        self._assert_refused('qemu-img')

    def test_no_tgtd(self):
        self.tgtd.stop()
        self._assert_refused('tgtd')

    def test_no_tgtadm(self):
        self.install_only('env', 'timeout', 'dog', 'qemu-img')
        self._assert_refused('tgtadm', 'not installed')

    def test_tgtd_without_sheepdog(self):
        self.install('tgtadm', 'echo "Backing stores:"; echo " rdwr"\n')
        self._assert_refused('backing store named sheepdog')

    def test_other_portal(self):
        self.flags(images_sheepdog_portal='127.0.0.1:1', group='libvirt')
        self._assert_refused('images_sheepdog_portal = 127.0.0.1:1')

    def test_port_that_tgtd_cannot_read(self):
        self.patch_object(libvirt_utils, 'get_sheepdog_redundancy')
        self.flags(images_sheepdog_port=10000, group='libvirt')
        self._assert_refused('images_sheepdog_port', 'below 10000')

    def test_no_cluster(self):
        self.sheepdog.kill()
        self._assert_refused('images_sheepdog_host', 'images_sheepdog_port')

    def test_cluster_and_tgtd_start_after_nova_compute(self):
        self.patch_object(sheepdog_host, 'START_LIMIT', new=60)
        self.patch_object(sheepdog_host, 'START_INTERVAL', new=0.05)
        self.sheepdog.kill()
        self.tgtd.stop()
        started = self.start_thread(self.host.init_host)
        self._wait_for_log('gateway of this host does not answer')
        self.sheepdog.start()
        self._wait_for_log('tgtd of this host does not run')
        self.assertFalse(started.done())
        self.tgtd.start()
        started.result(60)

    def _wait_for_log(self, words):
        self.wait_until(lambda: words in self.stdlog.logger.output)

    def test_what_a_killed_process_left_goes(self):
        clean_up = self.patch_object(self.host.images, 'clean_up')
        self.host.init_host()
        clean_up.assert_called_once_with()

    def test_end(self):
        stop = self.patch_object(self.host.images, 'stop')
        self.host.stop()
        stop.assert_called_once_with()


class SpaceTestCase(_HostTestCase):

    SPACE = {'total': 300., 'free': 100 * units.Gi, 'used': 200.,
             'raw': 200 * units.Gi}

    def setUp(self):
        super().setUp()
        self.clock = self.patch_object(
            sheepdog_host, 'time', new=base.Clock())
        self.get_space = self.patch_object(
            libvirt_utils, 'get_sheepdog_space', return_value=self.SPACE)

    def test_capacity(self):
        self.assertEqual(
            {'total': 300, 'free': 100 * units.Gi, 'used': 200},
            self.host.get_capacity())

    def test_calls_are_written_down_once_a_minute(self):
        # For "nova-sheepdog metrics"; nothing else may suffer from it.
        libvirt_utils.list_sheepdog_nodes()
        self.host.get_capacity()
        path = rootwrap.get_calls_path()
        self.assertFalse(os.path.exists(path))
        lease.get_directory()
        self.host.get_capacity()
        with open(path) as file:
            calls = jsonutils.loads(file.read())
        self.assertEqual((1, 0), (calls['dog node list']['calls'],
                                  calls['dog node list']['failures']))
        # nova-compute deletes what imports have left when it starts.
        self.assertEqual([], os.listdir(lease.get_directory()))

    def test_capacity_is_remembered_for_a_while(self):
        """Each sheep looks at every object that it stores."""
        self.host.get_capacity()
        self.get_space.return_value = dict(self.SPACE, total=400.)
        self.clock.ahead += sheepdog_host.SPACE_LIFE / 2
        self.assertEqual(300, self.host.get_capacity()['total'])
        self.get_space.assert_called_once_with()
        self.clock.ahead += sheepdog_host.SPACE_LIFE / 2
        self.assertEqual(400, self.host.get_capacity()['total'])

    def test_capacity_and_room_are_asked_for_together(self):
        self.host.get_capacity()
        self.host.check_room()
        self.get_space.assert_called_once_with()

    def test_capacity_when_the_cluster_does_not_answer(self):
        """A host that told of no space would get no server."""
        self.host.get_capacity()
        self.get_space.side_effect = exception.SheepdogError(reason='hung')
        self.clock.ahead += sheepdog_host.SPACE_LIFE
        self.assertEqual(300, self.host.get_capacity()['total'])
        self.assertIn('hung', self.stdlog.logger.output)

    def test_no_capacity_as_long_as_the_cluster_has_never_answered(self):
        self.get_space.side_effect = exception.SheepdogError(reason='hung')
        self.assertRaises(exception.SheepdogError, self.host.get_capacity)

    def test_room(self):
        self.get_space.return_value = dict(
            self.SPACE, raw=sheepdog_host.ROOM)
        self.host.check_room()

    def test_no_room(self):
        self.get_space.return_value = dict(
            self.SPACE, raw=sheepdog_host.ROOM - 1)
        self.assertRaisesRegex(
            exception.SheepdogError, 'room for 255 more MiB',
            self.host.check_room)

    def test_little_room_is_not_remembered(self):
        """It may be filled meanwhile."""
        self.get_space.return_value = dict(
            self.SPACE, raw=sheepdog_host.MUCH_ROOM - 1)
        self.host.check_room()
        self.host.check_room()
        self.assertEqual(2, self.get_space.call_count)


@ddt.ddt
class GuestTestCase(_HostTestCase):
    """Guests that start and go."""

    def test_prepare_guest(self):
        self._create('disk')
        self.host.prepare_guest(self.instance, fake_libvirt.XML)
        self.assertEqual({IQN}, set(targets.list_targets()))

    def test_missing_disk(self):
        # The model takes no connections.
        self.patch_object(targets, 'check_gateway')
        for xml in fake_libvirt.XML, fake_libvirt.NATIVE_XML:
            error = self.assertRaises(
                exception.DiskNotFound, self.host.prepare_guest,
                self.instance, xml)
            self.assertIn(VDI, str(error))
            self.assertIn('rebuild', str(error))
        self.assertEqual({}, targets.list_targets())

    def test_tgtd_does_not_run(self):
        """Whatever tgtadm says, the disk is there."""
        self._create('disk')
        self.sheepdog.fault('reply', subcommand='tgtadm *', status=107,
                            err=b'failed to send request hdr', times=None)
        self.assertRaises(
            exception.TgtError, self.host.prepare_guest, self.instance,
            fake_libvirt.XML)

    def test_reversal_on_record_is_finished_before_the_guest_starts(self):
        self._create('disk')
        of_instance = disks.Disks(self.instance)
        of_instance.keep()
        libvirt_utils.resize_sheepdog_vdi(VDI, 16 * units.Mi)
        state = disks.State(uuids.instance)
        state.reverting = True
        state.save()
        self.host.prepare_guest(self.instance, fake_libvirt.XML)
        self.assertEqual(
            str(8 * units.Mi).encode(),
            self.dog('vdi', 'list', '-r', VDI).split()[3])
        self.assertEqual({'disk'}, self._names())

    def test_no_start_before_a_reversal_is_finished(self):
        self._create('disk')
        disks.Disks(self.instance).keep()
        state = disks.State(uuids.instance)
        state.reverting = True
        state.save()
        self.patch_object(libvirt_utils, 'clone_sheepdog_vdi',
                          side_effect=exception.SheepdogError(reason='full'))
        self.assertRaises(
            exception.SheepdogError, self.host.prepare_guest, self.instance,
            fake_libvirt.XML)
        self.assertEqual({}, targets.list_targets())

    def test_first_start_reads_no_record(self):
        self._create('disk')
        self.instance.vm_state = 'building'
        self.sheepdog.reset_stats()
        self.host.prepare_guest(self.instance, fake_libvirt.XML)
        self.assertNotIn('vdi read', self.sheepdog.stats()['calls'])

    @ddt.data('there', 'here', None)
    def test_guest_that_may_be_elsewhere(self, host):
        if host:
            self._set_arrival(host)
        self.patch_object(
            objects.MigrationList, 'get_by_filters', return_value=[
                objects.Migration(id=1, dest_compute=host, status='error')])
        self.patch_object(objects.Service, 'get_by_compute_host',
                          return_value=objects.Service(forced_down=False))
        if host == 'there':
            self.assertRaisesRegex(
                exception.InstancePowerOnFailure, 'there',
                self.host.check_not_elsewhere, self.instance)
        else:
            self.host.check_not_elsewhere(self.instance)

    def test_guest_that_is_here(self):
        self._set_arrival('there')
        self.libvirt_host.get_guest.side_effect = None
        self.host.check_not_elsewhere(self.instance)

    @ddt.data(('spawning', True, True), ('spawning', False, False),
              ('rebuild_spawning', True, False))
    @ddt.unpack
    def test_what_goes_when_a_spawn_fails(self, task_state, created, goes):
        """An evacuated server may have lost its swap, and keeps its data."""
        self.instance.task_state = task_state
        self.assertIs(goes, self.host.check_spawn(self.instance, created))

    @ddt.data('there', 'here')
    def test_evacuation_of_a_guest_that_may_have_gone(self, host):
        """A rebuild on the same host starts it where it was."""
        self.instance.task_state = 'rebuild_spawning'
        self.instance.host = host
        self.patch_object(migration, 'check_not_elsewhere',
                          side_effect=exception.InstancePowerOnFailure(
                              reason=''))
        if host == 'there':
            self.assertRaises(exception.InstancePowerOnFailure,
                              self.host.check_spawn, self.instance, True)
        else:
            self.host.check_spawn(self.instance, True)

    @ddt.data(('here', None, False), ('there', None, True),
              ('here', 'resize_reverting', True))
    @ddt.unpack
    def test_instance_that_left_its_directory(self, host, task_state, left):
        self.instance.host = host
        self.instance.task_state = task_state
        self.assertIs(left, self.host.has_left(self.instance))

    @ddt.data(True, False)
    def test_instance_is_cleaned_up_when_its_disks_are_deleted(self, deleted):
        self.assertIs(deleted, self.host.is_clean(deleted))

    def test_unexport_disks(self):
        self._create('disk')
        self.host.prepare_guest(self.instance, fake_libvirt.XML)
        self.host.unexport_disks(self.instance)
        self.assertEqual({}, targets.list_targets())

    def test_unexport_disks_of_an_instance_that_is_not_here(self):
        self.patch_object(self.host.targets, 'unexport',
                          side_effect=self._error())
        self.host.unexport_disks(self.instance)
        self.assertIn('Left targets', self.stdlog.logger.output)
        self.assertRaises(
            exception.TgtError, self.host.unexport_disks, self.instance,
            ignore_errors=False)

    def test_delete_disks(self):
        self._create('disk', 'disk.eph0', 'disk.eph1', 'disk.eph2')
        self.host.delete_disks(
            self.instance, {'ephemerals': [{'size': 1}, {'size': 1}]})
        self.assertEqual({'disk.eph2'}, self._names())

    def test_disks_may_be_missing_after_a_failed_resize(self):
        self._create('disk')
        self.host.keep_disks(self.instance, {'ephemerals': []})
        self.assertFalse(self.host.may_lack_disks(self.instance, {}))
        self.instance.vm_state = 'error'
        self.assertTrue(self.host.may_lack_disks(self.instance, {}))

    def test_delete_rescue_disks(self):
        names = ['disk.rescue', 'disk.swap.rescue']
        self._create('disk', *names)
        vdis = [libvirt_utils.get_sheepdog_vdi(uuids.instance, name)
                for name in ('disk', *names)]
        self.host.targets.export(
            {libvirt_utils.get_sheepdog_iqn(vdi): vdi for vdi in vdis})
        for name in names:
            disks.note_rescued(uuids.instance, name)
        self.host.delete_rescue_disks(self.instance)
        self.assertEqual({'disk'}, self._names())
        self.assertEqual({IQN}, set(targets.list_targets()))

    def test_instance_that_was_deleted_while_the_host_was_down(self):
        self._create('disk')
        self.host.targets.export({IQN: VDI})
        self.instance.deleted = True
        self.assertTrue(self.host.delete_disks_of_deleted(self.instance))
        self.assertEqual(set(), self._names())
        self.assertEqual({}, targets.list_targets())

    def test_disks_of_an_instance_that_was_not_deleted(self):
        self._create('disk')
        self.assertTrue(self.host.delete_disks_of_deleted(self.instance))
        self.assertEqual({'disk'}, self._names())

    @ddt.data('sheepdog', 'tgtd')
    def test_disks_of_a_deleted_instance_stay(self, what):
        self._create('disk')
        self.instance.deleted = True
        if what == 'sheepdog':
            self.sheepdog.kill()
        else:
            self.patch_object(self.host.targets, 'unexport',
                              side_effect=self._error())
        self.assertFalse(self.host.delete_disks_of_deleted(self.instance))
        self.assertIn('Failed to delete the VDIs', self.stdlog.logger.output)


class ImageCacheTestCase(_HostTestCase):

    def setUp(self):
        super().setUp()
        self.patch_object(self.host.images, 'delete_unused')
        self.known = {}
        self.get_by_uuid = self.patch_object(
            objects.Instance, 'get_by_uuid', side_effect=self._get_by_uuid)

    def _get_by_uuid(self, context, uuid):
        self.assertEqual('yes', context.read_deleted)
        try:
            return self.known[uuid]
        except KeyError:
            raise exception.InstanceNotFound(instance_id=uuid)

    def _make_instance(self, uuid=uuids.instance, has_target=False,
                       has_directory=True, **fields):
        """Make an instance with its directory, its target or both."""
        self.known[uuid] = objects.Instance(**dict(
            {'uuid': uuid, 'host': None, 'deleted': False,
             'task_state': None}, **fields))
        if has_directory:
            os.mkdir(os.path.join(CONF.instances_path, uuid))
        if has_target:
            vdi = libvirt_utils.get_sheepdog_vdi(uuid, 'disk')
            libvirt_utils.create_sheepdog_vdi(vdi, units.Mi)
            self.host.targets.export(
                {libvirt_utils.get_sheepdog_iqn(vdi): vdi})
        return self.known[uuid]

    def _manage(self, *instances):
        return self.host.manage_image_cache(self.context, list(instances))

    def test_bases(self):
        self.assertEqual([], self._manage())
        self.host.images.delete_unused.assert_called_once_with()

    def test_instances_of_this_host_are_those_of_the_list(self):
        """Nova has just asked the database for them."""
        instance = self._make_instance(host='here', has_target=True)
        self.assertEqual([], self._manage(instance))
        self.get_by_uuid.assert_not_called()
        self.uuids_here.assert_not_called()
        self.assertEqual({IQN}, set(targets.list_targets()))

    def test_instance_that_has_just_come(self):
        self._make_instance(host='here', has_target=True)
        self.assertEqual([], self._manage())
        self.assertEqual({IQN}, set(targets.list_targets()))

    def test_guest_that_runs_here(self):
        """A live migration may be under way."""
        self._make_instance(host='there', has_target=True)
        self.libvirt_host.list_guests.return_value = [
            mock.Mock(uuid=uuids.instance)]
        self.assertEqual([], self._manage())
        self.libvirt_host.list_guests.assert_called_once_with(
            only_running=False)
        self.assertEqual({IQN}, set(targets.list_targets()))

    def test_instance_whose_build_was_given_up(self):
        deleted = self._make_instance(deleted=True)
        self._make_instance(uuids.given_up)
        self.assertEqual([deleted], self._manage())

    def test_deleted_instance_of_which_something_is_left(self):
        """tgtd could not be asked for its targets when it was deleted."""
        deleted = self._make_instance(host='here', deleted=True,
                                      has_target=True)
        self.assertEqual([deleted], self._manage())

    def test_instance_on_the_list_that_is_on_another_host(self):
        """The list has those of all hosts that share the directory."""
        instance = self._make_instance(host='there', has_target=True)
        self.assertEqual([], self._manage(instance))
        self.assertEqual({}, targets.list_targets())

    def test_instance_that_is_being_moved(self):
        self._make_instance(
            host='there', task_state='migrating', has_target=True)
        self.assertEqual([], self._manage())
        self.assertEqual({IQN}, set(targets.list_targets()))

    def test_interrupted_arrival_is_noted(self):
        self._set_arrival()
        self._make_instance(host='there', has_target=True)
        self._manage()
        self.assertIsNone(self._get_arrival())

    def test_directory_of_an_instance_on_another_host(self):
        """It may be that of the other host, which has the same path."""
        instance = self._make_instance(host='there')
        self.assertEqual([], self._manage())
        self.flags(ensure_libvirt_rbd_instance_dir_cleanup=True,
                   group='workarounds')
        self.assertEqual([instance], self._manage())

    def test_what_is_not_of_an_instance(self):
        for name in '_base', 'locks', uuids.unknown:
            os.mkdir(os.path.join(CONF.instances_path, name))
        self.assertEqual([], self._manage())
        self.get_by_uuid.assert_called_once_with(mock.ANY, uuids.unknown)

    def _set_control_socket(self, name):
        self.patch_object(targets, 'CONTROL_SOCKET',
                          new=os.path.join(CONF.instances_path, name))

    def test_native_transport_without_tgtd(self):
        self.host.targets.transport = 'native'
        self._set_control_socket('none')
        list_targets = self.patch_object(targets, 'list_targets')
        self.assertEqual([], self._manage())
        list_targets.assert_not_called()

    def test_targets_from_before_the_transport_was_changed(self):
        self._make_instance(host='there', has_target=True)
        self.host.targets.transport = 'native'
        self._set_control_socket('')
        self._manage()
        self.assertEqual({}, targets.list_targets())

    def test_cache_image(self):
        image_base = self.patch_object(sheepdog_host.images, 'ImageBase')
        self.assertIs(
            image_base.return_value.provide.return_value,
            self.host.cache_image(self.context, uuids.image))
        image_base.assert_called_once_with(
            self.host.images, self.context, uuids.image)

    def test_snapshot(self):
        snapshot = self.patch_object(self.host.images, 'snapshot')
        self.assertIs(
            snapshot.return_value, self.host.snapshot(
                self.context, self.instance, uuids.image, '/directory'))
        snapshot.assert_called_once_with(
            self.context, self.instance, uuids.image, '/directory')


@ddt.ddt
class ResizeTestCase(_HostTestCase):

    BDI = {'ephemerals': []}

    @ddt.data((None, True), ('2.0', False))
    @ddt.unpack
    def test_files_of_a_vtpm(self, version, keeps_all):
        self.instance.system_metadata = (
            {'image_hw_tpm_version': version} if version else {})
        self.assertIs(keeps_all, self.host.keeps_all_disks(self.instance))

    def _check_resize(self, root_gb=1, ephemeral_gb=0, dest='here',
                      stats=None):
        """Run check_resize().

        :param dest: the host to which the instance goes
        :param stats: what that host tells of its nodes
        """
        self.patch_object(
            objects.Migration, 'get_by_instance_and_status',
            return_value=objects.Migration(dest_compute=dest))
        self.patch_object(
            objects.ComputeNodeList, 'get_all_by_host', return_value=[
                objects.ComputeNode(stats=node) for node in stats or []])
        self.host.check_resize(self.instance, objects.Flavor(
            root_gb=root_gb, ephemeral_gb=ephemeral_gb))
        objects.Migration.get_by_instance_and_status.assert_called_once_with(
            mock.ANY, uuids.instance, 'migrating')

    def _assert_refused(self, *words, **kwargs):
        error = self.assertRaises(
            exception.InstanceFaultRollback, self._check_resize, **kwargs)
        self.assertIsInstance(error.inner_exception, exception.ResizeError)
        for word in words:
            self.assertIn(word, str(error))

    def test_check_resize(self):
        self._create('disk')
        self._check_resize(root_gb=4096, ephemeral_gb=4096)
        objects.ComputeNodeList.get_all_by_host.assert_not_called()

    @ddt.data({'root_gb': 4097}, {'ephemeral_gb': 4097})
    def test_resize_to_more_than_a_vdi_can_hold(self, sizes):
        self._create('disk')
        self._assert_refused('4097 GiB', **sizes)

    def test_resize_without_room_for_snapshots(self):
        self._create('disk')
        self.patch_object(sheepdog_host, 'ROOM', new=2 ** 70)
        self._assert_refused('room')

    def test_migration_to_another_host_with_sheepdog(self):
        """What a host tells of itself is what the other one looks for."""
        self._create('disk')
        resources = {'stats': {'failed_builds': 0}}
        self.host.describe(resources)
        self.assertEqual(0, resources['stats']['failed_builds'])
        self._check_resize(dest='there', stats=[resources['stats']])
        objects.ComputeNodeList.get_all_by_host.assert_called_once_with(
            mock.ANY, 'there')

    @ddt.data(None, {}, {'images_type': 'rbd'})
    def test_migration_to_a_host_without_sheepdog(self, stats):
        """That would make a blank disk in the place of the one here."""
        self._create('disk')
        self._assert_refused('there', 'shelve', dest='there', stats=[stats])

    def test_migration_from_storage_that_was_there_before(self):
        """images_type was changed under the server."""
        self._assert_refused('here', 'shelve')

    def test_migration_from_a_host_without_sheepdog(self):
        self.assertRaisesRegex(
            exception.MigrationPreCheckError, 'shelve',
            self.host.check_cold_migration, self.instance)
        self._create('disk')
        self.host.check_cold_migration(self.instance)

    def test_migration_of_a_server_that_booted_from_a_volume(self):
        self.instance.image_ref = ''
        self.host.check_cold_migration(self.instance)

    def test_keep_and_restore(self):
        self._create('disk')
        self.host.targets.export({IQN: VDI})
        self.host.keep_disks(self.instance, self.BDI)
        self.assertEqual({}, targets.list_targets())
        libvirt_utils.resize_sheepdog_vdi(VDI, 16 * units.Mi)
        self.host.restore_disks(self.instance, self.BDI, None)
        self.assertEqual(
            [str(8 * units.Mi)],
            [line.split()[3].decode() for line in
             self.dog('vdi', 'list', '-r').splitlines()])

    def test_revert_of_a_resize_without_a_record(self):
        """The guest must not go on as resized without a word."""
        self._create('disk')
        self.instance.task_state = task_states.RESIZE_REVERTING
        self.assertRaisesRegex(
            exception.SheepdogError, 'knows nothing of the resize',
            self.host.restore_disks, self.instance, self.BDI,
            objects.Migration(cross_cell_move=False))
        # The disks of the first cell were not changed.
        self.host.restore_disks(self.instance, self.BDI,
                                objects.Migration(cross_cell_move=True))
        # Nor were those of a resize that was interrupted early.
        self.instance.task_state = task_states.RESIZE_MIGRATING
        self.host.restore_disks(self.instance, self.BDI,
                                objects.Migration(cross_cell_move=False))
        self.assertEqual({'disk'}, self._names())

    def test_nothing_is_kept_of_a_disk_that_may_be_in_use(self):
        self._create('disk')
        self.patch_object(self.host.targets, 'unexport',
                          side_effect=self._error())
        self.assertRaises(exception.TgtError, self.host.keep_disks,
                          self.instance, self.BDI)
        self.assertEqual({'disk'}, self._names())

    def test_forget(self):
        self._create('disk')
        self.host.keep_disks(self.instance, self.BDI)
        self.host.forget_disks(self.instance)
        self.assertEqual(1, len(self.dog('vdi', 'list', '-r').splitlines()))

    def test_forget_without_the_cluster(self):
        self.sheepdog.kill()
        self.assertRaises(exception.SheepdogError, self.host.forget_disks,
                          self.instance)
        self.host.forget_disks(self.instance, ignore_errors=True)
        self.assertIn('Left snapshots', self.stdlog.logger.output)

    @ddt.data((1, {}, {'disk'}), (0, {'disk.swap': {}}, {'disk', 'disk.swap'}),
              (0, {}, {'disk'}))
    @ddt.unpack
    def test_swap_is_made_anew(self, swap, mapping, left):
        self._create('disk', 'disk.swap')
        self.host.keep_disks(self.instance, self.BDI)
        self.instance.flavor.swap = swap
        self.host.prepare_resized(self.instance, self.BDI, mapping)
        self.assertEqual(left | {'state'}, self._names())

    def test_disk_is_lost_in_a_resize(self):
        self._create('disk')
        self.host.keep_disks(self.instance, self.BDI)
        libvirt_utils.delete_sheepdog_vdi(VDI)
        self.assertRaises(
            exception.DiskNotFound, self.host.prepare_resized, self.instance,
            self.BDI, {})

    def test_other_cell_with_another_cluster(self):
        self.host.check_other_cell(self.instance)

    @ddt.data('disk', 'disk.eph0')
    def test_other_cell_with_the_same_cluster(self, name):
        objects.BlockDeviceMappingList.get_by_instance_uuid.return_value = [
            objects.BlockDeviceMapping(
                source_type='blank', destination_type='local',
                guest_format=None)]
        self._create(name)
        error = self.assertRaises(
            exception.NoValidHost, self.host.check_other_cell, self.instance)
        self.assertIn('within its cell', str(error))
        self.assertIn('already (%s)' % name, str(error))


class LiveMigrationTestCase(_HostTestCase):

    BDI = {'ephemerals': []}

    def setUp(self):
        super().setUp()
        self.reload = self.patch_object(self.host.targets, 'reload')

    def _set_guest(self, **kwargs):
        """Have libvirt know a guest.

        :param kwargs: as for make_domain()
        :returns: its domain
        """
        domain = fake_libvirt.make_domain(**kwargs)
        self.libvirt_host.get_guest.side_effect = None
        self.libvirt_host.get_guest.return_value = libvirt_guest.Guest(domain)
        return domain

    def test_check_destination(self):
        self.assertRaisesRegex(
            exception.MigrationPreCheckError, 'root disk is not',
            self.host.check_destination, self.instance, False, False)
        self._create('disk')
        self.host.check_destination(self.instance, False, False)
        self.assertRaisesRegex(
            exception.MigrationPreCheckError, 'block migration',
            self.host.check_destination, self.instance, True, False)
        self.assertRaisesRegex(
            exception.MigrationPreCheckError, 'already',
            self.host.check_destination, self.instance, False, True)
        self.host.targets.transport = 'native'
        self.assertRaisesRegex(
            exception.MigrationPreCheckError, 'native',
            self.host.check_destination, self.instance, False, False)

    def test_check_source(self):
        self._set_guest()
        self.host.check_source(self.instance, objects.LibvirtLiveMigrateData(
            image_type='sheepdog'))
        self.assertRaisesRegex(
            exception.MigrationPreCheckError, 'rbd', self.host.check_source,
            self.instance, objects.LibvirtLiveMigrateData(image_type='rbd'))

    def _expect_guest(self, block_migration=False):
        self.host.expect_guest(
            self.instance, self.BDI, objects.LibvirtLiveMigrateData(
                block_migration=block_migration))

    def test_expect_guest(self):
        self._create('disk', 'disk.swap', 'disk.rescue')
        self._expect_guest()
        self.assertEqual({IQN, IQN + '.swap'}, set(targets.list_targets()))
        self.assertEqual(
            {'host': 'here',
             'portal': CONF.libvirt.images_sheepdog_portal},
            self._get_arrival())

    def test_expect_a_guest_by_block_migration(self):
        self.assertRaisesRegex(
            exception.MigrationPreCheckError, 'block migration',
            self._expect_guest, block_migration=True)

    def test_expect_a_guest_that_booted_from_a_volume(self):
        self._expect_guest()
        self.assertEqual({}, targets.list_targets())
        self.assertEqual(set(), self._names())

    def test_no_guest_is_expected_without_its_targets(self):
        self._create('disk')
        self.patch_object(self.host.targets, 'export',
                          side_effect=self._error())
        self.assertRaises(exception.TgtError, self._expect_guest)
        self.assertIsNone(self._get_arrival())

    def test_adapt_migration(self):
        self._set_arrival('there')
        flags, xml = self.host.adapt_migration(
            self.instance, LIBVIRT.VIR_MIGRATE_LIVE, fake_libvirt.XML)
        self.assertEqual(
            LIBVIRT.VIR_MIGRATE_LIVE | LIBVIRT.VIR_MIGRATE_PAUSED, flags)
        self.assertIn("<host name=\"127.0.0.2\" port=\"3261\"/>", xml)
        self.assertIn('arrival', xml)

    def test_adapt_migration_of_a_server_that_booted_from_a_volume(self):
        self.assertEqual(
            (LIBVIRT.VIR_MIGRATE_LIVE, fake_libvirt.OTHER_XML),
            self.host.adapt_migration(
                self.instance, LIBVIRT.VIR_MIGRATE_LIVE,
                fake_libvirt.OTHER_XML))

    def test_post_copy(self):
        self.assertEqual([False, True], [
            self.host.allows_post_copy(libvirt_guest.Guest(
                fake_libvirt.make_domain(xml=xml)))
            for xml in (fake_libvirt.XML, fake_libvirt.OTHER_XML)])

    def test_end_of_an_arrival(self):
        self._create('disk')
        self._expect_guest()
        domain = self._set_guest()
        self.host.end_arrival(self.instance)
        domain.resume.assert_called_once_with()
        self.assertIsNone(self._get_arrival())

    def test_end_of_an_arrival_that_tgtd_cannot_finish(self):
        """The watcher tries again; Nova's migration is over."""
        self.reload.side_effect = self._error()
        domain = self._set_guest()
        self.host.end_arrival(self.instance)
        domain.resume.assert_not_called()
        self.assertIn('kept paused', self.stdlog.logger.output)

    def test_end_of_an_arrival_when_the_cluster_does_not_answer(self):
        self._set_guest()
        self.sheepdog.kill()
        self.host.end_arrival(self.instance)
        self.assertIn('on its way to this host any more',
                      self.stdlog.logger.output)

    def test_roll_back_of_an_arrival(self):
        self._create('disk')
        self._expect_guest()
        self.host.unexport_disks(self.instance)
        self.assertIsNone(self._get_arrival())
        self.assertEqual({'disk'}, self._names())

    def test_arrival_at_another_host_stays_on_record(self):
        """So the source cleans up after a migration."""
        self._set_arrival('there')
        self.host.unexport_disks(self.instance)
        self._set_guest()
        self.host.end_arrival(self.instance)
        self.assertEqual('there', self._get_arrival()['host'])

    def _receive(self, **kwargs):
        """Receive a guest; return the names of what was done."""
        domain = self._set_guest(**kwargs)
        calls = mock.Mock()
        calls.attach_mock(self.reload, 'reload')
        calls.attach_mock(domain.resume, 'resume')
        calls.attach_mock(domain.setMetadata, 'note')
        self.calls = calls
        self.host.receive(self.libvirt_host.get_guest())
        return [call[0] for call in calls.mock_calls]

    def test_receive(self):
        self.assertEqual(['reload', 'resume', 'note'], self._receive())
        self.reload.assert_called_once_with({IQN: VDI})

    def test_receive_a_paused_server(self):
        self.assertEqual(['reload', 'note'], self._receive(resume='no'))

    def test_leave_a_guest_whose_source_runs(self):
        self.assertEqual([], self._receive(
            reason=LIBVIRT.VIR_DOMAIN_PAUSED_MIGRATION))

    def test_leave_a_guest_that_its_user_has_paused(self):
        self.assertEqual([], self._receive(resume=None))

    def test_forget_that_a_running_guest_has_come(self):
        self.assertEqual(['note'], self._receive(
            state=LIBVIRT.VIR_DOMAIN_RUNNING))

    def test_never_resume_without_a_reload(self):
        self.reload.side_effect = self._error()
        self.assertRaises(exception.TgtError, self._receive)
        self.assertEqual(['reload'],
                         [call[0] for call in self.calls.mock_calls])

    def test_received_once(self):
        domain = self._set_guest()
        for _thread in range(2):
            self.host.receive(libvirt_guest.Guest(domain))
        self.reload.assert_called_once()


class WatcherTestCase(_HostTestCase):
    """The thread that receives guests and mends their targets."""

    def setUp(self):
        super().setUp()
        # They have tests of their own.
        for name in 'check_qemu', 'check_tgtd':
            self.patch_object(self.host, name)
        for name in 'LOOK', 'LOOK_AT_ARRIVALS', 'LOOK_AT_TARGETS':
            self.patch_object(sheepdog_host, name, new=0.01)
        capabilities = self.libvirt_host.get_capabilities.return_value
        capabilities.guests = []
        self.domains = {LIBVIRT.VIR_CONNECT_LIST_DOMAINS_PAUSED: [],
                        LIBVIRT.VIR_CONNECT_LIST_DOMAINS_ACTIVE: []}
        self.connection = self.libvirt_host.get_connection.return_value
        self.connection.listAllDomains.side_effect = (
            lambda flags: list(self.domains[flags]))
        self._create('disk')

    def make_host(self):
        self.addCleanup(self._wait_for_its_end)
        host = super().make_host()
        self.begun, self.ended = threading.Event(), threading.Event()
        watch = host._watch

        def watch_and_tell():
            self.begun.set()
            try:
                watch()
            finally:
                self.ended.set()

        host._watch = watch_and_tell
        return host

    def _wait_for_its_end(self):
        """No test leaves a thread that speaks to the mocks of the next."""
        if self.begun.is_set():
            self.assertTrue(self.ended.wait(60))

    def _start(self, *domains):
        """Start nova-compute beside some running guests."""
        self.domains[LIBVIRT.VIR_CONNECT_LIST_DOMAINS_ACTIVE] = list(domains)
        self.libvirt_host.list_guests.return_value = [
            libvirt_guest.Guest(domain) for domain in domains]
        self.find_missing = self.patch_object(
            self.host.targets, 'find_missing',
            side_effect=self.host.targets.find_missing)
        self.host.init_host()

    def _wait_for_looks(self, mocked=None, count=3):
        """Wait until the watcher has looked so often again."""
        mocked = mocked or self.find_missing
        before = mocked.call_count
        self.wait_until(lambda: mocked.call_count >= before + count)

    @staticmethod
    def _make_running(**kwargs):
        return fake_libvirt.make_domain(
            state=LIBVIRT.VIR_DOMAIN_RUNNING, resume=None, **kwargs)

    def _wait_for_target(self):
        self.wait_until(lambda: set(targets.list_targets()) == {IQN})

    def _arrive(self, domain):
        self.domains[LIBVIRT.VIR_CONNECT_LIST_DOMAINS_PAUSED].append(domain)
        self.domains[LIBVIRT.VIR_CONNECT_LIST_DOMAINS_ACTIVE].append(domain)

    # Arrivals

    def test_guest_arrives(self):
        self._start()
        domain = fake_libvirt.make_domain()
        self._arrive(domain)
        self.wait_until(lambda: migration.get_arrival(domain) is None)
        domain.resume.assert_called_once_with()
        self.assertEqual({IQN}, set(targets.list_targets()))

    def test_guest_arrived_while_nova_compute_was_down(self):
        domain = fake_libvirt.make_domain()
        self._arrive(domain)
        self._start()
        self.wait_until(lambda: migration.get_arrival(domain) is None)

    def test_guest_whose_source_runs(self):
        domain = fake_libvirt.make_domain(
            reason=LIBVIRT.VIR_DOMAIN_PAUSED_MIGRATION)
        self._start()
        self._arrive(domain)
        self._wait_for_looks(self.connection.listAllDomains)
        domain.resume.assert_not_called()
        domain.state.return_value[1] = LIBVIRT.VIR_DOMAIN_PAUSED_USER
        self.wait_until(lambda: migration.get_arrival(domain) is None)

    def test_only_paused_guests_are_looked_at(self):
        domain = self._make_running()
        self.host.targets.export({IQN: VDI})
        self._start(domain)
        domain.reset_mock()
        self.connection.reset_mock()
        self._wait_for_looks()
        self.assertEqual(
            {LIBVIRT.VIR_CONNECT_LIST_DOMAINS_PAUSED},
            {call[0][0] for call in
             self.connection.listAllDomains.call_args_list})
        self.assertEqual([], domain.mock_calls)

    def test_libvirtd_is_away(self):
        self._start()
        working = self.connection.listAllDomains.side_effect
        self.connection.listAllDomains.side_effect = (
            LIBVIRT.libvirtError(LIBVIRT.VIR_ERR_OPERATION_TIMEOUT))
        self._wait_for_looks(self.connection.listAllDomains)
        domain = fake_libvirt.make_domain()
        self._arrive(domain)
        self.connection.listAllDomains.side_effect = working
        self.wait_until(lambda: migration.get_arrival(domain) is None)
        # not each time
        self.assertEqual(1, self.stdlog.logger.output.count('error 68'))

    def test_tgtd_cannot_reload_at_once(self):
        reload = self.host.targets.reload
        failures = [self._error()] * 2

        def fail_first(vdis):
            if failures:
                raise failures.pop()
            reload(vdis)

        self.patch_object(self.host.targets, 'reload', side_effect=fail_first)
        self._start()
        domain = fake_libvirt.make_domain()
        self._arrive(domain)
        self.wait_until(lambda: migration.get_arrival(domain) is None)
        self.assertEqual([], failures)
        domain.resume.assert_called_once_with()
        self.assertEqual(2, self.stdlog.logger.output.count('kept paused'))

    def test_one_guest_does_not_wait_for_another(self):
        hung, done = threading.Event(), threading.Event()
        self.addCleanup(done.set)
        slow = fake_libvirt.make_domain()
        quick = fake_libvirt.make_domain(xml=fake_libvirt.OTHER_XML)
        quick.UUIDString.return_value = uuids.quick

        def reload(vdis):
            if vdis:
                hung.set()
                done.wait(60)

        self.patch_object(self.host.targets, 'reload', side_effect=reload)
        lock = self.patch_object(
            sheepdog_host.lockutils, 'lock',
            side_effect=sheepdog_host.lockutils.lock)
        self._start()
        self._arrive(slow)
        self.assertTrue(hung.wait(60))
        self._arrive(quick)
        self.wait_until(lambda: migration.get_arrival(quick) is None)
        slow.resume.assert_not_called()
        # No look adds a thread that waits for the same guest.
        self._wait_for_looks(self.connection.listAllDomains)
        self.assertEqual(1, sum(
            1 for call in lock.call_args_list
            if call[0][0] == 'sheepdog-receive-' + uuids.instance))
        done.set()
        self.wait_until(lambda: migration.get_arrival(slow) is None)

    def test_end(self):
        self._start()
        self.host.stop()
        self.assertTrue(self.ended.wait(60))

    # Lost targets

    def test_target_that_is_lost_while_tgtd_runs(self):
        self._start(self._make_running())
        self._wait_for_target()
        self.sheepdog.execute(
            'tgtadm', '--lld', 'iscsi', '--mode', 'target', '--op', 'delete',
            '--force', '--tid', str(targets.list_targets()[IQN]))
        self._wait_for_target()

    def test_tgtd_is_restarted(self):
        # However long it is until the next look
        self.patch_object(sheepdog_host, 'LOOK_AT_TARGETS', new=3600)
        self._start(self._make_running())
        self._wait_for_target()
        self.tgtd.stop()
        self.tgtd.start()
        self._wait_for_target()

    def test_host_is_started_with_the_cluster(self):
        """tgtd cannot open what sheep does not yet serve."""
        self.patch_object(sheepdog_host, 'LOOK_AT_TARGETS', new=3600)
        self._start(self._make_running())
        self._wait_for_target()
        self.tgtd.stop()
        self.sheepdog.kill()
        self.tgtd.start()
        self.wait_until(lambda: 'Cannot restore the targets' in
                        self.stdlog.logger.output)
        self.sheepdog.start()
        self._wait_for_target()

    def test_no_target_for_a_guest_whose_instance_is_on_another_host(self):
        """It was evacuated; both would write to the same disk."""
        self.uuids_here.return_value = []
        self._start(self._make_running())
        self.patch_object(objects.MigrationList, 'get_by_filters')
        self._wait_for_looks()
        self.assertEqual({}, targets.list_targets())
        self.assertEqual(1, self.stdlog.logger.output.count(
            'No target is made for VDI ' + VDI))

    def test_target_of_a_guest_that_is_arriving(self):
        """Its instance is on the other host until it is here."""
        self.uuids_here.return_value = []
        self._start(fake_libvirt.make_domain(
            reason=LIBVIRT.VIR_DOMAIN_PAUSED_MIGRATION))
        self._wait_for_target()

    def test_no_target_for_a_guest_that_has_ended(self):
        domain = self._make_running()
        self._start(domain)
        self._wait_for_target()
        self.domains[LIBVIRT.VIR_CONNECT_LIST_DOMAINS_ACTIVE].remove(domain)
        self.tgtd.stop()
        self.tgtd.start()
        self._wait_for_looks()
        self.assertEqual({}, targets.list_targets())

    def test_the_database_is_asked_when_a_target_is_missing(self):
        self.host.targets.export({IQN: VDI})
        self._start(self._make_running())
        self._wait_for_looks()
        # as it starts
        self.assertEqual(1, self.uuids_here.call_count)
        self.tgtd.stop()
        self.tgtd.start()
        self._wait_for_target()
        self._wait_for_looks()
        self.assertEqual(2, self.uuids_here.call_count)

    def test_guests_without_sheepdog(self):
        domain = self._make_running(xml=fake_libvirt.OTHER_XML)
        self._start(domain)
        domain.reset_mock()
        self.tgtd.stop()
        self.tgtd.start()
        self._wait_for_looks()
        self.assertEqual(1, self.uuids_here.call_count)
        self.assertEqual({}, targets.list_targets())
        self.assertEqual([], domain.mock_calls)

    # Guests of other hosts

    def _lose_guest(self, *migrations):
        """Have the guest of an interrupted migration end on this host."""
        self.uuids_here.return_value = []
        self._set_arrival()
        self.host.targets.export({IQN: VDI})
        self._start(self._make_running())
        self.get_migrations = self.patch_object(
            objects.MigrationList, 'get_by_filters',
            return_value=list(migrations))
        self._wait_for_looks()
        self.assertEqual('here', self._get_arrival()['host'])
        self.get_migrations.assert_not_called()
        self.connection.lookupByUUIDString.side_effect = (
            LIBVIRT.libvirtError(LIBVIRT.VIR_ERR_NO_DOMAIN))

    def test_guest_of_an_interrupted_migration_ends(self):
        """Its instance may start where it is."""
        self._lose_guest()
        self.wait_until(lambda: self._get_arrival() is None)
        count = self.get_migrations.call_count
        self._wait_for_looks()
        self.assertEqual(count, self.get_migrations.call_count)

    def test_guest_that_is_still_on_its_way(self):
        self._lose_guest(objects.Migration(status='running'))
        self._wait_for_looks()
        self.assertEqual('here', self._get_arrival()['host'])
