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

"""Whatever dies while a server boots: once it is deleted, nothing is left."""

import subprocess

import ddt

from nova import context
from nova.tests.functional.api import client as api_client
from nova.tests.functional.libvirt import sheepdog_backend as backend
from nova.tests.functional.libvirt import sheepdog_testcase

CLIENT = sheepdog_testcase.CLIENT


@ddt.ddt
class SheepdogCrashTestCase(sheepdog_testcase.SheepdogTestCase):

    def setUp(self):
        super().setUp()
        # Long enough for a loaded machine.
        self.flags(group='libvirt', images_sheepdog_timeout=10)

    def _is_settled(self, server):
        server = self.api.get_server(server['id'])
        return (server['status'] in ('ACTIVE', 'ERROR') and
                server['OS-EXT-STS:task_state'] is None)

    def _delete_in_the_end(self, server, image_cache_pass=False):
        """Delete a server, again if that fails, and see what is left.

        :param image_cache_pass: whether Nova's image-cache pass comes before
            the look
        """
        try:
            for _attempt in range(5):
                self.api.delete_server(server['id'])
                self.wait_for_api(self._is_settled, server)
        except api_client.OpenStackApiNotFoundException:
            if image_cache_pass:
                self.compute.manager._run_image_cache_manager_pass(
                    context.get_admin_context())
            self.assert_nothing_left(server)
        else:
            self.fail('It cannot be deleted: %s' %
                      self.api.get_server(server['id'])['fault'])

    # Steps of a boot, in their order
    STEPS = ['create a VDI', 'export a VDI', 'copy data', 'remove a target',
             'take a snapshot', 'clone a snapshot', 'launch a guest']
    if sheepdog_testcase.IS_NATIVE:
        STEPS.remove('export a VDI')
        STEPS.remove('remove a target')

    def _post_server(self):
        return self.post_server(self.upload_image())

    def _has_begun_to_copy(self):
        return self.sheepdog.stats()['clients'].get(CLIENT, {}).get(
            'bytes_written')

    @ddt.data(*STEPS)
    def test_compute_is_killed_after(self, step):
        server = self.kill_compute_within(step, self._post_server)
        self.wait_until(lambda: not self.half_made())
        self._delete_in_the_end(server)

    def test_copy_outlives_compute(self):
        """A copy does not know at once that nova-compute is dead."""
        copies = []

        def start_copy(_copy, source, target, *_arguments):
            copies.append(subprocess.Popen(
                ['qemu-img', 'convert', '-n', '--image-opts',
                 '--target-image-opts', source, target]))
            self.wait_until(self._has_begun_to_copy)

        self.sheepdog.fault('hang', subcommand=CLIENT, operation='*WRITE*',
                            when='after')
        server = self.kill_compute_within(
            'copy data', self._post_server, start_copy)
        self.addCleanup(copies[0].kill)
        self.api.delete_server(server['id'])
        self.sheepdog.clear_faults()
        self._delete_in_the_end(server)
        copies[0].wait(sheepdog_testcase.LIMIT)
        self.assert_nothing_left(server)

    @ddt.data(
        ('vdi create', 'NEW_VDI', 'before'),
        ('vdi create', 'NEW_VDI', 'after'),
        (CLIENT, 'READ_OBJ', 'before'),
        (CLIENT, '*WRITE*', 'before'),
        (CLIENT, '*WRITE*', 'after'),
        ('vdi snapshot', 'NEW_VDI', 'after'),
        ('vdi clone', 'NEW_VDI', 'after'),
        ('vdi delete', 'DEL_VDI', 'before'),
        ('vdi delete', 'DEL_VDI', 'after'))
    @ddt.unpack
    def test_cluster_is_killed(self, client, operation, when):
        self.sheepdog.fault('kill', subcommand=client, operation=operation,
                            when=when)
        server = self.post_server(self.upload_image())
        self.sheepdog.wait_killed()
        self.sheepdog.start()
        self.wait_for_api(self._is_settled, server)
        # The clean-up of the build may have come before that start.
        self._delete_in_the_end(server, image_cache_pass=True)

    def test_cluster_stays_down(self):
        self.sheepdog.fault('kill', subcommand='vdi snapshot')
        server = self.post_server(self.upload_image())
        self.wait_for_api(self._is_settled, server)
        self.sheepdog.restart()
        # The host is off the instance, so its deletion does not come here.
        self._delete_in_the_end(server, image_cache_pass=True)

    def test_connection_is_lost_while_data_is_copied(self):
        self.sheepdog.fault('drop', subcommand=CLIENT, operation='*WRITE*')
        server = self.post_server(self.upload_image())
        self.wait_for_api(self._is_settled, server)
        self._delete_in_the_end(server)

    if not sheepdog_testcase.IS_NATIVE:

        @ddt.data('export a VDI', 'copy data', 'remove a target',
                  'launch a guest')
        def test_tgtd_is_killed_before(self, step):
            def kill_and_run(function, *args, **kwargs):
                self.testbed.ask('kill', 'tgtd')
                self.testbed.ask('start', 'tgtd')
                return function(*args, **kwargs)

            with backend.replace_step(step, kill_and_run):
                server = self.post_server(self.upload_image())
                self.wait_for_api(self._is_settled, server)
            self._delete_in_the_end(server)

        def test_tgtd_is_killed_while_data_is_copied(self):
            self.sheepdog.fault('hang', subcommand=CLIENT, operation='*WRITE*',
                                when='after')
            server = self.post_server(self.upload_image())
            self.wait_until(self._has_begun_to_copy)
            self.testbed.ask('kill', 'tgtd')
            self.sheepdog.clear_faults()
            self.testbed.ask('start', 'tgtd')
            self.wait_for_api(self._is_settled, server)
            self._delete_in_the_end(server)
