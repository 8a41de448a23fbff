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
import time
from unittest import mock

import fixtures
from oslo_utils.fixture import uuidsentinel as uuids
from oslo_utils import units
from prometheus_client import parser

from nova.tests.unit.virt.libvirt.sheepdog.commands import base
from nova.tests.unit.virt.libvirt.sheepdog import fake_libvirt
from nova.virt.libvirt.sheepdog.commands import doctor
from nova.virt.libvirt.sheepdog.commands import metrics
from nova.virt.libvirt.sheepdog import lease
from nova.virt.libvirt.sheepdog import rootwrap
from nova.virt.libvirt.sheepdog import targets
from nova.virt.libvirt import utils as libvirt_utils


class MetricsTestCase(base.CommandTestCase):

    def setUp(self):
        super().setUp()
        self.libvirt = self.patch_object(doctor, 'Libvirt')
        self.libvirt.return_value.find_hanging.return_value = {
            uuids.server: ['iqn']}
        self.patch_object(doctor.libvirt_guest, 'libvirt',
                          new=fake_libvirt.LIBVIRT)

    def measure(self, *arguments):
        """Run it, and have Prometheus's own parser read what it prints.

        :returns: dict of name and labels to value
        """
        families = list(parser.text_string_to_metric_families(
            self.succeed('metrics', *arguments)))
        self.assertEqual({'gauge', 'counter'} | {
            family.type for family in families}, {'gauge', 'counter'})
        return {(sample.name[len('nova_sheepdog_'):],
                 *sorted(sample.labels.values())): sample.value
                for family in families for sample in family.samples}

    def test_this_host(self):
        self.make(uuids.server, 'disk')
        targets.make_target(
            libvirt_utils.get_sheepdog_iqn(uuids.server + '_disk'),
            uuids.server + '_disk')
        targets._tgtadm('--mode', 'target', '--op', 'new', '--tid', '1',
                        '-T', 'iqn.2026-01.org.other:x')
        self.assertEqual({
            ('patched',): 1, ('up', 'libvirtd'): 1, ('up', 'tgtd'): 1,
            ('targets', 'nova'): 1, ('targets', 'others'): 1,
            ('hanging_guests',): 1}, self.measure())

    def test_calls(self):
        libvirt_utils.sheepdog_vdi_exists(uuids.server + '_disk')
        libvirt_utils.sheepdog_vdi_exists(uuids.server + '_disk')
        self.sheepdog.fault('error', subcommand='vdi create')
        self.assertRaises(
            libvirt_utils.exception.SheepdogError,
            libvirt_utils.create_sheepdog_vdi, uuids.server + '_disk', 1)
        targets.list_targets()
        lease.get_directory()
        rootwrap.get_runner().save_calls(rootwrap.get_calls_path())
        found = self.measure()
        expected = {'dog vdi getattr': (2, 0), 'dog vdi create': (1, 1),
                    'tgtadm target show': (1, 0)}
        for name, (calls, failures) in expected.items():
            # That a VDI is not there is no failure.
            self.assertEqual(calls, found['calls_total', name])
            self.assertEqual(failures, found['call_failures_total', name])
            self.assertGreater(found['call_seconds_total', name], 0)
            self.assertGreaterEqual(found['call_wait_seconds_total', name], 0)

    def test_nothing_answers(self):
        self.libvirt.side_effect = fake_libvirt.LIBVIRT.libvirtError(38)
        self.sheepdog.kill()
        self.sheepdog.tgtd.kill()
        self.assertEqual({
            ('patched',): 1, ('up', 'libvirtd'): 0, ('up', 'tgtd'): 0,
            ('up', 'cluster'): 0}, self.measure('--cluster'))

    def _make_vdis(self):
        self.make(uuids.server, 'disk', 'nova-resize')
        self.make(uuids.gone, 'disk.swap')
        self.dog('vdi', 'write', uuids.gone + '_disk.swap', '0', '1')
        self.make(uuids.image, 'base.0a', 'nova-base')
        self.make(uuids.image, 'record.0a')
        libvirt_utils.write_sheepdog_record(
            uuids.image + '_record.0a', '1 1700000000')
        self.dog('vdi', 'create', 'of_others', '8M')

    def test_cluster(self):
        self.start_api()
        self._make_vdis()
        with mock.patch('nova.virt.libvirt.sheepdog.commands.vdis.'
                        'MINIMUM_AGE', -1):
            found = self.measure('--cluster')
        for name, value in {
                ('cluster_nodes',): 3, ('cluster_zones',): 3,
                ('cluster_wanted_zones',): 2, ('vdis', 'disk'): 2,
                ('vdis', 'resize'): 1, ('vdis', 'base'): 2,
                ('vdis', 'record'): 1, ('vdis', 'others'): 1,
                ('vdi_bytes', 'disk'): 4 * units.Mi, ('orphans',): 1,
                ('orphan_bytes',): 4 * units.Mi, ('up', 'cluster'): 1,
                ('up', 'nova'): 1,
                ('base_image_used_timestamp_seconds', *sorted(
                    (uuids.image, '0a'))): 1700000000}.items():
            self.assertEqual(value, found[name], name)
        for name in (('vdi_oldest_timestamp_seconds', 'resize'),
                     ('base_image_created_timestamp_seconds', *sorted(
                         (uuids.image, '0a')))):
            self.assertAlmostEqual(time.time(), found[name], delta=60)
        size, used, free = (found[('cluster_%s_bytes' % name,)]
                            for name in ('size', 'used', 'free'))
        self.assertEqual(size, used + free)

    def test_nova_does_not_answer(self):
        self.start_api()
        self.useFixture(fixtures.EnvironmentVariable(
            'OS_ENDPOINT', 'http://127.0.0.1:1/v2.1'))
        self._make_vdis()
        found = self.measure('--cluster')
        self.assertEqual(0, found['up', 'nova'])
        self.assertEqual(2, found['vdis', 'disk'])
        self.assertNotIn(('orphans',), found)

    def test_output(self):
        path = os.path.join(self.useFixture(fixtures.TempDir()).path, 'x.prom')
        self.assertEqual('', self.succeed('metrics', '--output', path))
        self.assertEqual(0o644, os.stat(path).st_mode & 0o777)
        with open(path) as file:
            self.assertIn('nova_sheepdog_patched 1\n', file.read())
        self.assertEqual(['x.prom'], os.listdir(os.path.dirname(path)))
        status, _out, err = self.run_command(
            'metrics', '--output', '/nonexistent/x.prom')
        self.assertEqual(1, status)
        self.assertIn('/nonexistent', err)

    def test_every_figure_has_help(self):
        self.assertEqual(set(), {name for name in metrics.HELP if not
                                 metrics.HELP[name].endswith('.')})
