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
"""Images of servers on Sheepdog, and what is left when they fail."""

import contextlib
import os
import struct
import threading
from unittest import mock

from oslo_utils import units

from nova import context
from nova import exception
from nova.tests.functional.libvirt import sheepdog_backend as backend
from nova.tests.functional.libvirt import sheepdog_testcase
from nova.virt.libvirt import host as libvirt_host


class SheepdogSnapshotsTestCase(sheepdog_testcase.SheepdogTestCase):

    def setUp(self):
        super().setUp()
        self.flags(group='libvirt', snapshot_image_format='qcow2')

    def _post_image(self, server):
        return self.api.post_server_action(
            server['id'], {'createImage': {'name': 'snapshot'}})['image_id']

    @contextlib.contextmanager
    def _making_image(self, server):
        """Have the body run when the data of an image is about to be read.

        :returns: the id of the image
        """
        reached = threading.Event()
        go_on = threading.Event()

        def wait_and_copy(copy, *args, **kwargs):
            reached.set()
            go_on.wait()
            return copy(*args, **kwargs)

        with backend.replace_step('copy data', wait_and_copy):
            image_id = self._post_image(server)
            self.wait_until(reached.is_set)
        try:
            yield image_id
        finally:
            go_on.set()

    @contextlib.contextmanager
    def _events(self, server):
        """Note what libvirt tells of the life of a guest.

        :returns: list of (event, detail)
        """
        events = []
        connection = self.compute.driver._host.get_connection()
        callback = connection.domainEventRegisterAny(
            connection.lookupByUUIDString(server['id']),
            libvirt_host.libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
            lambda _connection, _guest, event, detail, _opaque:
                events.append((event, detail)), None)
        try:
            yield events
        finally:
            connection.domainEventDeregisterAny(callback)

    def _wait_until_done(self, server):
        self.wait_for_api(lambda: self.api.get_server(server['id'])[
            'OS-EXT-STS:task_state'] is None)

    def _assert_only_the_disk(self, server):
        self.assertEqual({'disk': units.Gi}, self.vdis(server))
        self.assert_exported(server, ['disk'])
        self.assertEqual(
            [], os.listdir(self.snapshots_directory))

    def _assert_failed(self, server, image_id):
        self._wait_until_done(server)
        self._assert_only_the_disk(server)
        self.assertNotIn(image_id, self.glance.images)
        self.assertEqual('ACTIVE',
                         self.api.get_server(server['id'])['status'])
        self.wait_for_beats(server)

    def test_guest_goes_on(self):
        server = self.boot(self.upload_image())
        with self._events(server) as events:
            with self._making_image(server) as image_id:
                self.wait_for_beats(server)
                self.sheepdog.reset_stats()
            self._wait_until_done(server)
        self.assertEqual([], events)
        with self._events(server) as events:
            # So one would have been heard.
            self.act(server, 'pause', None, 'PAUSED')
            self.wait_until(lambda: events)
        self.act(server, 'unpause', None, 'ACTIVE')
        self.assertEqual('active', self.glance.images[image_id]['status'])
        self._assert_only_the_disk(server)
        # No more is read than the one object that there is.
        clients = self.sheepdog.stats()['clients']
        self.assertLessEqual(clients[sheepdog_testcase.CLIENT]['bytes_read'],
                             1.02 * 4 * units.Mi)
        self._delete_server(server)
        self.assert_nothing_left(server)

    def test_failures(self):
        server = self.boot(self.upload_image())
        for event in (
                exception.GlanceConnectionFailed(
                    server='glance', reason='it is a test'),
                lambda image_id: self.glance.delete(
                    context.get_admin_context(), image_id)):
            with mock.patch.object(self.glance, 'during_upload',
                                   side_effect=event) as upload:
                self._assert_failed(server, self._post_image(server))
            upload.assert_called_once()

        with self._making_image(server) as image_id:
            self.glance.delete(context.get_admin_context(), image_id)
        self._assert_failed(server, image_id)

        with self._making_image(server):
            self.api.delete_server(server['id'])
        self._wait_until_deleted(server)
        self.wait_until(lambda: not self.vdis(server))
        self.wait_until(lambda: not os.listdir(self.snapshots_directory))
        self.assert_nothing_left(server)

    @staticmethod
    def _is_in_use(disk):
        """Tell whether an ext4 file system has to be recovered.

        It has while it is mounted, unless it is frozen.

        :param disk: what is at the start of the disk, as bytes
        """
        # s_magic and s_feature_incompat of the superblock, which begins at
        # 1024, see https://docs.kernel.org/filesystems/ext4/
        magic, = struct.unpack_from('<H', disk, 1024 + 0x38)
        features, = struct.unpack_from('<I', disk, 1024 + 0x60)
        if magic != 0xef53:
            raise ValueError('This is no ext4')
        return bool(features & 0x4)

    def _agent_answers(self, server):
        connection = self.compute.driver._host.get_connection()
        try:
            return connection.lookupByUUIDString(server['id']).getTime()
        except libvirt_host.libvirt.libvirtError:
            return None

    def test_file_systems_are_frozen(self):
        """The agent of a Linux does it, for as long as the cluster takes."""
        self.flags(group='libvirt', snapshot_image_format='raw')
        flavor = self.make_flavor(memory_mb=128)
        server = self.boot(self.upload_linux(
            hw_qemu_guest_agent='yes', os_require_quiesce='yes'), flavor)
        self.wait_until(self._agent_answers, server)
        with self._making_image(server) as image_id:
            self.wait_for_beats(server)
            status, disk, _error = self.sheepdog.run(
                'vdi', 'read', server['id'] + '_disk', '0', '4096')
            self.assertEqual((0, True), (status, self._is_in_use(disk)))
        self._wait_until_done(server)
        self.assertFalse(self._is_in_use(self.glance._imagedata[image_id]))
        self._assert_only_the_disk(server)
        other = self._wait_for_state_change(
            self.post_server(image_id, flavor), 'ACTIVE')
        self.wait_for_boot(other, 2)
        for each in server, other:
            self._delete_server(each)
            self.assert_nothing_left(each)

    def test_file_systems_have_to_be_frozen(self):
        """There is no agent in the guest to do it."""
        server = self.boot(self.upload_image(
            hw_qemu_guest_agent='yes', os_require_quiesce='yes'))
        quiesce = self.compute.driver.quiesce
        reasons = []

        def note_refusal(*args):
            try:
                return quiesce(*args)
            except exception.NovaException as e:
                reasons.append(str(e))
                raise

        with mock.patch.object(
                self.compute.driver, 'quiesce', note_refusal):
            self._assert_failed(server, self._post_image(server))
        self.assertIn('agent', reasons[0])
        # One that is stopped has nothing to freeze.
        self.act(server, 'os-stop', None, 'SHUTOFF')
        self.create_image(server)
        self._delete_server(server)
        self.assert_nothing_left(server)
