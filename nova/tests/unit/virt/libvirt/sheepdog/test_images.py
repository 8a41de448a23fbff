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
import os
import subprocess
import sys
import threading
from unittest import mock

import ddt
import fixtures
from oslo_utils import units
from oslo_utils import uuidutils

from nova.compute import task_states
import nova.conf
from nova import context
from nova import exception
from nova import objects
from nova import test
from nova.tests.unit.virt.libvirt.sheepdog import base as base_test
from nova.virt import images as virt_images
from nova.virt.libvirt.sheepdog import images
from nova.virt.libvirt.sheepdog import lease
from nova.virt.libvirt.sheepdog import rootwrap
from nova.virt.libvirt import utils as libvirt_utils

CONF = nova.conf.CONF
# What there is of an image that can be booted from.
BASE = {'base': 1, 'base@': 1, 'record': 1}


class Killed(BaseException):
    """Ends a thread of a nova-compute that is dead."""


class _ImagesTestCase(base_test.SheepdogTestMixin, test.NoDBTestCase):

    SIZE = 8 * units.Mi

    def setUp(self):
        super().setUp()
        self.start_cluster()
        self.set_clock(images, lease)
        # Each thread of a test is another host.
        self.lockutils = self.patch_object(images, 'lockutils')
        self.lockutils.internal_lock = lambda name: threading.Lock()
        self.images = self.make_images()
        self.image = self.make_image()
        self.patch_object(images.IMAGE_API, 'get',
                          new=lambda context, image_id: self.image)
        self.patch_object(libvirt_utils, 'fetch_image', new=self.fetch)
        self.fetched = 0

    def make_images(self):
        """Make what a host has of images."""
        return images.Images(self.make_transfer())

    @staticmethod
    def make_image():
        """Make what Glance says of an image."""
        return {
            'id': uuidutils.generate_uuid(), 'size': 1000, 'status': 'active',
            'checksum': 'a' * 32, 'disk_format': 'raw', 'properties': {
                'os_hash_algo': 'sha512', 'os_hash_value': 'b' * 128}}

    def fetch(self, context, target, image_id, trusted_certs=None):
        self.fetched += 1
        with open(target, 'wb') as image:
            image.write(b'boot sector')
            image.truncate(self.SIZE)

    def get_base(self, host=None, trusted_certs=None):
        return images.ImageBase(host or self.images, None, self.image['id'],
                                trusted_certs)

    def boot(self, host=None, size=16 * units.Mi, trusted_certs=None):
        """Make the root disk of a server, as the image backend does.

        :param host: the images.Images of the host
        :returns: name of the VDI
        """
        base = self.get_base(host, trusted_certs)
        vdi = libvirt_utils.get_sheepdog_vdi(uuidutils.generate_uuid(), 'disk')
        for _attempt in range(images.ATTEMPTS):
            if base.clone(vdi, size):
                return vdi
            base.provide()
        self.fail('There is no base as soon as it is made.')

    def assert_complete(self, vdi):
        self.assertEqual(b'boot sector', self.dog(
            'vdi', 'read', vdi, '0', '11'))

    def get_names(self):
        """Count the VDIs and snapshots by what their names mean."""
        kinds = {}
        for vdi in self.sheepdog.vdis():
            kind = vdi['name'].partition('_')[2].partition('.')[0]
            kind += '@' * vdi['snapshot']
            kinds[kind] = kinds.get(kind, 0) + 1
        return kinds

    def get_files(self):
        """Return the names of files that imports need, and that are notes."""
        return os.listdir(lease.get_directory())

    def get_calls(self, function, *args, **kwargs):
        """Return how often a function calls each subcommand of dog."""
        self.sheepdog.reset_stats()
        function(*args, **kwargs)
        return self.sheepdog.stats()['calls']

    def stop_in(self, owner, name):
        """Have the first call of a function stop when it is done.

        :returns: event that says it has, and event that lets it go on
        """
        function = getattr(owner, name)
        stopped, go_on = threading.Event(), threading.Event()
        self.addCleanup(go_on.set)

        def stop(*args, **kwargs):
            is_first = not stopped.is_set()
            result = function(*args, **kwargs)
            if is_first:
                stopped.set()
                go_on.wait()
            return result

        self.patch_object(owner, name, new=stop)
        return stopped, go_on

    def kill_in_call(self, number, function, *args):
        """Do what a host does that is killed before one of its commands.

        :param number: of the command, from 0
        :returns: whether it was killed before it was ready
        """
        execute = rootwrap.execute
        numbers = itertools.count()
        dead, over, end = [threading.Event() for _number in range(3)]

        def execute_until(*command, **kwargs):
            if next(numbers) >= number:
                dead.set()
                over.set()
                end.wait()
                raise Killed()
            return execute(*command, **kwargs)

        with mock.patch.object(rootwrap, 'execute', execute_until):
            host = self.start_thread(function, *args)
            host.add_done_callback(lambda host: over.set())
            over.wait()

        def bury():
            with mock.patch.object(rootwrap, 'execute', side_effect=Killed):
                end.set()
                host.exception(60)

        self.addCleanup(bury)
        return dead.is_set()

    def do_image_cache_passes(self):
        """Do as many as it takes to find nothing but what lasts."""
        for _pass in range(2):
            self.images.delete_unused()
            self.clock.ahead += lease.get_lease_time()


@ddt.ddt
class BaseTestCase(_ImagesTestCase):

    def test_first_boot_imports_and_second_clones(self):
        first = self.boot()
        self.assertEqual(dict(BASE, disk=1), self.get_names())
        self.assertEqual([], self.get_files())
        vdis = []
        self.assertEqual(
            {'vdi getattr': 1, 'vdi clone': 1, 'vdi resize': 1},
            self.get_calls(lambda: vdis.append(self.boot())))
        self.assertEqual(1, self.fetched)
        for vdi in [first, *vdis]:
            self.assert_complete(vdi)
            self.assertEqual(16 * units.Mi, {
                found['name']: found['size']
                for found in self.sheepdog.vdis()}[vdi])

    def test_disk_of_the_size_of_the_image(self):
        vdi = self.boot(size=None)
        self.assertEqual(self.SIZE, {
            found['name']: found['size']
            for found in self.sheepdog.vdis()}[vdi])
        self.assertEqual({'vdi getattr': 1, 'vdi clone': 1},
                         self.get_calls(self.boot, size=None))

    @ddt.data(0, 1)
    def test_image_larger_than_the_disk(self, boots):
        for _boot in range(boots):
            self.boot()
        error = self.assertRaises(exception.FlavorDiskSmallerThanImage,
                                  self.boot, size=4 * units.Mi)
        self.assertIn(str(self.SIZE), str(error))
        self.assertEqual(boots, self.get_names().get('disk', 0))
        # Flavors with a larger disk can have it.
        self.boot()
        self.assertEqual(1, self.fetched)

    def test_image_larger_than_a_vdi_can_be(self):
        self.patch_object(images.disk, 'get_disk_size',
                          return_value=4097 * units.Gi)
        self.assertRaisesRegex(exception.InvalidDiskInfo, '4097 GiB',
                               self.boot)
        self.assertEqual({}, self.get_names())

    def test_failed_resize_leaves_no_disk(self):
        self.boot()
        self.sheepdog.fault('error', subcommand='vdi resize', result=0x15)
        self.assertRaises(exception.SheepdogError, self.boot)
        self.assertEqual(dict(BASE, disk=1), self.get_names())

    def test_disk_that_is_there(self):
        vdi = self.boot()
        self.assertRaises(exception.SheepdogVDIExists,
                          self.get_base().clone, vdi)
        self.assert_complete(vdi)

    def test_provide_tells_whether_it_made_it(self):
        self.assertTrue(self.get_base().provide())
        self.assertFalse(self.get_base().provide())
        self.assertEqual(1, self.fetched)
        self.assertEqual(BASE, self.get_names())
        self.assertEqual([], self.get_files())

    def test_failed_fetch_leaves_nothing(self):
        def fail(context, target, *args):
            self.fetch(context, target, *args)
            raise exception.ImageUnacceptable(image_id='', reason='')

        self.patch_object(libvirt_utils, 'fetch_image', new=fail)
        self.assertRaises(exception.ImageUnacceptable, self.boot)
        self.assertEqual({}, self.get_names())
        self.assertEqual([], self.get_files())

    def test_base_that_goes_while_it_is_cloned(self):
        self.boot()
        base = self.get_base()
        clone = libvirt_utils.clone_sheepdog_vdi
        dropped = []

        def clone_and_drop(vdi, *args, **kwargs):
            clone(vdi, *args, **kwargs)
            if vdi == base.vdi and not dropped:
                dropped.append(True)
                base.drop()

        self.patch_object(libvirt_utils, 'clone_sheepdog_vdi',
                          new=clone_and_drop)
        vdi = self.boot()
        self.assertEqual([True], dropped)
        self.assertEqual(2, self.fetched)
        self.assert_complete(vdi)

    @ddt.data('base', 'base@')
    def test_base_that_was_deleted_by_half(self, part):
        self.boot()
        libvirt_utils.delete_sheepdog_vdi(
            self.get_base().vdi, images.TAG if part == 'base@' else None)
        self.assert_complete(self.boot())
        self.assertEqual(2, self.fetched)
        self.assertEqual(dict(BASE, disk=2), self.get_names())

    def test_drop(self):
        vdi = self.boot()
        self.get_base().drop()
        self.assertEqual({'disk': 1}, self.get_names())
        self.assert_complete(vdi)

    def test_drop_while_a_host_makes_it(self):
        with self.images.leases.take(self.image['id']):
            self.get_base().drop()
            self.assertEqual({'lease': 1}, self.get_names())

    def test_drop_that_fails_raises_nothing(self):
        self.boot()
        self.sheepdog.kill()
        self.get_base().drop()
        self.assertIn('Left base image', self.stdlog.logger.output)

    @ddt.data('base', 'import')
    def test_vdi_in_the_way_is_not_taken_for_the_disk(self, kind):
        """It would look as if the server's own disk were complete."""
        self.sheepdog.fault(
            'reply', subcommand='vdi ' + ('clone' if kind == 'base' else
                                          'create'),
            vdi='*_import.*' if kind == 'import' else '*', status=1,
            err=b'VDI exists already\n')
        error = self.assertRaises(exception.SheepdogError,
                                  self.get_base().provide)
        self.assertNotIsInstance(error, exception.SheepdogVDIExists)
        self.assertEqual({}, self.get_names())


@ddt.ddt
class IdentityTestCase(_ImagesTestCase):
    """Which boots can have the same base."""

    def get_vdi(self, **changes):
        image = dict(self.image, **changes)
        with mock.patch.object(images.IMAGE_API, 'get', return_value=image):
            return images.ImageBase(self.images, None, image['id']).vdi

    @ddt.data(
        {'size': 1001}, {'checksum': 'c' * 32}, {'disk_format': 'iso'},
        {'properties': {'os_hash_algo': 'sha512', 'os_hash_value': 'd'}})
    def test_other_data(self, change):
        self.assertEqual(self.get_vdi(), self.get_vdi(name='renamed'))
        self.assertNotEqual(self.get_vdi(), self.get_vdi(**change))
        # The lease is that of all of them.
        self.assertEqual(self.get_vdi().partition('.')[0],
                         self.get_vdi(**change).partition('.')[0])

    def test_ids_that_differ_in_case(self):
        """Glance has two images, and a VDI's name is in lower case."""
        lower = self.get_vdi()
        upper = self.get_vdi(id=self.image['id'].upper())
        self.assertNotEqual(lower, upper)
        self.assertEqual(upper.lower(), upper)
        self.assertEqual(lower.partition('.')[0], upper.partition('.')[0])
        self.assertEqual(
            (self.image['id'], 'base'),
            libvirt_utils.split_sheepdog_vdi(upper)[:2])

    def test_what_was_inspected(self):
        """Hosts of another release, or another nova.conf, share no base."""
        with mock.patch.object(virt_images, 'do_image_deep_inspection',
                               create=True):
            inspected = self.get_vdi()
            with mock.patch.object(images, 'CONF') as conf:
                conf.workarounds.disable_deep_image_inspection = True
                conf.glance.enable_certificate_validation = False
                conf.glance.verify_glance_signatures = False
                switched_off = self.get_vdi()
        self.useFixture(fixtures.MonkeyPatch(
            'nova.virt.images.do_image_deep_inspection',
            fixtures.MonkeyPatch.delete))
        self.assertEqual(switched_off, self.get_vdi())
        self.assertNotEqual(inspected, switched_off)

    def test_vmdk_types(self):
        before = self.get_vdi(), self.get_vdi(disk_format='vmdk')
        self.flags(vmdk_allowed_types=['streamOptimized'], group='compute')
        self.assertEqual(before[0], self.get_vdi())
        self.assertNotEqual(before[1], self.get_vdi(disk_format='vmdk'))

    def test_signature(self):
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

    def test_certificates_of_all_boots(self):
        before = self.get_vdi()
        self.flags(enable_certificate_validation=True,
                   default_trusted_certificate_ids=['one'], group='glance')
        self.assertNotEqual(before, self.get_vdi())

    def test_templates(self):
        def get_base(*identity):
            return images.TemplateBase(self.images, None, *identity)

        vdi = get_base('swap_8', '').vdi
        self.assertEqual(vdi, get_base('swap_8', '').vdi)
        for other in ('swap_9', ''), ('swap_8', 'ext4'):
            self.assertNotEqual(vdi, get_base(*other).vdi)
        key = get_base('swap_8').key
        self.assertTrue(uuidutils.is_uuid_like(key))
        self.assertEqual(key, get_base('swap_8', 'ext4').key)


@ddt.ddt
class ImportTestCase(_ImagesTestCase):
    """Imports that fail, and hosts that die."""

    def setUp(self):
        super().setUp()
        # A host that waits for a dead one does not wait long.
        self.clock.step = 40

    @ddt.data(
        {'action': 'error', 'result': 0x15},
        {'action': 'reply', 'when': 'after', 'status': 1,
         'err': b'Fehler: \xfc\n'},
        {'action': 'drop', 'operation': '*_VDI'},
        {'action': 'hang', 'hole': True})
    def test_failure_of_each_call(self, fault):
        # Calls of it would be counted.
        self.patch_object(lease, 'RENEWAL', new=1000)
        for number in itertools.count():
            self.image = self.make_image()
            self.sheepdog.reset_stats()
            self.sheepdog.fault(skip=number, **fault)
            vdi = None
            try:
                vdi = self.boot()
            except exception.SheepdogError as e:
                self.assertNotIsInstance(e, exception.SheepdogVDIExists)
            calls = sum(self.sheepdog.stats()['calls'].values())
            self.sheepdog.clear_faults()
            if vdi:
                self.assert_complete(vdi)
            elif fault['action'] == 'error':
                self.assertIn(self.get_names(), ({}, BASE), number)
                self.assertEqual([], self.get_files(), number)
            # What is left is in nobody's way.
            self.assert_complete(self.boot())
            self.do_image_cache_passes()
            names = self.get_names()
            self.assertLessEqual(names.pop('disk'), 2)
            self.assertEqual(dict(BASE, lease=1), names, number)
            for vdi in self.sheepdog.vdis():
                libvirt_utils.delete_sheepdog_vdi(vdi['name'],
                                                  vdi['tag'] or None)
            for name in self.get_files():
                os.unlink(os.path.join(lease.get_directory(), name))
            if vdi and number >= calls:
                break
        self.assertGreater(number, 15)

    def test_importer_is_killed(self):
        """Another host takes over, whatever the killed one was about."""
        for number in itertools.count():
            with mock.patch.object(lease, 'RENEWAL', 1000):
                is_killed = self.kill_in_call(number, self.boot,
                                              self.make_images())
            self.fetched = min(self.fetched, 1)
            self.assert_complete(self.boot())
            self.assertLessEqual(self.fetched, 2, number)
            self.do_image_cache_passes()
            names = self.get_names()
            self.assertLessEqual(names.pop('disk'), 2)
            self.assertEqual(dict(BASE, lease=1), names, number)
            if not is_killed:
                break
            self.image = self.make_image()
            self.fetched = 0
            for vdi in self.sheepdog.vdis():
                libvirt_utils.delete_sheepdog_vdi(vdi['name'],
                                                  vdi['tag'] or None)
        self.assertGreater(number, 15)

    def test_importer_is_killed_and_started_again(self):
        """It removes what it has left, and no image cache pass is needed."""
        for number in itertools.count():
            with mock.patch.object(lease, 'RENEWAL', 1000):
                is_killed = self.kill_in_call(
                    number, self.get_base(self.make_images()).provide)
            if not is_killed:
                break
            self.make_images().clean_up()
            self.wait_until(lambda: not self.get_files())
            self.assertEqual({}, self.get_names(), number)
            self.image = self.make_image()
        self.assertEqual(BASE, self.get_names())
        self.assertGreater(number, 12)

    def test_importer_is_started_again_when_others_have_taken_over(self):
        with mock.patch.object(lease, 'RENEWAL', 1000):
            self.assertTrue(self.kill_in_call(7, self.boot,
                                              self.make_images()))
        self.boot()
        self.make_images().clean_up()
        self.wait_until(lambda: not self.get_files())
        self.assertEqual(dict(BASE, disk=1), self.get_names())

    def test_hosts_at_once_import_once(self):
        self.clock.step = 0.1
        hosts = [self.start_thread(self.boot, self.make_images())
                 for _host in range(8)]
        for host in hosts:
            self.assert_complete(host.result(60))
        self.assertEqual(1, self.fetched)
        self.assertEqual(dict(BASE, disk=8), self.get_names())

    def test_host_that_was_thought_dead(self):
        stopped, go_on = self.stop_in(base_test.ModelTransfer, 'copy_in')
        with mock.patch.object(lease, 'RENEWAL', 1000):
            late = self.start_thread(self.boot, self.make_images())
            stopped.wait()
        self.assert_complete(self.boot())
        base = [vdi for vdi in self.sheepdog.vdis() if 'base' in vdi['name']]
        go_on.set()
        # It has the base that another one made.
        self.assert_complete(late.result(60))
        self.assertEqual(2, self.fetched)
        self.assertEqual(base, [vdi for vdi in self.sheepdog.vdis()
                                if 'base' in vdi['name']])

    def _stop_in_fetch(self):
        """Have a host download something, which takes long.

        :returns: path of the file, future of the boot, event to end it
        """
        paths, go_on = [], threading.Event()
        self.addCleanup(go_on.set)
        fetch = self.fetch

        def fetch_slowly(context, target, *args):
            fetch(context, target, *args)
            if not paths:
                paths.append(target)
                go_on.wait()

        self.patch_object(libvirt_utils, 'fetch_image', new=fetch_slowly)
        boot = self.start_thread(self.boot, self.make_images())
        self.wait_until(lambda: paths)
        return paths[0], boot, go_on

    def test_lease_is_kept_while_the_download_makes_progress(self):
        self.flags(images_sheepdog_timeout=1, group='libvirt')
        self.patch_object(lease, 'STALL', new=40)
        self.clock.step = 1
        path, first, go_on = self._stop_in_fetch()
        other = self.start_thread(self.boot, self.make_images())

        def is_over():
            # what Nova writes while it converts
            with open(path + '.converted', 'ab') as part:
                part.write(b'x' * 4096)
            return self.clock.ahead > 100

        self.wait_until(is_over)
        self.assertEqual(1, self.fetched)
        os.unlink(path + '.converted')
        go_on.set()
        for boot in first, other:
            self.assert_complete(boot.result(60))
        self.assertEqual(1, self.fetched)

    def test_download_that_hangs_holds_up_nobody(self):
        self.flags(images_sheepdog_timeout=1, group='libvirt')
        self.patch_object(lease, 'STALL', new=40)
        self.clock.step = 1
        _path, first, go_on = self._stop_in_fetch()
        self.assert_complete(self.boot())
        self.assertEqual(2, self.fetched)
        self.assertGreater(self.clock.ahead, 40)
        self.assertFalse(first.done())
        go_on.set()
        self.assert_complete(first.result(60))

    def test_stop_gives_the_lease_back(self):
        host = self.make_images()
        stopped, go_on = self.stop_in(base_test.ModelTransfer, 'copy_in')
        first = self.start_thread(self.get_base(host).provide)
        stopped.wait()
        host.stop()
        start = self.clock.ahead
        self.assert_complete(self.boot())
        self.assertEqual(start, self.clock.ahead)
        go_on.set()
        # What it has made meanwhile is not the base.
        self.assertFalse(first.result(60))
        self.make_images().clean_up()
        self.wait_until(lambda: not self.get_files())
        self.assertEqual(dict(BASE, disk=1), self.get_names())


class WaitingTestCase(_ImagesTestCase):
    """Servers that wait for an image."""

    def setUp(self):
        super().setUp()
        self.patch_object(images, 'DELETION_INTERVAL', new=2)
        self.instance = objects.Instance(
            uuid=uuidutils.generate_uuid(), task_state=task_states.SPAWNING)
        self.get_by_uuid = self.patch_object(objects.Instance, 'get_by_uuid')
        self.get_by_uuid.return_value = self.instance

    def test_server_is_deleted_while_another_host_imports(self):
        with self.make_images().leases.take(self.image['id']):
            boot = self.start_thread(self.get_base().provide, self.instance)
            self.wait_until(lambda: self.get_by_uuid.called)
            self.assertFalse(boot.done())
            self.get_by_uuid.return_value = objects.Instance(
                uuid=self.instance.uuid, task_state=task_states.DELETING)
            self.assertRaises(exception.UnexpectedDeletingTaskStateError,
                              boot.result, 60)
        self.assertEqual({}, self.get_names())

    def test_server_is_gone_while_another_host_imports(self):
        self.get_by_uuid.side_effect = exception.InstanceNotFound(
            instance_id=self.instance.uuid)
        with self.make_images().leases.take(self.image['id']):
            self.assertRaises(exception.InstanceNotFound,
                              self.get_base().provide, self.instance)

    def test_server_is_deleted_while_another_one_of_its_host_imports(self):
        locks = {}
        self.lockutils.internal_lock = lambda name: locks.setdefault(
            name, threading.Lock())
        self.patch_object(lease, 'POLL', new=0.01)
        stopped, go_on = self.stop_in(base_test.ModelTransfer, 'copy_in')
        first = self.start_thread(self.get_base().provide)
        stopped.wait()
        boot = self.start_thread(self.get_base().provide, self.instance)
        self.get_by_uuid.return_value = objects.Instance(
            uuid=self.instance.uuid, task_state=task_states.DELETING)
        self.clock.ahead += 3
        self.wait_until(boot.done)
        self.assertRaises(exception.UnexpectedDeletingTaskStateError,
                          boot.result)
        go_on.set()
        self.assertTrue(first.result(60))

    def test_servers_of_a_host_import_once(self):
        locks = {}
        self.lockutils.internal_lock = lambda name: locks.setdefault(
            name, threading.Lock())
        self.patch_object(lease, 'POLL', new=0.01)
        boots = [self.start_thread(self.get_base().provide, self.instance)
                 for _server in range(4)]
        self.assertEqual([False] * 3 + [True], sorted(
            boot.result(60) for boot in boots))


class ImporterProcessTestCase(_ImagesTestCase):
    """A process that imports is killed, and its dog is not."""

    IS_REAL = True

    def _start_importer(self):
        """Have a process make a base, as another host would."""
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
        self.fetch(None, path, None)
        importer = subprocess.Popen(
            # By its path: its package would import all that tests need.
            [sys.executable, '-W', 'ignore',
             os.path.join(os.path.dirname(__file__), 'importer.py'),
             configuration, self.tgtd.control_socket, path, 'swap_8'])
        self.addCleanup(importer.wait)
        self.addCleanup(importer.kill)
        return importer

    def test_process_of_the_importer_is_killed(self):
        self.clock.step = 10
        self.sheepdog.fault('hang', subcommand='vdi snapshot',
                            operation='NEW_VDI')
        importer = self._start_importer()
        self.wait_until(lambda: 'vdi snapshot' in self.sheepdog.stats()[
            'calls'])
        importer.kill()
        importer.wait()
        self.assertEqual({'import': 1, 'lease': 1}, self.get_names())

        base = images.TemplateBase(
            self.images, lambda target: self.fetch(None, target, None),
            'swap_8')
        start = self.clock.ahead
        self.assertTrue(base.provide())
        self.assertLess(self.clock.ahead - start,
                        lease.get_lease_time() + 2 * self.clock.step)
        self.sheepdog.clear_faults()
        # The call goes on.
        self.wait_until(lambda: 'import@' in self.get_names())
        self.assertEqual(dict(BASE, **{'import': 1, 'import@': 1}),
                         self.get_names())
        self.make_images().clean_up()
        self.wait_until(lambda: not self.get_files())
        self.assertEqual(BASE, self.get_names())
        vdi = libvirt_utils.get_sheepdog_vdi(uuidutils.generate_uuid(), 'disk')
        self.assertTrue(base.clone(vdi))
        self.assert_complete(vdi)


@ddt.ddt
class SnapshotTestCase(_ImagesTestCase):
    """What createImage leaves."""

    def setUp(self):
        super().setUp()
        self.instance = objects.Instance(
            uuid=uuidutils.generate_uuid(),
            task_state=task_states.IMAGE_UPLOADING)
        self.patch_object(objects.Instance, 'get_by_uuid',
                          new=lambda *args: self.instance)
        self.directory = self.useFixture(fixtures.TempDir()).path
        self.scratch = libvirt_utils.get_sheepdog_vdi(
            self.instance.uuid, 'scratch')

    def snapshot(self, out_format='raw', head=b'boot sector', then=None):
        """Make an image, as the driver does.

        :param out_format: format of the file that it uploads
        :param head: what the disk begins with
        :param then: what is done when it has been uploaded
        """
        self.image['disk_format'] = out_format
        with self.images.snapshot(context.get_admin_context(), self.instance,
                                  self.image['id'], self.directory):
            libvirt_utils.create_sheepdog_vdi(self.scratch, self.SIZE)
            self.dog_write(self.scratch, head)
            raw = os.path.join(self.useFixture(fixtures.TempDir()).path, 'raw')
            with open(raw, 'wb') as data:
                data.write(head)
                data.truncate(self.SIZE)
            subprocess.run(
                ['qemu-img', 'convert', '-f', 'raw', '-O', out_format, raw,
                 os.path.join(self.directory, 'image')], check=True)
            if then:
                then()

    def dog_write(self, vdi, data):
        self.sheepdog.run('vdi', 'write', vdi, '0', str(len(data)),
                          stdin=data)

    @ddt.data('raw', 'qcow2')
    def test_first_boot_is_a_clone(self, out_format):
        self.snapshot(out_format)
        self.assertEqual(BASE, self.get_names())
        self.assertEqual([], self.get_files())
        self.assert_complete(self.boot())
        self.assertEqual(0, self.fetched)

    def test_boot_that_wants_a_signature_imports(self):
        self.flags(group='glance', verify_glance_signatures=True)
        self.snapshot()
        self.boot()
        self.assertEqual(1, self.fetched)

    def test_failed_upload_leaves_nothing(self):
        def fail():
            raise exception.ImageNotFound(image_id='')

        self.assertRaises(exception.ImageNotFound, self.snapshot, then=fail)
        self.assertEqual({}, self.get_names())
        self.assertEqual([], self.get_files())

    def test_image_that_is_not_active(self):
        self.image['status'] = 'importing'
        self.snapshot()
        self.assertEqual({}, self.get_names())

    def test_instance_that_is_being_deleted(self):
        def delete():
            self.instance = objects.Instance(task_state=task_states.DELETING)

        self.snapshot(then=delete)
        self.assertEqual({}, self.get_names())

    def test_resize_to_another_cell(self):
        # The cluster there is another one.
        self.instance.task_state = task_states.RESIZE_MIGRATING
        self.snapshot()
        self.assertEqual({}, self.get_names())

    def test_host_that_has_the_lease(self):
        # It makes the base.
        with self.make_images().leases.take(self.image['id']):
            self.snapshot()
            self.assertEqual({'lease': 1}, self.get_names())

    @ddt.data('vdi clone', 'vdi snapshot', 'vdi create')
    def test_failed_step_leaves_nothing(self, subcommand):
        def fail():
            self.sheepdog.fault('error', subcommand=subcommand, result=0x15)

        self.snapshot(then=fail)
        self.assertEqual({}, self.get_names())
        self.assertIn('its first boot will import it',
                      self.stdlog.logger.output)

    @ddt.data('raw', 'qcow2')
    def test_disk_that_looks_like_another_format(self, out_format):
        # A boot of that image would be refused.
        self.snapshot(out_format, b'QFI\xfb\x00\x00\x00\x03' + bytes(504))
        self.assertEqual({}, self.get_names())

    def test_disk_that_the_inspection_of_a_boot_refuses(self):
        inspect = self.patch_object(
            virt_images, 'do_image_deep_inspection', create=True,
            side_effect=exception.ImageUnacceptable(image_id='', reason=''))
        self.snapshot()
        inspect.assert_called_once_with({'disk_format': 'raw'},
                                        self.image['id'], mock.ANY)
        self.assertEqual({}, self.get_names())
        self.assertEqual(['image'], os.listdir(self.directory))

    def test_scratch_vdi_that_cannot_be_deleted(self):
        self.snapshot(then=lambda: self.sheepdog.fault(
            'error', subcommand='vdi delete', vdi=self.scratch, times=None))
        self.assertIn('Left scratch VDI %s' % self.scratch,
                      self.stdlog.logger.output)

    def test_directory_that_a_killed_process_left(self):
        of_others = self.useFixture(fixtures.TempDir()).path
        with open(os.path.join(of_others, 'image'), 'w'):
            pass

        def check():
            with open(os.path.join(self.directory, 'image')):
                pass
            self.make_images().clean_up()
            self.assertFalse(os.path.exists(self.directory))
            self.assertEqual([], self.get_files())
            self.assertEqual(['image'], os.listdir(of_others))
            # The rest is of the test's own making.
            os.mkdir(self.directory)
            with open(os.path.join(lease.get_directory(),
                                   'snapshot.' + self.instance.uuid), 'w'):
                raise Killed()

        self.assertRaises(Killed, self.snapshot, then=check)

    def test_notes_of_other_hosts_stay(self):
        self.flags(host='one')

        def check():
            self.flags(host='two')
            self.make_images().clean_up()
            self.assertTrue(os.path.exists(self.directory))
            self.flags(host='one')

        self.snapshot(then=check)


class DeleteUnusedTestCase(_ImagesTestCase):
    """Image cache passes."""

    def setUp(self):
        super().setUp()
        self.flags(group='image_cache',
                   remove_unused_original_minimum_age_seconds=1000)

    def test_unused_base(self):
        vdi = self.boot()
        self.clock.ahead += 900
        self.images.delete_unused()
        self.assertEqual(dict(BASE, disk=1, lease=1), self.get_names())
        self.clock.ahead += 200
        self.images.delete_unused()
        self.assertEqual({'disk': 1, 'lease': 1}, self.get_names())
        self.assert_complete(vdi)

    def test_use_is_noted(self):
        self.boot()
        self.clock.ahead += 900
        self.boot()
        self.clock.ahead += 200
        self.images.delete_unused()
        self.assertEqual(dict(BASE, disk=2, lease=1), self.get_names())

    def test_use_that_was_just_noted_is_not_noted_again(self):
        self.boot()
        self.assertNotIn('vdi write', self.get_calls(self.boot))
        # Another host notes its own.
        self.assertIn('vdi write', self.get_calls(
            self.boot, self.make_images()))
        self.clock.ahead += 300
        self.assertIn('vdi write', self.get_calls(self.boot))

    def test_use_that_cannot_be_noted(self):
        self.boot()
        self.sheepdog.fault('error', subcommand='vdi write')
        self.assert_complete(self.boot(self.make_images()))
        self.assertIn('Cannot note', self.stdlog.logger.output)

    def test_bases_are_kept_where_nova_is_told_so(self):
        self.flags(group='image_cache', remove_unused_base_images=False)
        self.boot()
        self.clock.ahead += 2000
        self.images.delete_unused()
        self.assertEqual(dict(BASE, disk=1, lease=1), self.get_names())

    def test_other_vdis_stay(self):
        for name in ('volume', 'a b', self.image['id'] + '_disk',
                     self.image['id'] + '_base', 'x_base.0123'):
            libvirt_utils.create_sheepdog_vdi(name, units.Mi)
        libvirt_utils.snapshot_sheepdog_vdi('volume', 'nova-base')
        before = self.sheepdog.vdis()
        self.images.delete_unused()
        self.assertEqual(before, [vdi for vdi in self.sheepdog.vdis()
                                  if '_lease' not in vdi['name']])

    def test_what_is_being_made_stays(self):
        stopped, go_on = self.stop_in(libvirt_utils, 'snapshot_sheepdog_vdi')
        host = self.start_thread(self.boot, self.make_images())
        stopped.wait()
        for _pass in range(3):
            self.images.delete_unused()
        go_on.set()
        self.assert_complete(host.result(60))
        self.assertEqual(1, self.fetched)
        self.assertEqual(dict(BASE, disk=1, lease=1), self.get_names())

    def test_one_host_does_it(self):
        self.boot()
        self.images.delete_unused()
        self.clock.ahead += 2000
        self.flags(host='other')
        other = self.make_images()
        for _pass in range(2):
            self.assertNotIn('vdi list', self.get_calls(other.delete_unused))
        self.assertEqual(1, self.get_names()['base'])
        # until it is dead
        self.clock.ahead += 10000
        self.assertIn('vdi list', self.get_calls(other.delete_unused))
        self.assertNotIn('base', self.get_names())
        # That one it is from then on.
        self.assertIn('vdi list', self.get_calls(other.delete_unused))

    def test_lease_of_a_dead_host_has_the_time_that_it_says(self):
        self.flags(images_sheepdog_timeout=500, group='libvirt')
        with mock.patch.object(lease, 'threading', wraps=threading) as module:
            module.Thread = mock.Mock()
            self.make_images().leases.take(self.image['id']).__enter__()
        self.flags(images_sheepdog_timeout=20, group='libvirt')
        for _pass in range(2):
            self.images.delete_unused()
            self.assertEqual({'lease': 2}, self.get_names())
            self.clock.ahead += 1000
        self.images.delete_unused()
        self.assertEqual({'lease': 1}, self.get_names())

    def test_garbage_in_one_record_does_not_end_the_pass(self):
        garbage = self.make_image()['id']
        for name in ('lease.abc', 'lease.0', 'record.0123', 'base.0123',
                     'import.0123'):
            vdi = libvirt_utils.get_sheepdog_vdi(garbage, name)
            libvirt_utils.create_sheepdog_vdi(vdi, units.Mi)
            self.sheepdog.run('vdi', 'write', vdi, '0', '6',
                              stdin=b'\xff a b c')
        for image in self.make_image(), self.make_image():
            self.image = image
            self.boot()
        self.clock.ahead += 2000
        for _pass in range(2):
            self.images.delete_unused()
            self.clock.ahead += lease.get_lease_time()
        self.assertEqual([], [
            vdi['name'] for vdi in self.sheepdog.vdis()
            if '_base' in vdi['name'] and garbage not in vdi['name']])

    def test_garbage_in_the_record_of_a_base(self):
        self.boot()
        base = self.get_base()
        libvirt_utils.write_sheepdog_record(
            base.vdi.replace('base', 'record'), 'garbage')
        # It can still be cloned, and is made anew when it has gone.
        self.assert_complete(self.boot(self.make_images()))
        self.images.delete_unused()
        self.assertEqual({'disk': 2, 'lease': 1}, self.get_names())

    def test_error_of_one_image_does_not_end_the_pass(self):
        bad = self.image['id']
        self.boot()
        self.image = self.make_image()
        self.boot()
        self.clock.ahead += 2000
        self.sheepdog.fault('error', subcommand='vdi read', times=None,
                            vdi=bad + '*')
        self.images.delete_unused()
        self.assertEqual([bad], [
            vdi['name'].partition('_')[0] for vdi in self.sheepdog.vdis()
            if '_base' in vdi['name'] and not vdi['snapshot']])

    def test_cluster_that_is_away(self):
        self.sheepdog.kill()
        self.assertRaises(exception.SheepdogError, self.images.delete_unused)
