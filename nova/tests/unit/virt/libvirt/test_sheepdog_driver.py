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

"""What the driver asks of the object that it holds for Sheepdog, and when."""

import contextlib
import os
from unittest import mock

import ddt
import fixtures
import os_vif
from oslo_utils.fixture import uuidsentinel as uuids
from oslo_utils import units

from nova.compute import vm_states
from nova import context
from nova import exception
from nova import objects
from nova import test
from nova.tests import fixtures as nova_fixtures
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.virt import driver as virt_driver
from nova.virt import fake
from nova.virt.libvirt import blockinfo
from nova.virt.libvirt import driver
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import imagebackend
from nova.virt.libvirt import migration as libvirt_migrate
from nova.virt.libvirt.sheepdog import host as sheepdog_host
from nova.virt.libvirt import utils as libvirt_utils


class Refused(Exception):
    """What the object for Sheepdog raises here."""


class _DriverTestCase(test.NoDBTestCase):

    IMAGES_TYPE = 'sheepdog'

    def setUp(self):
        super().setUp()
        self.flags(instances_path=self._make_directory(), my_ip='192.0.2.1')
        self.flags(images_type=self.IMAGES_TYPE, virt_type='qemu',
                   snapshots_directory=self._make_directory(),
                   group='libvirt')
        self.useFixture(nova_fixtures.LibvirtFixture())
        os_vif.initialize()
        # The driver sets it.
        self.useFixture(fixtures.MonkeyPatch(
            'nova.virt.libvirt.imagebackend.Sheepdog.host', None))
        self.make_host = self._patch(sheepdog_host, 'make_host')
        # The driver calls nothing that other backends have not.
        self.host = mock.create_autospec(sheepdog_host.Host, instance=True)
        self.host.caches_images = False
        self.make_host.return_value = self.host
        self.driver = driver.LibvirtDriver(fake.FakeVirtAPI(), False)
        self.context = context.get_admin_context()
        self.instance = objects.Instance(
            id=1, uuid=uuids.instance, host='here', vm_state='active',
            task_state=None, image_ref=uuids.image, config_drive='',
            system_metadata={'image_disk_format': 'raw'}, deleted=False,
            flavor=self._make_flavor(), numa_topology=None, kernel_id='',
            ramdisk_id='', os_type=None, project_id=uuids.project)

    def _make_directory(self):
        return self.useFixture(fixtures.TempDir()).path

    @staticmethod
    def _make_flavor():
        return objects.Flavor(root_gb=1, ephemeral_gb=0, swap=0,
                              memory_mb=64, vcpus=1, extra_specs={})

    def _patch(self, target, name, **kwargs):
        return self.useFixture(
            fixtures.MockPatchObject(target, name, **kwargs)).mock

    def _record(self, target, *names, **kwargs):
        """Put mocks in place of functions, and note their calls in order.

        :returns: the last one of them
        """
        for name in names:
            mocked = self._patch(target, name, **kwargs)
            self.host.attach_mock(mocked, name)
        return mocked

    def _assert_order(self, *names):
        """Assert that these were called in this order, and no others."""
        self.assertEqual(
            list(names), [call[0] for call in self.host.mock_calls])

    def _make_instance_directory(self):
        path = libvirt_utils.get_instance_path(self.instance)
        os.makedirs(path)
        return path


@ddt.ddt
class LifeTestCase(_DriverTestCase):
    """nova-compute starts, works on its host and ends."""

    def test_it_is_made_with_the_driver(self):
        self.make_host.assert_called_once_with(self.driver._host)
        self.assertIs(self.host, imagebackend.Sheepdog.host)

    @ddt.data(True, False)
    def test_qcow2_images_are_for_hosts_that_convert_them(self, is_raw):
        self.flags(force_raw_images=is_raw)
        capabilities = driver.LibvirtDriver(
            fake.FakeVirtAPI(), False).capabilities
        self.assertEqual(is_raw, capabilities['supports_image_type_qcow2'])

    def test_start_is_refused(self):
        self.host.init_host.side_effect = Refused
        self.assertRaises(Refused, self.driver.init_host, 'here')

    def test_end(self):
        self.driver.stop_image_backend()
        self.host.stop.assert_called_once_with()

    def test_capacity(self):
        self.host.get_capacity.return_value = {
            'total': 3 * units.Gi, 'free': 2 * units.Gi, 'used': units.Gi}
        self.assertEqual({'total': 3, 'free': 2, 'used': 1},
                         self.driver._get_local_gb_info())

    def test_resources_tell_where_the_disks_are(self):
        self.host.get_capacity.return_value = {
            'total': 3 * units.Gi, 'free': 2 * units.Gi, 'used': units.Gi}
        self._patch(self.driver, '_get_disk_over_committed_size_total',
                    return_value=0)
        resources = self.driver.get_available_resource('node')
        self.host.describe.assert_called_once_with(resources)

    def test_image_cache(self):
        gone = objects.Instance(id=2, uuid=uuids.gone)
        self._record(self.driver.image_cache_manager, 'update')
        self._record(self.driver, 'delete_instance_files')
        self.host.manage_image_cache.return_value = [gone]
        instances = [self.instance]
        self.driver.manage_image_cache(self.context, instances)
        self.assertEqual(
            [mock.call.update(self.context, instances),
             mock.call.manage_image_cache(self.context, instances),
             mock.call.delete_instance_files(gone)], self.host.mock_calls)

    def test_cache_image(self):
        host = mock.create_autospec(sheepdog_host.SheepdogHost, instance=True)
        self.driver._sheepdog = host
        self.assertIs(host.cache_image.return_value,
                      self.driver.cache_image(self.context, uuids.image))
        host.cache_image.assert_called_once_with(self.context, uuids.image)

    def test_cache_image_in_a_file(self):
        fetch = self._patch(driver.images, 'fetch_to_raw')
        self.assertTrue(self.driver.cache_image(self.context, uuids.image))
        fetch.assert_called_once()


@ddt.ddt
class StartTestCase(_DriverTestCase):
    """A guest starts."""

    def _create_guest(self, **kwargs):
        guest = self._patch(libvirt_guest.Guest, 'create').return_value
        self.host.attach_mock(guest.launch, 'launch')
        callback = mock.Mock()
        self.host.attach_mock(callback, 'make_config_drive')
        self.driver._create_guest(
            self.context, '<domain/>', self.instance,
            post_xml_callback=callback, **kwargs)

    @ddt.data({}, {'power_on': False, 'pause': True})
    def test_disks_are_ready_before_the_guest_starts(self, how):
        self._create_guest(**how)
        self._assert_order('make_config_drive', 'prepare_guest', 'launch')
        self.host.prepare_guest.assert_called_once_with(
            self.instance, '<domain/>')

    def test_no_start_without_disks(self):
        self.host.prepare_guest.side_effect = Refused
        self.assertRaises(Refused, self._create_guest)
        self._assert_order('make_config_drive', 'prepare_guest')

    def test_a_guest_that_stays_off(self):
        self._create_guest(power_on=False)
        self._assert_order('make_config_drive')

    @ddt.data(True, False)
    def test_what_goes_when_a_spawn_fails(self, goes):
        self._patch(blockinfo, 'get_disk_info')
        self._patch(self.driver, '_create_image', return_value=(True, True))
        for name in ('_ensure_console_log_for_instance', '_get_guest_xml',
                     '_allocate_mdevs',
                     '_register_undefined_instance_details'):
            if hasattr(self.driver, name):
                self._patch(self.driver, name)
        start = self._patch(self.driver, '_create_guest_with_network')
        self.host.check_spawn.return_value = goes
        self.driver.spawn(
            self.context, self.instance, objects.ImageMeta(
                properties=objects.ImageMetaProps()), [], None, {},
            block_device_info={}, power_on=False)
        self.host.check_spawn.assert_called_once_with(self.instance, True)
        self.assertIs(goes, start.call_args[1]['cleanup_instance_disks'])

    def test_hard_reboot_of_a_guest_that_may_be_elsewhere(self):
        self._patch(self.driver, '_get_all_assigned_mediated_devices',
                    return_value={})
        self._record(self.driver, 'destroy')
        self.host.check_not_elsewhere.side_effect = Refused
        self.assertRaises(Refused, self.driver.reboot, self.context,
                          self.instance, [], 'HARD')
        self._assert_order('check_not_elsewhere')
        self.host.check_not_elsewhere.assert_called_once_with(self.instance)

    def test_hard_reboot(self):
        self._patch(self.driver, '_get_all_assigned_mediated_devices',
                    return_value={})
        self._record(self.driver, 'destroy', side_effect=Refused)
        self.assertRaises(Refused, self.driver.reboot, self.context,
                          self.instance, [], 'HARD')
        self._assert_order('check_not_elsewhere', 'destroy')

    @ddt.data(True, False)
    def test_hard_reboot_after_a_resize_that_failed(self, may_lack_disks):
        self._patch(self.driver, '_get_all_assigned_mediated_devices',
                    return_value={})
        self._record(self.driver, 'destroy', '_create_image')
        self._patch(blockinfo, 'get_disk_info',
                    return_value={'mapping': {'disk': {}}})
        self._record(self.driver, '_get_guest_xml', side_effect=Refused)
        self.host.may_lack_disks.return_value = may_lack_disks
        bdi = {'block_device_mapping': []}
        self.assertRaises(Refused, self.driver.reboot, self.context,
                          self.instance, [], 'HARD', block_device_info=bdi)
        self.host.may_lack_disks.assert_called_once_with(self.instance, bdi)
        # Its size is that of the flavor, and no other one is kept of a swap.
        self.assertEqual(
            [mock.call(self.context, self.instance, {'disk': {}},
                       block_device_info=bdi, ignore_bdi_for_swap=True)] *
            may_lack_disks, self.driver._create_image.mock_calls)

    def test_unpause(self):
        guest = self._patch(
            self.driver._host, 'get_guest').return_value
        self.host.attach_mock(guest.resume, 'resume')
        self.driver.unpause(self.instance)
        self._assert_order('receive', 'resume')
        self.host.receive.assert_called_once_with(guest)

    def test_unrescue(self):
        path = self._make_instance_directory()
        with open(os.path.join(path, 'unrescue.xml'), 'w') as xml:
            xml.write('<domain/>')
        self._record(self.driver, '_destroy', '_create_guest')
        self._patch(self.driver, '_lvm_disks', return_value=[])
        self.driver.unrescue(self.context, self.instance)
        # not as long as the rescue uses them
        self._assert_order('_destroy', '_create_guest', 'delete_rescue_disks')
        self.host.delete_rescue_disks.assert_called_once_with(self.instance)

    @ddt.data(('sheepdog', False), ('qcow2', True))
    @ddt.unpack
    def test_config_drive(self, images_type, is_local):
        """The file is copied to a VDI, so it is of no use any more."""
        self.flags(images_type=images_type, group='libvirt')
        path = os.path.join(self._make_instance_directory(), 'disk.config')
        self._patch(self.driver, '_build_device_metadata', return_value=None)
        self._patch(driver.configdrive, 'required_by', return_value=True)
        self._patch(driver.instance_metadata, 'InstanceMetadata')
        builder = self._patch(driver.configdrive, 'ConfigDriveBuilder')
        builder.return_value.__enter__.return_value = builder.return_value
        builder.return_value.make_drive.side_effect = (
            lambda target: open(target, 'w').close())
        by_name = self._patch(self.driver.image_backend, 'by_name')
        by_name.return_value.exists.return_value = False
        self.driver._create_configdrive(
            self.context, self.instance, mock.Mock(
                admin_pass=None, files=[], network_info=[]))
        by_name.assert_called_once_with(
            self.instance, 'disk.config', 'raw' if is_local else 'sheepdog')
        by_name.return_value.import_file.assert_called_once_with(
            self.instance, path, 'disk.config')
        self.assertEqual(is_local, os.path.exists(path))


@ddt.ddt
class CleanupTestCase(_DriverTestCase):
    """An instance goes from the host."""

    def setUp(self):
        super().setUp()
        self._patch(self.driver, '_get_vpmems', return_value=[])
        self._patch(self.driver, '_undefine_domain')
        self._patch(self.instance, 'save')

    def _cleanup(self, **kwargs):
        self.bdi = {'block_device_mapping': [], 'ephemerals': []}
        self.driver.cleanup(
            self.context, self.instance, [], self.bdi, destroy_vifs=False,
            **kwargs)

    def test_delete(self):
        self._record(self.driver, 'delete_instance_files', return_value=True)
        self.host.is_clean.return_value = True
        self._cleanup()
        self.assertEqual(
            [mock.call.unexport_disks(self.instance, ignore_errors=False),
             mock.call.delete_disks(self.instance, self.bdi),
             mock.call.delete_instance_files(self.instance),
             mock.call.is_clean(True)], self.host.mock_calls)
        self.assertTrue(self.instance.cleaned)

    @ddt.data('unexport_disks', 'delete_disks')
    def test_delete_that_fails(self, step):
        """The files stay, by which the instance is looked for later."""
        path = self._make_instance_directory()
        getattr(self.host, step).side_effect = Refused
        self.assertRaises(Refused, self._cleanup)
        self.assertTrue(os.path.isdir(path))
        self.assertNotIn('cleaned', self.instance.obj_what_changed())

    def test_disks_stay(self):
        self._cleanup(destroy_disks=False)
        self.assertEqual(
            [mock.call.unexport_disks(self.instance, ignore_errors=True)],
            self.host.mock_calls)

    @ddt.data(True, False)
    def test_files_go_and_disks_stay(self, is_clean):
        """An instance whose disks are left has not been cleaned up."""
        self._patch(self.driver, 'delete_instance_files', return_value=True)
        self.host.is_clean.return_value = is_clean
        self._cleanup(
            destroy_disks=False, migrate_data=objects.LibvirtLiveMigrateData(
                is_shared_block_storage=True, is_shared_instance_path=False))
        self.host.is_clean.assert_called_once_with(False)
        self.host.delete_disks.assert_not_called()
        self.assertEqual(
            is_clean, self.instance.obj_get_changes().get('cleaned', False))

    @ddt.data((False, True, False), (True, True, True), (True, False, False))
    @ddt.unpack
    def test_directory_of_an_instance_that_is_elsewhere(
            self, workaround, has_left, goes):
        self.flags(ensure_libvirt_rbd_instance_dir_cleanup=workaround,
                   group='workarounds')
        self.host.has_left.return_value = has_left
        path = self._make_instance_directory()
        self._cleanup(destroy_disks=False)
        self.assertEqual(not goes, os.path.isdir(path))

    @ddt.data(True, False)
    def test_instance_that_was_deleted_while_the_host_was_down(self, is_all):
        path = self._make_instance_directory()
        self.host.delete_disks_of_deleted.return_value = is_all
        self.assertIs(is_all,
                      self.driver.delete_instance_files(self.instance))
        self.host.delete_disks_of_deleted.assert_called_once_with(
            self.instance)
        self.assertEqual(not is_all, os.path.isdir(path))

    def test_cleanup_sheepdog_instance(self):
        driver.cleanup_sheepdog_instance(self.host, self.instance)
        self.host.delete_disks.assert_called_once_with(self.instance, None)


@ddt.ddt
class SnapshotTestCase(_DriverTestCase):

    def setUp(self):
        super().setUp()
        self._patch(self.driver._host, 'has_min_version', return_value=True)
        self.guest = self._patch(
            self.driver._host, 'get_guest').return_value
        self._patch(libvirt_utils, 'find_disk',
                    return_value=('sheepdog:%s_disk' % uuids.instance, 'raw'))
        self.disk = self._patch(
            self.driver.image_backend, 'by_libvirt_path').return_value
        self.disk.direct_snapshot.side_effect = NotImplementedError
        self.disk.snapshot_extract.side_effect = self._extract
        self.frozen = []
        self._patch(self.driver, 'quiesce',
                    side_effect=lambda *args: self.frozen.append('frozen'))
        self._patch(self.driver, 'unquiesce',
                    side_effect=lambda *args: self.frozen.append('thawed'))
        self.glance = self._patch(self.driver, '_image_api')
        self.glance.get.return_value = {'name': 'snapshot'}
        self.host.attach_mock(self.glance.update, 'upload')
        self.host.snapshot.side_effect = self._around
        self.ended = []

    @contextlib.contextmanager
    def _around(self, _context, instance, image_id, directory):
        self.assertEqual((self.instance, uuids.image),
                         (instance, image_id))
        try:
            yield
            # What is published is made of the file.
            self.assertEqual(1, len(os.listdir(directory)))
            self.ended.append('published')
        except BaseException:
            self.ended.append('given up')
            raise

    def _extract(self, target, out_format, frozen=None):
        self.out_format = out_format
        with frozen or contextlib.nullcontext():
            self.frozen.append('snapshot')
        with open(target, 'w'):
            pass

    def _snapshot(self):
        self.driver.snapshot(
            self.context, self.instance, uuids.image, mock.Mock())

    def test_snapshot(self):
        self._snapshot()
        self._assert_order('snapshot', 'upload')
        self.assertEqual(['published'], self.ended)
        self.assertEqual('raw', self.out_format)
        self.assertEqual('raw', self.glance.update.call_args[0][2][
            'disk_format'])

    def test_file_systems_are_frozen_for_the_snapshot(self):
        self._snapshot()
        self.assertEqual(['frozen', 'snapshot', 'thawed'], self.frozen)
        self.guest.get_block_device.assert_not_called()

    def test_file_systems_are_thawed_after_a_failure(self):
        def fail(target, out_format, frozen):
            with frozen:
                raise Refused()

        self.disk.snapshot_extract.side_effect = fail
        self.assertRaises(Refused, self._snapshot)
        self.assertEqual(['frozen', 'thawed'], self.frozen)

    def test_guest_without_an_agent(self):
        self.driver.quiesce.side_effect = (
            exception.QemuGuestAgentNotEnabled())
        self._snapshot()
        self.assertEqual(['snapshot'], self.frozen)
        self.assertEqual(['published'], self.ended)

    def test_image_that_requires_an_agent(self):
        self.instance.system_metadata['image_os_require_quiesce'] = 'yes'
        self.driver.quiesce.side_effect = (
            exception.QemuGuestAgentNotEnabled())
        self.assertRaises(
            exception.QemuGuestAgentNotEnabled, self._snapshot)
        self.assertEqual([], self.frozen)

    @ddt.data('extract', 'upload')
    def test_snapshot_that_fails(self, step):
        if step == 'extract':
            self.disk.snapshot_extract.side_effect = Refused
        else:
            self.glance.update.side_effect = Refused
        self.assertRaises(Refused, self._snapshot)
        self.assertEqual(['given up'], self.ended)

    def test_cold_snapshot(self):
        self.flags(disable_libvirt_livesnapshot=True, group='workarounds')
        self.guest.get_power_state.return_value = 4
        self._snapshot()
        self.assertEqual(['snapshot'], self.frozen)
        self.assertEqual(['published'], self.ended)
        self.assertEqual('raw', self.out_format)


class LiveMigrationTestCase(_DriverTestCase):

    def test_destination_refuses(self):
        self._patch(self.driver, 'instance_exists',
                    return_value=mock.sentinel.is_here)
        self.host.check_destination.side_effect = Refused
        self.assertRaises(
            Refused, self.driver.check_can_live_migrate_destination,
            self.context, self.instance, {}, {}, block_migration=None)
        self.host.check_destination.assert_called_once_with(
            self.instance, None, mock.sentinel.is_here)

    def test_source_refuses(self):
        data = objects.LibvirtLiveMigrateData()
        self.host.check_source.side_effect = Refused
        self.assertRaises(
            Refused, self.driver.check_can_live_migrate_source,
            self.context, self.instance, data)
        self.host.check_source.assert_called_once_with(self.instance, data)

    def test_destination_expects_the_guest(self):
        data = objects.LibvirtLiveMigrateData(
            is_shared_instance_path=True, is_shared_block_storage=True,
            block_migration=False, bdms=[])
        bdi = {'block_device_mapping': []}
        self._record(self.driver, 'plug_vifs')
        self.host.expect_guest.side_effect = Refused
        self.assertRaises(
            Refused, self.driver.pre_live_migration, self.context,
            self.instance, bdi, [], None, data)
        self.host.expect_guest.assert_called_once_with(
            self.instance, bdi, data)

    def test_migration_goes_as_it_was_adapted(self):
        self._patch(libvirt_migrate, 'get_updated_guest_xml',
                    return_value='<domain/>')
        self._patch(self.driver, '_sorted_migrating_resources')
        self._patch(self.driver, '_verify_serial_console_is_disabled')
        self.host.adapt_migration.return_value = (32, '<adapted/>')
        guest = mock.create_autospec(libvirt_guest.Guest, instance=True)
        self.driver._live_migration_operation(
            self.context, self.instance, 'there', False,
            objects.LibvirtLiveMigrateData(
                block_migration=False, serial_listen_addr=None,
                target_connect_addr=None), guest, [])
        self.host.adapt_migration.assert_called_once_with(
            self.instance, self.driver._live_migration_flags, '<domain/>')
        self.assertEqual(
            (32, '<adapted/>'),
            tuple(guest.migrate.call_args[1][name]
                  for name in ('flags', 'destination_xml')))

    def _monitor(self, allows_post_copy):
        """Return whether a migration may switch to post-copy."""
        self.flags(live_migration_completion_timeout=0, group='libvirt')
        for name in ('should_trigger_timeout_action', 'update_downtime',
                     'save_stats'):
            self._patch(libvirt_migrate, name, return_value=False)
        run_tasks = self._patch(libvirt_migrate, 'run_tasks')
        self._patch(driver.time, 'sleep')
        self._patch(self.driver, '_is_post_copy_enabled', return_value=True)
        self._patch(self.driver, '_get_vpmems', return_value=[])
        self.host.allows_post_copy.return_value = allows_post_copy
        guest = mock.create_autospec(libvirt_guest.Guest, instance=True)
        guest.get_job_info.side_effect = [
            libvirt_guest.JobInfo(type=kind) for kind in (
                fakelibvirt.VIR_DOMAIN_JOB_UNBOUNDED,
                fakelibvirt.VIR_DOMAIN_JOB_COMPLETED)]
        self.driver._live_migration_monitor(
            self.context, self.instance, guest, 'there', mock.Mock(),
            mock.Mock(), False, objects.LibvirtLiveMigrateData(
                block_migration=False, migration=objects.Migration(
                    id=1, status='running')), mock.Mock(), [])
        self.host.allows_post_copy.assert_called_once_with(guest)
        return run_tasks.call_args[0][-1]

    def test_post_copy(self):
        self.assertTrue(self._monitor(True))

    def test_no_post_copy(self):
        self.assertFalse(self._monitor(False))

    def test_source_after_the_migration(self):
        self._record(self.driver, 'unplug_vifs')
        self.driver.post_live_migration_at_source(
            self.context, self.instance, [])
        self._assert_order('unexport_disks', 'unplug_vifs')
        self.host.unexport_disks.assert_called_once_with(self.instance)

    def test_destination_after_the_migration(self):
        self._record(self.driver, '_reattach_instance_vifs')
        self.driver.post_live_migration_at_destination(
            self.context, self.instance, [])
        self._assert_order('end_arrival', '_reattach_instance_vifs')
        self.host.end_arrival.assert_called_once_with(self.instance)


@ddt.ddt
class ColdMigrationTestCase(_DriverTestCase):

    def setUp(self):
        super().setUp()
        self.directory = self._make_instance_directory()
        self.flavor = self._make_flavor()
        self.bdi = {'block_device_mapping': [], 'ephemerals': []}
        self._record(self.driver, 'power_off', 'unplug_vifs')
        self._record(self.driver, '_get_instance_disk_info', return_value=[])
        self._patch(self.driver, '_is_booted_from_volume',
                    return_value=False)
        self.ssh = self._patch(self.driver, '_remotefs')
        self.host.keeps_all_disks.return_value = True

    def _migrate(self, dest='192.0.2.2'):
        return self.driver.migrate_disk_and_power_off(
            self.context, self.instance, dest, self.flavor, [], self.bdi)

    def _get_calls(self):
        return [call for call in self.host.mock_calls
                if call[0] != 'keeps_all_disks']

    def test_disks_are_kept_once_the_guest_is_off(self):
        self.assertEqual('[]', self._migrate())
        self.assertEqual(
            [mock.call.check_resize(self.instance, self.flavor),
             mock.call.power_off(self.instance, 0, 0),
             mock.call.unplug_vifs(self.instance, []),
             mock.call._get_instance_disk_info(self.instance, self.bdi),
             mock.call.keep_disks(self.instance, self.bdi)],
            self._get_calls())

    def test_refused_before_the_guest_is_off(self):
        self.host.check_resize.side_effect = Refused
        self.assertRaises(Refused, self._migrate)
        self.driver.power_off.assert_not_called()
        self.host.keep_disks.assert_not_called()

    @ddt.data((vm_states.ACTIVE, True), (vm_states.STOPPED, False))
    @ddt.unpack
    def test_undone_if_the_disks_cannot_be_kept(self, vm_state, is_started):
        self.instance.vm_state = vm_state
        self.host.keep_disks.side_effect = exception.SheepdogError(
            reason='no room')
        self._record(self.driver, 'power_on')
        error = self.assertRaises(exception.InstanceFaultRollback,
                                  self._migrate)
        self.assertIn('no room', str(error.inner_exception))
        self.assertEqual(
            [mock.call(self.context, self.instance, [], self.bdi)] *
            is_started, self.driver.power_on.mock_calls)

    def test_what_is_kept_goes_when_it_fails_later(self):
        self._patch(self.driver, '_cleanup_failed_instance_base',
                    side_effect=Refused)
        self.assertRaises(Refused, self._migrate)
        self.host.forget_disks.assert_called_once_with(
            self.instance, ignore_errors=True)

    @ddt.data('192.0.2.1', '192.0.2.2')
    def test_no_ssh_where_it_is_not_needed(self, dest):
        self._migrate(dest)
        self.assertEqual([], self.ssh.mock_calls)
        # The one of a resize on the same host is needed at once.
        self.assertEqual(dest == '192.0.2.1', os.path.isdir(self.directory))

    def test_ssh_for_files(self):
        self.host.keeps_all_disks.return_value = False
        self._migrate()
        self.ssh.create_dir.assert_called_once_with(
            '192.0.2.2', self.directory)

    def test_disks_are_prepared_for_the_new_flavor(self):
        self._patch(blockinfo, 'get_disk_info',
                    return_value={'mapping': mock.sentinel.mapping})
        self._record(self.driver, '_create_image', side_effect=Refused)
        self.assertRaises(
            Refused, self.driver.finish_migration, self.context,
            objects.Migration(source_compute='there'), self.instance, '[]',
            [], objects.ImageMeta(), True, {}, self.bdi)
        self._assert_order('prepare_resized', '_create_image')
        self.host.prepare_resized.assert_called_once_with(
            self.instance, self.bdi, mock.sentinel.mapping)

    def test_disks_are_restored_before_the_guest_is_made(self):
        by_name = self._record(self.driver.image_backend, 'by_name')
        by_name.return_value.exists.return_value = False
        for name in ('_finish_revert_migration_vtpm', '_get_guest_xml',
                     '_get_existing_guest_config'):
            if hasattr(self.driver, name):
                self._patch(self.driver, name)
        self._patch(self.driver, '_get_all_assigned_mediated_devices',
                    return_value={})
        self._patch(blockinfo, 'get_disk_info')
        self._record(self.driver, '_create_guest_with_network')
        migration = objects.Migration()
        self.driver.finish_revert_migration(
            self.context, self.instance, [], migration, self.bdi,
            power_on=False)
        self.assertEqual(
            ['restore_disks', 'by_name', '_create_guest_with_network'],
            [call[0] for call in self.host.mock_calls
             if not call[0].startswith('by_name()')])
        self.host.restore_disks.assert_called_once_with(
            self.instance, self.bdi, migration)

    def test_what_is_kept_goes_when_it_is_confirmed(self):
        for name in '_get_vpmems', '_cleanup_resize_vtpm':
            self._patch(self.driver, name, return_value=[])
        self._record(self.driver, '_undefine_domain')
        self.driver.confirm_migration(
            self.context, objects.Migration(), self.instance, [])
        self.host.forget_disks.assert_called_once_with(self.instance)

    def test_destination_refuses(self):
        self.host.check_cold_migration.side_effect = Refused
        self.assertRaises(
            Refused, self.driver.check_cold_migration, self.instance)
        self.host.check_cold_migration.assert_called_once_with(self.instance)

    def test_other_cell(self):
        self.driver.check_resize_from_other_cell(self.instance)
        self.host.check_other_cell.assert_called_once_with(self.instance)


class OtherDriverTestCase(test.NoDBTestCase):

    def test_drivers_without_an_image_backend(self):
        """Those of Ironic and VMware, which the manager runs too."""
        other = virt_driver.ComputeDriver(fake.FakeVirtAPI())
        other.stop_image_backend()
        other.check_cold_migration(None)
        other.check_resize_from_other_cell(None)


class OtherBackendTestCase(test.NoDBTestCase):
    """What the driver does on hosts that have no disks on Sheepdog."""

    def setUp(self):
        super().setUp()
        self.useFixture(nova_fixtures.LibvirtFixture())
        self.useFixture(fixtures.MonkeyPatch(
            'nova.virt.libvirt.imagebackend.Sheepdog.host', None))
        self.driver = driver.LibvirtDriver(fake.FakeVirtAPI(), False)

    def test_capacity_is_that_of_the_file_system(self):
        libvirt_utils.get_fs_info.return_value = {
            'total': 2 * units.Gi, 'free': units.Gi, 'used': units.Gi}
        self.assertEqual({'total': 2, 'free': 1, 'used': 1},
                         self.driver._get_local_gb_info())
