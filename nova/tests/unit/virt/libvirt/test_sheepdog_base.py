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

import os
import subprocess
import sys
import threading
import time
from unittest import mock

import ddt
import fixtures
from oslo_utils import units
from oslo_utils import uuidutils

from nova.compute import task_states
from nova.compute import vm_states
import nova.conf
from nova import exception
from nova import objects
from nova import test
from nova.tests.unit.virt.libvirt import sheepdog_base as base_test
from nova.virt.libvirt import imagebackend
from nova.virt.libvirt import sheepdog_base
from nova.virt.libvirt.storage import tgt
from nova.virt.libvirt import utils as libvirt_utils

CONF = nova.conf.CONF
# Sheepdog's number for it
NO_OBJECT = 0x02


class Killed(BaseException):
    """Ends a thread of a nova-compute that is dead."""


class _BaseTestCase(base_test.SheepdogTestMixin, test.NoDBTestCase):

    SIZE = 8 * units.Mi

    def setUp(self):
        super().setUp()
        self.start_sheepdog()
        self.start_tgtd()
        self.flags(instances_path=self.useFixture(fixtures.TempDir()).path)
        self.patch_object(sheepdog_base, 'RENEWAL', new=0.1)
        # Seconds that all clocks are fast, and by which they are put forward
        # when somebody waits for the holder of a lease
        self.fast = 0
        self.step = 1
        self.patch_object(sheepdog_base, 'time', new=mock.Mock(
            time=lambda: time.time() + self.fast,
            monotonic=lambda: time.monotonic() + self.fast,
            sleep=self._sleep))
        # Each test plays several hosts.
        self.patch_object(sheepdog_base, 'utils', new=mock.Mock(
            synchronized=lambda name: lambda function: function))
        self.patch_object(sheepdog_base, '_ageing',
                          new=sheepdog_base._Ageing())
        self.image = {
            'id': uuidutils.generate_uuid(), 'size': 1000, 'status': 'active',
            'checksum': 'a' * 32, 'disk_format': 'raw', 'properties': {
                'os_hash_algo': 'sha512', 'os_hash_value': 'b' * 128}}
        self.patch_object(sheepdog_base.IMAGE_API, 'get',
                          new=lambda context, image_id: self.image)
        self.fetched = 0

    def _sleep(self, seconds):
        time.sleep(0.02)
        self.fast += self.step

    def fetch(self, target, **kwargs):
        self.fetched += 1
        with open(target, 'wb') as image:
            image.write(b'boot sector')
            image.truncate(self.SIZE)

    def make_disk(self, name='disk', vm_state=vm_states.BUILDING):
        return imagebackend.Sheepdog(objects.Instance(
            id=1, uuid=uuidutils.generate_uuid(), vm_state=vm_state,
            task_state=None, migration_context=None), name)

    def boot(self, disk=None, size=16 * units.Mi, trusted_certs=None):
        """Make the root disk of a server as Nova does it.

        :returns: the imagebackend.Sheepdog
        """
        disk = disk or self.make_disk()
        disk.cache(self.fetch, 'root', size, context=None,
                   image_id=self.image['id'], trusted_certs=trusted_certs)
        return disk

    def assert_complete(self, disk):
        self.assertEqual(b'boot sector', self.dog(
            'vdi', 'read', disk.vdi, '0', '11'))

    def names(self):
        """Count the VDIs and snapshots by what their names mean."""
        kinds = {}
        for vdi in self.sheepdog.vdis():
            kind = vdi['name'].partition('_')[2].partition('.')[0]
            kind += '@' * vdi['snapshot']
            kinds[kind] = kinds.get(kind, 0) + 1
        return kinds

    def local_files(self):
        # locks aside
        return [name for _directory, _directories, files in
                os.walk(CONF.instances_path) for name in files
                if not name.startswith('nova-')]

    def calls_of(self, function, *args, **kwargs):
        """Return how often a function calls each subcommand of dog."""
        self.sheepdog.reset_stats()
        function(*args, **kwargs)
        return self.sheepdog.stats()['calls']

    def start_host(self, function, *args, **kwargs):
        """Have a thread do what another host would.

        :returns: the thread
        """
        thread = threading.Thread(
            target=function, args=args, kwargs=kwargs, daemon=True)
        thread.start()
        return thread

    def stop_in(self, owner, name, when='after'):
        """Have the first call of a function stop.

        :returns: event that says it has, and event that lets it go on, or
            end where it has an attribute ``kill``
        """
        function = getattr(owner, name)
        stopped = threading.Event()
        go_on = threading.Event()
        go_on.kill = False
        self.addCleanup(go_on.set)

        def stop(*args, **kwargs):
            first = not stopped.is_set()
            if first and when == 'before':
                stopped.set()
                go_on.wait()
            result = function(*args, **kwargs)
            if first and when == 'after':
                stopped.set()
                go_on.wait()
            if first and go_on.kill:
                raise Killed()
            return result

        patcher = mock.patch.object(owner, name, stop)
        patcher.start()
        self.addCleanup(patcher.stop)
        return stopped, go_on


BASE = {'base': 1, 'base@': 1, 'record': 1}


@ddt.ddt
class SheepdogBaseTestCase(_BaseTestCase):

    def test_first_boot_imports_and_second_clones(self):
        first = self.boot()
        self.assertEqual(dict(BASE, disk=1), self.names())
        self.assertEqual([], self.local_files())
        self.assertEqual({}, tgt._get_targets())
        second = self.make_disk()
        self.assertEqual(
            {'vdi getattr': 1, 'vdi clone': 1, 'vdi resize': 1},
            self.calls_of(self.boot, second))
        self.assertEqual(1, self.fetched)
        for disk in first, second:
            self.assert_complete(disk)
            self.assertEqual(16 * units.Mi, {
                vdi['name']: vdi['size']
                for vdi in self.sheepdog.vdis()}[disk.vdi])

    def test_disk_of_the_size_of_the_image(self):
        self.boot(size=None)
        self.assertEqual(
            {'vdi getattr': 1, 'vdi clone': 1},
            self.calls_of(self.boot, size=None))

    def test_disk_that_is_there_needs_no_image(self):
        disk = self.boot()
        self.image = None
        disk._instance.vm_state = vm_states.ACTIVE
        again = imagebackend.Sheepdog(disk._instance, 'disk')
        again.cache(self.fetch, 'root', 32 * units.Mi, context=None,
                    image_id=uuidutils.generate_uuid())
        self.assertEqual(1, self.fetched)

    def test_disk_that_a_killed_build_left(self):
        disk = self.boot()
        for imported in True, False:
            if imported:
                sheepdog_base.Base.of_image(self.image).drop()
            again = imagebackend.Sheepdog(disk._instance, 'disk')
            self.assertFalse(again.exists())
            self.boot(again, size=32 * units.Mi)
            self.assertTrue(again.exists())
            self.assertEqual(dict(BASE, disk=1), self.names())
            self.assert_complete(again)

    @ddt.data(0, 1)
    def test_image_larger_than_the_disk(self, boots):
        for _boot in range(boots):
            self.boot()
        error = self.assertRaises(exception.FlavorDiskSmallerThanImage,
                                  self.boot, size=4 * units.Mi)
        self.assertIn(str(self.SIZE), str(error))
        self.assertEqual(boots, self.names().get('disk', 0))
        # Flavors with a larger disk can have it.
        self.boot()
        self.assertEqual(1, self.fetched)

    def test_failed_resize_leaves_no_disk(self):
        self.boot()
        self.patch_object(
            libvirt_utils, 'resize_sheepdog_vdi',
            side_effect=exception.SheepdogError(
                gateway='', command='', reason='full'))
        self.assertRaises(exception.SheepdogError, self.boot)
        self.assertEqual(1, self.names()['disk'])

    @ddt.data(
        {'size': 1001}, {'checksum': 'c' * 32}, {'disk_format': 'iso'},
        {'properties': {'os_hash_algo': 'sha512', 'os_hash_value': 'd'}})
    def test_other_data_is_another_base(self, change):
        before = sheepdog_base.Base.of_image(self.image)
        self.assertEqual(
            before.vdi, sheepdog_base.Base.of_image(
                dict(self.image, name='renamed')).vdi)
        after = sheepdog_base.Base.of_image(dict(self.image, **change))
        self.assertNotEqual(before.vdi, after.vdi)
        self.assertEqual(before.key, after.key)

    def test_more_checks_are_another_base(self):
        certificates = objects.TrustedCerts(ids=['one'])
        self.boot()
        self.boot(trusted_certs=certificates)
        self.boot(trusted_certs=certificates)
        self.assertEqual(2, self.fetched)
        self.boot(trusted_certs=objects.TrustedCerts(ids=['two']))
        self.assertEqual(3, self.fetched)
        self.flags(group='glance', verify_glance_signatures=True)
        self.boot()
        self.assertEqual(4, self.fetched)
        # What the signature is may be changed in Glance.
        self.image['properties']['img_signature'] = 'other'
        self.boot()
        self.assertEqual(5, self.fetched)

    def test_templates(self):
        def make(name, template, **kwargs):
            disk = self.make_disk(name)
            disk.cache(self.fetch, template, self.SIZE, context=None, **kwargs)
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

    def test_failed_fetch_leaves_nothing(self):
        def fail(target, **kwargs):
            self.fetch(target)
            raise exception.ImageUnacceptable(image_id='', reason='')

        disk = self.make_disk()
        self.assertRaises(
            exception.ImageUnacceptable, disk.cache, fail, 'root', None,
            context=None, image_id=self.image['id'])
        self.assertEqual({}, self.names())
        self.assertEqual([], self.local_files())

    # Steps of an import, in their order, how often each comes, and whether
    # the base is complete when the last one is over.
    STEPS = (
        (sheepdog_base._Lease, '_write'),
        (libvirt_utils, 'create_sheepdog_vdi'),
        (tgt, 'export'),
        (libvirt_utils, 'copy_with_qemu_img'),
        (libvirt_utils, 'snapshot_sheepdog_vdi'),
        (sheepdog_base.Base, '_remove'),
        (libvirt_utils, 'clone_sheepdog_vdi'),
        (sheepdog_base.Base, '_write_record'),
        (sheepdog_base.Base, '_make'),
        (sheepdog_base.Base, '_clean_up'),
    )

    @ddt.data(*STEPS)
    @ddt.unpack
    def test_failed_step_leaves_nothing(self, owner, name):
        function = getattr(owner, name)
        has_failed = []

        def fail(*args, **kwargs):
            result = function(*args, **kwargs)
            if not has_failed and (
                    name != 'clone_sheepdog_vdi' or 'import' in args[0]):
                has_failed.append(True)
                raise exception.TgtError(command='', reason='')
            return result

        with mock.patch.object(owner, name, fail):
            self.assertRaises(exception.TgtError, self.boot)
        # It may take the place of one who took the lease and does not know.
        self.step = 40
        self.assert_complete(self.boot())
        self.assertEqual({'disk': 1, 'base': 1, 'base@': 1, 'record': 1},
                         self.names())
        self.assertEqual([], self.local_files())

    def _age(self):
        """Do as many passes as it takes, and find nothing but what lasts."""
        for _pass in range(2):
            sheepdog_base.delete_unused()
            self.fast += sheepdog_base.get_lease_time()

    def _kill_importer_in(self, owner, name):
        self.step = 40
        stopped, go_on = self.stop_in(owner, name)
        go_on.kill = True
        with mock.patch.object(sheepdog_base._Lease, '_keep', lambda lease:
                               None):
            self.start_host(self.boot)
            self.wait_until(stopped.is_set)

    @ddt.data(*STEPS)
    @ddt.unpack
    def test_importer_is_killed(self, owner, name):
        self._kill_importer_in(owner, name)
        disk = self.boot()
        self.assert_complete(disk)
        self.assertLessEqual(self.fetched, 2)
        self._age()
        names = self.names()
        self.assertLessEqual(names.pop('disk'), 2)
        self.assertEqual(dict(BASE, lease=1), names)

    @ddt.data(*STEPS)
    @ddt.unpack
    def test_importer_is_killed_and_started_again(self, owner, name):
        self._kill_importer_in(owner, name)
        self.assertNotEqual([], self.local_files())
        for thread in sheepdog_base.delete_half_made():
            thread.join(60)
        self.assertEqual({}, self.names())
        self.assertEqual([], self.local_files())

    def _start_importer(self):
        """Have a process boot the image, as another host would."""
        directory = self.useFixture(fixtures.TempDir()).path
        configuration = os.path.join(directory, 'nova.conf')
        with open(configuration, 'w') as stream:
            stream.write('[DEFAULT]\nhost = %s\ninstances_path = %s\n'
                         '[libvirt]\n' % (CONF.host, CONF.instances_path))
            stream.writelines(
                '%s = %s\n' % (name, getattr(CONF.libvirt, name))
                for name in ('images_type', 'images_sheepdog_host',
                             'images_sheepdog_port', 'images_sheepdog_portal',
                             'images_sheepdog_timeout'))
        path = os.path.join(directory, 'image')
        self.fetch(path)
        base = sheepdog_base.Base.of_image(self.image)
        importer = subprocess.Popen(
            [sys.executable, '-W', 'ignore', '-m',
             'nova.tests.unit.virt.libvirt.sheepdog_importer', configuration,
             self.tgtd.control_socket, path, base.key, base.digest,
             uuidutils.generate_uuid() + '_disk'])
        self.addCleanup(importer.wait)
        self.addCleanup(importer.kill)
        return importer

    def test_process_of_the_importer_is_killed(self):
        """The call of dog that it was in outlives it."""
        self.step = 10
        self.sheepdog.fault('hang', subcommand='vdi snapshot',
                            operation='NEW_VDI')
        importer = self._start_importer()
        self.wait_until(lambda: 'vdi snapshot' in self.sheepdog.stats()[
            'calls'])
        importer.kill()
        importer.wait()
        self.assertEqual({'import': 1, 'lease': 1}, self.names())

        disk = self.boot()
        self.assertLess(self.fast,
                        sheepdog_base.get_lease_time() + 2 * self.step)
        self.sheepdog.clear_faults()
        self.wait_until(lambda: 'import@' in self.names())
        self.assertEqual(dict(BASE, **{'disk': 1, 'import': 1, 'import@': 1}),
                         self.names())
        for thread in sheepdog_base.delete_half_made():
            thread.join(60)
        self.assertEqual(dict(BASE, disk=1), self.names())
        self.assertEqual([], self.local_files())
        self.assert_complete(disk)

    def test_importer_is_started_again_when_others_have_taken_over(self):
        self._kill_importer_in(libvirt_utils, 'copy_with_qemu_img')
        self.boot()
        for thread in sheepdog_base.delete_half_made():
            thread.join(60)
        self.assertEqual(dict(BASE, disk=1), self.names())
        self.assertEqual([], self.local_files())

    def test_hosts_at_once_import_once(self):
        disks = [self.make_disk() for _host in range(8)]
        hosts = [self.start_host(self.boot, disk) for disk in disks]
        for host in hosts:
            host.join(60)
        self.assertEqual(1, self.fetched)
        for disk in disks:
            self.assert_complete(disk)
        self.assertEqual(dict(BASE, disk=8), self.names())

    def test_host_that_was_thought_dead(self):
        self.step = 40
        stopped, go_on = self.stop_in(libvirt_utils, 'copy_with_qemu_img')
        late = self.make_disk()
        with mock.patch.object(sheepdog_base._Lease, '_keep',
                               lambda lease: None):
            host = self.start_host(self.boot, late)
            self.wait_until(stopped.is_set)
        self.assert_complete(self.boot())
        base = [vdi for vdi in self.sheepdog.vdis() if 'base' in vdi['name']]
        go_on.set()
        host.join(60)
        # It has the base that another one made.
        self.assert_complete(late)
        self.assertEqual(2, self.fetched)
        self.assertEqual(base, [vdi for vdi in self.sheepdog.vdis()
                                if 'base' in vdi['name']])

    def test_holder_notices_its_successor(self):
        with sheepdog_base._Lease.take(self.image['id']) as lease:
            self.assertIsNone(sheepdog_base._Lease.take(self.image['id']))
            lease.check()
            with sheepdog_base._Lease.take(self.image['id'], 1):
                self.wait_until(lambda: lease.is_lost)
                self.assertRaises(exception.SheepdogError, lease.check)
        self.assertEqual({}, {name: count for name, count in
                              self.names().items() if name != 'lease'})

    def test_lease_is_given_back_while_it_is_read(self):
        sheepdog_base._Lease.take(self.image['id'])

        def is_needless():
            # what a read says that comes amid a delete
            self.sheepdog.fault('error', subcommand='vdi read',
                                operation='READ_OBJ', result=NO_OBJECT)
            looks.append(True)
            return len(looks) > 1

        looks = []
        self.assertIsNone(
            sheepdog_base._Lease.wait(self.image['id'], is_needless))

    def test_lease_is_kept_for_as_long_as_it_takes(self):
        self.step = 4
        stopped, go_on = self.stop_in(libvirt_utils, 'copy_with_qemu_img')
        hosts = [self.start_host(self.boot) for _host in range(2)]
        self.wait_until(stopped.is_set)
        self.wait_until(
            lambda: self.fast > 1.5 * sheepdog_base.get_lease_time())
        go_on.set()
        for host in hosts:
            host.join(60)
        self.assertEqual(1, self.fetched)

    def test_base_that_goes_while_it_is_cloned(self):
        self.boot()
        base = sheepdog_base.Base.of_image(self.image)
        clone = libvirt_utils.clone_sheepdog_vdi

        def clone_and_drop(vdi, *args):
            with mock.patch.object(libvirt_utils, 'clone_sheepdog_vdi',
                                   clone):
                clone(vdi, *args)
                if vdi == base.vdi and not dropped:
                    dropped.append(True)
                    base.drop()

        dropped = []
        with mock.patch.object(libvirt_utils, 'clone_sheepdog_vdi',
                               clone_and_drop):
            disk = self.boot()
        self.assertEqual([True], dropped)
        self.assertEqual(2, self.fetched)
        self.assert_complete(disk)

    @ddt.data('base', 'base@')
    def test_base_that_was_deleted_by_half(self, part):
        self.boot()
        base = sheepdog_base.Base.of_image(self.image)
        libvirt_utils.delete_sheepdog_vdi(
            base.vdi, sheepdog_base.TAG if part == 'base@' else None)
        self.assert_complete(self.boot())
        self.assertEqual(2, self.fetched)
        self.assertEqual(dict(BASE, disk=2), self.names())

    def test_cache_image(self):
        fetch = self.patch_object(
            libvirt_utils, 'fetch_image',
            new=lambda context, target, image_id: self.fetch(target))
        self.assertIsNotNone(fetch)
        self.assertTrue(imagebackend.Sheepdog.cache_image(
            None, self.image['id']))
        self.assertFalse(imagebackend.Sheepdog.cache_image(
            None, self.image['id']))
        self.boot()
        self.assertEqual(1, self.fetched)
        self.assertEqual([], self.local_files())

    def test_shelved_image_leaves_no_base(self):
        disk = self.boot(self.make_disk(
            vm_state=vm_states.SHELVED_OFFLOADED))
        disk.flatten()
        self.assert_complete(disk)
        self.assertEqual({'disk': 1}, self.names())

    def test_base_of_a_shelved_image_goes_at_once(self):
        self.boot()
        disk = self.boot()
        disk.flatten()
        self.assertEqual(dict(BASE, disk=2), self.names())
        disk = self.boot(self.make_disk(
            vm_state=vm_states.SHELVED_OFFLOADED))
        disk.flatten()
        self.assertEqual(1, self.fetched)
        self.assert_complete(disk)
        self.assertEqual({'disk': 3}, self.names())

    def test_image_of_a_resize_to_another_cell_has_no_base(self):
        disk = self.make_disk(vm_state=vm_states.ACTIVE)
        disk._instance.task_state = task_states.RESIZE_FINISH
        self.boot(disk)
        self.assert_complete(disk)
        self.assertEqual({'disk': 1}, self.names())

    def test_image_that_is_copied_from_another_host(self):
        disk = self.make_disk()
        disk.cache(self.fetch, 'root', 16 * units.Mi)
        self.assert_complete(disk)
        self.assertEqual({'disk': 1}, self.names())
        self.assertEqual(['root'], self.local_files())


@ddt.ddt
class SheepdogSnapshotBaseTestCase(_BaseTestCase):
    """What createImage leaves."""

    def setUp(self):
        super().setUp()
        self.disk = self.boot(size=None)
        self.original = self.image
        self.image = dict(self.image, id=uuidutils.generate_uuid())
        self.current = self.disk._instance
        self.patch_object(objects.Instance, 'get_by_uuid',
                          new=lambda *args: self.current)
        self.target = os.path.join(CONF.instances_path, 'target')

    def _extract(self, out_format='raw'):
        self.assertRaises(
            NotImplementedError, self.disk.direct_snapshot, None, 'name',
            out_format, self.image['id'], self.original['id'])
        self.disk.cleanup_direct_snapshot(None, also_destroy_volume=True,
                                          ignore_errors=True)
        # Nova has two objects for it.
        imagebackend.Sheepdog(
            self.disk._instance, path=self.disk.path).snapshot_extract(
                self.target, out_format)

    @ddt.data('raw', 'qcow2')
    def test_first_boot_is_a_clone(self, out_format):
        self._extract(out_format)
        self.assertEqual(dict(BASE, disk=1, scratch=1), self.names())
        self.disk.publish_snapshot(None)
        self.assertEqual(
            {'disk': 1, 'base': 2, 'base@': 2, 'record': 2}, self.names())
        self.assert_complete(self.boot())
        self.assertEqual(1, self.fetched)
        self.assertEqual(['target'], self.local_files())

    def test_boot_that_wants_a_signature_imports(self):
        self.flags(group='glance', verify_glance_signatures=True)
        self._extract()
        self.disk.publish_snapshot(None)
        self.boot()
        self.assertEqual(2, self.fetched)

    def test_failed_upload_leaves_nothing(self):
        self._extract()
        self.disk.cleanup_direct_snapshot(None, also_destroy_volume=True,
                                          ignore_errors=True)
        self.disk.publish_snapshot(None)
        self.assertEqual(dict(BASE, disk=1), self.names())

    def _assert_no_base(self):
        self.disk.publish_snapshot(None)
        self.assertEqual(dict(BASE, disk=1), self.names())

    def test_image_that_is_not_active(self):
        self._extract()
        self.image['status'] = 'importing'
        self._assert_no_base()

    def test_instance_that_is_being_deleted(self):
        self._extract()
        self.current = objects.Instance(task_state=task_states.DELETING)
        self._assert_no_base()

    def test_resize_to_another_cell(self):
        # The cluster there is another one.
        self.current.task_state = task_states.RESIZE_MIGRATING
        self._extract()
        self._assert_no_base()

    @ddt.data('clone_sheepdog_vdi', 'snapshot_sheepdog_vdi',
              'create_sheepdog_vdi')
    def test_failed_step_leaves_nothing(self, name):
        self._extract()
        with mock.patch.object(
                libvirt_utils, name, side_effect=exception.SheepdogError(
                    gateway='', command='', reason='full')):
            self._assert_no_base()

    @ddt.data('raw', 'qcow2')
    def test_disk_that_looks_like_another_format(self, out_format):
        # A boot of that image would be refused.
        self.sheepdog.run('vdi', 'write', self.disk.vdi, '0', '512',
                          stdin=b'QFI\xfb\x00\x00\x00\x03' + bytes(504))
        self._extract(out_format)
        self._assert_no_base()


class SheepdogAgeingTestCase(_BaseTestCase):

    def setUp(self):
        super().setUp()
        self.flags(group='image_cache',
                   remove_unused_original_minimum_age_seconds=1000)

    def test_unused_base(self):
        disk = self.boot()
        self.fast += 900
        sheepdog_base.delete_unused()
        self.assertEqual(dict(BASE, disk=1, lease=1), self.names())
        self.fast += 200
        sheepdog_base.delete_unused()
        self.assertEqual({'disk': 1, 'lease': 1}, self.names())
        self.assert_complete(disk)

    def test_use_is_noted(self):
        self.boot()
        self.fast += 900
        # long after the last note
        sheepdog_base.Base._noted.clear()
        self.boot()
        self.fast += 200
        sheepdog_base.delete_unused()
        self.assertEqual(dict(BASE, disk=2, lease=1), self.names())

    def test_bases_are_kept_where_nova_is_told_so(self):
        self.flags(group='image_cache', remove_unused_base_images=False)
        self.boot()
        self.fast += 2000
        sheepdog_base.delete_unused()
        self.assertEqual(dict(BASE, disk=1, lease=1), self.names())

    def test_other_vdis_stay(self):
        for name in ('volume', 'a b', self.image['id'] + '_disk',
                     self.image['id'] + '_base', 'x_base.0123'):
            libvirt_utils.create_sheepdog_vdi(name, units.Mi)
        libvirt_utils.snapshot_sheepdog_vdi('volume', 'nova-base')
        before = self.sheepdog.vdis()
        sheepdog_base.delete_unused()
        self.assertEqual(before, [vdi for vdi in self.sheepdog.vdis()
                                  if '_lease' not in vdi['name']])

    def test_what_is_being_made_stays(self):
        stopped, go_on = self.stop_in(libvirt_utils, 'snapshot_sheepdog_vdi')
        host = self.start_host(self.boot)
        self.wait_until(stopped.is_set)
        for _pass in range(3):
            sheepdog_base.delete_unused()
        go_on.set()
        host.join(60)
        self.assertEqual(1, self.fetched)
        self.assertEqual(dict(BASE, disk=1, lease=1), self.names())

    def test_one_host_does_it(self):
        self.boot()
        sheepdog_base.delete_unused()
        self.fast += 2000
        self.flags(host='other')
        other = sheepdog_base._Ageing()
        for _pass in range(2):
            self.assertNotIn('vdi list', self.calls_of(other.run))
        self.assertEqual(1, self.names()['base'])
        # until it is dead
        self.fast += 10000
        self.assertIn('vdi list', self.calls_of(other.run))
        self.assertNotIn('base', self.names())
        # That one it is from then on.
        self.assertIn('vdi list', self.calls_of(other.run))

    def test_cluster_that_is_away(self):
        self.sheepdog.kill()
        self.assertRaises(exception.SheepdogError,
                          sheepdog_base.delete_unused)
