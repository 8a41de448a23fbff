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


class ComputeDriver:

    @after('', 'def cleanup_host(self, host):')
    def stop_image_backend(self):
        """Give back what other hosts wait for, as nova-compute is ending.

        cleanup_host() does it in releases whose libvirt driver has that.
        """

    @after('', 'def cleanup_host(self, host):')
    def check_cold_migration(self, instance):
        """Refuse, at the destination, to move an instance without its disks.

        :param instance: nova.objects.instance.Instance
        :raises: nova.exception.MigrationPreCheckError
        """

    @after('', 'def cleanup_host(self, host):')
    def check_resize_from_other_cell(self, instance):
        """Refuse a resize whose disks are the same in both cells.

        :param instance: nova.objects.instance.Instance
        :raises: nova.exception.NoValidHost if they are
        """
