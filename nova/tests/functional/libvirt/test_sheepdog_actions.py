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

"""What can be done to a server on Sheepdog, proved by its guest.

The guest counts its boots on its root disk, so the count tells whose disk it
has booted from, and as of when.
"""

import re

import ddt
from oslo_utils import units

from nova.tests.functional.api import client
from nova.tests.functional.libvirt import sheepdog_testcase


@ddt.ddt
class SheepdogActionsTestCase(sheepdog_testcase.SheepdogTestCase):

    def setUp(self):
        super().setUp()
        self.flags(allow_resize_to_same_host=True, shelved_offload_time=0)

    def _resize(self, server, **flavor):
        return self.act(server, 'resize', {
            'flavorRef': self.make_flavor(**flavor)}, 'VERIFY_RESIZE')

    @ddt.data(('raw', None), ('qcow2', 'os-stop'), ('raw', 'pause'))
    @ddt.unpack
    def test_create_image(self, image_format, action):
        self.flags(group='libvirt', snapshot_image_format=image_format)
        server = self.boot(self.upload_image())
        if action:
            self.act(server, action, None,
                     {'os-stop': 'SHUTOFF', 'pause': 'PAUSED'}[action])
        image_id = self.create_image(server)
        self.assertEqual(image_format,
                         self.glance.images[image_id]['disk_format'])
        self.assertEqual({'disk': units.Gi}, self.vdis(server))
        self.assert_exported(server, ['disk'])
        if action is None:
            # Its disk is as good as before.
            self.act(server, 'reboot', {'type': 'HARD'}, 'ACTIVE')
            self.wait_for_boot(server, 2)
        other = self._wait_for_state_change(
            self.post_server(image_id), 'ACTIVE')
        self.wait_for_boot(other, 2)
        for each in server, other:
            self._delete_server(each)
            self.assert_nothing_left(each)

    def _boot_linux(self, **flavor):
        """Boot a guest that counts its boots on ephemeral disks too."""
        self.flags(default_ephemeral_format='ext4')
        return self.boot(self.upload_linux(),
                         self.make_flavor(memory_mb=128, **flavor))

    def _wait_for_disks(self, server, boots, *others):
        """Wait for a boot, and see what the guest says of its disks.

        :param boots: number of its boots
        :param others: what it says of those after the first
        """
        self.wait_for_boot(server, boots)
        self.assertEqual(list(others), re.findall(
            r'guest (vd\w .*?)\r?\n', self.console(server)))

    def test_resize_and_confirm(self):
        server = self._boot_linux(ephemeral=1, swap=16)
        self._wait_for_disks(server, 1, 'vdb boot 1', 'vdc swap 32768')
        self._resize(server, memory_mb=128, disk=2, ephemeral=2, swap=8)
        self._wait_for_disks(server, 2, 'vdb boot 2', 'vdc swap 16384')
        # Nova itself does not tell the driver of the size of the new
        # flavor's ephemeral disk.
        sizes = {'disk': 2 * units.Gi, 'disk.eph0': units.Gi,
                 'disk.swap': 8 * units.Mi}
        self.assertEqual(
            dict(sizes, **{'disk@nova-resize': units.Gi,
                           'disk.eph0@nova-resize': units.Gi,
                           'disk.swap@nova-resize': 16 * units.Mi}),
            self.vdis(server))
        self.act(server, 'confirmResize', None, 'ACTIVE')
        self.wait_until(lambda: self.vdis(server) == sizes)
        self.act(server, 'reboot', {'type': 'HARD'}, 'ACTIVE')
        self._wait_for_disks(server, 3, 'vdb boot 3', 'vdc swap 16384')
        self._delete_server(server)
        self.assert_nothing_left(server)

    def test_resize_and_revert(self):
        server = self._boot_linux(ephemeral=1, swap=8)
        sizes = self.vdis(server)
        self._resize(server, memory_mb=128, disk=2, ephemeral=1, swap=0)
        self.wait_for_boot(server, 2)
        # Before Nova 27 the guest keeps its swap.
        self.assertEqual(
            {disk for _device, disk in self.guest_disks(server)},
            {vdi for vdi in self.vdis(server) if '@' not in vdi})
        self.act(server, 'revertResize', None, 'ACTIVE')
        # The disks are as they were before: that boot has not been counted.
        self._wait_for_disks(server, 2, 'vdb boot 2', 'vdc swap 16384')
        self.assertEqual(sizes, self.vdis(server))
        self._delete_server(server)
        self.assert_nothing_left(server)

    def test_resize_adds_disks(self):
        server = self._boot_linux()
        self._resize(server, memory_mb=128, ephemeral=1, swap=8)
        self._wait_for_disks(server, 2, 'vdb boot 1', 'vdc swap 16384')
        self.act(server, 'revertResize', None, 'ACTIVE')
        self._wait_for_disks(server, 2)
        self.assertEqual({'disk': units.Gi}, self.vdis(server))
        self._resize(server, memory_mb=128, ephemeral=1, swap=8)
        self._wait_for_disks(server, 3, 'vdb boot 1', 'vdc swap 16384')
        self.act(server, 'confirmResize', None, 'ACTIVE')
        self.act(server, 'reboot', {'type': 'HARD'}, 'ACTIVE')
        self._wait_for_disks(server, 4, 'vdb boot 2', 'vdc swap 16384')
        self._delete_server(server)
        self.assert_nothing_left(server)

    def test_resize_down_is_refused(self):
        server = self.boot(self.upload_image(),
                           self.make_flavor(disk=2, ephemeral=1))
        vdis = self.vdis(server)
        refusal = self.assertRaises(
            client.OpenStackApiException, self._resize, server, disk=1)
        self.assertEqual(400, refusal.response.status_code)
        self.act(server, 'resize', {
            'flavorRef': self.make_flavor(disk=2)}, 'ACTIVE')
        self._wait_for_action_fail_completion(
            server, 'resize', 'compute_resize_instance')
        self.wait_for_beats(server)
        self.assertEqual(vdis, self.vdis(server))

    def test_delete_while_resized(self):
        server = self.boot(self.upload_image())
        self._resize(server, disk=2)
        self._delete_server(server)
        self.assert_nothing_left(server)

    def test_rescue(self):
        server = self.boot(self.upload_image(), config_drive=True)
        before = self.vdis(server)
        for boots, properties, disks in (
                (2, {}, [('disk', 'disk.rescue'), ('disk', 'disk'),
                         ('cdrom', 'disk.config.rescue')]),
                # Here what the guest had stays where it was.
                (3, {'hw_rescue_device': 'disk', 'hw_rescue_bus': 'virtio'},
                 [('disk', 'disk'), ('disk', 'disk.rescue'),
                  ('cdrom', 'disk.config')])):
            self.act(server, 'rescue', {
                'rescue_image_ref': self.upload_image(**properties)},
                'RESCUE')
            self.wait_for_boot(server, 1)
            self.assertEqual(disks, self.guest_disks(server))
            self.assertEqual(
                {'disk.rescue', 'disk.config.rescue'},
                set(self.vdis(server)) - set(before))
            self.act(server, 'unrescue', None, 'ACTIVE')
            self.wait_for_boot(server, boots)
            self.assertEqual(before, self.vdis(server))
        self._delete_server(server)
        self.assert_nothing_left(server)

    def test_rebuild(self):
        image_id = self.upload_image()
        server = self.boot(image_id, self.make_flavor(ephemeral=1, swap=8))
        vdis = self.vdis(server)
        # Only Ironic can do that, and nothing is lost for trying.
        server = self.act(server, 'rebuild', {
            'imageRef': image_id, 'preserve_ephemeral': True}, 'ERROR')
        self.assertIn('preserving ephemeral', server['fault']['message'])
        self.act(server, 'reboot', {'type': 'HARD'}, 'ACTIVE')
        self.wait_for_boot(server, 2)
        for image in (image_id, self.upload_image('qcow2'),
                      self.upload_image('vmdk')):
            server = self.act(server, 'rebuild', {'imageRef': image},
                              'ACTIVE')
            self.wait_for_boot(server, 1)
            self.assertEqual(vdis, self.vdis(server))
        self.act(server, 'reboot', {'type': 'HARD'}, 'ACTIVE')
        self.wait_for_boot(server, 2)

        self.act(server, 'rebuild', {'imageRef': self.upload_iso()}, 'ACTIVE')
        # Nova 26 makes a disk of it, from which it boots as well.
        said = self.wait_for_console(
            server, 'guest (cannot write its disk|boot 1)').group(1)
        self.assertEqual(('disk' if said == 'boot 1' else 'cdrom', 'disk'),
                         self.guest_disks(server)[0])
        self._delete_server(server)
        self.assert_nothing_left(server)

    def test_shelve_and_unshelve(self):
        server = self.boot(self.upload_image())
        bases = self.bases()
        self.act(server, 'shelve', None, 'SHELVED_OFFLOADED')
        self.assert_nothing_left(server)
        self.assertGreater(self.bases(), bases)
        self.act(server, 'unshelve', None, 'ACTIVE')
        self.wait_for_boot(server, 2)
        self.assertEqual(bases, self.bases())
        self._delete_server(server)
        self.assert_nothing_left(server)
