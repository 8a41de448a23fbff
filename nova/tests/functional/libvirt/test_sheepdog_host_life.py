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
"""What becomes of servers on Sheepdog when their host or nova-compute dies."""

import os
import signal

from nova.tests.functional.libvirt import sheepdog_base
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import utils as libvirt_utils


class SheepdogHostLifeTestCase(sheepdog_base.SheepdogTestCase):

    def setUp(self):
        super().setUp()
        self.flags(allow_resize_to_same_host=True,
                   resume_guests_state_on_host_boot=True)

    def _kill_guest(self, server):
        """Kill a guest's QEMU, as the end of its host would."""
        for process in filter(str.isdigit, os.listdir('/proc')):
            try:
                with open('/proc/%s/cmdline' % process) as command:
                    words = command.read().split('\0')
            except OSError:
                continue
            if 'qemu' in words[0] and server['id'] in words:
                os.kill(int(process), signal.SIGKILL)

    def test_reboot_of_the_host(self):
        running = self.boot(self.upload_image())
        stopped = self.boot(self.upload_image())
        self.act(stopped, 'os-stop', None, 'SHUTOFF')
        self.compute.stop()
        for daemon in 'libvirtd', 'tgtd':
            self.testbed.ask('kill', daemon)
        self._kill_guest(running)
        for daemon in 'libvirtd', 'tgtd':
            self.testbed.ask('start', daemon)
        self.restart_compute()
        self.wait_for_boot(running, 2)
        self.assert_exported(running, ['disk'])
        self.assert_exported(stopped, [])
        self.act(stopped, 'os-start', None, 'ACTIVE')
        self.wait_for_boot(stopped, 2)
        for server in running, stopped:
            self._delete_server(server)
            self.assert_nothing_left(server)

    def _recover(self, server, boots):
        """Do what an administrator does, and see that the data is there."""
        self.api.post_server_action(
            server['id'], {'os-resetState': {'state': 'active'}})
        self.act(server, 'reboot', {'type': 'HARD'}, 'ACTIVE')
        self.wait_for_boot(server, boots)

    def _kill_compute_within(self, owner, name, server, action, arguments):
        self.kill_compute_within(
            owner, name, getattr(owner, name),
            lambda: self.api.post_server_action(
                server['id'], {action: arguments}))

    def test_nova_compute_dies_within_an_action(self):
        server = self.boot(self.upload_image())
        self._kill_compute_within(
            libvirt_utils, 'copy_with_qemu_img', server, 'createImage',
            {'name': 'snapshot'})
        self._recover(server, 2)

        # What it has left does not keep the next one from being made.
        self._kill_compute_within(
            libvirt_utils, 'snapshot_sheepdog_disk', server, 'createImage',
            {'name': 'snapshot'})
        self._recover(server, 3)
        image_id = self.create_image(server)
        self.assertEqual({'disk'}, set(self.vdis(server)))
        other = self._wait_for_state_change(
            self.post_server(image_id), 'ACTIVE')
        self.wait_for_boot(other, 4)
        self._delete_server(other)

        self._kill_compute_within(
            libvirt_guest.Guest, 'launch', server, 'rescue',
            {'rescue_image_ref': self.upload_image()})
        self._recover(server, 4)
        self._delete_server(server)
        self.assert_nothing_left(server)

    def test_nova_compute_dies_within_a_resize(self):
        server = self.boot(self.upload_image())
        flavor = self.make_flavor(disk=2)
        self._kill_compute_within(
            libvirt_utils, 'snapshot_sheepdog_disk', server, 'resize',
            {'flavorRef': flavor})
        self.wait_for_boot(server, 2)
        self._recover(server, 3)

        self.act(server, 'resize', {'flavorRef': flavor}, 'VERIFY_RESIZE')
        self.wait_for_boot(server, 4)
        # Now the disk is gone, and its snapshot is all there is.
        self._kill_compute_within(
            libvirt_utils, 'delete_sheepdog_vdi', server, 'revertResize',
            None)
        self.wait_for_boot(server, 4)
        self._recover(server, 5)
        self._delete_server(server)
        self.assert_nothing_left(server)
