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

import contextlib
import re
import typing as ty

from graft.fragment import after
from graft.fragment import before
from oslo_utils import units

from nova import exception
from nova.i18n import _
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt.sheepdog import rootwrap
from nova.virt.libvirt.utils import CONF
from nova.virt.libvirt.utils import LOG

SHEEPDOG_IQN = 'iqn.2014-06.org.openstack.nova:'
# Objects of a VDI have 2^22 bytes, whatever the cluster's default is.
SHEEPDOG_SHIFT = 22
# 2^20 objects: dog refuses to make a larger VDI.
SHEEPDOG_MAX_SIZE = 4 * units.Ti
# Size in bytes of a VDI that holds a record, and of the record.
SHEEPDOG_SMALL = 4 * units.Mi
SHEEPDOG_RECORD = 4096
# What dog says when nothing is wrong: there is such a VDI, and it is larger.
SHEEPDOG_ANSWERS = ("Attribute 'nova' not found",
                    'Shrinking VDIs is not implemented')


def get_sheepdog_vdi(owner: str, kind: str) -> str:
    """Name a VDI. All names are made here and by get_sheepdog_iqn().

    :param owner: UUID of an instance, or of an image in lower case
    :param kind: of an instance the name of a disk, 'scratch' (data on its way
        in or out) or 'state' (a record); of an image 'base.DIGEST',
        'record.DIGEST', 'import.TOKEN' or 'lease.NUMBER'
    :returns: the name
    """
    return '%s_%s' % (owner, kind)


def split_sheepdog_vdi(vdi: str) -> ty.Optional[ty.Tuple[str, str, str]]:
    """Do the reverse of get_sheepdog_vdi().

    :param vdi: name of a VDI of any kind
    :returns: owner, kind and what follows the dot; None if Nova did not make
        the name
    """
    match = re.fullmatch(
        r'([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})_([a-z]+)'
        r'(?:\.([0-9a-z.]+))?', vdi)
    if not match:
        return None
    return match.group(1), match.group(2), match.group(3) or ''


def get_sheepdog_iqn(vdi: str, token: str = '') -> str:
    """Name the iSCSI target of a VDI.

    tgtd refuses '_' in the name of a target.

    :param vdi: name of the VDI, or the part of it that some have in common
    :param token: what tells a temporary target from all others
    :returns: the IQN
    """
    return SHEEPDOG_IQN + vdi.replace('_', '.', 1) + (token and '.' + token)


def get_sheepdog_vdi_of_disk(
    disk: vconfig.LibvirtConfigGuestDisk,
) -> ty.Optional[str]:
    """Tell which VDI is behind a disk of a guest.

    :param disk: the disk of the guest's XML
    :returns: name of the VDI, None if it is another kind of disk
    """
    if disk.source_protocol == 'sheepdog':
        return disk.source_name
    if disk.source_protocol == 'iscsi':
        iqn = (disk.source_name or '').rpartition('/')[0]
        if iqn.startswith(SHEEPDOG_IQN):
            return iqn[len(SHEEPDOG_IQN):].replace('.', '_', 1)
    return None


def get_sheepdog_path(vdi: ty.Optional[str]) -> ty.Optional[str]:
    """Return what stands for the path of a VDI in Nova, None for None."""
    return vdi and 'sheepdog:' + vdi


def get_sheepdog_gateway() -> ty.Tuple[str, str]:
    """Tell where the sheep daemon listens.

    dog and tgtd take the first address that a name has, and that of localhost
    may be an IPv6 one, where no sheep listens.

    :returns: IPv4 address and port
    """
    host = CONF.libvirt.images_sheepdog_host
    return ('127.0.0.1' if host == 'localhost' else host,
            str(CONF.libvirt.images_sheepdog_port))


def _dog(
    subcommand: str, *arguments: str,
    sheep: ty.Optional[ty.Tuple[str, str]] = None, timeout_factor: int = 1,
    data: ty.Optional[str] = None, urgent: bool = False,
    check: ty.Optional[ty.Callable[[], None]] = None,
) -> str:
    """Run ``dog`` as root. The helpers below hand their ``how`` to it.

    :param subcommand: its words and options, such as 'vdi create'
    :param arguments: what stands behind the gateway's address
    :param sheep: IPv4 address and port of the sheep to ask, None for the
        gateway
    :param timeout_factor: multiplier for images_sheepdog_timeout
    :param data: text for its standard input
    :param urgent: whether it does not wait until it is its turn
    :param check: function called when its turn has come; what it raises keeps
        the command from being run
    :returns: its standard output
    :raises: exception.SheepdogVDINotFound, exception.SheepdogTagNotFound,
        exception.SheepdogVDIExists, exception.SheepdogUnreachable or another
        exception.SheepdogError
    """
    host, port = sheep or get_sheepdog_gateway()
    command = ('dog', *subcommand.split(), '-a', host, '-p', port, *arguments)
    try:
        out, err = rootwrap.execute(
            *command, data=data, urgent=urgent, check=check,
            timeout=CONF.libvirt.images_sheepdog_timeout * timeout_factor)
        # The exit status of a delete is 0 whatever happened.
        if not (err and subcommand == 'vdi delete'):
            return out
        error = rootwrap.CommandError(rootwrap.join_lines(err))
    except rootwrap.CommandError as e:
        error = e
    reason = error.reason
    kind = exception.SheepdogError
    if reason.endswith(('No VDI found', 'VDI not found')) or (
            # It is deleted just now.
            subcommand in ('vdi read', 'vdi write') and
            'No object found' in reason):
        kind = exception.SheepdogVDINotFound
    elif reason.endswith('Failed to find requested tag'):
        kind = exception.SheepdogTagNotFound
    elif reason.endswith('VDI exists already'):
        kind = exception.SheepdogVDIExists
    elif error.timed_out or 'failed to connect' in reason or (
            reason.endswith('I/O error')):
        kind = exception.SheepdogUnreachable
    if kind in (exception.SheepdogError, exception.SheepdogUnreachable) and (
            not any(words in reason for words in SHEEPDOG_ANSWERS)):
        rootwrap.note_failure(command)
        LOG.warning("'%(command)s' failed: %(reason)s",
                    {'command': ' '.join(command), 'reason': reason})
    vdis = [word for word in arguments if '_' in word]
    raise kind(reason=(sheep and 'sheep %s:%s: ' % sheep or '') +
               (vdis and 'VDI %s: ' % vdis[-1] or '') + reason)


@contextlib.contextmanager
def _parsing(subcommand: str) -> ty.Iterator[None]:
    """Turn what cannot be parsed into an exception.SheepdogError."""
    try:
        yield
    except (ValueError, IndexError) as e:
        raise exception.SheepdogError(
            reason=_("cannot make out what 'dog %(subcommand)s' says: "
                     '%(error)s') % {'subcommand': subcommand, 'error': e})


def get_sheepdog_policy() -> ty.List[int]:
    """Tell how the cluster keeps data.

    :returns: the number of copies, or those of data strips and of parity
        strips where the cluster is erasure coded
    :raises: exception.SheepdogError, also if the cluster is not ready
    """
    out = _dog('cluster info -v')
    with _parsing('cluster info'):
        # Cluster store: plain with 2 redundancy policy
        for line in out.splitlines():
            words = line.split()
            if words[:2] == ['Cluster', 'store:'] and 'with' in words:
                policy = words[words.index('with') + 1].split(':')
                copies = [int(number) for number in policy]
                if min(copies) < 1:
                    raise ValueError(line)
                return copies
    raise exception.SheepdogError(
        reason=_("the cluster is not ready: %s. A new cluster is made ready "
                 "by 'dog cluster format'") %
        (out.splitlines() or [_('no answer')])[0])


def get_sheepdog_redundancy() -> float:
    """Tell how many bytes the cluster writes for one byte of a VDI.

    :returns: the number of copies, or of strips over data strips where the
        cluster is erasure coded (4:2 gives 1.5)
    :raises: exception.SheepdogError, also if the cluster is not ready
    """
    copies = get_sheepdog_policy()
    return sum(copies) / copies[0] if copies[1:] else copies[0]


class SheepdogNode(ty.NamedTuple):
    """A sheep daemon that stores data."""
    address: str
    port: str
    zone: str


def list_sheepdog_nodes() -> ty.List[SheepdogNode]:
    """List the sheep daemons that store data.

    :raises: exception.SheepdogError
    """
    nodes = []
    for line in _dog('node list -r').splitlines():
        with _parsing('node list'):
            # 0 127.0.0.1:7000 128 0
            _id, name, virtual_nodes, zone = line.split(' ')
        # A gateway, which stores nothing, has none. It would tell of its disk
        # all the same.
        if virtual_nodes != '0':
            address, _colon, port = name.rpartition(':')
            nodes.append(SheepdogNode(address, port, zone))
    return nodes


def get_sheepdog_space() -> ty.Dict[str, float]:
    """Tell the size of the cluster, which is expensive.

    Each sheep looks at every object that it stores. ``dog node info`` reads
    the inode of every VDI besides.

    :returns: 'total', 'used' and 'free' in bytes, copies and parity divided
        out, and 'raw', the free bytes with them
    :raises: exception.SheepdogError
    """
    redundancy = get_sheepdog_redundancy()
    total = used = free = 0
    for node in list_sheepdog_nodes():
        out = _dog('node md info -r', sheep=(node.address, node.port))
        with _parsing('node md info'):
            # 127.0.0.1:7000 0 80861020160 4370432 80856649728 0% /sheep
            for row in out.splitlines():
                sizes = [int(word) for word in row.split(' ')[2:5]]
                total, used, free = (
                    total + sizes[0], used + sizes[1], free + sizes[2])
    return {'total': total / redundancy, 'used': used / redundancy,
            'free': free / redundancy, 'raw': free}


def sheepdog_vdi_exists(vdi: str, **how: ty.Any) -> bool:
    """Tell whether there is a working VDI of that name, whole or not.

    The price does not depend on the number of VDIs, as that of ``dog vdi
    list`` does: asking for an attribute looks up one name.

    :param vdi: name of the VDI
    :param how: as for _dog()
    :returns: True if there is; snapshots of that name do not count
    :raises: exception.SheepdogError
    """
    try:
        _dog('vdi getattr', vdi, 'nova', **how)
    except exception.SheepdogVDINotFound:
        return False
    except exception.SheepdogError as e:
        if SHEEPDOG_ANSWERS[0] not in str(e):
            raise
    return True


def sheepdog_snapshot_exists(vdi: str, tag: str) -> bool:
    """Tell whether a VDI has a snapshot of that name.

    :param vdi: name of the VDI
    :param tag: name of the snapshot
    :raises: exception.SheepdogError
    """
    try:
        _dog('vdi read', '-s', tag, vdi, '0', '1')
    except exception.SheepdogVDINotFound:
        return False
    return True


def read_sheepdog_record(vdi: str, **how: ty.Any) -> str:
    """Read what write_sheepdog_record() has written.

    :param vdi: name of the VDI
    :param how: as for _dog()
    :returns: the text, '' if there is none yet
    :raises: exception.SheepdogVDINotFound or exception.SheepdogError
    """
    return _dog('vdi read', vdi, '0', str(SHEEPDOG_RECORD),
                **how).strip('\0 \n')


def write_sheepdog_record(vdi: str, text: str, **how: ty.Any) -> None:
    """Keep some words in a VDI that is for nothing else.

    :param vdi: name of the VDI
    :param text: what to write, shorter than SHEEPDOG_RECORD
    :param how: as for _dog()
    :raises: exception.SheepdogVDINotFound or exception.SheepdogError
    """
    _dog('vdi write', vdi, '0', str(SHEEPDOG_RECORD),
         data=text.ljust(SHEEPDOG_RECORD - 1) + '\n', **how)


class SheepdogVDI(ty.NamedTuple):
    """A VDI or a snapshot, as the cluster lists it.

    :ivar tag: tag of a snapshot, which may be empty; None: the VDI itself
    :ivar size: in bytes
    :ivar own: bytes of data that only it has, copies not counted
    :ivar shared: bytes of data that it shares, copies not counted
    :ivar created: when, in seconds of the epoch
    """
    name: str
    tag: ty.Optional[str]
    size: int
    own: int
    shared: int
    created: int


def list_sheepdog_vdis() -> ty.List[SheepdogVDI]:
    """List all that is in the cluster.

    This reads the inode of every VDI, which took 23 seconds for 10,000 of
    them on a loaded machine. It is not for the way of a boot, a snapshot or a
    delete.

    :raises: exception.SheepdogError
    """
    vdis = []
    with _parsing('vdi list'):
        for line in _dog('vdi list -r', timeout_factor=10).splitlines():
            # s name 1 4194304 0 0 1700000000 7c2b25 2 tag 22
            words = re.split(r'(?<!\\) ', line)
            size, own, shared, created = map(int, words[3:7])
            vdis.append(SheepdogVDI(
                words[1], words[9] if words[0] == 's' else None,
                size, own, shared, created))
    return vdis


def create_sheepdog_vdi(vdi: str, size: int, **how: ty.Any) -> None:
    """Create a VDI with no data.

    :param vdi: name of the VDI
    :param size: its size in bytes, SHEEPDOG_MAX_SIZE at most
    :param how: as for _dog()
    :raises: exception.SheepdogVDIExists or exception.SheepdogError
    """
    _dog('vdi create', '-z', str(SHEEPDOG_SHIFT), vdi, str(size), **how)


def resize_sheepdog_vdi(vdi: str, size: int) -> bool:
    """Make a VDI larger; one that is large enough is left alone.

    :param vdi: name of the VDI
    :param size: its new size in bytes
    :returns: False if it is larger than that
    :raises: exception.SheepdogError
    """
    try:
        _dog('vdi resize', vdi, str(size))
    except exception.SheepdogError as e:
        if SHEEPDOG_ANSWERS[1] not in str(e):
            raise
        return False
    return True


def snapshot_sheepdog_vdi(vdi: str, tag: str, **how: ty.Any) -> None:
    """Take a snapshot of a VDI, which may be in use.

    A cluster that is full makes the VDI its own snapshot and leaves no working
    VDI of that name (Sheepdog 1.0.1). Then it is made again of the snapshot.

    :param vdi: name of the VDI
    :param tag: name of the snapshot, not of digits alone
    :param how: as for _dog()
    :raises: exception.SheepdogError
    """
    try:
        _dog('vdi snapshot', '-s', tag, vdi, **how)
    except exception.SheepdogError as e:
        # A base image can be made again.
        if not isinstance(e, exception.SheepdogUnreachable) and (
                '_base.' not in vdi and '_import.' not in vdi) and (
                not sheepdog_vdi_exists(vdi)):
            try:
                clone_sheepdog_vdi(vdi, tag, vdi)
            except exception.SheepdogVDINotFound:
                pass
            except exception.SheepdogError as lost:
                raise exception.SheepdogError(reason=_(
                    "%(error)s. The data of VDI %(vdi)s is in its snapshot "
                    "%(tag)s; make room, and have it back by 'dog vdi clone "
                    "-s %(tag)s %(vdi)s %(vdi)s', which failed now: %(lost)s")
                    % {'error': e, 'vdi': vdi, 'tag': tag, 'lost': lost})
        raise


def clone_sheepdog_vdi(
    vdi: str, tag: str, clone: str, **how: ty.Any
) -> None:
    """Make a new VDI of a snapshot, with which it shares its data.

    :param vdi: name of the VDI
    :param tag: name of the snapshot
    :param clone: name of the new VDI
    :param how: as for _dog()
    :raises: exception.SheepdogVDINotFound, exception.SheepdogVDIExists or
        exception.SheepdogError
    """
    _dog('vdi clone', '-s', tag, vdi, clone, **how)


def delete_sheepdog_vdi(
    vdi: str, tag: ty.Optional[str] = None, **how: ty.Any
) -> bool:
    """Delete a VDI or one of its snapshots; none of either is no error.

    A VDI that is deleted leaves its snapshots, and what is deleted leaves its
    clones whole. A delete that was cut short may leave the VDI listed and
    reading as zeros, so it is tried again after an error.

    :param vdi: name of the VDI
    :param tag: name of the snapshot, None for the VDI itself
    :param how: as for _dog()
    :returns: True if it was there
    :raises: exception.SheepdogError if it could not be deleted
    """
    arguments = (*(('-s', tag) if tag else ()), vdi)
    try:
        try:
            _dog('vdi delete', *arguments, **how)
        except exception.SheepdogUnreachable:
            raise
        except exception.SheepdogVDINotFound:
            raise
        except exception.SheepdogError:
            _dog('vdi delete', *arguments, **how)
    except exception.SheepdogVDINotFound:
        return False
    return True


def remove_sheepdog_vdi(vdi: str, *tags: str) -> None:
    """Delete a VDI and snapshots of it until dog says that there is none.

    What says that a snapshot is missing says as well whether there is a VDI,
    which then need not be asked for (Sheepdog 1.0.1).

    :param vdi: name of the VDI
    :param tags: names of the snapshots, any of which may be missing
    :raises: exception.SheepdogError if one could not be deleted
    """
    is_missing = False
    for tag in tags:
        try:
            _dog('vdi delete', '-s', tag, vdi)
        except exception.SheepdogTagNotFound:
            pass
        except exception.SheepdogVDINotFound:
            is_missing = True
        except exception.SheepdogError:
            delete_sheepdog_vdi(vdi, tag)
    if is_missing:
        return
    for _attempt in range(3):
        if not delete_sheepdog_vdi(vdi):
            return
    raise exception.SheepdogError(
        reason=_('VDI %s is still there after it was deleted; try again') %
        vdi)


def get_sheepdog_objects(vdi: str) -> ty.List[int]:
    """Tell which objects of a VDI have data; the rest reads as zeros.

    :param vdi: name of the VDI
    :returns: their indexes, in their order
    :raises: exception.SheepdogError
    """
    with _parsing('vdi object map'):
        # Index       VID
        # 00000009   6d2d91
        return [int(line.split()[0]) for line in
                _dog('vdi object map', vdi).splitlines()[1:]]


@after('find_disk', "if not disk_path and disk.source_protocol == 'rbd':")
def _(disk, disk_path):
    if not disk_path:
        disk_path = get_sheepdog_path(get_sheepdog_vdi_of_disk(disk))


@before('get_disk_type_from_path', "if path.startswith('/dev'):")
def _(path):
    if path.startswith('sheepdog:'):
        return 'sheepdog'
