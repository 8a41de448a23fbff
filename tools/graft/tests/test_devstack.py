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

"""The DevStack plugin, beside stand-ins for what DevStack brings."""

import os
import pathlib
import re
import subprocess

import ddt
import fixtures
import testtools
import yaml

from graft import patch

# DevStack's functions, and all that would change this host, say what they
# are called with.
STUBS = '''\
set -o errexit
say() { echo "$*" >>"$LOG"; }
iniset() { say "iniset $*"; }
install_package() { say "install_package $*"; }
restart_service() { say "restart_service $*"; }
configure_rootwrap() { say "configure_rootwrap $*"; }
echo_summary() { echo "$*"; }
die() { shift; echo "$*" >&2; exit 1; }
is_service_enabled() { [[ " $ENABLED " == *" $1 "* ]]; }
enable_service() { ENABLED+=" $*"; }
is_ubuntu() { true; }
python3() { say "nova-sheepdog ${*:4}"; }
sudo() {
    if [[ $1 == tee ]]; then
        say "$2"
        cat >>"$LOG"
    elif [[ "$*" == *"$DATA_DIR"* ]]; then
        "$@"
    else
        say "$*"
    fi
}
ENABLED=${ENABLED-nova n-cpu tempest}
NOVA_CONF=nova.conf TEMPEST_CONFIG=tempest.conf HOST_IP=192.0.2.1
NOVA_DIR=/opt/stack/nova
source "$PLUGIN/settings"
'''
# A cluster of as many daemons as there were starts.
DOG = '''\
#!/bin/sh
case "$1 $2" in
    "node list") cat "$DATA_DIR/started";;
    "cluster info") cat "$DATA_DIR/state";;
    *) echo "dog $*" >>"$LOG"; echo running >"$DATA_DIR/state";;
esac
'''
SHEEP = '''\
#!/bin/sh
echo "sheep $*" | sed "s:$DATA_DIR:DATA:g" >>"$LOG"
echo "$*" >>"$DATA_DIR/started"
'''


@ddt.ddt
class PluginTestCase(testtools.TestCase):
    def setUp(self):
        super().setUp()
        top = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.programs, self.data = top / 'bin', top / 'data'
        self.programs.mkdir()
        self.data.mkdir()
        (self.data / 'state').write_text(
            'Cluster status: Waiting for cluster to be formatted\n')
        self.install('dog', DOG)
        self.install('sheep', SHEEP)
        self.log = top / 'log'
        self.plugin = patch.find_root() / 'devstack'

    def install(self, name, text):
        (self.programs / name).write_text(text)
        (self.programs / name).chmod(0o755)

    def run_phase(self, *phase, **variables):
        """Run the plugin for a phase.

        :param variables: what local.conf sets
        :returns: exit status, lines of what was called, standard error
        """
        self.log.write_text('')
        done = subprocess.run(
            ['bash', '-c', STUBS + 'source "$PLUGIN/plugin.sh" "$@"', 'bash',
             *phase], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, env={
                'LOG': str(self.log), 'DATA_DIR': str(self.data),
                'PLUGIN': str(self.plugin), 'PATH': os.pathsep.join(
                    [str(self.programs), '/usr/bin', '/bin']), **variables})
        return done.returncode, self.log.read_text().splitlines(), done.stderr

    def succeed(self, *phase, **variables):
        status, calls, error = self.run_phase(*phase, **variables)
        self.assertEqual((0, ''), (status, error))
        return calls

    def test_install(self):
        calls = self.succeed('stack', 'install',
                             SHEEPDOG_PACKAGES='one two', SHEEPDOG_PORT='7100')
        self.assertIn(
            'ExecStart=/usr/sbin/tgtd -f --iscsi portal=127.0.0.1:3260', calls)
        # tgtd starts as its package is installed.
        self.assertLess(
            calls.index('/etc/systemd/system/tgt.service.d/'
                        'nova-sheepdog.conf'),
            calls.index('install_package tgt qemu-block-extra'))
        self.assertEqual('install_package one two', calls[0])
        self.assertEqual([
            'restart_service tgt',
            'nova-sheepdog apply --nova /opt/stack/nova',
            'configure_rootwrap nova',
            *(f'sheep DATA/sheepdog/{i} -z {i} -c local:DATA/sheepdog/cluster '
              f'-b 127.0.0.1 -p 710{i} --pidfile DATA/sheepdog/{i}.pid'
              for i in range(3)),
            'dog cluster format -c 2 -a 127.0.0.1 -p 7100'],
            calls[calls.index('restart_service tgt'):])

    def test_formatted_cluster_stays(self):
        (self.data / 'state').write_text('Cluster status: running\n')
        self.assertNotIn('dog cluster format', '\n'.join(
            self.succeed('stack', 'install')))

    def test_tgtd_of_cinder(self):
        calls = self.succeed('stack', 'install', ENABLED='n-cpu c-vol',
                             CINDER_TARGET_HELPER='tgtadm')
        self.assertIn('ExecStart=/usr/sbin/tgtd -f --iscsi portal='
                      '127.0.0.1:3260,portal=192.0.2.1:3260', calls)

    @ddt.data('dog', 'sheep')
    def test_without_sheepdog(self, name):
        (self.programs / name).unlink()
        status, _calls, error = self.run_phase('stack', 'install')
        self.assertEqual((1, f'{name} of Sheepdog 1.0 is not installed; set '
                          'SHEEPDOG_PACKAGES\n'), (status, error))

    def test_nova(self):
        calls = self.succeed('stack', 'post-config', SHEEPDOG_HOST='192.0.2.2')
        for call in ('images_type sheepdog',
                     'images_sheepdog_host 192.0.2.2',
                     'images_sheepdog_port 7000',
                     'images_sheepdog_transport auto',
                     'images_sheepdog_portal 127.0.0.1:3260'):
            self.assertIn(f'iniset nova.conf libvirt {call}', calls)
        # All of them are options that Nova has.
        options = (self.plugin.parent / 'nova/conf/libvirt.py').read_text()
        for call in calls:
            if 'sheepdog_' in call:
                self.assertIn(f"'{call.split()[3]}'", options)

    def test_tempest(self):
        calls = self.succeed('stack', 'test-config')
        self.assertIn('iniset tempest.conf compute-feature-enabled '
                      'stable_rescue True', calls)
        live = ('iniset tempest.conf compute-feature-enabled live_migration '
                'False')
        self.assertNotIn(live, calls)
        self.assertIn(live, self.succeed('stack', 'test-config',
                                         SHEEPDOG_TRANSPORT='native'))

    def test_host_without_nova(self):
        self.assertEqual([], self.succeed('stack', 'post-config', ENABLED=''))
        self.assertEqual([], self.succeed('stack', 'test-config', ENABLED=''))

    def test_unstack_and_clean(self):
        self.succeed('stack', 'install')
        shutdown = 'dog cluster shutdown -a 127.0.0.1 -p 7000'
        self.assertEqual([shutdown], self.succeed('unstack'))
        self.assertTrue((self.data / 'sheepdog/0').is_dir())
        self.assertEqual(
            [shutdown, 'nova-sheepdog revert --nova /opt/stack/nova'],
            self.succeed('clean'))
        self.assertFalse((self.data / 'sheepdog').exists())


@ddt.ddt
class JobsTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        read = yaml.safe_load((patch.find_root() / '.zuul.yaml').read_text())
        self.jobs = {entry['job']['name']: entry['job'] for entry in read
                     if 'job' in entry}
        self.run = next(entry['project']['check']['jobs'] for entry in read
                        if 'project' in entry)

    def test_all_jobs_run(self):
        self.assertEqual(sorted(self.jobs), sorted(self.run))

    @ddt.data(
        ('nova-sheepdog', 'api.compute.servers.test_create_server.A.b', True),
        ('nova-sheepdog', 'scenario.test_shelve_instance.A.b', True),
        ('nova-sheepdog', 'scenario.test_shelve_instance.A.b[slow]', False),
        ('nova-sheepdog', 'api.volume.test_volumes_list.A.b', False),
        ('nova-sheepdog-live-migration',
         'api.compute.admin.test_live_migration.A.test_iscsi', True),
        ('nova-sheepdog-live-migration',
         'api.compute.admin.test_live_migration.'
         'A.test_live_migration_with_trunk', False))
    @ddt.unpack
    def test_which_tests_run(self, job, name, runs):
        variables = self.jobs[job]['vars']
        self.assertEqual(runs, bool(
            re.search(variables['tempest_test_regex'], 'tempest.' + name) and
            not re.search(variables['tempest_exclude_regex'], name)))

    def test_what_needs_no_run(self):
        patterns = self.jobs['nova-sheepdog']['irrelevant-files']
        for path, is_needless in (
                ('README.rst', True), ('nova/tests/unit/a.py', True),
                ('nova/virt/libvirt/driver.py', False),
                ('devstack/plugin.sh', False),
                ('tools/graft/weave.py', False)):
            self.assertEqual(is_needless, any(
                re.match(pattern, path) for pattern in patterns), path)
