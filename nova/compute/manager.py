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
