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

"""What the tests of the Sheepdog backend share."""

import os
import shutil
from unittest import mock

import fixtures
import tenacity

from nova.tests.fixtures import sheepdog as sheepdog_fixture
from nova.tests.fixtures import tgtd as tgtd_fixture


class SheepdogTestMixin:
    """Runs the real helpers against the simulator of a Sheepdog cluster.

    Root runs ``dog`` and ``tgtadm`` itself here, as oslo.concurrency does it
    for him; what rootwrap allows is a functional test's concern.
    """

    def start_sheepdog(self, **kwargs):
        self.sheepdog = self.useFixture(
            sheepdog_fixture.SheepdogFixture(**kwargs))
        self.set_path(os.path.dirname(self.sheepdog.dog), os.environ['PATH'])
        self.useFixture(fixtures.MonkeyPatch(
            'nova.virt.libvirt.utils.SHEEPDOG_SPACES', {}))
        self.useFixture(fixtures.MonkeyPatch(
            'nova.utils.get_root_helper', lambda: 'env'))
        self.flags(images_type='sheepdog',
                   images_sheepdog_host=self.sheepdog.host,
                   images_sheepdog_port=self.sheepdog.port,
                   images_sheepdog_transport='iscsi',
                   images_sheepdog_timeout=20, group='libvirt')

    def set_path(self, *directories):
        """Say where programs are looked for, also those that root runs."""
        path = os.pathsep.join(directories)
        self.useFixture(fixtures.EnvironmentVariable('PATH', path))
        self.useFixture(fixtures.MonkeyPatch(
            'nova.virt.libvirt.utils.ROOT_PATH', path))

    def install(self, name, script):
        """Put a shell script in the place of a program.

        :param name: name of the program
        :param script: what it shall do
        :returns: path of the script
        """
        directory = self.useFixture(fixtures.TempDir()).path
        path = os.path.join(directory, name)
        with open(path, 'w') as program:
            program.write('#!/bin/sh\n' + script)
        os.chmod(path, 0o755)
        self.set_path(directory, os.environ['PATH'])
        return path

    def install_only(self, *names):
        """Have no programs but these."""
        directory = self.useFixture(fixtures.TempDir()).path
        for name in names:
            os.symlink(shutil.which(name), os.path.join(directory, name))
        self.set_path(directory)

    def start_tgtd(self):
        self.tgtd = self.useFixture(tgtd_fixture.TgtdFixture())
        self.flags(images_sheepdog_portal=self.tgtd.portal, group='libvirt')
        self.useFixture(fixtures.MonkeyPatch(
            'nova.virt.libvirt.storage.tgt.CONTROL_SOCKET',
            self.tgtd.control_socket))

    def dog(self, *arguments):
        """Run dog and expect that it succeeds.

        :param arguments: all but the gateway's address
        :returns: its standard output, bytes
        """
        status, out, err = self.sheepdog.run(*arguments)
        self.assertEqual((0, b''), (status, err))
        return out

    @staticmethod
    def wait_until(condition, *args):
        """Wait until a function returns something true.

        :raises: tenacity.RetryError after 60 seconds
        """
        tenacity.Retrying(
            stop=tenacity.stop_after_delay(60),
            wait=tenacity.wait_fixed(0.05),
            retry=tenacity.retry_if_result(lambda result: not result))(
                condition, *args)

    def patch_object(self, target, attribute, **kwargs):
        patcher = mock.patch.object(target, attribute, **kwargs)
        self.addCleanup(patcher.stop)
        return patcher.start()
