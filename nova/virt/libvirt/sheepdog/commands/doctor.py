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

"""Says what is wrong with a compute host, and what mends it.

Most of it is what nova-compute checks when it starts, one thing after the
other and without an end at the first that is wrong. Nothing is changed.
"""

import ctypes
import os
import pwd
import re
import shutil
import subprocess

from oslo_utils import importutils
from oslo_utils import units
import psutil

import nova.conf
from nova import exception
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt.sheepdog.commands import cli
from nova.virt.libvirt.sheepdog.commands import start
from nova.virt.libvirt.sheepdog import host as sheepdog_host
from nova.virt.libvirt.sheepdog import rootwrap
from nova.virt.libvirt.sheepdog import targets
from nova.virt.libvirt import utils as libvirt_utils

CONF = nova.conf.CONF

APPLY = 'nova-sheepdog apply --rootwrap-conf %s'
RESTART = 'systemctl restart nova-compute'
BIND_TGTD = ('systemctl edit tgt, as under "tgtd" in the guide, and systemctl '
             'restart tgt')
# Part of the cluster that may be filled before there is a warning.
FULL = 0.8
SYSTEMD = '/run/systemd/system'
# What adjtimex(2) returns while nothing keeps the clock right, and bytes that
# hold its argument on any machine.
TIME_ERROR = 5
TIMEX_SIZE = 512


class Wrong(Exception):
    """Something is wrong.

    :ivar remedy: what mends it, or None if the message says it
    """

    def __init__(self, text, remedy=None):
        super().__init__(str(text))
        self.remedy = remedy


class Warn(Wrong):
    """Something is not as it should be, and works."""


def load_libvirt():
    """Have Nova's modules know libvirt, as its driver does when it is made.

    :raises: start.Failure
    """
    if libvirt_guest.libvirt is None:
        try:
            libvirt_guest.libvirt = importutils.import_module('libvirt')
        except ImportError as e:
            raise start.Failure(
                '%s, and so cannot nova-compute: install python3-libvirt' % e)


class Libvirt:
    """libvirtd, as far as it is needed here.

    It stands in for a nova.virt.libvirt.host.Host, which would tell the other
    services of Nova when libvirtd does not answer.
    """

    def __init__(self):
        """:raises: libvirt.libvirtError"""
        # It would print each error besides.
        libvirt_guest.libvirt.registerErrorHandler(lambda *_error: None, None)
        self._connection = libvirt_guest.libvirt.open(
            CONF.libvirt.connection_uri or 'qemu:///system')

    def get_capabilities(self):
        capabilities = vconfig.LibvirtConfigCaps()
        capabilities.parse_str(self._connection.getCapabilities())
        return capabilities

    def find_hanging(self):
        """Find running guests that have lost targets.

        :returns: dict of UUID to list of the IQNs
        :raises: exception.TgtError or libvirt.libvirtError
        """
        exported = targets.list_targets()
        hanging = {}
        for domain in self._connection.listAllDomains(
                libvirt_guest.libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            config = vconfig.LibvirtConfigGuest()
            config.parse_str(domain.XMLDesc(0))
            missing = sorted(set(targets.get_exports(config)) - set(exported))
            if missing:
                hanging[domain.UUIDString()] = missing
        return hanging


def _at_gateway():
    return '-a %s -p %s' % libvirt_utils.get_sheepdog_gateway()


def _get_user():
    return pwd.getpwuid(os.geteuid()).pw_name


def _sudoers(program, arguments):
    return "echo '%s ALL = (root) NOPASSWD: %s %s' > /etc/sudoers.d/%s" % (
        _get_user(), shutil.which(program) or '/usr/bin/' + program,
        arguments, program)


def _is_reachable(address):
    return not (address.startswith('127.') or address == '::1')


class Doctor:
    """Looks at this host. Each check returns what is well in words."""

    def __init__(self):
        self._libvirt = self._host = None
        self._policy = self._nodes = None

    @property
    def transport(self):
        """How guests reach their VDIs, None if that is not known."""
        return self._host and self._host.targets.transport

    def check_options(self):
        if CONF.libvirt.images_type != 'sheepdog':
            raise Wrong(
                '[libvirt]images_type = %s: nova-compute does not use '
                'Sheepdog' % CONF.libvirt.images_type,
                'set it to sheepdog in %s, then: %s' % (
                    ' or '.join(CONF.config_file or ['nova.conf']), RESTART))
        try:
            sheepdog_host.SheepdogHost.check_options()
        except exception.InvalidConfiguration as e:
            raise Wrong(e, 'change %s, then: %s' % (
                ' or '.join(CONF.config_file or ['nova.conf']), RESTART))
        return '[libvirt]images_type = sheepdog, and what goes with it'

    def check_libvirt(self):
        try:
            self._libvirt = Libvirt()
        except libvirt_guest.libvirt.libvirtError as e:
            raise Wrong(
                'libvirtd does not answer: %s' % e,
                'usermod -a -G libvirt %s' % _get_user()
                if 'ermission denied' in str(e) or 'polkit' in str(e) else
                'systemctl start libvirtd')
        self._host = sheepdog_host.SheepdogHost(self._libvirt)
        return 'libvirtd answers'

    def check_qemu(self):
        try:
            self._host.check_qemu()
        except exception.InvalidConfiguration as e:
            raise Wrong(
                e, 'apt-get install qemu-block-extra'
                if self._host.targets.transport == 'iscsi' else
                'set [libvirt]images_sheepdog_transport = auto')
        return 'guests reach their VDIs by the %s transport' % (
            self._host.targets.transport)

    def check_dog(self):
        path = shutil.which('dog', path=rootwrap.ROOT_PATH)
        if not path:
            raise Wrong(
                'there is no dog in %s' % rootwrap.ROOT_PATH,
                'build Sheepdog 1.0 on a host like this one, and: install '
                '-m 0755 dog /usr/local/bin/dog')
        try:
            out, _err = rootwrap.run(path, '--help', timeout=20)
        except rootwrap.CommandError as e:
            raise Wrong('%s does not run: %s' % (path, e))
        version = re.search(r'\(version ([^)]+)\)', out)
        if not version or not version.group(1).startswith('1.0'):
            raise Warn('%s is of version %s; Nova was tried with 1.0.1' % (
                path, version.group(1) if version else 'unknown'))
        return '%s, version %s' % (path, version.group(1))

    def check_root(self):
        """Whether nova-compute may run dog as root, whatever dog then says."""
        try:
            rootwrap.execute('dog', 'node', 'list', '-r',
                             *_at_gateway().split(), timeout=20)
        except rootwrap.CommandError as e:
            if e.refused_by == 'sudo':
                raise Wrong(e, _sudoers('nova-rootwrap',
                                        CONF.rootwrap_config + ' *'))
            if e.refused_by == 'rootwrap':
                raise Wrong(e, APPLY % CONF.rootwrap_config)
        if os.geteuid() and not CONF.workarounds.disable_rootwrap and (
                not rootwrap.get_runner().uses_daemon):
            raise Warn(
                'sudo does not let %s start nova-rootwrap-daemon, so each '
                'call of dog takes 0.15 s more' % _get_user(),
                _sudoers('nova-rootwrap-daemon', CONF.rootwrap_config))
        return 'user %s may run dog as root' % _get_user()

    def check_cluster(self):
        try:
            self._policy = libvirt_utils.get_sheepdog_policy()
            self._nodes = libvirt_utils.list_sheepdog_nodes()
        except exception.SheepdogUnreachable as e:
            raise Wrong(e, 'start sheep at %s:%s, or name another one in '
                        'images_sheepdog_host and images_sheepdog_port' %
                        libvirt_utils.get_sheepdog_gateway())
        except exception.SheepdogError as e:
            raise Wrong(
                e, 'dog cluster format -c 2 ' + _at_gateway() +
                ' (only if the cluster is new)'
                if 'cluster format' in str(e) else
                'dog cluster info ' + _at_gateway())
        return 'it runs, with %d sheep that store data' % len(self._nodes)

    def check_redundancy(self):
        zones = {node.zone for node in self._nodes}
        wanted = sum(self._policy)
        if wanted > len(zones):
            raise Wrong(
                'each object is to be in %d zones, and there are %d' % (
                    wanted, len(zones)),
                'start sheep in %d more zones, "sheep -z NUMBER"' % (
                    wanted - len(zones)))
        if wanted == 1:
            raise Warn(
                'the cluster keeps one copy: any disk that fails takes data '
                'along', 'dog cluster format -c 2, in a new cluster')
        return '%s in %d zones' % (
            '%d copies' % wanted if len(self._policy) == 1 else
            '%d data and %d parity strips' % tuple(self._policy), len(zones))

    def check_room(self):
        try:
            space = libvirt_utils.get_sheepdog_space()
        except exception.SheepdogError as e:
            raise Wrong(e, 'start the sheep that does not answer, or wait '
                        'until the others have noticed')
        text = '%d of %d GiB are used' % (
            space['used'] // units.Gi, space['total'] // units.Gi)
        remedy = 'add storage, or see what is not needed: nova-sheepdog vdis'
        if space['raw'] < sheepdog_host.ROOM:
            raise Wrong('%s, and Nova takes no snapshot any more' % text,
                        remedy)
        if space['used'] > FULL * space['total']:
            raise Warn(text, remedy)
        return text

    def check_tgtd(self):
        if not shutil.which('tgtadm', path=rootwrap.ROOT_PATH):
            raise Wrong('there is no tgtadm in %s' % rootwrap.ROOT_PATH,
                        'apt-get install tgt')
        try:
            self._host.check_tgtd()
        except exception.TgtUnreachable as e:
            raise Wrong(e, 'systemctl start tgt')
        except exception.TgtError as e:
            raise Wrong(e, APPLY % CONF.rootwrap_config
                        if rootwrap.FILTERS in str(e) else
                        'apt-get install --reinstall tgt')
        except exception.InvalidConfiguration as e:
            raise Wrong(e, BIND_TGTD if 'portal' in str(e) else
                        'change sheep\'s port and images_sheepdog_port')
        return 'it has the sheepdog backing store, and answers at %s' % (
            CONF.libvirt.images_sheepdog_portal)

    def check_portal(self):
        port = int(CONF.libvirt.images_sheepdog_portal.rpartition(':')[2])
        addresses = {
            connection.laddr.ip for connection in psutil.net_connections(
                'tcp') if connection.status == psutil.CONN_LISTEN and
            connection.laddr.port == port}
        exposed = sorted(filter(_is_reachable, addresses))
        if exposed:
            raise Warn(
                'tgtd listens on %s: whoever reaches port %d there can open '
                'what tgtd exports' % (', '.join(exposed), port), BIND_TGTD)
        return 'only this host reaches it'

    def check_targets(self):
        found = targets.list_all_targets()
        novas = {iqn: number for iqn, number in found.items()
                 if iqn.startswith(libvirt_utils.SHEEPDOG_IQN)}
        first = targets.FIRST_NUMBER
        for iqn, number in novas.items():
            if not first <= number < 2 * first:
                raise Wrong(
                    'target %d has a name of Nova\'s, %s, and a number that '
                    'rootwrap does not let Nova change' % (number, iqn),
                    'tgtadm --lld iscsi --mode target --op delete --force '
                    '--tid %d' % number)
        others = sorted(set(found) - set(novas))
        for iqn in others:
            if first <= found[iqn] < 2 * first:
                raise Warn(
                    'target %d, %s, is not Nova\'s and has a number that Nova '
                    'may need' % (found[iqn], iqn),
                    'give it a number below %d' % first)
        return '%d of Nova\'s, and %d of others%s' % (
            len(novas), len(others), others and ': ' + ', '.join(others) or '')

    def check_guests(self):
        hanging = self._libvirt.find_hanging()
        if hanging:
            raise Wrong(
                'these hang, as their targets are missing: %s' %
                ', '.join(sorted(hanging)),
                RESTART + ', which makes them again')
        return 'all that run have their targets'

    def check_clock(self):
        state = ctypes.CDLL(None).adjtimex(
            ctypes.create_string_buffer(TIMEX_SIZE))
        if state == TIME_ERROR:
            raise Warn(
                'nothing keeps the clock of this host right; hosts tell each '
                'other by it when a base image was used',
                'apt-get install chrony')
        return 'it is kept right'

    def check_units(self):
        if not os.path.isdir(SYSTEMD):
            return 'there is no systemd here'
        found = _show_units()
        compute = next((unit for unit in found if 'nova' in unit['Id']), None)
        tgt = next((unit for unit in found if 'tgt' in unit['Id']), None)
        if not compute:
            return 'nova-compute is no unit of systemd here'
        if not tgt:
            return 'tgtd is no unit of systemd here'
        compute_id, tgt_id = compute['Id'], tgt['Id']
        if tgt.get('UnitFileState') == 'disabled':
            raise Wrong('%s does not start when the host boots' % tgt_id,
                        'systemctl enable ' + tgt_id)
        if tgt_id not in compute.get('After', '').split():
            raise Warn(
                '%s does not wait for %s' % (compute_id, tgt_id),
                'systemctl edit %s: [Unit] Wants=%s After=%s' % (
                    compute_id, tgt_id, tgt_id))
        if tgt.get('ExecStop') or tgt.get('KillSignal') != '9':
            raise Warn('guests get I/O errors when %s is restarted' % tgt_id,
                       BIND_TGTD)
        return '%s starts after %s' % (compute_id, tgt_id)


def _show_units():
    """Return the properties of the units that there are."""
    out = subprocess.run(
        ['systemctl', 'show', '--property',
         'Id,LoadState,UnitFileState,After,ExecStop,KillSignal',
         'nova-compute', 'openstack-nova-compute', 'tgt', 'tgtd'],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True).stdout
    found = [dict(line.split('=', 1) for line in block.splitlines()
                  if '=' in line) for block in out.split('\n\n')]
    return [unit for unit in found if unit.get('LoadState') == 'loaded']


# What is looked at, and what has to be well for that.
CHECKS = {
    'options': (),
    'libvirt': (),
    'qemu': ('libvirt',),
    'dog': (),
    'root': (),
    'cluster': ('dog', 'root'),
    'redundancy': ('cluster',),
    'room': ('cluster',),
    'tgtd': ('root', 'qemu'),
    'portal': ('tgtd',),
    'targets': ('tgtd',),
    'guests': ('tgtd',),
    'clock': (),
    'units': (),
}
# These are not needed by the native transport.
OF_ISCSI = ('tgtd', 'portal', 'targets', 'guests', 'units')


def look():
    """Look at everything.

    :returns: list of dicts as for cli.show_findings()
    """
    doctor = Doctor()
    findings = []
    failed = set()

    def note(state, text, remedy=None):
        findings.append({'check': check, 'state': state, 'text': str(text),
                         'remedy': remedy})

    for check, needs in CHECKS.items():
        missing = [name for name in needs if name in failed]
        if missing:
            failed.add(check)
            note(cli.NOT_CHECKED, 'see what is wrong with ' +
                 ' and '.join(missing))
            continue
        if check in OF_ISCSI and doctor.transport == 'native':
            continue
        try:
            note(cli.OK, getattr(doctor, 'check_' + check)())
        except Warn as e:
            note(cli.WARNING, e, e.remedy)
        except Wrong as e:
            failed.add(check)
            note(cli.WRONG, e, e.remedy)
        except (exception.NovaException, OSError,
                libvirt_guest.libvirt.libvirtError) as e:
            failed.add(check)
            note(cli.WRONG, e)
    return findings


def run(arguments):
    """Run "nova-sheepdog doctor".

    :param arguments: what its parser returned, and 'findings', those of
        nova-sheepdog itself
    :returns: exit status
    """
    findings = getattr(arguments, 'findings', [])
    try:
        start.become(arguments.user)
        start.configure(arguments.config_file)
        load_libvirt()
    except start.Failure as e:
        findings.append({'check': 'configuration', 'state': cli.WRONG,
                         'text': str(e), 'remedy': None})
    else:
        findings += look()
    return cli.show_findings(findings, arguments.json)
