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

from graft.fragment import after
from graft.fragment import before
from graft.fragment import substitute

from nova.compute import vm_states
from nova import exception
from nova.virt.libvirt.driver import LOG
from nova.virt.libvirt import imagebackend
from nova.virt.libvirt.sheepdog import host as sheepdog_host


def cleanup_sheepdog_instance(host, instance, block_device_info=None):
    """Delete all VDIs of an instance, and nothing else.

    :param host: what the driver holds, a sheepdog_host.Host
    :param instance: the nova.objects.instance.Instance
    :param block_device_info: its block device info, which tells how many
        ephemeral disks it has; None to ask the database
    :raises: exception.SheepdogError if one is left
    """
    host.delete_disks(instance, block_device_info)


class LibvirtDriver:

    substitute('__init__', "raw_only = ('rbd', 'lvm')",
               "'lvm')", "'lvm', 'sheepdog')")

    @after('__init__', 'self._host = host.Host(self._uri(), read_only,')
    def _(self):
        self._sheepdog = sheepdog_host.make_host(self._host)
        imagebackend.Sheepdog.host = self._sheepdog

    @after('init_host', "if CONF.libvirt.images_type in ('rbd',):")
    def _(self):
        self._sheepdog.init_host()

    def stop_image_backend(self):
        self._sheepdog.stop()

    def check_cold_migration(self, instance):
        self._sheepdog.check_cold_migration(instance)

    def check_resize_from_other_cell(self, instance):
        self._sheepdog.check_other_cell(instance)

    substitute('cleanup', 'if not cleanup_instance_dir:',
               "CONF.libvirt.images_type == 'rbd'",
               "(\n"
               "                        CONF.libvirt.images_type == 'rbd' or\n"
               "                        self._sheepdog.has_left(instance))")

    @after('_cleanup', 'for vol in block_device_mapping:')
    def _(self, instance, cleanup_instance_disks):
        self._sheepdog.unexport_disks(
            instance, ignore_errors=not cleanup_instance_disks)

    @after('_cleanup', "if CONF.libvirt.images_type == 'rbd':")
    def _(self, instance, block_device_info):
        cleanup_sheepdog_instance(
            self._sheepdog, instance, block_device_info)

    @before('_cleanup', 'if success:')
    def _(self, instance, cleanup_instance_disks, success):
        # An instance whose disks are still there and that is deleted while
        # this host is down has to be looked for when it is up again.
        success = success and self._sheepdog.is_clean(
            cleanup_instance_disks)

    @before('delete_instance_files',
            'target = libvirt_utils.get_instance_path(instance)')
    def _(self, instance):
        if not self._sheepdog.delete_disks_of_deleted(instance):
            return False

    @after('manage_image_cache',
           'self.image_cache_manager.update(context, all_instances)')
    def _(self, context, all_instances):
        for instance in self._sheepdog.manage_image_cache(
                context, all_instances):
            self.delete_instance_files(instance)

    @before('cache_image', 'cache_dir = os.path.join(CONF.instances_path,')
    def _(self, context, image_id):
        if self._sheepdog.caches_images:
            return self._sheepdog.cache_image(context, image_id)

    @after('unrescue', "if CONF.libvirt.images_type == 'rbd':")
    def _(self, instance):
        self._sheepdog.delete_rescue_disks(instance)

    substitute('snapshot',
               "if image_format == 'lvm' or image_format == 'rbd':",
               "image_format == 'rbd'",
               "image_format in ('rbd', 'sheepdog')")

    # Without it the clone of the disk is lost that becomes the base of the
    # image, or is left when the upload fails: the handlers of snapshot() see
    # no error of the upload, which is in one of them.
    substitute('snapshot',
               'with utils.tempdir(dir=snapshot_directory) as tmpdir:',
               'as tmpdir:',
               'as tmpdir, (\n'
               '                    self._sheepdog.snapshot(\n'
               '                        context, instance, image_id, tmpdir)'
               '):')

    @before('_live_snapshot', 'dev = guest.get_block_device(disk_path)')
    def _(self, context, instance, disk_path, out_path, image_format,
          image_meta):
        # The cluster's own snapshot needs no help of QEMU.
        if disk_path.startswith('sheepdog:'):
            return self.image_backend.by_libvirt_path(
                instance, disk_path).snapshot_extract(
                    out_path, image_format, frozen=self._frozen_file_systems(
                        context, instance, image_meta))

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

    substitute('_get_disk_config_image_type',
               "return 'rbd' if CONF.libvirt.images_type == 'rbd' else 'raw'",
               "'rbd' if CONF.libvirt.images_type == 'rbd' else 'raw'",
               "(CONF.libvirt.images_type\n"
               "                if CONF.libvirt.images_type in (\n"
               "                    'rbd', 'sheepdog') else 'raw')")

    substitute('_create_configdrive', "if CONF.libvirt.images_type == 'rbd':",
               "== 'rbd'", "in ('rbd', 'sheepdog')")

    @before('_create_guest', 'guest.launch(pause=pause)')
    def _(self, instance, xml):
        self._sheepdog.prepare_guest(instance, xml)

    @after('spawn', 'created_instance_dir, created_disks = '
           'self._create_image(')
    def _(self, instance, created_disks):
        created_disks = self._sheepdog.check_spawn(instance, created_disks)

    @before('_hard_reboot',
            'self.destroy(context, instance, network_info, '
            'destroy_disks=False,')
    def _(self, instance):
        self._sheepdog.check_not_elsewhere(instance)

    # Else a server would be lost whose resize failed when it had deleted the
    # swap, which holds nothing, and not yet made it in its new size.
    @after('_hard_reboot',
           'disk_info = blockinfo.get_disk_info(CONF.libvirt.virt_type,')
    def _(self, context, instance, block_device_info, disk_info):
        if self._sheepdog.may_lack_disks(instance, block_device_info):
            self._create_image(
                context, instance, disk_info['mapping'],
                block_device_info=block_device_info, ignore_bdi_for_swap=True)

    @before('unpause', 'guest.resume()')
    def _(self, guest):
        self._sheepdog.receive(guest)

    @before('_get_local_gb_info', 'for (k, v) in info.items():')
    def _(self, info):
        info = imagebackend.Sheepdog.host.get_capacity() or info

    @before('get_available_resource', 'return data')
    def _(self, data):
        self._sheepdog.describe(data)

    @before('check_can_live_migrate_destination', 'if disk_over_commit:')
    def _(self, instance, block_migration):
        self._sheepdog.check_destination(
            instance, block_migration, self.instance_exists(instance))

    @before('check_can_live_migrate_source', 'source = CONF.host')
    def _(self, instance, dest_check_data):
        self._sheepdog.check_source(instance, dest_check_data)

    @after('pre_live_migration', 'if not migrate_data:')
    def _(self, instance, block_device_info, migrate_data):
        self._sheepdog.expect_guest(
            instance, block_device_info, migrate_data)

    @after('_live_migration_operation',
           'if CONF.libvirt.virt_type != "parallels":')
    def _(self, instance, migration_flags, new_xml_str):
        migration_flags, new_xml_str = self._sheepdog.adapt_migration(
            instance, migration_flags, new_xml_str)

    @after('_live_migration_monitor',
           'is_post_copy_enabled &= not bool(self._get_vpmems(instance))')
    def _(self, guest, is_post_copy_enabled):
        is_post_copy_enabled &= self._sheepdog.allows_post_copy(guest)

    @before('post_live_migration_at_source',
            'self.unplug_vifs(instance, network_info)')
    def _(self, instance):
        self._sheepdog.unexport_disks(instance)

    @before('post_live_migration_at_destination',
            'self._reattach_instance_vifs(context, instance, network_info)')
    def _(self, instance):
        self._sheepdog.end_arrival(instance)

    # Nova asks by ssh whether the hosts share the directory, and makes it on
    # the other one. Hosts that share all disks need no ssh.
    substitute('migrate_disk_and_power_off',
               'shared_instance_path = self._is_path_shared_with('
               'dest, inst_base)',
               'self._is_path_shared_with(dest, inst_base)',
               '(\n'
               '            dest == self.get_host_ip_addr()\n'
               '            if self._sheepdog.keeps_all_disks(instance) else\n'
               '            self._is_path_shared_with(dest, inst_base))')
    substitute('migrate_disk_and_power_off', 'if not shared_instance_path:',
               'if not shared_instance_path:',
               'if not (shared_instance_path or\n'
               '                self._sheepdog.keeps_all_disks(instance)):')

    @before('migrate_disk_and_power_off',
            'self.power_off(instance, timeout, retry_interval)')
    def _(self, instance, flavor):
        self._sheepdog.check_resize(instance, flavor)

    @after('migrate_disk_and_power_off',
           'disk_info = self._get_instance_disk_info('
           'instance, block_device_info)')
    def _(self, context, instance, network_info, block_device_info):
        self._keep_sheepdog_disks(
            context, instance, network_info, block_device_info)

    def _keep_sheepdog_disks(
        self, context, instance, network_info, block_device_info,
    ):
        """Keep the disks as they are before a resize, or undo the resize.

        :raises: exception.InstanceFaultRollback if they cannot be kept; the
            guest runs again if it did
        """
        try:
            self._sheepdog.keep_disks(instance, block_device_info)
        except exception.NovaException as e:
            if instance.vm_state == vm_states.ACTIVE:
                self.power_on(context, instance, network_info,
                              block_device_info)
            raise exception.InstanceFaultRollback(
                exception.ResizeError(reason=str(e)))

    @before('migrate_disk_and_power_off',
            'self._cleanup_remote_migration(dest, inst_base,')
    def _(self, instance):
        self._sheepdog.forget_disks(instance, ignore_errors=True)

    @before('finish_migration', 'self._create_image('
            "context, instance, block_disk_info['mapping'],")
    def _(self, instance, block_device_info, block_disk_info):
        self._sheepdog.prepare_resized(
            instance, block_device_info, block_disk_info['mapping'])

    @before('finish_revert_migration',
            "root_disk = self.image_backend.by_name(instance, 'disk')")
    def _(self, instance, block_device_info, migration):
        self._sheepdog.restore_disks(
            instance, block_device_info, migration)

    @before('_cleanup_resize', 'if instance.host != CONF.host:')
    def _(self, instance):
        self._sheepdog.forget_disks(instance)
