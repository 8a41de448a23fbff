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

from concurrent import futures
import configparser
import functools
from multiprocessing import managers
import os
import subprocess
from unittest import mock

import fixtures
from oslo_concurrency import processutils
from oslo_rootwrap import client
from oslo_rootwrap import wrapper
from oslo_utils.fixture import uuidsentinel as uuids
import testtools

from nova import exception
from nova import objects
from nova.virt.libvirt import blockinfo
from nova.virt.libvirt import imagebackend
from nova.virt.libvirt import sheepdog_base
from nova.virt.libvirt.storage import rootwrap
from nova.virt.libvirt.storage import tgt
from nova.virt.libvirt import utils as libvirt_utils

ROOTWRAP_CONF = '/etc/nova/rootwrap.conf'
VDI = uuids.instance + '_disk'
BASE = uuids.image + '_base.' + 'a' * 32
LEASE = uuids.image + '_lease.0'
TAG = 'nova-snapshot'
IQN = libvirt_utils.SHEEPDOG_IQN + uuids.instance + '.disk'
# What stands before a command, and between a dog's subcommand and a VDI.
RUN = ('env', 'LC_ALL=C', 'PATH=' + libvirt_utils.ROOT_PATH,
       'timeout', '--kill-after=5', '60')
GATEWAY = ('-a', '127.0.0.1', '-p', '7000')
DOG = RUN + ('dog',)
TARGET = RUN + ('tgtadm', '--lld', 'iscsi', '--mode', 'target', '--op')
UNIT = RUN + ('tgtadm', '--lld', 'iscsi', '--mode', 'logicalunit', '--op')
NEW_UNIT = UNIT + ('new', '--tid', '1', '--lun', '1')
UPDATE_UNIT = UNIT + ('update', '--tid', '1', '--lun', '1', '--params')

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
    *((*DOG, 'vdi', 'delete', '-a', host, '-p', '7000', VDI) for host in (
        'example.org', '::1', 'localhost.example.org', '127.0.0.1\n', '',
        '-p', '127.0.0.1;id')),
    *((*DOG, 'vdi', 'delete', '-a', '127.0.0.1', '-p', port, VDI)
      for port in ('sheep', '', '-1', '7000\n', '7000 -s')),

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
    (*TARGET, 'delete', '--tid', '1'),
    (*TARGET, 'delete', '--force', '--tid', 'ALL'),
    (*TARGET, 'delete', '--force', '--tid', '-1'),
    (*TARGET, 'unbind', '--tid', '1', '-I', '127.0.0.1'),
    (*TARGET, 'update', '--tid', '1', '--name', 'HeaderDigest', '-v', 'None'),
    (*TARGET, 'bind', '--tid', '1', '-I', 'ALL'),
    (*TARGET, 'bind', '--tid', '1', '-Q', 'iqn.2014-06.org.example:host'),
    *((*TARGET, 'new', '--tid', '1', '-T', iqn) for iqn in (
        'iqn.2014-06.org.example:' + uuids.instance + '.disk',
        libvirt_utils.SHEEPDOG_IQN + 'disk',
        libvirt_utils.SHEEPDOG_IQN + uuids.instance,
        libvirt_utils.SHEEPDOG_IQN + uuids.instance + '.scratch',
        libvirt_utils.SHEEPDOG_IQN + BASE.replace('_', '.'),
        'iqn,2014-06' + IQN[len('iqn.2014-06'):], IQN + '\n', IQN + '.other')),
    (*UNIT, 'delete', '--tid', '1', '--lun', '1'),
    (*UNIT, 'new', '--tid', '1', '--lun', '2', '--bstype', 'sheepdog', '-b',
     'tcp:127.0.0.1:7000:' + VDI),
    *((*NEW_UNIT, '--bstype', kind, '-b', '/etc/shadow') for kind in (
        'rdwr', 'aio', 'sg', 'sheepdog')),
    (*NEW_UNIT, '-b', '/etc/shadow'),
    (*NEW_UNIT, '--bstype', 'rdwr', '-b', 'tcp:127.0.0.1:7000:' + VDI),
    *((*NEW_UNIT, '--bstype', 'sheepdog', '-b', path) for path in (
        'tcp:127.0.0.1:7000:volume', 'unix:/run/sheep.sock:' + VDI,
        'tcp:127.0.0.1:7000:%s:%s' % (VDI, TAG), 'tcp:example.org:7000:' + VDI,
        'tcp:127.0.0.1::' + VDI, 'tcp:127.0.0.1:7000:' + VDI + '\n')),
    (*NEW_UNIT, '--bstype', 'sheepdog', '--bsopts', 'x', '-b',
     'tcp:127.0.0.1:7000:' + VDI),
    *((*UPDATE_UNIT, parameters) for parameters in (
        'path=/etc/shadow', 'online=0', 'readonly=0', 'scsi_id=' + 'a' * 32,
        'scsi_id=%s,scsi_sn=%s,path=/etc/shadow' % ('a' * 32, 'a' * 32),
        'scsi_id=%s,scsi_sn=%s\n' % ('a' * 32, 'a' * 32),
        'scsi_id=%s;scsi_sn=%s' % ('a' * 32, 'a' * 32),
        'online=0,path=/etc/shadow', 'online=0,path=tcp:127.0.0.1:7000:volume',
        'path=tcp:127.0.0.1:7000:' + VDI,
        'online=1,path=tcp:127.0.0.1:7000:' + VDI,
        'online=0,path=tcp:127.0.0.1:7000:%s,readonly=0' % VDI,
        'online=0,path=unix:/run/sheep.sock:' + VDI)),
]


class RootwrapTest(testtools.TestCase):
    """The filters allow what the backend does, and nothing that is close."""

    def _calls_of_the_backend(self, names):
        """Have the backend do all that it can, and see what it would run.

        :param names: names of the disks it shall do it to
        :returns: the commands that it gave to rootwrap, each once
        """
        calls = {}
        answers = {
            'cluster info': 'Cluster store: plain with 2 redundancy policy',
            'node list': '0 127.0.0.1:7000 128 0',
            'node md': '127.0.0.1:7000 0 3000000000 0 3000000000 0% /sheep',
            'vdi read': '1 1',
            'object map': 'Index       VID\n00000000   6d2d91\n',
            'vdi list': ''.join(
                'c %s 0 1 0 0 1 1 1  22\n' % vdi for vdi in (
                    BASE, BASE.replace('base', 'import'))),
            'system --op': 'Backing stores:\n    sheepdog',
        }

        def execute(*command, title=None, **kwargs):
            if title:
                calls[command] = None
            words = ' '.join(command)
            if 'vdi getattr' in words and not there:
                raise processutils.ProcessExecutionError(
                    stderr='VDI not found', exit_code=5)
            if 'vdi clone' in words and '-s nova-base' in words and (
                    '_base.' in command[-2] and not is_imported):
                raise processutils.ProcessExecutionError(
                    stderr='No VDI found', exit_code=1)
            if '--mode target --op show' in words:
                return targets, ''
            return next((answer for part, answer in answers.items()
                         if part in words), ''), ''

        there = is_imported = False
        instance = objects.Instance(uuid=uuids.instance)

        def fill(vdi):
            nonlocal is_imported
            is_imported = True
            libvirt_utils.create_sheepdog_vdi(vdi, 1024)
            imagebackend.Sheepdog._copy_in(path, vdi)
            return 1024

        path = self.useFixture(fixtures.TempDir()).join('disk')
        with open(path, 'w') as disk:
            disk.truncate(1024)
        with mock.patch.object(processutils, 'execute', execute), \
                mock.patch.object(rootwrap, 'execute', execute), \
                mock.patch.object(libvirt_utils, 'SHEEPDOG_SPACES', {}), \
                mock.patch.object(libvirt_utils, '_run_qemu_img',
                                  return_value='{"virtual-size": 1024}'), \
                mock.patch.object(sheepdog_base, 'get_directory',
                                  return_value=os.path.dirname(path)), \
                mock.patch.object(imagebackend.disk, 'get_disk_size',
                                  return_value=1024):
            libvirt_utils.get_sheepdog_capacity()
            tgt.check()
            for name in names:
                targets = ''
                there = True
                image = imagebackend.Sheepdog(instance, name)
                image.exists()
                image.import_file(instance, path, name)
                image.resize_image(2048)
                image.snapshot_extract(path, 'raw')
                iqn = libvirt_utils.get_sheepdog_iqn(image.vdi)
                tgt.export({iqn: image.vdi})
                targets = 'Target 1: %s\n' % iqn
                tgt.reload({iqn: image.vdi})
                imagebackend.Sheepdog.unexport_disks(instance)
                base = sheepdog_base.Base.of_template(image.vdi)
                is_imported = False
                base.provide(functools.partial(base.clone, image.vdi, 1024),
                             fill)
                base.make_of_snapshot(image.scratch, TAG, 1024, lambda: True)
            sheepdog_base.delete_unused()
            imagebackend.Sheepdog.snapshot_disks(instance, names)
            imagebackend.Sheepdog.roll_back_disks(instance, names)
            there = False
            imagebackend.Sheepdog.delete_disks(instance, names)
        return list(calls)

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

    def test_what_the_backend_does_is_allowed(self):
        calls = self._calls_of_the_backend(['disk'])
        self.assertEqual([], [call for call in calls if not self._run(call)])

    def test_what_comes_close_is_refused(self):
        with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            ran = pool.map(self._run, NEAR_MISSES)
        self.assertEqual([], [call for call, done in zip(NEAR_MISSES, ran)
                              if done])

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
        self.addCleanup(rootwrap.start)
        rootwrap.start()
        # Another test may have asked a cluster at this address.
        with mock.patch.object(rootwrap.LOG, 'info') as info, \
                mock.patch.object(libvirt_utils, 'SHEEPDOG_SPACES', {}):
            self.assertRaisesRegex(
                exception.SheepdogError, 'images_sheepdog_host',
                libvirt_utils.get_sheepdog_capacity)
            error = self.assertRaises(
                processutils.ProcessExecutionError, rootwrap.execute, 'id',
                title='id')
            self.assertEqual(99, error.exit_code)
            self.assertIn('Unauthorized command: id', error.stderr)
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
