# Licensed under the Apache License, Version 2.0 (the "License"); you may
# not use this file except in compliance with the License. You may obtain
# a copy of the License at
#
#      http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
# WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
# License for the specific language governing permissions and limitations
# under the License.

import http.server
import importlib
import json
import os
import re
import sys
import textwrap
import threading
import time
import uuid

import fixtures

from graft import patch
from graft.tests import test_cli

# The simulated cluster stands alone, whatever Nova is installed.
sys.path.insert(0, str(patch.find_root() / 'nova/tests/fixtures'))
sheepdog = importlib.import_module('sheepdog')

SERVER, GONE, HIDDEN, IMAGE = (
    str(uuid.UUID(int=number)) for number in range(1, 5))
LATER = 1000


class Nova(fixtures.Fixture):
    """As much of Nova's API as there has to be, on HTTP.

    :ivar listed: servers that a list has, with their status by UUID
    :ivar hidden: servers that can only be asked for by their UUIDs
    :ivar answers: dict of path to another answer, (status, body)
    :ivar asked: paths of the requests so far
    """

    def __init__(self):
        self.listed = {SERVER: 'ACTIVE'}
        self.hidden = {}
        self.hosts = ['compute']
        self.answers = {}
        self.asked = []

    def _setUp(self):
        nova = self

        class Handler(http.server.BaseHTTPRequestHandler):

            def do_GET(self):
                path, _question, query = self.path.partition('?')
                nova.asked.append(path)
                status, body = nova.answers.get(path) or nova.answer(
                    path, query)
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header('Content-Type', 'application/json')
                self.send_header('Content-Length', str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_arguments):
                pass

        server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = 'http://127.0.0.1:%d/v2.1' % server.server_port
        threading.Thread(target=server.serve_forever).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)

    def answer(self, path, query):
        def describe(server, status):
            return {'id': server, 'status': status,
                    'OS-EXT-SRV-ATTR:host': 'compute'}

        if path in ('/v2.1', '/v2.1/'):
            return 200, {'version': {
                'id': 'v2.1', 'status': 'CURRENT', 'version': '2.93',
                'min_version': '2.1', 'links': [
                    {'rel': 'self', 'href': self.url + '/'}]}}
        if path == '/v2.1/os-services':
            return 200, {'services': [{'host': host} for host in self.hosts]}
        if path == '/v2.1/servers/detail':
            if 'all_tenants' not in query:
                return 200, {'servers': []}
            return 200, {'servers': [
                describe(*item) for item in self.listed.items()]}
        server = path.rpartition('/')[2]
        status = {**self.listed, **self.hidden}.get(server)
        if status:
            return 200, {'server': describe(server, status)}
        return 404, {'itemNotFound': {
            'code': 404,
            'message': f'Instance {server} could not be found.'}}


class VdisTestCase(test_cli.CommandTestCase):

    def setUp(self):
        super().setUp()
        self.cluster = self.useFixture(sheepdog.SheepdogFixture())
        self.nova = self.useFixture(Nova())
        self.useFixture(fixtures.MonkeyPatch(
            'graft.vdis.PATH', os.path.dirname(self.cluster.dog)))
        self.configuration = os.path.join(
            self.useFixture(fixtures.TempDir()).path, 'nova.conf')
        self.configure(f'''\
            [DEFAULT]
            host = compute
            my_ip = 127.0.0.1
            [libvirt]
            images_sheepdog_host = $my_ip
            images_sheepdog_port = {self.cluster.port}
            ''')
        for name in [name for name in os.environ if name.startswith('OS_')]:
            self.useFixture(fixtures.EnvironmentVariable(name))
        for name, value in (('OS_AUTH_TYPE', 'admin_token'),
                            ('OS_TOKEN', 'secret'),
                            ('OS_ENDPOINT', self.nova.url)):
            self.useFixture(fixtures.EnvironmentVariable(name, value))
        self.make(SERVER, 'disk', 'nova-resize')
        self.make(GONE, 'disk', 'nova-resize', 'backup')
        self.make(GONE, 'disk.eph0')
        self.make(HIDDEN, 'disk')
        self.dog('vdi', 'create', 'volume-' + GONE, '8M')

    def configure(self, text):
        with open(self.configuration, 'w') as stream:
            stream.write(textwrap.dedent(text))

    def dog(self, *arguments):
        status, out, error = self.cluster.run(*arguments)
        self.assertEqual((0, b''), (status, error))
        return out.decode()

    def make(self, server, disk, *tags):
        name = f'{server}_{disk}'
        self.dog('vdi', 'create', name, '8M')
        for tag in tags:
            self.dog('vdi', 'snapshot', '-s', tag, name)

    def age(self):
        """Have ten minutes pass and some."""
        now = time.time
        self.useFixture(fixtures.MonkeyPatch(
            'graft.vdis.time.time', lambda: now() + LATER))

    def vdis(self, *arguments):
        return self.run_command(
            'vdis', '--config-file', self.configuration, *arguments)

    def all_there(self):
        return {(words[1], words[9]) for words in (
            line.split(' ') for line in
            self.dog('vdi', 'list', '-r').splitlines())}

    def assert_refused(self, text, *arguments):
        before = self.all_there()
        status, _out, error = self.vdis(*arguments)
        self.assertEqual(1, status)
        self.assertIn(text, error)
        self.assertEqual(before, self.all_there())

    def test_list(self):
        self.nova.listed[SERVER] = 'VERIFY_RESIZE'
        self.nova.hidden[HIDDEN] = 'SOFT_DELETED'
        self.dog('vdi', 'resize', SERVER + '_disk', '2G')
        self.make(IMAGE, 'base.0a', 'nova-base')
        self.make(IMAGE, 'base.1b')
        self.make(IMAGE, 'record.0a')
        self.make(IMAGE, 'import.2c')
        self.age()
        status, out, error = self.vdis()
        self.assertEqual((0, ''), (status, error))
        rows = {tuple(row[:2]): row[2:] for row in (
            re.split(r'  +', line) for line in out.splitlines()[1:-1])}
        known = ['0 B', '0 B', '-', 'compute', 'VERIFY_RESIZE']
        base = ['8.0 MiB', '0 B', '0 B', '-', '-', 'base image']
        half = [*base[:-1], 'base image, half-made']
        orphan = ['8.0 MiB', '0 B', '0 B', '-', '-', 'orphan']
        self.assertEqual({
            (SERVER, 'disk'): ['2.0 GiB', *known],
            (SERVER, 'disk@nova-resize'): ['8.0 MiB', *known],
            (GONE, 'disk'): orphan,
            (GONE, 'disk@nova-resize'): orphan,
            (GONE, 'disk@backup'): [*orphan[:-1], "not Nova's"],
            (GONE, 'disk.eph0'): orphan,
            (HIDDEN, 'disk'): [*orphan[:-1], 'SOFT_DELETED'],
            (IMAGE, 'base.0a'): base,
            (IMAGE, 'base.0a@nova-base'): base,
            (IMAGE, 'base.1b'): half,
            (IMAGE, 'record.0a'): base,
            (IMAGE, 'import.2c'): half,
        }, rows)
        self.assertEqual('12 VDIs and snapshots, 3 of them orphans. Not of '
                         'Nova: 1.', out.splitlines()[-1])

    def test_transport(self):
        directory = self.useFixture(fixtures.TempDir()).path
        tgtadm = os.path.join(directory, 'tgtadm')
        with open(tgtadm, 'w') as program:
            program.write('#!/bin/sh\necho "Target 1: iqn.2014-06.org.'
                          f'openstack.nova:{SERVER}.disk"\n')
        os.chmod(tgtadm, 0o755)
        self.useFixture(fixtures.MonkeyPatch(
            'graft.vdis.PATH', os.pathsep.join(
                [directory, os.path.dirname(self.cluster.dog)])))
        out = self.vdis()[1]
        self.assertRegex(out, SERVER + r'  disk +8.0 MiB .* iscsi +compute')
        self.assertEqual(1, out.count('iscsi'))

    def test_clean(self):
        self.make(IMAGE, 'import.2c')
        self.age()
        before = self.all_there()
        status, out, error = self.vdis('--clean', '--yes')
        self.assertEqual((0, ''), (status, error))
        # What else is there stays, and so does what others made of it.
        gone = {(GONE + '_disk', ''), (GONE + '_disk', 'nova-resize'),
                (GONE + '_disk.eph0', ''), (HIDDEN + '_disk', '')}
        self.assertEqual(before - gone, self.all_there())
        self.assertNotIn(SERVER, out)
        self.assertLess(out.index(f'Deleted {GONE}_disk@nova-resize'),
                        out.index(f'Deleted {GONE}_disk\n'))
        self.assertEqual((0, 'There are no orphans to delete.\n', ''),
                         self.vdis('--clean', '--yes'))

    def test_clean_asks(self):
        self.age()
        self.assert_refused('Give --yes', '--clean')
        self.assert_refused('--yes goes with --clean', '--yes')
        self.useFixture(fixtures.MonkeyPatch(
            'graft.cli.sys.stdin.isatty', lambda: True))
        self.useFixture(fixtures.MonkeyPatch(
            'builtins.input', lambda question: 'n'))
        self.assert_refused('', '--clean')
        self.useFixture(fixtures.MonkeyPatch(
            'builtins.input', lambda question: 'yes'))
        self.assertEqual(0, self.vdis('--clean')[0])
        self.assertNotIn((GONE + '_disk', ''), self.all_there())

    def test_the_young_stay(self):
        before = self.all_there()
        self.assertEqual((0, 'There are no orphans to delete.\n', ''),
                         self.vdis('--clean', '--yes'))
        self.assertEqual(before, self.all_there())
        self.assertIn('orphan, but young', self.vdis()[1])

    def test_an_error_is_no_answer(self):
        self.age()
        path = '/v2.1/servers/' + GONE
        for answer in (
                (500, {'computeFault': {'code': 500, 'message': GONE}}),
                (404, {'message': 'no such page'}),
                (200, {})):
            self.nova.answers[path] = answer
            self.assert_refused(
                f'does not say whether there is a server {GONE}: '
                f'{answer[0]}', '--clean', '--yes')

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

        self.useFixture(fixtures.MockPatchObject(
            self.nova, 'answer', answer_and_know))
        self.assert_refused(GONE + ': Nova knows it now', '--clean', '--yes')

    def test_a_delete_that_fails(self):
        self.age()
        # It exits with 0 all the same.
        self.cluster.fault('error', operation='DEL_VDI')
        status, _out, error = self.vdis('--clean', '--yes')
        self.assertEqual(1, status)
        self.assertIn('Not all could be deleted:\n  ' + GONE, error)

    def test_no_cluster(self):
        self.cluster.kill()
        status, _out, error = self.vdis()
        self.assertEqual(1, status)
        self.assertIn('failed to connect', error)
        self.assertIn('--host and --port', error)

    def test_no_api(self):
        self.useFixture(fixtures.EnvironmentVariable(
            'OS_ENDPOINT', 'http://127.0.0.1:1/v2.1'))
        self.assert_refused("Nova's API does not tell", '--clean', '--yes')

    def test_no_configuration(self):
        self.configuration += '.missing'
        status, _out, error = self.vdis()
        self.assertEqual(1, status)
        self.assertIn(self.configuration, error)
        self.assertIn('--config-file', error)

    def test_other_gateway(self):
        self.configure('[libvirt]\nimages_sheepdog_port = 1\n')
        status, out, _error = self.vdis('--host', '127.0.0.1', '--port',
                                        str(self.cluster.port))
        self.assertEqual(0, status)
        self.assertIn(SERVER, out)
