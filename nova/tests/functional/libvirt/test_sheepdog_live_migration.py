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
"""Live migration between two hosts, each with libvirtd and tgtd of its own.

The guest writes all the time, into objects that are made and objects that are
copied as it does, and reads back and compares everything afterwards.
"""

import contextlib
import os
import re
import socket
import sys
import threading

import fixtures
from oslo_serialization import jsonutils
from oslo_utils.fixture import uuidsentinel as uuids
import tenacity

from nova import context as nova_context
from nova.network import model as network_model
from nova import objects
from nova.objects import base as objects_base
from nova import test
from nova.tests.fixtures import migration_guest
from nova.tests.fixtures import real_libvirt
from nova.tests.fixtures import sheepdog
from nova.tests.unit import fake_instance

# Seconds that anything may take
LIMIT = 240
# libvirt's states of a domain, and its events
RUNNING = 1
PAUSED = 3
EVENT_SUSPENDED = 3
EVENT_RESUMED = 4


class RemoteError(Exception):
    """What a host has raised."""


class RemoteHost:
    """Has a sheepdog_host.ComputeHost do something by another process.

    Every method of that is here by its name, with arguments by keyword.
    """

    def __init__(self, name, path):
        self.name = name
        self._path = path

    def __getattr__(self, method):
        def call(**arguments):
            serializer = objects_base.NovaObjectSerializer()
            context = nova_context.get_admin_context()
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(self._path)
                client.sendall(jsonutils.dumps([
                    method, serializer.serialize_entity(
                        context, arguments)]).encode() + b'\n')
                with client.makefile() as answers:
                    line = answers.readline()
            if not line:
                raise RemoteError('%s ended' % self.name)
            answer = jsonutils.loads(line)
            if 'error' in answer:
                raise RemoteError('%s: %s' % (self.name, answer['error']))
            return serializer.deserialize_entity(context, answer['result'])
        return call


class SheepdogLiveMigrationTestCase(test.NoDBTestCase):

    def setUp(self):
        super().setUp()
        self.testbed = real_libvirt.Testbed()
        self.directory = self.useFixture(fixtures.TempDir()).path
        self.sheepdog = self.start_cluster()
        self.image = os.path.join(self.directory, 'image')
        migration_guest.write_image(self.image)
        self.instance = self._make_instance()
        self.testbed.ask('hosts', str(self.sheepdog.port), 'one', 'two')
        self.one = self.start_compute('one', 1)
        self.two = self.start_compute('two', 2)

    def start_cluster(self):
        host = os.environ.get('SHEEPDOG_HOST')
        if host:
            return self.useFixture(sheepdog.Cluster(
                os.environ['SHEEPDOG_DOG'], host,
                int(os.environ['SHEEPDOG_PORT'])))
        return self.useFixture(sheepdog.SheepdogFixture())

    def start_compute(self, name, number, **libvirt_options):
        """Start the process of a host; no other may run there."""
        path = os.path.join(self.directory, name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self.testbed.ask(
            'run', name, sys.executable, '-m',
            'nova.tests.functional.libvirt.sheepdog_host', path)
        self.wait_until(os.path.exists, path)
        host = RemoteHost(name, path)
        host.start(name=name, image=self.image, options={
            'DEFAULT': {
                'debug': True,
                'instances_path': '/var/lib/nova/instances',
                'my_ip': '10.0.0.%d' % number,
                'rootwrap_config': '/etc/nova/rootwrap.conf',
                'state_path': '/var/lib/nova',
                'tempdir': '/var/lib/nova',
            },
            'libvirt': dict({
                'cpu_mode': 'none',
                'images_sheepdog_host': '127.0.0.1',
                'images_sheepdog_port': self.sheepdog.port,
                'images_sheepdog_portal': '127.0.0.1:%d' % (3259 + number),
                'images_type': 'sheepdog',
                'live_migration_inbound_addr': '10.0.0.%d' % number,
                'live_migration_permit_post_copy': True,
                'live_migration_scheme': 'tcp',
                'virt_type': 'qemu',
            }, **libvirt_options),
            'vnc': {'enabled': False},
            'workarounds': {'skip_cpu_compare_on_dest': True},
        })
        return host

    def _make_instance(self):
        flavor = objects.Flavor(
            id=1, name='small', memory_mb=64, vcpus=1, root_gb=1,
            ephemeral_gb=0, flavorid='1', swap=0, rxtx_factor=1.0,
            vcpu_weight=1, disabled=False, is_public=True, extra_specs={},
            projects=[])
        instance = fake_instance.fake_instance_obj(
            nova_context.get_admin_context(), flavor=flavor,
            expected_attrs=['flavor', 'info_cache', 'metadata',
                            'numa_topology', 'pci_devices', 'pci_requests',
                            'system_metadata'],
            uuid=uuids.instance, image_ref=uuids.image, host='one',
            node='one', vm_state='active', root_gb=1, ephemeral_gb=0,
            kernel_id='', ramdisk_id='', config_drive='',
            root_device_name='/dev/vda')
        instance.info_cache = objects.InstanceInfoCache(
            instance_uuid=instance.uuid,
            network_info=network_model.NetworkInfo())
        instance.trusted_certs = None
        instance.vcpu_model = None
        return instance

    @staticmethod
    def wait_until(condition, *args, **kwargs):
        return tenacity.Retrying(
            stop=tenacity.stop_after_delay(LIMIT),
            wait=tenacity.wait_fixed(0.1),
            retry=tenacity.retry_if_result(lambda result: not result))(
                condition, *args, **kwargs)

    def console(self):
        """Return what the guest has printed, on whatever host."""
        return ''.join(host.console(instance=self.instance)
                       for host in (self.one, self.two))

    def wait_for_writes(self, count):
        # no line of the BIOS begins like this
        self.wait_until(lambda: re.search(
            r'(?m)^o{%d}' % count, self.console()))

    def boot(self):
        """Have the guest begin to write at the first host, and pause it."""
        self.one.spawn(instance=self.instance)
        self.wait_for_writes(1)
        self.one.pause(instance=self.instance)

    def prepare(self):
        """Do what comes before a live migration, and have the guest go on.

        So the guest is in its first pass all through the migration, however
        slow this is.
        """
        data = self.two.check_can_live_migrate_destination(
            instance=self.instance)
        data = self.one.check_can_live_migrate_source(
            instance=self.instance, data=data)
        data.migration = objects.Migration(
            id=1, uuid=uuids.migration, source_compute='one',
            dest_compute='two', status='running')
        data = self.two.pre_live_migration(instance=self.instance, data=data)
        self.one.unpause(instance=self.instance)
        return data

    def finish(self, data):
        """Do what comes after a live migration."""
        self.one.post_live_migration(instance=self.instance, data=data)
        self.two.post_live_migration_at_destination(instance=self.instance)
        self.assertIsNone(self.one.state(instance=self.instance))
        self.assertEqual([], self.one.targets())
        self.assertEqual(1, len(self.two.targets()))
        self.assertNotIn('sheepdog:arrival',
                         self.two.xml(instance=self.instance))

    def migrate(self):
        data = self.prepare()
        self.assertEqual('completed', self.run_migration(data))
        self.finish(data)

    def run_migration(self, data):
        return self.one.live_migration(
            instance=self.instance, dest='two', data=data)

    @contextlib.contextmanager
    def running_migration(self, data):
        """Have the body run while the guest is migrated.

        :returns: list, which holds the outcome afterwards
        """
        outcome = []
        thread = threading.Thread(
            target=lambda: outcome.append(self.run_migration(data)))
        thread.start()
        try:
            yield outcome
        finally:
            thread.join(LIMIT)

    def ask_until_done(self, method):
        """Have the first host do something as soon as it can."""
        def ask():
            try:
                method(instance=self.instance)
                return True
            except RemoteError:
                # no migration yet
                return False

        self.wait_until(ask)

    def roll_back(self, data):
        """Do what comes after a live migration that failed."""
        self.two.rollback_live_migration_at_destination(
            instance=self.instance, data=data)
        self.assertIsNone(self.two.state(instance=self.instance))
        self.assertFalse(self.two.exists(instance=self.instance))
        self.assertEqual([], self.two.targets())
        self.assert_running(self.one)
        self.assertEqual(1, len(self.one.targets()))

    def assert_running(self, host):
        self.assertEqual(
            RUNNING, host.state(instance=self.instance)[0])

    def wait_for_pass(self, number):
        """Wait for the end of a pass of the guest, or of the guest.

        :returns: number of sectors that it has read wrongly in all passes,
            None if its disk has failed
        """
        end = re.compile(r'pass %d bad \d+\s|disk failed' % number)
        try:
            self.wait_until(lambda: end.search(self.console()))
        except tenacity.RetryError:
            self.fail('The guest has printed no more than %r' % (
                self.console()))
        console = self.console()
        if 'disk failed' in console:
            return None
        return sum(map(int, re.findall(r'pass \d+ bad (\d+)', console)))

    def assert_no_damage(self):
        """Wait for the guest's second pass and compare the whole disk."""
        self.assertEqual(0, self.wait_for_pass(0))
        self.assertEqual(0, self.wait_for_pass(1))
        for host in self.one, self.two:
            if host.state(instance=self.instance):
                host.pause(instance=self.instance)
        damage = {}
        for number in range(1, migration_guest.OBJECTS):
            status, data, error = self.sheepdog.run(
                'vdi', 'read', self.instance.uuid + '_disk',
                str(number * migration_guest.OBJECT),
                str(migration_guest.OBJECT))
            self.assertEqual((0, b''), (status, error))
            damage[number] = migration_guest.find_damage(data, number, 2)
        self.assertEqual({}, {number: sectors for number, sectors
                              in damage.items() if sectors})

    def print_stop_time(self):
        """Print how long the guest was stopped.

        On a busy machine most of it is the start of nova-rootwrap, so there
        is no limit that it could be held to.
        """
        def times(host, wanted):
            return [when for when, uuid, event, _detail in host.events()
                    if uuid == self.instance.uuid and event == wanted]

        # It was stopped once before, see boot().
        seconds = (times(self.two, EVENT_RESUMED)[0] -
                   times(self.one, EVENT_SUSPENDED)[-1])
        print('The guest was stopped for %.3f s' % seconds, file=sys.stderr)

    def test_data(self):
        self.boot()
        self.migrate()
        self.assert_running(self.two)
        self.print_stop_time()
        self.assert_no_damage()

    def test_corruption_without_the_reload(self):
        self.boot()
        self.two.leave_out_the_reload()
        self.migrate()
        # Either it reads what was there before, or nothing can be read:
        # Sheepdog has dropped what it believes to share with another VDI.
        self.assertNotEqual(0, self.wait_for_pass(0))

    def test_force_complete(self):
        self.boot()
        data = self.prepare()
        with self.running_migration(data) as outcome:
            self.ask_until_done(self.one.live_migration_force_complete)
        self.assertEqual(['completed'], outcome)
        self.finish(data)
        self.assert_running(self.two)
        self.print_stop_time()
        self.assert_no_damage()

    def test_abort(self):
        self.boot()
        data = self.prepare()
        with self.running_migration(data) as outcome:
            self.ask_until_done(self.one.live_migration_abort)
        self.assertIn(outcome, (['cancelled'], ['failed']))
        self.roll_back(data)
        self.assert_no_damage()

    def test_destination_cannot_open_the_disk(self):
        self.boot()
        data = self.prepare()
        self.two.unexport()
        self.assertEqual('failed', self.run_migration(data))
        self.roll_back(data)
        self.assert_no_damage()

    def test_reload_fails_at_first(self):
        self.boot()
        data = self.prepare()
        self.two.fail_to_reload()
        self.assertEqual('completed', self.run_migration(data))
        self.one.post_live_migration(instance=self.instance, data=data)
        self.two.post_live_migration_at_destination(instance=self.instance)
        self.assertEqual(PAUSED, self.two.state(instance=self.instance)[0])
        self.two.reload_again()
        self.wait_until(lambda: self.two.state(
            instance=self.instance)[0] == RUNNING)
        self.assert_no_damage()

    def test_nova_compute_of_the_destination_restarts(self):
        self.boot()
        data = self.prepare()
        with contextlib.suppress(RemoteError):
            self.two.exit()
        self.assertEqual('completed', self.run_migration(data))
        self.two = self.start_compute('two', 2)
        self.wait_until(lambda: self.two.state(
            instance=self.instance)[0] == RUNNING)
        self.finish(data)
        self.assert_no_damage()

    def test_paused_server(self):
        self.boot()
        data = self.prepare()
        # what the target of the destination does not know of
        self.wait_for_writes(10)
        self.one.pause(instance=self.instance)
        self.instance.vm_state = 'paused'
        self.assertEqual('completed', self.run_migration(data))
        self.finish(data)
        self.assertEqual(PAUSED, self.two.state(instance=self.instance)[0])
        self.two.unpause(instance=self.instance)
        self.assert_no_damage()
