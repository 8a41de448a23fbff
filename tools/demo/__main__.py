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

"""Show a server living on Sheepdog, through Nova's API.

run_demo.sh starts this in the test bed; see there for what is around it.
"""

import argparse
import contextlib
import logging
import os
import sys
import time
import unittest

import actions
from nova.tests.functional.libvirt import sheepdog_testcase


class Step:
    """One line of the table at the end.

    :ivar words: what the step does
    :ivar seconds: how long it took
    :ivar outcome: 'PASS' when it did what it should, 'SKIP' where that cannot
        be seen on this cluster, else 'FAIL'
    :ivar told: what was measured in it, a line each
    """

    def __init__(self, words):
        self.words = words
        self.seconds = 0
        self.outcome = 'FAIL'
        self.told = []


# Of what failed: lines, and characters of each, that are shown.
LAST_LINES = 60
WIDTH = 300


def show(title, text):
    print('      %s' % title)
    for line in text.rstrip().splitlines()[-LAST_LINES:]:
        print('      | %s' % line.rstrip()[:WIDTH])
    sys.stdout.flush()


class Demo(sheepdog_testcase.SheepdogTestCase):
    """The demo: a test case, for the fixtures of Nova's functional tests."""

    # Not the instance's: testtools takes that back to what it was after a run.
    report = []

    def setUp(self):
        with self._step('start Nova (API, scheduler, conductor, compute, '
                        'placement)'):
            super().setUp()
        # What Nova says as it is stopped would go to the terminal.
        self.addCleanup(logging.disable, logging.INFO)

    @contextlib.contextmanager
    def _step(self, words):
        step = Step(words)
        self.report.append(step)
        print('  ... %s' % words, flush=True)
        started = time.monotonic()
        try:
            yield
            step.outcome = 'PASS'
        finally:
            step.seconds = time.monotonic() - started
            print('      %s in %.1f s' % (step.outcome, step.seconds),
                  flush=True)

    def runTest(self):
        for action in (self.upload, self.boot_server, self.show_vdis,
                       self.soft_reboot, self.hard_reboot, self.delete,
                       self.look_for_leftovers):
            with self._step(action.__doc__):
                action()

    def upload(self):
        """upload an image that counts its boots in a sector of its disk"""
        self.image = self.upload_image('qcow2')

    def boot_server(self):
        """boot a server from it, with a config drive; show its console"""
        self.server = self.boot(self.image, config_drive=True)
        show('console:', self.console(self.server))

    def show_vdis(self):
        """show its VDIs, and the targets by which QEMU reaches them"""
        status, out, err = self.sheepdog.run('vdi', 'list')
        self.assertEqual((0, b''), (status, err))
        lines = out.decode().splitlines()
        show('dog vdi list:', '\n'.join(
            lines[:1] + [line for line in lines if self.server['id'] in line]))
        show('targets:', '\n'.join(self.targets(self.server)))
        self.assertEqual({'disk', 'disk.config'},
                         set(self.vdis(self.server)))

    def soft_reboot(self):
        """reboot it (soft): the count goes up"""
        self.act(self.server, 'reboot', {'type': 'SOFT'}, 'ACTIVE')
        self.wait_for_boot(self.server, 2)
        show('console:', self.console(self.server))

    def hard_reboot(self):
        """reboot it (hard): the count goes up"""
        self.act(self.server, 'reboot', {'type': 'HARD'}, 'ACTIVE')
        self.wait_for_boot(self.server, 3)

    def delete(self):
        """delete it"""
        self._delete_server(self.server)

    def look_for_leftovers(self):
        """see that no VDI, target, file or guest of it is left"""
        self.assert_nothing_left(self.server)


def show_one_server():
    """Run the demo.

    :returns: list of Step, and list of (what failed, why)
    """
    result = unittest.TestResult()
    Demo('runTest').run(result)
    return Demo.report, [(str(test), words) for test, words in
                         result.errors + result.failures]


def main():
    parser = argparse.ArgumentParser(
        prog='tools/demo', description='What run_demo.sh runs in the test '
        'bed.')
    parser.add_argument(
        '--full', action='store_true', help='run the functional tests that '
        'the administrator\'s guide names for the server actions')
    full = parser.parse_args().full
    started = time.monotonic()
    steps, failures = actions.show(Step) if full else show_one_server()
    for what, words in failures:
        show('What failed: %s' % what, words)
    whole = Step('all of it')
    whole.seconds = time.monotonic() - started
    if not failures and all(step.outcome != 'FAIL' for step in steps):
        whole.outcome = 'PASS'
    print()
    for step in steps + [whole]:
        print('  %-66s %7.1f s  %s' % (step.words, step.seconds,
                                       step.outcome), flush=True)
        for words in step.told:
            print('    %s' % words, flush=True)
    # libvirt's event loop never ends by itself.
    os._exit(0 if whole.outcome == 'PASS' else 1)


if __name__ == '__main__':
    main()
