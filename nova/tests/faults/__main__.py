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

"""Run all cases, a sample of them, or one."""

import argparse
import collections
import itertools
import logging
import os
import random
import sys
import tempfile
import time
import traceback

from oslo_serialization import jsonutils

from nova import config
from nova.tests.faults import actions
from nova.tests.faults import cases
from nova.tests.faults import world

# Seconds between two lines that tell how far it is.
PROGRESS = 10
# A file system in memory is ten times as fast.
MEMORY = '/dev/shm'
# Failures of one kind, in one process, that are shown in full.
SHOWN = 3


def main():
    parser = argparse.ArgumentParser(
        prog='python -m nova.tests.faults', description=__doc__)
    parser.add_argument('--seconds', type=float, help='stop after so long; '
                        'the cases are taken in a random order then')
    parser.add_argument('--seed', type=int,
                        default=random.SystemRandom().randrange(10 ** 6),
                        help='of that order; without it one is made up')
    parser.add_argument('--case', help='the one case to run')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(),
                        help='number of processes')
    parser.add_argument('action', nargs='*', help='actions, all if none: ' +
                        ', '.join(actions.ACTIONS))
    options = parser.parse_args()
    options.action = options.action or list(actions.ACTIONS)
    logging.disable(logging.CRITICAL)
    if os.path.isdir(MEMORY):
        tempfile.tempdir = MEMORY
    config.parse_args(['nova'], default_config_files=[],
                      configure_db=False, init_rpc=False)
    with world.Stubs():
        try:
            if options.case:
                outcome, wrong = cases.try_case(
                    cases.Case.parse(options.case))
                print('%s: %s' % (options.case, wrong or outcome))
                return 1 if wrong else 0
            return run(options)
        finally:
            cases.close()


def choose(options):
    """Yield kinds and cases of them, all or as long as there is time."""
    kinds = cases.make_kinds(options.action)
    if options.seconds is None:
        for kind in kinds:
            for case in kind:
                yield kind, case
        return
    generator = random.Random(options.seed)
    end = time.monotonic() + options.seconds
    while True:
        # Each kind once before any comes again.
        for kind in generator.sample(kinds, len(kinds)):
            if time.monotonic() >= end:
                return
            yield kind, kind.choose(generator)


def try_share(options, number):
    """Try every so manieth case.

    :param number: of the first one
    :returns: list of actions, kinds, outcomes and how often, and a case that
        failed or None
    """
    told = time.monotonic()
    found = collections.Counter()
    again = None
    for kind, case in itertools.islice(choose(options), number, None,
                                       options.jobs):
        outcome, wrong = cases.try_case(case)
        if wrong:
            again = again or str(case)
            if found[kind.action, str(kind), 'WRONG'] < SHOWN:
                print('FAILED %s\n  %s' % (case, wrong), flush=True)
        found[kind.action, str(kind), 'WRONG' if wrong else outcome] += 1
        if time.monotonic() - told >= PROGRESS:
            told = time.monotonic()
            print('%d cases so far, the last one %s' % (
                sum(found.values()) * options.jobs, case), flush=True)
    return [(*key, count) for key, count in found.items()], again


def fork(function, *args):
    """Have a process call a function; return its pid and a file to read.

    What the function returns is written there as JSON.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, open(reading)
    status = 1
    try:
        with open(writing, 'w') as file:
            file.write(jsonutils.dumps(function(*args)))
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        # What else there is belongs to the parent.
        os._exit(status)


def run(options):
    """Try cases, tell of them, and return the exit status."""
    start = time.monotonic()
    for action in options.action:
        # Once, and not in each process.
        cases.count_calls(action)
    children = [fork(try_share, options, number)
                for number in range(options.jobs)]
    by_action = collections.defaultdict(collections.Counter)
    by_way = collections.defaultdict(collections.Counter)
    again = None
    for pid, file in children:
        with file:
            text = file.read()
        os.waitpid(pid, 0)
        found, failed = jsonutils.loads(text)
        again = again or failed
        for action, way, outcome, count in found:
            by_action[action][outcome] += count
            by_way[way][outcome] += count
    total = collections.Counter()
    for title, counters in ('action', by_action), ('what goes wrong', by_way):
        print('\n%-28s outcomes' % title)
        for name, counter in sorted(counters.items()):
            print('%-28s %s' % (name, ', '.join(
                '%d %s' % (count, outcome) for outcome, count in
                sorted(counter.items()))))
    for counter in by_action.values():
        total.update(counter)
    print('%d cases tried in %d s%s, %d failed' % (
        sum(total.values()), time.monotonic() - start,
        ', seed %d' % options.seed if options.seconds else '',
        total['WRONG']))
    if again:
        print('Run one of them again: python -m nova.tests.faults --case %s' %
              again)
    return 1 if again else 0


if __name__ == '__main__':
    sys.exit(main())
