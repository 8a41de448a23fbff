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

"""Calls between the processes of a test.

They go over sockets that are files, which are reached from every network
namespace. Nova's RPC is carried from one oslo.messaging to the other: in each
process that is the driver which passes messages in memory.
"""

import functools
import pickle
import socket
import socketserver
import sys
import threading

import oslo_messaging as messaging
from oslo_messaging._drivers import common as messaging_common

from nova import rpc

# What oslo.messaging raises by its own class when it came from elsewhere
MODULES = ('oslo_messaging.exceptions',)
# What Nova's tests add to a context, and is no data
CONNECTIONS = ('db_connection', 'mq_connection')


class _Handler(socketserver.StreamRequestHandler):

    def handle(self):
        name, method, args, kwargs = pickle.load(self.rfile)
        try:
            answer = True, getattr(self.server.objects[name], method)(
                *args, **kwargs)
        except Exception:
            answer = False, messaging_common.serialize_remote_exception(
                sys.exc_info())
        pickle.dump(answer, self.wfile)


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Lets other processes call methods of objects.

    :param path: of the socket
    :param objects: by the names they are called by
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path, **objects):
        super().__init__(path, _Handler)
        self.objects = objects
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Remote:
    """An object of another process.

    :param path: of its Server's socket
    :param name: that it has there
    """

    def __init__(self, path, name):
        self._path = path
        self._name = name

    def __getattr__(self, method):
        return functools.partial(self._call, method)

    def _call(self, method, *args, **kwargs):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self._path)
            with client.makefile('rwb') as stream:
                pickle.dump((self._name, method, args, kwargs), stream)
                stream.flush()
                try:
                    done, answer = pickle.load(stream)
                except EOFError:
                    raise ConnectionResetError('%s has ended' % self._path)
        if done:
            return answer
        raise messaging_common.deserialize_remote_exception(
            answer, (*rpc.get_allowed_exmods(), *MODULES))


class Messages:
    """Nova's RPC, as another process offers it.

    :param send: what to use as oslo.messaging's FakeDriver.send()
    :param context: values of the context that every message gets
    """

    def __init__(self, send, **context):
        self._send = send
        self._context = context

    def deliver(self, topic, server, fanout, context, message, wait, timeout):
        """Send a message in this process.

        :returns: the answer, if wait is true
        """
        return self._send(
            rpc.TRANSPORT._driver,
            messaging.Target(topic=topic, server=server, fanout=fanout),
            dict(context, **self._context), message, wait, timeout)


def send(remote, target, context, message, wait, timeout):
    """Send a message in another process.

    :param remote: Remote of Messages
    :returns: the answer, if wait is true
    """
    return remote.deliver(
        target.topic, target.server, target.fanout,
        {name: value for name, value in context.items()
         if name not in CONNECTIONS}, message, wait, timeout)
