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

"""What Nova has in a Sheepdog cluster, and what of it nobody needs.

An orphan is a VDI of an instance of which Nova's API says that there is none.
It says so only to an administrator, and only of its own instances: hence
Api.check_rights() and Api.check_host().
"""

import dataclasses
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import typing as ty

from graft import GraftError

CONFIG_FILES = ('/etc/nova/nova.conf', '/etc/nova/nova-compute.conf')
# Where the patched Nova looks for dog and tgtadm.
PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
IQN = 'iqn.2014-06.org.openstack.nova:'
# Seconds. An orphan has to be older, so that nothing goes that Nova is about
# to make or to delete.
MINIMUM_AGE = 600
# Seconds that one call of dog or tgtadm may take; a list reads the inode of
# every VDI, 1 ms each.
TIME_LIMIT = 300
UNITS = ('B', 'KiB', 'MiB', 'GiB', 'TiB')
TAGS = ('nova-snapshot', 'nova-resize', 'nova-base')
# dog vdi list -r: flag, name, snapshot id, size, own bytes, shared bytes,
# creation time, VDI id, copies, tag, block size shift
LINE = re.compile(
    r'(?P<flag>[s=c]) '
    r'(?P<uuid>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})_'
    r'(?P<disk>disk(?:\.(?:local|swap|config|eph\d+))?(?:\.rescue)?'
    r'|scratch|state|(?:base|record|import|lease)\.[0-9a-f]+) '
    r'\d+ (?P<size>\d+) (?P<own>\d+) (?P<shared>\d+) (?P<created>\d+) '
    r'[0-9a-f]+ \S+ (?P<tag>.*) \d+')
# What dog says when there is nothing to delete.
MISSING = ('No VDI found', 'VDI not found', 'Failed to find requested tag')


@dataclasses.dataclass
class Vdi:
    """A VDI of an instance or of a base image, or a snapshot of one.

    :ivar uuid: the instance or the image
    :ivar disk: its name behind the UUID, such as disk.swap
    :ivar tag: tag of a snapshot, which may be empty; None: the VDI itself
    :ivar size: in bytes
    :ivar own: bytes of data that only it has, copies not counted
    :ivar shared: bytes of data that it shares, copies not counted
    :ivar created: when, in seconds of the epoch
    """
    uuid: str
    disk: str
    tag: ty.Optional[str]
    size: int
    own: int
    shared: int
    created: int

    @property
    def name(self):
        return f'{self.uuid}_{self.disk}'

    @property
    def shown(self):
        return self.disk if self.tag is None else f'{self.disk}@{self.tag}'

    @property
    def is_of_base(self):
        """Whether it is of a base image, which many instances may share."""
        return not self.disk.startswith(('disk', 'scratch', 'state'))

    @property
    def is_novas(self):
        """Whether Nova made it; anybody can take a snapshot."""
        return self.tag is None or self.tag in TAGS


@dataclasses.dataclass
class Configuration:
    """What nova.conf says.

    :ivar name: of this compute host in Nova
    :ivar host: address of the gateway
    :ivar port: its TCP port
    :ivar transport: 'auto', 'iscsi' or 'native'
    """
    name: str
    host: str
    port: int
    transport: str


def _missing(error):
    return GraftError(
        f'{sys.executable} has no {error.name}, which this command needs: '
        f'{sys.executable} -m pip install openstacksdk oslo.config')


def configure(files=None):
    """Read nova.conf.

    :param files: list of paths; None: those of CONFIG_FILES that are there
    :returns: Configuration
    :raises GraftError: a file cannot be read
    """
    try:
        from oslo_config import cfg
    except ModuleNotFoundError as error:
        raise _missing(error)
    read = cfg.ConfigOpts()
    # Others may be written in terms of the first.
    read.register_opts([cfg.StrOpt('my_ip'),
                        cfg.StrOpt('host', default=socket.gethostname())])
    read.register_opts([
        cfg.StrOpt('images_sheepdog_host', default='localhost'),
        cfg.PortOpt('images_sheepdog_port', default=7000),
        cfg.StrOpt('images_sheepdog_transport', default='auto'),
    ], group='libvirt')
    if files is None:
        files = [path for path in CONFIG_FILES if os.path.exists(path)]
    try:
        read([], project='nova', default_config_files=files,
             default_config_dirs=[])
        return Configuration(
            read.host, read.libvirt.images_sheepdog_host,
            read.libvirt.images_sheepdog_port,
            read.libvirt.images_sheepdog_transport)
    except (cfg.Error, ValueError) as error:
        raise GraftError(f'{error}. Name the configuration of nova-compute '
                         'with --config-file, and run this as a user who may '
                         'read it.')


def _run(*command):
    """Run a program of Sheepdog or tgt.

    :returns: exit status, standard output, standard error
    :raises GraftError: there is no such program, or no end to it
    """
    path = shutil.which(command[0], path=PATH)
    if not path:
        raise GraftError(f'{command[0]} is not in {PATH}. Run this on a '
                         'compute host.')
    try:
        done = subprocess.run(
            [path, *command[1:]], stdin=subprocess.DEVNULL,
            capture_output=True, text=True, errors='replace',
            timeout=TIME_LIMIT, env=dict(os.environ, LC_ALL='C'))
    except subprocess.TimeoutExpired:
        raise GraftError(f'{" ".join(command)}: no answer in {TIME_LIMIT} '
                         'seconds. See whether the cluster runs.')
    return done.returncode, done.stdout, done.stderr.strip()


class Cluster:
    """A Sheepdog cluster, through one of its sheep daemons.

    :param host: IPv4 address
    :param port: TCP port
    """

    def __init__(self, host, port):
        # dog might take an IPv6 address for it.
        self._address = ('-a', '127.0.0.1' if host == 'localhost' else host,
                         '-p', str(port))
        self.name = f'{host}:{port}'

    def list(self):
        """List what Nova may have made.

        :returns: list of Vdi, and the number of all others
        :raises GraftError: dog did not tell
        """
        status, out, error = _run('dog', 'vdi', 'list', *self._address, '-r')
        if status or error:
            raise GraftError(
                f'The cluster at {self.name} does not tell its VDIs: '
                f'{error or out.strip() or status}. Name a sheep daemon that '
                'runs with --host and --port.')
        vdis, others = [], 0
        for line in out.splitlines():
            found = LINE.fullmatch(line)
            if not found:
                others += 1
                continue
            vdis.append(Vdi(
                found['uuid'], found['disk'],
                found['tag'] if found['flag'] == 's' else None,
                *(int(found[name]) for name in
                  ('size', 'own', 'shared', 'created'))))
        return vdis, others

    def delete(self, vdi):
        """Delete a VDI, or a snapshot by its tag.

        :returns: what dog says against it, '' if it is gone
        """
        tag = () if vdi.tag is None else ('-s', vdi.tag)
        # Its exit status is 0 whatever happened.
        _status, _out, error = _run(
            'dog', 'vdi', 'delete', *self._address, *tag, vdi.name)
        return '' if error.endswith(MISSING) else error


class Api:
    """Nova's API, as an administrator sees it.

    :param cloud: name of a cloud in clouds.yaml; None: the OS_* variables
    :raises GraftError: there is nothing to be asked
    """

    def __init__(self, cloud=None):
        try:
            import openstack
        except ModuleNotFoundError as error:
            raise _missing(error)
        from keystoneauth1 import exceptions
        self._errors = (openstack.exceptions.SDKException,
                        exceptions.ClientException)
        try:
            self._compute = openstack.connect(cloud=cloud).compute
        except self._errors as error:
            raise self._failure(error)

    @staticmethod
    def _failure(error):
        return GraftError(
            f"Nova's API does not tell which servers there are: {error}. Set "
            'the OS_* variables of an administrator, or name him with '
            '--os-cloud.')

    def _get(self, path):
        try:
            return self._compute.get(path)
        except self._errors as error:
            raise self._failure(error)

    def get_servers(self):
        """Ask for the servers of all projects.

        :returns: dict of UUID to (status, name of the host or None)
        :raises GraftError: an error, and no rights as well
        """
        try:
            return {server.id: (server.status, server.compute_host)
                    for server in self._compute.servers(all_projects=True)}
        except self._errors as error:
            raise self._failure(error)

    def ask(self, uuid):
        """Ask for one server, which may be one that no list has.

        :returns: its (status, None); None when Nova says that there is none
        :raises GraftError: anything else
        """
        answer = self._get(f'/servers/{uuid}')
        try:
            body = answer.json()
            if answer.status_code == 200:
                return body['server']['status'], None
            # And not whoever answers for an API that is not there.
            if (answer.status_code == 404 and
                    uuid in body['itemNotFound']['message']):
                return None
        except (ValueError, KeyError, TypeError):
            pass
        raise GraftError(
            f"Nova's API does not say whether there is a server {uuid}: "
            f'{answer.status_code} {answer.reason}')

    def check_host(self, name):
        """Make sure that this Nova is the one of this compute host.

        :raises GraftError: it is another one
        """
        answer = self._get('/os-services?binary=nova-compute')
        try:
            hosts = [service['host'] for service in answer.json()['services']]
        except (ValueError, KeyError, TypeError):
            raise GraftError("Nova's API does not list its compute services: "
                             f'{answer.status_code} {answer.reason}')
        if name not in hosts:
            raise GraftError(
                f'This Nova has no compute host {name}, but '
                f'{", ".join(sorted(hosts)) or "none"}. To another Nova every '
                'disk here is an orphan. Run this on a compute host of the '
                'Nova that is asked.')


@dataclasses.dataclass
class Found:
    """A VDI and what is known of it.

    :ivar state: what to show
    :ivar host: where its instance is, or None
    :ivar is_orphan: whether Nova says that it has no such instance
    """
    vdi: Vdi
    state: str
    host: ty.Optional[str] = None
    is_orphan: bool = False


def look(cluster, api):
    """Find what Nova has in a cluster.

    :returns: list of Found, in the order of their names, and the number of
        VDIs that are not Nova's
    :raises GraftError: Nova or the cluster cannot be asked
    """
    # The servers last: one may have been made meanwhile.
    vdis, others = cluster.list()
    servers = api.get_servers()
    wanted = {vdi.uuid for vdi in vdis if not vdi.is_of_base}
    for uuid in sorted(wanted - set(servers)):
        servers[uuid] = api.ask(uuid)
    names = {(vdi.name, vdi.tag) for vdi in vdis}
    found = []
    for vdi in sorted(vdis, key=lambda vdi: (vdi.name, vdi.tag or '')):
        server = None if vdi.is_of_base else servers[vdi.uuid]
        if not vdi.is_novas:
            state = "not Nova's"
        elif vdi.is_of_base:
            # It is whole only with the snapshot that is cloned.
            whole = {(vdi.name, None), (vdi.name, 'nova-base')} <= names
            state = ('base image' if whole or vdi.disk.startswith('record')
                     else 'base image, half-made')
        elif server:
            state = server[0]
        else:
            state = 'orphan'
        found.append(Found(vdi, state, server[1] if server else None,
                           state == 'orphan'))
    now = time.time()
    young = {each.vdi.uuid for each in found
             if now - each.vdi.created < MINIMUM_AGE}
    for each in found:
        if each.is_orphan and each.vdi.uuid in young:
            each.is_orphan = False
            each.state = 'orphan, but young'
    return found, others


def _exports():
    """Names of the targets of this host's tgtd; none where it has none."""
    try:
        status, out, _error = _run('tgtadm', '--lld', 'iscsi', '--mode',
                                   'target', '--op', 'show')
    except GraftError:
        return []
    return [line.split()[2] for line in out.splitlines()
            if not status and line.startswith('Target ')]


def _amount(number):
    """Bytes in words."""
    power = min(max(number.bit_length() - 1, 0) // 10, len(UNITS) - 1)
    return f'{number / 1024 ** power:.{min(power, 1)}f} {UNITS[power]}'


def show(found, configuration):
    """Print a table of VDIs.

    :param found: list of Found
    :param configuration: Configuration of this host
    """
    exports = _exports()

    def transport(each):
        iqn = f'{IQN}{each.vdi.uuid}.{each.vdi.disk}'
        if each.vdi.tag is not None:
            return '-'
        # That of a scratch VDI has something of its own behind the name.
        if any(name == iqn or each.vdi.disk == 'scratch' and
               name.startswith(iqn + '.') for name in exports):
            return 'iscsi'
        return (configuration.transport
                if configuration.transport == 'native' and
                each.host == configuration.name else '-')

    rows = [('INSTANCE OR IMAGE', 'DISK', 'SIZE', 'OWN', 'SHARED',
             'TRANSPORT', 'HOST', 'STATE')]
    rows += [(each.vdi.uuid, each.vdi.shown, _amount(each.vdi.size),
              _amount(each.vdi.own), _amount(each.vdi.shared),
              transport(each), each.host or '-', each.state)
             for each in found]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = [cell.rjust(width) if 2 <= number <= 4 else cell.ljust(width)
                 for number, (cell, width) in enumerate(zip(row, widths))]
        print('  '.join(cells).rstrip())


def clean(found, cluster, api):
    """Delete orphans: of each instance the snapshots, then the VDIs.

    :param found: list of Found; of those that are no orphans nothing goes
    :returns: list of what was not deleted and why
    """
    failures = []
    orphans = [each.vdi for each in found if each.is_orphan]
    for uuid in sorted({vdi.uuid for vdi in orphans}):
        # As late as can be.
        try:
            if api.ask(uuid):
                failures.append(f'{uuid}: Nova knows it now')
                continue
        except GraftError as error:
            failures.append(str(error))
            continue
        for vdi in sorted((vdi for vdi in orphans if vdi.uuid == uuid),
                          key=lambda vdi: vdi.tag is None):
            error = cluster.delete(vdi)
            if error:
                failures.append(f'{uuid}_{vdi.shown}: {error}')
            else:
                print(f'Deleted {uuid}_{vdi.shown}')
    return failures
