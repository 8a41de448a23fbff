# Licensed under the Apache License, Version 2.0 (the "License"); you may
# not use this file except in compliance with the License. You may obtain
# a copy of the License at
#
#      http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
# WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
# License for the specific language governing permissions and limitations
# under the License.

"""createImage of a server that runs, through the whole of Nova."""

# It patches what is imported after it, as Nova's tests want it.
from nova.tests.functional.libvirt import sheepdog_testcase  # isort: skip

import contextlib
import logging
import os
import time
import unittest

import fixtures
import meter
from nova.tests.fixtures import boot_sector
from nova.virt.libvirt import host as libvirt_host
from oslo_utils import units
import tell

DATA = 64 * units.Mi


class Server(sheepdog_testcase.SheepdogTestCase):
    """Measures it: a test case, for the fixtures of Nova's functional tests.
    """

    def setUp(self):
        super().setUp()
        # What Nova says as it is stopped would go to the terminal.
        self.addCleanup(logging.disable, logging.INFO)

    def start_cluster(self):
        cluster = super().start_cluster()
        self.meter = meter.Meter((cluster.host, cluster.port))
        # the way that nova-compute takes
        return self.useFixture(sheepdog_testcase.sheepdog.Cluster(
            cluster.dog, self.meter.host, self.meter.port))

    def runTest(self):
        tell.progress('booting a server', at_once=True)
        self.flags(group='libvirt', snapshot_image_format='qcow2')
        path = os.path.join(self.useFixture(fixtures.TempDir()).path, 'image')
        boot_sector.write_image(path, units.Gi)
        with open(path, 'r+b') as image:
            for number in range(DATA // units.Mi):
                image.seek((1 + 8 * number) * units.Mi)
                image.write(os.urandom(units.Mi))
        image_id = self.upload_file(path, 'qcow2')
        server = self.boot(image_id)
        self.wait_for_beats(server)

        tell.progress('making an image of it', at_once=True)
        self.meter.reset()
        with self._stops(server) as stops:
            snapshot_id = self.create_image(server)
        read = self.meter.bytes_read
        with self._stops(server) as heard:
            # So one would have been heard of.
            self.act(server, 'pause', None, 'PAUSED')
            self.act(server, 'unpause', None, 'ACTIVE')
            self.wait_until(lambda: heard)
        allocated = self._allocated(server)
        tell.result('image-read', read / allocated, read=read,
                    allocated=allocated)
        tell.result('image-stopped', sum(stops))
        self._delete_server(server)
        self._delete_bases(image_id, snapshot_id)

    @contextlib.contextmanager
    def _stops(self, server):
        """Note for how long a guest is stopped.

        :returns: list of seconds, which is filled when the body ends
        """
        libvirt = libvirt_host.libvirt
        stops, since = [], []

        def note(_connection, _guest, event, _detail, _opaque):
            if event == libvirt.VIR_DOMAIN_EVENT_SUSPENDED:
                since.append(time.monotonic())
            elif event == libvirt.VIR_DOMAIN_EVENT_RESUMED and since:
                stops.append(time.monotonic() - since.pop())

        connection = self.compute.driver._host.get_connection()
        callback = connection.domainEventRegisterAny(
            connection.lookupByUUIDString(server['id']),
            libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, note, None)
        try:
            yield stops
        finally:
            connection.domainEventDeregisterAny(callback)

    def _allocated(self, server):
        """:returns: bytes of the objects that the root disk has"""
        status, out, err = self.sheepdog.run(
            'vdi', 'list', '-r', '%s_disk' % server['id'])
        self.assertEqual((0, b''), (status, err))
        # flag, name, id, size, used, shared
        used, shared = out.split()[4:6]
        return int(used) + int(shared)

    def _delete_bases(self, *image_ids):
        for name in self.bases():
            if name.startswith(image_ids):
                for tag in (), ('-s', 'nova-base'):
                    self.sheepdog.run('vdi', 'delete', *tag, name)


def measure_image():
    result = unittest.TestResult()
    Server('runTest').run(result)
    for _test, words in result.errors + result.failures:
        raise RuntimeError(words)
