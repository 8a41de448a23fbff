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

"""What the compute manager leaves on storage that hosts share."""

from unittest import mock

import ddt
from oslo_utils.fixture import uuidsentinel as uuids

from nova.compute import manager
from nova import context
from nova import objects
from nova import test
from nova.virt import driver


class Refused(Exception):
    """What the driver raises here."""


class ManagerTestCase(test.NoDBTestCase):

    def setUp(self):
        super().setUp()
        self.flags(host='here')
        self.context = context.get_admin_context()
        # Not one that is set up: it would load a driver.
        self.manager = manager.ComputeManager.__new__(manager.ComputeManager)
        self.manager.host = 'here'
        self.driver = mock.create_autospec(driver.ComputeDriver,
                                           instance=True)
        self.manager.driver = self.driver
        for name in 'network_api', 'reportclient', 'rt', 'instance_events':
            setattr(self.manager, name, mock.MagicMock())
        self.instance = objects.Instance(
            id=1, uuid=uuids.instance, host='there', vm_state='active',
            image_ref=None, system_metadata={'old_vm_state': 'active'},
            migration_context=None)

    def _patch(self, target, name, **kwargs):
        patcher = mock.patch.object(target, name, **kwargs)
        self.addCleanup(patcher.stop)
        return patcher.start()


class OtherCellTestCase(ManagerTestCase):

    def test_failure_leaves_no_disk(self):
        bdi = {'block_device_mapping': []}
        self._patch(self.manager, '_prep_block_device', return_value=bdi)
        self.driver.spawn.side_effect = Refused
        self.assertRaises(
            Refused,
            self.manager._finish_snapshot_based_resize_at_dest_spawn,
            self.context, self.instance, objects.Migration(
                source_compute='there', dest_compute='here'), None, [])
        self.driver.destroy.assert_called_once_with(
            self.context, self.instance,
            self.manager.network_api.get_instance_nw_info.return_value,
            block_device_info=bdi)


@ddt.ddt
class HalfEvacuatedTestCase(ManagerTestCase):

    def _start(self, *migrations, is_on_driver=True,
               can_evacuate=True):
        """Have the manager look for evacuated instances as it starts."""
        self.driver.capabilities = {'supports_evacuate': can_evacuate}
        self.driver.list_instance_uuids.return_value = (
            [uuids.instance] if is_on_driver else [])
        self.get_by_filters = self._patch(
            objects.MigrationList, 'get_by_filters',
            side_effect=lambda context, filters: (
                list(migrations) if 'host' in filters else []))
        self.on_driver = self._patch(
            self.manager, '_get_instances_on_driver',
            return_value=[self.instance])
        self._patch(self.manager, '_get_instance_block_device_info',
                    return_value=mock.sentinel.bdi)
        self.assertEqual(
            {}, self.manager._destroy_evacuated_instances(self.context, {}))

    @staticmethod
    def _make_migration(source='there', dest='here'):
        return objects.Migration(
            instance_uuid=uuids.instance, source_compute=source,
            dest_compute=dest)

    def test_guest_of_another_host(self):
        self._start(self._make_migration())
        self.driver.destroy.assert_called_once_with(
            self.context, self.instance,
            self.manager.network_api.get_instance_nw_info.return_value,
            mock.sentinel.bdi, destroy_disks=False)
        self.assertEqual(
            {'host': 'here', 'status': ['accepted', 'pre-migrating'],
             'migration_type': 'evacuation'},
            self.get_by_filters.call_args_list[0][0][1])

    def test_guest_that_has_come(self):
        self.instance.host = 'here'
        self._start(self._make_migration())
        self.driver.destroy.assert_not_called()

    def test_host_without_guests(self):
        """Nothing is asked of the database that was not asked before."""
        self._start(self._make_migration(), is_on_driver=False)
        self.assertEqual(
            ['here'], [call[0][1].get('source_compute') for call in
                       self.get_by_filters.call_args_list])

    def test_driver_that_cannot_evacuate(self):
        self._start(self._make_migration(), can_evacuate=False)
        self.driver.list_instance_uuids.assert_not_called()
        self.driver.destroy.assert_not_called()

    @ddt.data(None, ('here', 'there'))
    def test_no_evacuation_to_here(self, hosts):
        self._start(*([self._make_migration(*hosts)] if hosts else []))
        self.on_driver.assert_not_called()
        self.driver.destroy.assert_not_called()
