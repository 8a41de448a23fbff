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

"""All cases, how each is run, and what must be so afterwards.

A case is written ``ACTION:WAY@NUMBER[+WAY@NUMBER][..]:THEN``: the call of
that number goes wrong in that way (with ``..`` all that follow as well), and
then the user asks for THEN.
"""

import contextlib
import functools
import os
import re
import traceback

from nova.compute import vm_states
import nova.conf
from nova import exception
from nova.tests.faults import actions
from nova.tests.faults import ways
from nova.tests.faults import world as worlds
from nova.virt.libvirt.sheepdog import images
from nova.virt.libvirt.sheepdog import lease
from nova.virt.libvirt import utils as libvirt_utils

CONF = nova.conf.CONF

# What a message must not hold that a tenant may read.
IMAGE = '11111111-1111-1111-1111-111111111111'
FOREIGN_IMAGE = '99999999-9999-9999-9999-999999999999'

# Calls that a first failure may add to those of an action, at least.
MORE_CALLS = 6
SECRETS = re.compile(r'LC_ALL|--kill-after|-a 127|--lld|--params|Traceback')


class Case:
    """One case.

    :ivar action: name of the action
    :ivar faults: list of (number of a call, way)
    :ivar lasts: whether all calls after the first go wrong as well
    :ivar then: function that the user asks for when it has failed
    """

    def __init__(self, action, faults, then, lasts=False):
        self.action = action
        self.faults = faults
        self.lasts = lasts
        self.then = then

    def __str__(self):
        return '%s:%s%s:%s' % (
            self.action, '+'.join('%s@%d' % (way.__name__, number)
                                  for number, way in self.faults),
            '..' * self.lasts, self.then.__name__)

    @classmethod
    def parse(cls, text):
        action, faults, then = text.split(':')
        return cls(action, [
            (int(number), getattr(ways, way)) for way, number in (
                fault.split('@') for fault in
                faults.rstrip('.').split('+'))],
            getattr(actions, then), faults.endswith('..'))


_prepared = []


@functools.lru_cache(maxsize=None)
def _prepare(action):
    world = worlds.World()
    _prepared.append(world)
    world.glance[FOREIGN_IMAGE] = b'foreign image'
    foreign = actions.Server(world, FOREIGN_IMAGE)
    actions.have_server(foreign)
    world.glance[IMAGE] = b'image'
    server = actions.Server(world, IMAGE)
    before = actions.ACTIONS[action][0]
    if before:
        before(server)
    return world, server, foreign


def close():
    """Put away what cases begin with."""
    for world in _prepared:
        world.close()


def prepare(action):
    """Return a World and a Server that the action can begin with."""
    world, server, foreign = _prepare(action)
    world = worlds.World(world)
    world.foreign = foreign.copy(world)
    return world, server.copy(world)


@functools.lru_cache(maxsize=None)
def count_calls(action):
    """Tell how many calls there are if nothing goes wrong."""
    world, server = prepare(action)
    try:
        world.begin()
        actions.ACTIONS[action][1](server)
        calls = len(world.calls)
        finish(world, server)
        return calls
    finally:
        world.close()


def check_error(error):
    """:raises: worlds.Wrong if no tenant may read what it says"""
    text = str(error)
    try:
        text.encode()
    except UnicodeError:
        raise worlds.Wrong('no UTF-8: %r' % text)
    if '\n' in text or SECRETS.search(text):
        raise worlds.Wrong('not fit for a tenant: %r' % text)


def attempt(world, server, function):
    """Do what the user asks for; return whether that succeeded."""
    world.begin()
    try:
        function(server)
        return True
    except exception.NovaException as e:
        check_error(e)
        server.set_state(vm_states.ERROR
                         if server.instance.vm_state !=
                         vm_states.SHELVED_OFFLOADED else
                         vm_states.SHELVED_OFFLOADED)
        return False


def run(case):
    """Run a case.

    :returns: what became of the action
    :raises: worlds.Wrong
    """
    world, server = prepare(case.action)
    try:
        world.begin({} if case.lasts else dict(case.faults),
                    case.faults[0] if case.lasts else None)
        act = actions.ACTIONS[case.action][1]
        outcome = 'succeeded'
        try:
            act(server)
        except exception.NovaException as e:
            outcome = 'failed'
            check_error(e)
        except worlds.Dead:
            outcome = 'died'
            world.begin()
            world.start(world.host.name)
        world.begin()
        if outcome != 'succeeded':
            if server.instance.vm_state != vm_states.SHELVED_OFFLOADED:
                server.set_state(vm_states.ERROR)
            server.instance.task_state = None
            if attempt(world, server, case.then):
                outcome += ' and was mended'
        finish(world, server)
        return outcome
    finally:
        world.close()


def finish(world, server):
    """Have the server deleted, and see what is left.

    :raises: worlds.Wrong
    """
    domain = world.hosts[worlds.HOSTS[1]].domains.get(server.instance.uuid)
    if domain and not server.instance.deleted:
        # The watcher looks again, and an operator finds the guest.
        actions.receive(server)
        if not domain.resume.called:
            raise worlds.Wrong('a guest has come and is still paused')
    if server.made:
        # Of what the snapshot has left as its base
        world.go_to(worlds.HOSTS[0])
        world.begin()
        actions.boot_other(world, server.made)
    if not server.instance.deleted:
        if server.instance.uuid in world.hosts[
                server.instance.host or worlds.HOSTS[0]].guests:
            world.go_to(server.instance.host)
            guest = world.host.guests[server.instance.uuid]
            if 'rescue' not in guest:
                server.check_guest()
        try:
            actions.delete(server)
        except exception.NovaException as e:
            raise worlds.Wrong('it cannot be deleted: %s' % e)
        server.instance.deleted = True
        server.instance.host = None
    for name in worlds.HOSTS:
        world.start(name)
    # Until a base image is old that is of no use, or a lease.
    for names in worlds.HOSTS[:1], worlds.HOSTS, worlds.HOSTS, None:
        if names is None:
            return check_books(world)
        world.clock.sleep(2 * 86400)
        for name in names:
            world.go_to(name)
            actions.cache_pass(world)
        with contextlib.suppress(worlds.Wrong):
            return check_books(world)


def check_books(world):
    """See that nothing is left but what is somebody else's.

    :raises: worlds.Wrong
    """
    foreign = {(world.foreign.vdi(name), '') for name in actions.NAMES}
    ageing = (lease.get_name(images.AGEING, 0), '')
    found = world.list()
    left = found - foreign - {ageing}
    if left:
        raise worlds.Wrong('left in the cluster: %s' % sorted(left))
    if foreign - found:
        raise worlds.Wrong('VDIs of somebody else are gone: %s' %
                           sorted(foreign - found))
    world.go_to(worlds.HOSTS[0])
    world.foreign.check_guest()
    ours = {libvirt_utils.get_sheepdog_iqn(vdi) for vdi, _tag in foreign}
    for host in world.hosts.values():
        targets = {number: target.iqn for number, target in
                   host.tgtd.targets.items()}
        for number, iqn in worlds.FOREIGN_TARGETS.items():
            if targets.pop(number, None) != iqn:
                raise worlds.Wrong('target %s of others is gone' % iqn)
        if set(targets.values()) - ours:
            raise worlds.Wrong('left in tgtd: %s' % sorted(
                set(targets.values()) - ours))
        ours = set()
    files = [os.path.join(path, name) for path, _directories, names in
             os.walk(world.directory) for name in names
             if '/locks' not in path]
    if files:
        raise worlds.Wrong('left files: %s' % sorted(files))


class Kind:
    """Cases of one action that differ in the numbers of calls alone.

    :ivar action: name of the action
    :ivar ways: one or two ways
    :ivar lasts: as of a Case
    """

    def __init__(self, action, its_ways, lasts=False):
        self.action = action
        self.ways = its_ways
        self.lasts = lasts

    def __str__(self):
        return '+'.join(way.__name__ for way in self.ways) + '..' * self.lasts

    def _case(self, numbers, then):
        return Case(self.action, list(zip(numbers, self.ways)), then,
                    self.lasts)

    def __iter__(self):
        """Yield all of them."""
        calls = count_calls(self.action)
        follow = actions.ACTIONS[self.action][2]
        for first in range(calls):
            if len(self.ways) == 1:
                for then in follow:
                    yield self._case((first,), then)
                continue
            # A failure makes for calls of its own.
            for second in range(first + 1, calls + MORE_CALLS):
                # One follows each pair, in turn: all would take a day.
                yield self._case((first, second), follow[
                    (first + second) % len(follow)])

    def choose(self, generator):
        """Return any of them.

        :param generator: a random.Random
        """
        calls = count_calls(self.action)
        numbers = [generator.randrange(calls)]
        if len(self.ways) == 2:
            numbers.append(generator.randrange(numbers[0] + 1,
                                               calls + MORE_CALLS))
        return self._case(numbers, generator.choice(
            actions.ACTIONS[self.action][2]))


def make_kinds(selected):
    """Return all kinds of cases of some actions."""
    kinds = []
    for action in selected:
        kinds += [Kind(action, (way,)) for way in ways.ONCE + ways.DEATHS]
        kinds += [Kind(action, (way,), True) for way in ways.LASTING]
    for action in selected:
        if action in actions.PAIRED:
            kinds += [Kind(action, (way, other)) for way in ways.OF_PAIRS
                      for other in ways.OF_PAIRS]
    return kinds


def try_case(case):
    """:returns: outcome, and what is wrong, '' if nothing is"""
    try:
        return run(case), ''
    except worlds.Wrong as e:
        return None, str(e)
    except Exception:
        return None, traceback.format_exc()
