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

"""What only the simulator does: counting, failing, starting again."""

import os
import select
import signal
import subprocess
import sys
import time

import fixtures
import testtools

from contract import clusters
from contract import test_tgt

_MIB = 1 << 20


class SimulatorTestCase(testtools.TestCase):

    fixture = clusters.sheepdog.SheepdogFixture
    options = {}

    def setUp(self):
        super().setUp()
        self.cluster = self.useFixture(self.fixture(**self.options))

    def _dog(self, *argv, stdin=b''):
        """A call that succeeds."""
        status, output, error = self.cluster.run('vdi', *argv, stdin=stdin)
        self.assertEqual((0, b''), (status, error))
        return output

    def _names(self):
        return [vdi['name'] for vdi in self.cluster.vdis()]


class TestCounters(SimulatorTestCase):

    def test_bytes_are_those_of_the_data(self):
        self._dog('create', 'vdi', '64M')
        self._dog('write', 'vdi', '1', '10', stdin=b'A' * 10)
        self._dog('read', 'vdi', '0', '6M')
        stats = self.cluster.stats()
        self.assertEqual(10, stats['bytes_written'])
        # Holes are known from the inode, and not read.
        self.assertEqual(4 * _MIB, stats['bytes_read'])
        self.assertEqual(10, stats['clients']['vdi write']['bytes_written'])

    def test_calls(self):
        self._dog('create', 'vdi', '64M')
        self._dog('list', '-r')
        self._dog('list', '-r', 'vdi')
        self.assertEqual({'vdi create': 1, 'vdi list': 2},
                         self.cluster.stats()['calls'])
        self.cluster.reset_stats()
        self.assertEqual({}, self.cluster.stats()['calls'])

    def _operations(self, *argv):
        self.cluster.reset_stats()
        self._dog(*argv)
        return sum(self.cluster.stats()['operations'].values())

    def test_only_list_costs_more_in_a_fuller_cluster(self):
        self._dog('create', 'vdi', '64M')
        calls = (('list', '-r', 'vdi'), ('object', 'map', 'vdi'),
                 ('read', 'vdi', '0', '1'))
        before = [self._operations(*call) for call in calls]
        for number in range(5):
            self._dog('create', 'other%d' % number, '64M')
        after = [self._operations(*call) for call in calls]
        # It reads header and table of each of the inodes.
        self.assertEqual(before[0] + 2 * 5, after[0])
        self.assertEqual(before[1:], after[1:])


class FaultsMixin:
    """Faults, with dog as a process and within this one."""

    def setUp(self):
        super().setUp()
        self._dog('create', 'vdi', '64M')
        self._dog('write', 'vdi', '0', '4', stdin=b'data')

    def _cut_short(self, *argv):
        """A call that hangs, until its time-out ends it."""
        self.assertRaises(subprocess.TimeoutExpired, self.cluster.run, 'vdi',
                          *argv, timeout=1)

    def _read(self, *argv):
        return self._dog('read', *argv, '0', '4')

    def test_error_of_a_request(self):
        self.cluster.fault('error', operation='NEW_VDI', result=0x15)
        self.assertEqual(
            (1, b'', b'Failed to create VDI new: Server has no space for new '
                     b'objects\n'),
            self.cluster.run('vdi', 'create', 'new', '4M'))
        self._dog('create', 'new', '4M')

    def test_error_of_a_call(self):
        self.cluster.fault('error', subcommand='vdi getattr', result=0x86)
        self._dog('create', 'new', '4M')
        self.assertEqual(
            (5, b'', b'Failed to find attribute oid: Network error between '
                     b'sheep\n'),
            self.cluster.run('vdi', 'getattr', 'vdi', 'nova'))

    def test_drop_before(self):
        self.cluster.fault('drop', operation='NEW_VDI')
        self.assertEqual((2, b'', b'failed to read a response\n'),
                         self.cluster.run('vdi', 'create', 'new', '4M'))
        self.assertEqual(['vdi'], self._names())

    def test_drop_after(self):
        self.cluster.fault('drop', operation='NEW_VDI', when='after')
        self.assertEqual((2, b'', b'failed to read a response\n'),
                         self.cluster.run('vdi', 'create', 'new', '4M'))
        self.assertEqual({'vdi', 'new'}, set(self._names()))

    def test_interrupted_delete_leaves_a_vdi_full_of_holes(self):
        self.cluster.fault('drop', subcommand='vdi delete',
                           operation='DEL_VDI')
        self.assertEqual((0, b'', b'failed to read a response\n'),
                         self.cluster.run('vdi', 'delete', 'vdi'))
        self.assertEqual(['vdi'], self._names())
        self.assertEqual(bytes(4), self._read('vdi'))

    def test_reply_without_doing(self):
        self.cluster.fault('reply', subcommand='vdi delete', vdi='vdi',
                           err=b'Fehler: \xfcberlastet\n')
        self.assertEqual((0, b'', b'Fehler: \xfcberlastet\n'),
                         self.cluster.run('vdi', 'delete', 'vdi'))
        self.assertEqual(b'data', self._read('vdi'))

    def test_reply_when_done(self):
        self.cluster.fault('reply', when='after', status=1, out=b'\xff',
                           err=b'error\n')
        self.assertEqual((1, b'\xff', b'error\n'),
                         self.cluster.run('vdi', 'create', 'new', '4M'))
        self.assertEqual({'vdi', 'new'}, set(self._names()))

    def test_kill_client(self):
        self.cluster.fault('kill-client', operation='DEL_VDI')
        self.assertEqual((-signal.SIGKILL, b'', b''),
                         self.cluster.run('vdi', 'delete', 'vdi'))
        self.assertEqual(bytes(4), self._read('vdi'))
        self.cluster.fault('kill-client', when='after')
        self.assertEqual((-signal.SIGKILL, b'', b''),
                         self.cluster.run('vdi', 'delete', 'vdi'))
        self.assertEqual([], self._names())

    def test_hang_before_and_after(self):
        self.cluster.fault('hang')
        self._cut_short('delete', 'vdi')
        self.assertEqual(b'data', self._read('vdi'))
        self.cluster.fault('hang', when='after')
        self._cut_short('delete', 'vdi')
        self.assertEqual([], self._names())

    def test_sheep_that_hangs_leaves_holes(self):
        self._dog('snapshot', '-s', 'tag', 'vdi')
        self._dog('write', 'vdi', '0', '4', stdin=b'DATA')
        self.cluster.fault('hang', hole=True, times=None, skip=1)
        # The first call is not yet hit.
        self._dog('create', 'new', '4M')
        self._cut_short('delete', '-s', 'tag', 'vdi')
        self._cut_short('delete', 'nosuch')
        self._cut_short('resize', 'vdi', '80M')
        self.cluster.clear_faults()
        self.assertEqual(b'DATA', self._read('vdi'))
        self.assertEqual(bytes(4), self._read('-s', 'tag', 'vdi'))
        before = self.cluster.vdis()
        self.cluster.fault('hang', hole=True)
        self._cut_short('delete', 'vdi')
        self.assertEqual(before, self.cluster.vdis())
        self.assertEqual(bytes(4), self._read('vdi'))
        self._dog('delete', 'vdi')
        self.assertEqual({'vdi', 'new'}, set(self._names()))

    def test_snapshot_cut_short_leaves_its_tag_to_the_working_vdi(self):
        self.cluster.fault('hang', operation='NEW_VDI')
        self._cut_short('snapshot', '-s', 'tag', 'vdi')
        self.assertEqual([('tag', False)], [
            (vdi['tag'], vdi['snapshot']) for vdi in self.cluster.vdis()])
        missing = (b'Failed to open VDI vdi (snapshot id: 0 snapshot tag: '
                   b'tag): Failed to find requested tag\n')
        self.cluster.clear_faults()
        self.assertEqual((0, b'', missing), self.cluster.run(
            'vdi', 'delete', '-s', 'tag', 'vdi'))
        self._dog('snapshot', '-s', 'tag', 'vdi')
        self.assertEqual([('tag', True), ('', False)], [
            (vdi['tag'], vdi['snapshot']) for vdi in self.cluster.vdis()])
        self.assertEqual(b'data', self._read('vdi'))

    def test_skip_and_times(self):
        self.cluster.fault('error', operation='GET_VDI_INFO', skip=1, times=2,
                           result=0x08)
        self.assertEqual(
            [0, 1, 1, 0],
            [self.cluster.run('vdi', 'read', 'vdi', '0', '1')[0]
             for _ in range(4)])

    def test_times_without_end(self):
        self.cluster.fault('error', operation='GET_VDI_INFO', times=None)
        self.assertEqual(
            [1, 1, 1], [self.cluster.run('vdi', 'read', 'vdi', '0', '1')[0]
                        for _ in range(3)])

    def test_pair_of_calls(self):
        for number in 1, 2:
            self.cluster.fault('reply', skip=number, status=number)
        self.assertEqual(
            [0, 1, 2, 0], [self.cluster.run('vdi', 'read', 'vdi', '0', '1')[0]
                           for _ in range(4)])

    def test_only_for_some_vdis(self):
        self._dog('create', 'other', '4M')
        self.cluster.fault('error', operation='*_OBJ', vdi='oth*', times=None)
        self._dog('read', 'vdi', '0', '1')
        self.assertEqual(1, self.cluster.run('vdi', 'read', 'other')[0])

    def test_kill(self):
        self.cluster.fault('kill', operation='READ_OBJ', skip=1)
        self.assertEqual(1, self.cluster.run('vdi', 'read', 'vdi')[0])
        self.cluster.wait_killed()
        self.assertEqual(
            (1, b'', b'failed to connect to 127.0.0.1:%d: Connection refused'
                     b'\n' % self.cluster.port * 2 +
             b'Failed to open VDI vdi (snapshot id: 0 snapshot tag: ): I/O '
             b'error\n'),
            self.cluster.run('vdi', 'read', 'vdi'))
        self.cluster.restart()
        self.assertEqual(b'data', self._read('vdi'))

    def test_nonsense_is_refused(self):
        for fields in ({'action': 'explode'}, {'action': 'drop', 'if': 'x'},
                       {'action': 'drop', 'when': 'during'},
                       {'action': 'error', 'when': 'after'},
                       {'action': 'error', 'result': 256},
                       {'action': 'reply', 'operation': '*'},
                       {'action': 'drop', 'hole': True}):
            self.assertRaises(self.refusals, self.cluster.fault, **fields)


class TestFaults(FaultsMixin, SimulatorTestCase):

    refusals = clusters.sheepdog.control.ControlError

    def test_delay(self):
        self.cluster.fault('delay', subcommand='vdi read', seconds=0.5)
        start = time.monotonic()
        self._dog('object', 'map', 'vdi')
        self._dog('read', 'vdi', '0', '4')
        self.assertGreaterEqual(time.monotonic() - start, 0.5)

    def test_client_that_gives_up_in_a_delay_is_not_served(self):
        self.cluster.fault('delay', operation='DEL_VDI', seconds=60)
        self._cut_short('delete', 'vdi')
        self._dog('object', 'map', 'vdi')
        self.assertEqual(['vdi'], self._names())

    def test_hang_until_cleared(self):
        self.cluster.fault('hang', operation='READ_OBJ', vdi='vdi')
        with subprocess.Popen(
                [self.cluster.dog, 'vdi', 'read', 'vdi', '0', '4', '-p',
                 str(self.cluster.port)], stdout=subprocess.PIPE) as dog:
            self.assertRaises(subprocess.TimeoutExpired, dog.wait, 0.5)
            self.cluster.clear_faults()
            self.assertEqual(b'data', dog.communicate(timeout=30)[0])


class TestFaultsOfModel(FaultsMixin, SimulatorTestCase):

    fixture = clusters.sheepdog.ModelFixture
    refusals = (TypeError, ValueError)

    def test_it_looks_like_timeout(self):
        for action, status in ('hang', 124), ('kill-client', 137):
            self.cluster.fault(action)
            self.assertEqual((status, b'', b''), self.cluster.execute(
                'env', 'LC_ALL=C', 'timeout', '--kill-after=5', '20', 'dog',
                'vdi', 'delete', 'vdi'))
        self.assertEqual(b'data', self._read('vdi'))


class TestRestart(SimulatorTestCase):

    options = {'lock': True, 'copies': '3'}

    def test_it_has_what_it_had(self):
        self._dog('create', 'vdi', '64M')
        self._dog('write', 'vdi', '4M', '4', stdin=b'AAAA')
        self._dog('snapshot', '-s', 'tag', 'vdi')
        self._dog('write', 'vdi', '4M', '4', stdin=b'BBBB')
        self._dog('clone', '-s', 'tag', 'vdi', 'clone')
        self._dog('create', 'gone', '4M')
        self._dog('delete', 'gone')
        calls = (('list', '-r'), ('object', 'map', 'vdi'),
                 ('object', 'map', 'clone'), ('read', 'vdi', '4M', '5'),
                 ('read', '-s', 'tag', 'vdi', '4M', '5'))
        before = [self._dog(*call) for call in calls]
        info = self.cluster.run('cluster', 'info', '-v')
        node_info = self.cluster.run('node', 'info', '-r')
        port = self.cluster.port
        self.cluster.restart()
        self.assertEqual(port, self.cluster.port)
        self.assertEqual(before, [self._dog(*call) for call in calls])
        self.assertEqual(info, self.cluster.run('cluster', 'info', '-v'))
        self.assertEqual(node_info, self.cluster.run('node', 'info', '-r'))

    def _check_after_kills(self, argv, stdin=b''):
        """Make a call once for each of its operations, and kill after it."""
        for skip in range(100):
            self.cluster.run('cluster', 'format', '-f', '-c', '2')
            self._dog('create', 'vdi', '16M')
            self._dog('write', 'vdi', '0', '5M', stdin=b'A' * 5 * _MIB)
            self._dog('snapshot', '-s', 'tag', 'vdi')
            self._dog('write', 'vdi', '0', '5M', stdin=b'B' * 5 * _MIB)
            self.cluster.fault('kill', subcommand='vdi ' + argv[0],
                               operation='*', when='after', skip=skip)
            status, _, error = self.cluster.run('vdi', *argv, stdin=stdin)
            if not status and not error:
                break
            self.cluster.wait_killed()
            self.cluster.start()
            # The snapshot is as it was, and all is there to be deleted.
            self.assertEqual(b'AA\0', self._dog(
                'read', '-s', 'tag', 'vdi', '5242878', '3'))
            for vdi in self.cluster.vdis():
                self._dog('delete', *(('-s', str(vdi['snapshot_id']))
                                      if vdi['snapshot'] else ()),
                          vdi['name'])
            self.assertEqual([], self.cluster.vdis())
        self.assertGreater(skip, 1)

    def test_killed_in_clone(self):
        self._check_after_kills(('clone', '-s', 'tag', 'vdi', 'new'))

    def test_killed_in_snapshot(self):
        self._check_after_kills(('snapshot', '-s', 'new', 'vdi'))

    def test_killed_in_delete(self):
        self._check_after_kills(('delete', 'vdi'))

    def test_killed_in_write(self):
        self._check_after_kills(('write', 'vdi', '0', '9M'),
                                b'C' * 9 * _MIB)


class TestFullCluster(SimulatorTestCase):

    # 24 MiB of data in two copies.
    options = {'node_size': 16 * _MIB}

    def setUp(self):
        super().setUp()
        self._dog('create', 'vdi', '64M')
        self._dog('write', 'vdi', '0', '8M', stdin=b'A' * 8 * _MIB)
        self._dog('create', 'rest', '64M')
        self.full = self.cluster.run('vdi', 'write', 'rest',
                                     stdin=b'B' * 64 * _MIB)

    def test_write(self):
        status, _, error = self.full
        self.assertEqual(1, status)
        self.assertRegex(error, rb'^Failed to write object [0-9a-f]+: Server '
                                rb'has no space for new objects\n'
                                rb'Failed to write VDI\n$')
        # What is allocated may be written.
        self._dog('write', 'vdi', '0', '1', stdin=b'C')

    def test_snapshot_leaves_no_working_vdi(self):
        self.assertEqual(
            (1, b'', b'Failed to create VDI vdi: Failed to write to base VDI'
                     b'\n'),
            self.cluster.run('vdi', 'snapshot', '-s', 'tag', 'vdi'))
        self.assertEqual(
            [True], [vdi['snapshot'] for vdi in self.cluster.vdis()
                     if vdi['name'] == 'vdi'])

    def test_space_comes_back(self):
        self._dog('delete', 'rest')
        self._dog('snapshot', '-s', 'tag', 'vdi')
        self._dog('clone', '-s', 'tag', 'vdi', 'clone')


class TestProcesses(SimulatorTestCase):

    def test_it_ends_with_the_process_that_started_it(self):
        program = (
            'import os, sys\n'
            'from contract import clusters\n'
            'cluster = clusters.sheepdog.SheepdogFixture()\n'
            'cluster.setUp()\n'
            'print(cluster.pid, flush=True)\n'
            'sys.stdin.read()\n'
            'os._exit(1)\n')
        directory = self.useFixture(fixtures.TempDir()).path
        with subprocess.Popen(
                [sys.executable, '-c', program], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=os.path.dirname(os.path.dirname(__file__)),
                env=dict(os.environ, TMPDIR=directory)) as starter:
            pid = os.pidfd_open(int(starter.stdout.readline()))
            starter.stdin.close()
            ended = select.select([pid], [], [], 30)[0]
            os.close(pid)
        self.assertEqual([pid], ended)

    def test_dog_streams(self):
        self._dog('create', 'vdi', '256M')
        dog = ['prlimit', '--as=%d' % (128 * _MIB), self.cluster.dog, 'vdi']
        where = ['vdi', '-p', str(self.cluster.port)]
        with open('/dev/urandom', 'rb') as data:
            subprocess.run([*dog, 'write', *where], stdin=data, check=True)
        subprocess.run([*dog, 'read', *where], check=True,
                       stdout=subprocess.DEVNULL)

    def test_io_goes_on_when_the_sheep_is_back(self):
        self._dog('create', 'vdi', '64M')
        target = test_tgt.Target(
            self.useFixture(clusters.tgtd.TgtdFixture()))
        self.assertEqual('', target.export(self.cluster, 'vdi'))
        self.assertTrue(target.io('write -P 65 0 4k'))
        self.cluster.kill()
        with subprocess.Popen(target.io_command('write -P 66 8M 4k'),
                              stdout=subprocess.DEVNULL) as io:
            self.assertRaises(subprocess.TimeoutExpired, io.wait, 1)
            self.cluster.start()
            self.assertEqual(0, io.wait(60))
        self.assertEqual(b'AB', self._dog('read', 'vdi', '0', '1') +
                         self._dog('read', 'vdi', '8M', '1'))
