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

"""What the libvirt driver holds for a backend that needs its help.

The driver calls the methods of Host at certain moments. On a host whose disks
are not on Sheepdog they do nothing.
"""

import contextlib
import os
import socket
import threading
import time

from oslo_concurrency import lockutils
from oslo_log import log as logging
from oslo_utils import netutils
from oslo_utils import units
from oslo_utils import uuidutils
import tenacity

from nova.compute import task_states
from nova.compute import vm_states
import nova.conf
from nova import context as nova_context
from nova import exception
from nova.i18n import _
from nova import objects
from nova.virt import hardware
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt.sheepdog import disks
from nova.virt.libvirt.sheepdog import images
from nova.virt.libvirt.sheepdog import migration
from nova.virt.libvirt.sheepdog import rootwrap
from nova.virt.libvirt.sheepdog import targets
from nova.virt.libvirt.sheepdog import transfer
from nova.virt.libvirt import utils as libvirt_utils

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)

# Bytes, copies included, that a cluster has to have left for a snapshot.
ROOM = 256 * units.Mi
# Seconds for which the space of the cluster is remembered, and the bytes that
# are not filled meanwhile.
SPACE_LIFE = 300
MUCH_ROOM = 64 * units.Gi
# Seconds for which nova-compute waits for the gateway and tgtd when it starts,
# and between two attempts.
START_LIMIT = 120
START_INTERVAL = 5
# Seconds between two looks of the watcher: at guests that may have arrived,
# at these while one is on its way, and at the targets of running guests.
LOOK = 2
LOOK_AT_ARRIVALS = 0.05
LOOK_AT_TARGETS = 5
# Seconds after the preparation of a live migration in which it should begin.
ARRIVAL_DELAY = 60


def make_host(libvirt_host):
    """Make the object that the driver holds.

    :param libvirt_host: the nova.virt.libvirt.host.Host
    :returns: a Host
    """
    if CONF.libvirt.images_type == 'sheepdog':
        return SheepdogHost(libvirt_host)
    return Host()


class Host:
    """A compute host whose disks are not on Sheepdog."""

    caches_images = False

    def init_host(self):
        """Check and prepare this host, as nova-compute starts."""

    def stop(self):
        """Stop what runs, as nova-compute ends."""

    def get_capacity(self):
        """Return 'total', 'free' and 'used' of the storage, in bytes."""

    def describe(self, resources):
        """Tell other hosts by this host's resources where its disks are."""

    def prepare_guest(self, instance, xml):
        """Have the disks ready of a guest that is about to start."""

    def check_not_elsewhere(self, instance):
        """Refuse to start a guest that may run on another host."""

    def may_lack_disks(self, instance, block_device_info):
        """Tell whether a resize that failed may not have made all disks."""
        return False

    def check_spawn(self, instance, created_disks):
        """Return whether a spawn that fails may delete the disks."""
        return created_disks

    def has_left(self, instance):
        """Tell whether the directory of an instance here is of no use."""
        return False

    def is_clean(self, disks_are_deleted):
        """Tell whether an instance whose files are deleted has left nothing.
        """
        return True

    def unexport_disks(self, instance, ignore_errors=True):
        """Remove the targets of an instance from this host."""

    def delete_disks(self, instance, block_device_info=None):
        """Delete all disks of an instance."""

    def delete_rescue_disks(self, instance):
        """Delete the disks that a rescue has added."""

    def delete_disks_of_deleted(self, instance):
        """Delete what is left of an instance; return whether that is all."""
        return True

    def manage_image_cache(self, context, all_instances):
        """Delete what is not used; return instances whose files can go."""
        return []

    def snapshot(self, context, instance, image_id, directory):
        """Return a context manager around the making of an image."""
        return contextlib.nullcontext()

    def keeps_all_disks(self, instance):
        """Tell whether a cold migration has no files to copy."""
        return False

    def check_cold_migration(self, instance):
        """Refuse a cold migration or resize, at the destination."""

    def check_resize(self, instance, flavor):
        """Refuse a cold migration or resize, before the guest is stopped."""

    def keep_disks(self, instance, block_device_info):
        """Keep the disks as they are before a resize."""

    def forget_disks(self, instance, ignore_errors=False):
        """Delete what keep_disks() keeps."""

    def restore_disks(self, instance, block_device_info, resize):
        """Have the disks as they were before a resize."""

    def prepare_resized(self, instance, block_device_info, mapping):
        """Prepare the disks for the new flavor."""

    def check_other_cell(self, instance):
        """Refuse a resize from another cell which has the same storage."""

    def check_destination(self, instance, block_migration, is_here):
        """Refuse a live migration, at the destination."""

    def check_source(self, instance, dest_check_data):
        """Refuse a live migration, at the source."""

    def expect_guest(self, instance, block_device_info, migrate_data):
        """Prepare the arrival of a guest by live migration."""

    def adapt_migration(self, instance, flags, xml):
        """Return libvirt's flags and the XML for a live migration."""
        return flags, xml

    def allows_post_copy(self, guest):
        """Tell whether a guest may run before its memory has arrived."""
        return True

    def receive(self, guest):
        """Let a guest go on that has arrived."""

    def end_arrival(self, instance):
        """Let a guest go on that has arrived, and note that it has."""


class SheepdogHost(Host):
    """A compute host whose disks are on Sheepdog.

    :ivar targets: the targets.Targets
    :ivar images: the images.Images
    """

    caches_images = True

    def __init__(self, libvirt_host):
        """:param libvirt_host: the nova.virt.libvirt.host.Host"""
        self._host = libvirt_host
        transport = CONF.libvirt.images_sheepdog_transport
        # init_host() finds out what 'auto' means here.
        self.targets = targets.Targets(
            'iscsi' if transport == 'auto' else transport)
        self.images = images.Images(transfer.Transfer(self.targets))
        self._asked = self._space = None
        self._stopping = threading.Event()
        self._said = None
        # UUIDs of guests that are received now, and those that may run here
        # although their instances are on another host: since when.
        self._receiving = set()
        self._guests_of_others = {}

    # What is needed at start

    def init_host(self):
        """:raises: exception.InvalidConfiguration, with what to change"""
        rootwrap.stop()
        self.check_options()

        def report(state):
            LOG.warning('Not ready yet; trying again for up to %(limit)d s: '
                        '%(error)s', {'limit': START_LIMIT,
                                      'error': state.outcome.exception()})

        def check():
            libvirt_utils.get_sheepdog_redundancy()
            self.check_qemu()
            self.check_tgtd()

        try:
            # They may start after nova-compute when the host boots.
            tenacity.retry(
                retry=tenacity.retry_if_exception_type(
                    (exception.SheepdogUnreachable, exception.TgtUnreachable)),
                stop=tenacity.stop_after_delay(START_LIMIT),
                wait=tenacity.wait_fixed(START_INTERVAL),
                before_sleep=report, reraise=True)(check)()
        except exception.SheepdogUnreachable as e:
            raise exception.InvalidConfiguration(
                _("[libvirt]images_type = sheepdog cannot be used: %s. Check "
                  "[libvirt]images_sheepdog_host and images_sheepdog_port, "
                  "and that the sheep daemon runs there") %
                e.kwargs['reason'])
        except (exception.SheepdogError, exception.TgtError) as e:
            raise exception.InvalidConfiguration(
                _("[libvirt]images_type = sheepdog cannot be used: %s") % e)
        LOG.info('Guests reach their VDIs by the %s transport',
                 self.targets.transport)
        self.images.clean_up()
        if self.targets.transport == 'iscsi':
            self._remember_guests()
            # Not a looping call: one that is not stopped keeps the process.
            threading.Thread(target=self._watch, daemon=True).start()

    def stop(self):
        self._stopping.set()
        self.images.stop()
        rootwrap.stop()

    @staticmethod
    def check_options():
        """:raises: exception.InvalidConfiguration"""
        def refuse(option, value, reason):
            raise exception.InvalidConfiguration(
                _("%(option)s = %(value)s does not go with "
                  "[libvirt]images_type = sheepdog: %(reason)s") %
                {'option': option, 'value': value, 'reason': reason})

        if CONF.libvirt.virt_type not in ('kvm', 'qemu'):
            refuse('[libvirt]virt_type', CONF.libvirt.virt_type,
                   _('use kvm or qemu'))
        if not CONF.force_raw_images:
            refuse('[DEFAULT]force_raw_images', False,
                   _('VDIs hold raw data; set it to True'))
        if CONF.libvirt.inject_partition != -2:
            refuse('[libvirt]inject_partition', CONF.libvirt.inject_partition,
                   _('Nova cannot change what is on a VDI; set it to -2'))
        if CONF.ephemeral_storage_encryption.enabled:
            refuse('[ephemeral_storage_encryption]enabled', True,
                   _('VDIs are not encrypted; set it to False'))
        host = CONF.libvirt.images_sheepdog_host
        if host != 'localhost' and not netutils.is_valid_ipv4(host):
            refuse('[libvirt]images_sheepdog_host', host,
                   _('Sheepdog takes an IPv4 address or localhost'))
        portal = CONF.libvirt.images_sheepdog_portal
        address, _colon, port = portal.partition(':')
        if not (netutils.is_valid_ipv4(address) and
                netutils.is_valid_port(port)):
            refuse('[libvirt]images_sheepdog_portal', portal,
                   _('give an IPv4 address and a port, such as '
                     '127.0.0.1:3260'))

    def check_qemu(self):
        """Find out what the transport 'auto' means, and whether QEMU has it.

        :raises: exception.InvalidConfiguration
        """
        capabilities = self._host.get_capabilities()
        emulators = {
            domain.emulator for guest in capabilities.guests
            for virt_type, domain in guest.domains.items()
            if guest.arch == capabilities.host.cpu.arch and
            virt_type == CONF.libvirt.virt_type and domain.emulator}
        if CONF.libvirt.images_sheepdog_transport == 'auto':
            self.targets.transport = (
                'iscsi' if find_lack('sheepdog', emulators) else 'native')
        lack = find_lack(self.targets.transport.replace('native', 'sheepdog'),
                         emulators)
        if lack:
            raise exception.InvalidConfiguration(
                _("[libvirt]images_sheepdog_transport = %(transport)s cannot "
                  "be used: %(lack)s. The native transport wants a QEMU "
                  "before 6.1 built with Sheepdog, and the iscsi transport "
                  "one with libiscsi (Debian: the package "
                  "qemu-block-extra)") %
                {'transport': self.targets.transport, 'lack': lack})

    def check_tgtd(self):
        """Make sure that tgtd can be used, if the transport needs it.

        :raises: exception.InvalidConfiguration or exception.TgtError
        """
        if self.targets.transport == 'native':
            return
        if CONF.libvirt.images_sheepdog_port > 9999:
            raise exception.InvalidConfiguration(
                _("[libvirt]images_sheepdog_port = %d cannot be used with the "
                  "iscsi transport: tgtd reads four digits of it (tgt "
                  "1.0.85). Have sheep listen on a port below 10000") %
                CONF.libvirt.images_sheepdog_port)
        targets.check()
        portal = CONF.libvirt.images_sheepdog_portal
        address, _colon, port = portal.partition(':')
        try:
            socket.create_connection((address, int(port)), timeout=10).close()
        except OSError as e:
            raise exception.InvalidConfiguration(
                _("Nobody answers at [libvirt]images_sheepdog_portal = "
                  "%(portal)s: %(error)s. Start tgtd with '--iscsi "
                  "portal=%(portal)s', or name the portal it has") %
                {'portal': portal, 'error': e})

    def _remember_guests(self):
        """Note the targets of the guests that run while nova-compute starts.
        """
        here = self._get_instances()
        for guest in self._host.list_guests(only_running=True):
            exports = targets.get_exports(guest.get_config())
            self.targets.wanted.update(exports)
            if exports and guest.uuid not in here:
                self._guests_of_others[guest.uuid] = time.monotonic()

    @staticmethod
    def _get_instances():
        return set(objects.InstanceList.get_uuids_by_host(
            nova_context.get_admin_context(), CONF.host))

    # Space

    def _get_space(self, enough=0):
        """Return what get_sheepdog_space() does, if need be of a while ago.

        :param enough: free bytes that a remembered answer must have
        """
        if self._space and self._space['raw'] >= enough and (
                time.monotonic() - self._asked < SPACE_LIFE):
            return self._space
        try:
            space = libvirt_utils.get_sheepdog_space()
        except exception.SheepdogError as e:
            if not self._space:
                raise
            # A sheep that has just died is asked until the others notice.
            LOG.warning('Going by the space that the cluster had before: %s',
                        e)
        else:
            self._asked, self._space = time.monotonic(), space
        return self._space

    def get_capacity(self):
        # Nova asks once a minute.
        rootwrap.get_runner().save_calls(rootwrap.get_calls_path())
        space = self._get_space()
        return {name: space[name] for name in ('total', 'free', 'used')}

    def describe(self, resources):
        # Nova keeps it with the ComputeNode, for check_resize() of others.
        resources['stats'] = dict(resources.get('stats') or {},
                                  images_type='sheepdog')

    def check_room(self):
        """Make sure that the cluster can take a snapshot.

        :raises: exception.SheepdogError
        """
        free = self._get_space(enough=MUCH_ROOM)['raw']
        if free < ROOM:
            raise exception.SheepdogError(reason=_(
                'the cluster has room for %(free)d more MiB, copies included, '
                'and %(room)d are wanted before a snapshot; add storage or '
                'delete servers') % {'free': free // units.Mi,
                                     'room': ROOM // units.Mi})

    # Guests that start and go

    def prepare_guest(self, instance, xml):
        """:raises: exception.DiskNotFound, exception.SheepdogError or
            exception.TgtError
        """
        if instance.vm_state != vm_states.BUILDING:
            disks.prepare(instance)
        config = vconfig.LibvirtConfigGuest()
        config.parse_str(xml)
        # tgtd says so if there is none, and QEMU does not.
        disks.check_exist(targets.get_vdis(config, 'sheepdog'))
        exports = targets.get_exports(config)
        try:
            self.targets.export(exports)
        except exception.TgtError:
            disks.check_exist(exports.values())
            raise

    def check_not_elsewhere(self, instance):
        """:raises: exception.InstancePowerOnFailure"""
        try:
            self._host.get_guest(instance)
        except exception.InstanceNotFound:
            migration.check_not_elsewhere(
                instance, disks.State(instance.uuid).arrival)

    def check_spawn(self, instance, created_disks):
        if instance.task_state != task_states.REBUILD_SPAWNING:
            return created_disks
        if instance.host != CONF.host:
            self.check_not_elsewhere(instance)
        # Never delete the disks when an evacuation fails: only some of them
        # are new.
        return False

    def may_lack_disks(self, instance, block_device_info):
        """:raises: exception.DiskNotFound or exception.SheepdogError"""
        return instance.vm_state == vm_states.ERROR and disks.Disks(
            instance, block_device_info).are_half_resized()

    def has_left(self, instance):
        return (instance.host != CONF.host or
                instance.task_state == task_states.RESIZE_REVERTING)

    def is_clean(self, disks_are_deleted):
        return disks_are_deleted

    def unexport_disks(self, instance, ignore_errors=True):
        """:raises: exception.TgtError or exception.SheepdogUnreachable"""
        try:
            self.targets.unexport(
                libvirt_utils.get_sheepdog_iqn(instance.uuid + '_'))
        except (exception.TgtError, exception.SheepdogUnreachable) as e:
            if not ignore_errors:
                raise
            LOG.warning('Left targets of an instance that is not on this '
                        'host: %s', e, instance=instance)
        if instance.uuid in self._guests_of_others:
            self._forget_arrival(instance.uuid)

    def delete_disks(self, instance, block_device_info=None):
        """:raises: exception.SheepdogError if one is left"""
        disks.Disks(instance, block_device_info).delete()

    def delete_rescue_disks(self, instance):
        """:raises: exception.SheepdogError or exception.TgtError"""
        self.targets.unexport(*(
            libvirt_utils.get_sheepdog_iqn(
                libvirt_utils.get_sheepdog_vdi(instance.uuid, name))
            for name in disks.State(instance.uuid).rescued))
        disks.Disks(instance, {}).delete_rescued()

    def delete_disks_of_deleted(self, instance):
        """Delete what nova-compute had no chance to delete.

        It did not run when the instance was deleted. It tries again, as often
        as maximum_instance_delete_attempts says.
        """
        if not instance.deleted:
            return True
        try:
            self.unexport_disks(instance, ignore_errors=False)
            self.delete_disks(instance)
        except exception.NovaException as e:
            LOG.error('Failed to delete the VDIs: %s', e, instance=instance)
            return False
        return True

    def manage_image_cache(self, context, all_instances):
        """Delete what is not used, and what other failures have left.

        Nova takes the host off an instance whose build it gives up, so the
        deletion of the instance does not come here. When the VDIs could not be
        deleted as the build failed, its directory is still there. Another host
        may have it now: nothing is done before it is deleted.

        Directories and targets are also left where a live migration to here
        was interrupted: Nova does not roll back one that it aborts because
        nova-compute at the source was restarted.

        :raises: exception.SheepdogError or exception.TgtError
        """
        self.images.delete_unused()
        directories = set(filter(uuidutils.is_uuid_like,
                                 os.listdir(CONF.instances_path)))
        exported = set()
        if (self.targets.transport == 'iscsi' or
                targets.get_tgtd_start() is not None):
            prefix = libvirt_utils.SHEEPDOG_IQN
            exported = {iqn[len(prefix):].partition('.')[0]
                        for iqn in targets.list_targets()}
        known = {instance.uuid for instance in all_instances
                 if instance.host == CONF.host}
        known.update(guest.uuid for guest in
                     self._host.list_guests(only_running=False))
        removable = []
        for uuid in (exported | directories) - known:
            try:
                instance = objects.Instance.get_by_uuid(
                    context.elevated(read_deleted='yes'), uuid)
            except exception.InstanceNotFound:
                continue
            if instance.deleted:
                removable.append(instance)
            elif instance.host == CONF.host:
                continue
            elif instance.host and instance.task_state is None:
                if uuid in exported:
                    LOG.info('Removing targets of an instance that is on '
                             'host %s', instance.host, instance=instance)
                    self.unexport_disks(instance)
                    self._forget_arrival(uuid)
                # Else it may be that of the other host.
                if uuid in directories and (
                        CONF.workarounds
                        .ensure_libvirt_rbd_instance_dir_cleanup):
                    removable.append(instance)
        return removable

    def snapshot(self, context, instance, image_id, directory):
        return self.images.snapshot(context, instance, image_id, directory)

    def cache_image(self, context, image_id):
        """Have the base of an image in the cluster before it is needed.

        :param context: security context
        :param image_id: id of the Glance image
        :returns: True if it was not there
        """
        return images.ImageBase(self.images, context, image_id).provide()

    # Resize and cold migration

    def keeps_all_disks(self, instance):
        return hardware.get_vtpm_constraint(
            instance.flavor, instance.image_meta) is None

    def check_cold_migration(self, instance):
        """:raises: exception.MigrationPreCheckError"""
        if instance.image_ref and not disks.Disks(instance, {}).find(
                ['disk']):
            raise exception.MigrationPreCheckError(reason=_(
                'the root disk of the server is not on the Sheepdog cluster '
                'of host %s; shelve and unshelve the server to move it') %
                CONF.host)

    def _check_other_host(self, instance):
        """Make sure that the destination of a cold migration has Sheepdog.

        It would make a blank disk in the place of the one on Sheepdog.
        """
        context = nova_context.get_admin_context()
        there = objects.Migration.get_by_instance_and_status(
            context, instance.uuid, 'migrating').dest_compute
        if there == CONF.host:
            return
        nodes = objects.ComputeNodeList.get_all_by_host(context, there)
        if any((node.stats or {}).get('images_type') != 'sheepdog'
               for node in nodes):
            raise exception.MigrationPreCheckError(reason=_(
                'the disks of the server are on Sheepdog, and those of host '
                '%s are not; shelve and unshelve the server to move it') %
                there)

    def check_resize(self, instance, flavor):
        """:raises: exception.InstanceFaultRollback"""
        try:
            self.check_cold_migration(instance)
            self._check_other_host(instance)
            for size in flavor.root_gb, flavor.ephemeral_gb:
                images.check_size(libvirt_utils.get_sheepdog_vdi(
                    instance.uuid, 'disk'), size * units.Gi)
            self.check_room()
        except (exception.MigrationPreCheckError, exception.InvalidDiskInfo,
                exception.SheepdogError) as e:
            raise exception.InstanceFaultRollback(
                exception.ResizeError(reason=str(e)))

    def keep_disks(self, instance, block_device_info):
        """:raises: exception.SheepdogError or exception.TgtError"""
        self.unexport_disks(instance, ignore_errors=False)
        disks.Disks(instance, block_device_info).keep()

    def forget_disks(self, instance, ignore_errors=False):
        """:raises: exception.SheepdogError"""
        try:
            disks.Disks(instance).forget()
        except exception.SheepdogError as e:
            if not ignore_errors:
                raise
            LOG.warning('Left snapshots of the disks as they were before the '
                        'resize: %s', e, instance=instance)

    def restore_disks(self, instance, block_device_info, resize):
        """:raises: exception.SheepdogError"""
        # A resize to another cell changes nothing here, and one that was
        # interrupted before it kept the disks has changed nothing.
        if not disks.Disks(instance, block_device_info).restore() and (
                instance.task_state == task_states.RESIZE_REVERTING and
                not resize.cross_cell_move):
            raise exception.SheepdogError(reason=_(
                'the cluster knows nothing of the resize that is to be '
                'reverted; the disks are left as they are'))

    def prepare_resized(self, instance, block_device_info, mapping):
        """:raises: exception.DiskNotFound or exception.SheepdogError"""
        of_instance = disks.Disks(instance, block_device_info)
        of_instance.prepare_resized()
        # The new flavor may have another size of swap or none, and swap holds
        # nothing. Before Nova 27 a guest keeps the swap that it had if it has
        # none.
        if instance.flavor.swap or 'disk.swap' not in mapping:
            of_instance.delete_working(['disk.swap'])

    def check_other_cell(self, instance):
        """Refuse a resize from another cell which has the same cluster.

        Nova takes the disks here for copies: it deletes what was left behind
        when the resize is confirmed, and what is here when it is reverted.

        :raises: exception.NoValidHost; after any other error the conductor
            looks for the instance in the wrong cell, and leaves it in its task
            state
        """
        found = disks.Disks(instance).find()
        if found:
            raise exception.NoValidHost(reason=_(
                'disks of the server are there already (%s); if both cells '
                'have the same Sheepdog cluster, Nova would delete them while '
                'the server uses them: resize the server within its cell; if '
                'each has its own, an earlier resize to this cell was '
                'interrupted: delete what it has left there') %
                ', '.join(found))

    # Live migration

    def check_destination(self, instance, block_migration, is_here):
        """:raises: exception.MigrationPreCheckError"""
        migration.check_destination(
            instance, disks.Disks(instance).find(), self.targets.transport,
            block_migration, is_here)

    def check_source(self, instance, dest_check_data):
        """:raises: exception.MigrationPreCheckError"""
        migration.check_source(self._host.get_guest(instance),
                               dest_check_data.image_type)

    def expect_guest(self, instance, block_device_info, migrate_data):
        """:raises: exception.MigrationPreCheckError, exception.SheepdogError
            or exception.TgtError
        """
        found = disks.Disks(instance, block_device_info).find()
        if migrate_data.block_migration:
            # as the source has found out by itself
            migration.check_destination(
                instance, found, self.targets.transport, True, False)
        if not found:
            return
        vdis = [libvirt_utils.get_sheepdog_vdi(instance.uuid, name)
                for name in found]
        self.targets.export({libvirt_utils.get_sheepdog_iqn(vdi): vdi
                             for vdi in vdis})
        state = disks.State(instance.uuid)
        state.arrival = {'host': CONF.host,
                         'portal': CONF.libvirt.images_sheepdog_portal}
        state.save()
        self._guests_of_others[instance.uuid] = time.monotonic()

    def adapt_migration(self, instance, flags, xml):
        """:raises: exception.SheepdogError"""
        if not migration.has_exports(xml):
            return flags, xml
        return migration.get_flags(flags), migration.get_destination_xml(
            xml, instance, disks.State(instance.uuid).arrival)

    def allows_post_copy(self, guest):
        return not targets.get_exports(guest.get_config())

    def receive(self, guest):
        """:raises: exception.TgtError or libvirt.libvirtError if it has
            arrived, and its VDIs could not be reloaded
        """
        self._receive(guest._domain)

    def end_arrival(self, instance):
        self._try_to_receive(self._host.get_guest(instance)._domain)
        self._forget_arrival(instance.uuid)

    def _forget_arrival(self, uuid):
        """Let other hosts start a guest that does not run here."""
        try:
            state = disks.State(uuid)
            if (state.arrival or {}).get('host') == CONF.host:
                state.arrival = None
                state.save()
            self._guests_of_others.pop(uuid, None)
        except exception.SheepdogError as e:
            LOG.warning('Cannot note that the guest of instance %(uuid)s is '
                        'not on its way to this host any more: %(error)s',
                        {'uuid': uuid, 'error': e})

    def _receive(self, domain):
        """Let a guest go on that has arrived, if it has."""
        with lockutils.lock('sheepdog-receive-' + domain.UUIDString()):
            arrival = migration.get_arrival(domain)
            if arrival is None:
                return
            guest = libvirt_guest.Guest(domain)
            if migration.is_paused(domain):
                if not migration.has_arrived(domain):
                    # The source still runs.
                    return
                start = time.monotonic()
                self.targets.reload(targets.get_exports(guest.get_config()))
                if arrival.get('resume') == 'yes':
                    guest.resume()
                LOG.info('Instance %(uuid)s has come from another host; '
                         'reloaded its VDIs in %(time).3f seconds',
                         {'uuid': guest.uuid,
                          'time': time.monotonic() - start})
            # Last, as what comes before may be tried again.
            migration.remove_arrival(domain)

    def _try_to_receive(self, domain):
        """Call _receive(), and say so if it fails: it is tried again."""
        try:
            self._receive(domain)
        except Exception as e:
            LOG.error('Instance %(uuid)s may have come from another host and '
                      'is kept paused until its VDIs have been reloaded, '
                      'because it would read stale data; trying again every '
                      '%(interval)d seconds: %(error)s',
                      {'uuid': domain.UUIDString(), 'interval': LOOK,
                       'error': e})
        finally:
            self._receiving.discard(domain.UUIDString())

    # The watcher

    def _watch(self):
        """Receive guests, and mend their targets, until nova-compute ends.

        A guest arrives without a message, see migration.py. QEMU's initiator
        logs in again by itself when a lost target is back.
        """
        mended = looked = None
        while True:
            is_arriving = self._look_for_arrivals()
            start = targets.get_tgtd_start()
            now = time.monotonic()
            if start and (start != mended or
                          now - looked >= LOOK_AT_TARGETS):
                looked = now
                mended = start if self._mend_targets() else None
            is_expected = any(now - since < ARRIVAL_DELAY for since in
                              list(self._guests_of_others.values()))
            if self._stopping.wait(LOOK_AT_ARRIVALS if is_arriving or
                                   is_expected else LOOK):
                return

    def _list_domains(self, flags):
        return self._host.get_connection().listAllDomains(flags)

    def _look_for_arrivals(self):
        """Receive guests that have arrived; tell whether some are coming."""
        libvirt = libvirt_guest.libvirt
        is_arriving = False
        try:
            for domain in self._list_domains(
                    libvirt.VIR_CONNECT_LIST_DOMAINS_PAUSED):
                if migration.get_arrival(domain) is None:
                    continue
                is_arriving = True
                uuid = domain.UUIDString()
                if migration.has_arrived(domain) and (
                        uuid not in self._receiving):
                    # One guest does not wait for another one's cluster.
                    self._receiving.add(uuid)
                    threading.Thread(target=self._try_to_receive,
                                     args=(domain,), daemon=True).start()
            self._said = None
        except Exception as e:
            if str(e) != self._said:
                LOG.warning('Cannot look for instances that have come from '
                            'other hosts; trying again: %s', e)
            self._said = str(e)
        return is_arriving

    def _mend_targets(self):
        """Make targets again that running guests have lost.

        A guest whose instance is on another host, where it was evacuated to,
        gets none: it would write to what is used there.

        :returns: False if that failed
        """
        libvirt = libvirt_guest.libvirt
        try:
            self._forget_guests_of_others()
            missing = self.targets.find_missing()
            if not missing:
                return True
            running = {domain.UUIDString(): domain for domain in
                       self._list_domains(
                           libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)}
            here = self._get_instances()
            for iqn, vdi in missing.items():
                uuid = libvirt_utils.split_sheepdog_vdi(vdi)[0]
                if uuid not in running:
                    self.targets.wanted.pop(iqn, None)
                elif uuid in here or (
                        migration.get_arrival(running[uuid]) is not None):
                    self.targets.restore(iqn, vdi)
                    LOG.info('Made the lost target of VDI %s again', vdi)
                else:
                    LOG.warning('No target is made for VDI %s: its instance '
                                'is on another host', vdi)
                    self.targets.wanted.pop(iqn, None)
            return True
        except Exception as e:
            LOG.error('Cannot restore the targets of running guests, which '
                      'hang until then; trying again: %s', e)
            return False

    def _forget_guests_of_others(self):
        """Note which guests that came by an interrupted migration have gone.
        """
        for uuid in list(self._guests_of_others):
            try:
                self._host.get_connection().lookupByUUIDString(uuid)
                continue
            except libvirt_guest.libvirt.libvirtError as e:
                if (e.get_error_code() !=
                        libvirt_guest.libvirt.VIR_ERR_NO_DOMAIN):
                    raise
            if not objects.MigrationList.get_by_filters(
                    nova_context.get_admin_context(),
                    {'instance_uuid': uuid,
                     'migration_type': 'live-migration',
                     'status': ['accepted', 'queued', 'preparing', 'running',
                                'post-migrating']}):
                self.targets.unexport(
                    libvirt_utils.get_sheepdog_iqn(uuid + '_'))
                self._forget_arrival(uuid)


def find_lack(protocol, emulators=()):
    """Find a program of this host's QEMU that lacks a block driver.

    :param protocol: 'sheepdog' or 'iscsi'
    :param emulators: paths of libvirt's emulators; what stands elsewhere, as
        in another container, is not asked
    :returns: what lacks it, None if all have it
    """
    target = {
        'sheepdog': ('server.type=inet,server.host=127.0.0.1,server.port=1,'
                     'vdi=none'),
        'iscsi': ('transport=tcp,portal=127.0.0.1:1,'
                  'target=iqn.2014-06.org.openstack.nova:none,lun=1'),
    }[protocol]
    commands = [
        (emulator, '-machine', 'none', '-nodefaults', '-display', 'none',
         '-blockdev', 'driver=%s,node-name=none,%s' % (protocol, target))
        for emulator in emulators if os.path.exists(emulator)]
    commands.append(('qemu-img', 'info', '--image-opts',
                     'driver=%s,%s' % (protocol, target)))
    # There is nothing at the address, so all of them fail; what they say
    # tells whether the driver got as far as that.
    for command in commands:
        try:
            rootwrap.run(*command, timeout=20)
        except rootwrap.CommandError as e:
            if 'No such file or directory' in e.reason:
                return e.reason
            if any(words in e.reason for words in (
                    "does not accept value '%s'" % protocol,
                    "Unknown driver '%s'" % protocol,
                    "Unknown protocol '%s'" % protocol,
                    'failed to open module')):
                return _('%(program)s has no %(protocol)s driver') % {
                    'program': command[0], 'protocol': protocol}
    return None
