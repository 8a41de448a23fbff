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
import struct

import fixtures
from oslo_concurrency import processutils
from oslo_utils import units

from nova import context
from nova.tests.functional.libvirt import sheepdog_testcase
from nova.virt import images

# It stands where an image of Glance has a number of bytes, a magic or both.
SECRET = b'What no tenant may read. ' * 4096
SIZE_OF_QCOW2 = 24
START_OF_CD = 32769


class SheepdogHostileTestCase(sheepdog_testcase.SheepdogTestCase):
    """Images and guests' disks that name files of the host."""

    def setUp(self):
        super().setUp()
        self.directory = self.useFixture(fixtures.TempDir()).path
        self.secret = self.write('secret', SECRET)

    def write(self, name, data, offset=0):
        """Write to a file, and return its path."""
        path = os.path.join(self.directory, name)
        with open(path, 'r+b' if os.path.exists(path) else 'wb') as file:
            file.seek(offset)
            file.write(data)
        return path

    def make(self, name, image_format, *options):
        path = os.path.join(self.directory, name)
        processutils.execute(
            'qemu-img', 'create', '-q', '-f', image_format, *options, path,
            '1M')
        return path

    def make_backed(self, name):
        """Make a QCOW2 file whose data is that of a file of the host."""
        return self.make(name, 'qcow2', '-F', 'raw', '-b', self.secret)

    def make_images(self):
        """Yield what is wrong with an image, its path and its format."""
        yield 'backing file', self.make_backed('backed'), 'qcow2'
        yield 'a raw one has a backing file', self.make_backed('raw'), 'raw'

        data_file = os.path.join(self.directory, 'data')
        path = self.make('with data file', 'qcow2', '-o',
                         'data_file=%s,data_file_raw=on' % data_file)
        os.replace(self.secret, data_file)
        self.secret = data_file
        # Nova 26.2.2 as released reads it, whatever images_type is: that is
        # CVE-2024-32498, which distributions have mended.
        if hasattr(images, 'do_image_deep_inspection'):
            yield 'data file', path, 'qcow2'

        path = self.make('extent', 'vmdk', '-o', 'subformat=monolithicFlat')
        with open(path) as file:
            description = file.read()
        self.write('extent', description.replace(
            'extent-flat.vmdk', self.secret).encode())
        yield 'extent', path, 'vmdk'

        path = self.make('large', 'qcow2')
        self.write('large', struct.pack('>Q', units.Ti), SIZE_OF_QCOW2)
        yield 'size', path, 'qcow2'

        path = self.make_backed('CD')
        self.write('CD', b'CD001', START_OF_CD)
        yield 'two formats', path, 'iso'

    def upload(self, path, disk_format):
        with open(path, 'rb') as data:
            return self.glance.create(None, {
                'name': 'hostile', 'status': 'active',
                'disk_format': disk_format, 'container_format': 'bare',
                'size': os.stat(path).st_size, 'min_disk': 0, 'min_ram': 0,
                'properties': {}}, data)['id']

    def assert_fault_tells_nothing(self, server):
        # Nova before 28 quotes the name that the image gives.
        self.assertNotIn(SECRET[:16].decode(), self.api.get_server(
            server['id'])['fault']['message'])

    def test_images(self):
        for what, path, disk_format in self.make_images():
            server = self._wait_for_state_change(
                self.post_server(self.upload(path, disk_format)), 'ERROR')
            self.assert_fault_tells_nothing(server)
            self.assert_nothing_left(server)
            self.assertEqual(set(), self.bases(), what)

    def test_server_that_meets_one(self):
        server = self.boot(self.upload_image())
        hostile = self.upload(self.make_backed('backed'), 'qcow2')
        bases = self.bases()
        self.act(server, 'rescue', {'rescue_image_ref': hostile}, 'ERROR')
        self.assert_fault_tells_nothing(server)
        self.act(server, 'reboot', {'type': 'HARD'}, 'ACTIVE')
        self.wait_for_boot(server, 2)
        self.act(server, 'rebuild', {'imageRef': hostile}, 'ERROR')
        self.assert_fault_tells_nothing(server)
        self.assertEqual(bases, self.bases())
        self.act(server, 'rebuild', {'imageRef': self.upload_image()},
                 'ACTIVE')
        self.wait_for_boot(server, 1)
        self._delete_server(server)
        self.assert_nothing_left(server)

    def test_disk_that_a_guest_makes_look_like_one(self):
        server = self.boot(self.upload_image())
        bases = self.bases()
        self.act(server, 'os-stop', None, 'SHUTOFF')
        with open(self.make_backed('backed'), 'rb') as file:
            header = file.read()
        status, _out, err = self.sheepdog.run(
            'vdi', 'write', server['id'] + '_disk', '0', str(len(header)),
            stdin=header)
        self.assertEqual((0, b''), (status, err))

        image_id = self.create_image(server)
        data = self.glance._imagedata[image_id]
        self.assertEqual(header, data[:len(header)])
        self.assertNotIn(SECRET[:64], data)
        # A boot from it is refused on this host and on any other.
        self.assertEqual(bases, self.bases())
        other = self._wait_for_state_change(self.post_server(image_id),
                                            'ERROR')
        self.assert_fault_tells_nothing(other)
        self.assert_nothing_left(other)

        # Its own disk is raw to the guest, whatever it holds.
        self.act(server, 'os-start', None, 'ACTIVE')
        status, data, err = self.sheepdog.run(
            'vdi', 'read', server['id'] + '_disk', '0', str(len(header)))
        self.assertEqual((0, header, b''), (status, data, err))
        self.api.post_server_action(server['id'], {'shelve': None})
        self._wait_for_state_change(server, 'SHELVED_OFFLOADED')
        self.api.post_server_action(server['id'], {'unshelve': None})
        self.wait_until(lambda: self.api.get_server(server['id'])[
            'OS-EXT-STS:task_state'] is None)
        self.assertEqual('SHELVED_OFFLOADED', self.api.get_server(
            server['id'])['status'])
        # It has no host, which could delete what the unshelve has left.
        self._delete_server(server)
        self.compute.manager._run_image_cache_manager_pass(
            context.get_admin_context())
        self.assert_nothing_left(server)
