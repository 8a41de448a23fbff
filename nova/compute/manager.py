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
from graft.fragment import after
from graft.fragment import before

from nova.compute.manager import CONF
from nova.compute.manager import fields
from nova.compute.manager import LOG
from nova import objects
from nova.virt.libvirt import sheepdog_migration
from nova.virt.libvirt.storage import rootwrap


class ComputeManager:

    @after('cleanup_host', 'self.driver.cleanup_host(host=self.host)')
    def _(self):
        # Not every release has the driver do anything here.
        rootwrap.stop()

    @after('_live_migration_cleanup_flags',
           ('destroy_disks = not migrate_data.is_shared_block_storage',
            'destroy_disks = not ('))
    def _(self, migrate_data, do_cleanup):
        # Hosts that share instances_path do not share exports.
        do_cleanup |= ('image_type' in migrate_data and
                       migrate_data.image_type == 'sheepdog')

    @before('prep_snapshot_based_resize_at_dest',
            "LOG.debug('Checking if we can cross-cell migrate instance to "
            "this '")
    def _(self, instance):
        if CONF.libvirt.images_type == 'sheepdog':
            sheepdog_migration.check_other_cell(
                instance, self.driver._get_sheepdog_disk_names(instance))

    @after('_finish_snapshot_based_resize_at_dest_spawn', 'for bdm in bdms:')
    def _(self, ctxt, instance, network_info, block_device_info):
        # The instance of this cell goes next, and then nobody could
        # delete the disks that were made before the failure.
        if CONF.libvirt.images_type == 'sheepdog':
            self.driver.destroy(
                ctxt, instance, network_info,
                block_device_info=block_device_info)

    @before('_destroy_evacuated_instances', 'filters = {')
    def _(self, context):
        if CONF.libvirt.images_type == 'sheepdog':
            self._destroy_half_evacuated_instances(context)

    @before('', 'def _destroy_evacuated_instances(self, context, node_cache):')
    def _destroy_half_evacuated_instances(self, context):
        """Destroy guests whose evacuation to this host was interrupted.

        Their instances are still those of the other host. Nova evacuates none
        to a host that has its guest; and if it went to a third one, both
        guests would write to its disks.

        :param context: The request context
        """
        uuids = {
            migration.instance_uuid for migration in
            objects.MigrationList.get_by_filters(context, {
                'host': self.host,
                'status': ['accepted', 'pre-migrating'],
                'migration_type': fields.MigrationType.EVACUATION})
            if migration.dest_compute == self.host}
        if not uuids:
            return
        for instance in self._get_instances_on_driver(context):
            if instance.uuid in uuids and instance.host != self.host:
                LOG.info('Destroying instance whose evacuation to this host '
                         'was interrupted', instance=instance)
                self.driver.destroy(
                    context, instance,
                    self.network_api.get_instance_nw_info(context, instance),
                    self._get_instance_block_device_info(context, instance),
                    destroy_disks=False)
