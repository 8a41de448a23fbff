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

import multiprocessing
import os
import select
from unittest import mock

import ddt
import fixtures
from oslo_utils import units

from nova import exception
from nova import test
from nova.tests.unit.virt.libvirt import sheepdog_base
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import utils as libvirt_utils


@ddt.ddt
class SheepdogUtilsTestCase(sheepdog_base.SheepdogTestMixin,
                            test.NoDBTestCase):

    def setUp(self):
        super().setUp()
        self.start_sheepdog()

    def test_exists(self):
        self.assertFalse(libvirt_utils.sheepdog_vdi_exists('a'))
        libvirt_utils.create_sheepdog_vdi('a', units.Mi)
        self.assertTrue(libvirt_utils.sheepdog_vdi_exists('a'))
        libvirt_utils.snapshot_sheepdog_vdi('a', 'tag')
        self.assertTrue(libvirt_utils.sheepdog_vdi_exists('a'))
        self.assertTrue(libvirt_utils.delete_sheepdog_vdi('a'))
        self.assertFalse(libvirt_utils.sheepdog_vdi_exists('a'))

    def test_exists_with_the_attribute(self):
        libvirt_utils.create_sheepdog_vdi('a', units.Mi)
        self.dog('vdi', 'setattr', 'a', 'nova', 'value')
        self.assertTrue(libvirt_utils.sheepdog_vdi_exists('a'))

    def test_create_existing(self):
        libvirt_utils.create_sheepdog_vdi('a', units.Mi)
        self.assertRaisesRegex(
            exception.SheepdogVDIExists, 'dog vdi create .* a 1048576',
            libvirt_utils.create_sheepdog_vdi, 'a', units.Mi)

    def test_resize(self):
        libvirt_utils.create_sheepdog_vdi('a', units.Mi)
        libvirt_utils.resize_sheepdog_vdi('a', 2 * units.Mi)
        libvirt_utils.resize_sheepdog_vdi('a', 2 * units.Mi)
        self.assertEqual(
            str(2 * units.Mi).encode(),
            self.dog('vdi', 'list', '-r', 'a').split()[3])
        self.assertRaisesRegex(
            exception.SheepdogError, 'Shrinking VDIs is not implemented',
            libvirt_utils.resize_sheepdog_vdi, 'a', units.Mi)

    def test_clone_keeps_its_data_when_its_parent_goes(self):
        libvirt_utils.create_sheepdog_vdi('a', 8 * units.Mi)
        self.sheepdog.run('vdi', 'write', 'a', '0', '5', stdin=b'hello')
        libvirt_utils.snapshot_sheepdog_vdi('a', 'tag')
        libvirt_utils.clone_sheepdog_vdi('a', 'tag', 'b')
        self.assertTrue(libvirt_utils.delete_sheepdog_vdi('a'))
        self.assertTrue(libvirt_utils.delete_sheepdog_vdi('a', 'tag'))
        self.assertEqual(b'hello', self.dog('vdi', 'read', 'b', '0', '5'))

    def test_pieces(self):
        mib = units.Mi
        libvirt_utils.create_sheepdog_vdi('a', 1022 * mib)
        self.assertEqual(
            [], libvirt_utils.get_sheepdog_pieces('a', 1022 * mib))
        for offset in 4, 8, 72, 200, 1020:
            self.sheepdog.run('vdi', 'write', 'a', '%dM' % offset, '1',
                              stdin=b'x')
        pieces = [(4, 72), (200, 4), (1020, 2)]
        self.assertEqual(
            [(start * mib, length * mib) for start, length in pieces],
            libvirt_utils.get_sheepdog_pieces('a', 1022 * mib))
        self.patch_object(libvirt_utils, 'SHEEPDOG_PIECES', new=2)
        pieces = [(4, 200), (1020, 2)]
        self.assertEqual(
            [(start * mib, length * mib) for start, length in pieces],
            libvirt_utils.get_sheepdog_pieces('a', 1022 * mib))

    def test_objects_do_not_have_the_size_that_the_cluster_has_by_default(
            self):
        self.sheepdog.run('cluster', 'format', '-c', '1', '-z', '23')
        libvirt_utils.create_sheepdog_vdi('a', units.Gi)
        self.sheepdog.run('vdi', 'write', 'a', '100M', '1', stdin=b'x')
        self.assertEqual(
            [(100 * units.Mi, 4 * units.Mi)],
            libvirt_utils.get_sheepdog_pieces('a', units.Gi))

    def test_size_beside_a_warning(self):
        # as QEMU before 6.1 has one for its Sheepdog driver
        self.install('qemu-img', r"""
            echo 'qemu-img: warning: deprecated' >&2
            echo '{"virtual-size": 5}'""")
        self.assertEqual(5, libvirt_utils.get_size_by_qemu_img('a'))

    def test_copy_tells_how_far_it_is(self):
        self.install('qemu-img', r"""
            printf '    (0.00/100%%)\r    (50.25/100%%)\r'
            printf '    (100.00/100%%)\r\n'""")
        shown = []
        libvirt_utils.copy_with_qemu_img('a', 'b', 1, shown.append)
        self.assertEqual([0, 0.5025, 1], shown)

    def test_copy_fails_on_its_way(self):
        self.install('qemu-img', r"""
            printf '    (0.00/100%%)\r    (50.25/100%%)\r'
            echo 'qemu-img: it is full' >&2
            exit 1""")
        error = self.assertRaises(
            exception.SheepdogError, libvirt_utils.copy_with_qemu_img,
            'source', 'target', 1, lambda fraction: None)
        self.assertIn('source target', str(error))
        self.assertTrue(str(error).endswith(': qemu-img: it is full'))

    def test_copy_dies_with_nova_compute(self):
        self.flags(images_sheepdog_timeout=100, group='libvirt')
        fifo = os.path.join(self.useFixture(fixtures.TempDir()).path, 'fifo')
        os.mkfifo(fifo)
        self.install('qemu-img', "exec >'%s'; echo; exec tail -f /dev/null"
                     % fifo)
        compute = multiprocessing.get_context('fork').Process(
            target=libvirt_utils.copy_with_qemu_img,
            args=('a', 'b', 1, lambda fraction: None))
        compute.start()
        with open(fifo) as output:
            output.readline()
            compute.kill()
            compute.join()
            self.assertTrue(select.select([output], [], [], 30)[0])
            self.assertEqual('', output.read())

    def test_progress(self):
        now = 0.0
        self.patch_object(libvirt_utils, 'time', new=mock.Mock(
            monotonic=lambda: now))
        progress = libvirt_utils.SheepdogProgress('Import', 30 * units.Mi)
        for now in 0.0, 4.0, 5.0, 6.0, 10.0:
            if now in (0.0, 10.0):
                show = progress.begin(10 * units.Mi)
            show(now % 10 / 10)
        self.assertEqual(
            ['Import: 5 of 30 MiB, 1.0 MiB/s, 25 s left',
             'Import: 10 of 30 MiB, 1.0 MiB/s, 20 s left'],
            [line.partition('] ')[2] for line in
             self.stdlog.logger.output.splitlines() if 'Import' in line])

    def test_delete_what_is_not_there(self):
        self.assertFalse(libvirt_utils.delete_sheepdog_vdi('a'))
        self.assertFalse(libvirt_utils.delete_sheepdog_vdi('a', 'tag'))
        libvirt_utils.create_sheepdog_vdi('a', units.Mi)
        self.assertFalse(libvirt_utils.delete_sheepdog_vdi('a', 'tag'))
        self.assertTrue(libvirt_utils.sheepdog_vdi_exists('a'))

    @ddt.data('create_sheepdog_vdi', 'resize_sheepdog_vdi')
    def test_unreachable(self, function):
        self.sheepdog.kill()
        self.assertRaisesRegex(
            exception.SheepdogError, 'images_sheepdog_host',
            getattr(libvirt_utils, function), 'a', units.Mi)

    def test_unreachable_is_not_missing(self):
        # dog returns 0 for it all the same
        self.sheepdog.kill()
        self.assertRaisesRegex(
            exception.SheepdogError, 'images_sheepdog_host',
            libvirt_utils.delete_sheepdog_vdi, 'a')
        self.assertRaises(
            exception.SheepdogError,
            libvirt_utils.sheepdog_vdi_exists, 'a')

    def test_localhost_is_an_ipv4_address(self):
        self.flags(images_sheepdog_host='localhost', group='libvirt')
        self.assertEqual(('127.0.0.1', str(self.sheepdog.port)),
                         libvirt_utils.get_sheepdog_gateway())

    def test_no_answer(self):
        self.flags(images_sheepdog_timeout=1, group='libvirt')
        self.install('dog', 'exec tail -f /dev/null\n')
        self.assertRaisesRegex(
            exception.SheepdogError, 'images_sheepdog_timeout',
            libvirt_utils.create_sheepdog_vdi, 'a', units.Mi)

    def test_refused_by_rootwrap(self):
        self.install(
            'dog', 'echo "nova-rootwrap: Unauthorized command" >&2; exit 99\n')
        self.assertRaisesRegex(
            exception.SheepdogError, 'sheepdog.filters',
            libvirt_utils.create_sheepdog_vdi, 'a', units.Mi)

    def test_not_installed(self):
        self.install_only('env', 'timeout')
        self.assertRaisesRegex(
            exception.SheepdogError, 'not installed',
            libvirt_utils.create_sheepdog_vdi, 'a', units.Mi)

    def test_capacity(self):
        libvirt_utils.create_sheepdog_vdi('a', 8 * units.Mi)
        self.sheepdog.run('vdi', 'write', 'a', stdin=b'x' * 4 * units.Mi)
        name, total, used, free = self.dog(
            'node', 'info', '-r').splitlines()[-1].split()[:4]
        self.assertEqual(b'Total', name)
        self.assertNotEqual(b'0', used)
        self.assertEqual(
            {'total': int(total) / 2, 'used': int(used) / 2,
             'free': int(free) / 2},
            libvirt_utils.get_sheepdog_capacity())

    def test_space_is_remembered(self):
        for enough, is_asked in ((0, True), (10 ** 9, False),
                                 (10 ** 15, True)):
            self.sheepdog.reset_stats()
            libvirt_utils._get_sheepdog_space(enough)
            self.assertEqual(
                is_asked, 'node md info' in self.sheepdog.stats()['calls'])

    def test_space_when_a_sheep_does_not_answer(self):
        space = libvirt_utils._get_sheepdog_space()
        self.sheepdog.kill()
        self.assertEqual(
            space, libvirt_utils._get_sheepdog_space(enough=10 ** 15))
        libvirt_utils.SHEEPDOG_SPACES.clear()
        self.assertRaises(exception.SheepdogError,
                          libvirt_utils._get_sheepdog_space)

    def test_capacity_without_that_of_gateways(self):
        capacities = []
        for gateways in 0, 2:
            self.start_sheepdog(gateways=gateways)
            capacities.append(libvirt_utils.get_sheepdog_capacity())
            self.assertEqual(3, self.sheepdog.stats()['calls']['node md info'])
        self.assertEqual(2, self.dog('node', 'list', '-r').count(b' 0 '))
        self.assertEqual(*capacities)

    def test_find_disk(self):
        for protocol, name in (
                ('sheepdog', '0123_disk'),
                ('iscsi', 'iqn.2014-06.org.openstack.nova:0123.disk/1')):
            disk = vconfig.LibvirtConfigGuestDisk()
            disk.source_type = 'network'
            disk.source_protocol = protocol
            disk.source_name = name
            disk.driver_format = 'raw'
            config = vconfig.LibvirtConfigGuest()
            config.virt_type = 'kvm'
            config.devices = [disk]
            guest = self.patch_object(config, 'get_config', create=True)
            guest.return_value = config
            self.assertEqual(('sheepdog:0123_disk', 'raw'),
                             libvirt_utils.find_disk(config))

    def test_other_disks_are_not_ours(self):
        disk = vconfig.LibvirtConfigGuestDisk()
        disk.source_protocol = 'iscsi'
        disk.source_name = 'iqn.2010-10.org.openstack:volume-1/1'
        self.assertIsNone(libvirt_utils.get_sheepdog_vdi_of_disk(disk))

    def test_get_disk_type_from_path(self):
        self.assertEqual('sheepdog', libvirt_utils.get_disk_type_from_path(
            'sheepdog:0123_disk'))


class SheepdogFullTestCase(sheepdog_base.SheepdogTestMixin,
                           test.NoDBTestCase):

    def setUp(self):
        super().setUp()
        self.start_sheepdog(node_size=64 * units.Mi)
        libvirt_utils.create_sheepdog_vdi('a', 4 * units.Mi)
        self.sheepdog.run('vdi', 'write', 'a', '0', '5', stdin=b'hello')

    def _read(self):
        return self.dog('vdi', 'read', 'a', '0', '5')

    def test_snapshot_is_refused_in_time(self):
        self.assertRaisesRegex(
            exception.SheepdogError, 'add storage',
            libvirt_utils.snapshot_sheepdog_disk, 'a', 'tag')
        self.assertEqual(b'hello', self._read())
        self.patch_object(libvirt_utils, 'SHEEPDOG_ROOM', new=0)
        self.assertTrue(libvirt_utils.snapshot_sheepdog_disk('a', 'tag'))

    def _take_the_vdi_away(self):
        """Have a snapshot do what it does on a full Sheepdog 1.0.1."""
        def snapshot(vdi, tag):
            self.dog('vdi', 'snapshot', '-s', tag, vdi)
            self.dog('vdi', 'delete', vdi)
            raise exception.SheepdogError(gateway='', command='', reason='')

        self.patch_object(libvirt_utils, 'SHEEPDOG_ROOM', new=0)
        self.patch_object(libvirt_utils, 'snapshot_sheepdog_vdi',
                          side_effect=snapshot)

    def test_vdi_is_made_again(self):
        self._take_the_vdi_away()
        self.assertRaises(exception.SheepdogError,
                          libvirt_utils.snapshot_sheepdog_disk, 'a', 'tag')
        self.assertEqual(b'hello', self._read())

    def test_vdi_that_cannot_be_made_again(self):
        self._take_the_vdi_away()
        self.sheepdog.fault('error', subcommand='vdi clone', result=0x15,
                            operation='NEW_VDI')
        self.assertRaisesRegex(
            exception.SheepdogError, 'dog vdi clone -s tag a a',
            libvirt_utils.snapshot_sheepdog_disk, 'a', 'tag')
        # Its snapshot is not taken for one that a crash left.
        self.assertFalse(libvirt_utils.snapshot_sheepdog_disk('a', 'tag'))
        libvirt_utils.clone_sheepdog_vdi('a', 'tag', 'a')
        self.assertEqual(b'hello', self._read())


@ddt.ddt
class SheepdogUnformattedTestCase(sheepdog_base.SheepdogTestMixin,
                                  test.NoDBTestCase):

    def setUp(self):
        super().setUp()
        self.start_sheepdog(copies=None, nodes=6)

    def test_check_cluster(self):
        self.assertRaisesRegex(
            exception.SheepdogError, 'dog cluster format',
            libvirt_utils.check_sheepdog_cluster)
        self.dog('cluster', 'format', '-c', '2')
        libvirt_utils.check_sheepdog_cluster()

    @ddt.data(('2', 2.0), ('1', 1.0), ('2:1', 1.5), ('4:2', 1.5))
    @ddt.unpack
    def test_redundancy(self, policy, redundancy):
        self.dog('cluster', 'format', '-c', policy)
        self.assertEqual(redundancy, libvirt_utils.get_sheepdog_redundancy())
