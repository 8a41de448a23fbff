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

from concurrent import futures
import os
import shutil
import threading
import time
from unittest import mock

import fixtures
from oslo_concurrency import processutils

from nova import exception
from nova.tests.fixtures import sheepdog as sheepdog_fixture
from nova.tests.fixtures.sheepdog import waiting
from nova.tests.fixtures import tgtd as tgtd_fixture
from nova.virt.disk import api as disk_api
from nova.virt.libvirt import host as libvirt_host
from nova.virt.libvirt.sheepdog import host as sheepdog_host
from nova.virt.libvirt.sheepdog import lease
from nova.virt.libvirt.sheepdog import rootwrap
from nova.virt.libvirt.sheepdog import targets
from nova.virt.libvirt.sheepdog import transfer


class Clock:
    """What stands for Python's module time where a test sets the time.

    :ivar ahead: seconds by which it is fast
    :ivar step: seconds by which sleep() puts it forward, whatever it is asked
    """

    def __init__(self):
        self.ahead = 0
        self.step = 1

    def time(self):
        return time.time() + self.ahead

    def monotonic(self):
        return time.monotonic() + self.ahead

    def sleep(self, _seconds):
        # Others go on meanwhile.
        time.sleep(0.01)
        self.ahead += self.step


class ModelTransfer:
    """Copies what the file begins with; see test_transfer for the real one."""

    def __init__(self, sheepdog):
        self._sheepdog = sheepdog

    def copy_in(self, path, vdi, begun=None):
        with open(path, 'rb') as image:
            status, _out, err = self._sheepdog.execute(
                'dog', 'vdi', 'write', '-a', self._sheepdog.host, '-p',
                str(self._sheepdog.port), vdi, '0', '11',
                stdin=image.read(11))
        if status:
            raise exception.SheepdogError(reason=err)


class ModelTgtd:
    """A ModelFixture's tgtd, to be used like a TgtdFixture.

    :param tgtd: the tgt.Tgtd
    :param control_socket: path to have a file at, as long as it runs
    """

    def __init__(self, tgtd, control_socket):
        self._tgtd = tgtd
        self._control_socket = control_socket
        self.start()

    def start(self):
        with open(self._control_socket, 'x'):
            self._tgtd.start()

    def stop(self):
        self._tgtd.kill()
        os.unlink(self._control_socket)


class SheepdogTestMixin:
    """Runs the real helpers against the simulator of a Sheepdog cluster.

    Here ``dog`` and ``tgtadm`` run without rootwrap; a functional test proves
    what rootwrap allows.
    """

    # Whether start_cluster() starts processes
    IS_REAL = False

    def start_cluster(self):
        """Start a cluster and tgtd."""
        if self.IS_REAL:
            self.start_sheepdog()
            self.start_tgtd()
        else:
            self.start_model()

    def start_sheepdog(self, **kwargs):
        self.sheepdog = self.useFixture(
            sheepdog_fixture.SheepdogFixture(**kwargs))
        self.set_path(os.path.dirname(self.sheepdog.dog), os.environ['PATH'])
        self._configure()

    def start_model(self, **kwargs):
        """Simulate the cluster and tgtd within this process.

        That is some hundred times as fast. What hangs is over at once, as if
        its time were.
        """
        self.sheepdog = self.useFixture(
            sheepdog_fixture.ModelFixture(**kwargs))
        execute = processutils.execute

        def execute_in_model(*command, process_input=None, **kwargs):
            if not {'dog', 'tgtadm'} & set(command):
                return execute(*command, process_input=process_input, **kwargs)
            status, out, err = self.sheepdog.execute(
                *command, stdin=(process_input or '').encode())
            out, err = os.fsdecode(out), os.fsdecode(err)
            if status:
                raise processutils.ProcessExecutionError(
                    stdout=out, stderr=err, exit_code=status)
            return out, err

        self.patch_object(processutils, 'execute', new=execute_in_model)
        # It would ask qemu-img.
        self.patch_object(disk_api, 'get_disk_size', new=os.path.getsize)
        self._configure()
        path = self.useFixture(fixtures.TempDir()).join('control')
        self.patch_object(targets, 'CONTROL_SOCKET', new=path)
        # It has no port. What has the one that sheep have is not for a test.
        self.patch_object(targets, 'socket', new=mock.Mock())
        self.tgtd = ModelTgtd(self.sheepdog.tgtd, path)

    def _configure(self):
        self.useFixture(fixtures.MonkeyPatch(
            'nova.utils.get_root_helper', lambda: 'env'))
        self.flags(instances_path=self.useFixture(fixtures.TempDir()).path)
        self.flags(disable_rootwrap=True, group='workarounds')
        # The runner reads nova.conf once.
        rootwrap.stop()
        self.addCleanup(rootwrap.stop)
        self.flags(images_type='sheepdog',
                   images_sheepdog_host=self.sheepdog.host,
                   images_sheepdog_port=self.sheepdog.port,
                   images_sheepdog_transport='iscsi',
                   images_sheepdog_timeout=20, group='libvirt')

    def set_path(self, *directories):
        """Set the directories in which this process and root find programs."""
        path = os.pathsep.join(directories)
        self.useFixture(fixtures.EnvironmentVariable('PATH', path))
        self.useFixture(fixtures.MonkeyPatch(
            'nova.virt.libvirt.sheepdog.rootwrap.ROOT_PATH', path))

    def install(self, name, script):
        """Put a shell script in the place of a program.

        :param name: name of the program
        :param script: what it does
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
        """Leave no programs but these on the path."""
        directory = self.useFixture(fixtures.TempDir()).path
        for name in names:
            os.symlink(shutil.which(name), os.path.join(directory, name))
        self.set_path(directory)

    def start_tgtd(self):
        self.tgtd = self.useFixture(tgtd_fixture.TgtdFixture())
        self.flags(images_sheepdog_portal=self.tgtd.portal, group='libvirt')
        self.patch_object(
            targets, 'CONTROL_SOCKET', new=self.tgtd.control_socket)

    def make_transfer(self):
        """Make what copies images in and out."""
        if self.IS_REAL:
            return transfer.Transfer(targets.Targets('iscsi'))
        return ModelTransfer(self.sheepdog)

    def make_host(self):
        """Make what the driver holds, and have the image backend use it.

        Its libvirt host, ``self.libvirt_host``, is a mock that has no guests.

        :returns: a SheepdogHost
        """
        self.libvirt_host = mock.Mock(spec=libvirt_host.Host)
        self.libvirt_host.list_guests.return_value = []
        self.useFixture(fixtures.MonkeyPatch(
            'nova.virt.libvirt.sheepdog.host.START_LIMIT', 0))
        host = sheepdog_host.SheepdogHost(self.libvirt_host)
        self.addCleanup(host.stop)
        self.useFixture(fixtures.MonkeyPatch(
            'nova.virt.libvirt.imagebackend.Sheepdog.host', host))
        return host

    def set_clock(self, *modules):
        """Have modules use a Clock, and leases be renewed at short intervals.
        """
        self.clock = Clock()
        for module in modules:
            self.patch_object(module, 'time', new=self.clock)
        self.patch_object(lease, 'RENEWAL', new=0.01)

    def start_thread(self, function, *args, **kwargs):
        """Have a thread do what another host or server would.

        :returns: a future; what the function raises is in it
        """
        future = futures.Future()

        def run():
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as e:
                future.set_exception(e)

        threading.Thread(target=run, daemon=True).start()
        return future

    def dog(self, *arguments):
        """Run dog and expect that it succeeds.

        :param arguments: all but the gateway's address
        :returns: its standard output, bytes
        """
        status, out, err = self.sheepdog.run(*arguments)
        self.assertEqual((0, b''), (status, err))
        return out

    wait_until = staticmethod(waiting.wait_until)

    def patch_object(self, target, attribute, **kwargs):
        patcher = mock.patch.object(target, attribute, **kwargs)
        self.addCleanup(patcher.stop)
        return patcher.start()
