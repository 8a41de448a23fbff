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

import re
import time
from unittest import mock

import ddt
import fixtures
from oslo_utils import units

from nova import exception
from nova import test
from nova.tests.unit.virt.libvirt.sheepdog import base
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt.sheepdog import rootwrap
from nova.virt.libvirt import utils as libvirt_utils

OWNER = '7b6d2f63-5a58-4b3a-9d4e-1f6b1a0c2d3e'
TOKEN = '0123456789abcdef0123456789abcdef'
VDI = OWNER + '_disk'
CLONE = OWNER + '_disk.local'
RECORD = OWNER + '_state'


@ddt.ddt
class NameTestCase(test.NoDBTestCase):

    @ddt.data('disk', 'disk.local', 'disk.eph0', 'disk.eph0.rescue',
              'scratch', 'state', 'base.' + TOKEN, 'record.' + TOKEN,
              'import.' + TOKEN, 'lease.17')
    def test_vdi(self, kind):
        vdi = libvirt_utils.get_sheepdog_vdi(OWNER, kind)
        self.assertEqual('%s_%s' % (OWNER, kind), vdi)
        owner, first, rest = libvirt_utils.split_sheepdog_vdi(vdi)
        self.assertEqual(
            (OWNER, kind.partition('.')[0], kind.partition('.')[2]),
            (owner, first, rest))

    @ddt.data('', 'disk', OWNER, OWNER + '_', OWNER + '.disk',
              OWNER.upper() + '_disk', 'x' + VDI, VDI + '\n', VDI + '.',
              VDI + '/x', 'volume-' + OWNER, OWNER + '_disk_x')
    def test_vdi_of_others(self, name):
        self.assertIsNone(libvirt_utils.split_sheepdog_vdi(name))

    @staticmethod
    def _make_disk(protocol, name):
        disk = vconfig.LibvirtConfigGuestDisk()
        disk.source_type = 'network'
        disk.source_protocol = protocol
        disk.source_name = name
        disk.driver_format = 'raw'
        return disk

    @ddt.data('disk', 'disk.local', 'disk.eph0.rescue', 'scratch',
              'import.' + TOKEN)
    def test_iqn(self, kind):
        vdi = libvirt_utils.get_sheepdog_vdi(OWNER, kind)
        iqn = libvirt_utils.get_sheepdog_iqn(vdi)
        # tgtd refuses it
        self.assertNotIn('_', iqn)
        self.assertEqual(vdi, libvirt_utils.get_sheepdog_vdi_of_disk(
            self._make_disk('iscsi', iqn + '/1')))
        self.assertEqual(iqn + '.' + TOKEN,
                         libvirt_utils.get_sheepdog_iqn(vdi, TOKEN))

    def test_iqn_of_an_instance(self):
        self.assertTrue(libvirt_utils.get_sheepdog_iqn(VDI).startswith(
            libvirt_utils.get_sheepdog_iqn(OWNER + '_')))

    @ddt.data(('iscsi', 'iqn.2010-10.org.openstack:volume-1/1'),
              ('iscsi', None), ('rbd', 'vms/' + VDI), (None, None))
    @ddt.unpack
    def test_disk_of_others(self, protocol, name):
        self.assertIsNone(libvirt_utils.get_sheepdog_vdi_of_disk(
            self._make_disk(protocol, name)))

    @ddt.data(('sheepdog', VDI),
              ('iscsi', libvirt_utils.get_sheepdog_iqn(VDI) + '/1'))
    @ddt.unpack
    def test_find_disk(self, protocol, name):
        config = vconfig.LibvirtConfigGuest()
        config.virt_type = 'kvm'
        config.devices = [self._make_disk(protocol, name)]
        guest = mock.Mock()
        guest.get_config.return_value = config
        path, disk_format = libvirt_utils.find_disk(guest)
        self.assertEqual(('sheepdog:' + VDI, 'raw'), (path, disk_format))
        self.assertEqual('sheepdog',
                         libvirt_utils.get_disk_type_from_path(path))

    def test_no_path_of_no_vdi(self):
        self.assertIsNone(libvirt_utils.get_sheepdog_path(None))

    def test_localhost_is_an_ipv4_address(self):
        self.flags(images_sheepdog_host='localhost',
                   images_sheepdog_port=7001, group='libvirt')
        self.assertEqual(('127.0.0.1', '7001'),
                         libvirt_utils.get_sheepdog_gateway())
        self.flags(images_sheepdog_host='192.0.2.1', group='libvirt')
        self.assertEqual(('192.0.2.1', '7001'),
                         libvirt_utils.get_sheepdog_gateway())


class _UtilsTestCase(base.SheepdogTestMixin, test.NoDBTestCase):

    CLUSTER = {}

    def setUp(self):
        super().setUp()
        start = self.start_sheepdog if self.IS_REAL else self.start_model
        start(**self.CLUSTER)
        self.warn = self.patch_object(libvirt_utils.LOG, 'warning')

    def install_dog(self, case):
        """Have dog do something else in some cases.

        :param case: shell patterns of the first words and what to do then, in
            which "$real" is dog and "$vdi" the last word
        """
        # The model would not run it.
        self.assertTrue(self.IS_REAL)
        self.install('dog', """
            real='%s'
            for vdi; do :; done
            case "$*" in
            %s
            *) exec "$real" "$@";;
            esac""" % (self.sheepdog.dog, case))

    def count_calls(self, subcommand):
        return self.sheepdog.stats()['calls'].get(subcommand, 0)

    def get_vdis(self):
        return {(vdi['name'], vdi['tag'] or None)
                for vdi in self.sheepdog.vdis()}

    def write(self, vdi, offset, data):
        self.assertEqual((0, b'', b''), self.sheepdog.run(
            'vdi', 'write', vdi, offset, str(len(data)), stdin=data))

    def read(self, vdi):
        return self.dog('vdi', 'read', vdi, '0', '5')


@ddt.ddt
class VDITestCase(_UtilsTestCase):

    def test_exists(self):
        self.assertFalse(libvirt_utils.sheepdog_vdi_exists(VDI))
        libvirt_utils.create_sheepdog_vdi(VDI, units.Mi)
        self.assertTrue(libvirt_utils.sheepdog_vdi_exists(VDI))
        libvirt_utils.snapshot_sheepdog_vdi(VDI, 'tag')
        self.assertTrue(libvirt_utils.sheepdog_vdi_exists(VDI))
        self.assertTrue(libvirt_utils.delete_sheepdog_vdi(VDI))
        self.assertFalse(libvirt_utils.sheepdog_vdi_exists(VDI))
        self.warn.assert_not_called()
        self.assertEqual(0, self.count_calls('vdi list'))

    def test_snapshot_exists(self):
        def exists():
            return libvirt_utils.sheepdog_snapshot_exists(VDI, 'tag')

        self.assertFalse(exists())
        libvirt_utils.create_sheepdog_vdi(VDI, units.Mi)
        libvirt_utils.snapshot_sheepdog_vdi(VDI, 'other')
        self.assertFalse(exists())
        libvirt_utils.snapshot_sheepdog_vdi(VDI, 'tag')
        self.assertTrue(exists())
        libvirt_utils.delete_sheepdog_vdi(VDI)
        self.assertTrue(exists())
        self.warn.assert_not_called()
        self.sheepdog.kill()
        self.assertRaises(exception.SheepdogUnreachable, exists)

    def test_create_existing(self):
        libvirt_utils.create_sheepdog_vdi(VDI, units.Mi)
        self.assertRaisesRegex(
            exception.SheepdogVDIExists, VDI,
            libvirt_utils.create_sheepdog_vdi, VDI, units.Mi)
        self.warn.assert_not_called()

    def test_create_too_large(self):
        self.assertRaisesRegex(
            exception.SheepdogError, 'VDI size is larger',
            libvirt_utils.create_sheepdog_vdi, VDI,
            libvirt_utils.SHEEPDOG_MAX_SIZE + 1)
        libvirt_utils.create_sheepdog_vdi(
            VDI, libvirt_utils.SHEEPDOG_MAX_SIZE)

    def test_resize(self):
        libvirt_utils.create_sheepdog_vdi(VDI, units.Mi)
        for _attempt in range(2):
            self.assertTrue(
                libvirt_utils.resize_sheepdog_vdi(VDI, 2 * units.Mi))
        self.assertFalse(libvirt_utils.resize_sheepdog_vdi(VDI, units.Mi))
        self.assertEqual([2 * units.Mi],
                         [vdi['size'] for vdi in self.sheepdog.vdis()])
        self.warn.assert_not_called()

    def test_resize_what_is_not_there(self):
        self.assertRaisesRegex(
            exception.SheepdogVDINotFound, VDI,
            libvirt_utils.resize_sheepdog_vdi, VDI, units.Mi)

    def test_clone_keeps_its_data_when_its_parent_goes(self):
        libvirt_utils.create_sheepdog_vdi(VDI, 8 * units.Mi)
        self.write(VDI, '0', b'hello')
        libvirt_utils.snapshot_sheepdog_vdi(VDI, 'tag')
        libvirt_utils.clone_sheepdog_vdi(VDI, 'tag', CLONE)
        libvirt_utils.remove_sheepdog_vdi(VDI, 'tag')
        self.assertEqual(b'hello', self.read(CLONE))

    def test_clone_of_what_is_not_there(self):
        self.assertRaises(exception.SheepdogVDINotFound,
                          libvirt_utils.clone_sheepdog_vdi, VDI, 'tag', CLONE)
        libvirt_utils.create_sheepdog_vdi(VDI, units.Mi)
        self.assertRaises(exception.SheepdogTagNotFound,
                          libvirt_utils.clone_sheepdog_vdi, VDI, 'tag', CLONE)
        self.warn.assert_not_called()

    def test_clone_in_the_place_of_another(self):
        libvirt_utils.create_sheepdog_vdi(VDI, units.Mi)
        libvirt_utils.snapshot_sheepdog_vdi(VDI, 'tag')
        libvirt_utils.create_sheepdog_vdi(CLONE, units.Mi)
        self.assertRaisesRegex(
            exception.SheepdogVDIExists, CLONE,
            libvirt_utils.clone_sheepdog_vdi, VDI, 'tag', CLONE)

    def test_snapshot_of_what_is_not_there(self):
        self.assertRaisesRegex(
            exception.SheepdogVDINotFound, VDI,
            libvirt_utils.snapshot_sheepdog_vdi, VDI, 'tag')
        self.assertEqual(set(), self.get_vdis())

    def test_snapshot_with_a_tag_that_is_taken(self):
        libvirt_utils.create_sheepdog_vdi(VDI, units.Mi)
        libvirt_utils.snapshot_sheepdog_vdi(VDI, 'tag')
        self.assertRaisesRegex(
            exception.SheepdogError, 'is existed',
            libvirt_utils.snapshot_sheepdog_vdi, VDI, 'tag')
        self.assertEqual({(VDI, None), (VDI, 'tag')}, self.get_vdis())

    def test_snapshot_without_an_answer(self):
        # It may be made yet, so nothing takes its place.
        libvirt_utils.create_sheepdog_vdi(VDI, units.Mi)
        self.flags(images_sheepdog_timeout=1, group='libvirt')
        self.sheepdog.fault('hang', subcommand='vdi snapshot')
        self.assertRaises(exception.SheepdogUnreachable,
                          libvirt_utils.snapshot_sheepdog_vdi, VDI, 'tag')
        self.assertEqual(0, self.count_calls('vdi getattr'))

    def test_objects(self):
        libvirt_utils.create_sheepdog_vdi(VDI, units.Gi)
        self.assertEqual([], libvirt_utils.get_sheepdog_objects(VDI))
        for offset in '1020M', '4M':
            self.write(VDI, offset, b'x')
        self.assertEqual([1, 255], libvirt_utils.get_sheepdog_objects(VDI))

    def test_objects_do_not_have_the_size_that_the_cluster_has_by_default(
            self):
        self.sheepdog.run('cluster', 'format', '-c', '1', '-z', '23')
        libvirt_utils.create_sheepdog_vdi(VDI, units.Gi)
        self.write(VDI, '100M', b'x')
        self.assertEqual([25], libvirt_utils.get_sheepdog_objects(VDI))

    def test_record(self):
        self.assertRaises(exception.SheepdogVDINotFound,
                          libvirt_utils.read_sheepdog_record, RECORD)
        self.assertRaises(exception.SheepdogVDINotFound,
                          libvirt_utils.write_sheepdog_record, RECORD, 'x')
        libvirt_utils.create_sheepdog_vdi(RECORD,
                                          libvirt_utils.SHEEPDOG_SMALL)
        self.assertEqual('', libvirt_utils.read_sheepdog_record(RECORD))
        for text in '{"kept": ["disk"]}', 'x', '':
            libvirt_utils.write_sheepdog_record(RECORD, text)
            self.assertEqual(text,
                             libvirt_utils.read_sheepdog_record(RECORD))

    @ddt.data('read', 'write')
    def test_record_that_is_being_deleted(self, subcommand):
        libvirt_utils.create_sheepdog_vdi(RECORD,
                                          libvirt_utils.SHEEPDOG_SMALL)
        libvirt_utils.write_sheepdog_record(RECORD, 'text')
        arguments = {'read': (), 'write': ('text',)}[subcommand]
        self.sheepdog.fault(
            'error', subcommand='vdi ' + subcommand, operation='*_OBJ',
            skip=1, times=None, result=2)
        self.assertRaises(
            exception.SheepdogVDINotFound,
            getattr(libvirt_utils, subcommand + '_sheepdog_record'), RECORD,
            *arguments)

    def test_list(self):
        libvirt_utils.create_sheepdog_vdi(VDI, units.Mi)
        libvirt_utils.snapshot_sheepdog_vdi(VDI, 'tag')
        libvirt_utils.clone_sheepdog_vdi(VDI, 'tag', CLONE)
        self.dog('vdi', 'create', 'of somebody else', '1M')
        self.assertEqual(
            {(VDI, None), (VDI, 'tag'), (CLONE, None),
             (r'of\ somebody\ else', None)},
            {(vdi.name, vdi.tag)
             for vdi in libvirt_utils.list_sheepdog_vdis()})

    def test_list_tells_sizes(self):
        libvirt_utils.create_sheepdog_vdi(VDI, 8 * units.Mi)
        self.dog('vdi', 'write', VDI, '0', '1')
        libvirt_utils.snapshot_sheepdog_vdi(VDI, 'tag')
        started = time.time()
        found = {vdi.tag: vdi for vdi in libvirt_utils.list_sheepdog_vdis()}
        self.assertEqual((8 * units.Mi, 4 * units.Mi, 0), found['tag'][2:5])
        self.assertEqual((8 * units.Mi, 0, 4 * units.Mi), found[None][2:5])
        self.assertAlmostEqual(started, found[None].created, delta=60)

    def test_list_may_take_longer(self):
        execute = self.patch_object(rootwrap, 'execute',
                                    return_value=('', ''))
        libvirt_utils.list_sheepdog_vdis()
        libvirt_utils.sheepdog_vdi_exists(VDI)
        self.assertEqual([200, 20], [call[1]['timeout'] for call in
                                     execute.call_args_list])


@ddt.ddt
class DeleteTestCase(_UtilsTestCase):

    def setUp(self):
        super().setUp()
        libvirt_utils.create_sheepdog_vdi(VDI, 8 * units.Mi)

    def test_what_is_not_there(self):
        self.assertFalse(libvirt_utils.delete_sheepdog_vdi(CLONE))
        self.assertFalse(libvirt_utils.delete_sheepdog_vdi(CLONE, 'tag'))
        self.assertFalse(libvirt_utils.delete_sheepdog_vdi(VDI, 'tag'))
        self.assertEqual({(VDI, None)}, self.get_vdis())
        self.warn.assert_not_called()

    def test_vdi_leaves_its_snapshot(self):
        libvirt_utils.snapshot_sheepdog_vdi(VDI, 'tag')
        self.assertTrue(libvirt_utils.delete_sheepdog_vdi(VDI))
        self.assertEqual({(VDI, 'tag')}, self.get_vdis())
        self.assertTrue(libvirt_utils.delete_sheepdog_vdi(VDI, 'tag'))
        self.assertEqual(set(), self.get_vdis())

    @ddt.data(None, 'tag')
    def test_again_after_an_error(self, tag):
        libvirt_utils.snapshot_sheepdog_vdi(VDI, 'tag')
        self.sheepdog.fault('error', subcommand='vdi delete',
                            operation='DEL_VDI', result=0x15)
        self.assertTrue(libvirt_utils.delete_sheepdog_vdi(VDI, tag))
        self.assertNotIn((VDI, tag), self.get_vdis())

    def test_not_for_ever(self):
        self.sheepdog.fault('error', subcommand='vdi delete', times=None,
                            operation='DEL_VDI', result=0x15)
        self.assertRaisesRegex(
            exception.SheepdogError, VDI + '.*no space for new objects',
            libvirt_utils.delete_sheepdog_vdi, VDI)
        self.assertEqual(2, self.count_calls('vdi delete'))

    def test_not_again_without_an_answer(self):
        self.flags(images_sheepdog_timeout=1, group='libvirt')
        self.sheepdog.fault('hang', subcommand='vdi delete', times=None)
        self.assertRaises(exception.SheepdogUnreachable,
                          libvirt_utils.delete_sheepdog_vdi, VDI)
        self.assertEqual(1, self.count_calls('vdi delete'))

    def test_remove(self):
        for tag in 'one', 'two':
            libvirt_utils.snapshot_sheepdog_vdi(VDI, tag)
        libvirt_utils.remove_sheepdog_vdi(VDI, 'one', 'none', 'two')
        self.assertEqual(set(), self.get_vdis())
        self.warn.assert_not_called()

    def test_remove_leaves_other_snapshots(self):
        for tag in 'one', 'two':
            libvirt_utils.snapshot_sheepdog_vdi(VDI, tag)
        libvirt_utils.remove_sheepdog_vdi(VDI, 'one')
        self.assertEqual({(VDI, 'two')}, self.get_vdis())

    def test_remove_what_is_not_there(self):
        libvirt_utils.remove_sheepdog_vdi(CLONE, 'tag')
        self.assertEqual(1, self.count_calls('vdi delete'))

    @ddt.data(None, 'tag')
    def test_remove_again_after_an_error(self, tag):
        libvirt_utils.snapshot_sheepdog_vdi(VDI, 'tag')
        self.sheepdog.fault('error', subcommand='vdi delete',
                            skip=0 if tag else 1,
                            operation='DEL_VDI', result=0x15)
        libvirt_utils.remove_sheepdog_vdi(VDI, 'tag')
        self.assertEqual(set(), self.get_vdis())


@ddt.ddt
class ErrorTestCase(_UtilsTestCase):

    @ddt.data(('create_sheepdog_vdi', units.Mi),
              ('resize_sheepdog_vdi', units.Mi),
              # dog returns 0 for it all the same
              ('delete_sheepdog_vdi',), ('remove_sheepdog_vdi', 'tag'),
              ('snapshot_sheepdog_vdi', 'tag'),
              ('sheepdog_vdi_exists',), ('read_sheepdog_record',))
    def test_unreachable(self, call):
        name, *arguments = call
        self.sheepdog.kill()
        self.assertRaises(exception.SheepdogUnreachable,
                          getattr(libvirt_utils, name), VDI, *arguments)
        self.warn.assert_called()

    def test_io_error(self):
        self.sheepdog.fault('error', subcommand='vdi create',
                            operation='NEW_VDI')
        self.assertRaisesRegex(
            exception.SheepdogUnreachable, 'I/O error',
            libvirt_utils.create_sheepdog_vdi, VDI, units.Mi)

    @ddt.data(('create_sheepdog_vdi', units.Mi),
              ('write_sheepdog_record', 'text'),
              ('snapshot_sheepdog_vdi', 'tag'),
              ('clone_sheepdog_vdi', 'tag', CLONE),
              ('delete_sheepdog_vdi', 'tag'))
    def test_check_keeps_it_from_being_run(self, call):
        name, *arguments = call
        check = mock.Mock(side_effect=ZeroDivisionError)
        self.assertRaises(ZeroDivisionError, getattr(libvirt_utils, name),
                          VDI, *arguments, check=check)
        check.assert_called_once_with()
        self.assertEqual({}, self.sheepdog.stats()['calls'])


@ddt.ddt
class ProcessTestCase(_UtilsTestCase):
    """What a dog does that is another program than the simulated one."""

    IS_REAL = True

    def test_exists_with_the_attribute(self):
        libvirt_utils.create_sheepdog_vdi(VDI, units.Mi)
        self.install_dog("'vdi getattr '*) echo value;;")
        self.assertTrue(libvirt_utils.sheepdog_vdi_exists(VDI))

    def test_remove_until_there_is_none(self):
        libvirt_utils.create_sheepdog_vdi(VDI, 8 * units.Mi)
        # Silence proves nothing after a delete that was cut short.
        path = self.useFixture(fixtures.TempDir()).join('once')
        self.install_dog("""'vdi delete '*)
            [ -e '%(path)s' ] || { >'%(path)s'; exit 0; }
            exec "$real" "$@";;""" % {'path': path})
        libvirt_utils.remove_sheepdog_vdi(VDI)
        self.assertEqual(set(), self.get_vdis())

    def test_remove_what_stays(self):
        libvirt_utils.create_sheepdog_vdi(VDI, 8 * units.Mi)
        self.install_dog("'vdi delete '*) exit 0;;")
        self.assertRaisesRegex(
            exception.SheepdogError, VDI + ' is still there',
            libvirt_utils.remove_sheepdog_vdi, VDI)

    def test_no_answer(self):
        self.flags(images_sheepdog_timeout=1, group='libvirt')
        self.install('dog', 'exec tail -f /dev/null\n')
        self.assertRaisesRegex(
            exception.SheepdogUnreachable, 'images_sheepdog_timeout',
            libvirt_utils.create_sheepdog_vdi, VDI, units.Mi)

    def test_refused_by_rootwrap(self):
        self.install(
            'dog', 'echo "nova-rootwrap: Unauthorized command" >&2; exit 99\n')
        self.assertRaisesRegex(
            exception.SheepdogError, 'sheepdog.filters',
            libvirt_utils.create_sheepdog_vdi, VDI, units.Mi)

    def test_not_installed(self):
        self.install_only('env', 'timeout')
        self.assertRaisesRegex(
            exception.SheepdogError, 'not installed',
            libvirt_utils.create_sheepdog_vdi, VDI, units.Mi)

    @ddt.data(('create_sheepdog_vdi', units.Mi, 1),
              ('delete_sheepdog_vdi', None, 0))
    @ddt.unpack
    def test_words_that_are_not_utf8(self, name, argument, status):
        self.install('dog', r"printf 'no \377 way\n' >&2; exit %d" % status)
        error = self.assertRaises(exception.SheepdogError,
                                  getattr(libvirt_utils, name), VDI, argument)
        self.assertIn(r'no \udcff way', str(error))
        # as it is stored as the fault of a server
        str(error).encode()

    def test_warning_says_what_was_run(self):
        self.install('dog', 'echo "something new" >&2; exit 1')
        self.assertRaises(exception.SheepdogError,
                          libvirt_utils.resize_sheepdog_vdi, VDI, units.Mi)
        self.warn.assert_called_once()
        message = self.warn.call_args[0][0] % self.warn.call_args[0][1]
        self.assertIn('dog vdi resize -a 127.0.0.1 -p %d %s 1048576' % (
            self.sheepdog.port, VDI), message)
        self.assertIn('something new', message)


class FullTestCase(_UtilsTestCase):

    IS_REAL = True

    def setUp(self):
        super().setUp()
        libvirt_utils.create_sheepdog_vdi(VDI, 4 * units.Mi)
        self.write(VDI, '0', b'hello')
        # as a full Sheepdog 1.0.1 does
        self.install_dog("""'vdi snapshot '*)
            "$real" "$@"
            "$real" vdi delete -a "$4" -p "$6" "$vdi"
            echo 'Server has no space for new objects' >&2
            exit 1;;""")

    def test_vdi_is_made_again(self):
        self.assertRaisesRegex(
            exception.SheepdogError, 'no space',
            libvirt_utils.snapshot_sheepdog_vdi, VDI, 'tag')
        self.assertEqual(b'hello', self.read(VDI))

    def test_vdi_that_cannot_be_made_again(self):
        self.sheepdog.fault('error', subcommand='vdi clone', result=0x15,
                            operation='NEW_VDI')
        self.assertRaisesRegex(
            exception.SheepdogError,
            'in its snapshot tag.*dog vdi clone -s tag %(vdi)s %(vdi)s' % {
                'vdi': VDI},
            libvirt_utils.snapshot_sheepdog_vdi, VDI, 'tag')
        libvirt_utils.clone_sheepdog_vdi(VDI, 'tag', VDI)
        self.assertEqual(b'hello', self.read(VDI))


class SpaceTestCase(_UtilsTestCase):

    def test_space(self):
        libvirt_utils.create_sheepdog_vdi(VDI, 8 * units.Mi)
        self.sheepdog.run('vdi', 'write', VDI, stdin=b'x' * 4 * units.Mi)
        name, total, used, free = self.dog(
            'node', 'info', '-r').splitlines()[-1].split()[:4]
        self.assertEqual(b'Total', name)
        self.assertNotEqual(b'0', used)
        self.assertEqual(
            {'total': int(total) / 2, 'used': int(used) / 2,
             'free': int(free) / 2, 'raw': int(free)},
            libvirt_utils.get_sheepdog_space())

    def test_which_sheep_does_not_tell_its_space(self):
        self.flags(images_sheepdog_timeout=1, group='libvirt')
        self.sheepdog.fault('hang', subcommand='node md info', skip=1)
        self.assertRaisesRegex(
            exception.SheepdogUnreachable,
            'sheep %s: no answer within' % self.sheepdog.sheep()[1],
            libvirt_utils.get_sheepdog_space)

    def test_space_without_that_of_gateways(self):
        spaces = []
        for gateways in 0, 2:
            self.start_model(gateways=gateways)
            spaces.append(libvirt_utils.get_sheepdog_space())
            self.assertEqual(3, self.count_calls('node md info'))
        self.assertEqual(2, self.dog('node', 'list', '-r').count(b' 0 '))
        self.assertEqual(*spaces)


@ddt.ddt
class RedundancyTestCase(_UtilsTestCase):

    CLUSTER = {'copies': None, 'nodes': 6}

    def test_unformatted(self):
        self.assertRaisesRegex(
            exception.SheepdogError, 'not ready.*dog cluster format',
            libvirt_utils.get_sheepdog_redundancy)

    @ddt.data(('2', 2.0), ('1', 1.0), ('2:1', 1.5), ('4:2', 1.5))
    @ddt.unpack
    def test_redundancy(self, policy, redundancy):
        self.dog('cluster', 'format', '-c', policy)
        self.assertEqual(redundancy, libvirt_utils.get_sheepdog_redundancy())


@ddt.ddt
class ParserTestCase(_UtilsTestCase):
    """Whatever dog says, nothing but a SheepdogError comes of it."""

    def setUp(self):
        super().setUp()
        libvirt_utils.create_sheepdog_vdi(VDI, 8 * units.Mi)
        self.write(VDI, '4M', b'x')
        libvirt_utils.snapshot_sheepdog_vdi(VDI, 'tag')

    @staticmethod
    def _get_mutations(text):
        for length in range(0, len(text)):
            yield text[:length]
        for match in re.finditer(r'[^ \n]+', text):
            for word in ('', 'x', '0', '-1', '0:0', '\udcff', '9' * 5000):
                yield text[:match.start()] + word + text[match.end():]
        yield text.replace(' ', '\t')
        yield text.replace('\n', '')
        yield '\n' + text

    @ddt.data(('get_sheepdog_redundancy', 'cluster info'),
              ('get_sheepdog_space', 'cluster info'),
              ('get_sheepdog_space', 'node list'),
              ('get_sheepdog_space', 'node md info'),
              ('list_sheepdog_vdis', 'vdi list'),
              ('get_sheepdog_objects', 'vdi object map', VDI))
    def test_garbage(self, case):
        name, subcommand, *arguments = case
        said = {}
        run = rootwrap.execute

        def record(*command, **kwargs):
            said[command] = run(*command, **kwargs)
            return said[command]

        def repeat(*command, **kwargs):
            if command not in said:
                raise rootwrap.CommandError('Invalid ip address')
            return said[command]

        function = getattr(libvirt_utils, name)
        with mock.patch.object(rootwrap, 'execute', record):
            function(*arguments)
        key = next(command for command in said
                   if ' '.join(command[1:]).startswith(subcommand))
        failed = 0
        with mock.patch.object(rootwrap, 'execute', repeat):
            for mutation in self._get_mutations(said[key][0]):
                said[key] = mutation, ''
                try:
                    function(*arguments)
                except exception.SheepdogError:
                    failed += 1
        self.assertLess(0, failed)
