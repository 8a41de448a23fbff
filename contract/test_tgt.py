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

import testtools

from contract import clusters


IQN = 'iqn.2014-06.org.openstack.nova:'


class Target:
    """A tgtd, and what to do with it."""

    def __init__(self, fixture):
        self.fixture = fixture
        self._env = dict(os.environ, TGT_IPC_SOCKET=os.path.splitext(
            fixture.control_socket)[0])

    def tgtadm(self, *arguments):
        """:returns: exit status, standard output, standard error (bytes)"""
        done = subprocess.run(
            ['tgtadm', '--lld', 'iscsi', *arguments], env=self._env,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
        return done.returncode, done.stdout, done.stderr

    def admin(self, mode, op, *options):
        """:returns: what tgtadm says, '' if it succeeds"""
        status, _, error = self.tgtadm('--mode', mode, '--op', op, '--tid',
                                       '1', *options)
        if not status:
            return ''
        return error.decode().strip() or 'no reason'

    def export(self, cluster, vdi):
        """:returns: as :meth:`admin`"""
        self.admin('target', 'new', '-T', IQN + 'vdi')
        path = 'tcp:%s:%d:%s' % (cluster.host, cluster.port, vdi)
        return (self.admin('logicalunit', 'new', '--lun', '1', '--bstype',
                           'sheepdog', '-b', path) or
                self.admin('target', 'bind', '-I', '127.0.0.1'))

    def remove(self):
        return self.admin('target', 'delete', '--force')

    def reload(self, cluster, vdi):
        """Have it read the inode again."""
        path = 'path=tcp:%s:%d:%s' % (cluster.host, cluster.port, vdi)
        for params in ('online=0', path, 'online=1'):
            self.admin('logicalunit', 'update', '--lun', '1', '--params',
                       params)

    def io_command(self, *commands):
        """:returns: arguments of a qemu-io on the unit"""
        options = [word for command in commands for word in ('-c', command)]
        return ['qemu-io', '-f', 'raw', *options,
                'iscsi://%s/%svdi/1' % (self.fixture.portal, IQN)]

    def io(self, *commands):
        """Run qemu-io on the unit.

        :returns: whether all succeeded, all patterns read included
        """
        return not subprocess.run(
            self.io_command(*commands), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=60).returncode


class TestTgt(testtools.TestCase):
    """VDIs through Debian's tgtd, as guests see them."""

    def setUp(self):
        super().setUp()
        self.cluster = self.useFixture(clusters.get())

    def _format(self, *options):
        clusters.format(self.cluster, '-c', '2', *options)
        self._dog('create', 'vdi', '32M')

    def _target(self):
        return Target(self.useFixture(clusters.tgtd.TgtdFixture()))

    def _dog(self, *argv, stdin=b''):
        status, output, error = self.cluster.run('vdi', *argv, stdin=stdin)
        self.assertEqual((0, b''), (status, error))
        return output

    def _other_sheep(self):
        """The cluster, as another of its sheep gives it."""
        host, port = self.cluster.sheep()[1].split(':')
        return clusters.sheepdog.Cluster(self.cluster.dog, host, int(port))

    def test_data_is_that_of_dog(self):
        self._format()
        self._dog('write', 'vdi', '4194300', '8', stdin=b'AAAAAAAA')
        target = self._target()
        self.assertEqual('', target.export(self.cluster, 'vdi'))
        self.assertTrue(target.io(
            'read -P 0 0 1M', 'read -P 65 4194300 8', 'read -P 0 4194308 1M',
            'write -P 66 8388096 1024', 'read -P 66 8388096 1024', 'flush'))
        self.assertEqual(b'\0' + b'B' * 1024 + b'\0',
                         self._dog('read', 'vdi', '8388095', '1026'))
        vids = self._dog('object', 'map', 'vdi').split()
        self.assertEqual([b'00000000', b'00000001', b'00000002'], vids[2::2])

    def test_snapshot_of_a_vdi_in_use(self):
        self._format()
        target = self._target()
        self.assertEqual('', target.export(self.cluster, 'vdi'))
        self.assertTrue(target.io('write -P 65 0 5M'))
        self._dog('snapshot', '-s', 'tag', 'vdi')
        self.assertTrue(target.io('write -P 66 4k 4k', 'read -P 65 0 4k',
                                  'read -P 66 4k 4k', 'read -P 65 8k 4k',
                                  'write -P 67 20M 512'))
        self.assertEqual(b'ABBA', self._dog('read', 'vdi', '4095', '2') +
                         self._dog('read', 'vdi', '8191', '2'))
        self.assertEqual(b'AAAA', self._dog('read', '-s', 'tag', 'vdi',
                                            '4095', '4'))
        self.assertEqual(b'\0', self._dog('read', '-s', 'tag', 'vdi', '20M',
                                          '1'))

    def test_clone(self):
        self._format()
        self._dog('write', 'vdi', '0', '8', stdin=b'AAAAAAAA')
        self._dog('snapshot', '-s', 'tag', 'vdi')
        self._dog('clone', '-s', 'tag', 'vdi', 'clone')
        target = self._target()
        self.assertEqual('', target.export(self.cluster, 'clone'))
        self.assertTrue(target.io('read -P 65 0 8', 'write -P 66 2 2'))
        self._dog('delete', 'vdi')
        self._dog('delete', '-s', 'tag', 'vdi')
        self.assertEqual(b'AABBAAAA\0', self._dog('read', 'clone', '0', '9'))
        self.assertTrue(target.io('read -P 65 4 4', 'read -P 66 2 2'))

    def test_size_is_that_of_the_time_of_the_export(self):
        self._format()
        target = self._target()
        self.assertEqual('', target.export(self.cluster, 'vdi'))
        self._dog('resize', 'vdi', '40M')
        self.assertFalse(target.io('write 36M 512'))
        self.assertEqual('', target.remove())
        self.assertEqual('', target.export(self.cluster, 'vdi'))
        self.assertTrue(target.io('write 36M 512'))

    def test_missing_vdi(self):
        self._format()
        self.assertEqual('tgtadm: invalid request',
                         self._target().export(self.cluster, 'nosuch'))

    def test_second_tgtd_reads_old_data_until_it_reloads(self):
        self._format()
        self._dog('write', 'vdi', '0', '1', stdin=b'A')
        first, second = self._target(), self._target()
        self.assertEqual('', first.export(self.cluster, 'vdi'))
        self.assertEqual('', second.export(self._other_sheep(), 'vdi'))
        self.assertTrue(first.io('write -P 66 8M 4k'))
        self.assertTrue(second.io('read -P 0 8M 4k'))
        second.reload(self._other_sheep(), 'vdi')
        self.assertTrue(second.io('read -P 66 8M 4k'))

    def test_locks(self):
        self._format('-l')
        first, second = self._target(), self._target()
        self.assertEqual('', first.export(self.cluster, 'vdi'))
        # One sheep locks for one client at a time, several may share.
        self.assertEqual('tgtadm: invalid request',
                         second.export(self.cluster, 'vdi'))
        second.remove()
        self.assertEqual('', second.export(self._other_sheep(), 'vdi'))
        self.assertTrue(first.io('write -P 66 8M 4k'))
        self.assertTrue(second.io('read -P 66 8M 4k'))

    def test_lock_outlives_tgtd(self):
        self._format('-l')
        target = self._target()
        self.assertEqual('', target.export(self.cluster, 'vdi'))
        target.fixture.stop()
        target.fixture.start()
        self.assertEqual('tgtadm: invalid request',
                         target.export(self.cluster, 'vdi'))
        target.remove()
        self._dog('lock', 'unlock', 'vdi')
        self.assertEqual('', target.export(self.cluster, 'vdi'))
        self.assertTrue(target.io('write 0 4k'))


class TestTgtadm(testtools.TestCase):
    """What tgtadm returns and says, of Debian's tgtd."""

    def setUp(self):
        super().setUp()
        self.cluster = self.useFixture(self.get_cluster())
        clusters.format(self.cluster, '-c', '2')
        for name in 'vdi', 'other':
            self.assertEqual((0, b'', b''), self.cluster.run(
                'vdi', 'create', name, '32M'))

    def get_cluster(self):
        return clusters.get()

    def start_tgtd(self):
        self.target = Target(self.useFixture(clusters.tgtd.TgtdFixture()))

    def stop_tgtd(self):
        self.target.fixture.stop()

    def tgtadm(self, *arguments):
        """:returns: as Target.tgtadm"""
        return self.target.tgtadm(*arguments)

    def _call(self, mode, op, *options):
        """:returns: exit status, 0 without a word; or what it says"""
        status, output, error = self.tgtadm('--mode', mode, '--op', op,
                                            *options)
        self.assertEqual(b'', output)
        if not status and not error:
            return 0
        self.assertEqual(22, status)
        return error.decode()

    def _new(self, tid, name):
        return self._call('target', 'new', '--tid', tid, '-T', IQN + name)

    def _path(self, vdi, port=None):
        return 'tcp:%s:%d:%s' % (self.cluster.host, port or self.cluster.port,
                                 vdi)

    def _new_unit(self, path, tid='70000'):
        return self._call('logicalunit', 'new', '--tid', tid, '--lun', '1',
                          '--bstype', 'sheepdog', '-b', path)

    def _update(self, params, tid='70000', number='1'):
        return self._call('logicalunit', 'update', '--tid', tid, '--lun',
                          number, '--params', params)

    def _show(self):
        status, output, error = self.tgtadm('--mode', 'target', '--op',
                                            'show')
        self.assertEqual((0, b''), (status, error))
        return output.decode()

    def _unit(self):
        """:returns: size in MB, whether it is online, and its path, as shown
        """
        lines = dict(line.strip().partition(': ')[::2] for line in
                     self._show().splitlines())
        return (lines['Size'].split()[0], lines['Online'],
                lines['Backing store path'])

    def test_system(self):
        self.start_tgtd()
        status, output, error = self.tgtadm('--mode', 'system', '--op',
                                            'show')
        self.assertEqual((0, b''), (status, error))
        self.assertRegex(output, rb'(?s)Backing stores:.*\n    sheepdog\n')

    def test_targets(self):
        self.start_tgtd()
        self.assertEqual('', self._show())
        self.assertEqual(0, self._new('5', 'a'))
        exists = 'tgtadm: this target already exists\n'
        self.assertEqual(exists, self._new('5', 'b'))
        self.assertEqual(exists, self._new('6', 'a'))
        self.assertEqual('tgtadm: invalid request\n', self._new('6', 'a_b'))
        self.assertEqual("tgtadm: 'tid' cannot be 0\n", self._new('0', 'b'))
        self.assertEqual(0, self._new('70000', 'b'))
        missing = "tgtadm: can't find the target\n"
        bind = ('target', 'bind', '-I', '127.0.0.1', '--tid')
        self.assertEqual(0, self._call(*bind, '5'))
        self.assertEqual('tgtadm: this access control rule already exists\n',
                         self._call(*bind, '5'))
        self.assertEqual(missing, self._call(*bind, '6'))
        delete = ('target', 'delete', '--force', '--tid')
        self.assertEqual(missing, self._call(*delete, '6'))
        self.assertEqual(0, self._call(*delete, '5'))
        self.assertEqual(missing, self._call(*delete, '5'))
        self.assertEqual(['Target 70000: %sb' % IQN], [
            line for line in self._show().splitlines()
            if line.startswith('Target')])

    def test_units(self):
        self.start_tgtd()
        self._new('70000', 'a')
        invalid = 'tgtadm: invalid request\n'
        self.assertEqual(invalid, self._new_unit(self._path('nosuch')))
        self.assertEqual(invalid, self._new_unit(self._path('vdi', 1)))
        self.assertEqual("tgtadm: can't find the target\n",
                         self._new_unit(self._path('vdi'), tid='9'))
        self.assertEqual(0, self._new_unit(self._path('vdi')))
        self.assertEqual('tgtadm: this logical unit number already exists\n',
                         self._new_unit(self._path('vdi')))
        self.assertEqual("tgtadm: can't find the target\n",
                         self._update('scsi_sn=1', tid='9'))
        self.assertEqual("tgtadm: can't find the logical unit\n",
                         self._update('scsi_sn=1', number='2'))
        self.assertEqual(invalid, self._update('nosuch=1'))
        self.assertEqual(0, self._update('scsi_id=0123,scsi_sn=4567'))
        self._call('target', 'bind', '--tid', '70000', '-I', '127.0.0.1')
        self.assertEqual(_SHOWN % (IQN, self._path('vdi')), self._show())
        self._call('target', 'delete', '--force', '--tid', '70000')
        self.assertEqual('', self._show())

    def test_reload(self):
        self.start_tgtd()
        self._new('70000', 'a')
        path = 'path=' + self._path('other')
        self._new_unit(self._path('vdi'))
        invalid = 'tgtadm: invalid request\n'
        # Not while it is online, and it tells how the last parameter went.
        self.assertEqual(invalid, self._update(path))
        self.assertEqual(0, self._update('online=0'))
        self.assertEqual(('34', 'No', self._path('vdi')),
                         self._unit())
        self.assertEqual(invalid, self._update(
            'online=0,path=' + self._path('nosuch')))
        self.assertEqual(('0', 'No', 'None'), self._unit())
        self.assertEqual(0, self._update('online=1'))
        self.assertEqual(('0', 'Yes', 'None'), self._unit())
        self.assertEqual(0, self._update(path))
        self.assertEqual(0, self._update('online=0,' + path))
        self.assertEqual(('34', 'Yes', self._path('other')), self._unit())
        self.assertEqual(0, self._update(
            'path=%s,online=1' % self._path('nosuch')))

    def test_no_tgtd(self):
        self.start_tgtd()
        self._new('5', 'a')
        self.stop_tgtd()
        self.assertEqual(
            (107, b'', b'tgtadm: failed to send request hdr to tgt daemon, '
                       b'Transport endpoint is not connected\n'),
            self.tgtadm('--mode', 'target', '--op', 'show'))


_SHOWN = """\
Target 70000: %sa
    System information:
        Driver: iscsi
        State: ready
    I_T nexus information:
    LUN information:
        LUN: 0
            Type: controller
            SCSI ID: IET     111700000
            SCSI SN: beaf700000
            Size: 0 MB, Block size: 1
            Online: Yes
            Removable media: No
            Prevent removal: No
            Readonly: No
            SWP: No
            Thin-provisioning: No
            Backing store type: null
            Backing store path: None
            Backing store flags: \n\
        LUN: 1
            Type: disk
            SCSI ID: 0123
            SCSI SN: 4567
            Size: 34 MB, Block size: 512
            Online: Yes
            Removable media: No
            Prevent removal: No
            Readonly: No
            SWP: No
            Thin-provisioning: No
            Backing store type: sheepdog
            Backing store path: %s
            Backing store flags: \n\
    Account information:
    ACL information:
        127.0.0.1
"""


class TestModel(TestTgtadm):
    """What the simulator's model of it returns and says."""

    def get_cluster(self):
        return clusters.sheepdog.ModelFixture(copies=None)

    def start_tgtd(self):
        pass

    def stop_tgtd(self):
        self.cluster.tgtd.kill()

    def tgtadm(self, *arguments):
        return self.cluster.execute('tgtadm', '--lld', 'iscsi', *arguments)

    def test_faults(self):
        show = ('--mode', 'target', '--op', 'show')
        self.cluster.fault('reply', subcommand='tgtadm *', status=22,
                           err=b'tgtadm: out of memory\n', skip=1)
        self.assertEqual((0, b'', b''), self.tgtadm(*show))
        self.assertEqual((22, b'', b'tgtadm: out of memory\n'),
                         self.tgtadm(*show))
        self.cluster.fault('hang', subcommand='tgtadm target new',
                           when='after')
        self.assertEqual((124, b'', b''), self.tgtadm(
            '--mode', 'target', '--op', 'new', '--tid', '70000', '-T', 'a'))
        self.assertEqual([70000], list(self.cluster.tgtd.targets))
        self.cluster.fault('kill-client')
        self.assertEqual((137, b'', b''), self.tgtadm(*show))
        # tgtd waits for a sheep that hangs, and tgtadm for tgtd.
        self.cluster.fault('hang', operation='LOCK_VDI', vdi='vdi')
        self.assertEqual((124, b'', b''), self.tgtadm(
            '--mode', 'logicalunit', '--op', 'new', '--tid', '70000', '--lun',
            '1', '--bstype', 'sheepdog', '-b', self._path('vdi')))
        self.cluster.fault('kill', subcommand='tgtadm target bind')
        self.assertEqual(107, self.tgtadm(
            '--mode', 'target', '--op', 'bind', '--tid', '70000', '-I',
            '127.0.0.1')[0])
        self.cluster.tgtd.start()
        self.assertEqual((0, b'', b''), self.tgtadm(*show))
        self.assertEqual(
            {'tgtadm target show': 4, 'tgtadm target new': 1,
             'tgtadm target bind': 1, 'tgtadm logicalunit new': 1},
            {name: count for name, count in
             self.cluster.stats()['calls'].items()
             if name.startswith('tgtadm')})
