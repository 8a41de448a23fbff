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
import functools
import threading
import types
from unittest import mock

import ddt
from lxml import etree
import oslo_messaging as messaging
from oslo_utils.fixture import uuidsentinel as uuids
from oslo_utils import units

from nova.compute import manager
from nova.compute import rpcapi as compute_rpcapi
from nova.compute import utils as compute_utils
from nova import context
from nova import exception
from nova import objects
from nova import test
from nova.tests.unit.virt.libvirt import sheepdog_base
from nova.virt import event as virtevent
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import driver
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import imagebackend
from nova.virt.libvirt import sheepdog_migration
from nova.virt.libvirt.storage import tgt
from nova.virt.libvirt import utils as libvirt_utils

VDI = uuids.instance + '_disk'
IQN = libvirt_utils.SHEEPDOG_IQN + uuids.instance + '.disk'
XML = """
<domain>
  <uuid>%s</uuid>
  <metadata><other:thing xmlns:other='urn:other'/></metadata>
  <devices>
    <disk type='network' device='disk'>
      <source protocol='iscsi' name='%s/1'>
        <host name='127.0.0.1' port='3260'/>
      </source>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='network' device='disk'>
      <source protocol='iscsi' name='iqn.2010-10.org.openstack:volume/1'>
        <host name='192.0.2.1' port='3260'/>
      </source>
      <target dev='vdb' bus='virtio'/>
    </disk>
  </devices>
</domain>
""" % (uuids.instance, IQN)


class LibvirtError(Exception):

    def __init__(self, code):
        super().__init__('error %d' % code)
        self.get_error_code = lambda: code


LIBVIRT = types.SimpleNamespace(
    libvirtError=LibvirtError,
    VIR_DOMAIN_AFFECT_CONFIG=2, VIR_DOMAIN_AFFECT_LIVE=1,
    VIR_DOMAIN_METADATA_ELEMENT=2,
    VIR_DOMAIN_PAUSED=3, VIR_DOMAIN_PAUSED_MIGRATION=2,
    VIR_DOMAIN_PAUSED_USER=1, VIR_DOMAIN_RUNNING=1,
    VIR_ERR_NO_DOMAIN=42, VIR_ERR_NO_DOMAIN_METADATA=80,
    VIR_ERR_OPERATION_TIMEOUT=68,
    VIR_MIGRATE_AUTO_CONVERGE=8192, VIR_MIGRATE_LIVE=1,
    VIR_MIGRATE_PAUSED=32, VIR_MIGRATE_POSTCOPY=32768)


def make_guest(state=LIBVIRT.VIR_DOMAIN_PAUSED,
               reason=LIBVIRT.VIR_DOMAIN_PAUSED_USER, resume='yes', xml=XML):
    """Return a guest as it is at the destination.

    :param resume: as in its metadata; None: it has not come
    """
    guest = mock.Mock(spec=libvirt_guest.Guest, uuid=uuids.instance,
                      _domain=mock.Mock())
    config = vconfig.LibvirtConfigGuest()
    config.parse_str(xml)
    guest.get_config.return_value = config
    guest._domain.state.return_value = [state, reason]
    if resume:
        guest._domain.metadata.return_value = "<arrival resume='%s'/>" % resume
    else:
        guest._domain.metadata.side_effect = LibvirtError(
            LIBVIRT.VIR_ERR_NO_DOMAIN_METADATA)
    return guest


class CheckTestCase(sheepdog_base.SheepdogTestMixin, test.NoDBTestCase):

    NAMES = ['disk', 'disk.swap', 'disk.rescue']

    def setUp(self):
        super().setUp()
        self.start_sheepdog()
        self.instance = objects.Instance(
            uuid=uuids.instance, image_ref=uuids.image)

    def check_destination(self, block_migration=False):
        sheepdog_migration.check_destination(
            self.instance, self.NAMES, block_migration=block_migration)

    def assert_refused(self, reason, function, *args, **kwargs):
        self.assertRaisesRegex(exception.MigrationPreCheckError, reason,
                               function, *args, **kwargs)

    def test_destination(self):
        libvirt_utils.create_sheepdog_vdi(VDI, units.Mi)
        self.check_destination()
        self.check_destination(block_migration=None)
        self.assert_refused('block migration', self.check_destination,
                            block_migration=True)

    def test_destination_that_has_the_guest(self):
        libvirt_utils.create_sheepdog_vdi(VDI, units.Mi)
        self.assert_refused(
            'already', sheepdog_migration.check_destination, self.instance,
            self.NAMES, block_migration=False, is_here=True)

    def test_destination_with_native_transport(self):
        self.flags(images_sheepdog_transport='native', group='libvirt')
        libvirt_utils.create_sheepdog_vdi(VDI, units.Mi)
        self.assert_refused('native', self.check_destination)

    def test_destination_of_a_disk_that_is_elsewhere(self):
        self.assert_refused('root disk is not', self.check_destination)

    def test_destination_of_a_server_that_booted_from_a_volume(self):
        self.instance.image_ref = ''
        self.flags(images_sheepdog_transport='native', group='libvirt')
        self.check_destination()
        libvirt_utils.create_sheepdog_vdi(VDI + '.swap', units.Mi)
        self.assert_refused('native', self.check_destination)

    def check_source(self, image_type='sheepdog', xml=XML):
        sheepdog_migration.check_source(
            make_guest(xml=xml),
            objects.LibvirtLiveMigrateData(image_type=image_type))

    def test_source(self):
        self.check_source()
        self.assert_refused('images_type is qcow2', self.check_source,
                            'qcow2')

    def test_source_of_a_server_that_booted_from_a_volume(self):
        self.check_source('qcow2', XML.replace(IQN, 'iqn.2010-10.org:other'))

    def test_source_with_native_transport(self):
        # Its options may have changed since the guest was started.
        self.assert_refused(
            'native', self.check_source, xml=XML.replace(
                "protocol='iscsi' name='%s/1'" % IQN,
                "protocol='sheepdog' name='%s'" % VDI))

    def test_prepare_destination(self):
        self.start_tgtd()
        for name in self.NAMES:
            libvirt_utils.create_sheepdog_vdi(
                '%s_%s' % (uuids.instance, name), units.Mi)
        data = objects.LibvirtLiveMigrateData(bdms=[], block_migration=False)
        sheepdog_migration.prepare_destination(
            self.instance, self.NAMES, data)
        self.assertEqual({IQN, IQN + '.swap'}, set(tgt._get_targets()))
        # as it is after it has travelled
        data = objects.LibvirtLiveMigrateData.obj_from_primitive(
            data.obj_to_primitive())
        self.assertTrue(sheepdog_migration.is_needed(data))

    def test_prepare_destination_of_a_block_migration(self):
        data = objects.LibvirtLiveMigrateData(bdms=[], block_migration=True)
        self.assert_refused(
            'block migration', sheepdog_migration.prepare_destination,
            self.instance, self.NAMES, data)

    def test_prepare_destination_of_a_server_that_booted_from_a_volume(self):
        data = objects.LibvirtLiveMigrateData(bdms=[], block_migration=False)
        sheepdog_migration.prepare_destination(
            self.instance, self.NAMES, data)
        self.assertFalse(sheepdog_migration.is_needed(data))


class SourceTestCase(sheepdog_base.SheepdogTestMixin, test.NoDBTestCase):

    def setUp(self):
        super().setUp()
        self.patch_object(libvirt_guest, 'libvirt', new=LIBVIRT)
        self.instance = objects.Instance(
            uuid=uuids.instance, vm_state='active')
        self.data = objects.LibvirtLiveMigrateData(bdms=[
            objects.LibvirtLiveMigrateBDMInfo(
                serial='sheepdog', connection_info={
                    'data': {'portal': '127.0.0.2:3261'}})])

    def test_is_not_needed_before_the_destination_says_so(self):
        self.assertFalse(sheepdog_migration.is_needed(
            objects.LibvirtLiveMigrateData()))

    def test_flags(self):
        self.assertEqual(
            LIBVIRT.VIR_MIGRATE_LIVE | LIBVIRT.VIR_MIGRATE_PAUSED,
            sheepdog_migration.get_flags(
                LIBVIRT.VIR_MIGRATE_LIVE | LIBVIRT.VIR_MIGRATE_POSTCOPY))

    def test_flags_with_auto_converge(self):
        self.flags(live_migration_permit_auto_converge=True, group='libvirt')
        self.assertEqual(
            LIBVIRT.VIR_MIGRATE_AUTO_CONVERGE | LIBVIRT.VIR_MIGRATE_PAUSED,
            sheepdog_migration.get_flags(LIBVIRT.VIR_MIGRATE_POSTCOPY))
        self.assertEqual(
            LIBVIRT.VIR_MIGRATE_PAUSED, sheepdog_migration.get_flags(0))

    def get_tree(self, xml=XML):
        return etree.fromstring(sheepdog_migration.get_destination_xml(
            xml, self.instance, self.data))

    def test_xml_names_the_portal_of_the_destination(self):
        self.assertEqual(
            [('127.0.0.2', '3261'), ('192.0.2.1', '3260')],
            [(host.get('name'), host.get('port'))
             for host in self.get_tree().iter('host')])

    def get_arrival(self, tree):
        return tree.find('metadata/{%s}arrival' % (
            sheepdog_migration.NAMESPACE)).get('resume')

    def test_xml_has_the_element(self):
        tree = self.get_tree()
        self.assertEqual(2, len(tree.find('metadata')))
        self.assertEqual('yes', self.get_arrival(tree))
        self.assertEqual('yes', self.get_arrival(
            self.get_tree('<domain><devices/></domain>')))
        self.instance.vm_state = 'paused'
        self.assertEqual('no', self.get_arrival(self.get_tree()))

    def test_xml_of_a_guest_that_has_not_been_received(self):
        xml = etree.tostring(self.get_tree(), encoding='unicode')
        self.instance.vm_state = 'paused'
        tree = self.get_tree(xml)
        self.assertEqual(2, len(tree.find('metadata')))
        self.assertEqual('no', self.get_arrival(tree))

    def test_cleanup_where_hosts_share_the_instances_path(self):
        compute = mock.Mock(spec=manager.ComputeManager)
        for image_type in 'sheepdog', 'rbd':
            data = objects.LibvirtLiveMigrateData(
                image_type=image_type, is_shared_instance_path=True,
                is_shared_block_storage=True)
            self.assertEqual(
                (image_type == 'sheepdog', False),
                manager.ComputeManager._live_migration_cleanup_flags(
                    compute, data))


@ddt.ddt
class HasNotGoneTestCase(test.NoDBTestCase):

    def check(self, answer=None, status='error', service=None):
        """Run check_has_not_gone().

        :param answer: what the other host says, or an exception
        :param status: of the last migration
        :param service: the objects.Service of the other host, or an exception
        """
        self.flags(host='here')
        migrations = [
            objects.Migration(
                id=number, migration_type='live-migration',
                source_compute='here', dest_compute='there', status=status)
            for number, status in ((2, status), (1, 'completed'))]
        service = service or objects.Service(forced_down=False)
        with mock.patch.object(objects.MigrationList, 'get_by_filters',
                               return_value=migrations), \
                mock.patch.object(objects.Service, 'get_by_compute_host',
                                  side_effect=[service]), \
                mock.patch.object(compute_rpcapi.ComputeAPI,
                                  'get_console_output',
                                  side_effect=[answer]) as ask:
            try:
                sheepdog_migration.check_has_not_gone(
                    objects.Instance(uuid=uuids.instance, host='here'))
            finally:
                self.asked = [call[0][1].host for call in ask.call_args_list]

    def test_it_has_not(self):
        self.check(exception.InstanceNotFound(instance_id=uuids.instance))
        self.assertEqual(['there'], self.asked)

    def test_fenced_host(self):
        self.check(service=objects.Service(forced_down=True))
        self.assertEqual([], self.asked)

    def test_host_of_the_past(self):
        self.check(service=exception.ComputeHostNotFound(host='there'))
        self.assertEqual([], self.asked)

    def test_migration_that_has_not_failed(self):
        self.check(status='cancelled')
        self.assertEqual([], self.asked)

    @ddt.data(('', 'has its guest'),
              (exception.ConsoleNotAvailable(), 'has its guest'),
              (messaging.MessagingTimeout(), 'does not answer'))
    @ddt.unpack
    def test_it_may_have(self, answer, words):
        error = self.assertRaises(
            exception.InstancePowerOnFailure, self.check, answer)
        self.assertIn('host there was interrupted', str(error))
        self.assertIn(words, str(error))


@ddt.ddt
class OtherCellTestCase(sheepdog_base.SheepdogTestMixin, test.NoDBTestCase):

    def setUp(self):
        super().setUp()
        self.start_sheepdog()
        self.compute = mock.Mock(spec=manager.ComputeManager, host='here',
                                 reportclient=mock.MagicMock(),
                                 network_api=mock.Mock(), rt=mock.Mock(),
                                 driver=mock.Mock())
        self.compute.driver._get_sheepdog_disk_names.return_value = [
            'disk', 'disk.eph0']

    def prepare(self):
        with mock.patch.object(compute_utils, 'EventReporter'), \
                mock.patch.object(compute_utils,
                                  'add_instance_fault_from_exc'):
            manager.ComputeManager.prep_snapshot_based_resize_at_dest(
                self.compute, context.get_admin_context(), objects.Instance(
                    id=1, uuid=uuids.instance, vm_state='active',
                    image_ref=None, system_metadata={},
                    migration_context=None), None, 'node', None, None)

    def test_other_cluster(self):
        self.prepare()
        self.compute.rt.resize_claim.assert_called_once()

    @ddt.data('disk', 'disk.eph0')
    def test_same_cluster(self, name):
        libvirt_utils.create_sheepdog_vdi(
            '%s_%s' % (uuids.instance, name), units.Mi)
        error = self.assertRaises(exception.NoValidHost, self.prepare)
        self.assertIn('within its cell', str(error))
        self.compute.rt.resize_claim.assert_not_called()

    def test_failure_leaves_no_disk(self):
        instance = objects.Instance(
            uuid=uuids.instance, system_metadata={'old_vm_state': 'active'})
        self.compute.driver.spawn.side_effect = exception.SheepdogError(
            gateway='', command='', reason='full')
        self.assertRaises(
            exception.SheepdogError,
            manager.ComputeManager._finish_snapshot_based_resize_at_dest_spawn,
            self.compute, None, instance, objects.Migration(
                source_compute='there', dest_compute='here'), None, [])
        self.compute.driver.destroy.assert_called_once_with(
            None, instance, mock.ANY, block_device_info=mock.ANY)


class DestinationTestCase(sheepdog_base.SheepdogTestMixin,
                          test.NoDBTestCase):

    def setUp(self):
        super().setUp()
        self.patch_object(libvirt_guest, 'libvirt', new=LIBVIRT)
        self.calls = mock.Mock()
        self.reload = self.patch_object(tgt, 'reload')
        self.calls.attach_mock(self.reload, 'reload')
        self.host = mock.Mock()

    def receive(self, **kwargs):
        guest = make_guest(**kwargs)
        self.calls.attach_mock(guest.resume, 'resume')
        self.calls.attach_mock(guest._domain.setMetadata, 'forget')
        sheepdog_migration.try_to_receive(guest)
        return [call[0] for call in self.calls.mock_calls]

    def test_receive(self):
        self.assertEqual(['reload', 'resume', 'forget'], self.receive())
        self.reload.assert_called_once_with({IQN: VDI})

    def test_receive_a_paused_server(self):
        self.assertEqual(['reload', 'forget'], self.receive(resume='no'))

    def test_leave_a_guest_whose_source_runs(self):
        self.assertEqual([], self.receive(
            reason=LIBVIRT.VIR_DOMAIN_PAUSED_MIGRATION))

    def test_leave_a_guest_that_its_user_has_paused(self):
        self.assertEqual([], self.receive(resume=None))

    def test_leave_a_guest_that_is_gone(self):
        guest = make_guest()
        guest._domain.metadata.side_effect = LibvirtError(
            LIBVIRT.VIR_ERR_NO_DOMAIN)
        sheepdog_migration.try_to_receive(guest)
        self.reload.assert_not_called()

    def test_forget_that_a_running_guest_has_come(self):
        self.assertEqual(['forget'], self.receive(
            state=LIBVIRT.VIR_DOMAIN_RUNNING))

    def test_never_resume_without_a_reload(self):
        self.reload.side_effect = exception.TgtError(
            command='tgtadm', reason='invalid request')
        self.assertEqual(['reload'], self.receive())
        self.assertIn('kept paused', self.stdlog.logger.output)
        self.assertIn('invalid request', self.stdlog.logger.output)

    def test_unpause_reloads_first(self):
        guest = make_guest(resume='no')
        self.host.get_guest.return_value = guest
        unpause = functools.partial(
            driver.LibvirtDriver.unpause, mock.Mock(_host=self.host),
            mock.Mock())
        self.flags(images_type='sheepdog', group='libvirt')
        self.reload.side_effect = exception.TgtError(
            command='tgtadm', reason='no')
        self.assertRaises(exception.TgtError, unpause)
        guest.resume.assert_not_called()
        self.reload.side_effect = None
        unpause()
        guest.resume.assert_called_once_with()

    def test_received_by_another_thread_meanwhile(self):
        guest = make_guest()
        guest._domain.metadata.side_effect = [
            '<arrival/>', LibvirtError(LIBVIRT.VIR_ERR_NO_DOMAIN_METADATA)]
        sheepdog_migration.try_to_receive(guest)
        self.reload.assert_not_called()

    def test_failure_of_libvirt(self):
        guest = make_guest()
        guest._domain.metadata.side_effect = LibvirtError(
            LIBVIRT.VIR_ERR_OPERATION_TIMEOUT)
        sheepdog_migration.try_to_receive(guest)
        self.assertIn('error 68', self.stdlog.logger.output)

    def test_event(self):
        received = threading.Event()
        guest = make_guest()
        guest._domain.setMetadata.side_effect = (
            lambda *args: received.set())
        self.host.list_guests.return_value = [
            mock.Mock(uuid=uuids.other), guest]
        sheepdog_migration.handle_event(
            self.host, virtevent.LifecycleEvent(
                uuids.instance, virtevent.EVENT_LIFECYCLE_PAUSED))
        self.assertTrue(received.wait(20))

    def test_other_events(self):
        with mock.patch.object(threading, 'Thread') as thread:
            sheepdog_migration.handle_event(
                self.host, virtevent.LifecycleEvent(
                    uuids.instance, virtevent.EVENT_LIFECYCLE_RESUMED))
            sheepdog_migration.handle_event(
                self.host, virtevent.InstanceEvent(uuids.instance))
        thread.assert_not_called()

    def test_keep_receiving(self):
        self.patch_object(sheepdog_migration, 'RECEIVE_INTERVAL', new=0.01)
        received = threading.Event()
        guest = make_guest()
        guest._domain.setMetadata.side_effect = (
            lambda *args: received.set())
        # libvirtd is away, tgtd cannot yet reload, and then both can
        self.host.list_guests.side_effect = [
            LibvirtError(38), [guest]] + [[guest]] * 10000
        self.reload.side_effect = [
            exception.TgtError(command='tgtadm', reason='no')] + (
                [None] * 10000)
        sheepdog_migration.keep_receiving(self.host)
        self.addCleanup(sheepdog_migration.stop_receiving)
        self.assertTrue(received.wait(20))


class UnexportTestCase(sheepdog_base.SheepdogTestMixin, test.NoDBTestCase):

    def test_ignore_errors(self):
        self.patch_object(tgt, 'unexport', side_effect=exception.TgtError(
            command='tgtadm', reason='no'))
        instance = objects.Instance(uuid=uuids.instance)
        imagebackend.Sheepdog.unexport_disks(instance, ignore_errors=True)
        self.assertIn('Left targets', self.stdlog.logger.output)
        self.assertRaises(
            exception.TgtError, imagebackend.Sheepdog.unexport_disks,
            instance)
