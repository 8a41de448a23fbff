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

import contextlib
import os
import threading
from unittest import mock

import ddt
from oslo_utils import units
from oslo_utils import uuidutils

import nova.conf
from nova import exception
from nova import test
from nova.tests.unit.virt.libvirt.sheepdog import base
from nova.virt.libvirt.sheepdog import lease
from nova.virt.libvirt.sheepdog import rootwrap
from nova.virt.libvirt import utils as libvirt_utils

CONF = nova.conf.CONF
# Sheepdog's number for it
NO_OBJECT = 0x02


def never():
    return False


class _LeaseTestCase(base.SheepdogTestMixin, test.NoDBTestCase):

    def setUp(self):
        super().setUp()
        self.start_cluster()
        self.set_clock(lease)
        self.key = uuidutils.generate_uuid()
        # Two hosts.
        self.leases = lease.Leases()
        self.others = lease.Leases()

    def get_names(self):
        return [vdi['name'] for vdi in self.sheepdog.vdis()]

    def get_record(self, generation=0):
        return lease.Record.read(lease.get_name(self.key, generation))

    def get_log(self):
        return self.stdlog.logger.output

    def take_over(self, leases, generation=1):
        """Take the lease of a host that is taken for dead."""
        return leases.take(self.key, generation,
                           dead=self.get_record(generation - 1).text)

    def let_pass(self, seconds):
        """Put the clock forward, so slowly that a holder can renew a lease."""
        end = self.clock.ahead + seconds
        while self.clock.ahead < end:
            before = self.get_record().text
            self.clock.ahead += lease.get_lease_time() / 8
            self.wait_until(lambda before=before:
                            self.get_record().text != before)

    def let_pass_until(self, condition):
        """Put the clock forward until something is true."""
        def is_true():
            self.clock.ahead += 1
            return condition()

        self.wait_until(is_true)

    def occupy_runner(self):
        """Have all commands wait that are not urgent.

        :returns: event that lets them go on
        """
        rootwrap.stop()
        self.flags(images_sheepdog_max_calls=1, group='libvirt')
        busy, go_on = threading.Event(), threading.Event()
        self.addCleanup(go_on.set)

        def wait():
            busy.set()
            go_on.wait()

        self.start_thread(rootwrap.execute, 'true', timeout=5, check=wait)
        busy.wait()
        return go_on


@ddt.ddt
class LeaseTestCase(_LeaseTestCase):

    def test_one_host_has_it(self):
        with self.leases.take(self.key) as mine:
            self.assertIsNone(self.others.take(self.key))
            mine.check()
            # Those of other images have nothing to do with it.
            with self.others.take(uuidutils.generate_uuid()):
                pass
        with self.others.take(self.key) as theirs:
            self.assertNotEqual(mine.token, theirs.token)
        self.assertEqual([], self.get_names())

    def test_note_while_it_is_held(self):
        directory = lease.get_directory()
        with self.leases.take(self.key, digest='0123') as mine:
            self.assertIsNone(self.others.take(self.key, digest='4567'))
            names = os.listdir(directory)
            self.assertEqual(['%s_lease.0.%s' % (self.key, mine.token)],
                             names)
            with open(os.path.join(directory, names[0])) as note:
                self.assertEqual('0123', note.read())
        self.assertEqual([], os.listdir(directory))

    @ddt.data('create', 'write')
    def test_lease_that_cannot_be_had(self, subcommand):
        self.sheepdog.fault('error', subcommand='vdi ' + subcommand,
                            result=0x15)
        with contextlib.ExitStack() as stack:
            self.assertRaises(exception.SheepdogError, lambda: stack.
                              enter_context(self.leases.take(self.key)))
        self.assertEqual([], self.get_names())
        self.assertEqual([], os.listdir(lease.get_directory()))

    def test_record(self):
        self.flags(host='one')
        self.flags(images_sheepdog_timeout=50, group='libvirt')
        with self.leases.take(self.key) as mine:
            record = self.get_record()
            self.assertEqual((mine.token, 130, 'one'),
                             (record.token, record.seconds, record.host))

    @ddt.data('', 'token', 'token 1 many one', 'token 1 130 one more')
    def test_record_that_says_less(self, text):
        record = lease.Record(text)
        self.assertEqual(
            (text.partition(' ')[0], lease.get_lease_time(), 'unknown'),
            (record.token, record.seconds, record.host))

    def test_all_generations_are_given_back(self):
        self.others.take(self.key)
        self.take_over(self.others)
        with self.take_over(self.leases, 2):
            self.assertEqual(3, len(self.get_names()))
        self.assertEqual([], self.get_names())

    def test_lease_of_its_own_is_given_back_last(self):
        # So no host takes it that would follow none.
        self.others.take(self.key)
        with self.take_over(self.leases):
            self.sheepdog.fault('error', subcommand='vdi delete', times=None,
                                vdi=lease.get_name(self.key, 1))
        self.sheepdog.clear_faults()
        self.assertEqual([lease.get_name(self.key, 1)], self.get_names())
        # It does not count, and goes.
        with self.leases.take(self.key) as mine:
            self.assertEqual([lease.get_name(self.key, 0)], self.get_names())
            self.let_pass(lease.get_lease_time())
            mine.check()
        self.assertEqual([], self.get_names())

    def test_generation_that_follows_none(self):
        """A lease is given back while another host is about to take over."""
        # The one that is taken for dead renews what others have no more.
        self.patch_object(lease.Lease, '_keep')
        self.others.take(self.key)
        dead = self.get_record().text
        with self.take_over(self.others):
            pass
        self.assertIsNone(self.leases.take(self.key, 1, dead=dead))
        self.assertEqual([], self.get_names())
        with self.others.take(self.key) as theirs:
            # One that follows another holder would be a second one.
            self.assertIsNone(self.leases.take(self.key, 1, dead=dead))
            self.assertEqual([lease.get_name(self.key, 0)], self.get_names())
            theirs.check()
        # that of the first one
        self.assertEqual(1, len(os.listdir(lease.get_directory())))

    def test_lease_that_cannot_be_given_back(self):
        with self.leases.take(self.key):
            self.sheepdog.fault('error', subcommand='vdi delete', times=None)
        # What takes care of it is there.
        self.assertEqual(1, len(os.listdir(lease.get_directory())))
        self.assertIn('Left %s' % lease.get_name(self.key, 0),
                      self.get_log())

    def test_holder_notices_its_successor(self):
        with self.leases.take(self.key) as mine:
            with self.take_over(self.others):
                self.wait_until(lambda: mine.is_lost)
                self.assertRaises(lease.LeaseLost, mine.check)
        self.assertEqual([], self.get_names())

    def test_holder_notices_that_its_lease_is_gone(self):
        with self.leases.take(self.key) as mine:
            libvirt_utils.delete_sheepdog_vdi(lease.get_name(self.key, 0))
            self.wait_until(lambda: mine.is_lost)
            with self.others.take(self.key):
                pass
            with self.others.take(self.key) as theirs:
                self.assertRaises(lease.LeaseLost, mine.check)
                mine.give_back()
                # It leaves the other one's alone.
                self.assertEqual(theirs.token, self.get_record().token)

    def test_holder_that_is_not_sure_starts_nothing(self):
        self.patch_object(lease, 'RENEWAL', new=1000)
        with self.leases.take(self.key) as mine:
            self.clock.ahead += lease.get_lease_time() / 2 - 5
            mine.run(libvirt_utils.create_sheepdog_vdi, 'one', units.Mi)
            self.clock.ahead += 10
            self.assertRaises(
                lease.LeaseLost, mine.run, libvirt_utils.create_sheepdog_vdi,
                'two', units.Mi)
            # It does not know either whether its VDI is still its own.
        self.assertEqual(['one', lease.get_name(self.key, 0)],
                         sorted(self.get_names(), key=len))

    def test_check_is_made_when_the_command_starts(self):
        self.patch_object(lease, 'RENEWAL', new=1000)
        with self.leases.take(self.key) as mine:
            go_on = self.occupy_runner()
            call = self.start_thread(
                mine.run, libvirt_utils.create_sheepdog_vdi, 'late', units.Mi)
            self.wait_until(mine._busy.locked)
            self.clock.ahead += lease.get_lease_time()
            go_on.set()
            self.assertRaises(lease.LeaseLost, call.result, 60)
        self.assertNotIn('late', self.get_names())

    def test_renewal_does_not_wait_for_other_commands(self):
        with self.leases.take(self.key) as mine:
            go_on = self.occupy_runner()
            before = self.sheepdog.stats()['calls'].get('vdi write', 0)
            self.wait_until(lambda: self.sheepdog.stats()['calls'][
                'vdi write'] > before + 2)
            mine.check()
            go_on.set()

    def test_renewal_that_fails_is_tried_again(self):
        with self.leases.take(self.key) as mine:
            self.sheepdog.fault('error', subcommand='vdi write', times=2)
            self.wait_until(lambda: 'Cannot renew' in self.get_log())
            self.let_pass(2 * lease.get_lease_time())
            mine.check()

    def test_renewal_ends_without_progress(self):
        self.flags(images_sheepdog_timeout=1, group='libvirt')
        self.patch_object(lease, 'STALL', new=40)
        start = self.clock.monotonic()
        with self.leases.take(self.key) as mine:
            mine.watch(lambda: 'the same')
            self.let_pass_until(
                lambda: 'has made no progress' in self.get_log())
            self.assertGreaterEqual(self.clock.monotonic() - start, 40)
            # Another host can have it then.
            theirs = self.others.wait(self.key, never)
            self.assertEqual({lease.get_name(self.key, generation)
                              for generation in range(2)},
                             set(self.get_names()))
            self.assertRaises(lease.LeaseLost, mine.check)
            with theirs:
                pass

    @ddt.data('watched', 'run')
    def test_renewal_goes_on_with_progress(self, kind):
        self.flags(images_sheepdog_timeout=1, group='libvirt')
        self.patch_object(lease, 'STALL', new=40)
        done = []
        with self.leases.take(self.key) as mine:
            mine.watch(lambda: list(done))
            for _step in range(4):
                self.let_pass(20)
                if kind == 'run':
                    mine.run(libvirt_utils.delete_sheepdog_vdi, 'none')
                else:
                    done.append('more')
            mine.check()
        self.assertNotIn('no progress', self.get_log())

    def test_vdi_that_exists_is_not_taken_for_a_disk(self):
        libvirt_utils.create_sheepdog_vdi('one', units.Mi)
        with self.leases.take(self.key) as mine:
            error = self.assertRaises(
                exception.SheepdogError, mine.run,
                libvirt_utils.create_sheepdog_vdi, 'one', units.Mi)
        self.assertNotIsInstance(error, exception.SheepdogVDIExists)
        self.assertIn('VDI one', str(error))


class WaitTestCase(_LeaseTestCase):

    def setUp(self):
        super().setUp()
        self.clock.step = 5
        self.start = self.clock.monotonic()

    def assert_waited(self, seconds):
        waited = self.clock.monotonic() - self.start
        self.assertGreaterEqual(waited, seconds)
        self.assertLess(waited, seconds + 20)

    def die_with_lease(self, generation=0):
        """Leave a lease as a host does that is killed."""
        with mock.patch.object(lease, 'threading', wraps=threading) as module:
            module.Thread = mock.Mock()
            taken = (self.take_over(self.others, generation) if generation
                     else self.others.take(self.key))
            taken.__enter__()

    def test_free_lease(self):
        with self.leases.wait(self.key, never, 'digest'):
            self.assertEqual([lease.get_name(self.key, 0)], self.get_names())
        self.assert_waited(0)

    def test_needless_wait(self):
        self.assertIsNone(self.leases.wait(self.key, lambda: True))
        self.assertEqual([], self.get_names())

    def test_lease_that_is_renewed_is_waited_for(self):
        self.clock.step = 1
        with self.leases.take(self.key):
            theirs = self.start_thread(self.others.wait, self.key, never)
            self.wait_until(lambda: self.clock.ahead >
                            3 * lease.get_lease_time())
            self.assertFalse(theirs.done())
        with theirs.result(60):
            self.assertEqual([lease.get_name(self.key, 0)], self.get_names())

    def test_lease_that_is_not_renewed_is_taken_over(self):
        self.flags(host='dead')
        self.die_with_lease()
        self.flags(host='other')
        with self.leases.wait(self.key, never) as mine:
            self.assertEqual(mine.token, self.get_record(1).token)
            self.assert_waited(lease.get_lease_time())
        self.assertIn('%s of host dead has not been renewed' %
                      lease.get_name(self.key, 0), self.get_log())
        self.assertEqual([], self.get_names())

    def test_two_holders_have_died(self):
        self.die_with_lease()
        self.die_with_lease(generation=1)
        with self.leases.wait(self.key, never) as mine:
            self.assertEqual(mine.token, self.get_record(2).token)
            self.assert_waited(2 * lease.get_lease_time())

    def test_holder_says_for_how_long_it_may_be_silent(self):
        # The one that waits has another images_sheepdog_timeout.
        for holder, other in (100, 10), (10, 100):
            self.start = self.clock.monotonic()
            self.flags(images_sheepdog_timeout=holder, group='libvirt')
            expected = lease.get_lease_time()
            self.die_with_lease()
            self.flags(images_sheepdog_timeout=other, group='libvirt')
            with self.leases.wait(self.key, never):
                self.assert_waited(expected)

    def test_holder_that_has_written_nothing_yet(self):
        self.others.take(self.key)
        with self.leases.wait(self.key, never):
            self.assert_waited(lease.get_lease_time())

    def test_lease_is_given_back_while_it_is_read(self):
        self.others.take(self.key)
        looks = []

        def is_needless():
            # What a read says that comes amid a delete.
            self.sheepdog.fault('error', subcommand='vdi read',
                                operation='READ_OBJ', result=NO_OBJECT)
            looks.append(True)
            return len(looks) > 2

        self.assertIsNone(self.leases.wait(self.key, is_needless))

    def test_later_generation_is_given_back(self):
        self.clock.step = 1
        self.die_with_lease()
        with self.take_over(self.others):
            mine = self.start_thread(self.leases.wait, self.key, never)
            # It has taken over from the first, and waits for the second.
            self.wait_until(lambda: self.clock.ahead >
                            2 * lease.get_lease_time())
        with mine.result(60):
            # There is no other one, so it begins again.
            self.assertEqual([lease.get_name(self.key, 0)], self.get_names())

    def test_what_it_waits_for_is_reported(self):
        self.clock.step = 1
        self.flags(host='one')
        with self.leases.take(self.key):
            self.assertIsNone(self.others.wait(
                self.key, lambda: self.clock.ahead > 130))
        lines = [line for line in self.get_log().splitlines()
                 if 'Waiting for host one' in line]
        self.assertEqual(3, len(lines), lines)
        self.assertIn('of %s; for 0 s' % self.key, lines[0])
        self.assertRegex(lines[1], 'for 6[0-9] s')

    def test_check_ends_the_wait(self):
        self.die_with_lease()
        check = mock.Mock(side_effect=[None, None, ZeroDivisionError()])
        self.assertRaises(ZeroDivisionError, self.leases.wait, self.key,
                          never, check=check)


class StopTestCase(_LeaseTestCase):
    """What a nova-compute leaves that is stopped and not killed."""

    def test_leases_are_given_back(self):
        mine = self.leases.take(self.key)
        with mine:
            self.leases.stop()
            self.assertEqual([], self.get_names())
            # The next nova-compute looks what the work has left.
            self.assertEqual(1, len(os.listdir(lease.get_directory())))
            # Others need not wait.
            with self.others.take(self.key) as theirs:
                self.assertRaises(
                    lease.LeaseLost, mine.run,
                    libvirt_utils.create_sheepdog_vdi, 'one', units.Mi)
                mine.give_back()
                self.assertEqual(theirs.token, self.get_record().token)
        self.assertEqual([], self.get_names())

    def test_leases_that_have_been_given_back_are_left_alone(self):
        with self.leases.take(self.key):
            pass
        with self.others.take(self.key) as theirs:
            self.leases.stop()
            self.assertEqual(theirs.token, self.get_record().token)

    def test_lease_that_another_host_has_is_left_alone(self):
        self.patch_object(lease, 'RENEWAL', new=1000)
        self.leases.take(self.key).__enter__()
        self.clock.ahead += lease.get_lease_time()
        with self.take_over(self.others):
            self.leases.stop()
            self.assertEqual(2, len(self.get_names()))

    def test_command_that_runs_ends_first(self):
        begun, go_on = threading.Event(), threading.Event()
        self.addCleanup(go_on.set)

        def helper(check):
            begun.set()
            go_on.wait()

        with self.leases.take(self.key) as mine:
            call = self.start_thread(mine.run, helper)
            begun.wait()
            stop = self.start_thread(self.leases.stop)
            self.wait_until(lambda: mine.is_lost)
            self.assertIn(lease.get_name(self.key, 0), self.get_names())
            go_on.set()
            call.result(60)
            stop.result(60)
            self.assertEqual([], self.get_names())

    def test_command_that_does_not_end(self):
        # It may outlive this process, so others wait for the time to pass.
        self.flags(images_sheepdog_timeout=1, group='libvirt')
        begun, go_on = threading.Event(), threading.Event()
        self.addCleanup(go_on.set)

        def helper(check):
            begun.set()
            go_on.wait()

        with self.leases.take(self.key) as mine:
            call = self.start_thread(mine.run, helper)
            begun.wait()
            self.leases.stop()
            self.assertEqual([lease.get_name(self.key, 0)], self.get_names())
            go_on.set()
            call.result(60)
