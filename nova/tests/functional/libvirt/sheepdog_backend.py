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

"""What the functional tests know of the inside of the backend.

It is here and nowhere else: the steps at which a test has something die, and
what no API of Nova tells.
"""

import contextlib
import functools
import inspect
import os
import pkgutil
from unittest import mock

from oslo_concurrency import processutils
from oslo_utils.fixture import uuidsentinel as uuids

import nova.conf
from nova import objects
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import imagebackend
from nova.virt.libvirt.sheepdog import disks
from nova.virt.libvirt.sheepdog import host as sheepdog_host
from nova.virt.libvirt.sheepdog import images
from nova.virt.libvirt.sheepdog import lease
from nova.virt.libvirt.sheepdog import migration
from nova.virt.libvirt.sheepdog import rootwrap
from nova.virt.libvirt.sheepdog import targets
from nova.virt.libvirt.sheepdog import transfer
from nova.virt.libvirt import utils as libvirt_utils

CONF = nova.conf.CONF
# Its modules; their threads end with nova-compute.
PACKAGE = sheepdog_host.__name__.rpartition('.')[0]
ROOT_PATH = rootwrap.ROOT_PATH
IQN = libvirt_utils.SHEEPDOG_IQN
# Whether the QEMU of this host has a Sheepdog driver, which is then used.
IS_NATIVE = not sheepdog_host.find_lack('sheepdog')

# By a name: the function that takes a step, and where it is
STEPS = {
    'create a VDI': (libvirt_utils, 'create_sheepdog_vdi'),
    'export a VDI': (targets, 'make_target'),
    'copy data': (transfer, 'convert'),
    'remove a target': (targets.Targets, 'unexport'),
    'take a snapshot': (libvirt_utils, 'snapshot_sheepdog_vdi'),
    'clone a snapshot': (libvirt_utils, 'clone_sheepdog_vdi'),
    'remove a VDI': (libvirt_utils, 'remove_sheepdog_vdi'),
    'delete all disks': (disks.Disks, 'delete'),
    'launch a guest': (libvirt_guest.Guest, 'launch'),
    'migrate and power off': ('nova.virt.libvirt.driver:LibvirtDriver',
                              'migrate_disk_and_power_off'),
    'upload an image': ('nova.image.glance:API', 'update'),
    'prepare a live migration': (sheepdog_host.SheepdogHost, 'expect_guest'),
    'reload a VDI': (targets.Targets, 'reload'),
    'choose the flags of a migration': (migration, 'get_flags'),
}


def replace_step(step, replacement):
    """Have another function called in place of one that takes a step.

    :param step: one of STEPS
    :param replacement: function called with that function, and the arguments
    :returns: a patcher of mock
    """
    owner, name = STEPS[step]
    if isinstance(owner, str):
        owner = pkgutil.resolve_name(owner)
    function = getattr(owner, name)

    @functools.wraps(function)
    def call(*args, **kwargs):
        return replacement(function, *args, **kwargs)

    is_static = isinstance(inspect.getattr_static(owner, name), staticmethod)
    return mock.patch.object(owner, name,
                             staticmethod(call) if is_static else call)


@contextlib.contextmanager
def let_leases_run_out():
    """What is dead renews no lease, and gives none back."""
    with mock.patch.object(lease.Lease, '_keep', lambda lease: None), \
            mock.patch.object(lease.Leases, 'stop'):
        yield


def share_tgtd(driver, other):
    """Have two drivers that a test puts on one host leave each other's copies.

    A host has one. It takes the target of a copy that is none of its own for
    what a nova-compute has left that was killed.
    """
    other._sheepdog.targets._temporary = driver._sheepdog.targets._temporary


# It tells which host runs image-cache passes, and is never given back.
AGEING_LEASE = lease.get_name(images.AGEING, 0)


def get_import_directory():
    """Return where files are while an image is imported on this host."""
    return lease.get_directory()


def get_vdi_of_disk(element):
    """Return the VDI behind a disk of a guest, or None.

    :param element: of the guest's XML
    """
    disk = vconfig.LibvirtConfigGuestDisk()
    disk.parse_dom(element)
    return libvirt_utils.get_sheepdog_vdi_of_disk(disk)


def get_iqn(vdi):
    return libvirt_utils.get_sheepdog_iqn(vdi)


def get_transport(driver):
    """Return 'iscsi' or 'native'.

    :param driver: the LibvirtDriver that uses it
    """
    return driver._sheepdog.targets.transport


def set_transport(driver, transport):
    """Have a running driver use another transport."""
    driver._sheepdog.targets.transport = transport


def list_targets():
    """Return the names of Nova's targets on this host."""
    return sorted(targets.list_targets())


def lose_targets(driver):
    """Have no target on this host, and none made again."""
    driver._sheepdog.targets.unexport(IQN)


def remove_targets():
    """Remove Nova's targets from this host."""
    targets.Targets('iscsi').unexport(IQN)


def run_as_root(*command):
    """Run a command as the backend does."""
    return rootwrap.execute(*command, timeout=60)


def read_console(uuid):
    """Return what a guest has printed on this host since it started."""
    path = os.path.join(CONF.instances_path, uuid, 'console.log')
    if not os.path.exists(path):
        return ''
    with open(path, errors='replace') as log:
        return log.read().replace('\0', '')


def start_runner():
    """Have a new runner of commands, as another process would."""
    rootwrap.stop()


def explain_refusal(call):
    """Run what rootwrap refuses.

    :param call: function that runs it
    :returns: what the backend says of it
    """
    try:
        call()
    except rootwrap.CommandError as e:
        return e.reason


RUNNER_LOG = rootwrap.LOG
get_redundancy = libvirt_utils.get_sheepdog_redundancy


class Cluster:
    """Answers the backend as dog and tgtadm would.

    :ivar calls: the commands that it gave to rootwrap, each once
    """

    ANSWERS = {
        'cluster info': 'Cluster store: plain with 2 redundancy policy',
        'node list': '0 127.0.0.1:1 128 0',
        'node md': '127.0.0.1:1 0 3000000000 0 3000000000 0% /sheep',
        'object map': 'Index       VID\n00000000   6d2d91\n',
        'system --op': 'Backing stores:\n    sheepdog',
    }

    def __init__(self):
        self.calls = {}
        self._vdis = {}
        self._snapshots = set()
        self._targets = []

    def execute(self, command, data=None):
        """What rootwrap.Runner does with a command and its input."""
        self.calls[tuple(command)] = None
        words = command[command.index('timeout') + 3:]
        said = ' '.join(words)
        for part, answer in self.ANSWERS.items():
            if part in said:
                return answer, ''
        if words[0] == 'dog':
            return self._dog(words[2], words[7:], data), ''
        if '--mode target --op new' in said:
            self._targets.append(words[-1])
        if '--mode target --op delete' in said:
            del self._targets[0]
        if '--mode target --op show' in said:
            return ''.join('Target %d: %s\n' % (10**9 + number, iqn) for
                           number, iqn in enumerate(self._targets)), ''
        return '', ''

    @staticmethod
    def _fail(words):
        raise processutils.ProcessExecutionError(stderr=words, exit_code=1)

    def _dog(self, subcommand, words, data):
        vdi, tag = words[-1], None
        if '-s' in words:
            tag = words[words.index('-s') + 1]
        if subcommand in ('getattr', 'read', 'write'):
            vdi = words[2 if tag else 0]
        if subcommand == 'list':
            return ''.join(
                ['c %s 0 1 0 0 1 1 1  22\n' % name for name in self._vdis] +
                ['s %s 0 1 0 0 1 1 1 %s 22\n' % names
                 for names in sorted(self._snapshots)])
        if subcommand == 'create':
            vdi = words[-2]
        if subcommand in ('create', 'clone'):
            if subcommand == 'clone' and (
                    (words[-2], tag) not in self._snapshots):
                self._fail('Failed to clone VDI: No VDI found')
            self._vdis[vdi] = ''
        elif subcommand == 'snapshot':
            self._snapshots.add((vdi, tag))
        elif subcommand == 'delete':
            if (vdi, tag) in self._snapshots:
                self._snapshots.remove((vdi, tag))
            elif tag or vdi not in self._vdis:
                self._fail('No VDI found' if vdi not in self._vdis else
                           'Failed to find requested tag')
            else:
                del self._vdis[vdi]
        elif subcommand != 'resize' and vdi not in self._vdis:
            self._fail('VDI not found')
        elif subcommand == 'write':
            self._vdis[vdi] = data
        elif subcommand == 'read':
            return self._vdis[vdi]
        return ''


class _Template(images.Base):
    """A base image of a file."""

    def __init__(self, host_images, path):
        super().__init__(host_images, uuids.image, ['a file'])
        self._path = path

    def _fetch(self, target):
        with open(target, 'wb') as file:
            file.truncate(os.stat(self._path).st_size)


def list_root_commands(names, directory):
    """Have the backend do all that it can, and see what root would run.

    :param names: names of the disks to do it to
    :param directory: path of an empty directory
    :returns: the commands, with their arguments
    """
    cluster = Cluster()
    # Nothing is asked of a database for it.
    instance = objects.Instance(
        uuid=uuids.instance, deleted=True, system_metadata={})
    path = os.path.join(directory, 'disk')
    with open(path, 'w') as file:
        file.truncate(1024)
    with contextlib.ExitStack() as patches:
        for patcher in (
                mock.patch.object(rootwrap.Runner, '_execute',
                                  lambda runner, *args: cluster.execute(
                                      *args)),
                mock.patch.object(rootwrap, 'run', return_value=('', '')),
                mock.patch.object(transfer, '_run_qemu_img',
                                  return_value='{"virtual-size": 1024}'),
                mock.patch.object(transfer, 'convert'),
                mock.patch.object(lease, 'get_directory',
                                  return_value=directory),
                mock.patch.object(imagebackend.disk, 'get_disk_size',
                                  return_value=1024)):
            patches.enter_context(patcher)
        host = sheepdog_host.SheepdogHost(None)
        patches.enter_context(
            mock.patch.object(imagebackend.Sheepdog, 'host', host))
        host.get_capacity()
        targets.check()
        base = _Template(host.images, path)
        base.provide()
        base.is_complete()
        for name in names:
            image = imagebackend.Sheepdog(instance, name)
            image.exists()
            image.import_file(instance, path, name)
            image.resize_image(2048)
            image.snapshot_extract(path, 'raw')
            export = {get_iqn(image.vdi): image.vdi}
            host.targets.export(export)
            host.targets.reload(export)
            host.unexport_disks(instance)
            libvirt_utils.remove_sheepdog_vdi(image.vdi)
            base.clone(image.vdi, 1024)
        host.images.delete_unused()
        kept = disks.Disks(instance, block_device_info={})
        kept.names = list(names)
        for end in kept.forget, kept.restore, kept.delete:
            kept.keep()
            end()
        scratch = libvirt_utils.get_sheepdog_vdi(instance.uuid, 'scratch')
        libvirt_utils.create_sheepdog_vdi(scratch, 1024)
        libvirt_utils.snapshot_sheepdog_vdi(scratch, images.SNAPSHOT_TAG)
        base = images.Base(host.images, uuids.image, ['another'])
        with host.images.leases.take(base.key) as held:
            base.publish(held, scratch, images.SNAPSHOT_TAG, 1024,
                         lambda: True)
        images.remove_scratch(scratch)
    return list(cluster.calls)
