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

"""Moves of servers between two hosts, through Nova's API.

Each time the guest finds its data: it counts its boots on its disk.
"""

import os

import fixtures
from oslo_utils import units

from nova.policies import servers as policies
from nova.tests.functional.libvirt import sheepdog_two_hosts


class SheepdogMoveTestCase(sheepdog_two_hosts.SheepdogHostsTestCase):

    def service_of(self, host):
        """Return the id of a host's nova-compute."""
        service, = self.api.get_services(binary='nova-compute',
                                         host=host.name)
        return service['id']

    def assert_moved(self, server, host, boots, size=units.Gi):
        """See that a server, its data and nothing else is at a host.

        :param boots: how often the guest has booted with that data
        :param size: of its disk in bytes
        """
        self.assertEqual(host, self.host_of(server))
        self.wait_for_boot(server, boots)
        self.assert_only_at(server, host)
        self.assertEqual({'disk': size}, self.vdis(server))

    def test_cold_migrate_resize_and_shelve(self):
        one, two = self.hosts.values()
        server = self.boot(self.upload_image('qcow2'), host='one')

        self.act(server, 'migrate', None, 'VERIFY_RESIZE')
        self.wait_for_boot(server, 2)
        self.assertEqual({'disk': units.Gi, 'disk@nova-resize': units.Gi},
                         self.vdis(server))
        self.act(server, 'revertResize', None, 'ACTIVE')
        # The second boot has never been.
        self.assert_moved(server, one, 2)

        self.act(server, 'migrate', None, 'VERIFY_RESIZE')
        self.wait_for_boot(server, 3)
        self.act(server, 'confirmResize', None, 'ACTIVE')
        self.assert_moved(server, two, 3)

        self.act(server, 'resize', {
            'flavorRef': self.make_flavor(disk=2)}, 'VERIFY_RESIZE')
        self.assertEqual(one, self.host_of(server))
        self.wait_for_boot(server, 4)
        self.assertEqual(2 * units.Gi, self.vdis(server)['disk'])
        self.act(server, 'revertResize', None, 'ACTIVE')
        self.assert_moved(server, two, 4)

        self.act(server, 'shelve', None, 'SHELVED_OFFLOADED')
        # Nova takes the host away last, and would after it is unshelved.
        self._wait_for_server_parameter(
            server, {'OS-EXT-SRV-ATTR:host': None})
        self.assert_nothing_left(server)
        image, = (image for image in self.glance.images.values()
                  if image['name'].endswith('-shelved'))
        self.api.put_service(self.service_of(two), {'status': 'disabled'})
        self.act(server, 'unshelve', None, 'ACTIVE')
        self.assert_moved(server, one, 5)
        self.assertNotIn(image['id'], self.glance.images)

        self._delete_server(server)
        self.assert_nothing_left(server)

    def test_reschedule_and_evacuate(self):
        path = os.path.join(self.useFixture(fixtures.TempDir()).path, 'failed')
        for host in self.hosts.values():
            host.control.fail_to_launch(path)
        server = self.boot(self.upload_image('qcow2'))
        self.assertTrue(os.path.exists(path))
        source, dest = self.host_of(server), self.other_host(server)
        self.assert_moved(server, source, 1)

        # Its guest waits for its disk, and goes on when there is one.
        source.control.lose_targets()
        source.kill()
        self.api.put_service(self.service_of(source), {'forced_down': True})
        self.act(server, 'evacuate', {}, 'ACTIVE')
        # Nova notes the host last.
        self._wait_for_server_parameter(
            server, {'OS-EXT-SRV-ATTR:host': dest.name})
        self.wait_for_boot(server, 2)
        self.start_computes(source)
        self.api.put_service(self.service_of(source), {'forced_down': False})
        self.assert_moved(server, dest, 2)
        self.wait_for_beats(server)
        self.act(server, 'reboot', {'type': 'HARD'}, 'ACTIVE')
        self.wait_for_boot(server, 3)

        self._delete_server(server)
        self.assert_nothing_left(server)

    def test_source_is_killed_in_a_resize(self):
        one, two = self.hosts.values()
        server = self.boot(self.upload_image('qcow2'), host='one')

        one.control.exit_after('migrate and power off')
        self.api.post_server_action(server['id'], {'migrate': None})
        self.wait_until(one.is_dead)
        self.assertIn('disk@nova-resize', self.vdis(server))
        self.start_computes(one)
        # Nova reads a flavor then that it has not noted yet, and fails to
        # start the guest.
        self.assertEqual({'disk': units.Gi}, self.vdis(server))
        self.act(server, 'reboot', {'type': 'HARD'}, 'ACTIVE')
        self.assert_moved(server, one, 2)

        self.act(server, 'migrate', None, 'VERIFY_RESIZE')
        self.wait_for_boot(server, 3)
        one.control.exit_after('remove a VDI')
        self.api.post_server_action(server['id'], {'revertResize': None})
        self.wait_until(one.is_dead)
        self.assertEqual({'disk@nova-resize': units.Gi}, self.vdis(server))
        self.start_computes(one)
        self.api.post_server_action(server['id'], {
            'os-resetState': {'state': 'active'}})
        self.act(server, 'reboot', {'type': 'HARD'}, 'ACTIVE')
        self.wait_for_boot(server, 3)

        self._delete_server(server)
        self.assert_nothing_left(server)

    def test_destination_is_killed_in_an_evacuation(self):
        one, two = self.hosts.values()
        server = self.boot(self.upload_image('qcow2'), host='one')
        # There is nobody to fence the host.
        one.control.lose_targets()
        one.kill()
        self.api.put_service(self.service_of(one), {'forced_down': True})
        for step in 'export a VDI', 'launch a guest':
            two.control.exit_after(step)
            self.api.post_server_action(server['id'], {'evacuate': {}})
            self.wait_until(two.is_dead)
            self.start_computes(two)
            self.assertEqual({}, two.control.states())
            self.assertEqual({'disk': units.Gi}, self.vdis(server))
            self.api.post_server_action(server['id'], {
                'os-resetState': {'state': 'active'}})
        self.api.post_server_action(server['id'], {'evacuate': {}})
        self._wait_for_server_parameter(
            server, {'OS-EXT-SRV-ATTR:host': two.name})
        # The guest that was removed may not have come as far as that.
        boots = int(self.wait_for_console(server, r'guest boot (\d+)\n')[1])
        self.assertIn(boots, (2, 3))
        self.start_computes(one)
        self.api.put_service(self.service_of(one), {'forced_down': False})
        self.assert_moved(server, two, boots)
        self._delete_server(server)
        self.assert_nothing_left(server)


class SheepdogCellsTestCase(sheepdog_two_hosts.SheepdogHostsTestCase):

    NUMBER_OF_CELLS = 2
    CELLS = {'one': 'cell1', 'two': 'cell2'}

    def is_action_over(self, server):
        """Tell whether nothing of the last action on a server goes on."""
        last = max(self.api.get_instance_actions(server['id']),
                   key=lambda action: action['start_time'])
        return all(event['finish_time'] for event in (
            self.api.get_instance_action_details(
                server['id'], last['request_id'])['events']))

    def test_resize_to_another_cell(self):
        one, two = self.hosts.values()
        # when the root disk of the first resize is there
        two.cluster.fault('error', operation='NEW_VDI', vdi='*_import.*')
        # By default nobody may.
        self.policy.set_rules({policies.CROSS_CELL_RESIZE: '@'},
                              overwrite=False)
        image_id = self.upload_image('qcow2')
        server = self.boot(
            image_id, self.make_flavor(ephemeral=1, swap=8), host='one',
            config_drive=True)
        vdis = self.vdis(server)
        bases = self.bases()
        images = set(self.glance.images)
        flavor_id = self.make_flavor(disk=2, ephemeral=1, swap=8)

        def resize(status):
            return self.act(
                server, 'resize', {'flavorRef': flavor_id}, status)

        def assert_resized(boots):
            self.wait_for_boot(server, boots)
            left = self.leftovers(server)
            self.assertEqual(['two'], list(left['guests']))
            self.assertNotIn('one', left['targets'])
            # for a revert
            self.assertEqual(vdis, self.vdis(server))
            self.assertEqual(dict(vdis, disk=2 * units.Gi),
                             self.vdis(server, two.cluster))
            # Nothing is for the move alone.
            self.assertEqual(images, set(self.glance.images))
            self.assertEqual(bases, self.bases())
            self.assertEqual(
                {name for name in bases if image_id not in name},
                self.bases(two.cluster))

        def assert_back(boots):
            self.wait_for_boot(server, boots)
            self.assert_only_at(server, one)
            self.assertEqual(vdis, self.vdis(server))
            self.assertEqual({}, self.vdis(server, two.cluster))

        # as if it were the same cluster
        vdi = server['id'] + '_disk'
        two.cluster.run('vdi', 'create', vdi, '1M')
        resize('ACTIVE')
        self.wait_for_beats(server)
        two.cluster.run('vdi', 'delete', vdi)
        assert_back(1)

        resize('ERROR')
        # The conductor resets the task state last, whatever has begun.
        self.wait_for_api(self.is_action_over, server)
        self.act(server, 'reboot', {'type': 'HARD'}, 'ACTIVE')
        assert_back(2)

        resize('VERIFY_RESIZE')
        assert_resized(3)
        self.act(server, 'revertResize', None, 'ACTIVE')
        # The third boot has never been.
        assert_back(3)

        resize('VERIFY_RESIZE')
        assert_resized(4)
        self.act(server, 'confirmResize', None, 'ACTIVE')
        self.assert_only_at(server, two)
        self.assertEqual({}, self.vdis(server))

        self._delete_server(server)
        self.assert_nothing_left(server)
