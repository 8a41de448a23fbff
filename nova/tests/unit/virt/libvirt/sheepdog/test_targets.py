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

import os
import subprocess
from unittest import mock

import ddt
from oslo_utils import units

from nova import exception
from nova import test
from nova.tests.unit.virt.libvirt.sheepdog import base
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt.sheepdog import rootwrap
from nova.virt.libvirt.sheepdog import targets
from nova.virt.libvirt import utils as libvirt_utils

OWNER = '7b6d2f63-5a58-4b3a-9d4e-1f6b1a0c2d3e'
TOKEN = '0123456789abcdef0123456789abcdef'
VDI = OWNER + '_disk'
IQN = libvirt_utils.get_sheepdog_iqn(VDI)
SWAP = OWNER + '_disk.swap'
SWAP_IQN = libvirt_utils.get_sheepdog_iqn(SWAP)
SCRATCH = OWNER + '_scratch'
PREFIX = libvirt_utils.get_sheepdog_iqn(OWNER + '_')
OTHERS_IQN = 'iqn.2010-10.org.openstack:volume-1'


class _TargetsTestCase(base.SheepdogTestMixin, test.NoDBTestCase):

    def setUp(self):
        super().setUp()
        self.start_cluster()
        for vdi in VDI, SWAP, SCRATCH:
            libvirt_utils.create_sheepdog_vdi(vdi, 8 * units.Mi)
        self.targets = targets.Targets('iscsi')

    def tgtadm(self, *arguments):
        """Run tgtadm as an administrator does, and return what it says."""
        command = 'tgtadm', '--lld', 'iscsi', '--mode', *arguments
        if self.IS_REAL:
            return subprocess.run(
                command, capture_output=True, text=True, check=True).stdout
        status, out, err = self.sheepdog.execute(*command)
        self.assertEqual((0, b''), (status, err))
        return out.decode()

    def add_target(self, number, iqn):
        self.tgtadm('target', '--op', 'new', '--tid', str(number), '-T', iqn)


class _ProcessTestCase(_TargetsTestCase):

    IS_REAL = True

    def install_tgtadm(self, case):
        """Have tgtadm do something else in some cases.

        :param case: shell patterns of the arguments behind --lld iscsi and
            what to do then, in which "$real" is tgtadm
        """
        real = subprocess.run(
            ['sh', '-c', 'command -v tgtadm'], capture_output=True,
            text=True, check=True).stdout.strip()
        self.install('tgtadm', """
            real='%s'
            case "$*" in
            '--lld iscsi --mode '%s
            *) exec "$real" "$@";;
            esac""" % (real, case))

    def connect(self, command, iqn=IQN):
        """Start qemu-io, by which a test reads and writes as a guest does."""
        process = subprocess.Popen(
            ['qemu-io', '-f', 'raw', *command,
             'iscsi://%s/%s/1' % (self.tgtd.portal, iqn)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, bufsize=1)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def qemu_io(self, command, iqn=IQN):
        with self.connect(['-c', command], iqn) as process:
            out = process.stdout.read()
        self.assertEqual(0, process.returncode, out)
        self.assertNotIn('Pattern verification failed', out)
        return out

    def write_behind_tgtd(self):
        """Write what an open target does not know of.

        The snapshot makes another inode the one of the VDI.
        """
        self.dog('vdi', 'snapshot', '-s', 'tag', VDI)
        status, out, err = self.sheepdog.run(
            'vdi', 'write', VDI, '4194304', '4096', stdin=b'B' * 4096)
        self.assertEqual((0, b''), (status, err))

    def write_without_an_answer(self):
        """Kill an initiator whose command the cluster does not answer."""
        self.targets.export({IQN: VDI})
        self.sheepdog.fault('hang', subcommand='tgt', operation='*WRITE*',
                            when='after')
        self.sheepdog.reset_stats()
        client = self.connect(['-c', 'write 0 4k'])
        self.wait_until(lambda: self.sheepdog.stats()['bytes_written'])
        client.kill()


class CheckTestCase(_TargetsTestCase):

    def test_check(self):
        targets.check()
        self.tgtd.stop()
        self.assertRaisesRegex(
            exception.TgtUnreachable, 'tgt daemon', targets.check)

    def test_list(self):
        self.add_target(7, OTHERS_IQN)
        self.add_target(1000000007, IQN)
        self.assertEqual({IQN: 1000000007}, targets.list_targets())
        self.tgtd.stop()
        self.assertEqual({}, targets.list_targets())


class CheckProcessTestCase(_ProcessTestCase):

    def test_check_gateway(self):
        targets.check_gateway()
        self.sheepdog.kill()
        self.assertRaises(exception.SheepdogUnreachable,
                          targets.check_gateway)

    def test_check_without_the_backing_store(self):
        self.install('tgtadm', """
            echo 'System:'
            echo '    sheepdog'
            echo 'Backing stores:'
            echo '    rdwr (bsoflags sync:direct)'""")
        self.assertRaisesRegex(
            exception.TgtError, 'no backing store named sheepdog',
            targets.check)

    def test_tgtd_start(self):
        first = targets.get_tgtd_start()
        self.assertIsNotNone(first)
        self.assertEqual(first, targets.get_tgtd_start())
        self.tgtd.stop()
        self.tgtd.start()
        self.assertNotIn(targets.get_tgtd_start(), (None, first))
        os.unlink(self.tgtd.control_socket)
        self.assertIsNone(targets.get_tgtd_start())

    def test_list_of_what_is_said_otherwise(self):
        self.install('tgtadm', """
            echo 'Target 1: %s'
            echo 'Target : %s'
            echo 'Target x: %s'
            echo 'Target 2'
            echo '    Target 3: %s'""" % ((IQN,) * 4))
        self.assertEqual({IQN: 1}, targets.list_targets())

    def test_no_answer_of_tgtd(self):
        self.flags(images_sheepdog_timeout=1, group='libvirt')
        self.install('tgtadm', 'exec tail -f /dev/null\n')
        self.assertRaisesRegex(
            exception.TgtError, 'images_sheepdog_timeout',
            targets.list_targets)
        # Then it is not tgtd that has to be looked at.
        self.sheepdog.kill()
        self.assertRaises(exception.SheepdogUnreachable,
                          targets.list_targets)

    def test_not_installed(self):
        self.install_only('env', 'timeout')
        self.assertRaisesRegex(exception.TgtError, 'not installed',
                               targets.list_targets)


class GuestTestCase(test.NoDBTestCase):

    def test_exports_of_a_guest(self):
        config = vconfig.LibvirtConfigGuest()
        config.parse_str("""
            <domain>
              <devices>
                <disk type='network' device='disk'>
                  <source protocol='iscsi' name='%s/1'/>
                </disk>
                <disk type='network' device='disk'>
                  <source protocol='iscsi' name='%s/1'/>
                </disk>
                <disk type='network' device='disk'>
                  <source protocol='sheepdog' name='%s'/>
                </disk>
                <disk type='network' device='disk'>
                  <source protocol='sheepdog' name='volume-1'/>
                </disk>
                <disk type='network' device='disk'>
                  <source protocol='rbd' name='vms/%s'/>
                </disk>
                <disk type='file' device='cdrom'>
                  <source file='/%s'/>
                </disk>
                <interface type='ethernet'/>
              </devices>
            </domain>""" % (IQN, OTHERS_IQN, SWAP, VDI, VDI))
        self.assertEqual([VDI], targets.get_vdis(config, 'iscsi'))
        self.assertEqual([SWAP], targets.get_vdis(config, 'sheepdog'))
        self.assertEqual({IQN: VDI}, targets.get_exports(config))


class ExportTestCase(_TargetsTestCase):

    def test_number_is_one_of_ours(self):
        for number in 1, 2, 4:
            self.add_target(number, '%s%d' % (OTHERS_IQN, number))
        self.targets.export({IQN: VDI, SWAP_IQN: SWAP})
        numbers = targets.list_targets()
        self.assertEqual({IQN, SWAP_IQN}, set(numbers))
        for number in numbers.values():
            self.assertLessEqual(1000000000, number)
            self.assertLess(number, 2000000000)
        self.targets.unexport(PREFIX)
        self.assertEqual(
            ['Target %d: %s%d' % (number, OTHERS_IQN, number)
             for number in (1, 2, 4)],
            [line for line in
             self.tgtadm('target', '--op', 'show').splitlines()
             if line.startswith('Target')])

    def test_last_number_that_is_taken(self):
        self.add_target(1999999999, OTHERS_IQN)
        with mock.patch.object(targets.uuid, 'uuid5', return_value=mock.Mock(
                int=7 * 10 ** 9 - 1, hex='a' * 32)):
            self.targets.export({IQN: VDI})
        self.assertEqual({IQN: 1000000000}, targets.list_targets())

    def test_nothing_needs_no_tgtd(self):
        execute = self.patch_object(rootwrap, 'execute')
        self.targets.export({})
        execute.assert_not_called()


@ddt.ddt
class ExportProcessTestCase(_ProcessTestCase):

    def test_gateway_that_does_not_answer_is_named(self):
        self.sheepdog.kill()
        self.assertRaises(exception.SheepdogUnreachable,
                          self.targets.export, {IQN: VDI})
        self.assertEqual({}, targets.list_targets())

    def test_missing_vdi_leaves_no_target(self):
        self.assertRaisesRegex(
            exception.TgtError, 'invalid request.*no such VDI',
            self.targets.export, {IQN: OWNER + '_disk.local'})
        self.assertEqual({}, targets.list_targets())
        self.assertEqual({}, self.targets.wanted)

    def test_export(self):
        self.targets.export({IQN: VDI})
        self.qemu_io('write -P 0x41 4M 4k')
        self.assertEqual(b'A' * 4096,
                         self.dog('vdi', 'read', VDI, '4194304', '4096'))
        shown = self.tgtadm('target', '--op', 'show')
        self.assertIn('ACL information:\n        127.0.0.1\n', shown)

    def test_ids_are_those_of_the_vdi(self):
        def get_ids(vdi, iqn):
            self.targets.export({iqn: vdi})
            shown = self.tgtadm('target', '--op', 'show').partition(iqn)[2]
            # The first unit of a target is the controller.
            unit = shown.partition('LUN: 1\n')[2].partition('Target')[0]
            return [line.split(': ')[1] for line in unit.splitlines()
                    if 'SCSI ID:' in line or 'SCSI SN:' in line]

        first = get_ids(VDI, IQN)
        self.assertEqual(2, len(first))
        self.assertTrue(set(first).isdisjoint(get_ids(SWAP, SWAP_IQN)))
        self.assertEqual(first, get_ids(VDI, IQN))

    def test_again_sees_the_new_size(self):
        self.targets.export({IQN: VDI})
        libvirt_utils.resize_sheepdog_vdi(VDI, 16 * units.Mi)
        self.targets.export({IQN: VDI})
        self.qemu_io('write 12M 4k')
        self.assertEqual([IQN], list(targets.list_targets()))

    def test_number_that_is_taken(self):
        self.targets.export({IQN: VDI})
        number = targets.list_targets()[IQN]
        self.targets.unexport(IQN)
        self.add_target(number, OTHERS_IQN)
        self.targets.export({IQN: VDI})
        self.assertEqual({IQN: number + 1}, targets.list_targets())
        self.qemu_io('read 0 4k')

    @ddt.data(('target --op new ', 'kill'), ('target --op bind ', 'kill'),
              ('logicalunit --op new ', 'kill'),
              ('logicalunit --op update ', 'kill'),
              ('target --op new ', 'hang'),
              ('logicalunit --op new ', 'hang'))
    @ddt.unpack
    def test_half_made_target_does_not_stay(self, call, fate):
        # It is made, and tgtadm does not live to tell.
        if fate == 'hang':
            self.flags(images_sheepdog_timeout=1, group='libvirt')
        self.install_tgtadm("""'%s'*)
            "$real" "$@"
            %s;;""" % (call, {'kill': 'kill -KILL $$',
                              'hang': 'exec tail -f /dev/null'}[fate]))
        self.assertRaises(exception.TgtError,
                          self.targets.export, {IQN: VDI})
        self.assertEqual({}, targets.list_targets())


class UnexportTestCase(_TargetsTestCase):

    def test_targets_of_other_instances_stay(self):
        vdi = '0' + VDI[1:]
        iqn = libvirt_utils.get_sheepdog_iqn(vdi)
        libvirt_utils.create_sheepdog_vdi(vdi, units.Mi)
        self.targets.export({IQN: VDI, SWAP_IQN: SWAP, iqn: vdi})
        self.targets.unexport(PREFIX)
        self.assertEqual([iqn], list(targets.list_targets()))
        self.assertEqual({iqn: vdi}, self.targets.wanted)

    def test_some_of_an_instance(self):
        vdis = {IQN: VDI, SWAP_IQN: SWAP,
                libvirt_utils.get_sheepdog_iqn(SCRATCH): SCRATCH}
        self.targets.export(vdis)
        self.targets.unexport(*list(vdis)[1:])
        self.assertEqual([IQN], list(targets.list_targets()))
        self.assertEqual({IQN: VDI}, self.targets.wanted)

    def test_number_of_others_is_never_touched(self):
        self.add_target(7, IQN)
        self.assertRaisesRegex(
            exception.TgtError, '--op delete --force --tid 7',
            self.targets.unexport, PREFIX)
        self.assertRaisesRegex(
            exception.TgtError, '--op delete --force --tid 7',
            self.targets.export, {IQN: VDI})
        self.assertEqual({IQN: 7}, targets.list_targets())

    def test_without_tgtd(self):
        self.targets.export({IQN: VDI})
        self.tgtd.stop()
        self.targets.unexport(PREFIX)
        self.assertEqual({}, self.targets.wanted)


class UnexportProcessTestCase(_ProcessTestCase):

    def test_in_use(self):
        self.targets.export({IQN: VDI})
        client = self.connect([])
        client.stdin.write('read 0 4k\n')
        while 'read 4096' not in client.stdout.readline():
            pass
        self.targets.unexport(PREFIX)
        self.assertEqual({}, targets.list_targets())

    def test_what_was_removed_meanwhile(self):
        self.targets.export({IQN: VDI})
        self.install_tgtadm("""'target --op delete '*)
            "$real" "$@"
            exec "$real" "$@";;""")
        self.targets.unexport(PREFIX)
        self.assertEqual({}, targets.list_targets())

    def test_when_it_cannot_be_known(self):
        self.install('tgtadm', 'exit 22\n')
        self.assertRaises(exception.TgtError, self.targets.unexport, PREFIX)

    def test_waits_for_a_command(self):
        self.write_without_an_answer()
        run = rootwrap.execute
        refusals = []

        def execute(*command, **kwargs):
            try:
                return run(*command, **kwargs)
            except rootwrap.CommandError as e:
                refusals.append(e.reason)
                self.sheepdog.clear_faults()
                raise

        with mock.patch.object(rootwrap, 'execute', execute):
            self.targets.unexport(PREFIX)
        self.assertIn('still active', refusals[0])
        self.assertEqual({}, targets.list_targets())

    def test_does_not_wait_for_ever(self):
        self.write_without_an_answer()
        self.flags(images_sheepdog_timeout=1, group='libvirt')
        self.assertRaisesRegex(
            exception.TgtError, 'still active', self.targets.unexport, PREFIX)

    def test_gateway_that_does_not_answer_is_named(self):
        self.write_without_an_answer()
        self.flags(images_sheepdog_timeout=1, group='libvirt')
        self.sheepdog.kill()
        self.assertRaises(exception.SheepdogUnreachable,
                          self.targets.unexport, PREFIX)

    def test_native_transport_needs_no_tgt(self):
        self.targets.transport = 'native'
        self.targets.export({IQN: VDI})
        self.targets.unexport(PREFIX)
        # It may have been the other one before.
        self.assertEqual({}, targets.list_targets())
        self.tgtd.stop()
        os.unlink(self.tgtd.control_socket)
        self.install_only('env', 'timeout')
        self.targets.unexport(PREFIX)


class TemporaryTestCase(_TargetsTestCase):

    def test_names_are_never_the_same(self):
        with self.targets.exported(SCRATCH) as first, \
                self.targets.exported(SCRATCH) as second:
            self.assertEqual({first, second}, set(targets.list_targets()))

    def test_ends_on_an_error(self):
        def fail():
            with self.targets.exported(SCRATCH):
                raise ZeroDivisionError()

        self.assertRaises(ZeroDivisionError, fail)
        self.assertEqual({}, targets.list_targets())


class TemporaryProcessTestCase(_ProcessTestCase):

    def test_cannot_be_made(self):
        def export():
            with self.targets.exported(OWNER + '_import.' + TOKEN):
                self.fail('exported')

        self.assertRaises(exception.TgtError, export)
        self.assertEqual({}, targets.list_targets())

    def test_exported(self):
        with self.targets.exported(SCRATCH) as iqn:
            self.assertRegex(iqn, r'^%s\.[0-9a-f]{32}$' %
                             libvirt_utils.get_sheepdog_iqn(SCRATCH))
            self.assertEqual([iqn], list(targets.list_targets()))
            self.qemu_io('read 0 4k', iqn)
        self.assertEqual({}, targets.list_targets())
        self.assertEqual({}, self.targets.wanted)

    def test_what_cannot_be_removed_is_left(self):
        self.flags(images_sheepdog_timeout=1, group='libvirt')
        with mock.patch.object(targets.LOG, 'warning') as warning:
            with self.targets.exported(SCRATCH) as iqn:
                self.install('tgtadm', 'exit 22\n')
        warning.assert_called_once()
        self.assertIn(iqn, warning.call_args[0][0] % warning.call_args[0][1])


class _LostTestCase(_TargetsTestCase):

    def setUp(self):
        super().setUp()
        self.targets.export({IQN: VDI, SWAP_IQN: SWAP})

    def restart(self):
        self.tgtd.stop()
        self.tgtd.start()


class LostTestCase(_LostTestCase):

    def test_find_missing(self):
        self.assertEqual({}, self.targets.find_missing())
        self.restart()
        self.assertEqual({IQN: VDI, SWAP_IQN: SWAP},
                         self.targets.find_missing())
        self.targets.unexport(SWAP_IQN)
        self.assertEqual({IQN: VDI}, self.targets.find_missing())

    def test_abandoned_targets_are_removed(self):
        # Another nova-compute, which has died, had two of these.
        for number, kind in enumerate(('scratch.', 'import.%s.' % TOKEN)):
            self.add_target(1000000000 + number, PREFIX + kind + TOKEN)
        self.add_target(1, OTHERS_IQN + '.scratch.' + TOKEN)
        with self.targets.exported(SCRATCH) as iqn:
            self.assertEqual({}, self.targets.find_missing())
            self.assertEqual({IQN, SWAP_IQN, iqn},
                             set(targets.list_targets()))
        self.assertIn(OTHERS_IQN, self.tgtadm('target', '--op', 'show'))

    def test_reload_by_another_process(self):
        other = targets.Targets('iscsi')
        other.reload({IQN: VDI})
        self.assertEqual({IQN: VDI}, other.wanted)

    def test_reload_does_not_wait_for_others(self):
        run = rootwrap.execute
        urgent = []

        def execute(*command, **kwargs):
            urgent.append(kwargs.get('urgent'))
            return run(*command, **kwargs)

        with mock.patch.object(rootwrap, 'execute', execute):
            self.targets.reload({IQN: VDI})
        self.assertEqual([True, True], urgent)


class LostProcessTestCase(_LostTestCase, _ProcessTestCase):

    def test_find_missing_when_it_cannot_be_known(self):
        self.install('tgtadm', 'exit 22\n')
        self.assertRaises(exception.TgtError, self.targets.find_missing)

    def test_restore(self):
        self.restart()
        self.targets.restore(IQN, VDI)
        self.qemu_io('read 0 4k')
        self.assertEqual({SWAP_IQN: SWAP}, self.targets.find_missing())

    def test_restore_leaves_what_is_there(self):
        client = self.connect([])
        for _attempt in range(2):
            client.stdin.write('read 0 4k\n')
            while 'read 4096' not in client.stdout.readline():
                pass
            shown = self.tgtadm('target', '--op', 'show')
            self.targets.restore(IQN, VDI)
            self.assertEqual(shown, self.tgtadm('target', '--op', 'show'))

    def test_reload(self):
        self.qemu_io('write -P 0x41 4M 4k')
        self.write_behind_tgtd()
        before = targets.list_targets()
        self.targets.reload({IQN: VDI})
        self.qemu_io('read -P 0x42 4M 4k')
        self.assertEqual(before, targets.list_targets())

    def test_reload_with_a_session(self):
        with self.connect([]) as client:
            client.stdin.write('write -P 0x41 4M 4k\n')
            while 'wrote' not in client.stdout.readline():
                pass
            self.write_behind_tgtd()
            self.targets.reload({IQN: VDI})
            out, _err = client.communicate('read -P 0x42 4M 4k\nquit\n')
        self.assertIn('read 4096/4096', out)
        self.assertNotIn('Pattern verification failed', out)

    def test_reload_makes_what_is_missing(self):
        self.restart()
        self.targets.reload({IQN: VDI})
        self.qemu_io('read 0 4k')
        self.assertEqual([IQN], list(targets.list_targets()))

    def test_reload_may_be_tried_again(self):
        port = targets.CONF.libvirt.images_sheepdog_port
        self.flags(images_sheepdog_port=1, group='libvirt')
        self.assertRaisesRegex(
            exception.TgtError, 'invalid request',
            self.targets.reload, {IQN: VDI})
        self.assertRaises(AssertionError, self.qemu_io, 'read 0 4k')
        self.flags(images_sheepdog_port=port, group='libvirt')
        self.targets.reload({IQN: VDI})
        self.qemu_io('read 0 4k')
