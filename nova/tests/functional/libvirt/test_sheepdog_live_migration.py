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

"""Live migration between two hosts, through Nova's API.

The guest writes all the time, into objects that are made and objects that are
copied as it does, and reads back and compares everything afterwards.
"""

import os
import re

import fixtures

from nova.compute import power_state
from nova import context as nova_context
from nova import objects
from nova.tests.fixtures import migration_guest
from nova.tests.functional.libvirt import sheepdog_testcase
from nova.tests.functional.libvirt import sheepdog_two_hosts

# libvirt's states of a domain, and its events
RUNNING = 1
PAUSED = 3
EVENT_SUSPENDED = 3
EVENT_RESUMED = 4


def load_tests(loader, tests, _pattern):
    # On the native transport it is refused.
    return loader.suiteClass() if sheepdog_testcase.IS_NATIVE else tests


class SheepdogLiveMigrationTestCase(sheepdog_two_hosts.SheepdogHostsTestCase):

    # It is left out where the disks are on Sheepdog.
    OPTIONS = {'live_migration_permit_post_copy': True}

    def setUp(self):
        super().setUp()
        path = os.path.join(self.useFixture(fixtures.TempDir()).path, 'image')
        migration_guest.write_image(path)
        self.one, self.two = self.hosts.values()
        self.server = self._wait_for_state_change(
            self.post_server(self.upload_file(path, 'qcow2'), host='one'),
            'ACTIVE')
        # no line of the BIOS begins like this
        self.wait_until(lambda: re.search(r'(?m)^o', self.guest_output()))
        self.one.control.pause_until_migration(self.server['id'])

    def guest_output(self):
        return self.console_log(self.server)

    def ask_to_migrate(self):
        self.api.post_server_action(self.server['id'], {'os-migrateLive': {
            'host': None, 'block_migration': 'auto'}})

    def wait_for_end(self, host):
        """Wait until Nova is done, and see that a host has it all."""
        self.one.control.wait_for_migration()
        # What the other side is asked for at the end it is not waited for.
        self.wait_for_api(lambda: self.api.get_server(self.server['id'])[
            'OS-EXT-STS:task_state'] is None)
        self.assertEqual(host, self.host_of(self.server))
        self.wait_until(lambda: not self.is_any_at(self.other_host(
            self.server)))
        self.assert_only_at(self.server, host)

    def is_any_at(self, host):
        left = self.leftovers(self.server)
        return any(host.name in left[kind]
                   for kind in ('targets', 'files', 'guests'))

    def wait_for_failure(self):
        self.wait_for_end(self.one)
        self.assert_guest_is(RUNNING, self.one)
        # Nova 34 has it in ERROR whatever became of the migration.
        self.api.post_server_action(self.server['id'], {
            'os-resetState': {'state': 'active'}})

    def migrate(self):
        self.ask_to_migrate()
        self.wait_for_end(self.two)
        self.assertNotIn('sheepdog:arrival',
                         self.two.control.xml(self.server['id']))

    def cell(self):
        """Return a context manager that returns the context of the cell."""
        return nova_context.target_cell(
            nova_context.get_admin_context(), self.cell_mappings['cell1'])

    def begin_to_migrate(self):
        """Migrate until the guest is on both hosts, and on its way.

        At this bandwidth its memory takes eight seconds.

        :returns: path of the migration in Nova's API
        """
        self.one.control.set_option('live_migration_bandwidth', 1, 'libvirt')
        self.ask_to_migrate()
        self.wait_until(self.one.control.is_sending, self.server['id'])
        # The API of Nova 34 takes its own answer about it for wrong.
        with self.cell() as context:
            migration = objects.Migration.get_by_instance_and_status(
                context, self.server['id'], 'running')
        return '/servers/%s/migrations/%d' % (self.server['id'], migration.id)

    def last_pass(self):
        """Return the number of the last pass that the guest has ended.

        Where it is now, that is; it is -1 if there is none.
        """
        return max(map(int, re.findall(r'pass (\d+) bad \d+\s',
                                       self.guest_output())), default=-1)

    def wait_for_pass(self, number):
        """Wait for the end of a pass of the guest or a later one.

        :returns: number of sectors that it has read wrongly where it is now,
            None if its disk has failed
        """
        self.wait_until(lambda: self.last_pass() >= number or
                        'disk failed' in self.guest_output())
        output = self.guest_output()
        if 'disk failed' in output:
            return None
        return sum(map(int, re.findall(r'pass \d+ bad (\d+)', output)))

    def assert_no_damage(self):
        """Wait for a pass after the first and compare the whole disk.

        The server is deleted then.
        """
        self.assertEqual(0, self.wait_for_pass(1))
        self.act(self.server, 'pause', None, 'PAUSED')
        self.compare_disk()
        self._delete_server(self.server)
        self.assert_nothing_left(self.server)

    def compare_disk(self):
        """Compare the whole disk of the guest, which is paused."""
        passes = self.last_pass() + 1
        damage = {}
        for number in range(1, migration_guest.OBJECTS):
            status, data, error = self.sheepdog.run(
                'vdi', 'read', self.server['id'] + '_disk',
                str(number * migration_guest.OBJECT),
                str(migration_guest.OBJECT))
            self.assertEqual((0, b''), (status, error))
            damage[number] = migration_guest.find_damage(
                data, number, passes)
        self.assertEqual({}, {number: sectors for number, sectors
                              in damage.items() if sectors})

    def tell_stop_time(self):
        """Have it told how long the guest was stopped.

        On a busy machine most of it is the start of nova-rootwrap, so there
        is no limit that it could be held to.
        """
        def times(host, wanted):
            return [when for when, uuid, event, _detail in
                    host.control.events()
                    if uuid == self.server['id'] and event == wanted]

        # It was stopped once before.
        seconds = (times(self.two, EVENT_RESUMED)[0] -
                   times(self.one, EVENT_SUSPENDED)[-1])
        self.tell('stop time of the guest in a live migration: %d ms' % (
            1000 * seconds))

    def assert_guest_is(self, state, host):
        self.assertEqual({host.name: state}, self.guest_states(self.server))

    def test_data(self):
        self.migrate()
        self.assert_guest_is(RUNNING, self.two)
        self.tell_stop_time()
        self.assert_no_damage()

    def test_corruption_without_the_reload(self):
        self.two.control.leave_out_the_reload()
        self.migrate()
        # Either it reads what was there before, or nothing can be read:
        # Sheepdog has dropped what it believes to share with another VDI.
        self.assertNotEqual(0, self.wait_for_pass(0))

    def test_force_complete_and_restart(self):
        self.two.control.fail_to_reload()
        self.api.api_post(self.begin_to_migrate() + '/action', {
            'force_complete': None})
        self.wait_for_end(self.two)
        self.assert_guest_is(PAUSED, self.two)
        self.two.kill()
        self.start_computes(self.two)
        self.wait_until(lambda: self.guest_states(self.server) == {
            'two': RUNNING})
        self.assert_no_damage()

    def test_failures_and_paused_server(self):
        self.api.api_delete(self.begin_to_migrate())
        self.wait_for_failure()

        self.begin_to_migrate()
        self.testbed.ask('signal', 'two', 'SIGKILL')
        self.wait_for_failure()

        self.two.control.lose_next_targets()
        self.ask_to_migrate()
        self.wait_for_failure()

        self.act(self.server, 'pause', None, 'PAUSED')
        self.one.control.set_option('live_migration_bandwidth', 0, 'libvirt')
        self.migrate()
        self.assert_guest_is(PAUSED, self.two)
        self.act(self.server, 'unpause', None, 'ACTIVE')
        self.assert_no_damage()

    def _note_that_it_runs(self):
        """Have Nova know that the guest runs, which it has seen paused."""
        with self.cell() as context:
            instance = objects.Instance.get_by_uuid(
                context, self.server['id'])
            instance.power_state = power_state.RUNNING
            instance.save()

    def test_source_is_back_before_the_end(self):
        self.begin_to_migrate()
        # nova-compute may take longer to start than the migration.
        self.testbed.ask('signal', 'two', 'SIGSTOP')
        self.one.kill()
        # It aborts the migration, and does not tell the other side.
        self.start_computes(self.one)
        self.testbed.ask('signal', 'two', 'SIGCONT')
        self.wait_until(lambda: self.guest_states(self.server) == {
            'one': RUNNING})
        self._wait_for_server_parameter(
            self.server, {'OS-EXT-STS:task_state': None})
        # The other host sees that the guest is gone, and an image-cache pass
        # removes its directory.
        self.wait_until(lambda: list(
            self.leftovers(self.server)['targets']) == ['one'])
        self.two.control.run_image_cache_pass()
        self.assert_only_at(self.server, self.one)
        self.migrate()
        self.assert_no_damage()

    def hard_reboot_in_vain(self):
        self.api.post_server_action(self.server['id'], {
            'reboot': {'type': 'HARD'}})
        server = self._wait_for_server_parameter(
            self.server, {'status': 'ERROR', 'OS-EXT-STS:task_state': None})
        self.assertIn('two was interrupted, and the guest may run there',
                      server['fault']['message'])

    def test_source_is_killed(self):
        with open(self.one.configuration, 'a') as configuration:
            configuration.write(
                '[DEFAULT]\nresume_guests_state_on_host_boot = True\n')
        self.begin_to_migrate()
        self.one.kill()
        # libvirt goes on with it. Nova does not know, and would start another
        # guest where this one was.
        self.wait_until(lambda: self.two.control.states() == {
            self.server['id']: RUNNING})
        self._note_that_it_runs()
        self.start_computes(self.one)
        self.wait_for_api(lambda: self.api.get_server(self.server['id'])[
            'status'] == 'ERROR')
        self.assertEqual(self.one, self.host_of(self.server))
        self.hard_reboot_in_vain()
        self.assert_guest_is(RUNNING, self.two)
        self.assertEqual(0, self.wait_for_pass(1))
        self.two.control.pause(self.server['id'])
        self.compare_disk()
        self.two.control.remove(self.server['id'])
        # The other host notes that it is gone.
        self.wait_until(lambda: 'state' not in self.all_vdis(
            self.server))
        self.act(self.server, 'reboot', {'type': 'HARD'}, 'ACTIVE')
        self.assert_guest_is(RUNNING, self.one)
        self._delete_server(self.server)
        self.assertEqual([], list(self.leftovers(self.server)['targets']))
        self.two.control.run_image_cache_pass()
        self.assert_nothing_left(self.server)
