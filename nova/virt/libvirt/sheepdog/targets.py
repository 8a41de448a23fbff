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

"""Serves VDIs of a Sheepdog cluster to the guests of this host, by tgtd.

tgtd keeps nothing: when it has been restarted, every target is gone. A target
has one unit, LUN 1, which is the VDI. tgtd reads the size of a VDI and the
place of its objects when it opens the unit; so a target that is already there
is never trusted when a guest starts, but made again.

Facts are of tgt 1.0.85; see the contributor's guide.
"""

import contextlib
import os
import socket
import uuid

from oslo_concurrency import lockutils
from oslo_log import log as logging
from oslo_utils import excutils
from oslo_utils import uuidutils
import tenacity

import nova.conf
from nova import exception
from nova.i18n import _
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt.sheepdog import rootwrap
from nova.virt.libvirt import utils as libvirt_utils

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)

CONTROL_SOCKET = '/var/run/tgtd/socket.0'
LUN = '1'
# Numbers of Nova's targets are 1,000,000,000 to 1,999,999,999. rootwrap lets
# Nova change no others, which cinder-volume or an administrator made.
FIRST_NUMBER = 10**9


def _tgtadm(*arguments, **how):
    """Run ``tgtadm``.

    :param arguments: all but the name of the low-level driver
    :param how: as for rootwrap.execute()
    :returns: its standard output
    :raises: exception.TgtError
    """
    command = ('tgtadm', '--lld', 'iscsi', *arguments)
    try:
        return rootwrap.execute(
            *command, timeout=CONF.libvirt.images_sheepdog_timeout, **how)[0]
    except rootwrap.CommandError as e:
        rootwrap.note_failure(command)
        reason = e.reason
        # tgtd opens and closes units in one thread, which waits for sheep.
        if e.timed_out or 'still active' in reason:
            check_gateway()
    LOG.debug("'%(command)s' failed: %(reason)s",
              {'command': ' '.join(command), 'reason': reason})
    if '--bstype' in arguments and 'invalid request' in reason:
        check_gateway()
        reason = _("%s. Either there is no such VDI, or the cluster was "
                   "formatted with -l and still has the lock of a tgtd that "
                   "was killed, which 'dog vdi lock unlock' takes away"
                   ) % reason
    if 'failed to send request hdr to tgt daemon' in reason:
        raise exception.TgtUnreachable(reason=reason)
    raise exception.TgtError(reason=reason)


def check_gateway():
    """Make sure that the gateway takes connections.

    :raises: exception.SheepdogUnreachable if not
    """
    host, port = libvirt_utils.get_sheepdog_gateway()
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as e:
        raise exception.SheepdogUnreachable(reason=e)


def check():
    """Make sure that tgtd runs and can serve VDIs.

    :raises: exception.TgtError if not
    """
    out = _tgtadm('--mode', 'system', '--op', 'show')
    if 'sheepdog' not in out.partition('Backing stores:')[2].split():
        raise exception.TgtError(
            reason=_('it has no backing store named sheepdog; Debian\'s tgt '
                     'package has it'))


def get_tgtd_start():
    """Tell one run of tgtd from the next one without asking it.

    :returns: what stays the same as long as tgtd runs, None if it does not
        run or its control socket cannot be seen
    """
    try:
        status = os.stat(CONTROL_SOCKET)
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns


def list_all_targets(**how):
    """List the targets of this host, also those that others made.

    :param how: as for rootwrap.execute()
    :returns: dict of IQN to number of the target
    :raises: exception.TgtError
    """
    targets = {}
    # Target 1: iqn.2014-06.org.openstack.nova:...
    out = _tgtadm('--mode', 'target', '--op', 'show', **how)
    for line in out.splitlines():
        words = line.split()
        if line.startswith('Target ') and len(words) == 3:
            number = words[1].rstrip(':')
            if number.isdecimal():
                targets[words[2]] = int(number)
    return targets


def list_targets(**how):
    """List Nova's targets on this host.

    :param how: as for rootwrap.execute()
    :returns: dict of IQN to number of the target, empty if tgtd does not run
    :raises: exception.TgtError
    """
    try:
        targets = list_all_targets(**how)
    except exception.TgtUnreachable:
        LOG.debug('tgtd does not run, so there is no target')
        return {}
    return {iqn: number for iqn, number in targets.items()
            if iqn.startswith(libvirt_utils.SHEEPDOG_IQN)}


def _delete_target(number):
    """Delete a target, also one that is in use.

    tgtd refuses it while a command of the initiator is under way ("this
    logical unit is still active"), and goes on with that command after the
    initiator was killed. It takes some milliseconds, or as long as the sheep
    is away and a second more.
    """
    if not FIRST_NUMBER <= number < 2 * FIRST_NUMBER:
        raise exception.TgtError(reason=_(
            'target %(number)d has a name of Nova\'s, and not a number; '
            'delete it by "tgtadm --lld iscsi --mode target --op delete '
            '--force --tid %(number)d"') % {'number': number})

    def is_busy(error):
        return (isinstance(error, exception.TgtError) and
                'still active' in str(error))

    try:
        tenacity.retry(
            retry=tenacity.retry_if_exception(is_busy),
            stop=tenacity.stop_after_delay(
                CONF.libvirt.images_sheepdog_timeout),
            wait=tenacity.wait_exponential(0.05, max=2), reraise=True)(
                _tgtadm)('--mode', 'target', '--op', 'delete', '--force',
                         '--tid', str(number))
    except exception.TgtError as e:
        if "can't find the target" not in str(e):
            raise


def _new_target(iqn):
    """Make an empty target under a number that is free, and return that."""
    number = FIRST_NUMBER + uuid.uuid5(
        uuid.NAMESPACE_OID, iqn).int % FIRST_NUMBER
    while True:
        try:
            _tgtadm('--mode', 'target', '--op', 'new', '--tid', str(number),
                    '-T', iqn)
        except exception.NovaException as e:
            if 'already exists' not in str(e):
                # tgtd may have made it all the same.
                with excutils.save_and_reraise_exception(logger=LOG):
                    if list_targets().get(iqn) == number:
                        _delete_target(number)
            # Some other target has that number.
            if number not in list_all_targets().values():
                raise
            number = FIRST_NUMBER + (number + 1) % FIRST_NUMBER
        else:
            return number


def get_vdis(guest_config, protocol):
    """Tell which VDIs a guest has by one transport.

    :param guest_config: its vconfig.LibvirtConfigGuest
    :param protocol: 'sheepdog' or 'iscsi'
    :returns: list of their names, volumes aside
    """
    vdis = (libvirt_utils.get_sheepdog_vdi_of_disk(device)
            for device in guest_config.devices
            if isinstance(device, vconfig.LibvirtConfigGuestDisk) and
            device.source_protocol == protocol)
    return [vdi for vdi in vdis
            if vdi and libvirt_utils.split_sheepdog_vdi(vdi)]


def get_exports(guest_config):
    """Tell which targets a guest needs.

    :param guest_config: its vconfig.LibvirtConfigGuest
    :returns: dict of IQN to name of the VDI
    """
    return {libvirt_utils.get_sheepdog_iqn(vdi): vdi
            for vdi in get_vdis(guest_config, 'iscsi')}


def _get_path(vdi):
    return 'tcp:%s:%s:%s' % (*libvirt_utils.get_sheepdog_gateway(), vdi)


def _lock(iqn):
    return lockutils.lock('sheepdog-target-' + iqn)


def make_target(iqn, vdi, old=None):
    """Make a target of a VDI.

    :param iqn: name of the target
    :param vdi: name of the VDI
    :param old: number of a target to delete first
    :raises: exception.TgtError or exception.SheepdogUnreachable
    """
    if old is not None:
        _delete_target(old)
    number = _new_target(iqn)
    unit = ('--tid', str(number), '--lun', LUN)
    try:
        _tgtadm('--mode', 'logicalunit', '--op', 'new', *unit,
                '--bstype', 'sheepdog', '-b', _get_path(vdi))
        # The ids that tgtd gives by itself are the same on every host.
        serial = uuid.uuid5(uuid.NAMESPACE_OID, vdi).hex
        _tgtadm('--mode', 'logicalunit', '--op', 'update', *unit,
                '--params', 'scsi_id=%s,scsi_sn=%s' % (serial, serial))
        _tgtadm('--mode', 'target', '--op', 'bind', '--tid', str(number),
                '-I',
                CONF.libvirt.images_sheepdog_portal.partition(':')[0])
    except exception.NovaException:
        with excutils.save_and_reraise_exception(logger=LOG):
            _delete_target(number)
    LOG.debug('Exported VDI %(vdi)s as target %(number)d, %(iqn)s',
              {'vdi': vdi, 'number': number, 'iqn': iqn})


class Targets:
    """The targets of this host.

    It knows which there should be: those of guests, and those that this
    process has for a while to copy data.

    :ivar transport: how guests and copies reach VDIs, 'iscsi' or 'native',
        which is QEMU's own Sheepdog driver and needs no targets
    :ivar wanted: dict of IQN to name of the VDI, of the guests' disks
    """

    def __init__(self, transport):
        self.transport = transport
        self.wanted = {}
        self._temporary = set()

    def export(self, vdis):
        """Make a fresh target for each VDI of a guest, in place of an old one.

        Not to be called for a VDI that a guest of this host has open.

        :param vdis: dict of IQN to name of the VDI
        :raises: exception.TgtError or exception.SheepdogUnreachable
        """
        targets = list_targets() if vdis else {}
        for iqn, vdi in vdis.items():
            with _lock(iqn):
                make_target(iqn, vdi, targets.get(iqn))
        self.wanted.update(vdis)

    def reload(self, vdis):
        """Have tgtd read again which objects a VDI has, and where they are.

        A guest that has the VDI open stays connected, but it must not run:
        until this is over tgtd refuses what it reads and writes. A target that
        is missing is made.

        :param vdis: dict of IQN to name of the VDI
        :raises: exception.TgtError; it may be tried again
        """
        # A guest waits for this, so it does not wait for others.
        targets = list_targets(urgent=True)
        for iqn, vdi in vdis.items():
            with _lock(iqn):
                if iqn not in targets:
                    make_target(iqn, vdi)
                    continue
                # The unit is online again when its path could be opened, and
                # tgtadm fails if it could not: it tells how the last one of
                # the parameters went.
                _tgtadm('--mode', 'logicalunit', '--op', 'update',
                        '--tid', str(targets[iqn]), '--lun', LUN,
                        '--params', 'online=0,path=' + _get_path(vdi),
                        urgent=True)
            LOG.debug('Reloaded VDI %(vdi)s, target %(iqn)s',
                      {'vdi': vdi, 'iqn': iqn})
        self.wanted.update(vdis)

    def find_missing(self):
        """Find targets that guests have lost, and delete abandoned ones.

        :returns: dict of IQN to name of the VDI
        :raises: exception.TgtError
        """
        temporary = set(self._temporary)
        wanted = dict(self.wanted)
        targets = list_targets()
        for iqn, number in targets.items():
            # That of a disk has one dot, and a token follows a second one.
            name = iqn[len(libvirt_utils.SHEEPDOG_IQN):]
            if ('.scratch.' in name or '.import.' in name) and (
                    iqn not in temporary | self._temporary):
                LOG.info('Removing target %s, which a copy has left', iqn)
                _delete_target(number)
        return {iqn: vdi for iqn, vdi in wanted.items() if iqn not in targets}

    def restore(self, iqn, vdi):
        """Make the target of a running guest again.

        :param iqn: name of the target
        :param vdi: name of the VDI
        :raises: exception.TgtError
        """
        with _lock(iqn):
            if iqn not in list_targets():
                make_target(iqn, vdi)

    def unexport(self, *prefixes):
        """Remove targets, also those that are in use.

        :param prefixes: what the IQN of each begins with
        :raises: exception.TgtError or exception.SheepdogUnreachable
        """
        for iqn in [iqn for iqn in self.wanted if iqn.startswith(prefixes)]:
            self.wanted.pop(iqn, None)
        if self.transport == 'native' and get_tgtd_start() is None:
            # tgt need not even be installed.
            return
        for iqn, number in list_targets().items():
            if iqn.startswith(prefixes):
                with _lock(iqn):
                    _delete_target(number)
                LOG.debug('Removed target %(number)d, %(iqn)s',
                          {'number': number, 'iqn': iqn})

    @contextlib.contextmanager
    def exported(self, vdi):
        """Have a target for as long as the body runs.

        It has a name of its own: a copy that outlives its nova-compute must
        not find the target of the next one.

        :param vdi: name of the VDI
        :returns: the IQN
        :raises: exception.TgtError or exception.SheepdogUnreachable
        """
        iqn = libvirt_utils.get_sheepdog_iqn(
            vdi, uuidutils.generate_uuid(dashed=False))
        self._temporary.add(iqn)
        try:
            make_target(iqn, vdi)
            yield iqn
        finally:
            self._temporary.discard(iqn)
            try:
                self.unexport(iqn)
            except exception.NovaException as e:
                LOG.warning('Left target %(iqn)s, which is removed as soon as '
                            'that is possible: %(error)s',
                            {'iqn': iqn, 'error': e})
