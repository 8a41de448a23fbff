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

"""Hosts of the test bed: what two machines would have of their own.

A host has processes of its own, mounts, a host name, a libvirtd with its own
host UUID, a tgtd, and a network with its own loopback. A cable joins the
networks of two hosts; out of them leads nothing but the addresses at which
a host finds the sheep of its cluster.
"""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import uuid

import network

DIRECTORIES = ('/etc/libvirt', '/run/libvirt', '/run/tgtd', '/var/lib/libvirt',
               '/var/lib/nova', '/var/log/libvirt', '/var/cache/libvirt')

LIBVIRTD_CONF = """
host_uuid = "%(uuid)s"
listen_tls = 0
listen_tcp = 1
listen_addr = "%(address)s"
auth_tcp = "none"
"""


def run(*command):
    subprocess.run(command, check=True)


class Host:
    """A host, as the supervisor sees it.

    :param name: its name
    :param number: for its address on the cable, and the port of its tgtd:
        3260 for the first, and so on
    :param sheep: list of (address, port) of the sheep of its cluster; the
        host finds each of them there
    :param log: file for what its daemons say
    """

    def __init__(self, name, number, sheep, log):
        self.name = name
        self.address = '10.0.0.%d' % number
        self._control, theirs = socket.socketpair(socket.AF_UNIX)
        self._unshare = subprocess.Popen(
            ['unshare', '--net', '--mount', '--uts', '--pid', '--fork',
             '--kill-child', '--mount-proc', sys.executable, __file__,
             str(theirs.fileno()), name, self.address,
             '127.0.0.1:%d' % (3259 + number),
             *('%s:%d' % address for address in sheep)],
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=log,
            stderr=log)
        theirs.close()
        _message, descriptors, _flags, _address = socket.recv_fds(
            self._control, 1, len(sheep))
        if not descriptors:
            raise RuntimeError('host %s did not start' % name)
        with open('/proc/%d/task/%d/children' % (
                self._unshare.pid, self._unshare.pid)) as children:
            self.pid = int(children.read())
        self._listeners = [socket.socket(fileno=descriptor)
                           for descriptor in descriptors]
        for listener, address in zip(self._listeners, sheep):
            network.forward(listener, address)

    def command(self, *words, user=None):
        """Return the words that run a command in this host.

        :param user: pwd entry of who runs it; none: root
        """
        return ['nsenter', '--target', str(self.pid), '--net', '--mount',
                '--uts', '--pid', *(['--setuid', str(user.pw_uid),
                '--setgid', str(user.pw_gid)] if user else []), *words]

    def start(self):
        """Have the host start its daemons, when it is on its cable."""
        self._control.sendall(b'.')
        if not self._control.recv(1):
            raise RuntimeError('the daemons of host %s did not start' %
                               self.name)

    def signal(self, name, program='qemu-system'):
        """Send a signal to all processes of a program.

        :param name: of the signal, such as 'SIGSTOP'
        :param program: what its name begins with
        """
        def namespace(pid):
            return os.readlink('/proc/%s/ns/pid' % pid)

        for path in pathlib.Path('/proc').glob('[0-9]*/comm'):
            # Any other process may have ended.
            with contextlib.suppress(OSError):
                pid = path.parent.name
                if path.read_text().startswith(program) and (
                        namespace(pid) == namespace(self.pid)):
                    os.kill(int(pid), signal.Signals[name])

    def end(self):
        """End it with all that runs in it."""
        self._unshare.kill()
        self._unshare.wait()
        self._control.close()
        for listener in self._listeners:
            # accept() of the forwarder fails
            listener.shutdown(socket.SHUT_RDWR)


def join(one, other):
    """Lay a cable between two hosts."""
    run('ip', 'link', 'add', 'cable', 'netns', str(one.pid), 'type', 'veth',
        'peer', 'name', 'cable', 'netns', str(other.pid))
    for host in one, other:
        run(*host.command('ip', 'address', 'add', host.address + '/24',
                          'dev', 'cable'))
        run(*host.command('ip', 'link', 'set', 'cable', 'up'))


def make(sheep, log):
    """Return hosts that are ready, two of them on one cable.

    :param sheep: dict of their names, or none, to lists of (address, port) of
        the sheep of their cluster
    :param log: file for what their daemons say
    """
    hosts = [Host(name, number, addresses, log)
             for number, (name, addresses) in enumerate(sheep.items(), 1)]
    if hosts:
        join(*hosts)
    for host in hosts:
        host.start()
    return {host.name: host for host in hosts}


def daemons_answer():
    with socket.socket(socket.AF_UNIX) as client:
        if client.connect_ex('/run/libvirt/libvirt-sock'):
            return False
    return not subprocess.run(
        ['tgtadm', '--lld', 'iscsi', '--mode', 'target', '--op', 'show'],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode


def inside(control, name, address, portal, *sheep):
    """Be a host: the first process in its namespaces.

    It ends with the test bed, or when the supervisor kills it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run('mount', '--make-rprivate', '/')
    listeners = network.set_up([network.parse(text) for text in sheep])
    socket.sethostname(name)
    configuration = [(path, path.read_text())
                     for path in pathlib.Path('/etc/libvirt').glob('*.conf')]
    for directory in DIRECTORIES:
        os.makedirs(directory, exist_ok=True)
        run('mount', '-t', 'tmpfs', '-o', 'mode=755', 'tmpfs', directory)
    os.chmod('/var/lib/nova', 0o777)
    for path, text in configuration:
        path.write_text(text)
    with open('/etc/libvirt/libvirtd.conf', 'a') as conf:
        conf.write(LIBVIRTD_CONF % {
            'uuid': uuid.uuid5(uuid.NAMESPACE_DNS, name), 'address': address})
    # sudo looks its host up.
    with open('/etc/hosts', 'a') as known:
        known.write('%s %s\n' % (address, name))

    socket.send_fds(control, [b'.'],
                    [listener.fileno() for listener in listeners])
    control.recv(1)
    daemons = {subprocess.Popen(command).pid: command for command in (
        ['libvirtd', '--listen', '--pid-file', '/run/libvirt/libvirtd.pid'],
        ['tgtd', '-f', '--iscsi', 'portal=' + portal])}
    deadline = time.monotonic() + 60
    while not daemons_answer():
        if time.monotonic() > deadline:
            return 1
        time.sleep(0.1)
    control.sendall(b'.')
    while True:
        # libvirt takes a guest that nobody waits for to be running still.
        try:
            pid, _status = os.wait()
        except ChildProcessError:
            return 1
        command = daemons.pop(pid, None)
        if command:
            # as systemd does
            daemons[subprocess.Popen(command).pid] = command


if __name__ == '__main__':
    sys.exit(inside(socket.socket(fileno=int(sys.argv[1])), *sys.argv[2:]))
