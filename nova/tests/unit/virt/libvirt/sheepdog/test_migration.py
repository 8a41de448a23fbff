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

import ddt
from lxml import etree
from oslo_utils.fixture import uuidsentinel as uuids

from nova import exception
from nova import objects
from nova import test
from nova.tests.unit.virt.libvirt.sheepdog import base
from nova.tests.unit.virt.libvirt.sheepdog import fake_libvirt
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt.sheepdog import migration

LIBVIRT = fake_libvirt.LIBVIRT


class _MigrationTestCase(base.SheepdogTestMixin, test.NoDBTestCase):

    def setUp(self):
        super().setUp()
        self.patch_object(libvirt_guest, 'libvirt', new=LIBVIRT)
        self.instance = objects.Instance(
            uuid=uuids.instance, image_ref=uuids.image, host='here',
            vm_state='active')


class CheckTestCase(_MigrationTestCase):

    def _check_destination(self, *found, transport='iscsi',
                           block_migration=False, is_here=False):
        migration.check_destination(
            self.instance, found, transport, block_migration, is_here)

    def _assert_refused(self, reason, function, *args, **kwargs):
        self.assertRaisesRegex(exception.MigrationPreCheckError, reason,
                               function, *args, **kwargs)

    def test_destination(self):
        self._check_destination('disk')
        self._check_destination('disk', block_migration=None)
        self._assert_refused('block migration', self._check_destination,
                             'disk', block_migration=True)

    def test_destination_that_has_the_guest(self):
        self._assert_refused('already', self._check_destination, 'disk',
                             is_here=True)

    def test_destination_with_native_transport(self):
        self._assert_refused('native', self._check_destination, 'disk',
                             transport='native')

    def test_destination_of_a_disk_that_is_elsewhere(self):
        self._assert_refused('root disk is not', self._check_destination,
                             'disk.swap')

    def test_destination_of_a_server_that_booted_from_a_volume(self):
        self.instance.image_ref = ''
        self._check_destination(transport='native')
        self._assert_refused('native', self._check_destination, 'disk.swap',
                             transport='native')

    def _check_source(self, image_type='sheepdog', xml=fake_libvirt.XML):
        migration.check_source(
            libvirt_guest.Guest(fake_libvirt.make_domain(xml=xml)),
            image_type)

    def test_source(self):
        self._check_source()
        self._assert_refused('images_type is qcow2', self._check_source,
                             'qcow2')

    def test_source_of_a_server_that_booted_from_a_volume(self):
        self._check_source('qcow2', fake_libvirt.OTHER_XML)

    def test_source_with_native_transport(self):
        # Its options may have changed since the guest was started.
        self._assert_refused('native', self._check_source,
                             xml=fake_libvirt.NATIVE_XML)


class XMLTestCase(_MigrationTestCase):

    def test_flags(self):
        self.assertEqual(
            LIBVIRT.VIR_MIGRATE_LIVE | LIBVIRT.VIR_MIGRATE_PAUSED,
            migration.get_flags(
                LIBVIRT.VIR_MIGRATE_LIVE | LIBVIRT.VIR_MIGRATE_POSTCOPY))

    def test_flags_with_auto_converge(self):
        self.flags(live_migration_permit_auto_converge=True, group='libvirt')
        self.assertEqual(
            LIBVIRT.VIR_MIGRATE_AUTO_CONVERGE | LIBVIRT.VIR_MIGRATE_PAUSED,
            migration.get_flags(LIBVIRT.VIR_MIGRATE_POSTCOPY))
        self.assertEqual(LIBVIRT.VIR_MIGRATE_PAUSED, migration.get_flags(0))

    def test_which_guests_have_exports(self):
        self.assertEqual(
            [True, False, False],
            [migration.has_exports(xml) for xml in (
                fake_libvirt.XML, fake_libvirt.NATIVE_XML,
                fake_libvirt.OTHER_XML)])

    def _get_tree(self, xml=fake_libvirt.XML):
        return etree.fromstring(migration.get_destination_xml(
            xml, self.instance,
            {'host': 'there', 'portal': '127.0.0.2:3261'}))

    def test_xml_names_the_portal_of_the_destination(self):
        self.assertEqual(
            [('127.0.0.2', '3261'), ('192.0.2.1', '3260')],
            [(host.get('name'), host.get('port'))
             for host in self._get_tree().iter('host')])

    @staticmethod
    def _get_arrival(tree):
        return tree.find('metadata/{%s}arrival' % (
            migration.NAMESPACE)).get('resume')

    def test_xml_has_the_element(self):
        tree = self._get_tree()
        self.assertEqual(2, len(tree.find('metadata')))
        self.assertEqual('yes', self._get_arrival(tree))
        self.assertEqual('yes', self._get_arrival(
            self._get_tree('<domain><devices/></domain>')))
        self.instance.vm_state = 'paused'
        self.assertEqual('no', self._get_arrival(self._get_tree()))

    def test_xml_of_a_guest_that_has_not_been_received(self):
        xml = etree.tostring(self._get_tree(), encoding='unicode')
        self.instance.vm_state = 'paused'
        tree = self._get_tree(xml)
        self.assertEqual(2, len(tree.find('metadata')))
        self.assertEqual('no', self._get_arrival(tree))


@ddt.ddt
class ArrivalTestCase(_MigrationTestCase):
    """What the destination reads from a domain."""

    def test_arrival(self):
        domain = fake_libvirt.make_domain()
        self.assertEqual('yes',
                         migration.get_arrival(domain).get('resume'))
        domain.metadata.assert_called_once_with(
            LIBVIRT.VIR_DOMAIN_METADATA_ELEMENT, migration.NAMESPACE)

    @ddt.data(LIBVIRT.VIR_ERR_NO_DOMAIN, LIBVIRT.VIR_ERR_NO_DOMAIN_METADATA)
    def test_no_arrival(self, error):
        domain = fake_libvirt.make_domain()
        domain.metadata.side_effect = LIBVIRT.libvirtError(error)
        self.assertIsNone(migration.get_arrival(domain))

    def test_libvirt_does_not_tell(self):
        domain = fake_libvirt.make_domain()
        domain.metadata.side_effect = LIBVIRT.libvirtError(
            LIBVIRT.VIR_ERR_OPERATION_TIMEOUT)
        self.assertRaises(
            LIBVIRT.libvirtError, migration.get_arrival, domain)

    def test_remove_arrival(self):
        """From the guest, and from what it is started of later."""
        domain = fake_libvirt.make_domain()
        migration.remove_arrival(domain)
        domain.setMetadata.assert_called_once_with(
            LIBVIRT.VIR_DOMAIN_METADATA_ELEMENT, None, None,
            migration.NAMESPACE, LIBVIRT.VIR_DOMAIN_AFFECT_LIVE |
            LIBVIRT.VIR_DOMAIN_AFFECT_CONFIG)
        self.assertIsNone(migration.get_arrival(domain))

    @ddt.data((LIBVIRT.VIR_DOMAIN_PAUSED, LIBVIRT.VIR_DOMAIN_PAUSED_USER,
               True, True),
              # The source still runs it.
              (LIBVIRT.VIR_DOMAIN_PAUSED,
               LIBVIRT.VIR_DOMAIN_PAUSED_MIGRATION, True, False),
              (LIBVIRT.VIR_DOMAIN_RUNNING, LIBVIRT.VIR_DOMAIN_PAUSED_USER,
               False, False))
    @ddt.unpack
    def test_state(self, state, reason, is_paused, has_arrived):
        domain = fake_libvirt.make_domain(state, reason)
        self.assertEqual(
            (is_paused, has_arrived),
            (migration.is_paused(domain), migration.has_arrived(domain)))


@ddt.ddt
class ElsewhereTestCase(_MigrationTestCase):

    ARRIVAL = {'host': 'there', 'portal': '127.0.0.1:3260'}

    def _check(self, arrival=ARRIVAL, status='error', dest='there',
               service=None):
        """Run check_not_elsewhere().

        :param status: of the last migration, to dest
        :param service: the objects.Service of the other host, or an exception
        """
        self.flags(host='here')
        migrations = [
            objects.Migration(id=number, migration_type='live-migration',
                              dest_compute=host, status=status)
            for number, host, status in (
                (2, dest, status), (1, 'there', 'error'))]
        self.get_migrations = self.patch_object(
            objects.MigrationList, 'get_by_filters',
            return_value=migrations if status else [])
        self.patch_object(
            objects.Service, 'get_by_compute_host',
            side_effect=[service or objects.Service(forced_down=False)])
        migration.check_not_elsewhere(self.instance, arrival)

    @ddt.data('error', 'running', 'cancelled')
    def test_it_may_be(self, status):
        """libvirt goes on with it whatever Nova takes it to be."""
        error = self.assertRaises(
            exception.InstancePowerOnFailure, self._check, status=status)
        self.assertIn('to host there was interrupted', str(error))
        self.assertIn('virsh destroy', str(error))

    @ddt.data(None, {'host': 'here'})
    def test_nothing_is_on_record(self, arrival):
        self._check(arrival)
        self.get_migrations.assert_not_called()

    @ddt.data(
        # It was noted, and is not on its way any more.
        {'status': 'completed'},
        {'dest': 'elsewhere'},
        # The database has forgotten it.
        {'status': None},
        {'service': objects.Service(forced_down=True)},
        {'service': exception.ComputeHostNotFound(host='there')})
    def test_it_is_not(self, how):
        self._check(**how)
