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
import os
import subprocess
from unittest import mock

import ddt
from oslo_utils import units
from oslo_utils import uuidutils

from nova.compute import task_states
from nova.compute import vm_states
import nova.conf
from nova import exception
from nova import objects
from nova import test
from nova.tests.unit.virt.libvirt.sheepdog import base
from nova.tests.unit.virt.libvirt import test_imagebackend
from nova.virt.libvirt import imagebackend
from nova.virt.libvirt.sheepdog import disks
from nova.virt.libvirt.sheepdog import images
from nova.virt.libvirt.sheepdog import targets
from nova.virt.libvirt import utils as libvirt_utils

CONF = nova.conf.CONF
SIZE = 8 * units.Mi
BASE = {'base': 1, 'base@': 1, 'record': 1}


class _SheepdogTestCase(base.SheepdogTestMixin, test.NoDBTestCase):

    DATA = b'boot sector' + bytes(6 * units.Mi) + b'the end'

    def setUp(self):
        super().setUp()
        self.start_cluster()
        self.host = self.make_host()
        self.instance = objects.Instance(
            id=1, uuid=uuidutils.generate_uuid(), host=CONF.host,
            vm_state=vm_states.ACTIVE, task_state=None, os_type=None)
        self.glance = {
            'id': uuidutils.generate_uuid(), 'size': 1000, 'status': 'active',
            'disk_format': 'raw', 'properties': {}}
        self.patch_object(images.IMAGE_API, 'get',
                          new=lambda context, image_id: self.glance)
        self.patch_object(
            libvirt_utils, 'fetch_image', new=lambda context, target, *args:
            self.fetch(target))
        self.fetched = 0

    def make_host(self):
        host = super().make_host()
        host.images.transfer = self.make_transfer()
        return host

    def fetch(self, target, **kwargs):
        self.fetched += 1
        with open(target, 'wb') as image:
            for start in range(0, len(self.DATA), 4096):
                piece = self.DATA[start:start + 4096]
                if any(piece):
                    image.seek(start)
                    image.write(piece)
            image.truncate(SIZE)

    def get_disk(self, name='disk', **of_instance):
        """Make the object of a disk, as Nova does for each action."""
        for field, value in of_instance.items():
            setattr(self.instance, field, value)
        return imagebackend.Sheepdog(self.instance, name)

    def boot(self, disk, size=2 * SIZE):
        """Make a disk of an image, as Nova does."""
        disk.cache(self.fetch, 'root', size, context=None,
                   image_id=self.glance['id'], trusted_certs=None)
        return disk

    def boot_new(self, size=2 * SIZE):
        return self.boot(self.get_disk(vm_state=vm_states.BUILDING), size)

    def get_vdis(self):
        """Return the size of each VDI that is not a snapshot."""
        return {vdi['name']: vdi['size'] for vdi in self.sheepdog.vdis()
                if not vdi['snapshot']}

    def get_names(self):
        """Count the VDIs and snapshots by what their names mean."""
        kinds = {}
        for vdi in self.sheepdog.vdis():
            kind = vdi['name'].partition('_')[2].partition('.')[0]
            kind += '@' * vdi['snapshot']
            kinds[kind] = kinds.get(kind, 0) + 1
        return kinds

    def get_files(self):
        """Return the names of what imports leave on this host."""
        return [name for _directory, _directories, names in
                os.walk(CONF.instances_path) for name in names
                if not name.startswith('nova-')]

    def read(self, disk, length=11):
        return self.dog('vdi', 'read', disk.vdi, '0', str(length))

    def write(self, vdi, data):
        self.sheepdog.run('vdi', 'write', vdi, '0', str(len(data)),
                          stdin=data)

    def create(self, disk, data=b'found', size=SIZE):
        libvirt_utils.create_sheepdog_vdi(disk.vdi, size)
        self.write(disk.vdi, data)


@ddt.ddt
class CreateImageTestCase(_SheepdogTestCase):

    def test_first_boot_imports_and_second_clones(self):
        for boots in 1, 2:
            self.instance.uuid = uuidutils.generate_uuid()
            disk = self.boot_new()
            self.assertEqual(b'boot sector', self.read(disk))
            self.assertEqual(2 * SIZE, self.get_vdis()[disk.vdi])
            self.assertTrue(disk.exists())
            self.assertEqual(dict(BASE, disk=boots), self.get_names())
        self.assertEqual(1, self.fetched)
        self.assertEqual([], self.get_files())

    def test_disk_of_the_size_of_the_image(self):
        disk = self.boot_new(size=None)
        self.assertEqual(SIZE, self.get_vdis()[disk.vdi])

    def test_disk_that_is_there_needs_no_image(self):
        disk = self.boot_new()
        # Glance has lost it, too.
        self.patch_object(images.IMAGE_API, 'get', side_effect=exception.
                          ImageNotFound(image_id=self.glance['id']))
        self.boot(self.get_disk(vm_state=vm_states.ACTIVE), 4 * SIZE)
        self.assertEqual(1, self.fetched)
        self.assertEqual(4 * SIZE, self.get_vdis()[disk.vdi])

    def test_image_larger_than_the_disk(self):
        self.assertRaises(exception.FlavorDiskSmallerThanImage,
                          self.boot_new, SIZE // 2)
        self.assertEqual(BASE, self.get_names())

    def test_more_than_a_vdi_can_hold(self):
        self.assertRaisesRegex(exception.InvalidDiskInfo, '4097 GiB',
                               self.boot_new, 4097 * units.Gi)
        self.assertEqual(0, self.fetched)

    def test_resize_to_more_than_a_vdi_can_hold(self):
        self.assertRaisesRegex(
            exception.InvalidDiskInfo, 'smaller disk',
            self.get_disk().resize_image, 4097 * units.Gi)

    def test_templates(self):
        def make(name, template, **kwargs):
            disk = self.get_disk(name, uuid=uuidutils.generate_uuid(),
                                 vm_state=vm_states.BUILDING)
            disk.cache(self.fetch, template, SIZE, context=None, **kwargs)
            return self.fetched

        self.assertEqual(1, make('disk.swap', 'swap_8', swap_mb=8))
        self.assertEqual(1, make('disk.swap', 'swap_8', swap_mb=8))
        self.assertEqual(2, make('disk.swap', 'swap_9', swap_mb=9))
        kwargs = {'ephemeral_size': 1, 'specified_fs': None}
        self.assertEqual(3, make('disk.eph0', 'ephemeral_1_a', **kwargs))
        self.assertEqual(3, make('disk.eph0', 'ephemeral_1_a', **kwargs))
        self.assertEqual(3, make('disk.local', 'ephemeral_1_a',
                                 ephemeral_size=1))
        # with another label
        self.assertEqual(4, make('disk.eph1', 'ephemeral_1_a', **kwargs))
        kwargs['specified_fs'] = 'xfs'
        self.assertEqual(5, make('disk.eph0', 'ephemeral_1_a', **kwargs))
        # What mkfs is run depends on these, and not on the name alone.
        self.instance.os_type = 'windows'
        self.assertEqual(6, make('disk.eph0', 'ephemeral_1_a', **kwargs))
        self.flags(default_ephemeral_format='ext3')
        self.assertEqual(7, make('disk.eph0', 'ephemeral_1_a', **kwargs))
        self.assertEqual(7, make('disk.eph0', 'ephemeral_1_a', **kwargs))

    def test_image_that_is_gone(self):
        """Nova would copy it from another host, where it is not either."""
        disk = self.get_disk()
        self.assertRaisesRegex(
            exception.DiskNotFound, '%s, and its image is gone' % disk.vdi,
            disk.cache, self.fetch, 'root', SIZE)
        self.assertEqual({}, self.get_names())

    def test_base_that_goes_again_and_again(self):
        self.patch_object(images.Base, 'clone', return_value=False)
        self.assertRaisesRegex(exception.SheepdogError, 'gone again',
                               self.boot_new)

    def test_server_that_is_deleted_waits_no_longer(self):
        provide = self.patch_object(
            images.Base, 'provide',
            side_effect=exception.InstanceNotFound(instance_id=''))
        self.assertRaises(exception.InstanceNotFound, self.boot_new)
        provide.assert_called_once_with(self.instance)


@ddt.ddt
class ExistingDiskTestCase(_SheepdogTestCase):
    """Where a disk must be new, and where one must not be made."""

    NEW = (
        {'vm_state': vm_states.BUILDING, 'task_state': task_states.SPAWNING},
        {'vm_state': vm_states.SHELVED_OFFLOADED,
         'task_state': task_states.SPAWNING},
        {'task_state': task_states.REBUILD_SPAWNING},
        {'name': 'disk.rescue', 'task_state': task_states.RESCUING})

    def _leave(self, disk):
        """Leave a disk of a failed attempt, of which a delete left holes."""
        self.create(disk)
        for tag in 'nova-snapshot', 'nova-resize':
            libvirt_utils.snapshot_sheepdog_vdi(disk.vdi, tag)
        self.sheepdog.fault('hang', subcommand='vdi delete', hole=True)
        self.assertRaises(exception.SheepdogError,
                          libvirt_utils.delete_sheepdog_vdi, disk.vdi)
        self.assertEqual(bytes(5), self.read(disk, 5))

    @ddt.data(*NEW)
    def test_new_disk_takes_the_place_of_what_is_there(self, of_disk):
        disk = self.get_disk(**of_disk)
        self._leave(disk)
        self.assertFalse(disk.exists())
        self.boot(disk, 4 * SIZE)
        self.assertTrue(disk.exists())
        self.assertEqual(b'boot sector', self.read(disk))
        self.assertEqual(4 * SIZE, self.get_vdis()[disk.vdi])
        self.assertEqual([None], [
            vdi['tag'] or None for vdi in self.sheepdog.vdis()
            if vdi['name'] == disk.vdi])

    @ddt.data(*NEW)
    def test_what_cannot_be_deleted_is_not_taken_for_the_disk(self, of_disk):
        disk = self.get_disk(**of_disk)
        self._leave(disk)
        self.sheepdog.fault('hang', subcommand='vdi delete', times=None,
                            vdi=disk.vdi)
        self.assertRaises(exception.SheepdogError, self.boot, disk)

    @ddt.data(*NEW)
    def test_new_disk_of_a_template(self, of_disk):
        disk = self.get_disk(**dict(of_disk, name='disk.eph0' + (
            '.rescue' if 'name' in of_disk else '')))
        self._leave(disk)
        disk.cache(self.fetch, 'ephemeral_1_a', SIZE, context=None,
                   ephemeral_size=1, specified_fs=None)
        self.assertEqual(b'boot sector', self.read(disk))

    @ddt.data(
        {'task_state': task_states.RESIZE_FINISH},
        {'task_state': task_states.REBOOT_STARTED_HARD},
        {'task_state': task_states.REBUILD_SPAWNING, 'host': 'other'})
    def test_disk_of_the_server_stays(self, of_disk):
        disk = self.get_disk(**of_disk)
        self.create(disk)
        self.assertTrue(disk.exists())
        self.boot(disk, 4 * SIZE)
        self.assertEqual(b'found', self.read(disk, 5))
        self.assertEqual(4 * SIZE, self.get_vdis()[disk.vdi])
        self.assertEqual(0, self.fetched)

    def test_disk_that_appears_meanwhile_stays(self):
        disk = self.get_disk()
        self.assertFalse(disk.exists())
        self.create(disk)
        self.assertRaises(exception.SheepdogVDIExists, self.boot, disk)
        self.assertEqual(b'found', self.read(disk, 5))

    @ddt.data('disk', 'disk.local', 'disk.eph0')
    def test_evacuation_makes_no_disk(self, name):
        disk = self.get_disk(name, task_state=task_states.REBUILD_SPAWNING,
                             host='other')
        template = 'root' if name == 'disk' else 'ephemeral_1_a'
        kwargs = ({'image_id': self.glance['id']} if name == 'disk' else
                  {'ephemeral_size': 1})
        self.assertRaisesRegex(
            exception.DiskNotFound, disk.vdi, disk.cache, self.fetch,
            template, SIZE, context=None, **kwargs)
        self.assertEqual({}, self.get_names())

    def test_evacuation_makes_swap(self):
        disk = self.get_disk('disk.swap', host='other',
                             task_state=task_states.REBUILD_SPAWNING)
        disk.cache(self.fetch, 'swap_8', SIZE, context=None, swap_mb=8)
        self.assertEqual(b'boot sector', self.read(disk))

    def test_disk_that_a_rescue_makes_is_noted_before(self):
        disk = self.get_disk('disk.rescue')
        self.sheepdog.fault('error', subcommand='vdi clone', times=None)
        self.assertRaises(exception.SheepdogError, self.boot, disk)
        self.sheepdog.clear_faults()
        self.assertEqual(['disk.rescue'],
                         disks.State(self.instance.uuid).rescued)

    def test_resize_of_a_new_disk_times_out(self):
        """As the delete does that follows, and the server is tried again."""
        disk = self.boot_new()
        self.instance.uuid = uuidutils.generate_uuid()
        again = self.get_disk()
        self.sheepdog.fault('hang', subcommand='vdi resize')
        self.sheepdog.fault('hang', subcommand='vdi delete', hole=True,
                            vdi=again.vdi)
        self.assertRaises(exception.SheepdogError, self.boot, again)
        self.assertEqual(bytes(11), self.read(again))
        self.boot(self.get_disk(vm_state=vm_states.SHELVED_OFFLOADED))
        self.assertEqual(b'boot sector', self.read(again))
        self.assertNotEqual(disk.vdi, again.vdi)


@ddt.ddt
class TemporaryImageTestCase(_SheepdogTestCase):
    """Images that Nova deletes once the server runs leave no base."""

    TEMPORARY = (
        {'vm_state': vm_states.SHELVED_OFFLOADED},
        {'task_state': task_states.RESIZE_FINISH})

    @ddt.data(*TEMPORARY)
    def test_import(self, of_instance):
        disk = self.boot(self.get_disk(**of_instance))
        self.assertEqual(b'boot sector', self.read(disk))
        self.assertEqual(2 * SIZE, self.get_vdis()[disk.vdi])
        self.assertEqual({'disk': 1}, self.get_names())
        self.assertEqual([], self.get_files())

    @ddt.data(*TEMPORARY)
    def test_base_that_is_there_is_cloned_and_goes(self, of_instance):
        other = self.boot_new()
        self.instance.uuid = uuidutils.generate_uuid()
        disk = self.boot(self.get_disk(
            **dict({'vm_state': vm_states.ACTIVE}, **of_instance)))
        self.assertEqual(1, self.fetched)
        self.assertEqual({'disk': 2}, self.get_names())
        for vdi in other, disk:
            self.assertEqual(b'boot sector', self.read(vdi))

    def test_image_larger_than_the_disk(self):
        self.assertRaises(
            exception.FlavorDiskSmallerThanImage, self.boot,
            self.get_disk(vm_state=vm_states.SHELVED_OFFLOADED), SIZE // 2)
        self.assertEqual({}, self.get_names())

    def test_image_larger_than_a_vdi_can_be(self):
        self.patch_object(images.disk, 'get_disk_size',
                          return_value=4097 * units.Gi)
        self.assertRaisesRegex(
            exception.InvalidDiskInfo, '4097 GiB', self.boot,
            self.get_disk(vm_state=vm_states.SHELVED_OFFLOADED), None)
        self.assertEqual({}, self.get_names())

    @ddt.data('create', 'write', 'snapshot', 'clone')
    def test_failed_step_leaves_nothing(self, subcommand):
        self.sheepdog.fault(
            'error', subcommand='vdi ' + subcommand, result=0x15,
            vdi=self.instance.uuid + '*')
        self.assertRaises(
            exception.SheepdogError, self.boot,
            self.get_disk(vm_state=vm_states.SHELVED_OFFLOADED))
        self.assertEqual({}, self.get_names())
        self.assertEqual([], self.get_files())

    def test_import_after_one_that_was_killed(self):
        scratch = '%s_scratch' % self.instance.uuid
        libvirt_utils.create_sheepdog_vdi(scratch, units.Mi)
        libvirt_utils.snapshot_sheepdog_vdi(scratch, 'nova-snapshot')
        disk = self.boot(self.get_disk(vm_state=vm_states.SHELVED_OFFLOADED))
        self.assertEqual({'disk': 1}, self.get_names())
        self.assertEqual(b'boot sector', self.read(disk))

    def test_cleanup_that_fails_too_does_not_hide_the_reason(self):
        def fail(*args, **kwargs):
            self.sheepdog.kill()
            raise ZeroDivisionError()

        with mock.patch.object(
                libvirt_utils, 'snapshot_sheepdog_vdi', side_effect=fail):
            self.assertRaises(
                ZeroDivisionError, self.boot,
                self.get_disk(vm_state=vm_states.SHELVED_OFFLOADED))

    def test_import_file_overrides(self):
        disk = self.get_disk('disk.config')
        self.create(disk)
        path = os.path.join(CONF.instances_path, 'disk.config')
        with open(path, 'wb') as drive:
            drive.write(b'config drive'.ljust(units.Mi, b'\0'))
        disk.import_file(self.instance, path, 'disk.config')
        self.assertEqual({disk.vdi: units.Mi}, self.get_vdis())
        self.assertEqual(b'config driv', self.read(disk))

    def test_config_drive_of_a_rescue_is_noted(self):
        path = os.path.join(CONF.instances_path, 'disk.config.rescue')
        with open(path, 'wb') as drive:
            drive.truncate(units.Mi)
        self.get_disk('disk.config.rescue').import_file(
            self.instance, path, 'disk.config.rescue')
        self.assertEqual(['disk.config.rescue'],
                         disks.State(self.instance.uuid).rescued)


@ddt.ddt
class CopyTestCase(_SheepdogTestCase):
    """What qemu-img copies in and out, by tgtd."""

    IS_REAL = True

    def unshelve(self, size=None):
        return self.boot(
            self.get_disk(vm_state=vm_states.SHELVED_OFFLOADED), size)

    def test_import(self):
        disk = self.unshelve(2 * SIZE)
        self.assertEqual(self.DATA.ljust(2 * SIZE, b'\0'),
                         self.read(disk, 2 * SIZE))
        self.assertEqual({disk.vdi: 2 * SIZE}, self.get_vdis())
        self.assertEqual({}, targets.list_targets())

    def test_import_writes_no_more_than_the_data(self):
        self.unshelve(units.Gi)
        # two pieces of 4 KiB hold data
        self.assertEqual(
            2 * 4096, self.sheepdog.stats()['clients']['tgt'][
                'bytes_written'])

    def test_failed_copy_leaves_nothing(self):
        self.sheepdog.fault('error', subcommand='tgt', operation='WRITE_OBJ',
                            times=None)
        self.sheepdog.fault('error', subcommand='tgt', times=None,
                            operation='CREATE_AND_WRITE_OBJ')
        self.assertRaises(exception.SheepdogError, self.unshelve)
        self.assertEqual({}, self.get_vdis())
        self.assertEqual({}, targets.list_targets())
        self.assertEqual([], self.get_files())

    @ddt.data('raw', 'qcow2')
    def test_snapshot_extract(self, out_format):
        disk = self.unshelve(64 * units.Mi)
        # as a crash would leave it
        libvirt_utils.snapshot_sheepdog_vdi(disk.vdi, 'nova-snapshot')
        target = os.path.join(CONF.instances_path, 'target')
        # Nova has two objects for it.
        imagebackend.Sheepdog(self.instance, path=disk.path).snapshot_extract(
            target, out_format)
        # The scratch VDI becomes the base of the image, or goes.
        self.assertEqual({'disk': 1, 'scratch': 1}, self.get_names())
        self.assertEqual({}, targets.list_targets())
        raw = os.path.join(CONF.instances_path, 'raw')
        subprocess.run(['qemu-img', 'convert', '-f', out_format, '-O', 'raw',
                        target, raw], check=True)
        with open(raw, 'rb') as copy:
            self.assertEqual(self.DATA.ljust(64 * units.Mi, b'\0'),
                             copy.read())
        self.assertLess(os.stat(target).st_blocks * 512, units.Mi)

    def test_snapshot_extract_of_frozen_file_systems(self):
        disk = self.unshelve()

        @contextlib.contextmanager
        def frozen():
            self.write(disk.vdi, b'frozen')
            yield
            self.write(disk.vdi, b'thawed')

        target = os.path.join(CONF.instances_path, 'target')
        disk.snapshot_extract(target, 'raw', frozen=frozen())
        with open(target, 'rb') as copy:
            self.assertEqual(b'frozen', copy.read(6))

    def test_failed_snapshot_extract_leaves_the_disk_alone(self):
        disk = self.unshelve()
        self.assertRaises(
            exception.SheepdogError, disk.snapshot_extract,
            os.path.join(CONF.instances_path, 'no/such/target'), 'raw')
        self.assertEqual({'disk': 1, 'scratch': 1}, self.get_names())
        self.assertEqual(b'boot sector', self.read(disk))


class SnapshotTestCase(_SheepdogTestCase):

    def test_disk_that_is_missing(self):
        disk = self.get_disk()
        self.assertRaisesRegex(exception.DiskNotFound, disk.vdi,
                               disk.snapshot_extract, '/target', 'raw')

    def test_no_room(self):
        disk = self.boot_new()
        self.patch_object(self.host, 'check_room',
                          side_effect=exception.SheepdogError(reason='full'))
        self.assertRaises(exception.SheepdogError, disk.snapshot_extract,
                          '/target', 'raw')
        self.assertNotIn('disk@', self.get_names())

    def test_snapshot_of_the_disk_goes_when_the_clone_fails(self):
        disk = self.boot_new()
        self.sheepdog.fault('error', subcommand='vdi clone', result=0x15)
        self.assertRaises(exception.SheepdogError, disk.snapshot_extract,
                          '/target', 'raw')
        self.assertEqual(dict(BASE, disk=1), self.get_names())


class ConfigurationTestCase(_SheepdogTestCase):

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
                <host name="127.0.0.1" port="3260"/>
              </source>
              <target bus="virtio" dev="vda"/>
              <iotune>
                <total_iops_sec>100</total_iops_sec>
              </iotune>
              <boot order="1"/>
            </disk>""" % self.instance.uuid,
            image.libvirt_info('none', {'quota:disk_total_iops_sec': 100},
                               boot_order='1').to_xml())

    def test_libvirt_info_native(self):
        self.flags(hw_disk_discard='unmap', group='libvirt')
        self.host.targets.transport = 'native'
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

    def test_by_libvirt_path(self):
        image = imagebackend.Backend(False).by_libvirt_path(
            self.instance, 'sheepdog:0123_disk', image_type='sheepdog')
        self.assertEqual('0123_disk', image.vdi)

    def test_get_model(self):
        self.assertRaisesRegex(exception.Invalid, 'inject_partition',
                               self.get_disk().get_model, None)

    def test_shared_block_storage(self):
        self.assertTrue(imagebackend.Sheepdog.is_shared_block_storage())
        self.assertFalse(imagebackend.Sheepdog.is_file_in_instance_path())


class SheepdogTestCase(test_imagebackend._ImageTestCase, _SheepdogTestCase):
    """What Nova expects of every backend."""

    SIZE = 8 * units.Mi

    def setUp(self):
        self.image_class = imagebackend.Sheepdog
        super().setUp()
        self.TEMPLATE = 'swap_8'
        self.TEMPLATE_PATH = os.path.join(self.TEMPLATE_DIR, self.TEMPLATE)

    def test_prealloc_image(self):
        # Sheepdog has no thing such as fallocate.
        self.flags(preallocate_images='space')
        image = self.image_class(self.INSTANCE, self.NAME)
        with mock.patch.object(imagebackend.processutils, 'trycmd') as trycmd:
            image.cache(self.fetch, self.TEMPLATE, self.SIZE)
        trycmd.assert_not_called()

    def test_cache(self):
        image = self.image_class(self.INSTANCE, self.NAME)
        image.cache(self.fetch, self.TEMPLATE, self.SIZE)
        self.assertTrue(image.exists())
        # The cluster has it, and not the host.
        self.assertEqual([], os.listdir(self.TEMPLATE_DIR))

    def test_cache_template_exists(self):
        self.image_class(self.INSTANCE, self.NAME).cache(
            self.fetch, self.TEMPLATE, self.SIZE)
        fetch = mock.Mock()
        image = self.image_class(self.INSTANCE, 'other')
        image.cache(fetch, self.TEMPLATE, self.SIZE)
        fetch.assert_not_called()
        self.assertTrue(image.exists())

    def test_cache_image_exists(self):
        image = self.image_class(self.INSTANCE, self.NAME)
        image.cache(self.fetch, self.TEMPLATE, self.SIZE)
        fetch = mock.Mock()
        image.cache(fetch, self.TEMPLATE, self.SIZE)
        fetch.assert_not_called()
