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

"""Which servers Nova has, as its API or its conductor tells.

To delete the disks of a server takes more than that nobody knows it: a Nova
that is asked by mistake knows none. The API says that there is no such server,
and is the Nova of this host; the conductor has the server, and as deleted.
"""

import collections
import contextlib
import os
import signal

from keystoneauth1 import exceptions as keystone
import openstack
import oslo_messaging

from nova.conductor import rpcapi as conductor_rpcapi
import nova.conf
from nova import context as nova_context
from nova.i18n import _
from nova import objects
from nova.objects import base as objects_base
from nova import rpc
from nova.virt.libvirt.sheepdog.commands import start

CONF = nova.conf.CONF

# Any of them says how to reach the API.
API_VARIABLES = ('OS_CLOUD', 'OS_AUTH_URL', 'OS_ENDPOINT')
# Seconds that the conductor may take; servers that it is asked for at once.
TIMEOUT = 60
CHUNK = 500

# state: what Nova calls it, None if there is no such server; host: its
# compute host, None if it has none
Server = collections.namedtuple('Server', 'state host')


def connect(cloud=None):
    """Find somebody to ask.

    :param cloud: name of a cloud in clouds.yaml, or None
    :returns: an Api or a Conductor
    :raises: start.Failure
    """
    if cloud or any(os.environ.get(name) for name in API_VARIABLES):
        return Api(cloud)
    return Conductor()


class Api:
    """Nova's API, as an administrator sees it.

    :param cloud: name of a cloud in clouds.yaml; None: the OS_* variables
    :raises: start.Failure if there is nothing to be asked
    """

    _errors = (openstack.exceptions.SDKException, keystone.ClientException)

    def __init__(self, cloud=None):
        try:
            self._compute = openstack.connect(cloud=cloud).compute
        except self._errors as e:
            raise self._failure(e)

    @staticmethod
    def _failure(error):
        return start.Failure(_(
            "Nova's API does not tell which servers there are: %s. Set the "
            'OS_* variables of an administrator, name the cloud with '
            '--os-cloud, or set none of them, to ask the conductor') % error)

    def _get(self, path):
        try:
            return self._compute.get(path)
        except self._errors as e:
            raise self._failure(e)

    def find(self, uuids):
        """Ask for servers of all projects.

        :param uuids: their UUIDs
        :returns: dict of UUID to Server
        :raises: start.Failure, also without the rights for that
        """
        try:
            servers = {server.id: Server(server.status, server.compute_host)
                       for server in self._compute.servers(all_projects=True)}
        except self._errors as e:
            raise self._failure(e)
        # A list does not have all of them.
        return {uuid: servers.get(uuid) or self._ask(uuid) for uuid in uuids}

    def _ask(self, uuid):
        answer = self._get('/servers/' + uuid)
        try:
            body = answer.json()
            if answer.status_code == 200:
                return Server(body['server']['status'], None)
            # And not whoever answers for an API that is not there.
            if (answer.status_code == 404 and
                    uuid in body['itemNotFound']['message']):
                return Server(None, None)
        except (ValueError, KeyError, TypeError):
            pass
        raise start.Failure(_(
            "Nova's API does not say whether there is a server %(uuid)s: "
            '%(status)s %(reason)s') % {
                'uuid': uuid, 'status': answer.status_code,
                'reason': answer.reason})

    def is_gone(self, uuid):
        """Ask once more whether there is no such server.

        :raises: start.Failure
        """
        return self._ask(uuid).state is None

    def check_host(self):
        """Make sure that this Nova is the one of this compute host.

        :raises: start.Failure if it is another one
        """
        answer = self._get('/os-services?binary=nova-compute')
        try:
            hosts = [service['host'] for service in answer.json()['services']]
        except (ValueError, KeyError, TypeError):
            raise start.Failure(_(
                "Nova's API does not list its compute services: %(status)s "
                '%(reason)s') % {'status': answer.status_code,
                                 'reason': answer.reason})
        if CONF.host not in hosts:
            raise start.Failure(_(
                'This Nova has no compute host %(host)s, but %(hosts)s. To '
                'another Nova every disk here is an orphan. Run this on a '
                'compute host of the Nova that is asked') % {
                    'host': CONF.host,
                    'hosts': ', '.join(sorted(hosts)) or 'none'})


class Conductor:
    """The conductor of this host's cell, as nova-compute asks it.

    It knows the servers of the cell, and those that were deleted until they
    are archived.
    """

    def __init__(self):
        rpc.init(CONF)
        objects_base.NovaObject.indirection_api = (
            conductor_rpcapi.ConductorAPI())
        self._context = nova_context.get_admin_context(read_deleted='yes')

    def find(self, uuids):
        """See Api.find(). Nothing is said of servers that it does not know."""
        uuids = list(uuids)
        servers = {}
        try:
            with _time_limit(TIMEOUT):
                for first in range(0, len(uuids), CHUNK):
                    for instance in objects.InstanceList.get_by_filters(
                            self._context,
                            {'uuid': uuids[first:first + CHUNK]},
                            expected_attrs=[]):
                        servers[instance.uuid] = Server(
                            None if instance.deleted else
                            instance.vm_state.upper(), instance.host)
        except (_Late, oslo_messaging.MessagingException) as e:
            raise start.Failure(_(
                'The conductor does not tell which servers there are: %s. '
                'See whether nova-conductor and the message queue run, or '
                "set the OS_* variables of an administrator, to ask Nova's "
                'API') % e)
        return servers

    def is_gone(self, uuid):
        """See Api.is_gone()."""
        server = self.find([uuid]).get(uuid)
        return server is not None and server.state is None

    def check_host(self):
        """See Api.check_host(). What another Nova does not know stays."""


class _Late(BaseException):
    """What takes too long. Who tries again after any Exception lets it go."""


@contextlib.contextmanager
def _time_limit(seconds):
    """Raise _Late when the body takes longer than that.

    oslo.messaging tries for ever to reach a message queue that is down.
    """
    def stop(_signal, _frame):
        raise _Late(_('no answer within %d s') % seconds)

    before = signal.signal(signal.SIGALRM, stop)
    left = signal.alarm(seconds)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.alarm(left)
