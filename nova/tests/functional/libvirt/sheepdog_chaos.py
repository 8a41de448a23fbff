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

"""Many servers and users on two hosts, while all goes wrong that can.

Every disk counts the boots of its guest, so a guest that counts less than it
did runs on wrong data. In the end all servers are deleted, and the books have
to balance. The numbers that a seed gives are always the same; what happens at
the same moment is not.
"""

import argparse
import collections
import contextlib
import os
import random
import re
import sys
import threading
import time
import traceback
import unittest

from nova.tests.functional.api import client
from nova.tests.functional.libvirt import sheepdog_backend as backend
from nova.tests.functional.libvirt import sheepdog_testcase
from nova.tests.functional.libvirt import sheepdog_two_hosts

# Seconds that a user waits before an operator helps
PATIENCE = 120
# Seconds between two lines that tell how far it is
PROGRESS = 10
# What nova-compute may have more than one that has just started
MORE_DESCRIPTORS = 40
MORE_MEMORY = 1.5


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        prog='python -m nova.tests.functional.libvirt.sheepdog_chaos',
        description=__doc__)
    parser.add_argument('--seconds', type=int, default=600,
                        help='how long it goes on (default: %(default)s)')
    parser.add_argument('--servers', type=int, default=50,
                        help='how many (default: %(default)s)')
    parser.add_argument('--users', type=int, default=8,
                        help='how many act at once (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=random.SystemRandom().
                        randrange(10 ** 6),
                        help='for what is done; without it one is made up')
    return parser.parse_args(arguments)


class Server:
    """A server, as its user knows it.

    :ivar boots: number of boots that its root disk has counted at least
    :ivar history: list of what was asked for, and what became of it
    """

    def __init__(self, server_id):
        self.id = server_id
        self.boots = 0
        self.history = []


class User(threading.Thread):
    """Does one thing after the other to servers of its own.

    :ivar servers: list of the Servers
    """

    # What to do, by the status of a server
    ACTIONS = {
        'ACTIVE': ('reboot', 'stop', 'resize', 'rebuild', 'rescue', 'shelve',
                   'create_image', 'migrate', 'migrate_live', 'pause',
                   'delete'),
        'SHUTOFF': ('start', 'rebuild', 'resize', 'delete'),
        'PAUSED': ('unpause', 'delete'),
        'RESCUE': ('unrescue', 'delete'),
        'VERIFY_RESIZE': ('confirm', 'revert', 'delete'),
        'SHELVED_OFFLOADED': ('unshelve', 'delete'),
        'ERROR': ('reboot', 'reboot', 'delete'),
    }
    BODIES = {
        'reboot': {'reboot': {'type': 'HARD'}},
        'stop': {'os-stop': None},
        'start': {'os-start': None},
        'pause': {'pause': None},
        'unpause': {'unpause': None},
        'rescue': {'rescue': None},
        'unrescue': {'unrescue': None},
        'shelve': {'shelve': None},
        'unshelve': {'unshelve': None},
        'create_image': {'createImage': {'name': 'image'}},
        'migrate': {'migrate': None},
        'migrate_live': {'os-migrateLive': {
            'host': None, 'block_migration': 'auto'}},
        'confirm': {'confirmResize': None},
        'revert': {'revertResize': None},
    }

    def __init__(self, test, number, options):
        super().__init__(daemon=True, name='user %d' % number)
        self._test = test
        self._random = random.Random(options.seed * 1000 + number)
        self._share = options.servers // options.users
        self._end = time.monotonic() + options.seconds
        self.servers = []
        self.counts = collections.Counter()
        self.error = None

    def run(self):
        try:
            while time.monotonic() < self._end and not self._test.failed():
                self._step()
        except BaseException:
            self.error = traceback.format_exc()

    def _step(self):
        if len(self.servers) < self._share:
            self._create()
            return
        server = self._random.choice(self.servers)
        status = self.settle(server)
        actions = self.ACTIONS.get(status)
        if actions:
            self.act(server, self._random.choice(actions))
            self.settle(server)

    def _create(self):
        with self._trying('create'):
            self.servers.append(Server(self._test.post_server(
                self._test.image, self._random.choice(self._test.flavors),
                config_drive=self._random.random() < 0.5)['id']))
            self.settle(self.servers[-1])

    @contextlib.contextmanager
    def _trying(self, action):
        """Do what Nova may refuse at this moment."""
        try:
            yield
            self.counts[action] += 1
        except client.OpenStackApiException as e:
            if e.response.status_code not in (400, 404, 409, 500, 503):
                raise
            self.counts['refused'] += 1

    def act(self, server, action):
        api = self._test.api
        server.history.append(action)
        with self._trying(action):
            if action == 'delete':
                api.delete_server(server.id)
            elif action == 'resize':
                api.post_server_action(server.id, {'resize': {
                    'flavorRef': self._random.choice(self._test.flavors)}})
            elif action == 'rebuild':
                # From now on its disk is new, or the old one as it was.
                server.boots = 0
                api.post_server_action(server.id, {'rebuild': {
                    'imageRef': self._test.image}})
            else:
                api.post_server_action(server.id, self.BODIES[action])

    def settle(self, server):
        """Wait until nothing is under way, and look what the guest counts.

        :returns: its status, None if it is deleted
        """
        api = self._test.api
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                found = api.get_server(server.id)
            except client.OpenStackApiNotFoundException:
                self.servers.remove(server)
                return None
            status = found['status']
            if found['OS-EXT-STS:task_state'] is None and (
                    status not in ('BUILD', 'SHELVED')):
                break
            if time.monotonic() > deadline:
                # Its nova-compute has died on the way.
                with self._trying('reset by an operator'):
                    api.post_server_action(
                        server.id, {'os-resetState': {'state': 'error'}})
                deadline += PATIENCE
            self._test.stopping.wait(0.5)
        server.history.append(
            '%s: %s' % (status, found['fault']['message'])
            if status == 'ERROR' and 'fault' in found else status)
        if status == 'ACTIVE':
            self.look(server)
        return status

    def look(self, server):
        """Compare what the guest counts to what it did count.

        :returns: the number of boots, None if it has not told
        """
        try:
            console = self._test.api.post_server_action(
                server.id, {'os-getConsoleOutput': {}})['output']
        except client.OpenStackApiException:
            return None
        boots = re.findall(r'guest boot (\d+)\n', console)
        if not boots:
            return None
        boots = int(boots[-1])
        if boots < server.boots:
            self._test.fail('Server %s has counted %d boots, and %d before' % (
                server.id, boots, server.boots))
        server.boots = boots
        return boots


class Gremlin(threading.Thread):
    """Has things go wrong until it is told to stop."""

    DOG = 'vdi *', 'vdi delete', 'vdi clone', 'vdi snapshot', 'tgtadm *', '*'

    def __init__(self, test, options):
        super().__init__(daemon=True, name='gremlin')
        self._test = test
        self._random = random.Random(options.seed)
        self._things = [self.kill_compute] + [
            lambda name=name: self.kill_daemon(name)
            for name in ('tgtd', 'libvirtd', 'qemu-img')]
        if test.is_simulated:
            self._things += [self.refuse] * 4 + [
                self.fail, self.hang, self.delay, self.drop, self.kill_client,
                self.kill_cluster]
        self.counts = collections.Counter()
        self.error = None
        self.stopped = threading.Event()

    def run(self):
        try:
            while not self.stopped.wait(self._random.uniform(1, 5)):
                self._random.choice(self._things)()
        except BaseException:
            self.error = traceback.format_exc()

    def _fault(self, action, **fields):
        self._test.sheepdog.fault(
            action, subcommand=self._random.choice(self.DOG),
            skip=self._random.randrange(4), **fields)
        self.counts[action] += 1

    def refuse(self):
        self._fault('error', times=self._random.randrange(1, 4))

    def fail(self):
        self._fault('reply', status=1, err=b'failed to read a response\n',
                    when=self._random.choice(('before', 'after')))

    def hang(self):
        self._fault('hang', times=2, hole=True)
        # Long enough for dog to run into its time limit
        self.stopped.wait(self._test.OPTIONS['images_sheepdog_timeout'] * 1.5)
        self._test.sheepdog.clear_faults()

    def delay(self):
        self._fault('delay', seconds=3, times=3)

    def drop(self):
        self._test.sheepdog.fault('drop', subcommand='tgt', times=2)
        self.counts['drop'] += 1

    def kill_client(self):
        self._fault('kill-client',
                    when=self._random.choice(('before', 'after')))

    def kill_cluster(self):
        self._test.sheepdog.kill()
        self.stopped.wait(self._random.uniform(0, 4))
        self._test.sheepdog.restart()
        self.counts['cluster killed'] += 1

    def kill_compute(self):
        host = self._random.choice(list(self._test.hosts.values()))
        host.kill()
        self.stopped.wait(self._random.uniform(0, 4))
        self._test.start_computes(host)
        self.counts['nova-compute killed'] += 1

    def kill_daemon(self, program):
        self._test.testbed.ask(
            'signal', self._random.choice(list(self._test.hosts)), 'SIGKILL',
            program)
        self.counts[program + ' killed'] += 1


class ChaosTestCase(sheepdog_two_hosts.SheepdogHostsTestCase):

    OPTIONS = {'images_sheepdog_timeout': 8}
    options = parse([])
    # A real cluster is troubled from outside, see tools/suites.py.
    is_simulated = 'SHEEPDOG_HOST' not in os.environ

    def failed(self):
        return [thread.error for thread in self.threads if thread.error]

    def show(self, words):
        print('chaos: ' + words, file=sys.__stderr__, flush=True)

    def check_failed(self):
        for error in self.failed():
            self.fail('%s\n%s' % (self.title, error))

    def test_books_balance(self):
        self.title = 'seed %d, %d servers, %d users' % (
            self.options.seed, self.options.servers, self.options.users)
        self.show(self.title)
        self.flags(instances=-1, cores=-1, ram=-1, group='quota')
        self.stopping = threading.Event()
        self.addCleanup(self.stopping.set)
        self.image = self.upload_image()
        self.flavors = [self.make_flavor(swap=8),
                        self.make_flavor(disk=2, swap=16)]
        self.users = [User(self, number, self.options)
                      for number in range(self.options.users)]
        gremlin = Gremlin(self, self.options)
        self.threads = [*self.users, gremlin]
        for thread in self.threads:
            thread.start()
        start = time.monotonic()
        for user in self.users:
            while user.is_alive():
                user.join(PROGRESS)
                self.show('%d s: %s' % (
                    time.monotonic() - start, self.tell_counts(self.threads)))
        gremlin.stopped.set()
        gremlin.join()
        self.check_failed()

        if self.is_simulated:
            self.sheepdog.clear_faults()
        self.show('nothing goes wrong any more: %s' % self.tell_counts(
            self.threads))
        self.in_parallel(self.have_it_right)
        self.in_parallel(self.delete)
        self.check_books()

    @staticmethod
    def tell_counts(threads):
        total = sum((thread.counts for thread in threads),
                    collections.Counter())
        return ', '.join('%d %s' % (count, name)
                         for name, count in sorted(total.items()))

    def in_parallel(self, function):
        """Call a function for all servers of each user at once."""
        def call(user):
            try:
                for server in list(user.servers):
                    function(user, server)
            except BaseException:
                user.error = traceback.format_exc()

        threads = [threading.Thread(target=call, args=(user,))
                   for user in self.users]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.check_failed()

    def have_it_right(self, user, server):
        """Have a server run on what its disks should hold, or not at all."""
        status = user.settle(server)
        if status == 'RESCUE':
            user.act(server, 'unrescue')
        elif status == 'VERIFY_RESIZE':
            user.act(server, 'confirm')
        elif status == 'SHELVED_OFFLOADED':
            user.act(server, 'unshelve')
        user.settle(server)
        before = server.boots
        user.act(server, 'reboot')
        if user.settle(server) != 'ACTIVE':
            self.show('server %s does not start: %s' % (
                server.id, ', '.join(server.history)))
            return
        try:
            self.wait_until(lambda: self.read_boots(server) > before)
        except TimeoutError:
            self.fail('Server %s has counted %d boots, and %d before; %s' % (
                server.id, self.read_boots(server), before,
                ', '.join(server.history)))

    def read_boots(self, server):
        """Return how many boots the root disk of a server has counted."""
        status, out, err = self.sheepdog.run(
            'vdi', 'read', server.id + '_disk', '512', '2')
        self.assertEqual((0, b''), (status, err))
        return int.from_bytes(out, 'little')

    def delete(self, user, server):
        def is_gone():
            user.act(server, 'delete')
            return user.settle(server) is None

        self.wait_until(is_gone)

    def get_left(self):
        """Return what is there, bases aside, that somebody has left."""
        status, out, err = self.sheepdog.run('vdi', 'list', '-r')
        self.assertEqual((0, b''), (status, err))
        names = {line.split()[1] for line in out.decode().splitlines()}
        left = {name for name in names
                if not re.search('_(base|record)[.]', name) and
                name != backend.AGEING_LEASE}
        for host in self.hosts.values():
            left.update(host.control.targets())
            left.update(host.control.all_files())
            left.update(host.control.states())
        return left

    def check_books(self):
        worn = {host: host.control.usage() for host in self.hosts.values()}
        # Some things that are left go at the next start.
        for host in worn:
            host.kill()
        self.start_computes(*worn)

        def is_clean():
            for host in worn:
                host.control.run_image_cache_pass()
            return not self.get_left()

        try:
            self.wait_until(is_clean)
        except TimeoutError:
            self.fail('%s: left: %s' % (self.title, sorted(self.get_left())))
        for host, before in worn.items():
            self.run_one(host)
            fresh = host.control.usage()
            self.show('%s: %s, and when it was started again %s' % (
                host.name, before, fresh))
            self.assertLessEqual(before['descriptors'],
                                 fresh['descriptors'] + MORE_DESCRIPTORS)
            self.assertLessEqual(before['memory'],
                                 fresh['memory'] * MORE_MEMORY)
        self.show('the books balance')

    def run_one(self, host):
        server = self._wait_for_state_change(
            self.post_server(self.image, host=host.name), 'ACTIVE')
        self._delete_server(server)


def load_tests(loader, tests, _pattern):
    return loader.suiteClass() if sheepdog_testcase.IS_NATIVE else tests


def main():
    ChaosTestCase.options = parse()
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(ChaosTestCase)
    return not unittest.TextTestRunner().run(suite).wasSuccessful()


if __name__ == '__main__':
    sys.exit(main())
