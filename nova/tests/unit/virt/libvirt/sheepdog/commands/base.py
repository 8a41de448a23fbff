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

"""What the tests of nova-sheepdog's commands share."""

import contextlib
import http.server
import io
import os
import threading
import warnings

import fixtures
from oslo_serialization import jsonutils
from oslo_utils.fixture import uuidsentinel as uuids
from oslo_utils import units

from nova import test
from nova.tests.unit.virt.libvirt.sheepdog import base
from nova.virt.libvirt.sheepdog.commands import cli
from nova.virt.libvirt import utils as libvirt_utils


class Nova(fixtures.Fixture):
    """As much of Nova's API as there has to be, on HTTP.

    :ivar listed: servers that a list has, with their status by UUID
    :ivar hidden: servers that can only be asked for by their UUIDs
    :ivar answers: dict of path to another answer, (status, body)
    :ivar asked: paths of the requests so far
    """

    def __init__(self):
        self.listed = {uuids.server: 'ACTIVE'}
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
                text = jsonutils.dumps(body).encode()
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
            'message': 'Instance %s could not be found.' % server}}


class CommandTestCase(base.SheepdogTestMixin, test.NoDBTestCase):

    def setUp(self):
        super().setUp()
        self.start_model()
        self.flags(host='compute', instances_path=self.useFixture(
            fixtures.TempDir()).path)
        self.flags(virt_type='qemu', group='libvirt')
        # The flags of the test are its nova.conf.
        self.configure = self.patch_object(
            cli.importlib.import_module(
                'nova.virt.libvirt.sheepdog.commands.start'), 'configure')
        for name in [name for name in os.environ if name.startswith('OS_')]:
            self.useFixture(fixtures.EnvironmentVariable(name))

    def start_api(self):
        """Have an API, and the variables that name it."""
        self.nova = self.useFixture(Nova())
        for name, value in (('OS_AUTH_TYPE', 'admin_token'),
                            ('OS_TOKEN', 'secret'),
                            ('OS_ENDPOINT', self.nova.url)):
            self.useFixture(fixtures.EnvironmentVariable(name, value))

    def run_command(self, *arguments):
        """Run a command.

        :returns: exit status, standard output and standard error
        """
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), (
                contextlib.redirect_stderr(err)), warnings.catch_warnings():
            # Nova's tests have Python show what it hides from users.
            warnings.simplefilter('ignore')
            status = cli.main(arguments)
        return status, out.getvalue(), err.getvalue()

    def succeed(self, *arguments):
        status, out, err = self.run_command(*arguments)
        self.assertEqual((0, ''), (status, err))
        return out

    def make(self, owner, kind, *tags):
        """Make a VDI and snapshots of it."""
        vdi = libvirt_utils.get_sheepdog_vdi(owner, kind)
        self.dog('vdi', 'create', vdi, str(8 * units.Mi))
        for tag in tags:
            self.dog('vdi', 'snapshot', '-s', tag, vdi)

    def list_all(self):
        return {(vdi.name, vdi.tag)
                for vdi in libvirt_utils.list_sheepdog_vdis()}
