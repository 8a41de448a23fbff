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

"""What the compute manager does for Sheepdog."""

import ddt

from nova.compute import utils as compute_utils
from nova import exception
from nova import objects
from nova.tests.unit.compute import test_shared_storage as base


@ddt.ddt
class ManagerTestCase(base.ManagerTestCase):

    def test_end(self):
        # What follows ends threads that other tests have in common.
        self.driver.stop_image_backend.side_effect = base.Refused
        self.assertRaises(base.Refused, self.manager.cleanup_host)
        self.driver.cleanup_host.assert_called_once_with(host='here')

    @ddt.data('sheepdog', 'rbd')
    def test_cleanup_where_hosts_share_the_instances_path(self, image_type):
        data = objects.LibvirtLiveMigrateData(
            image_type=image_type, is_shared_instance_path=True,
            is_shared_block_storage=True)
        self.assertEqual((image_type == 'sheepdog', False),
                         self.manager._live_migration_cleanup_flags(data))

    def test_cleanup_of_a_migration_that_names_no_backend(self):
        data = objects.LibvirtLiveMigrateData(
            is_shared_instance_path=True, is_shared_block_storage=True)
        self.assertEqual((False, False),
                         self.manager._live_migration_cleanup_flags(data))

    def test_cold_migration_is_refused(self):
        """Before anything is claimed; another host may be tried."""
        self.instance.flavor = objects.Flavor(id=1)
        self.instance.vm_state = 'active'
        self.driver.capabilities = {'supports_migrate_to_same_host': True}
        self.driver.check_cold_migration.side_effect = base.Refused
        self.assertRaises(
            base.Refused, self.manager._prep_resize, self.context, None,
            self.instance, objects.Flavor(id=2), {}, 'node',
            objects.Migration(), None)
        self.driver.check_cold_migration.assert_called_once_with(
            self.instance)
        self.manager.rt.resize_claim.assert_not_called()


class OtherCellTestCase(base.ManagerTestCase):

    def _prepare(self):
        self._patch(compute_utils, 'EventReporter')
        self._patch(compute_utils, 'add_instance_fault_from_exc')
        self._patch(self.manager, '_send_prep_resize_notifications')
        self.manager.prep_snapshot_based_resize_at_dest(
            self.context, self.instance, None, 'node', None, None)

    def test_other_storage(self):
        self._prepare()
        self.driver.check_resize_from_other_cell.assert_called_once_with(
            self.instance)
        self.manager.rt.resize_claim.assert_called_once()

    def test_same_storage(self):
        """The conductor tells the user what NoValidHost says."""
        self.driver.check_resize_from_other_cell.side_effect = (
            exception.NoValidHost(reason=''))
        self.assertRaises(exception.NoValidHost, self._prepare)
        self.manager.rt.resize_claim.assert_not_called()
