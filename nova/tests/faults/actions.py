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

"""What the driver and the compute manager do with the backend.

An action has ``prepare``, which takes place without faults, and ``act``. Both
are functions of a Server. When act fails, Server.times says which data the
disks may have.
"""

import contextlib
import copy
import os
import shutil
import types

from oslo_utils import units
from oslo_utils import uuidutils

from nova.compute import task_states
from nova.compute import vm_states
import nova.conf
from nova import exception
from nova import objects
from nova.tests.faults import world as worlds
from nova.tests.unit.virt.libvirt.sheepdog import fake_libvirt
from nova.virt.libvirt import imagebackend
from nova.virt.libvirt import utils as libvirt_utils

CONF = nova.conf.CONF

NAMES = 'disk', 'disk.eph0', 'disk.swap', 'disk.config'
RESCUE_NAMES = 'disk.rescue', 'disk', 'disk.config.rescue'
DEVICES = {name: {'bus': 'virtio', 'dev': 'vd' + letter, 'type': 'disk'}
           for name, letter in zip(NAMES + RESCUE_NAMES, 'abcdefg')}
BLOCK_DEVICE_INFO = {
    'root_device_name': '/dev/vda', 'swap': None, 'block_device_mapping': [],
    'ephemerals': [{'size': 1, 'device_name': '/dev/vdb'}]}
CONTEXT = types.SimpleNamespace(
    elevated=lambda **_how: CONTEXT)


class Server:
    """A server with four disks.

    :ivar instance: the nova.objects.instance.Instance
    :ivar times: list of what the disks may hold, a dict of their names to
        data each
    :ivar shelved: id of the image that a shelve has made of it
    :ivar made: id of an image that the user has made of it
    """

    def __init__(self, world, image_id):
        self.world = world
        self.instance = objects.Instance(
            id=1, uuid=uuidutils.generate_uuid(), host=worlds.HOSTS[0],
            vm_state=vm_states.BUILDING, task_state=None,
            image_ref=image_id, os_type=None, deleted=False,
            system_metadata={},
            flavor=objects.Flavor(root_gb=1, ephemeral_gb=1, swap=64))
        world.instances[self.instance.uuid] = self.instance
        self.clock = 0
        self.times = [self.get_fresh(image_id)]
        self.shelved = self.made = None

    def copy(self, world):
        """Return the same server in a copy of its World."""
        copied = copy.copy(self)
        copied.world = world
        copied.instance = world.instances[self.instance.uuid]
        copied.times = copy.deepcopy(self.times)
        return copied

    @property
    def backend(self):
        return self.world.host.backend

    def vdi(self, name):
        return libvirt_utils.get_sheepdog_vdi(self.instance.uuid, name)

    def get_fresh(self, image_id):
        """What the disks hold that are made of an image."""
        return {'disk': self.world.glance[image_id],
                'disk.eph0': b'empty file system', 'disk.swap': b'swap',
                'disk.config': b'config drive'}

    def set_state(self, vm_state, task_state=None, host=None):
        self.instance.vm_state = vm_state
        self.instance.task_state = task_state
        if host:
            self.instance.host = host

    # The driver

    def _image(self, name):
        return imagebackend.Sheepdog(self.instance, name,
                                     disk_info_mapping=DEVICES[name])

    def create_image(self, image_id=None, suffix=''):
        """Do what _create_image() and _create_configdrive() do."""
        directory = os.path.join(CONF.instances_path, self.instance.uuid)
        os.makedirs(directory, exist_ok=True)
        root = self._image('disk' + suffix)
        created = not root.exists()
        root.cache(
            fetch_func=self.world.fetch, context=CONTEXT,
            filename='root', image_id=image_id or self.instance.image_ref,
            size=None if suffix else self.instance.flavor.root_gb * units.Gi,
            trusted_certs=None)
        if not suffix:
            self._image('disk.eph0').cache(
                fetch_func=make_template(b'empty file system'),
                context=CONTEXT, filename='ephemeral_1_default',
                size=units.Gi, ephemeral_size=1, specified_fs=None)
            self._image('disk.swap').cache(
                fetch_func=make_template(b'swap'), context=CONTEXT,
                filename='swap_64', size=64 * units.Mi, swap_mb=64)
        config = self._image('disk.config' + suffix)
        if not config.exists():
            path = os.path.join(directory, 'disk.config')
            with open(path, 'wb') as file:
                file.write(b'config drive')
                file.truncate(units.Mi)
            config.import_file(self.instance, path, 'disk.config' + suffix)
            os.unlink(path)
        return created

    def get_xml(self, names=NAMES):
        guest = worlds.vconfig.LibvirtConfigGuest()
        guest.virt_type = 'qemu'
        guest.uuid = self.instance.uuid
        for name in names:
            guest.add_device(self._image(name).libvirt_info('none', {}))
        return guest.to_xml()

    def start_guest(self, names=NAMES):
        """Do what _create_guest() does, and have the guest read its disks."""
        xml = self.get_xml(names)
        self.backend.prepare_guest(self.instance, xml)
        self.world.host.guests[self.instance.uuid] = xml
        self.check_guest(names, starts=True)

    def check_guest(self, names=NAMES, starts=False):
        """See what the guest reads.

        :param starts: whether its targets have to be fresh; tgtd follows by
            itself when a VDI that is in use becomes a snapshot
        :raises: worlds.Wrong if that must not be
        """
        targets = {target.iqn: target for target in
                   self.world.host.tgtd.targets.values()}
        found = {}
        for name in names:
            vdi = self.vdi(name)
            target = targets.get(libvirt_utils.get_sheepdog_iqn(vdi))
            if target is None or 1 not in target.units:
                raise worlds.Wrong('a guest runs without a target of %s' % vdi)
            unit = target.units[1]
            if unit.path.rpartition(':')[2] != vdi or not target.initiators:
                raise worlds.Wrong('%s has a wrong target' % vdi)
            vids = [each['vid'] for each in self.world.cluster.vdis()
                    if each['name'] == vdi and not each['snapshot']]
            if starts and [int(vid, 16) for vid in vids] != [unit.vid]:
                raise worlds.Wrong('%s is not what its target serves' % vdi)
            if unit.size != self.world.get_size(vdi):
                raise worlds.Wrong('%s has a target of another size' % vdi)
            found[name] = self.world.read(vdi)
        for time in self.times:
            if all(time.get(name, found[name]) == found[name]
                   for name in names):
                if names == NAMES:
                    self.times = [time]
                return
        raise worlds.Wrong('a guest runs on %s and may run on %s' % (
            found, ' or '.join(map(str, self.times))))

    def change(self):
        """Have the guest write to its disks."""
        self.clock += 1
        time = dict(self.times[0])
        for name in 'disk', 'disk.eph0':
            time[name] = b'%s of time %d' % (name.encode(), self.clock)
            self.world.write(self.vdi(name), time[name])
        self.times = [time]

    def stop_guest(self):
        self.world.host.guests.pop(self.instance.uuid, None)
        self.world.host.domains.pop(self.instance.uuid, None)

    def destroy(self, disks=True):
        """Do what destroy() does, with _cleanup()."""
        self.stop_guest()
        self.backend.unexport_disks(self.instance, ignore_errors=not disks)
        if disks:
            self.backend.delete_disks(self.instance, BLOCK_DEVICE_INFO)
            shutil.rmtree(os.path.join(CONF.instances_path,
                                       self.instance.uuid),
                          ignore_errors=True)

    def spawn(self):
        created = self.backend.check_spawn(self.instance, self.create_image())
        try:
            self.start_guest()
        except exception.NovaException:
            # _create_guest_with_network()
            with contextlib.suppress(exception.NovaException):
                self.destroy(created)
            raise


def make_template(data):
    def make(target, **_kwargs):
        with open(target, 'wb') as file:
            file.write(data)
            file.truncate(units.Mi)
    return make


# Build

def build(server):
    server.set_state(vm_states.BUILDING, task_states.SPAWNING,
                     server.world.host.name)
    server.times = [server.get_fresh(server.instance.image_ref)]
    try:
        server.spawn()
    except exception.NovaException:
        # _shutdown_instance()
        with contextlib.suppress(exception.NovaException):
            server.destroy()
        raise
    server.set_state(vm_states.ACTIVE)


def build_elsewhere(server):
    server.world.go_to(worlds.HOSTS[1])
    build(server)


def have_base(server):
    """Have the base images that another server has made."""
    boot_other(server.world, server.instance.image_ref)


def boot_other(world, image_id):
    """Boot another server from an image, and delete it.

    :raises: worlds.Wrong if its disk is another one than the image
    """
    other = Server(world, image_id)
    build(other)
    other.destroy()
    del world.instances[other.instance.uuid]


def have_server(server):
    build(server)
    server.change()


# Delete and reboot

def delete(server):
    # Without a host it is but deleted from the database.
    if server.instance.host:
        server.world.go_to(server.instance.host)
        server.instance.task_state = task_states.DELETING
        server.destroy()
    server.instance.deleted = True


def hard_reboot(server):
    server.world.go_to(server.instance.host)
    server.instance.task_state = task_states.REBOOT_STARTED_HARD
    server.backend.check_not_elsewhere(server.instance)
    server.destroy(disks=False)
    if server.backend.may_lack_disks(server.instance, BLOCK_DEVICE_INFO):
        server.create_image()
    server.start_guest()
    server.set_state(vm_states.ACTIVE)


# Images

def snapshot(server, image_id=None):
    image_id = image_id or uuidutils.generate_uuid()
    directory = os.path.join(CONF.instances_path, 'snapshots')
    with worlds.fixtures.TempDir(rootdir=os.path.dirname(
            CONF.instances_path)) as temporary:
        directory = temporary.path
        path = os.path.join(directory, 'image')
        try:
            with server.backend.snapshot(CONTEXT, server.instance, image_id,
                                         directory):
                server._image('disk').snapshot_extract(path, 'raw')
                with open(path, 'rb') as file:
                    found = file.read(worlds.LENGTH).rstrip(b'\0')
                server.world.glance[image_id] = found
        except exception.NovaException:
            server.world.glance.pop(image_id, None)
            raise
    if found not in [time['disk'] for time in server.times]:
        raise worlds.Wrong('an image holds %s' % found)
    return image_id


def create_image(server):
    server.instance.task_state = task_states.IMAGE_SNAPSHOT
    server.made = snapshot(server)
    server.instance.task_state = None
    if server.instance.uuid in server.world.host.guests:
        server.check_guest()


# Resize and cold migration

def _resize(server, host, flavor):
    world = server.world
    source = server.instance.host
    world.go_to(host)
    server.backend.check_cold_migration(server.instance)
    world.go_to(source)
    server.instance.task_state = task_states.RESIZE_MIGRATING
    world.migrations.append(types.SimpleNamespace(
        id=len(world.migrations), dest_compute=host, status='migrating'))
    server.old_flavor = server.instance.flavor
    server.source = source
    server.backend.check_resize(server.instance, flavor)
    server.stop_guest()
    server.backend.keep_disks(server.instance, BLOCK_DEVICE_INFO)
    world.go_to(host)
    server.set_state(server.instance.vm_state, task_states.RESIZE_FINISH,
                     host)
    server.instance.flavor = flavor
    server.before = server.times
    # Swap holds nothing, and is made anew.
    server.times = server.times + [dict(time, **{'disk.swap': b''})
                                   for time in server.times]
    server.backend.prepare_resized(server.instance, BLOCK_DEVICE_INFO,
                                   dict.fromkeys(NAMES))
    server.create_image()
    server.times = server.before
    server.start_guest()
    server.set_state(vm_states.RESIZED)


LARGER = objects.Flavor(root_gb=2, ephemeral_gb=1, swap=64)


def resize(server):
    _resize(server, worlds.HOSTS[0], LARGER)


def migrate(server):
    _resize(server, worlds.HOSTS[1], server.instance.flavor)


def have_resized(server):
    have_server(server)
    resize(server)
    server.change()


def have_migrated(server):
    have_server(server)
    migrate(server)
    server.change()


def confirm(server):
    server.world.go_to(server.source)
    server.backend.forget_disks(server.instance)
    server.set_state(vm_states.ACTIVE)


def revert(server):
    world = server.world
    server.instance.task_state = task_states.RESIZE_REVERTING
    if server.instance.host != server.source:
        world.go_to(server.instance.host)
    server.destroy(disks=False)
    world.go_to(server.source)
    server.instance.host = server.source
    server.instance.flavor = server.old_flavor
    after = server.times
    server.times = server.before + after
    server.backend.restore_disks(server.instance, BLOCK_DEVICE_INFO,
                                 objects.Migration(cross_cell_move=False))
    server.times = server.before
    server.start_guest()
    server.set_state(vm_states.ACTIVE)


# Rescue

def rescue(server):
    image_id = uuidutils.generate_uuid()
    server.world.glance[image_id] = b'rescue ' + image_id.encode()
    server.instance.task_state = task_states.RESCUING
    server.stop_guest()
    for time in server.times:
        time['disk.rescue'] = server.world.glance[image_id]
        time['disk.config.rescue'] = b'config drive'
    server.create_image(image_id, '.rescue')
    server.destroy(disks=False)
    try:
        server.start_guest(RESCUE_NAMES)
    except exception.NovaException:
        with contextlib.suppress(exception.NovaException):
            server.destroy(disks=False)
        raise
    server.set_state(vm_states.RESCUED)


def have_rescued(server):
    have_server(server)
    rescue(server)


def unrescue(server):
    server.instance.task_state = task_states.UNRESCUING
    server.stop_guest()
    server.start_guest()
    server.backend.delete_rescue_disks(server.instance)
    server.set_state(vm_states.ACTIVE)


# Rebuild and evacuate

def rebuild(server):
    image_id = uuidutils.generate_uuid()
    server.world.glance[image_id] = b'new ' + image_id.encode()
    server.times = server.times + [server.get_fresh(image_id)]
    server.instance.image_ref = image_id
    server.instance.task_state = task_states.REBUILDING
    server.destroy()
    server.instance.task_state = task_states.REBUILD_SPAWNING
    server.times = server.times[-1:]
    server.spawn()
    server.set_state(vm_states.ACTIVE)


def have_dead_host(server):
    """Have a server whose host is down, with all that it has there."""
    have_server(server)
    host = server.world.host
    server.stop_guest()
    for number, target in list(host.tgtd.targets.items()):
        if server.instance.uuid in target.iqn:
            del host.tgtd.targets[number]
    server.world.go_to(worlds.HOSTS[1])


def evacuate(server):
    server.world.go_to(worlds.HOSTS[1])
    server.instance.task_state = task_states.REBUILD_SPAWNING
    server.spawn()
    server.set_state(vm_states.ACTIVE, None, worlds.HOSTS[1])


# Shelve

def shelve(server):
    if not server.shelved:
        server.instance.task_state = task_states.SHELVING
        server.stop_guest()
        server.shelved = snapshot(server)
        server.times = [dict(
            server.get_fresh(server.instance.image_ref),
            disk=server.world.glance[server.shelved])] + server.times
    server.instance.task_state = task_states.SHELVING_OFFLOADING
    server.destroy()
    server.set_state(vm_states.SHELVED_OFFLOADED)
    server.instance.host = None
    server.times = server.times[:1]


def have_shelved(server):
    have_server(server)
    shelve(server)


def unshelve(server):
    server.world.go_to(worlds.HOSTS[1])
    server.set_state(vm_states.SHELVED_OFFLOADED, task_states.SPAWNING,
                     worlds.HOSTS[1])
    image_ref = server.instance.image_ref
    server.instance.image_ref = server.shelved
    try:
        server.spawn()
    except (exception.NovaException, worlds.Dead):
        server.instance.image_ref = image_ref
        server.set_state(vm_states.SHELVED_OFFLOADED)
        server.instance.host = None
        raise
    server.instance.image_ref = image_ref
    server.set_state(vm_states.ACTIVE)


# Live migration

def live_migrate(server):
    world = server.world
    instance = server.instance
    source, destination = worlds.HOSTS
    if instance.uuid in world.hosts[destination].domains:
        return receive(server)
    world.migrations.append(types.SimpleNamespace(
        id=len(world.migrations), dest_compute=destination,
        status='running'))
    instance.task_state = task_states.MIGRATING
    xml = world.hosts[source].guests[instance.uuid]
    data = types.SimpleNamespace(image_type='sheepdog', block_migration=False)
    try:
        world.go_to(destination)
        server.backend.check_destination(instance, False, False)
        world.go_to(source)
        server.backend.check_source(instance, data)
        world.go_to(destination)
        server.backend.expect_guest(instance, BLOCK_DEVICE_INFO, data)
        world.go_to(source)
        _flags, xml = server.backend.adapt_migration(
            instance, fake_libvirt.LIBVIRT.VIR_MIGRATE_LIVE, xml)
    except exception.NovaException:
        # rollback_live_migration_at_destination()
        world.go_to(destination)
        server.backend.unexport_disks(instance)
        world.go_to(source)
        raise
    # The guest writes when the destination has opened its disks, and comes.
    server.change()
    for target in world.hosts[destination].tgtd.targets.values():
        if instance.uuid in target.iqn:
            target.units[1].size = -1
    del world.hosts[source].guests[instance.uuid]
    world.hosts[destination].guests[instance.uuid] = xml
    world.hosts[destination].domains[instance.uuid] = domain = (
        fake_libvirt.make_domain(xml=xml))
    domain.UUIDString.return_value = instance.uuid

    def resume():
        server.check_guest(starts=True)
        domain.state.return_value = [fake_libvirt.LIBVIRT.VIR_DOMAIN_RUNNING,
                                     0]
    domain.resume.side_effect = resume
    receive(server)


def receive(server):
    """Have the guest go on at the destination, and the source forget it."""
    source, destination = worlds.HOSTS
    server.world.go_to(destination)
    server.backend._try_to_receive(
        server.world.host.domains[server.instance.uuid])
    # post_live_migration_at_destination()
    server.backend.end_arrival(server.instance)
    server.set_state(vm_states.ACTIVE, None, destination)
    server.world.go_to(source)
    server.backend.unexport_disks(server.instance)
    server.world.migrations[-1].status = 'completed'
    server.world.go_to(destination)


# Image cache

def have_garbage(server):
    """Have a base image that nobody has used for long."""
    have_server(server)
    server.world.clock.sleep(2 * 86400)


def image_cache(server):
    cache_pass(server.world)


def cache_pass(world):
    """Do what the periodic tasks of one host do."""
    directory = CONF.instances_path
    os.makedirs(directory, exist_ok=True)
    for uuid in list(world.host.guests):
        # _cleanup_running_deleted_instances()
        if world.instances[uuid].deleted:
            del world.host.guests[uuid]
            world.host.domains.pop(uuid, None)
            world.host.backend.unexport_disks(world.instances[uuid])
    for instance in world.host.backend.manage_image_cache(
            CONTEXT, [instance for instance in world.instances.values()
                      if not instance.deleted]):
        if world.host.backend.delete_disks_of_deleted(instance):
            shutil.rmtree(os.path.join(directory, instance.uuid),
                          ignore_errors=True)
    world.host.backend.targets.find_missing()


# name: prepare, act, and what may be done after it has failed
ACTIONS = {
    'first-build': (None, build, (build_elsewhere, delete)),
    'build': (have_base, build, (build_elsewhere, delete)),
    'delete': (have_server, delete, (delete, hard_reboot)),
    'snapshot': (have_server, create_image, (create_image, hard_reboot)),
    'resize': (have_server, resize, (resize, hard_reboot, delete)),
    'migrate': (have_server, migrate, (migrate, hard_reboot, delete)),
    'confirm': (have_resized, confirm, (confirm, hard_reboot)),
    'confirm-migration': (have_migrated, confirm, (confirm, hard_reboot)),
    'revert': (have_resized, revert, (revert, hard_reboot, delete)),
    'revert-migration': (have_migrated, revert, (revert, hard_reboot)),
    'rescue': (have_server, rescue, (rescue, hard_reboot, delete)),
    'unrescue': (have_rescued, unrescue, (unrescue, rescue, hard_reboot)),
    'rebuild': (have_server, rebuild, (rebuild, hard_reboot, delete)),
    'evacuate': (have_dead_host, evacuate, (evacuate, delete)),
    'shelve': (have_server, shelve, (shelve, hard_reboot, delete)),
    'unshelve': (have_shelved, unshelve, (unshelve, delete)),
    'live-migrate': (have_server, live_migrate, (live_migrate, hard_reboot,
                                                 delete)),
    'hard-reboot': (have_server, hard_reboot, (hard_reboot, delete)),
    'image-cache': (have_garbage, image_cache, (image_cache, hard_reboot)),
}
PAIRED = ('delete', 'revert', 'unshelve', 'rebuild', 'snapshot', 'migrate')
