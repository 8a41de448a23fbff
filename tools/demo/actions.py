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

"""The server actions of the administrator's guide, and what proves them."""

import contextlib
import csv
import importlib
import os
import pathlib
import re
import sys
import textwrap
import time
import unittest

TABLE = (pathlib.Path(__file__).resolve().parents[2] /
         'doc/source/server-actions.csv')
PACKAGE = 'nova.tests.functional.libvirt.'
# What Nova's test cases read: seconds that one may take, and whether to keep
# what it prints for a failure.
ENVIRONMENT = {'OS_TEST_TIMEOUT': '600', 'OS_STDOUT_CAPTURE': '1',
               'OS_STDERR_CAPTURE': '1'}


def read():
    """Read the table.

    :returns: list of (action, what happens, names of its tests)
    """
    with open(TABLE, newline='') as stream:
        return [(action.replace('``', ''), words.replace('``', ''),
                 re.findall(':test:`(.*?)`', tests))
                for action, words, tests in list(csv.reader(stream))[1:]]


def load(name):
    """Load a functional test, each of its variants.

    :param name: MODULE.CLASS.METHOD
    :returns: list of test cases
    """
    module, case, method = name.split('.')
    case = getattr(importlib.import_module(PACKAGE + module), case)
    # As ddt names them.
    variant = re.compile(re.escape(method) + r'(_\d+(_.*)?)?')
    return [case(found) for found in
            unittest.TestLoader().getTestCaseNames(case)
            if variant.fullmatch(found)]


@contextlib.contextmanager
def quiet():
    """Keep from the terminal what Nova and libvirt say between tests."""
    streams = {number: os.dup(number) for number in (1, 2)}
    sys.stdout.flush()
    try:
        with open(os.path.join(os.environ['TESTBED_LOGS'], 'demo.log'),
                  'ab') as log:
            for number in streams:
                os.dup2(log.fileno(), number)
        yield
    finally:
        sys.stdout.flush()
        for number, kept in streams.items():
            os.dup2(kept, number)
            os.close(kept)


class Runner:
    """Runs functional tests, each once.

    :ivar failures: list of (name of the test, words) so far
    """

    def __init__(self):
        self.failures = []
        self._outcomes = {}
        os.environ.update(ENVIRONMENT)

    def run(self, name):
        """Run a test, unless it has been run.

        :param name: MODULE.CLASS.METHOD
        :returns: 'PASS', 'FAIL' or 'SKIP', how many seconds it took, and
            a list of what it has measured
        """
        if name in self._outcomes:
            return self._outcomes[name]
        started = time.monotonic()
        result = unittest.TestResult()
        tests = load(name)
        with quiet():
            for test in tests:
                test.run(result)
        failures = result.errors + result.failures
        self.failures += [(test.id(), words) for test, words in failures]
        if failures or not tests:
            outcome = 'FAIL'
        else:
            outcome = 'SKIP' if result.skipped else 'PASS'
        told = [test.getDetails()['told'].as_text() for test in tests
                if 'told' in test.getDetails()]
        self._outcomes[name] = outcome, time.monotonic() - started, told
        return self._outcomes[name]


def show(step_type):
    """Run the tests of every action, and tell what becomes of it.

    :param step_type: makes a line of the final table of its words
    :returns: list of these, and list of (name of a test, why it failed)
    """
    runner, steps = Runner(), []
    for action, words, names in read():
        print('  ... %s' % action, flush=True)
        print(textwrap.fill(words, 72, initial_indent='      | ',
                            subsequent_indent='      | '), flush=True)
        step = step_type(action)
        outcomes = []
        for name in names:
            outcome, seconds, told = runner.run(name)
            step.seconds += seconds
            step.told += told
            outcomes.append(outcome)
            print('      %s %s' % (outcome, name.partition('.')[2]),
                  flush=True)
        step.outcome = next(
            (outcome for outcome in ('FAIL', 'SKIP', 'PASS')
             if outcome in outcomes), 'FAIL')
        steps.append(step)
    return steps, runner.failures
