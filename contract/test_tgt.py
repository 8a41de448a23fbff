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


class Target:
    """A tgtd, and what to do with it."""

    def __init__(self, fixture):
        self.fixture = fixture
        self._env = dict(os.environ, TGT_IPC_SOCKET=os.path.splitext(
            fixture.control_socket)[0])

    def admin(self, mode, op, *options):
        """:returns: what tgtadm says, '' if it succeeds"""
        done = subprocess.run(
            ['tgtadm', '--lld', 'iscsi', '--mode', mode, '--op', op, '--tid',
             '1', *options],
            env=self._env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=60)
        if not done.returncode:
            return ''
        return done.stdout.decode().strip() or 'no reason'

    def export(self, cluster, vdi):
        """:returns: as :meth:`admin`"""
        self.admin('target', 'new', '-T', 'iqn.2010-10.org.openstack:vdi')
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
                'iscsi://%s/iqn.2010-10.org.openstack:vdi/1' %
                self.fixture.portal]

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
        lines = self.cluster.run('node', 'list', '-r')[1].split(b'\n')
        host, port = os.fsdecode(lines[1].split()[1]).split(':')
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
        self.assertIn(b'(invalidated)', self._dog('lock', 'list'))
        self.assertTrue(second.io('read -P 66 8M 4k'))
        self.assertNotIn(b'(invalidated)', self._dog('lock', 'list'))

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
