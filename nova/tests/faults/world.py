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

"""A cluster, two compute hosts, a server, and a server of somebody else."""

import contextlib
import copy
import os
import shutil
import threading
import types
from unittest import mock

import fixtures
from oslo_concurrency import processutils
from oslo_utils import units
import tenacity

import nova.conf
from nova import exception
from nova import objects
from nova.tests.fixtures import sheepdog
from nova.tests.fixtures.sheepdog import tgt
from nova.tests.unit.virt.libvirt.sheepdog import fake_libvirt
from nova.virt.disk import api as disk_api
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import imagebackend
from nova.virt.libvirt.sheepdog import disks
from nova.virt.libvirt.sheepdog import host as sheepdog_host
from nova.virt.libvirt.sheepdog import images
from nova.virt.libvirt.sheepdog import lease
from nova.virt.libvirt.sheepdog import rootwrap
from nova.virt.libvirt.sheepdog import targets
from nova.virt.libvirt.sheepdog import transfer
from nova.virt.libvirt import utils as libvirt_utils

CONF = nova.conf.CONF

HOSTS = 'one', 'two'
# images_sheepdog_timeout
TIMEOUT = 20
LENGTH = 64
# What a target of cinder-volume has for a number, and one with a number of
# Nova's range that is not Nova's.
FOREIGN_TARGETS = {7: 'iqn.2010-10.org.openstack:volume-7',
                   targets.FIRST_NUMBER + 7: 'iqn.2010-10.org.example:seven'}


class Dead(BaseException):
    """nova-compute has been killed; nothing of it goes on."""


class Wrong(Exception):
    """What must never be; the text says what it is."""


class Clock:
    """Stands for Python's module time. Only sleep() lets time pass."""

    def __init__(self):
        self.now = 1.6e9

    def time(self):
        return self.now

    monotonic = time

    def sleep(self, seconds):
        self.now += seconds


class _Inline:
    """Stands for a ThreadPoolExecutor, and does all in the same order."""

    def __init__(self, *_args):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_exc_info):
        pass

    def shutdown(self, wait=True):
        pass

    def submit(self, function, *args):
        result = error = None
        try:
            result = function(*args)
        except Exception as e:
            error = e

        def get():
            if error:
                raise error
            return result
        return types.SimpleNamespace(result=get)


class Host:
    """A compute host.

    :ivar guests: dict of UUID to the XML of the guests that run
    :ivar domains: dict of UUID to the domain of a guest that arrives
    """

    def __init__(self, world, name):
        self.name = name
        self.guests = {}
        self.domains = {}
        self.tgtd = tgt.Tgtd(world.cluster._connect,
                             world.cluster._flock.counters,
                             world.cluster._flock.faults)
        for number, iqn in FOREIGN_TARGETS.items():
            self.tgtd.targets[number] = tgt.Target(number, iqn)
        self.libvirt = mock.Mock()
        self.libvirt.get_guest = self._get_guest
        self.libvirt.list_guests = lambda **_how: [
            self._get_guest(types.SimpleNamespace(uuid=uuid))
            for uuid in self.guests]
        self.backend = None

    def copy(self, host):
        """Become a copy of a host of another World."""
        self.guests.update(host.guests)
        self.backend.targets.wanted.update(host.backend.targets.wanted)
        self.backend.images.noted.update(host.backend.images.noted)
        for number, target in host.tgtd.targets.items():
            self.tgtd.targets[number] = copied = copy.copy(target)
            copied.units = {lun: copy.copy(unit)
                            for lun, unit in target.units.items()}
            for unit in copied.units.values():
                unit._connect = self.tgtd._connect

    def _get_guest(self, instance):
        if instance.uuid not in self.guests:
            raise exception.InstanceNotFound(instance_id=instance.uuid)
        config = vconfig.LibvirtConfigGuest()
        config.parse_str(self.guests[instance.uuid])
        return types.SimpleNamespace(
            uuid=instance.uuid, get_config=lambda: config,
            _domain=self.domains.get(instance.uuid))


class World:
    """All that a case has.

    :ivar clock: its Clock
    :ivar cluster: a sheepdog.ModelFixture
    :ivar calls: the commands that were run since begin()
    """

    # The one that a call belongs to.
    current = None

    def __init__(self, pattern=None):
        """:param pattern: the World that it becomes a copy of"""
        World.current = self
        self.clock = Clock()
        self._stack = contextlib.ExitStack()
        self.cluster = self._stack.enter_context(
            sheepdog.ModelFixture(**({'copies': None} if pattern else {})))
        self.directory = self._stack.enter_context(fixtures.TempDir()).path
        self.is_dead = False
        self.glance = {}
        self.instances = {}
        self.migrations = []
        if pattern:
            for old, new in ((pattern.directory, self.directory),
                             (pattern.cluster._directory,
                              self.cluster._directory)):
                shutil.copytree(old, new, dirs_exist_ok=True)
            self.cluster.restart()
            self.clock.now = pattern.clock.now
            self.glance.update(pattern.glance)
            self.instances = copy.deepcopy(pattern.instances)
            self.migrations = copy.deepcopy(pattern.migrations)
        self.begin()
        self.hosts = {name: Host(self, name) for name in HOSTS}
        for name, host in self.hosts.items():
            self.start(name)
            if pattern:
                host.copy(pattern.hosts[name])
        self.go_to(pattern.host.name if pattern else HOSTS[0])

    def close(self):
        self._stack.close()

    # Hosts

    def go_to(self, name):
        """Be the nova-compute of a host."""
        self.host = self.hosts[name]
        self.cluster.tgtd = self.host.tgtd
        CONF.set_override('host', name)
        CONF.set_override('instances_path',
                          os.path.join(self.directory, name))
        os.makedirs(CONF.instances_path, exist_ok=True)
        imagebackend.Sheepdog.host = self.host.backend
        return self.host.backend

    def start(self, name):
        """Start the nova-compute of a host, maybe anew."""
        self.is_dead = False
        self.go_to(name)
        backend = sheepdog_host.SheepdogHost(self.host.libvirt)
        self.host.backend = imagebackend.Sheepdog.host = backend
        backend.images.clean_up()
        backend._remember_guests()

    def die(self):
        self.is_dead = True
        raise Dead()

    def check_alive(self):
        if self.is_dead:
            raise Dead()

    # Commands

    def begin(self, ways=(), lasting=None):
        """Count calls from now on.

        :param ways: dict of number of a call to what goes wrong with it
        :param lasting: number and way of the first call with which that
            goes wrong, as with all that follow
        """
        self.calls = []
        self._ways = dict(ways)
        self._lasting = lasting

    def call(self, command, run):
        """Run a command, or let it go wrong.

        :param run: function that runs it
        :returns: exit status, standard output, standard error
        """
        self.check_alive()
        number = len(self.calls)
        self.calls.append(command)
        way = self._ways.get(number)
        if way is None and self._lasting and number >= self._lasting[0]:
            way = self._lasting[1]
        return way(self, command, run) if way else run()

    def execute(self, command, data):
        status, out, err = self.call(command, lambda: self.cluster.execute(
            *command, stdin=(data or '').encode()))
        out, err = os.fsdecode(out), os.fsdecode(err)
        if status:
            raise processutils.ProcessExecutionError(
                stdout=out, stderr=err, exit_code=status,
                cmd=' '.join(command))
        return out, err

    # What stands for qemu-img

    def _get_vdi(self, options):
        """Return what VDI a target is of that qemu-img is told to use."""
        values = dict(part.split('=', 1) for part in options.split(','))
        iqn = values['file.target']
        for target in self.host.tgtd.targets.values():
            if target.iqn == iqn:
                return target.units[1].path.rpartition(':')[2]
        raise Wrong('qemu-img has no target %s' % iqn)

    def convert(self, source, target, size, progress):
        def run():
            if 'iscsi' in target:
                path = source.partition('file.filename=')[2]
                with open(path, 'rb') as file:
                    self.write(self._get_vdi(target), file.read(LENGTH))
            else:
                path = target.partition('file.file.filename=')[2].partition(
                    ',')[0]
                with open(path, 'r+b') as file:
                    file.write(self.read(self._get_vdi(source)))
            return 0, b'', b''
        status, _out, err = self.call(('qemu-img', 'convert'), run)
        if status:
            transfer._fail(rootwrap.explain(
                processutils.ProcessExecutionError(
                    stderr=os.fsdecode(err), exit_code=status),
                status == 124))

    def run_qemu_img(self, operation, *arguments):
        if operation == 'info':
            vdi = self._get_vdi(arguments[-1])
            return '{"virtual-size": %d}' % self.get_size(vdi)
        assert operation == 'create'
        with open(arguments[-2], 'wb') as file:
            file.truncate(units.Mi)
        return ''

    # What is in the cluster, past all faults

    def dog(self, *arguments, stdin=b''):
        status, out, err = self.cluster.run(*arguments, stdin=stdin)
        if status or err:
            raise Wrong('%s: %s' % (' '.join(arguments), err.decode()))
        return out

    def write(self, vdi, data):
        self.dog('vdi', 'write', vdi, '0', str(LENGTH),
                 stdin=data.ljust(LENGTH, b'\0'))

    def read(self, vdi):
        return self.dog('vdi', 'read', vdi, '0', str(LENGTH)).rstrip(b'\0')

    def get_size(self, vdi):
        return next(each['size'] for each in self.cluster.vdis()
                    if each['name'] == vdi and not each['snapshot'])

    def list(self):
        """Return (name, tag) of all VDIs, the tag '' of a working one."""
        return {(vdi['name'], vdi['tag'] if vdi['snapshot'] else '')
                for vdi in self.cluster.vdis()}

    # Glance and the database

    def get_image(self, _context, image_id):
        return {'id': image_id, 'status': 'active', 'size': units.Mi,
                'checksum': image_id, 'disk_format': 'raw',
                'properties': {}}

    def fetch_image(self, _context, target, image_id, _certs=None):
        with open(target, 'wb') as file:
            file.write(self.glance[image_id])
            file.truncate(8 * units.Mi)

    def fetch(self, context, target, image_id, trusted_certs=None):
        self.fetch_image(context, target, image_id)

    def get_instance(self, _context, instance_uuid, **_kwargs):
        try:
            return self.instances[instance_uuid]
        except KeyError:
            raise exception.InstanceNotFound(instance_id=instance_uuid)


def _current(name):
    """Return a function that calls that method of the current World."""
    return lambda *args, **kwargs: getattr(
        World.current, name)(*args, **kwargs)


def _unless_dead(function):
    def call(*args, **kwargs):
        World.current.check_alive()
        return function(*args, **kwargs)
    return call


class _InlineThread:
    """Stands for a thread that is to end before anything else begins."""

    def __init__(self, target, args=(), daemon=None):
        self._target = target
        self._args = args

    def start(self):
        try:
            self._target(*self._args)
        except exception.NovaException:
            # It would end up in the log.
            pass

    def join(self):
        pass


class _NoThread(_InlineThread):
    """Stands for a thread for which time is too short."""

    def start(self):
        pass


class Stubs(fixtures.Fixture):
    """Puts the current World in the place of all that is outside."""

    def _setUp(self):
        def patch(target, name, value):
            self.useFixture(fixtures.MockPatchObject(target, name, value))

        class Time:
            def __getattr__(self, name):
                return getattr(World.current.clock, name)

        for module in (disks, images, rootwrap):
            if hasattr(module, 'futures'):
                patch(module, 'futures', types.SimpleNamespace(
                    ThreadPoolExecutor=_Inline))
        for module in images, lease, rootwrap, sheepdog_host, transfer:
            patch(module, 'time', Time())
        for module, thread in ((images, _InlineThread), (lease, _NoThread)):
            patch(module, 'threading', types.SimpleNamespace(
                Thread=thread, Event=threading.Event, Lock=threading.Lock))
        patch(tenacity.nap.time, 'sleep', lambda seconds:
              World.current.clock.sleep(seconds))
        patch(rootwrap.Runner, '_execute', lambda _self, command, data:
              World.current.execute(command, data))
        runner = rootwrap.Runner(1, 'sudo')
        patch(rootwrap, 'get_runner', lambda: runner)
        patch(transfer, 'convert', _current('convert'))
        patch(transfer, '_run_qemu_img', _current('run_qemu_img'))
        # The kernel takes connections for a process that is stopped.
        patch(targets, 'socket', mock.Mock())
        patch(targets, 'get_tgtd_start', lambda: 1)
        patch(images, 'IMAGE_API', types.SimpleNamespace(
            get=_current('get_image')))
        patch(images.Images, '_passes', lambda *_args: True)
        patch(libvirt_utils, 'fetch_image', _current('fetch_image'))
        patch(disk_api, 'get_disk_size', os.path.getsize)
        # What is done to files is not done any more by who is dead.
        for module in lease, images:
            patch(module, 'os', types.SimpleNamespace(**{
                **vars(os), 'unlink': _unless_dead(os.unlink)}))
        patch(images.fileutils, 'delete_if_exists',
              _unless_dead(images.fileutils.delete_if_exists))
        patch(objects.Instance, 'get_by_uuid', _current('get_instance'))
        patch(objects.Instance, 'save', lambda _instance: None)
        patch(objects.InstanceList, 'get_uuids_by_host', lambda *_args: [
            uuid for uuid, instance in World.current.instances.items()
            if instance.host == CONF.host])
        patch(objects.BlockDeviceMappingList, 'get_by_instance_uuid',
              lambda *_args: [{'source_type': 'blank',
                               'destination_type': 'local',
                               'guest_format': None}])
        patch(objects.MigrationList, 'get_by_filters',
              lambda *_args: World.current.migrations)
        patch(objects.Migration, 'get_by_instance_and_status',
              lambda *_args: World.current.migrations[-1])
        patch(objects.Service, 'get_by_compute_host', lambda *_args:
              types.SimpleNamespace(forced_down=False))
        patch(libvirt_guest, 'libvirt', fake_libvirt.LIBVIRT)
        patch(objects.ComputeNodeList, 'get_all_by_host', lambda *_args: [
            types.SimpleNamespace(stats={'images_type': 'sheepdog'})])
        for name, value in (
                ('images_type', 'sheepdog'),
                ('images_sheepdog_host', '127.0.0.1'),
                ('images_sheepdog_transport', 'iscsi'),
                ('images_sheepdog_timeout', TIMEOUT)):
            CONF.set_override(name, value, 'libvirt')
        CONF.set_override('virt_type', 'qemu', 'libvirt')
