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

"""A whole Nova on two hosts, each with libvirtd and tgtd of its own.

The API, scheduler, conductor and placement run in the process of the test, and
the nova-compute of each host in a process on that host, see sheepdog_compute.
"""

import collections
import contextlib
import os
import sys

import fixtures
import oslo_messaging as messaging
from oslo_messaging._drivers import impl_fake
from testtools import content

import nova.conf
from nova import context as nova_context
from nova.objects import host_mapping
from nova.tests.functional.libvirt import sheepdog_bridge
from nova.tests.functional.libvirt import sheepdog_testcase

CONF = nova.conf.CONF
# How many lines of a host's log a test that failed shows
LAST_LINES = 60


class ComputeHost:
    """A host of the test bed, and the nova-compute on it.

    :param testbed: the real_libvirt.Testbed
    :param name: its name there
    :param directory: for its files
    :param test_path: of the socket of the test's process, for its cell
    :param cluster: its sheepdog.Cluster
    :ivar control: its sheepdog_compute.Control
    """

    def __init__(self, testbed, name, directory, test_path, cluster):
        self.name = name
        self.cluster = cluster
        self.directory = directory
        self.configuration = os.path.join(directory, 'nova.conf')
        self._path = os.path.join(directory, 'socket')
        self._testbed = testbed
        self._test_path = test_path
        self._messages = sheepdog_bridge.Remote(self._path, 'messages')
        self._waiting = []
        self.control = sheepdog_bridge.Remote(self._path, 'control')

    def start(self):
        """Start nova-compute; none may run."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        self._testbed.ask(
            'run', self.name, sys.executable, '-m',
            'nova.tests.functional.libvirt.sheepdog_compute', self._test_path,
            self._path, self.configuration)

    def wait_until_ready(self, wait_until):
        """Wait until nova-compute answers.

        :param wait_until: see SheepdogTestCase
        """
        wait_until(lambda: not self.is_dead())
        while self._waiting:
            sheepdog_bridge.send(self._messages, *self._waiting.pop(0))

    def kill(self):
        """End nova-compute, all else on the host going on."""
        with contextlib.suppress(ConnectionError):
            self.control.exit()

    def is_dead(self):
        """Tell whether nova-compute does not run.

        If it is about to start, the answer comes when it has.
        """
        try:
            self.control.wait_until_ready()
        except (ConnectionError, FileNotFoundError):
            return True
        return False

    def send(self, target, context, message, wait, timeout):
        """Send a message to nova-compute.

        As with a real message queue, what needs no answer is kept for it
        while it does not run.
        """
        try:
            return sheepdog_bridge.send(self._messages, target, context,
                                        message, wait, timeout)
        except (ConnectionError, FileNotFoundError) as e:
            if wait:
                raise messaging.MessagingTimeout(str(e))
            self._waiting.append((target, context, message, wait, timeout))


class SheepdogHostsTestCase(sheepdog_testcase.SheepdogTestCase):
    """Two compute hosts, 'one' and 'two'.

    :ivar hosts: dict of the ComputeHosts by name
    :ivar clusters: dict of the sheepdog.Clusters by name of the cell
    """

    # The cell of each; the hosts of a cell have a cluster of their own.
    CELLS = {'one': 'cell1', 'two': 'cell1'}
    # [libvirt] options of all hosts
    OPTIONS = {}

    def _setup_compute_service(self):
        self.hosts = {}
        directory = self.useFixture(fixtures.TempDir()).path
        send = impl_fake.FakeDriver.send

        def send_there(driver, target, context, message, wait_for_reply=None,
                       timeout=None, **kwargs):
            for host in self.hosts.values():
                if target.topic.startswith('compute') and (
                        target.fanout or target.server == host.name):
                    answer = host.send(target, context, message,
                                       wait_for_reply, timeout)
                    if not target.fanout:
                        return answer
            return send(driver, target, context, message, wait_for_reply,
                        timeout)

        self.useFixture(fixtures.MonkeyPatch(
            'oslo_messaging._drivers.impl_fake.FakeDriver.send', send_there))
        self.clusters = {}
        for cell in self.CELLS.values():
            if cell not in self.clusters:
                self.clusters[cell] = (self.start_cluster() if self.clusters
                                       else self.sheepdog)
                self._serve_cell(cell, os.path.join(directory, cell),
                                 send_there)
        self.addCleanup(self.testbed.ask, 'hosts')
        self.testbed.ask('hosts', *(
            '%s=%s' % (name, ','.join(self.clusters[cell].sheep()))
            for name, cell in self.CELLS.items()))
        self.addOnException(self._show_logs)
        for number, (name, cell) in enumerate(self.CELLS.items(), 1):
            self._make_host(name, number, directory,
                            os.path.join(directory, cell),
                            self.clusters[cell])
        self.start_computes(*self.hosts.values())
        host_mapping.discover_hosts(nova_context.get_admin_context())

    def _serve_cell(self, cell, path, send):
        """Let the hosts of a cell reach what runs in this process.

        :param cell: its name
        :param path: of the socket to make
        :param send: what to use as oslo.messaging's FakeDriver.send()
        """
        context = nova_context.get_admin_context()
        with nova_context.target_cell(
                context, self.cell_mappings[cell]) as targeted:
            connections = {name: getattr(targeted, name)
                           for name in sheepdog_bridge.CONNECTIONS}
        server = sheepdog_bridge.Server(
            path, messages=sheepdog_bridge.Messages(send, **connections),
            placement=self.placement.fixture, images=self.glance,
            image_data=self.glance._imagedata,
            networks=self.neutron._get_client(context, admin=True))
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)

    def start_computes(self, *hosts):
        """Start nova-compute on hosts where it does not run."""
        for host in hosts:
            host.start()
        for host in hosts:
            host.wait_until_ready(self.wait_until)

    def _make_host(self, name, number, directory, path, cluster):
        directory = os.path.join(directory, name)
        os.mkdir(directory)
        host = ComputeHost(self.testbed, name, directory, path, cluster)
        options = {
            'DEFAULT': {
                'compute_driver': 'libvirt.LibvirtDriver',
                'debug': True,
                'host': name,
                # The domain of a guest that is migrated holds it.
                'instances_path': '/var/lib/nova/instances',
                'my_ip': '10.0.0.%d' % number,
                'report_interval': 2,
                'rootwrap_config': '/etc/nova/rootwrap.conf',
                'shutdown_timeout': 1,
                'state_path': '/var/lib/nova',
                'tempdir': '/var/lib/nova',
                'transport_url': 'fake:/',
                'vif_plugging_timeout': 0,
            },
            # Nobody asks there; it only has to be known.
            'glance': {'api_servers': 'http://localhost:9292'},
            'libvirt': dict({
                'cpu_mode': 'none',
                'images_sheepdog_host': cluster.host,
                'images_sheepdog_max_calls': 2,
                'images_sheepdog_port': cluster.port,
                'images_sheepdog_portal': '127.0.0.1:%d' % (3259 + number),
                'images_type': 'sheepdog',
                'live_migration_inbound_addr': '10.0.0.%d' % number,
                'live_migration_scheme': 'tcp',
                # A raw one would take as much memory as the disk is large.
                'snapshot_image_format': 'qcow2',
                'virt_type': 'qemu',
            }, **self.OPTIONS),
            'vnc': {'enabled': False},
            'workarounds': {
                'ensure_libvirt_rbd_instance_dir_cleanup': True,
                'skip_cpu_compare_on_dest': True,
            },
        }
        with open(host.configuration, 'w') as configuration:
            for group, values in options.items():
                configuration.write('[%s]\n' % group)
                configuration.writelines(
                    '%s = %s\n' % item for item in values.items())
        self.hosts[name] = host

    def _show_logs(self, _failure):
        for name in self.hosts:
            with open(os.path.join(os.environ['TESTBED_LOGS'],
                                   name + '.log')) as log:
                lines = [line for line in log if ' DEBUG ' not in line]
            self.addDetail(name + '.log', content.text_content(
                ''.join(lines[-LAST_LINES:])))

    def host_of(self, server):
        """Return the ComputeHost that a server is on, as Nova believes."""
        return self.hosts[
            self.api.get_server(server['id'])['OS-EXT-SRV-ATTR:host']]

    def other_host(self, server):
        """Return the ComputeHost that a server is not on."""
        here = self.host_of(server)
        return next(host for host in self.hosts.values() if host != here)

    def console_log(self, server):
        logs = []
        for host in self.hosts.values():
            # A nova-compute that has been killed does not answer.
            with contextlib.suppress(ConnectionError, FileNotFoundError):
                logs.append(host.control.console(server['id']))
        return ''.join(logs)

    def guest_states(self, server):
        """Return libvirt's state of a guest on each host that has it."""
        states = {name: host.control.states().get(server['id'])
                  for name, host in self.hosts.items()}
        return {name: state for name, state in states.items() if state}

    def leftovers(self, server):
        return {
            'VDIs': dict(collections.ChainMap(*(
                self.all_vdis(server, cluster)
                for cluster in self.clusters.values()))),
            'targets': {
                name: names for name, names in (
                    (name, [target for target in host.control.targets()
                            if server['id'] in target])
                    for name, host in self.hosts.items()) if names},
            'files': {
                name: paths for name, paths in (
                    (name, host.control.files(server['id']))
                    for name, host in self.hosts.items()) if paths},
            'guests': self.guest_states(server),
        }

    def assert_nothing_left(self, server):
        self.assertEqual(
            {'VDIs': {}, 'targets': {}, 'files': {}, 'guests': {}},
            self.leftovers(server))

    def assert_only_at(self, server, host):
        """Make sure that nothing of a server is at the other host."""
        left = self.leftovers(server)
        self.assertEqual([host.name], list(left['guests']))
        # QEMU's own driver needs none.
        native = "protocol='sheepdog'" in host.control.xml(server['id'])
        self.assertEqual([] if native else [host.name], list(left['targets']))
        self.assertEqual([host.name], list(left['files']))
