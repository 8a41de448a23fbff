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
import re
import subprocess
import sys
import textwrap
import threading
import time

import ddt
import fixtures
from oslo_serialization import jsonutils
from oslo_utils.fixture import uuidsentinel as uuids

from nova import objects
from nova.objects import base as objects_base
from nova.tests.unit.virt.libvirt.sheepdog import base as sheepdog_base
from nova.tests.unit.virt.libvirt.sheepdog.commands import base
from nova.virt.libvirt.sheepdog.commands import servers
from nova.virt.libvirt.sheepdog.commands import vdis
from nova.virt.libvirt.sheepdog import images
from nova.virt.libvirt.sheepdog import targets


class _VdisTestCase(base.CommandTestCase):

    def setUp(self):
        super().setUp()
        self.make(uuids.server, 'disk', 'nova-resize')
        self.make(uuids.gone, 'disk', 'nova-resize', 'backup')
        self.make(uuids.gone, 'disk.eph0')
        self.make(uuids.hidden, 'disk')
        # Names that somebody else has given.
        self.make(uuids.gone, 'disk.old')
        self.dog('vdi', 'create', 'volume-' + uuids.gone, '8M')

    def age(self):
        """Have ten minutes pass and some."""
        clock = sheepdog_base.Clock()
        clock.ahead = vdis.MINIMUM_AGE + 60
        self.patch_object(vdis, 'time', new=clock)

    def assert_refused(self, text, *arguments):
        before = self.list_all()
        status, _out, err = self.run_command('vdis', *arguments)
        self.assertEqual(1, status)
        self.assertIn(text, err)
        self.assertEqual(before, self.list_all())

    def assert_cleaned(self, gone):
        before = self.list_all()
        out = self.succeed('vdis', '--clean', '--yes')
        # What else is there stays, and so does what others made of it.
        self.assertEqual(before - gone, self.list_all())
        self.assertEqual('There are no orphans to delete.\n',
                         self.succeed('vdis', '--clean', '--yes'))
        return out


@ddt.ddt
class ApiTestCase(_VdisTestCase):
    """Nova's API is asked for the servers."""

    def setUp(self):
        super().setUp()
        self.start_api()

    def test_list(self):
        self.nova.listed[uuids.server] = 'VERIFY_RESIZE'
        self.nova.hidden[uuids.hidden] = 'SOFT_DELETED'
        self.dog('vdi', 'resize', uuids.server + '_disk', '2G')
        self.make(uuids.image, 'base.0a', 'nova-base')
        self.make(uuids.image, 'base.1b')
        self.make(uuids.image, 'record.0a')
        self.make(uuids.image, 'import.2c')
        self.make(images.AGEING, 'lease.0')
        self.age()
        out = self.succeed('vdis')
        rows = {tuple(row[:2]): row[2:] for row in (
            re.split(r'  +', line) for line in out.splitlines()[1:-1])}
        known = ['0 B', '0 B', '-', 'compute', 'VERIFY_RESIZE']
        whole = ['8.0 MiB', '0 B', '0 B', '-', '-', 'base image']
        half = [*whole[:-1], 'base image, half-made']
        orphan = [*whole[:-1], 'orphan']
        self.assertEqual({
            (uuids.server, 'disk'): ['2.0 GiB', *known],
            (uuids.server, 'disk@nova-resize'): ['8.0 MiB', *known],
            (uuids.gone, 'disk'): orphan,
            (uuids.gone, 'disk@nova-resize'): orphan,
            (uuids.gone, 'disk@backup'): [*orphan[:-1], "not Nova's"],
            (uuids.gone, 'disk.eph0'): orphan,
            (uuids.hidden, 'disk'): [*orphan[:-1], 'SOFT_DELETED'],
            (uuids.image, 'base.0a'): whole,
            (uuids.image, 'base.0a@nova-base'): whole,
            (uuids.image, 'base.1b'): half,
            (uuids.image, 'record.0a'): whole,
            (uuids.image, 'import.2c'): half,
            (images.AGEING, 'lease.0'): whole,
        }, rows)
        self.assertEqual('13 VDIs and snapshots, 3 of them orphans. Not of '
                         'Nova: 2.', out.splitlines()[-1])

    def test_json(self):
        self.age()
        found = {(each['name'], each['tag']): each for each in jsonutils.loads(
            self.succeed('vdis', '--json'))}
        each = found[uuids.server + '_disk', None]
        self.assertAlmostEqual(time.time(), each.pop('created'), delta=60)
        self.assertEqual({
            'name': uuids.server + '_disk', 'tag': None,
            'owner': uuids.server, 'disk': 'disk', 'size': 8388608, 'own': 0,
            'shared': 0, 'state': 'ACTIVE', 'host': 'compute',
            'transport': None, 'is_orphan': False}, each)
        self.assertTrue(
            found[uuids.gone + '_disk', 'nova-resize']['is_orphan'])

    def test_transport(self):
        vdi = uuids.server + '_disk'
        targets.make_target(targets.libvirt_utils.get_sheepdog_iqn(vdi), vdi)
        out = self.succeed('vdis')
        self.assertRegex(
            out, uuids.server + r'  disk +8.0 MiB .* iscsi +compute')
        self.assertEqual(1, out.count('iscsi'))

    def test_clean(self):
        self.make(uuids.image, 'import.2c')
        self.age()
        out = self.assert_cleaned({
            (uuids.gone + '_disk', None),
            (uuids.gone + '_disk', 'nova-resize'),
            (uuids.gone + '_disk.eph0', None), (uuids.hidden + '_disk', None)})
        self.assertNotIn(uuids.server, out)
        self.assertLess(out.index('Deleted %s_disk@nova-resize' % uuids.gone),
                        out.index('Deleted %s_disk\n' % uuids.gone))

    def test_clean_asks(self):
        self.age()
        self.assert_refused('Give --yes', '--clean')
        self.assert_refused('--yes goes with --clean', '--yes')
        self.assert_refused('--json does not go', '--clean', '--json')
        self.patch_object(sys.stdin, 'isatty', return_value=True)
        answer = self.patch_object(vdis, 'input', create=True,
                                   return_value='n')
        self.assert_refused('', '--clean')
        answer.return_value = 'yes'
        self.succeed('vdis', '--clean')
        self.assertNotIn((uuids.gone + '_disk', None), self.list_all())

    def test_the_young_stay(self):
        before = self.list_all()
        self.assertEqual('There are no orphans to delete.\n',
                         self.succeed('vdis', '--clean', '--yes'))
        self.assertEqual(before, self.list_all())
        self.assertIn('orphan, but young', self.succeed('vdis'))

    @ddt.data((500, {'computeFault': {'code': 500, 'message': uuids.gone}}),
              (404, {'message': 'no such page'}), (200, {}))
    def test_an_error_is_no_answer(self, answer):
        self.age()
        self.nova.answers['/v2.1/servers/' + uuids.gone] = answer
        self.assert_refused(
            'does not say whether there is a server %s: %d' % (
                uuids.gone, answer[0]), '--clean', '--yes')

    def test_no_rights(self):
        self.age()
        self.nova.answers['/v2.1/servers/detail'] = 403, {'forbidden': {
            'code': 403, 'message': "Policy doesn't allow all_tenants"}}
        self.assert_refused('of an administrator', '--clean', '--yes')

    def test_another_nova(self):
        self.age()
        self.nova.hosts = ['stranger']
        self.assert_refused('This Nova has no compute host compute, but '
                            'stranger', '--clean', '--yes')

    def test_a_server_comes_back(self):
        self.age()
        answer = self.nova.answer

        def answer_and_know(path, query):
            # The first time it is not there.
            found = answer(path, query)
            self.nova.hidden[path.rpartition('/')[2]] = 'ACTIVE'
            return found

        self.patch_object(self.nova, 'answer', new=answer_and_know)
        self.assert_refused(uuids.gone + ': Nova knows it now', '--clean',
                            '--yes')

    def test_a_delete_that_fails(self):
        self.age()
        # It exits with 0 all the same.
        self.sheepdog.fault('error', operation='DEL_VDI', times=None)
        status, _out, err = self.run_command('vdis', '--clean', '--yes')
        self.assertEqual(1, status)
        self.assertIn('Not all could be deleted:\n  ' + min(
            uuids.gone, uuids.hidden), err)

    def test_no_cluster(self):
        self.sheepdog.kill()
        self.assertRegex(self.run_command('vdis')[2],
                         'failed to connect.*--host and --port')

    def test_no_api(self):
        self.useFixture(fixtures.EnvironmentVariable(
            'OS_ENDPOINT', 'http://127.0.0.1:1/v2.1'))
        self.assert_refused("Nova's API does not tell", '--clean', '--yes')

    def test_other_gateway(self):
        self.flags(images_sheepdog_port=1, group='libvirt')
        out = self.succeed('vdis', '--host', '127.0.0.1', '--port',
                           str(self.sheepdog.port))
        self.assertIn(uuids.server, out)


class ConductorTestCase(_VdisTestCase):
    """Nobody has said how to reach the API."""

    def setUp(self):
        super().setUp()
        self.patch_object(servers.rpc, 'init')
        self.patch_object(servers.conductor_rpcapi, 'ConductorAPI')
        self.patch_object(objects_base.NovaObject, 'indirection_api',
                          new=None)
        self.known = {
            uuids.server: objects.Instance(
                uuid=uuids.server, vm_state='active', host='compute',
                deleted=False),
            uuids.gone: objects.Instance(
                uuid=uuids.gone, vm_state='deleted', host=None,
                deleted=True)}
        self.asked = self.patch_object(
            objects.InstanceList, 'get_by_filters',
            side_effect=lambda context, filters, **_kwargs: [
                self.known[uuid] for uuid in filters['uuid']
                if uuid in self.known and context.read_deleted == 'yes'])
        self.age()

    def test_list(self):
        out = self.succeed('vdis')
        self.assertRegex(out, uuids.server + '  disk .* compute  ACTIVE\n')
        self.assertRegex(out, uuids.gone + '  disk .* orphan\n')
        self.assertRegex(
            out, uuids.hidden + '  disk .* unknown to the conductor\n')

    def test_clean_takes_what_was_deleted(self):
        # Another Nova, or another cell, may know the rest.
        self.assert_cleaned({
            (uuids.gone + '_disk', None),
            (uuids.gone + '_disk', 'nova-resize'),
            (uuids.gone + '_disk.eph0', None)})

    def test_many_servers(self):
        self.patch_object(servers, 'CHUNK', new=2)
        self.succeed('vdis')
        self.assertEqual([2, 1], [len(call[0][1]['uuid'])
                                  for call in self.asked.call_args_list])

    def test_no_answer(self):
        self.patch_object(servers, 'TIMEOUT', new=1)

        def try_for_ever(*_args, **_kwargs):
            # As oslo.messaging while the message queue is down.
            while True:
                try:
                    threading.Event().wait()
                except Exception:
                    pass

        self.asked.side_effect = try_for_ever
        self.assert_refused('The conductor does not tell which servers there '
                            'are: no answer within 1 s', '--clean', '--yes')


class ProcessTestCase(base.CommandTestCase):
    """As an operator runs it."""

    def test_it_reads_nova_conf(self):
        self.start_sheepdog()
        self.start_api()
        self.make(uuids.server, 'disk')
        path = os.path.join(self.useFixture(fixtures.TempDir()).path,
                            'nova.conf')
        with open(path, 'w') as file:
            file.write(textwrap.dedent("""\
                [DEFAULT]
                host = compute
                my_ip = 127.0.0.1
                [libvirt]
                images_sheepdog_host = $my_ip
                images_sheepdog_port = %d
                [workarounds]
                disable_rootwrap = True
                """ % self.sheepdog.port))
        code = ('import sys; from nova.virt.libvirt.sheepdog import rootwrap; '
                'from nova.virt.libvirt.sheepdog.commands import cli; '
                'rootwrap.ROOT_PATH = sys.argv[1]; '
                'sys.exit(cli.main(sys.argv[2:]))')

        def run(path):
            return subprocess.run(
                [sys.executable, '-W', 'ignore', '-c', code,
                 os.environ['PATH'], 'vdis', '--config-file', path],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

        done = run(path)
        self.assertEqual((0, ''), (done.returncode, done.stderr))
        self.assertRegex(done.stdout, uuids.server + '  disk .*  ACTIVE\n')
        done = run(path + '.missing')
        self.assertEqual(1, done.returncode)
        self.assertIn(path + '.missing', done.stderr)
        self.assertIn('--config-file', done.stderr)
