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

"""Counts the data that clients of a Sheepdog cluster read and write.

It stands between them and a gateway, so it counts the same on a simulated
cluster and on a real one.
"""

import socket
import threading

import paths  # noqa: F401

from sheepdog_simulator import protocol  # isort: skip
import waiting  # isort: skip


class Meter:
    """A port that leads to a gateway.

    :ivar host: its address
    :ivar port: TCP port
    :ivar bytes_read: bytes of data objects that were asked for; no inodes
    :ivar bytes_written: bytes of data objects that were sent
    """

    host = '127.0.0.1'

    def __init__(self, gateway):
        """:param gateway: its address and port"""
        self._gateway = gateway
        self._lock = threading.Lock()
        self._listener = waiting.listen()
        self.port = self._listener.getsockname()[1]
        self.reset()
        threading.Thread(target=self._accept, daemon=True).start()

    def reset(self):
        with self._lock:
            self.bytes_read = self.bytes_written = 0

    def _accept(self):
        while True:
            client, _address = self._listener.accept()
            server = socket.create_connection(self._gateway)
            for end in client, server:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for function in self._forward_requests, self._forward_answers:
                threading.Thread(target=self._until_closed, daemon=True,
                                 args=(function, client, server)).start()

    @staticmethod
    def _until_closed(forward, client, server):
        try:
            while forward(client, server):
                pass
        except OSError:
            pass
        for end in client, server:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _forward_requests(self, client, server):
        header = protocol.receive(client, protocol.HEADER_SIZE)
        if header is None:
            return False
        request = protocol.Request.unpack(header)
        data = b''
        if request.flags & protocol.FLAG_WRITE and request.data_length:
            data = protocol.receive(client, request.data_length)
            if data is None:
                return False
        self._count(request)
        server.sendall(bytes(header) + bytes(data))
        return True

    def _count(self, request):
        if not request.operation.endswith('_OBJ') or (
                request.object()[0] & protocol.KIND_BITS):
            return
        with self._lock:
            if request.operation == 'READ_OBJ':
                self.bytes_read += request.data_length
            elif request.operation in ('WRITE_OBJ', 'CREATE_AND_WRITE_OBJ'):
                self.bytes_written += request.data_length

    @staticmethod
    def _forward_answers(client, server):
        data = server.recv(2 ** 18)
        client.sendall(data)
        return bool(data)
