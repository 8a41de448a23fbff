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
import os

from graft.fragment import after
from graft.fragment import before
from graft.fragment import substitute
from oslo_utils import excutils
from oslo_utils import uuidutils

from nova import block_device
from nova.compute import task_states
from nova import context as nova_context
from nova import exception
from nova import objects
from nova.virt import driver
from nova.virt import hardware
from nova.virt.libvirt import blockinfo
from nova.virt.libvirt.driver import CONF
from nova.virt.libvirt.driver import LOG
from nova.virt.libvirt import imagebackend
from nova.virt.libvirt import sheepdog_base
from nova.virt.libvirt import sheepdog_migration
from nova.virt.libvirt import utils as libvirt_utils


class LibvirtDriver:

    substitute('__init__', "raw_only = ('rbd', 'lvm')",
               "'lvm')", "'lvm', 'sheepdog')")

    @after('init_host', "if CONF.libvirt.images_type in ('rbd',):")
    def _(self):
        if CONF.libvirt.images_type == 'sheepdog':
            imagebackend.Sheepdog.check_host(self._host)
            imagebackend.Sheepdog.clean_up_imports()
            imagebackend.Sheepdog.clean_up_snapshots()
            imagebackend.Sheepdog.keep_exports(
                self._host, sheepdog_migration.is_arriving)
            sheepdog_migration.keep_receiving(self._host)

    @before('cleanup', 'return self._cleanup(')
    def _(self, instance, cleanup_instance_dir):
        # An option for hosts that share disks and not instances_path, by
        # which Rbd loses the console's log at every hard reboot.
        if (CONF.libvirt.images_type == 'sheepdog' and
                CONF.workarounds.ensure_libvirt_rbd_instance_dir_cleanup):
            cleanup_instance_dir |= (
                instance.host != CONF.host or
                instance.task_state == task_states.RESIZE_REVERTING)

    @after('_cleanup', 'for vol in block_device_mapping:')
    def _(self, instance, cleanup_instance_disks):
        if CONF.libvirt.images_type == 'sheepdog':
            imagebackend.Sheepdog.unexport_disks(
                instance, ignore_errors=not cleanup_instance_disks)

    @after('_cleanup', "if CONF.libvirt.images_type == 'rbd':")
    def _(self, instance, block_device_info):
        if CONF.libvirt.images_type == 'sheepdog':
            self._cleanup_sheepdog_instance(instance, block_device_info)

    @before('_cleanup', 'if success:')
    def _(self, cleanup_instance_disks, success):
        # As long as there are VDIs, an instance that is deleted while this
        # host is down has to be looked for when it is up again.
        if CONF.libvirt.images_type == 'sheepdog':
            success = success and cleanup_instance_disks

    @after('', 'def _cleanup_rbd(self, instance):')
    def _cleanup_sheepdog_instance(self, instance, block_device_info=None):
        """Delete all VDIs of an instance, and nothing else.

        Nova's specification calls it cleanup_sheepdog_instance; but what is
        public here has to be part of ComputeDriver, as a test of Nova says.

        :param instance: the nova.objects.instance.Instance
        :param block_device_info: its block device info, which tells how many
            ephemeral disks it has; None to ask the database
        :raises: exception.SheepdogError if one is left
        """
        imagebackend.Sheepdog.delete_disks(
            instance, self._get_sheepdog_disk_names(
                instance, block_device_info))

    @after('', 'def _cleanup_rbd(self, instance):')
    def _get_sheepdog_disk_names(self, instance, block_device_info=None):
        """Name all disks which an instance can have on Sheepdog.

        :param instance: the nova.objects.instance.Instance
        :param block_device_info: its block device info, which tells how many
            ephemeral disks it has; None to ask the database
        :returns: list of names
        """
        if block_device_info is None:
            bdms = objects.BlockDeviceMappingList.get_by_instance_uuid(
                nova_context.get_admin_context(read_deleted='yes'),
                instance.uuid)
            ephemerals = [bdm for bdm in bdms
                          if block_device.new_format_is_ephemeral(bdm)]
        else:
            ephemerals = driver.block_device_info_get_ephemerals(
                block_device_info)
        return ['disk', 'disk.local', 'disk.swap', 'disk.config',
                'disk.rescue', 'disk.config.rescue'] + [
            blockinfo.get_eph_disk(index)
            for index in range(len(ephemerals))]

    @before('delete_instance_files',
            'target = libvirt_utils.get_instance_path(instance)')
    def _(self, instance):
        # What nova-compute had no chance to delete, because it did not run
        # when its instance was deleted. It tries again, so often as
        # maximum_instance_delete_attempts says.
        if CONF.libvirt.images_type == 'sheepdog' and instance.deleted:
            try:
                imagebackend.Sheepdog.unexport_disks(instance)
                self._cleanup_sheepdog_instance(instance)
            except exception.NovaException as e:
                LOG.error('Failed to delete the VDIs: %s', e,
                          instance=instance)
                return False

    @after('manage_image_cache',
           'self.image_cache_manager.update(context, all_instances)')
    def _(self):
        if CONF.libvirt.images_type == 'sheepdog':
            sheepdog_base.delete_unused()
            self._delete_leftovers()

    @before('cache_image', 'cache_dir = os.path.join(CONF.instances_path,')
    def _(self, context, image_id):
        if CONF.libvirt.images_type == 'sheepdog':
            return imagebackend.Sheepdog.cache_image(context, image_id)

    @after('', 'def _cleanup_rbd(self, instance):')
    def _delete_leftovers(self):
        """Delete what is left here of instances of no or another host.

        Nova takes the host off an instance whose build it gives up, so the
        deletion of the instance does not come here. When the VDIs could not
        be deleted as the build failed, its directory is still there. Another
        host may have it now: nothing is done before it is deleted.

        Directories and targets are also left where a live migration to here
        was interrupted: Nova does not roll back one that it aborts because
        nova-compute at the source was restarted.
        """
        context = nova_context.get_admin_context(read_deleted='yes')
        exported = imagebackend.Sheepdog.get_exported()
        directories = set(filter(uuidutils.is_uuid_like,
                                 os.listdir(CONF.instances_path)))
        for name in (exported | directories).difference(
                self.list_instance_uuids()):
            try:
                instance = objects.Instance.get_by_uuid(context, name)
            except exception.InstanceNotFound:
                continue
            if instance.host == CONF.host:
                continue
            if instance.deleted:
                self.delete_instance_files(instance)
            elif instance.host and instance.task_state is None:
                if name in exported:
                    LOG.info('Removing targets of an instance that is on '
                             'host %s', instance.host, instance=instance)
                    imagebackend.Sheepdog.unexport_disks(
                        instance, ignore_errors=True)
                # Else it may be that of the other host.
                if name in directories and (
                        CONF.workarounds
                        .ensure_libvirt_rbd_instance_dir_cleanup):
                    self.delete_instance_files(instance)

    @after('unrescue', "if CONF.libvirt.images_type == 'rbd':")
    def _(self, instance):
        if CONF.libvirt.images_type == 'sheepdog':
            imagebackend.Sheepdog.delete_disks(
                instance, ['disk.rescue', 'disk.config.rescue'])

    @after('snapshot', "if image_format == 'lvm' or image_format == 'rbd':")
    def _(self, image_format):
        if image_format == 'sheepdog':
            image_format = 'raw'

    substitute('snapshot',
               'with utils.tempdir(dir=snapshot_directory) as tmpdir:',
               '(dir=snapshot_directory) as tmpdir:',
               '(\n'
               '                    dir=snapshot_directory, prefix=(\n'
               '                        imagebackend.Sheepdog.'
               'get_snapshot_prefix())\n'
               '                    ) as tmpdir, '
               'self._given_up_on_error(root_disk):')

    @after('', 'def snapshot(self, context, instance, image_id, '
               'update_task_state):')
    @contextlib.contextmanager
    def _given_up_on_error(self, root_disk):
        """Give up what an image of Sheepdog keeps until it is uploaded.

        The handlers of snapshot() see no error of the copy and the upload,
        which are in one of them.

        :param root_disk: the imagebackend.Image
        """
        try:
            yield
        except Exception:
            with excutils.save_and_reraise_exception():
                if CONF.libvirt.images_type == 'sheepdog':
                    root_disk.cleanup_direct_snapshot(None)

    @before('snapshot', 'LOG.info("Snapshot image upload complete", '
            'instance=instance)')
    def _(self, context, root_disk, source_type):
        if source_type == 'sheepdog':
            root_disk.publish_snapshot(context)

    @before('_live_snapshot', 'dev = guest.get_block_device(disk_path)')
    def _(self, context, instance, disk_path, out_path, image_format,
          image_meta):
        # The cluster's own snapshot needs no help of QEMU.
        if CONF.libvirt.images_type == 'sheepdog':
            self.image_backend.by_libvirt_path(
                instance, disk_path).snapshot_extract(
                    out_path, image_format, frozen=self._frozen_file_systems(
                        context, instance, image_meta))
            return

    @after('', 'def _live_snapshot(self, context, instance, guest, '
               'disk_path, out_path,')
    @contextlib.contextmanager
    def _frozen_file_systems(self, context, instance, image_meta):
        """Freeze the file systems of a guest whose agent can do it.

        :param context: security context
        :param instance: the nova.objects.instance.Instance
        :param image_meta: its image, which may require that they are frozen
        :raises: exception.NovaException if it does and they cannot be
        """
        frozen = False
        try:
            self.quiesce(context, instance, image_meta)
            frozen = True
        except exception.NovaException as e:
            if self._requires_quiesce(image_meta):
                raise
            LOG.info('Taking a snapshot without freezing the file systems: '
                     '%s', e, instance=instance)
        try:
            yield
        finally:
            if frozen:
                self.unquiesce(context, instance, image_meta)

    @before('_get_disk_config_image_type',
            "return 'rbd' if CONF.libvirt.images_type == 'rbd' else 'raw'")
    def _(self):
        if CONF.libvirt.images_type == 'sheepdog':
            return 'sheepdog'

    @after('_create_configdrive', "if CONF.libvirt.images_type == 'rbd':")
    def _(self, config_disk_local_path):
        if CONF.libvirt.images_type == 'sheepdog':
            os.unlink(config_disk_local_path)

    @before('_create_guest', 'guest.launch(pause=pause)')
    def _(self, xml):
        if CONF.libvirt.images_type == 'sheepdog':
            imagebackend.Sheepdog.export_disks(xml)

    @after('spawn', 'created_instance_dir, created_disks = '
           'self._create_image(')
    def _(self, instance, created_disks):
        # An evacuation that fails may not take the data along, even if it
        # made one of the disks.
        if CONF.libvirt.images_type == 'sheepdog' and (
                instance.task_state == task_states.REBUILD_SPAWNING):
            created_disks = False

    @before('_hard_reboot',
            'self.destroy(context, instance, network_info, '
            'destroy_disks=False,')
    def _(self, instance):
        if CONF.libvirt.images_type == 'sheepdog' and (
                not self.instance_exists(instance)):
            sheepdog_migration.check_has_not_gone(instance)

    @before('unpause', 'guest.resume()')
    def _(self, guest):
        if CONF.libvirt.images_type == 'sheepdog':
            sheepdog_migration.receive(guest)

    @before('_get_local_gb_info', 'for (k, v) in info.items():')
    def _(self, info):
        if CONF.libvirt.images_type == 'sheepdog':
            info = libvirt_utils.get_sheepdog_capacity()

    @before('check_can_live_migrate_destination', 'if disk_over_commit:')
    def _(self, instance, block_migration):
        if CONF.libvirt.images_type == 'sheepdog':
            sheepdog_migration.check_destination(
                instance, self._get_sheepdog_disk_names(instance),
                block_migration, self.instance_exists(instance))

    @before('check_can_live_migrate_source', 'source = CONF.host')
    def _(self, instance, dest_check_data):
        if CONF.libvirt.images_type == 'sheepdog':
            sheepdog_migration.check_source(
                self._host.get_guest(instance), dest_check_data)

    @after('pre_live_migration', 'if not migrate_data:')
    def _(self, instance, block_device_info, migrate_data):
        if CONF.libvirt.images_type == 'sheepdog':
            sheepdog_migration.prepare_destination(
                instance, self._get_sheepdog_disk_names(
                    instance, block_device_info), migrate_data)

    @after('_live_migration_operation',
           'if CONF.libvirt.virt_type != "parallels":')
    def _(self, instance, migrate_data, migration_flags, new_xml_str):
        if sheepdog_migration.is_needed(migrate_data):
            migration_flags = sheepdog_migration.get_flags(migration_flags)
            new_xml_str = sheepdog_migration.get_destination_xml(
                new_xml_str, instance, migrate_data)

    @after('_live_migration_monitor',
           'is_post_copy_enabled &= not bool(self._get_vpmems(instance))')
    def _(self, migrate_data, is_post_copy_enabled):
        is_post_copy_enabled &= not sheepdog_migration.is_needed(migrate_data)

    @before('emit_event',
            'if isinstance(event, libvirtevent.LibvirtEvent):')
    def _(self, event):
        if CONF.libvirt.images_type == 'sheepdog':
            sheepdog_migration.handle_event(self._host, event)

    @before('post_live_migration_at_source',
            'self.unplug_vifs(instance, network_info)')
    def _(self, instance):
        if CONF.libvirt.images_type == 'sheepdog':
            imagebackend.Sheepdog.unexport_disks(instance, ignore_errors=True)

    @before('post_live_migration_at_destination',
            'self._reattach_instance_vifs(context, instance, network_info)')
    def _(self, instance):
        if CONF.libvirt.images_type == 'sheepdog':
            sheepdog_migration.try_to_receive(self._host.get_guest(instance))

    substitute('migrate_disk_and_power_off',
               'shared_instance_path = self._is_path_shared_with('
               'dest, inst_base)',
               'self._is_path_shared_with(dest, inst_base)',
               'self._is_instance_path_shared_with(\n'
               '            instance, dest, inst_base)')
    substitute('migrate_disk_and_power_off', 'if not shared_instance_path:',
               'if not shared_instance_path:',
               'if not shared_instance_path and (\n'
               '                self._has_files_to_migrate(instance)):')

    @after('', 'def _is_path_shared_with(self, dest, path):')
    def _has_files_to_migrate(self, instance):
        """Tell whether a cold migration copies files to the other host.

        It is done by ssh, which hosts that share all disks need not have.

        :param instance: the nova.objects.instance.Instance
        :returns: True if it may
        """
        return CONF.libvirt.images_type != 'sheepdog' or (
            hardware.get_vtpm_constraint(
                instance.flavor, instance.image_meta) is not None)

    @after('', 'def _is_path_shared_with(self, dest, path):')
    def _is_instance_path_shared_with(self, instance, dest, path):
        """Do as _is_path_shared_with() does, but ask by ssh only if need be.

        :param instance: the nova.objects.instance.Instance
        :param dest: address of the other host
        :param path: path of the instance's directory
        :returns: True if it is shared, as far as that matters
        """
        if self._has_files_to_migrate(instance):
            return self._is_path_shared_with(dest, path)
        return dest == self.get_host_ip_addr()

    @before('migrate_disk_and_power_off',
            'disk_info = self._get_instance_disk_info('
            'instance, block_device_info)')
    def _(self, instance, block_device_info):
        if CONF.libvirt.images_type == 'sheepdog':
            imagebackend.Sheepdog.unexport_disks(instance)
            imagebackend.Sheepdog.snapshot_disks(
                instance, self._get_sheepdog_disk_names(
                    instance, block_device_info))

    @before('finish_migration', 'self._create_image('
            "context, instance, block_disk_info['mapping'],")
    def _(self, instance, block_disk_info):
        # The new flavor may have less swap or none, and swap holds nothing.
        # Before Nova 27 a guest keeps the swap that it had if it has none.
        if CONF.libvirt.images_type == 'sheepdog' and (
                instance.flavor.swap or
                'disk.swap' not in block_disk_info['mapping']):
            imagebackend.Sheepdog.delete_working_disks(instance, ['disk.swap'])

    @before('finish_revert_migration',
            "root_disk = self.image_backend.by_name(instance, 'disk')")
    def _(self, instance, block_device_info):
        if CONF.libvirt.images_type == 'sheepdog':
            imagebackend.Sheepdog.roll_back_disks(
                instance, self._get_sheepdog_disk_names(
                    instance, block_device_info))

    @after('finish_revert_migration',
           'disk_info = blockinfo.get_disk_info(CONF.libvirt.virt_type,')
    def _(self, instance, disk_info):
        # What the resize has added
        if CONF.libvirt.images_type == 'sheepdog':
            imagebackend.Sheepdog.delete_working_disks(
                instance, {'disk.local', 'disk.swap'} - set(
                    disk_info['mapping']))

    @before('_cleanup_resize', 'if instance.host != CONF.host:')
    def _(self, instance):
        if CONF.libvirt.images_type == 'sheepdog':
            imagebackend.Sheepdog.delete_snapshots(
                instance, self._get_sheepdog_disk_names(instance))
