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

import os
import re
import subprocess
import time
import typing as ty

from graft.fragment import after
from graft.fragment import before
from oslo_concurrency import processutils
from oslo_serialization import jsonutils
from oslo_utils import units

from nova import exception
from nova.i18n import _
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt.storage import rootwrap
from nova.virt.libvirt.utils import CONF
from nova.virt.libvirt.utils import LOG
from nova.virt.libvirt.utils import ROOT_PATH
from nova.virt.libvirt.utils import SHEEPDOG_GAP
from nova.virt.libvirt.utils import SHEEPDOG_IQN
from nova.virt.libvirt.utils import SHEEPDOG_MUCH_ROOM
from nova.virt.libvirt.utils import SHEEPDOG_PIECES
from nova.virt.libvirt.utils import SHEEPDOG_PROGRESS
from nova.virt.libvirt.utils import SHEEPDOG_RECORD
from nova.virt.libvirt.utils import SHEEPDOG_ROOM
from nova.virt.libvirt.utils import SHEEPDOG_SHIFT
from nova.virt.libvirt.utils import SHEEPDOG_SPACE_LIFE
from nova.virt.libvirt.utils import SHEEPDOG_SPACES


@after('', "RESIZE_SNAPSHOT_NAME = 'nova-resize'")
def _():
    SHEEPDOG_IQN = 'iqn.2014-06.org.openstack.nova:'

    # Where root looks for dog and tgtadm. Left to sudo it might be the PATH
    # of the user nova, who could have root run any program of that name.
    ROOT_PATH = ('/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:'
                 '/sbin:/bin')

    # Bytes, copies included, that a cluster has to have left for a snapshot
    SHEEPDOG_ROOM = 256 * units.Mi

    # Seconds for which the space of a cluster is remembered, as each sheep
    # looks at every object that it stores to tell it; bytes that are not
    # filled meanwhile; and by gateway, when it was asked and what it told
    SHEEPDOG_SPACE_LIFE = 300
    SHEEPDOG_MUCH_ROOM = 64 * units.Gi
    SHEEPDOG_SPACES = {}

    # Bytes that read_sheepdog_record() reads, as dog takes it
    SHEEPDOG_RECORD = '512'

    # Objects of a VDI have 2^22 bytes, whatever the cluster's default is.
    SHEEPDOG_SHIFT = 22

    # Bytes of zeros that are read rather than left out, which takes one more
    # qemu-img; and how many of these there are at most for one VDI
    SHEEPDOG_GAP = 64 * units.Mi
    SHEEPDOG_PIECES = 64

    # Seconds between two lines of the log that tell how far a copy is
    SHEEPDOG_PROGRESS = 5


@after('', 'def load_file(path: str) -> str:')
def run_with_time_limit(
    *command: str, timeout: int, run_as_root: bool = False,
    data: ty.Optional[str] = None,
) -> ty.Tuple[str, str]:
    """Run a command in the C locale and end it when its time is over.

    ``timeout`` of coreutils keeps the time: nova-compute may not send a signal
    to a process that sudo started.

    :param command: the command and its arguments
    :param timeout: seconds
    :param run_as_root: whether to run it through rootwrap
    :param data: what it reads from its standard input
    :returns: its standard output and standard error
    :raises: processutils.ProcessExecutionError if its exit status is not 0
    """
    if run_as_root:
        return rootwrap.execute(
            *_limit(command, timeout, 'PATH=' + ROOT_PATH),
            title=' '.join(command), data=data)
    return processutils.execute(*_limit(command, timeout),
                                process_input=data)


@after('', 'def load_file(path: str) -> str:')
def _limit(
    command: ty.Tuple[str, ...], timeout: int, *environment: str,
) -> ty.List[str]:
    return ['env', 'LC_ALL=C', *environment, 'timeout', '--kill-after=5',
            str(timeout), *command]


@after('', 'def load_file(path: str) -> str:')
def explain_failed_command(
    error: processutils.ProcessExecutionError, filters: str,
) -> str:
    """Say in words why a command of ``run_with_time_limit`` failed.

    :param error: what running it raised
    :param filters: name of the rootwrap filter file that has to allow it
    :returns: the reason, and what to do where that is known
    """
    if error.exit_code in (124, 137):
        return _('no answer within [libvirt]images_sheepdog_timeout')
    if error.exit_code == 99 and 'Unauthorized command' in error.stderr:
        return _('rootwrap does not allow it: install %s where the '
                 'filters_path of rootwrap.conf looks') % filters
    if error.exit_code == 127:
        return _('it is not installed where it is looked for, in %(path)s: '
                 '%(error)s') % {'path': ROOT_PATH,
                                 'error': error.stderr.strip()}
    # dog says some things twice
    lines = dict.fromkeys(error.stderr.strip().splitlines())
    return ('; '.join(lines) or error.stdout.strip() or
            _('exit status %s') % error.exit_code)


@after('', 'def load_file(path: str) -> str:')
def get_sheepdog_gateway() -> ty.Tuple[str, str]:
    """Tell where the sheep daemon listens.

    dog and tgtd take the first address that a name has, and that of localhost
    may be an IPv6 one, where no sheep listens.

    :returns: IPv4 address and port
    """
    host = CONF.libvirt.images_sheepdog_host
    return ('127.0.0.1' if host == 'localhost' else host,
            str(CONF.libvirt.images_sheepdog_port))


@after('', 'def load_file(path: str) -> str:')
def get_sheepdog_error(
    command: str, reason: str,
    kind: ty.Type[exception.SheepdogError] = exception.SheepdogError,
) -> exception.SheepdogError:
    """Make the error of a command that did not do what it should.

    :param command: the command
    :param reason: what went wrong, and what to do
    :param kind: class of the error
    :returns: the error, to be raised
    """
    return kind(gateway=':'.join(get_sheepdog_gateway()), command=command,
                reason=reason)


@after('', 'def load_file(path: str) -> str:')
def _dog(
    subcommand: str, *arguments: str, data: ty.Optional[str] = None,
    patience: int = 1, sheep: ty.Optional[ty.Tuple[str, str]] = None,
) -> ty.Tuple[str, str]:
    """Run ``dog`` against the gateway.

    :param subcommand: its words and options, such as 'vdi create'
    :param arguments: what stands behind the gateway's address
    :param data: what it reads from its standard input
    :param patience: how often it may take the time that others may
    :param sheep: IPv4 address and port of the sheep daemon to ask instead
    :returns: its standard output and standard error
    :raises: exception.SheepdogVDINotFound, exception.SheepdogTagNotFound,
        exception.SheepdogVDIExists or exception.SheepdogError
    """
    host, port = sheep or get_sheepdog_gateway()
    command = ('dog', *subcommand.split(), '-a', host, '-p', port,
               *arguments)
    try:
        out, err = run_with_time_limit(
            *command, timeout=CONF.libvirt.images_sheepdog_timeout * patience,
            run_as_root=True, data=data)
        # The exit status of a delete is 0 whatever happened.
        if not (err and subcommand == 'vdi delete'):
            return out, err
        reason = err.strip()
    except processutils.ProcessExecutionError as e:
        reason = explain_failed_command(e, 'sheepdog.filters')
    except OSError as e:
        reason = str(e)
    if reason.endswith(('No VDI found', 'VDI not found')) or (
            # It is deleted just now.
            subcommand in ('vdi read', 'vdi write') and
            'No object found' in reason):
        kind = exception.SheepdogVDINotFound
    elif reason.endswith('Failed to find requested tag'):
        kind = exception.SheepdogTagNotFound
    elif reason.endswith('VDI exists already'):
        kind = exception.SheepdogVDIExists
    else:
        kind = exception.SheepdogError
    if not sheep and ('failed to connect' in reason or
                      reason.endswith('I/O error')):
        reason = _('%s. Check [libvirt]images_sheepdog_host and '
                   'images_sheepdog_port, and that the sheep daemon runs '
                   'there') % reason
    raise get_sheepdog_error(' '.join(command), reason, kind)


@after('', 'def load_file(path: str) -> str:')
def check_sheepdog_cluster() -> None:
    """Make sure that the gateway answers and the cluster can be used.

    :raises: exception.SheepdogError if not
    """
    get_sheepdog_redundancy()


@after('', 'def load_file(path: str) -> str:')
def get_sheepdog_redundancy() -> float:
    """Tell how many bytes the cluster writes for one byte of a VDI.

    :returns: the number of copies, or of strips over data strips where the
        cluster is erasure coded (4:2 gives 1.5)
    :raises: exception.SheepdogError
    """
    out, _err = _dog('cluster info -v')
    # Cluster store: plain with 2 redundancy policy
    for line in out.splitlines():
        words = line.split()
        if words[:2] == ['Cluster', 'store:'] and 'with' in words:
            data, colon, parity = words[words.index('with') + 1].partition(
                ':')
            if not colon:
                return float(data)
            return (int(data) + int(parity)) / int(data)
    raise get_sheepdog_error(
        'dog cluster info',
        _("the cluster is not ready: %s. A new cluster is made ready by 'dog "
          "cluster format'") % (out.splitlines() or [_('no answer')])[0])


@after('', 'def load_file(path: str) -> str:')
def _get_sheepdog_space(enough: int = 0) -> ty.Tuple[int, ...]:
    """Tell the size of all disks of the cluster, copies included.

    ``dog node info`` sums it up as well, and then reads the inode of every
    VDI to tell how large they all would be.

    :param enough: free bytes that there have to have been for an answer of
        some minutes ago
    :returns: total, used and free bytes
    :raises: exception.SheepdogError
    """
    gateway = get_sheepdog_gateway()
    asked, space = SHEEPDOG_SPACES.get(gateway, (None, None))
    if space and space[2] >= enough and (
            time.monotonic() - asked < SHEEPDOG_SPACE_LIFE):
        return space
    try:
        space = _ask_sheepdog_space()
    except exception.SheepdogError as e:
        if not space:
            raise
        # A sheep that has just died is asked until the others notice.
        LOG.warning('Going by the space that the cluster had before: %s', e)
        return space
    SHEEPDOG_SPACES[gateway] = (time.monotonic(), space)
    return space


@after('', 'def load_file(path: str) -> str:')
def _ask_sheepdog_space() -> ty.Tuple[int, ...]:
    disks = []
    # 0 127.0.0.1:7000 128 0
    for line in _dog('node list -r')[0].splitlines():
        _id, name, virtual_nodes, _zone = line.split(' ')
        # A gateway, which stores nothing, has none. It would tell of its disk
        # all the same.
        if virtual_nodes != '0':
            # 127.0.0.1:7000 0 80861020160 4370432 80856649728 0% /sheep
            out, _err = _dog('node md info -r',
                             sheep=tuple(name.rsplit(':', 1)))
            disks += [row.split(' ')[2:5] for row in out.splitlines()]
    return tuple(sum(int(disk[column]) for disk in disks)
                 for column in range(3))


@after('', 'def load_file(path: str) -> str:')
def get_sheepdog_capacity() -> ty.Dict[str, float]:
    """Tell the size of the cluster, copies and parity divided out.

    :returns: 'total', 'free' and 'used', in bytes
    :raises: exception.SheepdogError
    """
    total, used, free = _get_sheepdog_space()
    redundancy = get_sheepdog_redundancy()
    return {'total': total / redundancy, 'free': free / redundancy,
            'used': used / redundancy}


@after('', 'def load_file(path: str) -> str:')
def sheepdog_vdi_exists(vdi: str) -> bool:
    """Tell whether there is a working VDI of that name.

    Its price does not depend on the number of VDIs, as that of ``dog vdi
    list`` does: asking for an attribute looks up one name.

    :param vdi: name of the VDI
    :returns: True if there is; snapshots of that name do not count
    :raises: exception.SheepdogError
    """
    try:
        _dog('vdi getattr', vdi, 'nova')
    except exception.SheepdogVDINotFound:
        return False
    except exception.SheepdogError as e:
        if "Attribute 'nova' not found" not in str(e):
            raise
    return True


@after('', 'def load_file(path: str) -> str:')
def read_sheepdog_record(vdi: str) -> str:
    """Read what write_sheepdog_record() has written.

    :param vdi: name of the VDI
    :returns: the text, '' if there is none yet
    :raises: exception.SheepdogVDINotFound or exception.SheepdogError
    """
    return _dog('vdi read', vdi, '0', SHEEPDOG_RECORD)[0].strip('\0 \n')


@after('', 'def load_file(path: str) -> str:')
def write_sheepdog_record(vdi: str, text: str) -> None:
    """Keep some words in a VDI that is for nothing else.

    :param vdi: name of the VDI
    :param text: what to write, of less than 512 characters
    :raises: exception.SheepdogVDINotFound or exception.SheepdogError
    """
    _dog('vdi write', vdi, '0', SHEEPDOG_RECORD,
         data=text.ljust(int(SHEEPDOG_RECORD) - 1) + '\n')


@after('', 'def load_file(path: str) -> str:')
def list_sheepdog_vdis() -> ty.Set[ty.Tuple[str, ty.Optional[str]]]:
    """List all that is in the cluster.

    Its price is that of reading the inode of every VDI, which took 23 seconds
    for 10,000 of them on a loaded machine. So it is not for the way of a boot,
    a snapshot or a delete.

    :returns: name of each VDI, with None, and of each snapshot, with its tag
    :raises: exception.SheepdogError
    """
    vdis = set()
    for line in _dog('vdi list -r', patience=10)[0].splitlines():
        # s name 1 4194304 0 0 1700000000 7c2b25 2 tag 22
        words = line.split(' ')
        vdis.add((words[1], words[9] if words[0] == 's' else None))
    return vdis


@after('', 'def load_file(path: str) -> str:')
def create_sheepdog_vdi(vdi: str, size: int) -> None:
    """Create a VDI with no data.

    :param vdi: name of the VDI
    :param size: its size in bytes, 4 TiB at most
    :raises: exception.SheepdogVDIExists or exception.SheepdogError
    """
    _dog('vdi create', '-z', str(SHEEPDOG_SHIFT), vdi, str(size))


@after('', 'def load_file(path: str) -> str:')
def resize_sheepdog_vdi(vdi: str, size: int) -> None:
    """Make a VDI larger; a VDI that has that size is left alone.

    :param vdi: name of the VDI
    :param size: its new size in bytes
    :raises: exception.SheepdogError, also if the VDI is larger
    """
    _dog('vdi resize', vdi, str(size))


@after('', 'def load_file(path: str) -> str:')
def snapshot_sheepdog_vdi(vdi: str, tag: str) -> None:
    """Take a snapshot of a VDI, which may be in use.

    :param vdi: name of the VDI
    :param tag: name of the snapshot, not of digits alone
    :raises: exception.SheepdogError
    """
    _dog('vdi snapshot', '-s', tag, vdi)


@after('', 'def load_file(path: str) -> str:')
def snapshot_sheepdog_disk(vdi: str, tag: str) -> bool:
    """Take the snapshot of a VDI whose data matters, in place of an old one.

    A cluster that is full makes the VDI its own snapshot, and leaves none of
    that name (seen on Sheepdog 1.0.1). So there has to be room; where there
    was none all the same, the VDI is made again of the snapshot.

    :param vdi: name of the VDI
    :param tag: name of the snapshot
    :returns: False if there is no such VDI
    :raises: exception.SheepdogError
    """
    if not sheepdog_vdi_exists(vdi):
        return False
    # Only now: where the VDI is missing, its snapshot may be all there is.
    delete_sheepdog_vdi(vdi, tag)
    _total, _used, free = _get_sheepdog_space(enough=SHEEPDOG_MUCH_ROOM)
    if free < SHEEPDOG_ROOM:
        raise get_sheepdog_error(
            'dog node md info',
            _('the cluster has room for %(free)d more MiB, copies included, '
              'and %(room)d are wanted before a snapshot of VDI %(vdi)s; add '
              'storage or delete servers') %
            {'free': free // 2**20, 'room': SHEEPDOG_ROOM // 2**20,
             'vdi': vdi})
    try:
        snapshot_sheepdog_vdi(vdi, tag)
    except exception.SheepdogError as e:
        if not sheepdog_vdi_exists(vdi):
            try:
                clone_sheepdog_vdi(vdi, tag, vdi)
            except exception.SheepdogError as lost:
                raise get_sheepdog_error(
                    'dog vdi snapshot',
                    _("%(error)s. The data of VDI %(vdi)s is in its snapshot "
                      "%(tag)s; make room, and have it back by 'dog vdi "
                      "clone -s %(tag)s %(vdi)s %(vdi)s', which failed now: "
                      "%(lost)s") %
                    {'error': e, 'vdi': vdi, 'tag': tag, 'lost': lost})
        raise
    return True


@after('', 'def load_file(path: str) -> str:')
def clone_sheepdog_vdi(vdi: str, tag: str, clone: str) -> None:
    """Make a new VDI of a snapshot, with which it shares its data.

    :param vdi: name of the VDI
    :param tag: name of the snapshot
    :param clone: name of the new VDI
    :raises: exception.SheepdogVDINotFound, exception.SheepdogVDIExists or
        exception.SheepdogError
    """
    _dog('vdi clone', '-s', tag, vdi, clone)


@after('', 'def load_file(path: str) -> str:')
def delete_sheepdog_vdi(vdi: str, tag: ty.Optional[str] = None) -> bool:
    """Delete a VDI or one of its snapshots; none of either is no error.

    A VDI that is deleted leaves its snapshots, and what is deleted leaves its
    clones whole.

    :param vdi: name of the VDI
    :param tag: name of the snapshot, None for the VDI itself
    :returns: True if it was there
    :raises: exception.SheepdogError if it could not be deleted
    """
    try:
        _dog('vdi delete', *(('-s', tag) if tag else ()), vdi)
    except exception.SheepdogVDINotFound:
        return False
    return True


@after('', 'def load_file(path: str) -> str:')
def delete_sheepdog_vdi_and_snapshots(vdi: str, *tags: str) -> bool:
    """Delete a VDI and snapshots of it, of which any may be missing.

    What says that a snapshot is missing says as well whether there is a VDI,
    which then need not be asked for (seen on Sheepdog 1.0.1).

    :param vdi: name of the VDI
    :param tags: names of the snapshots
    :returns: True if the VDI was there
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
    return not is_missing and delete_sheepdog_vdi(vdi)


@after('', 'def load_file(path: str) -> str:')
def get_sheepdog_pieces(
    vdi: str, size: int,
) -> ty.List[ty.Tuple[int, int]]:
    """Tell which parts of a VDI have data; the rest reads as zeros.

    Small gaps count as data.

    :param vdi: name of the VDI
    :param size: its size in bytes
    :returns: offset and length of each in bytes, in their order
    :raises: exception.SheepdogError
    """
    # Index       VID
    # 00000009   6d2d91
    indexes = [int(line.split()[0]) for line in
               _dog('vdi object map', vdi)[0].splitlines()[1:]]
    gaps = sorted(
        ((after - before - 1, after) for before, after in
         zip(indexes, indexes[1:])
         if (after - before - 1) << SHEEPDOG_SHIFT >= SHEEPDOG_GAP),
        reverse=True)[:SHEEPDOG_PIECES - 1]
    # Each begins where a gap ends.
    starts = sorted(indexes[:1] + [after for _gap, after in gaps])
    ends = sorted([after - gap for gap, after in gaps]) + [
        index + 1 for index in indexes[-1:]]
    return [(start << SHEEPDOG_SHIFT,
             min(end << SHEEPDOG_SHIFT, size) - (start << SHEEPDOG_SHIFT))
            for start, end in zip(starts, ends)]


@after('', 'def load_file(path: str) -> str:')
class SheepdogProgress:
    """Tells the log every few seconds how far a copy is."""

    def __init__(self, title: str, total: int) -> None:
        """:param title: what is being done
        :param total: how many bytes have to be copied
        """
        self._title = title
        self._total = total
        self._done = self._length = 0
        self._start = self._last = time.monotonic()

    def begin(self, length: int) -> ty.Callable[[float], None]:
        """Begin with the next part, which may be the only one.

        :param length: how many bytes it has
        :returns: function that is to be told which fraction of it is copied
        """
        self._done += self._length
        self._length = length
        return self._show

    def _show(self, fraction: float) -> None:
        now = time.monotonic()
        done = self._done + int(self._length * fraction)
        if now - self._last < SHEEPDOG_PROGRESS or not done:
            return
        self._last = now
        rate = done / (now - self._start)
        LOG.info('%(title)s: %(done)d of %(total)d MiB, %(rate).1f MiB/s, '
                 '%(left)d s left',
                 {'title': self._title, 'done': done // units.Mi,
                  'total': self._total // units.Mi, 'rate': rate / units.Mi,
                  'left': (self._total - done) / rate})


@after('', 'def load_file(path: str) -> str:')
def _run_qemu_img(
    *arguments: str, timeout: int,
    show: ty.Optional[ty.Callable[[float], None]] = None,
) -> str:
    """Run qemu-img, which is no business of root.

    :param arguments: its arguments
    :param timeout: seconds
    :param show: function that is told, as it goes on, which fraction is done;
        there has to be -p among the arguments
    :returns: its standard output
    :raises: exception.SheepdogError
    """
    try:
        if show:
            return _run_and_show(
                _limit(('qemu-img', *arguments), timeout), show)
        return run_with_time_limit('qemu-img', *arguments,
                                   timeout=timeout)[0]
    except (processutils.ProcessExecutionError, OSError) as e:
        raise get_sheepdog_error(
            'qemu-img ' + ' '.join(arguments),
            explain_failed_command(e, '') if
            isinstance(e, processutils.ProcessExecutionError) else str(e))


@after('', 'def load_file(path: str) -> str:')
def _run_and_show(
    command: ty.List[str], show: ty.Callable[[float], None],
) -> str:
    """Run a command that tells which fraction is done, as it goes on.

    processutils returns nothing before the end. The command dies with
    nova-compute: what a copy that went on wrote to a VDI which is deleted
    would stay for ever (seen on Sheepdog 1.0.1).

    :param command: the command and its arguments
    :param show: function that is told
    :returns: what else it said
    :raises: processutils.ProcessExecutionError or OSError
    """
    said = []
    with subprocess.Popen(['setpriv', '--pdeathsig', 'TERM', *command],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as process:
        try:
            line = b''
            for character in iter(lambda: process.stdout.read(1), b''):
                line += character
                if character not in b'\r\n':
                    continue
                #     (12.34/100%)
                fraction = re.match(rb' *\(([0-9.]+)/100%\)', line)
                if fraction:
                    show(float(fraction.group(1)) / 100)
                else:
                    said.append(os.fsdecode(line))
                line = b''
            said.append(os.fsdecode(line))
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise processutils.ProcessExecutionError(
            stderr=''.join(said), exit_code=process.returncode)
    return ''.join(said)


@after('', 'def load_file(path: str) -> str:')
def copy_with_qemu_img(
    source: str, target: str, size: int,
    show: ty.Optional[ty.Callable[[float], None]] = None,
) -> None:
    """Copy the data of a raw disk, and leave out what is zero.

    :param source: the disk, as qemu-img's --image-opts has it
    :param target: where to copy it; it is there and reads as zeros
    :param size: bytes of data there are at most, for the time limit
    :param show: function that is told, as it goes on, which fraction is done
    :raises: exception.SheepdogError
    """
    _run_qemu_img(
        'convert', '-p', '-n', '--target-is-zero', '-W', '-m', '8', '-t',
        'writeback', '--image-opts', '--target-image-opts', source, target,
        timeout=CONF.libvirt.images_sheepdog_timeout + size // units.Mi,
        show=show)


@after('', 'def load_file(path: str) -> str:')
def create_with_qemu_img(path: str, image_format: str, size: int) -> None:
    """Make a file that reads as zeros.

    :param path: path of the file
    :param image_format: 'raw' or another format of qemu-img
    :param size: bytes that it appears to have
    :raises: exception.SheepdogError
    """
    _run_qemu_img('create', '-q', '-f', image_format, path, str(size),
                  timeout=CONF.libvirt.images_sheepdog_timeout)


@after('', 'def load_file(path: str) -> str:')
def get_size_by_qemu_img(source: str) -> int:
    """Tell the size of a raw disk.

    :param source: the disk, as qemu-img's --image-opts has it
    :returns: bytes
    :raises: exception.SheepdogError
    """
    return jsonutils.loads(_run_qemu_img(
        'info', '--output=json', '--image-opts', source,
        timeout=CONF.libvirt.images_sheepdog_timeout))['virtual-size']


@after('', 'def load_file(path: str) -> str:')
def get_sheepdog_iqn(vdi: str) -> str:
    """Name the iSCSI target of a VDI.

    tgtd refuses '_' in the name of a target.

    :param vdi: name of the VDI, '<uuid>_<disk name>'
    :returns: the IQN
    """
    return SHEEPDOG_IQN + vdi.replace('_', '.', 1)


@after('', 'def load_file(path: str) -> str:')
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


@before('find_disk', 'if not disk_path:')
def _(disk, disk_path):
    if not disk_path and CONF.libvirt.images_type == 'sheepdog':
        vdi = get_sheepdog_vdi_of_disk(disk)
        disk_path = 'sheepdog:' + vdi if vdi else None


@before('get_disk_type_from_path', "if path.startswith('/dev'):")
def _(path):
    if path.startswith('sheepdog:'):
        return 'sheepdog'
