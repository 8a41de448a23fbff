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

"""Servers whose disks are on Sheepdog, through Nova's API."""

import os

import ddt
import fixtures
from oslo_utils import units

from nova import context
from nova import exception
from nova.tests.fixtures import sheepdog
from nova.tests.functional.libvirt import sheepdog_backend as backend
from nova.tests.functional.libvirt import sheepdog_testcase


@ddt.ddt
class SheepdogServerTestCase(sheepdog_testcase.SheepdogTestCase):

    @ddt.data('raw', 'qcow2')
    def test_boot_and_delete(self, disk_format):
        server = self.boot(self.upload_image(disk_format))
        self.assertEqual({'disk': units.Gi}, self.vdis(server))
        self.assert_exported(server, ['disk'])
        # The log of the console is a file, and no disk is.
        self.assertNotIn('disk', [os.path.basename(path)
                                  for path in self.files(server)])
        self._delete_server(server)
        self.assert_nothing_left(server)

    def test_every_kind_of_disk(self):
        server = self.boot(
            self.upload_image(), self.make_flavor(ephemeral=1, swap=8),
            config_drive=True, user_data='I2Nsb3VkLWNvbmZpZwo=')
        vdis = self.vdis(server)
        self.assertEqual(
            {'disk': units.Gi, 'disk.eph0': units.Gi,
             'disk.swap': 8 * units.Mi, 'disk.config': vdis['disk.config']},
            vdis)
        self.assertEqual(
            [('disk', 'disk'), ('disk', 'disk.eph0'), ('disk', 'disk.swap'),
             ('cdrom', 'disk.config')], self.guest_disks(server))
        self.assert_exported(server, vdis)
        # Something that guests understand is on each.
        for name, offset, magic in (
                ('disk.swap', 4096 - 10, b'SWAPSPACE2'),
                ('disk.config', 32769, b'CD001')):
            status, data, _err = self.sheepdog.run(
                'vdi', 'read', '%s_%s' % (server['id'], name), str(offset),
                str(len(magic)))
            self.assertEqual((0, magic), (status, data))
        self._delete_server(server)
        self.assert_nothing_left(server)

    def test_images_that_are_refused(self):
        self.flags(group='compute', vmdk_allowed_types=['streamOptimized'])
        for image_id, reason in (
                (self.upload_image('qcow2', size=2 * units.Gi),
                 "Flavor's disk is too small"),
                (self.upload_image('vmdk', subformat='monolithicSparse'),
                 'is unacceptable'),
                (self.upload_image(hw_ephemeral_encryption='True'),
                 'No valid host was found')):
            server = self._wait_for_state_change(
                self.post_server(image_id), 'ERROR')
            self.assertIn(reason, server['fault']['message'])
            self.assert_nothing_left(server)
        # Of the first; the flavor was to blame.
        self.assertEqual(2, len(self.bases()))

    def test_disk_bus_and_limits(self):
        flavor = self.make_flavor(
            quota__disk_read_iops_sec='1000',
            quota__disk_write_bytes_sec='104857600')
        server = self.boot(
            self.upload_image(hw_disk_bus='scsi',
                              hw_scsi_model='virtio-scsi'), flavor)
        disk = self.guest_xml(server).find('devices/disk')
        self.assertEqual('scsi', disk.find('target').get('bus'))
        self.assertEqual('1000', disk.findtext('iotune/read_iops_sec'))
        self.assertEqual('104857600',
                         disk.findtext('iotune/write_bytes_sec'))
        self.assertEqual('none', disk.find('driver').get('cache'))

    def test_power_states(self):
        server = self.boot(self.upload_image())
        self.act(server, 'reboot', {'type': 'SOFT'}, 'ACTIVE')
        self.wait_for_boot(server, 2)
        self.act(server, 'reboot', {'type': 'HARD'}, 'ACTIVE')
        self.wait_for_boot(server, 3)
        self.act(server, 'os-stop', None, 'SHUTOFF')
        self.assertEqual({'disk': units.Gi}, self.vdis(server))
        self.act(server, 'os-start', None, 'ACTIVE')
        self.wait_for_boot(server, 4)
        self.act(server, 'pause', None, 'PAUSED')
        self.act(server, 'unpause', None, 'ACTIVE')
        self.wait_for_beats(server)
        self.act(server, 'suspend', None, 'SUSPENDED')
        self.act(server, 'resume', None, 'ACTIVE')
        self.wait_for_beats(server)
        self._delete_server(server)
        self.assert_nothing_left(server)

    def test_restart_of_compute_and_libvirtd(self):
        server = self.boot(self.upload_image())
        self.restart_compute()
        self.wait_for_beats(server)
        self.act(server, 'reboot', {'type': 'HARD'}, 'ACTIVE')
        self.wait_for_boot(server, 2)

        self.testbed.ask('kill', 'libvirtd')
        self.testbed.ask('start', 'libvirtd')
        self.wait_for_beats(server)
        self.act(server, 'reboot', {'type': 'HARD'}, 'ACTIVE')
        self.wait_for_boot(server, 3)
        self._delete_server(server)
        self.assert_nothing_left(server)

    def test_restart_of_tgtd(self):
        running = self.boot(self.upload_image())
        stopped = self.boot(self.upload_image())
        self.act(stopped, 'os-stop', None, 'SHUTOFF')
        self.testbed.ask('kill', 'tgtd')
        self.testbed.ask('start', 'tgtd')
        self.wait_for_beats(running)
        self.act(stopped, 'os-start', None, 'ACTIVE')
        self.wait_for_boot(stopped, 2)

        # And if nobody was there to notice.
        self.compute.stop()
        self.testbed.ask('kill', 'tgtd')
        self.testbed.ask('start', 'tgtd')
        self.restart_compute()
        self.wait_for_beats(running)
        self.wait_for_boot(running, 1)
        for server in running, stopped:
            self._delete_server(server)
            self.assert_nothing_left(server)

    def _is_refused(self, server, reason):
        return reason in str(self._wait_for_action_fail_completion(
            server, 'live-migration',
            'compute_check_can_live_migrate_destination'))

    def test_live_migration_is_refused(self):
        other = self.start_other_compute()
        server = self.boot(self.upload_image(), host='compute')
        for transport, reason in (
                ('native', 'reach their VDIs by the native transport'),
                # The two share one libvirtd and one tgtd.
                ('iscsi', 'has a guest of this instance already')):
            backend.set_transport(other.driver, transport)
            self.api.post_server_action(server['id'], {'os-migrateLive': {
                'host': other.host, 'block_migration': 'auto'}})
            self.wait_for_api(self._is_refused, server, reason)
            self.wait_for_api(lambda: self.api.get_server(server['id'])[
                'OS-EXT-STS:task_state'] is None)
        server = self._wait_for_state_change(server, 'ACTIVE')
        self.assertEqual('compute', server['OS-EXT-SRV-ATTR:host'])
        self.wait_for_beats(server)
        self._delete_server(server)
        self.assert_nothing_left(server)

    def test_cluster_is_down_at_delete(self):
        server = self.boot(self.upload_image())
        # tgtd refuses to let the guest's last write alone.
        self.flags(group='libvirt', images_sheepdog_timeout=10)
        self.sheepdog.kill()
        self.api.delete_server(server['id'])
        server = self._wait_for_state_change(server, 'ERROR')
        self.sheepdog.start()
        self._delete_server(server)
        self.assert_nothing_left(server)

    def test_compute_is_down_at_delete(self):
        server = self.boot(self.upload_image(),
                           self.make_flavor(ephemeral=1))
        self.compute.stop()
        self.api.put_service(
            self.api.get_services(binary='nova-compute')[0]['id'],
            {'forced_down': True})
        self._delete_server(server)
        self.restart_compute()
        # Both are done every few minutes.
        admin = context.get_admin_context()
        self.compute.manager._cleanup_running_deleted_instances(admin)
        self.compute.manager._run_pending_deletes(admin)
        self.assert_nothing_left(server)

    def test_base_images(self):
        other = self.start_other_compute()
        hosts = ['compute', other.host]
        download = self.useFixture(fixtures.MockPatchObject(
            self.glance, 'download', wraps=self.glance.download)).mock
        image_id = self.upload_image('qcow2')
        servers = [self.boot(image_id, host=host) for host in hosts]
        # its snapshot has the same name
        self.assertEqual(2, len(self.bases()))

        snapshot_id = self.create_image(servers[0])
        servers.append(self._wait_for_state_change(
            self.post_server(snapshot_id, host=other.host), 'ACTIVE'))
        self.wait_for_boot(servers[-1], 2)
        self.assertEqual(1, download.call_count)

        cached_id = self.upload_image()
        aggregate = self.api.post_aggregate(
            {'aggregate': {'name': 'all', 'availability_zone': None}})
        for host in hosts:
            self.api.add_host_to_aggregate(aggregate['id'], host)
        self.api.api_post('/os-aggregates/%s/images' % aggregate['id'],
                          {'cache': [{'id': cached_id}]},
                          check_response_status=[202])
        self.wait_until(lambda: len(self.bases()) == 6)
        for compute in self.compute, other:
            self.assertEqual(
                {cached_id: 'existing'}, compute.manager.cache_images(
                    context.get_admin_context(), [cached_id]))
        servers.append(self.boot(cached_id, host=other.host))
        self.assertEqual(2, download.call_count)
        # Nova's locks are all that is in its own cache.
        self.assertEqual([], [
            name for _path, _directories, names in
            os.walk(os.path.join(self.instances_path, '_base'))
            for name in names if not name.startswith('nova-')])

        self.flags(group='image_cache',
                   remove_unused_original_minimum_age_seconds=0)
        self.compute.manager._run_image_cache_manager_pass(
            context.get_admin_context())
        self.assertEqual(set(), self.bases())
        self.act(servers[1], 'reboot', {'type': 'HARD'}, 'ACTIVE')
        self.wait_for_boot(servers[1], 2)
        for server in servers:
            self._delete_server(server)
            self.assert_nothing_left(server)

    def test_capacity(self):
        # The sizes of the three sheep, by two copies.
        _status, out, _err = self.sheepdog.run('node', 'info', '-r')
        total = int(out.splitlines()[-1].split()[1])
        provider, = self._get_all_providers()
        self.flags(reserved_host_disk_mb=2048, disk_allocation_ratio=1.5)
        self.compute.manager.update_available_resource(
            context.get_admin_context())
        inventory = self._get_provider_inventory(provider['uuid'])['DISK_GB']
        self.assertEqual(total // 2 // units.Gi, inventory['total'])
        self.assertEqual(2, inventory['reserved'])
        self.assertEqual(1.5, inventory['allocation_ratio'])
        # A VDI is raw, and Nova converts what it can.
        traits = self._get_provider_traits(provider['uuid'])
        for disk_format in 'QCOW2', 'RAW':
            self.assertIn('COMPUTE_IMAGE_TYPE_' + disk_format, traits)
        self.assertNotIn('COMPUTE_EPHEMERAL_ENCRYPTION', traits)


@ddt.ddt
class SheepdogStartTestCase(sheepdog_testcase.SheepdogTestCase):
    """nova-compute does not start, and says why."""

    def start_cluster(self):
        self.useFixture(fixtures.MonkeyPatch(
            'nova.virt.libvirt.sheepdog.host.START_LIMIT', 0))
        return self.useFixture(sheepdog.SheepdogFixture(
            copies=None if 'unformatted' in self.id() else '2'))

    def _setup_compute_service(self):
        return None

    def _assert_refused(self, *words):
        refusal = self.assertRaises(
            exception.InvalidConfiguration, self.start_service, 'compute',
            host='compute')
        for word in words:
            self.assertIn(word, str(refusal))

    def test_no_cluster(self):
        self.sheepdog.kill()
        self._assert_refused('images_sheepdog_host', 'images_sheepdog_port')

    def test_unformatted_cluster(self):
        self._assert_refused("'dog cluster format'")

    # The native transport needs none.
    TGTADM = [] if sheepdog_testcase.IS_NATIVE else ['tgtadm']

    @ddt.data('dog', *TGTADM)
    def test_program_is_missing(self, name):
        self.addCleanup(self.testbed.ask, 'show', name)
        self.testbed.ask('hide', name)
        self._assert_refused(name, 'not installed')

    if not sheepdog_testcase.IS_NATIVE:

        def test_no_tgtd(self):
            self.testbed.ask('stop', 'tgtd')
            self._assert_refused('tgtd', 'tgt daemon')

        def test_other_portal(self):
            self.flags(group='libvirt', images_sheepdog_portal='127.0.0.1:1')
            self._assert_refused('images_sheepdog_portal', '127.0.0.1:1')

        def test_qemu_without_the_driver(self):
            self.flags(group='libvirt', images_sheepdog_transport='native')
            self._assert_refused('images_sheepdog_transport', '6.1')


class OtherImagesTypeTestCase(sheepdog_testcase.SheepdogTestCase):

    IMAGES_TYPE = 'qcow2'

    def test_boot_and_delete(self):
        """Nothing of Sheepdog is asked for where it is not chosen."""
        self.sheepdog.kill()
        self.addCleanup(self.testbed.ask, 'show', 'dog')
        self.testbed.ask('hide', 'dog')
        server = self.boot(self.upload_image('qcow2'))
        self.assertEqual([], self.testbed.targets())
        self.assertIn('disk', [os.path.basename(path)
                               for path in self.files(server)])
        self.act(server, 'reboot', {'type': 'HARD'}, 'ACTIVE')
        self.wait_for_boot(server, 2)
        self._delete_server(server)
        self.assertEqual([], self.files(server))
