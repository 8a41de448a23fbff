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
import pwd
import socket
from unittest import mock

import ddt
import fixtures
from oslo_concurrency import processutils
from oslo_serialization import jsonutils
from oslo_utils.fixture import uuidsentinel as uuids
import psutil

from nova.tests.unit.virt.libvirt.sheepdog.commands import base
from nova.tests.unit.virt.libvirt.sheepdog import fake_libvirt
from nova.virt.libvirt.sheepdog.commands import doctor
from nova.virt.libvirt.sheepdog.commands import start
from nova.virt.libvirt.sheepdog import host as sheepdog_host
from nova.virt.libvirt.sheepdog import rootwrap
from nova.virt.libvirt.sheepdog import targets

VERSION = 'echo "Sheepdog administrator utility (version %s)"\n'
CAPABILITIES = '<capabilities><host><cpu><arch>x86_64</arch></cpu></host>' \
    '</capabilities>'
SHOWN = """\
Id=nova-compute.service
LoadState=loaded
UnitFileState=enabled
After=network.target tgt.service
KillSignal=15

Id=openstack-nova-compute.service
LoadState=not-found

Id=tgt.service
LoadState=loaded
UnitFileState=enabled
After=network.target
KillSignal=9

Id=tgtd.service
LoadState=not-found
"""


class LibvirtError(Exception):
    pass


class _DoctorTestCase(base.CommandTestCase):

    def setUp(self):
        super().setUp()
        self.become = self.patch_object(start, 'become')
        self.lack = self.patch_object(
            sheepdog_host, 'find_lack', side_effect=lambda protocol, _names:
            protocol == 'sheepdog' and 'qemu-img has no sheepdog driver')
        self.libvirt = self.patch_object(
            doctor.libvirt_guest, 'libvirt',
            new=mock.Mock(libvirtError=LibvirtError))
        self.connection = self.libvirt.open.return_value
        self.connection.getCapabilities.return_value = CAPABILITIES
        self.connection.listAllDomains.return_value = []
        self.adjtimex = self.patch_object(
            doctor.ctypes, 'CDLL').return_value.adjtimex
        self.adjtimex.return_value = 0
        self.patch_object(doctor, 'SYSTEMD', new='/nonexistent')
        self.programs = self.useFixture(fixtures.TempDir()).path
        self.set_path(self.programs, os.environ['PATH'])
        self.put('dog', VERSION % '1.0.1')
        self.put('tgtadm', 'false\n')
        self.portal = portal = socket.socket()
        self.addCleanup(portal.close)
        portal.bind(('127.0.0.1', 0))
        portal.listen()
        self.flags(images_sheepdog_portal='127.0.0.1:%d' %
                   portal.getsockname()[1],
                   images_sheepdog_transport='auto', group='libvirt')

    def put(self, name, script):
        """Put a program on the path. What calls it by its name alone, as root
        does, has the model answer.
        """
        path = os.path.join(self.programs, name)
        with open(path, 'w') as program:
            program.write('#!/bin/sh\n' + script)
        os.chmod(path, 0o755)

    def look(self):
        """Run it, and return its exit status and findings by check."""
        status, out, err = self.run_command('doctor', '--json')
        self.assertEqual('', err)
        return status, {each['check']: each for each in jsonutils.loads(out)}

    def assert_found(self, state, check, text, remedy):
        """Run it, and see what it says of what is not well."""
        status, found = self.look()
        self.assertEqual(
            {check: state},
            {name: each['state'] for name, each in found.items()
             if each['state'] not in ('ok', 'not checked')}, found)
        self.assertEqual(1 if state == 'wrong' else 0, status)
        self.assertIn(text, found[check]['text'])
        if remedy:
            self.assertIn(remedy, found[check]['remedy'])
        else:
            self.assertIsNone(found[check]['remedy'])
        return found


@ddt.ddt
class DoctorTestCase(_DoctorTestCase):

    def test_all_is_well(self):
        status, found = self.look()
        self.assertEqual({'ok'}, {each['state'] for each in found.values()},
                         found)
        self.assertEqual(0, status)
        self.assertEqual(list(doctor.CHECKS), list(found))
        self.assertEqual('2 copies in 3 zones', found['redundancy']['text'])
        self.assertIn('version 1.0.1', found['dog']['text'])
        self.become.assert_called_once_with('nova')

    def test_for_people(self):
        self.sheepdog.kill()
        status, out, _err = self.run_command('doctor')
        self.assertEqual(1, status)
        self.assertIn('ok           dog: ', out)
        self.assertRegex(out, 'wrong        cluster: .*Connection refused.*\n'
                         '             -> start sheep at 127.0.0.1:7000')
        self.assertIn('not checked  room: see what is wrong with cluster\n',
                      out)

    def test_configuration_that_cannot_be_read(self):
        self.configure.side_effect = start.Failure('no such file')
        self.assert_found('wrong', 'configuration', 'no such file', None)

    def test_libvirt_is_loaded_as_by_the_driver(self):
        doctor.libvirt_guest.libvirt = None
        with mock.patch.dict('sys.modules', libvirt=self.libvirt):
            doctor.load_libvirt()
        self.assertIs(self.libvirt, doctor.libvirt_guest.libvirt)

    def test_python_has_no_libvirt(self):
        doctor.libvirt_guest.libvirt = None
        with mock.patch.dict('sys.modules', libvirt=None):
            self.assert_found('wrong', 'configuration',
                              'install python3-libvirt', None)

    @ddt.data(('default', 'kvm', 'images_type = default', 'set it to'),
              ('sheepdog', 'lxc', '[libvirt]virt_type = lxc', 'change'))
    @ddt.unpack
    def test_options(self, images_type, virt_type, text, remedy):
        self.flags(images_type=images_type, virt_type=virt_type,
                   group='libvirt')
        found = self.assert_found('wrong', 'options', text, remedy)
        # All else is looked at.
        self.assertEqual('ok', found['guests']['state'])

    @ddt.data(('Connection refused', 'systemctl start libvirtd'),
              ('Permission denied', 'usermod -a -G libvirt '))
    @ddt.unpack
    def test_libvirt(self, text, remedy):
        self.libvirt.open.side_effect = self.libvirt.libvirtError(text)
        found = self.assert_found('wrong', 'libvirt', text, remedy)
        self.assertEqual('not checked', found['qemu']['state'])

    def test_qemu(self):
        self.lack.side_effect = lambda protocol, _names: protocol
        self.assert_found('wrong', 'qemu', 'iscsi',
                          'apt-get install qemu-block-extra')

    def test_native_needs_no_tgtd(self):
        self.lack.side_effect = None
        self.lack.return_value = None
        found = self.look()[1]
        self.assertIn('native', found['qemu']['text'])
        self.assertFalse(set(doctor.OF_ISCSI) & set(found))

    def test_no_dog(self):
        self.install_only('env')
        status, found = self.look()
        self.assertEqual(1, status)
        self.assertIn('there is no dog in ', found['dog']['text'])
        self.assertIn('/usr/local/bin/dog', found['dog']['remedy'])
        self.assertIn('there is no tgtadm in ', found['tgtd']['text'])

    @ddt.data('0.9.5', '')
    def test_other_version_of_dog(self, version):
        self.put('dog', VERSION % version)
        self.assert_found('warning', 'dog', version or 'unknown', None)

    def _refuse(self, stderr, status=1):
        def refuse(*command, **kwargs):
            if {'dog', 'tgtadm'} & set(command):
                raise processutils.ProcessExecutionError(
                    stderr=stderr, exit_code=status)
            return execute(*command, **kwargs)

        execute = processutils.execute
        self.patch_object(processutils, 'execute', new=refuse)

    @ddt.data(('sudo: a password is required', 1, '/etc/sudoers.d/'),
              ('Unauthorized command', 99, 'nova-sheepdog apply'))
    @ddt.unpack
    def test_root(self, said, status, remedy):
        self._refuse(said, status)
        found = self.assert_found('wrong', 'root', '', remedy)
        self.assertEqual('not checked', found['tgtd']['state'])

    def test_no_daemon_of_rootwrap(self):
        self.flags(disable_rootwrap=False, group='workarounds')
        self.patch_object(doctor.os, 'geteuid', return_value=1000)
        self.patch_object(doctor, '_get_user', return_value='nova')
        self.patch_object(rootwrap.Runner, 'uses_daemon', new=False)
        self.patch_object(rootwrap.Runner, '_execute',
                          new=lambda _self, command, data:
                          processutils.execute(*command))
        self.assert_found(
            'warning', 'root', 'nova-rootwrap-daemon',
            "echo 'nova ALL = (root) NOPASSWD: ")

    def test_cluster_that_is_not_formatted(self):
        self.start_model(copies=None)
        found = self.look()[1]
        self.assertIn('not ready', found['cluster']['text'])
        self.assertIn('dog cluster format -c 2 -a 127.0.0.1 -p 7000',
                      found['cluster']['remedy'])

    @ddt.data((['0'], [2], 'wrong', '2 zones, and there are 1', 'in 1 more'),
              (['0', '1'], [4, 2], 'wrong', '6 zones, and there are 2', '4 m'),
              (['0', '1'], [1], 'warning', 'one copy', 'cluster format'))
    @ddt.unpack
    def test_redundancy(self, zones, policy, state, text, remedy):
        utils = doctor.libvirt_utils
        self.patch_object(utils, 'get_sheepdog_policy', return_value=policy)
        self.patch_object(utils, 'list_sheepdog_nodes', return_value=[
            utils.SheepdogNode('127.0.0.1', '7000', zone) for zone in zones])
        self.assert_found(state, 'redundancy', text, remedy)

    @ddt.data((.81, 10**9, 'warning'), (.5, 10**6, 'wrong'))
    @ddt.unpack
    def test_room(self, used, raw, state):
        self.patch_object(
            doctor.libvirt_utils, 'get_sheepdog_space', return_value={
                'total': 2**40, 'used': used * 2**40, 'free': 0, 'raw': raw})
        self.assert_found(state, 'room', 'of 1024 GiB are used',
                          'nova-sheepdog vdis')

    def test_tgtd_that_does_not_run(self):
        self.sheepdog.tgtd.kill()
        found = self.assert_found('wrong', 'tgtd', 'does not run',
                                  'systemctl start tgt')
        self.assertEqual('not checked', found['guests']['state'])

    def test_portal_that_does_not_answer(self):
        self.flags(images_sheepdog_portal='127.0.0.1:1', group='libvirt')
        self.assert_found('wrong', 'tgtd', 'Nobody answers', 'systemctl edit')

    def test_portal_that_others_reach(self):
        port = int(doctor.CONF.libvirt.images_sheepdog_portal.split(':')[1])
        self.patch_object(psutil, 'net_connections', return_value=[
            mock.Mock(laddr=mock.Mock(ip=ip, port=number), status=status)
            for ip, number, status in (
                ('0.0.0.0', port, 'LISTEN'), ('127.0.0.1', port, 'LISTEN'),
                ('10.0.0.1', port, 'ESTABLISHED'),
                ('10.0.0.2', port + 1, 'LISTEN'))])
        self.assert_found('warning', 'portal', 'listens on 0.0.0.0: ',
                          'systemctl edit tgt')

    @ddt.data((1, 'org.other:x', None, ''),
              (10**9, 'org.other:x', 'warning', 'below 1000000000'),
              (1, 'org.openstack.nova:%s.disk' % uuids.server, 'wrong',
               'tgtadm --lld iscsi --mode target --op delete --force --tid 1'))
    @ddt.unpack
    def test_targets(self, number, name, state, remedy):
        iqn = 'iqn.2014-06.' + name
        targets._tgtadm('--mode', 'target', '--op', 'new', '--tid',
                        str(number), '-T', iqn)
        if state:
            self.assert_found(state, 'targets', iqn, remedy)
        else:
            self.assertIn('and 1 of others: ' + iqn,
                          self.look()[1]['targets']['text'])

    def test_guests(self):
        self.connection.listAllDomains.return_value = [
            fake_libvirt.make_domain()]
        self.assert_found('wrong', 'guests', uuids.instance,
                          'systemctl restart nova-compute')
        self.make(uuids.instance, 'disk')
        targets.make_target(fake_libvirt.IQN, fake_libvirt.VDI)
        self.assertEqual('ok', self.look()[1]['guests']['state'])

    def test_clock(self):
        self.adjtimex.return_value = doctor.TIME_ERROR
        self.assert_found('warning', 'clock', 'clock', 'chrony')


@ddt.ddt
class UnitsTestCase(_DoctorTestCase):

    def show(self, *change):
        self.patch_object(doctor, 'SYSTEMD', new='/')
        self.put('systemctl', 'cat << END\n%sEND\n' %
                     SHOWN.replace(*change))

    def test_all_is_well(self):
        self.show('', '')
        self.assertEqual('nova-compute.service starts after tgt.service',
                         self.look()[1]['units']['text'])

    @ddt.data(
        ('After=network.target tgt.service', 'After=network.target',
         'warning', 'Wants=tgt.service'),
        ('KillSignal=9', 'KillSignal=15', 'warning', 'systemctl edit tgt'),
        ('KillSignal=9', 'KillSignal=9\nExecStop={ path=/usr/sbin/tgt-admin }',
         'warning', 'systemctl edit tgt'),
        ('UnitFileState=enabled\nAfter=network.target\n',
         'UnitFileState=disabled\nAfter=network.target\n', 'wrong',
         'systemctl enable tgt.service'))
    @ddt.unpack
    def test_units(self, before, after, state, remedy):
        self.show(before, after)
        self.assert_found(state, 'units', '', remedy)

    def test_no_units(self):
        self.show('=loaded', '=not-found')
        self.assertIn('no unit', self.look()[1]['units']['text'])


class BecomeTestCase(base.CommandTestCase):

    def test_who_runs_nova_compute(self):
        self.useFixture(fixtures.MonkeyPatch('os.geteuid', lambda: 0))
        calls = [self.patch_object(start.os, name) for name in (
            'initgroups', 'setgid', 'setuid')]
        account = pwd.getpwnam('nobody')
        start.become('nobody')
        self.assertEqual(
            [mock.call('nobody', account.pw_gid), mock.call(account.pw_gid),
             mock.call(account.pw_uid)], [call.call_args for call in calls])
        self.assertRaises(start.Failure, start.become, 'no such user')
