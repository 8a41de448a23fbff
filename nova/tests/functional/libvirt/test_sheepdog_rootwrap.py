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

"""What rootwrap lets the user of nova-compute do to Sheepdog and tgtd.

This is to be run as that user, as ``python3 tools/testbed`` does: as one who
is not root, whom sudo allows ``nova-rootwrap /etc/nova/rootwrap.conf``, in
some test beds its daemon as well, and nothing else.
"""

import configparser
from multiprocessing import managers
import os
import subprocess
from unittest import mock

import fixtures
from oslo_config import fixture as config_fixture
from oslo_rootwrap import client
from oslo_rootwrap import wrapper
from oslo_utils.fixture import uuidsentinel as uuids
import testtools

import nova.conf
from nova import exception
from nova.tests.functional.libvirt import sheepdog_backend as backend
from nova.virt.libvirt import blockinfo

ROOTWRAP_CONF = '/etc/nova/rootwrap.conf'
VDI = uuids.instance + '_disk'
BASE = uuids.image + '_base.' + 'a' * 32
LEASE = uuids.image + '_lease.0'
TAG = 'nova-snapshot'
IQN = backend.get_iqn(VDI)
# Of a target that is Nova's
TID = '1000000000'
# No sheep is there: what a test has root run must not reach a cluster, should
# the filters let it pass.
HOST, PORT = '127.0.0.1', '1'
# What stands before a command, and between a dog's subcommand and a VDI.
RUN = ('env', 'LC_ALL=C', 'PATH=' + backend.ROOT_PATH,
       'timeout', '--kill-after=5', '60')
GATEWAY = ('-a', HOST, '-p', PORT)
DOG = RUN + ('dog',)
TARGET = RUN + ('tgtadm', '--lld', 'iscsi', '--mode', 'target', '--op')
UNIT = RUN + ('tgtadm', '--lld', 'iscsi', '--mode', 'logicalunit', '--op')
NEW_UNIT = UNIT + ('new', '--tid', TID, '--lun', '1')
UPDATE_UNIT = UNIT + ('update', '--tid', TID, '--lun', '1', '--params')

NEAR_MISSES = [
    # the same words without what goes around them, or with other surroundings
    ('dog', 'vdi', 'delete', *GATEWAY, VDI),
    ('env', 'LC_ALL=C', 'dog', 'vdi', 'delete', *GATEWAY, VDI),
    ('tgtadm', '--lld', 'iscsi', '--mode', 'target', '--op', 'show'),
    ('env',),
    ('env', 'LC_ALL=C', RUN[2], 'id'),
    ('env', 'LC_ALL=C', RUN[2], 'timeout', '--kill-after=5', '60', 'id'),
    ('env', 'LC_ALL=C', 'PATH=/tmp', *RUN[3:], 'dog', 'vdi', 'delete',
     *GATEWAY, VDI),
    ('env', 'LC_ALL=C', *RUN[3:], 'dog', 'vdi', 'delete', *GATEWAY, VDI),
    ('env', 'LD_PRELOAD=/tmp/own.so', *RUN[2:], 'dog', 'vdi', 'delete',
     *GATEWAY, VDI),
    ('env', 'LC_ALL=C', RUN[2], 'LD_PRELOAD=/tmp/own.so', *RUN[3:], 'dog',
     'vdi', 'delete', *GATEWAY, VDI),
    ('env', '-S', 'LC_ALL=C', *RUN[2:], 'dog', 'vdi', 'delete', *GATEWAY,
     VDI),
    (*RUN[:3], 'timeout', '--kill-after=5', '0', 'dog', 'cluster', 'info',
     '-v', *GATEWAY),
    (*RUN[:3], 'timeout', '--kill-after=5', '-v', 'dog', 'cluster', 'info',
     '-v', *GATEWAY),
    (*RUN, '/tmp/dog', 'vdi', 'delete', *GATEWAY, VDI),
    (*RUN, 'sh', '-c', 'dog vdi delete'),

    # other subcommands of dog
    (*DOG, 'cluster', 'format', *GATEWAY),
    (*DOG, 'cluster', 'format', '-c', '1', *GATEWAY),
    (*DOG, 'cluster', 'format', '-v', *GATEWAY),
    (*DOG, 'cluster', 'shutdown', *GATEWAY),
    (*DOG, 'cluster', 'snapshot', 'save', *GATEWAY, TAG, '/tmp/copy'),
    (*DOG, 'node', 'kill', '-r', *GATEWAY),
    (*DOG, 'node', 'kill', *GATEWAY, '0'),
    (*DOG, 'node', 'md', 'plug', *GATEWAY, '/etc'),
    (*DOG, 'node', 'md', 'unplug', '-A', '-r', *GATEWAY, '/sheep'),
    (*DOG, 'node', 'format', *GATEWAY),
    (*DOG, 'node', 'list', *GATEWAY),
    (*DOG, 'vdi', 'list', *GATEWAY),
    (*DOG, 'vdi', 'list', '-r', *GATEWAY, VDI),
    (*DOG, 'vdi', 'read', *GATEWAY, VDI),
    (*DOG, 'vdi', 'read', *GATEWAY, VDI, '0', '512'),
    (*DOG, 'vdi', 'write', *GATEWAY, VDI, '0', '512'),
    (*DOG, 'vdi', 'read', *GATEWAY, BASE, '0', '512'),
    (*DOG, 'vdi', 'write', *GATEWAY, BASE, '0', '512'),
    (*DOG, 'vdi', 'write', *GATEWAY, LEASE, '0', '1024'),
    (*DOG, 'vdi', 'write', *GATEWAY, LEASE, '512', '512'),
    (*DOG, 'vdi', 'write', *GATEWAY, LEASE),
    (*DOG, 'vdi', 'rollback', *GATEWAY, '-s', TAG, VDI),
    (*DOG, 'vdi', 'restore', *GATEWAY, VDI, VDI),
    (*DOG, 'vdi', 'backup', *GATEWAY, '-s', TAG, VDI),
    (*DOG, 'vdi', 'setattr', *GATEWAY, VDI, 'nova', '1'),
    (*DOG, 'vdi', 'lock', 'unlock', *GATEWAY, VDI),
    (*DOG, 'vdi', 'alter-copy', *GATEWAY, '-c', '1', VDI),
    (*DOG, 'vdi', 'DELETE', *GATEWAY, VDI),

    # VDIs that are not Nova's, and VDIs that a call is not for
    *((*DOG, 'vdi', 'delete', *GATEWAY, name) for name in (
        'volume-' + uuids.instance, uuids.instance, 'disk', '_disk', '',
        uuids.instance + '_other', uuids.instance + '_disk.other',
        uuids.instance + '_disk_', uuids.instance + '_disk.',
        uuids.instance + '_disk.eph', uuids.instance + '_scratch.1',
        uuids.instance.upper() + '_disk', uuids.instance[1:] + '_disk',
        uuids.instance + '_base', uuids.instance + '_base.0',
        uuids.instance + '_lease', uuids.instance + '_lease.x',
        BASE + '0', BASE.upper(), 'volume_base.' + 'a' * 32,
        'x' + VDI, VDI + ' ', ' ' + VDI, VDI + '\n', VDI + '\nother',
        '\n' + VDI, VDI + '/', '--help', '-f')),
    (*DOG, 'vdi', 'getattr', *GATEWAY, 'volume', 'nova'),
    *((*DOG, 'vdi', 'create', *GATEWAY, '-z', '22', name, '1') for name in (
        'volume', VDI, BASE)),
    (*DOG, 'vdi', 'object', 'map', *GATEWAY, 'volume'),
    (*DOG, 'vdi', 'object', 'map', *GATEWAY, VDI),
    (*DOG, 'vdi', 'resize', *GATEWAY, 'volume', '1'),
    (*DOG, 'vdi', 'resize', *GATEWAY, BASE, '1'),
    (*DOG, 'vdi', 'snapshot', *GATEWAY, '-s', TAG, 'volume'),
    (*DOG, 'vdi', 'clone', *GATEWAY, '-s', TAG, 'volume', VDI),
    (*DOG, 'vdi', 'clone', *GATEWAY, '-s', TAG, VDI, 'volume'),
    (*DOG, 'vdi', 'clone', *GATEWAY, '-s', TAG, VDI, BASE),
    (*DOG, 'vdi', 'clone', *GATEWAY, '-s', TAG, BASE, VDI),
    (*DOG, 'vdi', 'clone', *GATEWAY, '-s', 'nova-base', VDI, BASE),
    (*DOG, 'vdi', 'clone', *GATEWAY, '-s', 'nova-base', BASE, BASE),
    (*DOG, 'vdi', 'clone', *GATEWAY, '-s', 'nova-base', BASE, LEASE),

    # snapshots that are not Nova's
    *((*DOG, 'vdi', 'delete', *GATEWAY, '-s', tag, VDI) for tag in (
        'backup', '1', '', '-f', TAG + '\n', TAG + '2', 'nova-')),
    (*DOG, 'vdi', 'snapshot', *GATEWAY, '-s', 'backup', VDI),
    (*DOG, 'vdi', 'snapshot', *GATEWAY, '-s', 'nova-base', VDI),
    (*DOG, 'vdi', 'snapshot', *GATEWAY, '-s', TAG, BASE),
    (*DOG, 'vdi', 'delete', *GATEWAY, '-s', 'nova-base', VDI),
    (*DOG, 'vdi', 'delete', *GATEWAY, '-s', 'nova-base', LEASE),
    (*DOG, 'vdi', 'clone', *GATEWAY, '-s', '1', VDI, VDI),
    (*DOG, 'vdi', 'clone', *GATEWAY, VDI, VDI),

    # other options, other places of options, other values
    (*DOG, 'vdi', 'delete', *GATEWAY, '-v', VDI),
    (*DOG, 'vdi', 'delete', '-v', *GATEWAY, VDI),
    (*DOG, 'vdi', 'delete', *GATEWAY, VDI, VDI),
    (*DOG, 'vdi', 'delete', VDI, *GATEWAY),
    (*DOG, 'vdi', 'delete', VDI),
    (*DOG, 'vdi', 'delete', *GATEWAY, '-s\n', TAG, VDI),
    *((*DOG, 'vdi', 'create', *GATEWAY, *options,
       uuids.instance + '_scratch', size) for options, size in (
           (('-z', '22'), '1T'), (('-z', '22'), '-1'), (('-z', '23'), '1'),
           ((), '1'), (('-z', '22', '-y'), '1'))),
    (*DOG, 'vdi', 'object', 'map', *GATEWAY, '-i', '0',
     uuids.instance + '_scratch'),
    (*DOG, 'vdi', 'object', 'location', *GATEWAY,
     uuids.instance + '_scratch', '0'),
    (*DOG, 'vdi', 'resize', *GATEWAY, VDI, '1G'),
    (*DOG, 'vdi', 'getattr', *GATEWAY, VDI, 'other'),
    *((*DOG, 'vdi', 'delete', '-a', host, '-p', PORT, VDI) for host in (
        'example.org', '::1', 'localhost.example.org', '127.0.0.1\n', '',
        '-p', '127.0.0.1;id')),
    *((*DOG, 'vdi', 'delete', '-a', '127.0.0.1', '-p', port, VDI)
      for port in ('sheep', '', '-1', '1\n', '1 -s')),

    # what Nova does not do with tgtd
    (*RUN, 'tgtadm', '--lld', 'iscsi', '--mode', 'system', '--op', 'delete'),
    (*RUN, 'tgtadm', '--lld', 'iscsi', '--mode', 'sys', '--op', 'update',
     '--name', 'State', '-v', 'offline'),
    (*RUN, 'tgtadm', '--lld', 'iser', '--mode', 'target', '--op', 'show'),
    (*RUN, 'tgtadm', '-C', '1', '--lld', 'iscsi', '--mode', 'target', '--op',
     'show'),
    (*RUN, 'tgtadm', '--lld', 'iscsi', '--mode', 'account', '--op', 'delete',
     '--user', 'admin'),
    (*RUN, 'tgtadm', '--lld', 'iscsi', '--mode', 'portal', '--op', 'new',
     '--param', 'portal=0.0.0.0:3260'),
    (*RUN, 'tgt-admin', '--delete', 'ALL'),
    (*TARGET, 'delete', '--tid', TID),
    (*TARGET, 'delete', '--force', '--tid', 'ALL'),
    (*TARGET, 'delete', '--force', '--tid', '1'),
    (*TARGET, 'delete', '--force', '--tid', '-1'),
    (*TARGET, 'unbind', '--tid', TID, '-I', '127.0.0.1'),
    (*TARGET, 'update', '--tid', TID, '--name', 'HeaderDigest', '-v', 'None'),
    (*TARGET, 'bind', '--tid', TID, '-I', 'ALL'),
    (*TARGET, 'bind', '--tid', TID, '-Q', 'iqn.2014-06.org.example:host'),
    *((*TARGET, 'new', '--tid', TID, '-T', iqn) for iqn in (
        'iqn.2014-06.org.example:' + uuids.instance + '.disk',
        backend.IQN + 'disk',
        backend.IQN + uuids.instance,
        backend.IQN + uuids.instance + '.scratch',
        backend.IQN + BASE.replace('_', '.'),
        'iqn,2014-06' + IQN[len('iqn.2014-06'):], IQN + '\n', IQN + '.other')),
    (*UNIT, 'delete', '--tid', TID, '--lun', '1'),
    (*UNIT, 'new', '--tid', TID, '--lun', '2', '--bstype', 'sheepdog', '-b',
     'tcp:127.0.0.1:1:' + VDI),
    *((*NEW_UNIT, '--bstype', kind, '-b', '/etc/shadow') for kind in (
        'rdwr', 'aio', 'sg', 'sheepdog')),
    (*NEW_UNIT, '-b', '/etc/shadow'),
    (*NEW_UNIT, '--bstype', 'rdwr', '-b', 'tcp:127.0.0.1:1:' + VDI),
    *((*NEW_UNIT, '--bstype', 'sheepdog', '-b', path) for path in (
        'tcp:127.0.0.1:1:volume', 'unix:/run/sheep.sock:' + VDI,
        'tcp:127.0.0.1:1:%s:%s' % (VDI, TAG), 'tcp:example.org:1:' + VDI,
        'tcp:127.0.0.1::' + VDI, 'tcp:127.0.0.1:1:' + VDI + '\n')),
    (*NEW_UNIT, '--bstype', 'sheepdog', '--bsopts', 'x', '-b',
     'tcp:127.0.0.1:1:' + VDI),
    *((*UPDATE_UNIT, parameters) for parameters in (
        'path=/etc/shadow', 'online=0', 'readonly=0', 'scsi_id=' + 'a' * 32,
        'scsi_id=%s,scsi_sn=%s,path=/etc/shadow' % ('a' * 32, 'a' * 32),
        'scsi_id=%s,scsi_sn=%s\n' % ('a' * 32, 'a' * 32),
        'scsi_id=%s;scsi_sn=%s' % ('a' * 32, 'a' * 32),
        'online=0,path=/etc/shadow', 'online=0,path=tcp:127.0.0.1:1:volume',
        'path=tcp:127.0.0.1:1:' + VDI,
        'online=1,path=tcp:127.0.0.1:1:' + VDI,
        'online=0,path=tcp:127.0.0.1:1:%s,readonly=0' % VDI,
        'online=0,path=unix:/run/sheep.sock:' + VDI)),
]


class RootwrapTest(testtools.TestCase):
    """The filters allow what the backend does, and nothing that is close."""

    def setUp(self):
        super().setUp()
        self.useFixture(config_fixture.Config(nova.conf.CONF)).config(
            group='libvirt', images_sheepdog_host=HOST,
            images_sheepdog_port=int(PORT))
        # tgtd does what it is asked for where rootwrap allows that.
        self.addCleanup(backend.remove_targets)

    def _calls_of_the_backend(self, names):
        return backend.list_root_commands(
            names, self.useFixture(fixtures.TempDir()).path)

    def _run(self, command):
        """Run a command as nova-compute has root run it.

        :param command: the command and its arguments
        :returns: True if rootwrap ran it, whatever came of it
        """
        done = subprocess.run(
            ['sudo', '-n', 'nova-rootwrap', ROOTWRAP_CONF, *command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, universal_newlines=True)
        refused = 'Unauthorized command: ' in done.stderr
        self.assertEqual(
            refused, done.returncode == 99, '%s: status %d, %s' % (
                command, done.returncode, done.stderr))
        self.assertNotIn('sudo:', done.stderr)
        self.assertNotIn('Executable not found', done.stderr)
        return not refused

    def _run_by_daemon(self, daemon, command):
        """The same as _run(), by rootwrap's daemon.

        :param daemon: the client of a daemon that runs
        """
        try:
            # Its client would start another one after each refusal.
            status, _out, _err = daemon._proxy.run_one_command(
                list(command), None)
        except managers.RemoteError as e:
            # It failed to log that it refused it.
            self.assertIn('ValueError is not JSON serializable', str(e))
            return False
        return status != 99

    def test_program(self):
        """It asks the same code as the daemon, which is asked for all."""
        calls = self._calls_of_the_backend(['disk'])
        self.assertTrue(self._run(calls[0]))
        self.assertFalse(self._run(NEAR_MISSES[0]))

    def test_daemon(self):
        calls = self._calls_of_the_backend(['disk'])
        command = ['sudo', '-n', 'nova-rootwrap-daemon', ROOTWRAP_CONF]
        if not os.environ['TESTBED_ROOTWRAP_DAEMON']:
            refusal = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True)
            self.assertEqual((1, b''), (refusal.returncode, refusal.stdout))
            return
        daemon = client.Client(command)
        daemon.execute(list(calls[0]))
        self.assertEqual([], [call for call in calls
                              if not self._run_by_daemon(daemon, call)])
        self.assertEqual([], [call for call in NEAR_MISSES
                              if self._run_by_daemon(daemon, call)])

    def test_runner(self):
        """What the backend gets is the same with the daemon and without."""
        self.addCleanup(backend.start_runner)
        backend.start_runner()
        with mock.patch.object(backend.RUNNER_LOG, 'info') as info:
            self.assertRaises(
                exception.SheepdogUnreachable, backend.get_redundancy)
            self.assertIn('rootwrap does not allow it',
                          backend.explain_refusal(
                              lambda: backend.run_as_root('id')))
        if os.environ['TESTBED_ROOTWRAP_DAEMON']:
            info.assert_not_called()
        else:
            info.assert_called_once()
            self.assertIn('sudoers', info.call_args[0][0])

    def test_every_word_of_a_call_matters(self):
        """The same by rootwrap's own code: too many to ask sudo for each."""
        configuration = configparser.RawConfigParser()
        configuration.read(ROOTWRAP_CONF)
        filters = wrapper.load_filters(
            wrapper.RootwrapConfig(configuration).filters_path)

        def allowed(command):
            return any(candidate.match(command) for candidate in filters)

        calls = self._calls_of_the_backend([
            'disk', 'disk.local', 'disk.swap', 'disk.config', 'disk.rescue',
            'disk.config.rescue', blockinfo.get_eph_disk(0),
            blockinfo.get_eph_disk(12)])
        self.assertEqual([], [call for call in calls if not allowed(call)])
        self.assertEqual([], [
            candidate.name for candidate in filters
            if candidate.name.startswith('sheepdog-') and
            not any(candidate.match(call) for call in calls)])

        too_much = []
        for call in calls:
            for place in range(1, len(call) + 1):
                before, word, after = (
                    call[:place], call[place:place + 1], call[place + 1:])
                variants = [before + ('-x',) + word + after]
                if word:
                    variants.append(before + after)
                    variants += [before + (other,) + after for other in (
                        '', word[0] + '\n', word[0] + ' ', word[0] + 'x',
                        'x' + word[0], '-' + word[0])]
                too_much += [variant for variant in variants
                             if allowed(variant)]
        self.assertEqual([], too_much)
