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
"""Volumes of Cinder, where the disks of servers are on Sheepdog."""

import os

import fixtures
from oslo_concurrency import processutils
from oslo_utils import units

from nova.tests import fixtures as nova_fixtures
from nova.tests.fixtures import boot_sector
from nova.tests.functional.libvirt import sheepdog_testcase


class SheepdogVolumesTestCase(sheepdog_testcase.SheepdogTestCase):

    def setUp(self):
        super().setUp()
        self.volume = nova_fixtures.CinderFixture.IMAGE_BACKED_VOL
        self.path = os.path.join(
            self.useFixture(fixtures.TempDir()).path, 'volume')
        boot_sector.write_image(self.path, units.Gi)
        # Nova's driver of this type takes a local file.
        self.useFixture(fixtures.MockPatchObject(
            nova_fixtures.CinderFixture, 'VOLUME_CONNECTION_INFO',
            {'fake': {'driver_volume_type': 'gpfs',
                      'data': {'device_path': self.path}}}))
        self.useFixture(nova_fixtures.CinderFixture(self))

    def test_boot_from_volume(self):
        server = self._wait_for_state_change(self.api.post_server({'server': {
            'name': 'of-a-volume',
            'flavorRef': self.make_flavor(disk=0),
            'networks': 'none',
            'config_drive': True,
            'block_device_mapping_v2': [{
                'boot_index': 0, 'uuid': self.volume,
                'source_type': 'volume', 'destination_type': 'volume'}],
        }}), 'ACTIVE')
        self.wait_for_boot(server, 1)
        self.assertEqual({'disk.config'}, set(self.vdis(server)))
        self.act(server, 'reboot', {'type': 'HARD'}, 'ACTIVE')
        self.wait_for_boot(server, 2)
        self._delete_server(server)
        self.assert_nothing_left(server)
        with open(self.path, 'rb') as volume:
            volume.seek(boot_sector.SECTOR)
            self.assertEqual(b'\2\0', volume.read(2))

    def _wait_for_volume(self, server, boots, boots_of_volume):
        self.wait_for_boot(server, boots)
        self.wait_for_console(
            server, r'guest vdb boot %d\r?\n' % boots_of_volume)

    def test_attach_rebuild_and_detach(self):
        """A Linux counts its boots on both disks."""
        processutils.execute('mkfs.ext4', '-q', '-F', self.path)
        image_id = self.upload_linux()
        server = self.boot(image_id, self.make_flavor(memory_mb=128))
        self.api.post_server_volume(server['id'], {
            'volumeAttachment': {'volumeId': self.volume}})
        self._wait_for_instance_action_event(
            server, 'attach_volume', 'compute_attach_volume', 'success')
        self.act(server, 'reboot', {'type': 'HARD'}, 'ACTIVE')
        self._wait_for_volume(server, 2, 1)
        self.act(server, 'rebuild', {'imageRef': image_id}, 'ACTIVE')
        self._wait_for_volume(server, 1, 2)
        self.act(server, 'rescue', {
            'rescue_image_ref': self.upload_image()}, 'RESCUE')
        self.act(server, 'unrescue', None, 'ACTIVE')
        self._wait_for_volume(server, 2, 3)
        self.api.delete_server_volume(server['id'], self.volume)
        self.wait_for_api(
            lambda: not self.api.get_server_volumes(server['id']))
        self.assertEqual(
            ['network'], [disk.get('type') for disk in
                          self.guest_xml(server).findall('devices/disk')])
        self._delete_server(server)
        self.assert_nothing_left(server)
        self.assertTrue(os.path.exists(self.path))
