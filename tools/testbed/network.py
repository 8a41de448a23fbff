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


"""A network of its own for a command.

All that is in it is its loopback, and the sheep daemons that the caller names:
they are found there at the same addresses and ports as outside.  So nothing in
it can ask, let alone change, a Sheepdog cluster that it was not given, such as
one on the default port of the machine.

As a command it is what start() runs inside.
"""

import contextlib
import ipaddress
import os
import select
import socket
import subprocess
import sys
import threading
import time

# Where everything looks for a sheep daemon that was told of none
DEFAULT = '127.0.0.1', 7000


def parse(text):
    """Return the address and the port that HOST:PORT says.

    :raises: ValueError if HOST is no IPv4 address, nor localhost
    """
    host, _colon, port = text.rpartition(':')
    return str(ipaddress.IPv4Address(
        '127.0.0.1' if host == 'localhost' else host)), int(port)


def find_sheep(dog, gateway):
    """Return the address and the port of each sheep of a cluster.

    dog asks some things of each sheep by itself, wherever its cluster says
    that it is.

    :param dog: path of dog
    :param gateway: (address, port) of one of them
    :raises: OSError, ValueError or subprocess.SubprocessError if they cannot
        be found
    """
    listed = subprocess.run(
        [dog, 'node', 'list', '-r', '-a', gateway[0], '-p', str(gateway[1])],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=60,
        check=True, env=dict(os.environ, LC_ALL='C'), universal_newlines=True)
    return [gateway] + [sheep for sheep in (
        parse(line.split()[1]) for line in listed.stdout.splitlines())
        if sheep != gateway]


def pipe(source, target):
    """Copy from one socket to another until it ends."""
    try:
        while True:
            data = source.recv(2 ** 16)
            if not data:
                break
            target.sendall(data)
    except OSError:
        pass
    for end in source, target:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def connect(client, address):
    """Carry what a client says to an address, and back."""
    try:
        server = socket.create_connection(address)
    except OSError:
        client.close()
        return
    for end in client, server:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for ends in (client, server), (server, client):
        threading.Thread(target=pipe, args=ends, daemon=True).start()


def forward(listener, address):
    """Connect whoever comes to a socket with an address."""
    serve(listener, lambda client: connect(client, address))


def serve(listener, handle):
    """Have a thread handle whoever comes to a socket, until it is shut."""
    def accept():
        while True:
            try:
                client, _name = listener.accept()
            except OSError:
                return
            handle(client)

    threading.Thread(target=accept, daemon=True).start()


class Decoy:
    """Listens where a sheep of nobody's would be, and no command may come.

    :ivar heard: what was said to it, bytes for each connection
    """

    def __init__(self):
        self.heard = []

    def listen(self, client):
        self.heard.append(b'')
        with client, contextlib.suppress(OSError):
            client.settimeout(1)
            self.heard[-1] = client.recv(256)


def set_up(addresses):
    """Bring up the loopback of this network.

    :param addresses: list of (address, port)
    :returns: list of sockets that listen there
    """
    subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)
    for address in {address for address, _port in addresses}:
        if not ipaddress.IPv4Address(address).is_loopback:
            subprocess.run(['ip', 'address', 'add', address + '/32', 'dev',
                            'lo'], check=True)
    return [socket.create_server(address, backlog=128)
            for address in addresses]


@contextlib.contextmanager
def start(command, sheep=(), decoy=None, **kwargs):
    """Run a command in a network of its own.

    :param sheep: list of (address, port) that it shall reach
    :param decoy: Decoy for it to leave alone; not where a sheep is that was
        given
    :param kwargs: for subprocess.Popen
    :returns: subprocess.Popen, killed at the end of the context
    :raises: RuntimeError if no such network can be made
    """
    addresses = list(sheep)
    decoys = [DEFAULT] if decoy and DEFAULT not in addresses else []
    # A user namespace gives a plain user the right to make another one.
    unshare = ['unshare', '--net'] if not os.geteuid() else [
        'unshare', '--user', '--map-current-user', '--keep-caps', '--net']
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        process = subprocess.Popen(
            [*unshare, sys.executable, os.path.abspath(__file__),
             str(theirs.fileno()),
             *('%s:%d' % address for address in addresses + decoys), '--',
             *command], pass_fds=[theirs.fileno()], **kwargs)
        theirs.close()
        said, descriptors, _flags, _address = socket.recv_fds(
            ours, 1, len(addresses + decoys))
    listeners = [socket.socket(fileno=descriptor)
                 for descriptor in descriptors]
    try:
        if not said:
            raise RuntimeError('No network namespace could be made: "%s" '
                               'failed' % ' '.join(unshare))
        for listener, address in zip(listeners, addresses):
            forward(listener, address)
        for listener in listeners[len(addresses):]:
            serve(listener, decoy.listen)
        yield process
    finally:
        process.kill()
        process.wait()
        for listener in listeners[len(addresses):]:
            while select.select([listener], [], [], 0)[0]:
                # Somebody who came is still to be noted.
                time.sleep(0.01)
        for listener in listeners:
            with listener, contextlib.suppress(OSError):
                # accept() ends
                listener.shutdown(socket.SHUT_RDWR)


def main(descriptor, *arguments):
    """Be in that network, and become the command."""
    separator = arguments.index('--')
    listeners = set_up([parse(text) for text in arguments[:separator]])
    with socket.socket(fileno=int(descriptor)) as control:
        socket.send_fds(control, [b'.'],
                        [listener.fileno() for listener in listeners])
    os.execvp(arguments[separator + 1], arguments[separator + 1:])


if __name__ == '__main__':
    main(*sys.argv[1:])
