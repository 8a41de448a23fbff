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

import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
from unittest import mock

import ddt
import fixtures
from oslo_utils.fixture import uuidsentinel as uuids
from oslo_utils import units
from oslo_utils import uuidutils
import tenacity

from nova.compute import task_states
import nova.conf
from nova import exception
from nova import objects
from nova import test
from nova.tests.unit.virt.libvirt import sheepdog_base
from nova.tests.unit.virt.libvirt import test_imagebackend
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import driver
from nova.virt.libvirt import imagebackend
from nova.virt.libvirt.storage import tgt
from nova.virt.libvirt import utils as libvirt_utils

CONF = nova.conf.CONF


class Killed(BaseException):
    """Ends a nova-compute, which no handler of its own can hinder."""


class _SheepdogTestCase(sheepdog_base.SheepdogTestMixin, test.NoDBTestCase):

    DATA = b'boot sector' + bytes(6 * units.Mi) + b'the end'

    def setUp(self):
        super().setUp()
        self.start_sheepdog()
        self.start_tgtd()
        self.flags(
            instances_path=self.useFixture(fixtures.TempDir()).path)
        self.instance = objects.Instance(
            id=1, uuid=uuidutils.generate_uuid())
        self.base = os.path.join(CONF.instances_path, 'base')
        self.image = imagebackend.Sheepdog(self.instance, 'disk')

    def _write_base(self, target=None):
        with open(self.base, 'wb') as base:
            for start in range(0, len(self.DATA), 4096):
                piece = self.DATA[start:start + 4096]
                if any(piece):
                    base.seek(start)
                    base.write(piece)
            base.truncate(8 * units.Mi)

    def _names(self):
        """Names of all VDIs and snapshots."""
        return {line.split()[1].decode() for line in
                self.dog('vdi', 'list', '-r').splitlines()}

    def _read(self, vdi, length):
        return self.dog('vdi', 'read', vdi, '0', str(length))


@ddt.ddt
class SheepdogImageTestCase(_SheepdogTestCase):

    def test_create_image(self):
        self.image.create_image(self._write_base, self.base, 16 * units.Mi)
        self.assertEqual({self.image.vdi}, self._names())
        self.assertTrue(self.image.exists())
        self.assertEqual(self.DATA.ljust(16 * units.Mi, b'\0'),
                         self._read(self.image.vdi, 16 * units.Mi))
        self.assertEqual({}, tgt._get_targets())

    def test_import_writes_no_more_than_the_data(self):
        self._write_base()
        self.sheepdog.reset_stats()
        self.image.create_image(self._write_base, self.base, units.Gi)
        # two pieces of 4 KiB hold data
        self.assertEqual(
            2 * 4096, self.sheepdog.stats()['bytes_written'])

    def test_create_image_of_the_size_of_the_image(self):
        self.image.create_image(self._write_base, self.base, None)
        self.assertEqual(
            str(8 * units.Mi).encode(),
            self.dog('vdi', 'list', '-r', self.image.vdi).split()[3])

    def test_create_image_that_exists(self):
        self.image.create_image(self._write_base, self.base, 8 * units.Mi)
        os.unlink(self.base)
        fetch = mock.Mock()
        self.image.create_image(fetch, self.base, 16 * units.Mi)
        fetch.assert_not_called()
        self.assertEqual(
            str(16 * units.Mi).encode(),
            self.dog('vdi', 'list', '-r', self.image.vdi).split()[3])

    def test_create_image_larger_than_the_disk(self):
        self.assertRaises(
            exception.FlavorDiskSmallerThanImage, self.image.create_image,
            self._write_base, self.base, 4 * units.Mi)
        self.assertEqual(set(), self._names())

    def test_create_image_of_more_than_a_vdi_can_hold(self):
        fetch = mock.Mock()
        self.assertRaisesRegex(
            exception.InvalidDiskInfo, '4097 GiB', self.image.create_image,
            fetch, self.base, 4097 * units.Gi)
        fetch.assert_not_called()

    def test_resize_to_more_than_a_vdi_can_hold(self):
        self.assertRaisesRegex(
            exception.InvalidDiskInfo, 'smaller disk',
            self.image.resize_image, 4097 * units.Gi)

    def test_import_file_overrides(self):
        self.image.create_image(self._write_base, self.base, None)
        path = os.path.join(CONF.instances_path, 'disk.config')
        with open(path, 'wb') as drive:
            drive.write(b'config'.ljust(units.Mi, b'\0'))
        self.image.import_file(self.instance, path, 'disk')
        self.assertEqual({self.image.vdi}, self._names())
        self.assertEqual(b'config', self._read(self.image.vdi, 6))

    def test_failed_copy_leaves_nothing(self):
        with mock.patch.object(
                libvirt_utils, 'copy_with_qemu_img',
                side_effect=exception.SheepdogError(
                    gateway='', command='', reason='full')):
            self.assertRaises(
                exception.SheepdogError, self.image.create_image,
                self._write_base, self.base, None)
        self.assertEqual(set(), self._names())
        self.assertEqual({}, tgt._get_targets())

    @ddt.data('snapshot', 'clone')
    def test_failed_step_leaves_nothing(self, step):
        with mock.patch.object(
                libvirt_utils, step + '_sheepdog_vdi',
                side_effect=exception.SheepdogError(
                    gateway='', command='', reason='full')):
            self.assertRaises(
                exception.SheepdogError, self.image.create_image,
                self._write_base, self.base, None)
        self.assertEqual(set(), self._names())

    def test_import_after_one_that_was_killed(self):
        scratch = '%s_scratch' % self.instance.uuid
        libvirt_utils.create_sheepdog_vdi(scratch, units.Mi)
        libvirt_utils.snapshot_sheepdog_vdi(scratch, 'nova-snapshot')
        self.image.create_image(self._write_base, self.base, None)
        self.assertEqual({self.image.vdi}, self._names())
        self.assertEqual(self.DATA,
                         self._read(self.image.vdi, len(self.DATA)))

    def test_cleanup_that_fails_too_does_not_hide_the_reason(self):
        def fail(*args, **kwargs):
            self.sheepdog.kill()
            raise ZeroDivisionError()

        with mock.patch.object(
                libvirt_utils, 'snapshot_sheepdog_vdi', side_effect=fail):
            self.assertRaises(
                ZeroDivisionError, self.image.create_image,
                self._write_base, self.base, None)

    @ddt.data('raw', 'qcow2')
    def test_snapshot_extract(self, out_format):
        self.image.create_image(self._write_base, self.base, 64 * units.Mi)
        # as a crash would leave it
        libvirt_utils.snapshot_sheepdog_vdi(self.image.vdi, 'nova-snapshot')
        target = os.path.join(CONF.instances_path, 'target')
        self.image.snapshot_extract(target, out_format)
        self.assertEqual(
            1, len(self.dog('vdi', 'list', '-r').splitlines()))
        self.assertEqual({}, tgt._get_targets())
        raw = os.path.join(CONF.instances_path, 'raw')
        subprocess.run(['qemu-img', 'convert', '-f', out_format, '-O', 'raw',
                        target, raw], check=True)
        with open(raw, 'rb') as copy:
            self.assertEqual(self.DATA.ljust(64 * units.Mi, b'\0'),
                             copy.read())
        self.assertLess(os.stat(target).st_blocks * 512, units.Mi)

    def test_snapshot_extract_of_frozen_file_systems(self):
        self.image.create_image(self._write_base, self.base, None)

        @contextlib.contextmanager
        def frozen():
            self._write(self.image.vdi, b'frozen')
            yield
            self._write(self.image.vdi, b'thawed')

        target = os.path.join(CONF.instances_path, 'target')
        self.image.snapshot_extract(target, 'raw', frozen=frozen())
        with open(target, 'rb') as copy:
            self.assertEqual(b'frozen', copy.read(6))

    def test_failed_snapshot_extract_leaves_the_disk_alone(self):
        self.image.create_image(self._write_base, self.base, None)
        self.assertRaises(
            exception.SheepdogError, self.image.snapshot_extract,
            os.path.join(CONF.instances_path, 'no/such/target'), 'raw')
        self.assertEqual(
            1, len(self.dog('vdi', 'list', '-r').splitlines()))
        self.assertTrue(self.image.exists())

    def test_files_of_images_that_a_killed_process_left(self):
        directory = self.useFixture(fixtures.TempDir()).path
        self.flags(group='libvirt', snapshots_directory=directory)
        self.flags(host='one')
        left = tempfile.mkdtemp(
            dir=directory, prefix=imagebackend.Sheepdog.get_snapshot_prefix())
        open(os.path.join(left, 'image'), 'w').close()
        self.flags(host='one-b')
        of_others = {
            tempfile.mkdtemp(dir=directory, prefix=prefix) for prefix in
            ('tmp', imagebackend.Sheepdog.get_snapshot_prefix())}
        self.flags(host='one')
        imagebackend.Sheepdog.clean_up_snapshots()
        self.assertEqual(of_others, {os.path.join(directory, name)
                                     for name in os.listdir(directory)})

    def test_delete_disks(self):
        other = objects.Instance(id=2, uuid=uuidutils.generate_uuid())
        for instance in self.instance, other:
            for name in 'disk', 'disk.swap', 'scratch':
                vdi = '%s_%s' % (instance.uuid, name)
                libvirt_utils.create_sheepdog_vdi(vdi, units.Mi)
                libvirt_utils.snapshot_sheepdog_vdi(
                    vdi, 'nova-resize' if name == 'disk.swap' else
                    'nova-snapshot')
        self.sheepdog.reset_stats()
        imagebackend.Sheepdog.delete_disks(
            self.instance, ['disk', 'disk.local', 'disk.swap'])
        # two for the scratch VDI, three for the disk, one for what is not
        # there, two for the swap; and a look whether those two are gone
        self.assertEqual({'vdi delete': 8, 'vdi getattr': 2},
                         self.sheepdog.stats()['calls'])
        self.assertEqual({'%s_%s' % (other.uuid, name) for name in (
            'disk', 'disk.swap', 'scratch')}, self._names())

    def test_delete_disks_of_which_snapshots_are_left(self):
        libvirt_utils.create_sheepdog_vdi(self.image.vdi, units.Mi)
        for tag in 'nova-snapshot', 'nova-resize':
            libvirt_utils.snapshot_sheepdog_vdi(self.image.vdi, tag)
        libvirt_utils.delete_sheepdog_vdi(self.image.vdi)
        imagebackend.Sheepdog.delete_disks(self.instance, ['disk'])
        self.assertEqual(set(), self._names())

    def _write(self, vdi, data):
        self.sheepdog.run('vdi', 'write', vdi, '0', str(len(data)),
                          stdin=data)

    def test_roll_back_disks(self):
        for name in 'disk', 'disk.local':
            vdi = '%s_%s' % (self.instance.uuid, name)
            libvirt_utils.create_sheepdog_vdi(vdi, 8 * units.Mi)
            self._write(vdi, b'before')
        names = ['disk', 'disk.local', 'disk.swap']
        imagebackend.Sheepdog.snapshot_disks(self.instance, names)
        libvirt_utils.resize_sheepdog_vdi(self.image.vdi, 16 * units.Mi)
        self._write(self.image.vdi, b'after!')
        # as an interrupted call leaves it
        libvirt_utils.delete_sheepdog_vdi(
            '%s_disk.local' % self.instance.uuid)
        for _attempt in range(2):
            imagebackend.Sheepdog.roll_back_disks(self.instance, names)
            shown = self.dog('vdi', 'list', '-r').decode().splitlines()
            self.assertEqual(
                {('%s_%s' % (self.instance.uuid, name), str(8 * units.Mi))
                 for name in ('disk', 'disk.local')},
                {(line.split()[1], line.split()[3]) for line in shown})
            self.assertEqual(2, len(shown))
            self.assertEqual(b'before', self._read(self.image.vdi, 6))

    def _roll_back_until_killed(self, steps):
        """Have roll_back_disks() end after some calls of dog.

        :returns: True if that was before its own end
        """
        dog = libvirt_utils._dog
        left = iter(range(steps))

        def dog_until_killed(*arguments):
            if next(left, None) is None:
                raise Killed()
            return dog(*arguments)

        with mock.patch.object(libvirt_utils, '_dog', dog_until_killed):
            try:
                imagebackend.Sheepdog.roll_back_disks(
                    self.instance, ['disk'])
            except Killed:
                return True
        return False

    @ddt.data('iscsi', 'native')
    def test_roll_back_disks_is_killed_at_any_step(self, transport):
        self.flags(images_sheepdog_transport=transport, group='libvirt')
        self.image.disk_info_mapping = {
            'bus': 'virtio', 'dev': 'vda', 'type': 'disk'}
        guest = vconfig.LibvirtConfigGuest()
        guest.virt_type = 'kvm'
        guest.add_device(self.image.libvirt_info('none', {}))
        steps = 0
        killed = True
        while killed:
            libvirt_utils.create_sheepdog_vdi(self.image.vdi, 8 * units.Mi)
            self._write(self.image.vdi, b'before')
            imagebackend.Sheepdog.snapshot_disks(self.instance, ['disk'])
            self._write(self.image.vdi, b'after!')
            killed = self._roll_back_until_killed(steps)
            # Whoever starts the guest finds a disk.
            imagebackend.Sheepdog.export_disks(guest.to_xml())
            self.assertIn(self._read(self.image.vdi, 6),
                          (b'before', b'after!'))
            imagebackend.Sheepdog.unexport_disks(self.instance)
            imagebackend.Sheepdog.roll_back_disks(self.instance, ['disk'])
            self.assertEqual(b'before', self._read(self.image.vdi, 6))
            imagebackend.Sheepdog.delete_disks(self.instance, ['disk'])
            steps += 1
        self.assertEqual(5, steps)

    def test_start_without_a_disk(self):
        for transport, kind in (('iscsi', exception.TgtError),
                                ('native', exception.SheepdogError)):
            self.flags(images_sheepdog_transport=transport, group='libvirt')
            self.assertRaisesRegex(
                kind, 'no such VDI', imagebackend.Sheepdog.export_disks,
                self._get_guest_xml())

    def test_snapshot_disks_after_a_resize_that_failed(self):
        libvirt_utils.create_sheepdog_vdi(self.image.vdi, 8 * units.Mi)
        imagebackend.Sheepdog.snapshot_disks(self.instance, ['disk'])
        self._write(self.image.vdi, b'since')
        imagebackend.Sheepdog.snapshot_disks(self.instance, ['disk'])
        self.assertEqual(b'since', self.dog(
            'vdi', 'read', '-s', 'nova-resize', self.image.vdi, '0', '5'))
        imagebackend.Sheepdog.delete_snapshots(self.instance, ['disk'])
        self.assertEqual(
            1, len(self.dog('vdi', 'list', '-r').splitlines()))

    def test_delete_disks_that_stay(self):
        self.image.create_image(self._write_base, self.base, None)
        with mock.patch.object(
                libvirt_utils, 'sheepdog_vdi_exists', return_value=True):
            self.assertRaisesRegex(
                exception.SheepdogError, 'delete the server again',
                imagebackend.Sheepdog.delete_disks, self.instance, ['disk'])

    def _get_guest_xml(self, *further):
        """Return the XML of a guest with the disk, and further ones."""
        guest = vconfig.LibvirtConfigGuest()
        guest.virt_type = 'kvm'
        self.image.disk_info_mapping = {
            'bus': 'virtio', 'dev': 'vda', 'type': 'disk'}
        for device in (self.image.libvirt_info('none', {}), *further):
            guest.add_device(device)
        return guest.to_xml()

    def test_export_and_unexport_disks(self):
        self.image.create_image(self._write_base, self.base, None)
        volume = vconfig.LibvirtConfigGuestDisk()
        volume.source_type = 'network'
        volume.source_protocol = 'iscsi'
        volume.source_name = 'iqn.2010-10.org.openstack:volume-1/1'
        volume.target_dev = 'vdb'
        volume.target_bus = 'virtio'
        imagebackend.Sheepdog.export_disks(self._get_guest_xml(volume))
        self.assertEqual(
            ['iqn.2014-06.org.openstack.nova:%s.disk' % self.instance.uuid],
            list(tgt._get_targets()))
        imagebackend.Sheepdog.unexport_disks(self.instance)
        self.assertEqual({}, tgt._get_targets())

    def test_export_of_a_disk_that_a_roll_back_left_deleted(self):
        libvirt_utils.create_sheepdog_vdi(self.image.vdi, 8 * units.Mi)
        self._write(self.image.vdi, b'before')
        imagebackend.Sheepdog.snapshot_disks(self.instance, ['disk'])
        libvirt_utils.delete_sheepdog_vdi(self.image.vdi)
        imagebackend.Sheepdog.export_disks(self._get_guest_xml())
        self.assertEqual(b'before', self._read(self.image.vdi, 6))

    def test_export_of_a_disk_that_is_missing(self):
        self.assertRaisesRegex(
            exception.TgtError, 'no such VDI',
            imagebackend.Sheepdog.export_disks, self._get_guest_xml())

    @tenacity.retry(stop=tenacity.stop_after_delay(30),
                    wait=tenacity.wait_fixed(0.1), reraise=True)
    def _assert_exported(self):
        self.assertEqual(1, len(tgt._get_targets()))

    def _keep_exports(self, *here, is_arriving=False):
        """Run keep_exports(), with one running guest.

        :param here: UUIDs of the instances of this host, for each time that
            the database is asked
        :returns: the nova.virt.libvirt.host.Host
        """
        self.image.create_image(self._write_base, self.base, None)
        self.image.disk_info_mapping = {
            'bus': 'virtio', 'dev': 'vda', 'type': 'disk'}
        config = vconfig.LibvirtConfigGuest()
        config.add_device(self.image.libvirt_info('none', {}))
        host = mock.Mock()
        guest = mock.Mock(uuid=self.instance.uuid)
        guest.get_config.return_value = config
        host.list_guests.return_value = [guest]
        self.patch_object(objects.InstanceList, 'get_uuids_by_host',
                          side_effect=here)
        self.patch_object(imagebackend.Sheepdog, 'RESTORE_INTERVAL',
                          new=0.05)
        self.addCleanup(imagebackend.Sheepdog.stop_keeping_exports)
        imagebackend.Sheepdog.keep_exports(host, lambda guest: is_arriving)
        self._assert_exported()
        return host

    def test_keep_exports(self):
        host = self._keep_exports(*[[self.instance.uuid]] * 1000)
        calls = host.list_guests.call_count
        self.tgtd.stop()
        self.sheepdog.kill()
        self.tgtd.start()
        self.sheepdog.start()
        self._assert_exported()
        # not asked for as long as the same tgtd runs
        self.assertEqual(1, calls)

    def test_no_exports_before_the_instance_is_on_this_host(self):
        host = self._keep_exports([], [], [self.instance.uuid])
        self.assertEqual(3, host.list_guests.call_count)
        self.assertEqual(1, self.stdlog.logger.output.count(
            'on another host: ' + self.instance.uuid))

    def test_exports_of_a_guest_that_comes(self):
        self._keep_exports([], is_arriving=True)

    def test_libvirt_info_iscsi(self):
        self.flags(hw_disk_discard='unmap', group='libvirt')
        image = imagebackend.Sheepdog(
            self.instance, 'disk',
            disk_info_mapping={'bus': 'virtio', 'dev': 'vda',
                               'type': 'disk'})
        self.assertXmlEqual("""
            <disk type="network" device="disk">
              <driver name="qemu" type="raw" cache="none"/>
              <source protocol="iscsi"
                  name="iqn.2014-06.org.openstack.nova:%s.disk/1">
                <host name="127.0.0.1" port="%s"/>
              </source>
              <target bus="virtio" dev="vda"/>
              <iotune>
                <total_iops_sec>100</total_iops_sec>
              </iotune>
              <boot order="1"/>
            </disk>""" % (self.instance.uuid,
                          self.tgtd.portal.partition(':')[2]),
            image.libvirt_info('none', {'quota:disk_total_iops_sec': 100},
                               boot_order='1').to_xml())

    def test_libvirt_info_native(self):
        self.flags(hw_disk_discard='unmap',
                   images_sheepdog_transport='native', group='libvirt')
        image = imagebackend.Sheepdog(
            self.instance, 'disk',
            disk_info_mapping={'bus': 'scsi', 'dev': 'sda', 'type': 'disk'})
        self.assertXmlEqual("""
            <disk type="network" device="disk">
              <driver name="qemu" type="raw" cache="none" discard="unmap"/>
              <source protocol="sheepdog" name="%s_disk">
                <host name="127.0.0.1" port="%s"/>
              </source>
              <target bus="scsi" dev="sda"/>
              <address type="drive" controller="0" unit="3"/>
            </disk>""" % (self.instance.uuid, self.sheepdog.port),
            image.libvirt_info('none', {}, disk_unit=3).to_xml())

    def test_native_copies_without_tgtd(self):
        self.tgtd.stop()
        self.flags(images_sheepdog_transport='native', group='libvirt')
        copy = self.patch_object(libvirt_utils, 'copy_with_qemu_img')
        self.image.create_image(self._write_base, self.base, None)
        self.assertEqual(
            'driver=raw,file.driver=sheepdog,file.server.type=inet,'
            'file.server.host=127.0.0.1,file.server.port=%d,'
            'file.vdi=%s_scratch' % (self.sheepdog.port, self.instance.uuid),
            copy.call_args[0][1])

    def test_native_unexport_without_tgt(self):
        self.flags(images_sheepdog_transport='native', group='libvirt')
        self.tgtd.stop()
        os.unlink(self.tgtd.control_socket)
        self.install_only('env', 'timeout')
        imagebackend.Sheepdog.unexport_disks(self.instance)

    def test_by_libvirt_path(self):
        image = imagebackend.Backend(False).by_libvirt_path(
            self.instance, 'sheepdog:0123_disk', image_type='sheepdog')
        self.assertEqual('0123_disk', image.vdi)

    def test_get_model(self):
        self.assertRaisesRegex(exception.Invalid, 'inject_partition',
                               self.image.get_model, None)

    def test_shared_block_storage(self):
        self.assertTrue(imagebackend.Sheepdog.is_shared_block_storage())
        self.assertFalse(imagebackend.Sheepdog.is_file_in_instance_path())


@ddt.ddt
class SheepdogDriverTestCase(test.NoDBTestCase):

    def setUp(self):
        super().setUp()
        self.flags(images_type='sheepdog', group='libvirt')
        self.driver = mock.Mock(spec=driver.LibvirtDriver)
        self.instance = objects.Instance(
            uuid=uuids.instance, flavor=objects.Flavor(extra_specs={}))
        self.image_meta = objects.ImageMeta(
            properties=objects.ImageMetaProps())

    @ddt.data((task_states.SPAWNING, True),
              (task_states.REBUILD_SPAWNING, False))
    @ddt.unpack
    def test_what_goes_when_a_spawn_fails(self, task_state, goes):
        """An evacuated server may have lost its swap, and keeps its data."""
        self.instance.task_state = task_state
        self.driver._create_image.return_value = (True, True)
        with mock.patch.object(driver.blockinfo, 'get_disk_info'):
            driver.LibvirtDriver.spawn(
                self.driver, None, self.instance, self.image_meta, [], None,
                {}, power_on=False)
        self.assertEqual(goes, self.driver._create_guest_with_network.
                         call_args.kwargs['cleanup_instance_disks'])

    def _is_path_shared(self, image_meta):
        is_shared = driver.LibvirtDriver._is_instance_path_shared_with
        self.driver._has_files_to_migrate = functools.partial(
            driver.LibvirtDriver._has_files_to_migrate, self.driver)
        self.driver.get_host_ip_addr.return_value = '192.0.2.1'
        with mock.patch.object(objects.Instance, 'image_meta', image_meta):
            return [is_shared(self.driver, self.instance, host, '/path')
                    for host in ('192.0.2.1', '192.0.2.2')]

    def test_no_ssh_where_it_is_not_needed(self):
        self.assertEqual([True, False],
                         self._is_path_shared(self.image_meta))
        self.driver._is_path_shared_with.assert_not_called()

    def test_ssh_for_the_files_of_a_vtpm(self):
        self.driver._is_path_shared_with.return_value = True
        self.image_meta.properties.hw_tpm_version = '2.0'
        self.assertEqual([True, True],
                         self._is_path_shared(self.image_meta))


@ddt.ddt
class SheepdogCheckHostTestCase(_SheepdogTestCase):

    def setUp(self):
        super().setUp()
        self.flags(virt_type='qemu', group='libvirt')
        self.flags(force_raw_images=True)
        self.patch_object(imagebackend.Sheepdog, '_auto_transport',
                          new='iscsi')
        self._set_emulator(shutil.which('qemu-system-x86_64'))

    def _set_emulator(self, path):
        domain = mock.Mock(emulator=path)
        self.host = mock.Mock()
        capabilities = self.host.get_capabilities.return_value
        capabilities.host.cpu.arch = 'x86_64'
        capabilities.guests = [
            mock.Mock(arch='x86_64', domains={'qemu': domain})]

    def _assert_refused(self, *words):
        error = self.assertRaises(
            exception.InvalidConfiguration,
            imagebackend.Sheepdog.check_host, self.host)
        for word in words:
            self.assertIn(word, str(error))

    @ddt.data('auto', 'iscsi')
    def test_iscsi(self, transport):
        self.flags(images_sheepdog_transport=transport, group='libvirt')
        imagebackend.Sheepdog.check_host(self.host)
        self.assertEqual('iscsi', imagebackend.Sheepdog.get_transport())

    def test_native_where_qemu_has_it(self):
        # what QEMU before 6.1 says where nobody listens
        script = 'echo "Failed to connect to 127.0.0.1:1" >&2; exit 1\n'
        self.install('qemu-img', script)
        self._set_emulator(self.install('qemu-system-x86_64', script))
        self.flags(images_sheepdog_transport='auto', group='libvirt')
        self.tgtd.stop()
        imagebackend.Sheepdog.check_host(self.host)
        self.assertEqual('native', imagebackend.Sheepdog.get_transport())

    def test_native_with_a_qemu_that_lacks_it(self):
        self.flags(images_sheepdog_transport='native', group='libvirt')
        self._assert_refused('images_sheepdog_transport', 'before 6.1')

    def test_native_with_a_qemu_img_that_lacks_it(self):
        # the emulator runs in another container
        self._set_emulator('/no/such/emulator')
        self.flags(images_sheepdog_transport='native', group='libvirt')
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
        self._assert_refused('tgtd', 'tgtadm')

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
        self.patch_object(libvirt_utils, 'check_sheepdog_cluster')
        self.flags(images_sheepdog_port=10000, group='libvirt')
        self._assert_refused('images_sheepdog_port', 'below 10000')

    def test_no_cluster(self):
        self.sheepdog.kill()
        self._assert_refused('images_sheepdog_host', 'images_sheepdog_port')

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


class SheepdogTestCase(test_imagebackend._ImageTestCase, _SheepdogTestCase):
    """What Nova expects of every backend."""

    SIZE = 8 * units.Mi

    def setUp(self):
        self.image_class = imagebackend.Sheepdog
        super().setUp()

    def test_prealloc_image(self):
        # Sheepdog has no thing such as fallocate.
        self.flags(preallocate_images='space')
        image = self.image_class(self.INSTANCE, self.NAME)
        with mock.patch.object(imagebackend.processutils, 'trycmd') as trycmd:
            image.cache(self._fetch, self.TEMPLATE, self.SIZE)
        trycmd.assert_not_called()

    def _fetch(self, target, *args, **kwargs):
        with open(target, 'wb') as base:
            base.truncate(self.SIZE // 2)

    def test_cache(self):
        image = self.image_class(self.INSTANCE, self.NAME)
        image.cache(self._fetch, self.TEMPLATE, self.SIZE)
        self.assertTrue(image.exists())
        self.assertTrue(os.path.exists(self.TEMPLATE_PATH))

    def test_cache_template_exists(self):
        os.makedirs(self.TEMPLATE_DIR)
        self._fetch(self.TEMPLATE_PATH)
        fetch = mock.Mock()
        image = self.image_class(self.INSTANCE, self.NAME)
        image.cache(fetch, self.TEMPLATE, self.SIZE)
        fetch.assert_not_called()
        self.assertTrue(image.exists())

    def test_cache_image_exists(self):
        image = self.image_class(self.INSTANCE, self.NAME)
        image.cache(self._fetch, self.TEMPLATE, self.SIZE)
        shutil.rmtree(self.TEMPLATE_DIR)
        fetch = mock.Mock()
        image.cache(fetch, self.TEMPLATE, self.SIZE)
        fetch.assert_not_called()
