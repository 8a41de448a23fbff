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

"""A whole Nova in this process, on real libvirt, QEMU, tgt and rootwrap.

Its API, scheduler, conductor, nova-compute and placement are the real ones,
on the fixtures of Nova's functional tests.
"""

import contextlib
import os
import re
import sys
import threading
import time
from unittest import mock

import fixtures
from lxml import etree
from oslo_concurrency import lockutils
from oslo_concurrency import processutils
from oslo_messaging.rpc import dispatcher as rpc_dispatcher
from oslo_utils.fixture import uuidsentinel as uuids
from oslo_utils import importutils
from oslo_utils import units
from sqlalchemy import event
from sqlalchemy import orm
from testtools import content

from nova.compute import manager
import nova.conf
from nova import service as nova_service
from nova.tests.fixtures import boot_sector
from nova.tests.fixtures import keeping_glance
from nova.tests.fixtures import real_libvirt
from nova.tests.fixtures import sheepdog
from nova.tests.functional.api import client
from nova.tests.functional import integrated_helpers
from nova.tests.functional.libvirt import sheepdog_backend as backend
from nova.virt.libvirt import host as libvirt_host

# Newer releases keep the identity of a host in a file, and some the pools of
# threads of a process in one place.
node = importutils.try_import('nova.virt.node')
thread_pool_factory = importutils.try_import('nova.thread_pool_factory')

CONF = nova.conf.CONF
LIMIT = sheepdog.waiting.LIMIT
IS_NATIVE = backend.IS_NATIVE
# What the cluster calls who reaches VDIs: QEMU's driver does not name itself.
CLIENT = 'other' if IS_NATIVE else 'tgt'


class ComputeKilled(BaseException):
    """Ends a thread of a nova-compute that is dead."""


class ChangeFixture(fixtures.Fixture):
    """Wakes who waits for a change of a server in Nova's databases."""

    # Tables that change all the time
    OTHERS = 'compute_nodes', 'services'

    def _setUp(self):
        self._changed = threading.Event()
        event.listen(orm.Session, 'after_flush', self._note)
        self.addCleanup(
            event.remove, orm.Session, 'after_flush', self._note)

    def _note(self, session, _context):
        for objects in session.new, session.dirty, session.deleted:
            if any(each.__tablename__ not in self.OTHERS for each in objects):
                self._changed.set()

    def pause(self, _seconds):
        """Sleep until there is one, or for a second."""
        self._changed.wait(1)
        # It is to be committed, and more follow as a rule: a request to the
        # API takes 50 ms.
        time.sleep(0.25)
        self._changed.clear()


class SheepdogTestCase(integrated_helpers._IntegratedTestBase):
    """One compute host, whose disks are on a Sheepdog cluster.

    The cluster is a simulated one, but for SHEEPDOG_HOST, SHEEPDOG_PORT and
    SHEEPDOG_DOG, which name a real one.

    :ivar sheepdog: the sheepdog.Cluster
    :ivar testbed: the real_libvirt.Testbed
    """

    ADMIN_API = True
    microversion = '2.90'
    STUB_COMPUTE_ID = False
    CAST_AS_CALL = False
    IMAGES_TYPE = 'sheepdog'
    # in a real cluster
    _bases_before = frozenset()

    def setUp(self):
        # eventlet has made the output of this process non-blocking, and
        # subunit loses what does not fit into the pipe of its reader.
        self.addCleanup(os.set_blocking, 1, True)
        if thread_pool_factory and thread_pool_factory.FACTORY._shutdown:
            self.fail('An earlier test has shut down the thread pools of this '
                      'process')
        self.real_libvirt = self.useFixture(real_libvirt.RealLibvirtFixture())
        self.testbed = self.real_libvirt.testbed
        self.useFixture(fixtures.MonkeyPatch(
            'nova.tests.fixtures.GlanceFixture',
            keeping_glance.GlanceFixture))
        self._wait_for_shutdowns()
        self.changes = self.useFixture(ChangeFixture())
        super().setUp()

    def _wait_for_shutdowns(self):
        """Have the stop of a nova-compute return when it has stopped.

        Nova 34 lets a thread do it, and in its tests does not wait for that.
        What the thread does last is to shut down all thread pools of the
        process for good, which the fixture of its tests keeps it from only as
        long as the test lasts: every later test would fail.
        """
        name = '_run_manager_graceful_shutdown'
        if not hasattr(nova_service.Service, name):
            return
        run = getattr(nova_service.Service, name)

        def run_and_wait(service):
            ended = threading.Event()
            shut_down = service.manager.graceful_shutdown

            def shut_down_and_tell(timeout):
                try:
                    shut_down(timeout)
                finally:
                    ended.set()

            with mock.patch.object(service.manager, 'graceful_shutdown',
                                   shut_down_and_tell):
                run(service)
                self.wait_until(ended.is_set)

        self.useFixture(fixtures.MockPatchObject(
            nova_service.Service, name, run_and_wait))

    def start_cluster(self):
        """Return the sheepdog.Cluster to use."""
        host = os.environ.get('SHEEPDOG_HOST')
        if host:
            cluster = self.useFixture(sheepdog.Cluster(
                os.environ['SHEEPDOG_DOG'], host,
                int(os.environ['SHEEPDOG_PORT'])))
            self._bases_before = self._list_bases(cluster)
            return cluster
        return self.useFixture(sheepdog.SheepdogFixture())

    def _setup_services(self):
        # The base class calls this when the defaults of Nova's tests are
        # set and no service has read them yet.
        self.addCleanup(self.real_libvirt.disconnect)
        self.sheepdog = self.start_cluster()
        self._note_threads()
        state_path = self.useFixture(fixtures.TempDir()).path
        self.instances_path = os.path.join(state_path, 'instances')
        self.snapshots_directory = os.path.join(state_path, 'snapshots')
        for directory in self.instances_path, self.snapshots_directory:
            os.mkdir(directory)
        self.flags(
            compute_driver='libvirt.LibvirtDriver',
            instances_path=self.instances_path,
            my_ip='127.0.0.1',
            rootwrap_config='/etc/nova/rootwrap.conf',
            # The guest does not listen to ACPI.
            shutdown_timeout=1,
            state_path=state_path,
            tempdir=state_path)
        self.flags(
            group='libvirt',
            cpu_mode='none',
            images_sheepdog_host=self.sheepdog.host,
            images_sheepdog_port=self.sheepdog.port,
            # Each worker has a daemon of rootwrap, which takes half a second
            # to start.
            images_sheepdog_max_calls=2,
            images_sheepdog_portal=self.testbed.portal,
            images_type=self.IMAGES_TYPE,
            snapshots_directory=self.snapshots_directory,
            virt_type='qemu',
            wait_soft_reboot_seconds=1)
        self.flags(group='vnc', enabled=False)
        self.flags(group='wsgi', api_paste_config=os.path.join(
            sys.prefix, 'etc/nova/api-paste.ini'))
        super()._setup_services()

    def _note_threads(self):
        """Have the test end when the threads of the backend have ended.

        They would go on with the options and the cluster of the next test.
        """
        threads = []
        start = threading.Thread.start

        def note_and_start(thread):
            target = getattr(thread, '_target', None)
            if getattr(target, '__module__', '').startswith(
                    backend.PACKAGE):
                threads.append(thread)
            start(thread)

        def wait_for_end():
            for thread in threads:
                try:
                    self.wait_until(
                        lambda thread=thread: not thread.is_alive())
                except TimeoutError:
                    self.fail('%s goes on after nova-compute has stopped' %
                              thread)

        self.addCleanup(wait_for_end)
        self.useFixture(fixtures.MockPatchObject(
            threading.Thread, 'start', note_and_start))

    def _setup_compute_service(self):
        return self.start_service('compute', host='compute')

    def start_service(self, name, *args, **kwargs):
        if name == 'compute' and node:
            # Another process would not know it either.
            node.LOCAL_NODE_UUID = None
        service = super().start_service(name, *args, **kwargs)
        if name == 'compute':
            self.addCleanup(service.stop)
        return service

    def restart_compute(self):
        """Stop nova-compute and start it anew, guests going on."""
        self.compute = self.restart_compute_service(
            self.compute, keep_hypervisor_state=False)

    def kill_compute_within(self, step, act, replacement=None):
        """Do something, kill nova-compute on the way, and start it again.

        :param step: one of backend.STEPS, after which it dies
        :param act: function that asks Nova for something
        :param replacement: what runs in place of the step, called with the
            function and its arguments
        :returns: what act returned
        """
        killed = threading.Event()
        end = threading.Event()
        dead = []

        def run_and_die(function, *args, **kwargs):
            if replacement:
                replacement(function, *args, **kwargs)
            else:
                function(*args, **kwargs)
            dead.extend(find_frames())
            killed.set()
            # What is dead does not go on, and no handler runs either, before
            # the end of the test.
            end.wait()
            raise ComputeKilled()

        def find_frames():
            """Return the frames of nova-compute in this thread.

            A worker of a pool has none; the call that waits for it has.
            """
            frame = sys._getframe()
            while frame:
                if frame.f_globals is vars(manager):
                    yield frame
                frame = frame.f_back

        def dispatch(dispatcher, incoming):
            dispatched.append(incoming)
            try:
                return receive(dispatcher, incoming)
            finally:
                dispatched.remove(incoming)

        def has_ended(frame):
            try:
                # It cannot be done as long as the frame is executed.
                frame.clear()
            except RuntimeError:
                return False
            return True

        def bury():
            # They must not meet the next test.
            end.set()
            for frame in dead:
                self.wait_until(has_ended, frame)
            self.wait_until(lambda: not dispatched)

        receive = rpc_dispatcher.RPCDispatcher.dispatch
        dispatched = []
        self.useFixture(fixtures.MockPatchObject(
            rpc_dispatcher.RPCDispatcher, 'dispatch', dispatch))
        self.addCleanup(bury)
        with backend.replace_step(step, run_and_die), (
                backend.let_leases_run_out()):
            result = act()
            self.wait_until(killed.is_set)
        # Another process has locks of its own.
        for locks in '_semaphores', '_fair_locks':
            self.useFixture(fixtures.MockPatchObject(
                lockutils, locks, type(getattr(lockutils, locks))()))
        # What is dead does not end its calls first.
        for name in 'rpcserver', 'rpcserver_alt':
            # Newer releases have two.
            if getattr(self.compute, name, None):
                self.useFixture(fixtures.MockPatchObject(
                    getattr(self.compute, name), 'wait'))
        with backend.let_leases_run_out():
            self.restart_compute()
        return result

    def start_other_compute(self):
        """Start a second nova-compute, which shares this one's libvirtd.

        No server may run yet.
        """
        name = 'other'
        with contextlib.ExitStack() as patches:
            patches.enter_context(mock.patch.object(
                libvirt_host.Host, 'get_hostname', return_value=name))
            if node:
                patches.enter_context(mock.patch(
                    'nova.virt.node.get_local_node_uuid',
                    return_value=uuids.other))
            compute = self.start_service('compute', host=name)
            host = compute.driver._host
            if hasattr(host, 'get_node_uuid'):
                # It remembers it.
                host.get_node_uuid()
        host.get_hostname = lambda: name
        backend.share_tgtd(self.compute.driver, compute.driver)
        return compute

    def tell(self, words):
        """Have whoever runs this test print something that was measured."""
        self.addDetail('told', content.text_content(words))

    wait_until = staticmethod(sheepdog.waiting.wait_until)

    def wait_for_api(self, condition, *args):
        """Wait for what the API tells from Nova's databases."""
        return self.wait_until(condition, *args, pause=self.changes.pause)

    # Nova's own waits are for fakes, and give up after some seconds.

    def _wait_for_server_parameter(self, server, expected_params, *args,
                                   **kwargs):
        expects_error = expected_params.get('status') == 'ERROR'
        may_be_in_error = expects_error or server.get('status') == 'ERROR'

        def find():
            found = self.api.get_server(server['id'])
            # The fault comes after the status.
            has_failed = found['status'] == 'ERROR' and 'fault' in found
            if has_failed and not may_be_in_error:
                self.fail('Server %s was to become %s, and failed: %s' % (
                    server['id'], expected_params, found['fault']))
            return found if (has_failed or not expects_error) and all(
                found[name] == value
                for name, value in expected_params.items()) else None

        return self.wait_for_api(find)

    def _wait_until_deleted(self, server):
        may_be_in_error = server.get('status') == 'ERROR'

        def is_deleted():
            try:
                found = self.api.get_server(server['id'])
            except client.OpenStackApiNotFoundException:
                return True
            if (found['status'] == 'ERROR' and 'fault' in found and
                    not may_be_in_error):
                self.fail('Server %s was to go, and failed: %s' % (
                    server['id'], found['fault']))
            return False

        self.wait_for_api(is_deleted)

    def _wait_longer(self, wait, *args, **kwargs):
        def find():
            try:
                return wait(*args, **kwargs)
            except self.failureException:
                return None

        return self.wait_for_api(find)

    def _wait_for_instance_action_event(self, *args, **kwargs):
        return self._wait_longer(
            super()._wait_for_instance_action_event, *args, **kwargs)

    def _wait_for_migration_status(self, *args):
        return self._wait_longer(super()._wait_for_migration_status, *args)

    def upload_image(self, disk_format='raw', size=units.Mi, **properties):
        """Have Glance hold an image that boots, see boot_sector.

        :param disk_format: 'raw', 'qcow2' or 'vmdk'
        :param size: virtual size in bytes
        :param properties: of the image, such as hw_disk_bus
        :returns: its id
        """
        path = os.path.join(self.useFixture(fixtures.TempDir()).path, 'image')
        boot_sector.write_image(path, size)
        return self.upload_file(path, disk_format, **properties)

    def upload_file(self, path, disk_format, subformat='streamOptimized',
                    **properties):
        """Have Glance hold the image of a raw disk.

        :param path: of the disk
        :param disk_format: of the image; a qcow2 or vmdk is made of the disk
        :param subformat: of a vmdk
        :param properties: of the image, such as hw_disk_bus
        :returns: its id
        """
        if disk_format in ('qcow2', 'vmdk'):
            raw, path = path, path + '.' + disk_format
            options = ('-o', 'subformat=' + subformat) if (
                disk_format == 'vmdk') else ()
            processutils.execute('qemu-img', 'convert', '-f', 'raw', '-O',
                                 disk_format, *options, raw, path)
        with open(path, 'rb') as data:
            return self.glance.create(None, {
                'name': 'boot-counter',
                'status': 'active',
                'disk_format': disk_format,
                'container_format': (
                    disk_format if disk_format in ('aki', 'ari') else 'bare'),
                'size': os.stat(path).st_size,
                'min_disk': 0,
                'min_ram': 0,
                'properties': properties,
            }, data)['id']

    def upload_iso(self):
        """Have Glance hold a CD that boots, see boot_sector.

        As many do, it boots from a disk too.

        :returns: its id
        """
        directory = self.useFixture(fixtures.TempDir()).path
        tree = os.path.join(directory, 'tree')
        os.mkdir(tree)
        boot_sector.write_image(os.path.join(tree, 'boot'))
        path = os.path.join(directory, 'image')
        processutils.execute(
            'genisoimage', '-quiet', '-o', path, '-no-emul-boot', '-b', 'boot',
            '-boot-load-size', '1', tree)
        with open(path, 'r+b') as image:
            image.write(boot_sector.assemble())
        return self.upload_file(path, 'iso')

    def upload_linux(self, **properties):
        """Have Glance hold an image for the Linux of the test bed.

        :param properties: of the image, such as hw_qemu_guest_agent
        :returns: its id
        """
        parts = self.testbed.guest
        path = os.path.join(self.useFixture(fixtures.TempDir()).path, 'image')
        with open(path, 'wb') as image:
            image.truncate(32 * units.Mi)
        processutils.execute('mkfs.ext4', '-q', path)
        return self.upload_file(
            # It panics at its look at the timer where QEMU is kept waiting.
            path, 'raw',
            os_command_line='console=ttyS0 quiet no_timer_check',
            kernel_id=self.upload_file(os.path.join(parts, 'kernel'), 'aki'),
            ramdisk_id=self.upload_file(
                os.path.join(parts, 'ramdisk'), 'ari'), **properties)

    def make_flavor(self, disk=1, ephemeral=0, swap=0, memory_mb=64,
                    **extra_specs):
        """Return the id of a new flavor for a small guest.

        :param disk: GiB of the root disk; ephemeral alike
        :param swap: in MiB
        :param memory_mb: in MiB; a Linux wants 128
        :param extra_specs: names with '__' for ':'
        """
        return self._create_flavor(
            memory_mb=memory_mb, vcpu=1, disk=disk, ephemeral=ephemeral,
            swap=swap,
            extra_spec={name.replace('__', ':'): value
                        for name, value in extra_specs.items()})

    def post_server(self, image_id, flavor_id=None, **fields):
        """Ask for a server, and do not wait for it.

        :param fields: further fields of the request, such as config_drive
        :returns: dict with its id
        """
        body = self._build_server(
            image_uuid=image_id, flavor_id=flavor_id or self.make_flavor(),
            networks='none')
        return self.api.post_server({'server': dict(body, **fields)})

    def boot(self, image_id, flavor_id=None, **fields):
        """Boot a server as post_server() does, and wait until it has booted.

        :returns: dict with its id
        """
        server = self._wait_for_state_change(
            self.post_server(image_id, flavor_id, **fields), 'ACTIVE')
        self.wait_for_boot(server, 1)
        return server

    def act(self, server, action, arguments, status):
        """Have something done to a server and wait for its status."""
        self.api.post_server_action(server['id'], {action: arguments})
        self.wait_for_api(lambda: self.api.get_server(server['id'])[
            'OS-EXT-STS:task_state'] is None)
        return self._wait_for_state_change(server, status)

    def create_image(self, server):
        """Make an image of a server, and return its id."""
        image_id = self.api.post_server_action(
            server['id'], {'createImage': {'name': 'snapshot'}})['image_id']
        self.wait_until(
            lambda: self.glance.images[image_id]['status'] == 'active')
        self.wait_for_api(lambda: self.api.get_server(server['id'])[
            'OS-EXT-STS:task_state'] is None)
        return image_id

    def console(self, server):
        """Return what the guest printed since it was last started."""
        return self.api.post_server_action(
            server['id'], {'os-getConsoleOutput': {}})['output']

    def console_log(self, server):
        """Return the same without asking the API."""
        return backend.read_console(server['id'])

    def wait_for_console(self, server, pattern):
        """Wait until the guest has printed something.

        :param pattern: regular expression
        :returns: the match
        """
        def is_said():
            return re.search(pattern, self.console_log(server)) and (
                re.search(pattern, self.console(server)))

        try:
            return self.wait_until(is_said)
        except TimeoutError:
            self.fail('The console does not say %r but %r' % (
                pattern, self.console(server)))

    def wait_for_boot(self, server, count):
        """Wait until the guest says that it has booted so many times."""
        self.wait_for_console(server, r'guest boot %d\n' % count)

    def wait_for_beats(self, server):
        """Wait until the guest has written to its disk, without a reset."""
        def beats():
            return self.console_log(server).count('guest beat')

        # The first might have been on its way already.
        enough = beats() + 2
        self.wait_until(lambda: beats() >= enough)
        # A reset does not empty the log. A resume does, without a boot.
        self.assertLessEqual(self.console(server).count('guest boot'), 1)

    def guest_xml(self, server):
        """Return the XML of the running guest as an lxml tree."""
        connection = self.compute.driver._host.get_connection()
        return etree.fromstring(
            connection.lookupByUUIDString(server['id']).XMLDesc(0))

    def vdis(self, server, cluster=None):
        """Return the disks of a server and their snapshots.

        :param cluster: another sheepdog.Cluster than the test's only one
        :returns: dict of name, with '@' and the tag for a snapshot, to size
            in bytes
        """
        return {name: size for name, size in
                self.all_vdis(server, cluster).items() if name != 'state'}

    def all_vdis(self, server, cluster=None):
        """Return what vdis() does, and the record of the server as well."""
        cluster = cluster or self.sheepdog
        status, out, err = cluster.run('vdi', 'list', '-r')
        self.assertEqual((0, b''), (status, err))
        vdis = {}
        for line in out.decode().splitlines():
            flag, name, _id, size = line.split()[:4]
            if flag == 's':
                name += '@' + line.split()[9]
            if name.startswith(server['id']):
                vdis[name[len(server['id']) + 1:]] = int(size)
        return vdis

    def bases(self, cluster=None):
        """Return the names of the base images that this test has made, and of
        what serves to make them.

        :param cluster: as for vdis()
        """
        return self._list_bases(cluster or self.sheepdog) - self._bases_before

    def _list_bases(self, cluster):
        status, out, err = cluster.run('vdi', 'list', '-r')
        self.assertEqual((0, b''), (status, err))
        names = {line.split()[1] for line in out.decode().splitlines()}
        return {name for name in names
                if re.search('_(base|import|record)[.]', name)}

    def half_made(self):
        """Return what is there of imports that have not ended, but for
        leases, which go last.
        """
        return {name for name in self.bases() if '_import.' in name}.union(
            name for name in os.listdir(backend.get_import_directory())
            if '_lease.' not in name)

    def targets(self, server):
        """Return the iSCSI targets of a server."""
        return [name for name in self.testbed.targets()
                if server['id'] in name]

    def assert_exported(self, server, disks):
        """See that the disks of a server can be reached, and no others.

        :param disks: names of its disks, such as 'disk'
        """
        expected = {
            backend.get_iqn('%s_%s' % (server['id'], disk))
            for disk in disks}
        if backend.get_transport(self.compute.driver) == 'native':
            expected = set()
        self.assertEqual(expected, set(self.targets(server)))

    def guest_disks(self, server):
        """Return what disks on Sheepdog the running guest has.

        :returns: list of (device, name of the disk), such as
            ('cdrom', 'disk.config')
        """
        disks = []
        for element in self.guest_xml(server).findall('devices/disk'):
            vdi = backend.get_vdi_of_disk(element)
            if vdi:
                disks.append((element.get('device'), vdi.partition('_')[2]))
        return disks

    def files(self, server):
        """Return the files of a server below instances_path."""
        return [os.path.join(directory, name)
                for directory, directories, names in
                os.walk(self.instances_path)
                for name in directories + names
                if server['id'] in os.path.join(directory, name)]

    def leftovers(self, server):
        """Return all that a server has on the cluster and on the host."""
        return {
            'VDIs': self.all_vdis(server),
            'targets': self.targets(server),
            'files': self.files(server),
            'guests': [uuid for uuid in
                       self.compute.driver.list_instance_uuids()
                       if uuid == server['id']],
        }

    def assert_nothing_left(self, server):
        self.assertEqual(
            {'VDIs': {}, 'targets': [], 'files': [], 'guests': []},
            self.leftovers(server))
