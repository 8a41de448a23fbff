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

from nova.compute.manager import fields
from nova.compute.manager import LOG
from nova import objects


class ComputeManager:

    @after('cleanup_host', 'self.driver.cleanup_host(host=self.host)')
    def _(self):
        self.driver.stop_image_backend()

    @after('_live_migration_cleanup_flags',
           ('destroy_disks = not migrate_data.is_shared_block_storage',
            'destroy_disks = not ('))
    def _(self, migrate_data, do_cleanup):
        # Hosts that share instances_path do not share targets.
        do_cleanup |= ('image_type' in migrate_data and
                       migrate_data.image_type == 'sheepdog')

    @after('_prep_resize', 'if not instance.host:')
    def _(self, instance):
        self.driver.check_cold_migration(instance)

    @before('prep_snapshot_based_resize_at_dest',
            "LOG.debug('Checking if we can cross-cell migrate instance to "
            "this '")
    def _(self, instance):
        self.driver.check_resize_from_other_cell(instance)

    # A bug of Nova's, for every backend on shared storage: the instance of
    # this cell goes next, and then nothing could delete the disks that were
    # made before the failure.
    @after('_finish_snapshot_based_resize_at_dest_spawn', 'for bdm in bdms:')
    def _(self, ctxt, instance, network_info, block_device_info):
        self.driver.destroy(
            ctxt, instance, network_info,
            block_device_info=block_device_info)

    # A bug of Nova's, for every backend on shared storage.
    @before('_destroy_evacuated_instances', 'filters = {')
    def _(self, context):
        self._destroy_half_evacuated_instances(context)

    def _destroy_half_evacuated_instances(self, context):
        """Destroy guests whose evacuation to this host was interrupted.

        Their instances are still those of the other host. Nova evacuates none
        to a host that has its guest; and if it went to a third one, both
        guests would write to its disks.

        :param context: The request context
        """
        if not (self.driver.capabilities.get('supports_evacuate', False) and
                self.driver.list_instance_uuids()):
            return
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
