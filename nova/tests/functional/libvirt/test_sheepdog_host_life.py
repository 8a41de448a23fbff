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

from nova.tests.functional.libvirt import sheepdog_testcase


class SheepdogHostLifeTestCase(sheepdog_testcase.SheepdogTestCase):

    def setUp(self):
        super().setUp()
        self.flags(allow_resize_to_same_host=True,
                   resume_guests_state_on_host_boot=True,
                   shelved_offload_time=0)

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

    def _reset_state(self, server, state='active'):
        self.api.post_server_action(
            server['id'], {'os-resetState': {'state': state}})

    def _recover(self, server, boots):
        """Do what an administrator does, and see that the data is there."""
        self._reset_state(server)
        self.act(server, 'reboot', {'type': 'HARD'}, 'ACTIVE')
        self.wait_for_boot(server, boots)

    def _kill_compute_within(self, step, server, action, arguments,
                             replacement=None):
        self.kill_compute_within(
            step, lambda: self.api.post_server_action(
                server['id'], {action: arguments}), replacement)

    def _wait_until_in_error(self, server):
        """Wait until nova-compute gives up what it finds half done.

        :returns: dict of the server
        """
        # It notes no fault.
        self.wait_for_api(lambda: self.api.get_server(server['id'])[
            'status'] == 'ERROR')
        return self.api.get_server(server['id'])

    def _assert_no_disk_to_boot(self, server):
        """See that a hard reboot fails, and tells why."""
        self.api.post_server_action(server['id'], {'reboot': {
            'type': 'HARD'}})
        self.wait_for_api(lambda: self.api.get_server(server['id'])[
            'OS-EXT-STS:task_state'] is None)
        server = self._wait_for_state_change(server, 'ERROR')
        self.assertIn('No disk at VDI', server['fault']['message'])

    def _rebuild(self, server, image_id, boots):
        self.act(server, 'rebuild', {'imageRef': image_id}, 'ACTIVE')
        self.wait_for_boot(server, boots)

    def test_nova_compute_dies_within_an_action(self):
        server = self.boot(self.upload_image())
        self._kill_compute_within(
            'copy data', server, 'createImage',
            {'name': 'snapshot'})
        self.assertEqual([], os.listdir(self.snapshots_directory))
        self._recover(server, 2)

        # What it has left does not keep the next one from being made.
        self._kill_compute_within(
            'take a snapshot', server, 'createImage',
            {'name': 'snapshot'})
        self._recover(server, 3)
        image_id = self.create_image(server)
        self.assertEqual({'disk'}, set(self.vdis(server)))
        other = self._wait_for_state_change(
            self.post_server(image_id), 'ACTIVE')
        self.wait_for_boot(other, 4)
        self._delete_server(other)

        self._kill_compute_within(
            'launch a guest', server, 'rescue',
            {'rescue_image_ref': self.upload_image()})
        self._recover(server, 4)
        self._kill_compute_within(
            'clone a snapshot', server, 'createImage',
            {'name': 'snapshot'})
        self.assertEqual(
            {'disk', 'disk@nova-snapshot', 'disk.rescue', 'scratch'},
            set(self.vdis(server)))
        self._delete_server(server)
        self.assert_nothing_left(server)

    def test_nova_compute_dies_within_a_resize(self):
        server = self.boot(self.upload_image())
        flavor = self.make_flavor(disk=2)
        self._kill_compute_within(
            'take a snapshot', server, 'resize',
            {'flavorRef': flavor})
        self.wait_for_boot(server, 2)
        self._recover(server, 3)

        self.act(server, 'resize', {'flavorRef': flavor}, 'VERIFY_RESIZE')
        self.wait_for_boot(server, 4)
        # Now the disk is gone, and its snapshot is all there is.
        self._kill_compute_within(
            'remove a VDI', server, 'revertResize',
            None)
        self.wait_for_boot(server, 4)
        self._recover(server, 5)
        self._delete_server(server)
        self.assert_nothing_left(server)

    @staticmethod
    def _do_nothing(*args, **kwargs):
        """Have nova-compute die before a function instead of after it."""

    def test_nova_compute_dies_within_a_rebuild(self):
        image_id = self.upload_image()
        server = self.boot(image_id, self.make_flavor(ephemeral=1),
                           config_drive=True)
        vdis = self.vdis(server)
        rebuild = server, 'rebuild', {'imageRef': image_id}
        self._kill_compute_within(
            'delete all disks', *rebuild)
        server = self._wait_until_in_error(server)
        self.assertEqual({}, self.vdis(server))
        self._assert_no_disk_to_boot(server)

        # The last disk is the config drive.
        self._kill_compute_within(
            'copy data', *rebuild)
        self.assertEqual({'disk', 'disk.eph0', 'scratch'},
                         set(self.vdis(server)))
        self._reset_state(server, 'error')
        self._rebuild(server, image_id, 1)
        self.assertEqual(vdis, self.vdis(server))
        self._delete_server(server)
        self.assert_nothing_left(server)

    def _shelved_image(self):
        """Return the id of the image that was last made by a shelve."""
        return [image['id'] for image in self.glance.images.values()
                if image['name'].endswith('-shelved')][-1]

    def test_nova_compute_dies_within_a_shelve_and_an_unshelve(self):
        server = self.boot(self.upload_image())
        shelve = server, 'shelve', None
        self._kill_compute_within(
            'copy data', *shelve)
        self.wait_for_boot(server, 2)
        self._reset_state(server)
        # This is the upload.
        self._kill_compute_within(
            'upload an image', *shelve, replacement=self._do_nothing)
        self.wait_for_boot(server, 3)
        self._reset_state(server)
        # This comes when the image is there, and all that has the data.
        self._kill_compute_within(
            'delete all disks', *shelve)
        self.assertEqual({}, self.vdis(server))
        self._reset_state(server, 'error')
        self._assert_no_disk_to_boot(server)
        self._rebuild(server, self._shelved_image(), 4)

        self.act(server, 'shelve', None, 'SHELVED_OFFLOADED')
        image_id = self._shelved_image()
        self._kill_compute_within(
            'clone a snapshot', server, 'unshelve', None,
            replacement=self._do_nothing)
        server = self._wait_until_in_error(server)
        self.assertEqual({}, self.vdis(server))
        self._rebuild(server, image_id, 5)
        self.act(server, 'shelve', None, 'SHELVED_OFFLOADED')
        self._kill_compute_within(
            'launch a guest', server, 'unshelve', None,
            replacement=self._do_nothing)
        server = self._wait_until_in_error(server)
        self.act(server, 'reboot', {'type': 'HARD'}, 'ACTIVE')
        self.wait_for_boot(server, 6)

        self._kill_compute_within(
            'copy data', *shelve)
        self.assertEqual({'disk', 'scratch'}, set(self.vdis(server)))
        self._delete_server(server)
        self.assert_nothing_left(server)
