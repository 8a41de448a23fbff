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
"""

import contextlib
import os
import uuid

from oslo_concurrency import processutils
from oslo_log import log as logging
from oslo_utils import excutils
import tenacity

import nova.conf
from nova import exception
from nova.i18n import _
from nova import utils
from nova.virt.libvirt import utils as libvirt_utils

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)

CONTROL_SOCKET = '/var/run/tgtd/socket.0'
LUN = '1'

# What this process has exported: by IQN the run of tgtd and the number of the
# target in it
_exported = {}


def _tgtadm(*arguments):
    """Run ``tgtadm``.

    :param arguments: all but the name of the low-level driver
    :returns: its standard output
    :raises: exception.TgtError
    """
    command = ('tgtadm', '--lld', 'iscsi', *arguments)
    try:
        return libvirt_utils.run_with_time_limit(
            *command, timeout=CONF.libvirt.images_sheepdog_timeout,
            run_as_root=True)[0]
    except processutils.ProcessExecutionError as e:
        reason = libvirt_utils.explain_failed_command(e, 'sheepdog.filters')
    except OSError as e:
        reason = str(e)
    if '--bstype' in arguments and 'invalid request' in reason:
        reason = _("%s. Either there is no such VDI, or the cluster was "
                   "formatted with -l and still has the lock of a tgtd that "
                   "was killed, which 'dog vdi lock unlock' takes away"
                   ) % reason
    raise exception.TgtError(command=' '.join(command), reason=reason)


def check():
    """Make sure that tgtd runs and can serve VDIs.

    :raises: exception.TgtError if not
    """
    out = _tgtadm('--mode', 'system', '--op', 'show')
    if 'sheepdog' not in out.partition('Backing stores:')[2].split():
        raise exception.TgtError(
            command='tgtadm --mode system --op show',
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


def _get_targets():
    """List the targets of this host, also those that others made.

    :returns: dict of IQN to number of the target
    :raises: exception.TgtError
    """
    targets = {}
    # Target 1: iqn.2014-06.org.openstack.nova:...
    for line in _tgtadm('--mode', 'target', '--op', 'show').splitlines():
        words = line.split()
        if line.startswith('Target ') and len(words) == 3:
            targets[words[2]] = int(words[1].rstrip(':'))
    return targets


def _delete_target(number):
    """Delete a target, also one that is in use.

    tgtd refuses it while a command of the initiator is under way ("this
    logical unit is still active", seen in tgt 1.0.85), and goes on with that
    command after the initiator was killed. It takes some milliseconds, or as
    long as the sheep daemon is away and a second more.

    :param number: number of the target
    :raises: exception.TgtError
    """
    tenacity.retry(
        retry=tenacity.retry_if_exception(
            lambda e: isinstance(e, exception.TgtError) and
            'still active' in str(e)),
        stop=tenacity.stop_after_delay(CONF.libvirt.images_sheepdog_timeout),
        wait=tenacity.wait_exponential(0.05, max=2), reraise=True)(_tgtadm)(
            '--mode', 'target', '--op', 'delete', '--force',
            '--tid', str(number))


def _new_target(iqn, targets):
    """Make an empty target under the first number that is free.

    :param iqn: name of the target
    :param targets: dict of the targets there are; the new one is added
    :returns: number of the target
    :raises: exception.TgtError
    """
    number = 0
    while True:
        number += 1
        if number in targets.values():
            continue
        try:
            _tgtadm('--mode', 'target', '--op', 'new', '--tid', str(number),
                    '-T', iqn)
        except exception.TgtError as e:
            # Another user of tgtd, such as cinder-volume, was quicker.
            if 'already exists' not in str(e) or (
                    number not in _get_targets().values()):
                raise
            continue
        targets[iqn] = number
        return number


def _get_path(vdi):
    return 'tcp:%s:%s:%s' % (*libvirt_utils.get_sheepdog_gateway(), vdi)


def _export(iqn, vdi, targets):
    if iqn in targets:
        _exported.pop(iqn, None)
        _delete_target(targets.pop(iqn))
    number = _new_target(iqn, targets)
    unit = ('--tid', str(number), '--lun', LUN)
    try:
        _tgtadm('--mode', 'logicalunit', '--op', 'new', *unit,
                '--bstype', 'sheepdog', '-b', _get_path(vdi))
        # The ids that tgtd gives by itself are the same on every host.
        serial = uuid.uuid5(uuid.NAMESPACE_OID, vdi).hex
        _tgtadm('--mode', 'logicalunit', '--op', 'update', *unit,
                '--params', 'scsi_id=%s,scsi_sn=%s' % (serial, serial))
        _tgtadm('--mode', 'target', '--op', 'bind', '--tid', str(number),
                '-I', CONF.libvirt.images_sheepdog_portal.partition(':')[0])
    except exception.TgtError:
        with excutils.save_and_reraise_exception(logger=LOG):
            _delete_target(targets.pop(iqn))
    _exported[iqn] = (get_tgtd_start(), number)
    LOG.debug('Exported VDI %(vdi)s as target %(number)d, %(iqn)s',
              {'vdi': vdi, 'number': number, 'iqn': iqn})


@utils.synchronized('sheepdog-exports')
def export(vdis):
    """Make a fresh target for each VDI, in the place of the one there is.

    Not to be called for a VDI that a guest of this host has open.

    :param vdis: dict of IQN to name of the VDI
    :raises: exception.TgtError
    """
    if not vdis:
        return
    targets = _get_targets()
    for iqn, vdi in vdis.items():
        _export(iqn, vdi, targets)


@utils.synchronized('sheepdog-exports')
def reload(vdis):
    """Have tgtd read again which objects a VDI has, and where they are.

    A guest that has the VDI open stays connected, but it must not run: until
    this is over tgtd refuses what it reads and writes. A target that is
    missing is made.

    :param vdis: dict of IQN to name of the VDI
    :raises: exception.TgtError; it may be tried again
    """
    # The guest waits for this; each tgtadm takes a part of a second.
    start = get_tgtd_start()
    targets = {iqn: _exported[iqn][1] for iqn in vdis
               if start and _exported.get(iqn, (None,))[0] == start}
    if len(targets) < len(vdis):
        targets = _get_targets()
    for iqn, vdi in vdis.items():
        if iqn in targets:
            # The unit is online again when its path could be opened, and
            # tgtadm fails if it could not: it tells how the last one of the
            # parameters went.
            _tgtadm('--mode', 'logicalunit', '--op', 'update',
                    '--tid', str(targets[iqn]), '--lun', LUN,
                    '--params', 'online=0,path=' + _get_path(vdi))
        else:
            _export(iqn, vdi, targets)
        LOG.debug('Reloaded VDI %(vdi)s, target %(iqn)s',
                  {'vdi': vdi, 'iqn': iqn})


@utils.synchronized('sheepdog-exports')
def restore(get_vdis):
    """Make the targets that tgtd has lost, and leave those that it has.

    :param get_vdis: function that returns a dict of IQN to name of the VDI,
        of all VDIs that running guests have open; called when no export can
        come or go
    :returns: list of the names of the VDIs that were exported again
    :raises: exception.TgtError
    """
    vdis = get_vdis()
    if not vdis:
        return []
    targets = _get_targets()
    missing = {iqn: vdi for iqn, vdi in vdis.items() if iqn not in targets}
    for iqn, vdi in missing.items():
        _export(iqn, vdi, targets)
    return list(missing.values())


def get_targets(prefix):
    """List some targets of this host.

    :param prefix: what the IQN of each begins with
    :returns: dict of IQN to number of the target, empty if tgtd does not run
    :raises: exception.TgtError
    """
    try:
        targets = _get_targets()
    except exception.TgtError as e:
        if 'failed to send request hdr to tgt daemon' not in str(e):
            raise
        LOG.debug('tgtd does not run, so there is no target')
        return {}
    return {iqn: number for iqn, number in targets.items()
            if iqn.startswith(prefix)}


@utils.synchronized('sheepdog-exports')
def unexport(prefix, part=''):
    """Remove targets, also those that are in use.

    :param prefix: what the IQN of each begins with
    :param part: what it has to hold besides
    :raises: exception.TgtError
    """
    for iqn, number in get_targets(prefix).items():
        if part in iqn:
            _exported.pop(iqn, None)
            _delete_target(number)
            LOG.debug('Removed target %(number)d, %(iqn)s',
                      {'number': number, 'iqn': iqn})


@contextlib.contextmanager
def exported(iqn, vdi):
    """Have a target for as long as the body runs.

    :param iqn: name of the target
    :param vdi: name of the VDI
    :raises: exception.TgtError
    """
    export({iqn: vdi})
    try:
        yield
    except Exception:
        with excutils.save_and_reraise_exception():
            try:
                unexport(iqn)
            except exception.TgtError as e:
                LOG.warning('Left target %(iqn)s: %(error)s',
                            {'iqn': iqn, 'error': e})
    else:
        unexport(iqn)
