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

from oslo_utils import units

from nova import exception
from nova import test
from nova.tests.unit.virt.libvirt import sheepdog_base
from nova.virt.libvirt.storage import tgt
from nova.virt.libvirt import utils as libvirt_utils

VDI = '7b6d2f63-5a58-4b3a-9d4e-1f6b1a0c2d3e_disk'
IQN = 'iqn.2014-06.org.openstack.nova:7b6d2f63-5a58-4b3a-9d4e-1f6b1a0c2d3e.'


class TgtTestCase(sheepdog_base.SheepdogTestMixin, test.NoDBTestCase):

    def setUp(self):
        super().setUp()
        self.start_sheepdog()
        self.start_tgtd()
        libvirt_utils.create_sheepdog_vdi(VDI, 8 * units.Mi)

    def _show(self):
        return subprocess.run(
            ['tgtadm', '--mode', 'target', '--op', 'show'],
            capture_output=True, text=True, check=True).stdout

    def _url(self, name='disk'):
        return 'iscsi://%s/%s%s/1' % (self.tgtd.portal, IQN, name)

    def _qemu_io(self, command):
        return subprocess.run(
            ['qemu-io', '-f', 'raw', '-c', command, self._url()],
            capture_output=True, text=True, check=True).stdout

    def test_check(self):
        tgt.check()
        self.tgtd.stop()
        self.assertRaisesRegex(
            exception.TgtError, 'tgt daemon', tgt.check)

    def test_export(self):
        tgt.export({IQN + 'disk': VDI})
        self._qemu_io('write -P 0x41 4M 4k')
        self.assertEqual(b'A' * 4096,
                         self.dog('vdi', 'read', VDI, '4194304', '4096'))
        shown = self._show()
        self.assertIn('ACL information:\n        127.0.0.1\n', shown)
        # not the ids which every tgtd gives to its first unit
        self.assertNotIn('IET     00010001', shown)

    def test_export_again_sees_the_new_size(self):
        tgt.export({IQN + 'disk': VDI})
        libvirt_utils.resize_sheepdog_vdi(VDI, 16 * units.Mi)
        tgt.export({IQN + 'disk': VDI})
        self._qemu_io('write 12M 4k')
        self.assertEqual(1, self._show().count(IQN))

    def test_export_beside_the_targets_of_others(self):
        for number in '1', '2', '4':
            subprocess.run(
                ['tgtadm', '--lld', 'iscsi', '--mode', 'target', '--op',
                 'new', '--tid', number, '-T', 'iqn.2010-10.org:' + number],
                check=True)
        libvirt_utils.create_sheepdog_vdi(VDI + '.swap', 8 * units.Mi)
        tgt.export({IQN + 'disk': VDI, IQN + 'disk.swap': VDI + '.swap'})
        self.assertEqual(
            {'iqn.2010-10.org:1': 1, 'iqn.2010-10.org:2': 2,
             IQN + 'disk': 3, 'iqn.2010-10.org:4': 4, IQN + 'disk.swap': 5},
            tgt._get_targets())
        tgt.unexport(IQN)
        self.assertEqual({1, 2, 4}, set(tgt._get_targets().values()))

    def test_export_of_a_missing_vdi_leaves_no_target(self):
        self.assertRaisesRegex(
            exception.TgtError, 'invalid request',
            tgt.export, {IQN + 'disk': 'nosuch'})
        self.assertEqual({}, tgt._get_targets())

    def test_number_taken_meanwhile(self):
        targets = tgt._get_targets()
        subprocess.run(
            ['tgtadm', '--lld', 'iscsi', '--mode', 'target', '--op', 'new',
             '--tid', '1', '-T', 'iqn.2010-10.org:1'], check=True)
        self.assertEqual(2, tgt._new_target(IQN + 'disk', targets))

    def test_unexport_without_tgtd(self):
        tgt.export({IQN + 'disk': VDI})
        self.tgtd.stop()
        tgt.unexport(IQN)

    def _kill_while_writing(self):
        """Kill an initiator whose command the cluster does not answer."""
        tgt.export({IQN + 'disk': VDI})
        self.sheepdog.fault('hang', subcommand='tgt', operation='*WRITE*',
                            when='after')
        self.sheepdog.reset_stats()
        client = subprocess.Popen(
            ['qemu-io', '-f', 'raw', '-c', 'write 0 4k', self._url()],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(client.wait)
        self.addCleanup(client.kill)
        self.wait_until(lambda: self.sheepdog.stats()['bytes_written'])
        client.kill()

    def test_unexport_waits_for_a_command(self):
        self._kill_while_writing()
        run = tgt._tgtadm
        refusals = []

        def run_and_answer(*arguments):
            try:
                return run(*arguments)
            except exception.TgtError as e:
                refusals.append(str(e))
                self.sheepdog.clear_faults()
                raise

        with mock.patch.object(tgt, '_tgtadm', run_and_answer):
            tgt.unexport(IQN)
        self.assertIn('still active', refusals[0])
        self.assertEqual({}, tgt._get_targets())

    def test_unexport_does_not_wait_for_ever(self):
        self._kill_while_writing()
        self.flags(images_sheepdog_timeout=1, group='libvirt')
        self.assertRaisesRegex(
            exception.TgtError, 'still active', tgt.unexport, IQN)

    def test_unexport_when_it_cannot_be_known(self):
        self.install('tgtadm', 'exit 22\n')
        self.assertRaises(exception.TgtError, tgt.unexport, IQN)

    def test_exported(self):
        with tgt.exported(IQN + 'disk', VDI):
            self.assertEqual([IQN + 'disk'], list(tgt._get_targets()))
        self.assertEqual({}, tgt._get_targets())

    def test_exported_ends_on_an_error(self):
        def fail():
            with tgt.exported(IQN + 'disk', VDI):
                raise ZeroDivisionError()
        self.assertRaises(ZeroDivisionError, fail)
        self.assertEqual({}, tgt._get_targets())

    def test_restore_makes_what_is_missing(self):
        libvirt_utils.create_sheepdog_vdi(VDI + '.swap', 8 * units.Mi)
        vdis = {IQN + 'disk': VDI, IQN + 'disk.swap': VDI + '.swap'}
        tgt.export({IQN + 'disk': VDI})
        number = tgt._get_targets()[IQN + 'disk']
        self.assertEqual([VDI + '.swap'], tgt.restore(lambda: vdis))
        self.assertEqual(number, tgt._get_targets()[IQN + 'disk'])
        self.assertEqual([], tgt.restore(lambda: vdis))

    def _write_behind_tgtd(self):
        """Write what an open export does not know of.

        The snapshot makes another inode the one of the VDI.
        """
        self.dog('vdi', 'snapshot', '-s', 'tag', VDI)
        status, out, err = self.sheepdog.run(
            'vdi', 'write', VDI, '4194304', '4096', stdin=b'B' * 4096)
        self.assertEqual((0, b''), (status, err))

    def test_reload(self):
        tgt.export({IQN + 'disk': VDI})
        self._qemu_io('write -P 0x41 4M 4k')
        self._write_behind_tgtd()
        number = tgt._get_targets()[IQN + 'disk']
        with mock.patch.object(tgt, '_get_targets') as get_targets:
            tgt.reload({IQN + 'disk': VDI})
        get_targets.assert_not_called()
        self._qemu_io('read -P 0x42 4M 4k')
        self.assertEqual(number, tgt._get_targets()[IQN + 'disk'])

    def test_reload_with_a_session(self):
        tgt.export({IQN + 'disk': VDI})
        with subprocess.Popen(
                ['qemu-io', '-f', 'raw', self._url()],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, bufsize=1) as client:
            client.stdin.write('write -P 0x41 4M 4k\n')
            while 'wrote' not in client.stdout.readline():
                pass
            self._write_behind_tgtd()
            tgt.reload({IQN + 'disk': VDI})
            out, _err = client.communicate('read -P 0x42 4M 4k\nquit\n')
        self.assertIn('read 4096/4096', out)
        self.assertNotIn('Pattern verification failed', out)

    def test_reload_by_another_process_or_after_a_restart(self):
        tgt.export({IQN + 'disk': VDI})
        self.patch_object(tgt, '_exported', new={})
        tgt.reload({IQN + 'disk': VDI})
        tgt._exported[IQN + 'disk'] = ('another run', 7)
        tgt.reload({IQN + 'disk': VDI})

    def test_reload_makes_what_is_missing(self):
        tgt.export({IQN + 'disk': VDI})
        self.tgtd.stop()
        self.tgtd.start()
        tgt.reload({IQN + 'disk': VDI})
        self.assertEqual([IQN + 'disk'], list(tgt._get_targets()))

    def test_reload_may_be_tried_again(self):
        tgt.export({IQN + 'disk': VDI})
        port = tgt.CONF.libvirt.images_sheepdog_port
        self.flags(images_sheepdog_port=1, group='libvirt')
        self.assertRaisesRegex(
            exception.TgtError, 'invalid request',
            tgt.reload, {IQN + 'disk': VDI})
        self.assertRaises(subprocess.CalledProcessError,
                          self._qemu_io, 'read 0 4k')
        self.flags(images_sheepdog_port=port, group='libvirt')
        tgt.reload({IQN + 'disk': VDI})
        self._qemu_io('read 0 4k')

    def test_tgtd_start(self):
        first = tgt.get_tgtd_start()
        self.assertIsNotNone(first)
        self.assertEqual(first, tgt.get_tgtd_start())
        self.tgtd.stop()
        self.tgtd.start()
        self.assertNotIn(tgt.get_tgtd_start(), (None, first))
        os.unlink(self.tgtd.control_socket)
        self.assertIsNone(tgt.get_tgtd_start())
