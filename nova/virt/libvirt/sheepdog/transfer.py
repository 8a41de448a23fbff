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

"""Copies data between files and VDIs of a Sheepdog cluster, by qemu-img."""

import contextlib
import os
import re
import subprocess
import time

from oslo_concurrency import processutils
from oslo_log import log as logging
from oslo_serialization import jsonutils
from oslo_utils import units

import nova.conf
from nova import exception
from nova.i18n import _
from nova.virt.libvirt.sheepdog import rootwrap
from nova.virt.libvirt.sheepdog import targets
from nova.virt.libvirt import utils as libvirt_utils

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)

# Gaps smaller than this many bytes are copied as data; each larger gap costs
# another qemu-img process.
GAP = 64 * units.Mi
# Maximum number of qemu-img processes per VDI.
MAX_PIECES = 64
# Seconds between two lines of the log that tell how far a copy is.
PROGRESS = 5


class Progress:
    """Tells the log every few seconds how far a copy is.

    :ivar done: bytes that have been copied
    """

    def __init__(self, title, total):
        """:param title: what is being done
        :param total: bytes to be copied
        """
        self._title = title
        self._total = total
        self._before = self._length = self.done = 0
        self._start = self._last = time.monotonic()

    def begin(self, length):
        """Begin with the next part, of so many bytes."""
        self._before += self._length
        self._length = length

    def show(self, fraction):
        """Note which fraction of the part has been copied."""
        now = time.monotonic()
        self.done = self._before + int(self._length * fraction)
        if now - self._last < PROGRESS or not self.done:
            return
        self._last = now
        rate = self.done / (now - self._start)
        LOG.info('%(title)s: %(done)d of %(total)d MiB, %(rate).1f MiB/s, '
                 '%(left)d s left',
                 {'title': self._title, 'done': self.done // units.Mi,
                  'total': self._total // units.Mi, 'rate': rate / units.Mi,
                  'left': (self._total - self.done) / rate})


def _fail(error):
    raise exception.SheepdogError(
        reason=_('qemu-img failed: %s') % error.reason)


def _run_qemu_img(*arguments):
    """Run qemu-img, which is no business of root, and return its output."""
    try:
        return rootwrap.run('qemu-img', *arguments,
                            timeout=CONF.libvirt.images_sheepdog_timeout)[0]
    except rootwrap.CommandError as e:
        _fail(e)


def convert(source, target, size, progress):
    """Copy the data of a raw disk, and leave out what is zero.

    processutils returns nothing before the end. qemu-img dies with
    nova-compute, and with timeout, which may end before it knows its child:
    what a copy that went on wrote to a VDI which is deleted would keep its
    space for ever (Sheepdog 1.0.1).

    :param source: the disk, as qemu-img's --image-opts has it
    :param target: where to copy it; it is there and reads as zeros
    :param size: bytes of data there are at most, for the time limit
    :param progress: the Progress to tell
    """
    timeout = CONF.libvirt.images_sheepdog_timeout + size // units.Mi
    start = time.monotonic()
    said = []
    mortal = 'setpriv', '--pdeathsig', 'TERM'
    try:
        with subprocess.Popen(
                [*mortal, *rootwrap.limit(
                    [*mortal, 'qemu-img', 'convert', '-p', '-n',
                     '--target-is-zero', '-W', '-m', '8', '-t', 'writeback',
                     '--image-opts', '--target-image-opts', source, target],
                    timeout)],
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
                        progress.show(float(fraction.group(1)) / 100)
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
    except (processutils.ProcessExecutionError, OSError) as e:
        _fail(rootwrap.explain(e, time.monotonic() - start >= timeout))


def _format_options(options):
    """Format what --image-opts takes; a comma would end an option."""
    return ','.join('%s=%s' % (name, value.replace(',', ',,'))
                    for name, value in options.items())


def _get_pieces(vdi, size):
    """Return offset and length in bytes of what a VDI has of data."""
    shift = libvirt_utils.SHEEPDOG_SHIFT
    indexes = libvirt_utils.get_sheepdog_objects(vdi)
    gaps = sorted(
        ((after - before - 1, after) for before, after in
         zip(indexes, indexes[1:])
         if (after - before - 1) << shift >= GAP),
        reverse=True)[:MAX_PIECES - 1]
    # Each begins where a gap ends.
    starts = sorted(indexes[:1] + [after for _gap, after in gaps])
    ends = sorted([after - gap for gap, after in gaps]) + [
        index + 1 for index in indexes[-1:]]
    return [(start << shift, min(end << shift, size) - (start << shift))
            for start, end in zip(starts, ends)]


class Transfer:
    """Copies by the transport of this host."""

    def __init__(self, host_targets):
        """:param host_targets: the targets.Targets of this host"""
        self._targets = host_targets

    @contextlib.contextmanager
    def _reachable(self, vdi):
        """Return how qemu-img reaches a VDI, which no guest uses."""
        with contextlib.ExitStack() as stack:
            if self._targets.transport == 'native':
                host, port = libvirt_utils.get_sheepdog_gateway()
                options = {'driver': 'sheepdog', 'server.type': 'inet',
                           'server.host': host, 'server.port': port,
                           'vdi': vdi}
            else:
                iqn = stack.enter_context(self._targets.exported(vdi))
                options = {'driver': 'iscsi', 'transport': 'tcp',
                           'portal': CONF.libvirt.images_sheepdog_portal,
                           'target': iqn, 'lun': targets.LUN}
            yield _format_options({'driver': 'raw', **{
                'file.' + name: value for name, value in options.items()}})

    def copy_in(self, path, vdi, begun=None):
        """Copy a local raw file to a VDI that is new.

        :param path: path of the file
        :param vdi: name of the VDI, which is as large as the file at least
        :param begun: list that the Progress is added to, for those who watch
        :raises: exception.SheepdogError or exception.TgtError
        """
        size = os.stat(path).st_blocks * 512
        progress = Progress('Import into VDI %s' % vdi, size)
        if begun is not None:
            begun.append(progress)
        progress.begin(size)
        with self._reachable(vdi) as target:
            convert(_format_options({'driver': 'raw', 'file.filename': path}),
                    target, size, progress)

    def copy_out(self, vdi, path, path_format):
        """Copy what a VDI has allocated to a new file.

        Only that is read, as tgtd would send the zeros of the rest.

        :param vdi: name of the VDI, which no guest uses
        :param path: path of the file
        :param path_format: its format
        :raises: exception.SheepdogError or exception.TgtError
        """
        with self._reachable(vdi) as source:
            out = _run_qemu_img(
                'info', '--output=json', '--image-opts', source)
            try:
                size = jsonutils.loads(out)['virtual-size']
            except (ValueError, KeyError, TypeError) as e:
                raise exception.SheepdogError(reason=_(
                    "cannot make out what 'qemu-img info' says of VDI "
                    "%(vdi)s: %(error)s") % {'vdi': vdi, 'error': e})
            pieces = _get_pieces(vdi, size)
            progress = Progress('Copy of VDI %s' % vdi,
                                sum(length for _start, length in pieces))
            _run_qemu_img('create', '-q', '-f', path_format, path, str(size))
            for start, length in pieces:
                part = ',offset=%d,size=%d' % (start, length)
                progress.begin(length)
                convert(source + part, _format_options({
                    'driver': 'raw', 'file.driver': path_format,
                    'file.file.filename': path}) + part, length, progress)
