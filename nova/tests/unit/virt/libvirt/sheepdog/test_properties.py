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

"""Properties that hold whatever commands print, and whatever root is asked."""

import os
import re
import string
import sys
from unittest import mock

import fixtures
import hypothesis
from hypothesis import strategies
from oslo_concurrency import processutils
from oslo_rootwrap import wrapper

from nova import exception
from nova import test
from nova.virt.libvirt.sheepdog import disks
from nova.virt.libvirt.sheepdog import images
from nova.virt.libvirt.sheepdog import lease
from nova.virt.libvirt.sheepdog import rootwrap
from nova.virt.libvirt.sheepdog import targets
from nova.virt.libvirt import utils as libvirt_utils

OWNER = '7b6d2f63-5a58-4b3a-9d4e-1f6b1a0c2d3e'
TOKEN = '0123456789abcdef0123456789abcdef'
VDI = OWNER + '_disk'
IQN = libvirt_utils.get_sheepdog_iqn(VDI)
# What the commands print if nothing is wrong.
PRINTED = [
    'Cluster status: running, auto-recovery enabled\n'
    'Cluster store: plain with 2 redundancy policy\n',
    'Cluster store: plain with 4:2 redundancy policy\n',
    '0 127.0.0.1:7000 128 0\n1 127.0.0.1:7001 0 0\n',
    '127.0.0.1:7000 0 80861020160 4370432 80856649728 0% /sheep\n',
    '= %s 0 4194304 0 0 1700000000 7c2b25 2  22\n'
    's %s 1 4194304 0 0 1700000000 7c2b25 2 nova-base 22\n' % (VDI, VDI),
    'Index       VID\n00000009   6d2d91\n',
    '{"kept": ["disk"], "reverting": true}', '8388608 1700000000',
    TOKEN + ' 7 70 host',
    'Target 1000000000: %s\n    System information:\n' % IQN,
    'Backing stores:\n    sheepdog\n    rdwr\n',
    'failed to read a response\n', "Attribute 'nova' not found\n",
    'Failed to open VDI %s: No VDI found\n' % VDI]
FAILURES = exception.SheepdogError, exception.TgtError

settings = hypothesis.settings(
    max_examples=300, deadline=None, derandomize=True, database=None)


@strategies.composite
def outputs(draw):
    """What a command might print: any text, or what it prints but garbled."""
    # As oslo.concurrency decodes it: surrogates stand for bytes.
    anything = strategies.text(
        strategies.characters() | strategies.sampled_from(
            string.printable + '\0\udcff\x85\u2028'))
    text = draw(strategies.sampled_from(PRINTED))
    for _change in range(draw(strategies.integers(0, 3))):
        start, end = sorted(draw(strategies.tuples(*[
            strategies.integers(0, len(text))] * 2)))
        text = text[:start] + draw(anything | strategies.sampled_from(
            ['', ' ', '\n', '-1', '0', ':', '9' * 400])) + text[end:]
    return draw(strategies.just(text) | anything | strategies.sampled_from(
        ['', '0', '-1 -1', '[]', 'null', '"kept"', '{"kept": 5}']))


class OutputTestCase(test.NoDBTestCase):
    """Whatever dog and tgtadm print, callers see two kinds of exceptions."""

    def setUp(self):
        super().setUp()
        # Thousands of warnings
        self.useFixture(fixtures.MonkeyPatch(
            'nova.virt.libvirt.utils.LOG', mock.Mock()))
        self.flags(images_sheepdog_host='127.0.0.1', group='libvirt')
        self.useFixture(fixtures.MonkeyPatch(
            'nova.virt.libvirt.sheepdog.targets.check_gateway', mock.Mock()))

    def _call(self, function, out, err, status):
        """Call a function that runs commands with that outcome.

        :returns: what it returns, None if it raises what it may
        """
        failure = processutils.ProcessExecutionError(
            stdout=out, stderr=err, exit_code=status)

        def execute(_runner, _command, _data):
            if status:
                raise failure
            return out, err

        with mock.patch.object(rootwrap.Runner, '_execute', execute):
            try:
                return function()
            except FAILURES as e:
                # It is stored as the fault of a server.
                str(e).encode()
                self.assertNotIn('\n', str(e))
                return None

    STATUSES = strategies.sampled_from([0, 1, 2, 3, 5, 22, 64, 99, 124, 137])

    @settings
    @hypothesis.given(outputs(), outputs(), STATUSES)
    def test_whatever_dog_prints(self, out, err, status):
        base = images.Base(mock.Mock(noted={}), OWNER, TOKEN)
        for function in (
                libvirt_utils.get_sheepdog_redundancy,
                libvirt_utils.get_sheepdog_space,
                lambda: libvirt_utils.sheepdog_vdi_exists(VDI),
                lambda: libvirt_utils.read_sheepdog_record(VDI),
                lambda: libvirt_utils.write_sheepdog_record(VDI, 'text'),
                lambda: libvirt_utils.create_sheepdog_vdi(VDI, 1),
                lambda: libvirt_utils.resize_sheepdog_vdi(VDI, 1),
                lambda: libvirt_utils.snapshot_sheepdog_vdi(VDI, 'tag'),
                lambda: libvirt_utils.clone_sheepdog_vdi(VDI, 'tag', VDI),
                lambda: libvirt_utils.delete_sheepdog_vdi(VDI, 'tag'),
                lambda: libvirt_utils.remove_sheepdog_vdi(VDI, 'tag'),
                lambda: disks.State(OWNER), lambda: base.is_unused(1),
                lambda: lease.Record.read(VDI)):
            self._call(function, out, err, status)
        for vdi in self._call(
                libvirt_utils.list_sheepdog_vdis, out, err, status) or ():
            self.assertIsInstance(vdi.name, str)
        for index in self._call(lambda: libvirt_utils.get_sheepdog_objects(
                VDI), out, err, status) or ():
            self.assertGreaterEqual(index, 0)

    @settings
    @hypothesis.given(outputs(), outputs(), STATUSES)
    def test_whatever_tgtadm_prints(self, out, err, status):
        for iqn, number in (self._call(
                targets.list_targets, out, err, status) or {}).items():
            self.assertTrue(iqn.startswith(libvirt_utils.SHEEPDOG_IQN))
            self.assertIsInstance(number, int)
        for function in (targets.check,
                         lambda: targets.make_target(IQN, VDI),
                         lambda: targets.Targets('iscsi').unexport(IQN)):
            self._call(function, out, err, status)


class NameTestCase(test.NoDBTestCase):

    @settings
    @hypothesis.given(outputs() | strategies.from_regex(
        r'[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}_[a-z.0-9]*'))
    def test_what_is_taken_for_a_vdi_is_one(self, name):
        parts = libvirt_utils.split_sheepdog_vdi(name)
        if parts:
            owner, kind, rest = parts
            self.assertEqual(name, libvirt_utils.get_sheepdog_vdi(
                owner, kind + (rest and '.' + rest)))
            self.assertRegex(owner, r'\A[0-9a-f-]{36}\Z')


class FiltersTestCase(test.NoDBTestCase):
    """Root runs nothing but what Nova asks, on nothing but what is Nova's."""

    # Words that Nova never changes.
    WORDS = set(
        'env LC_ALL=C timeout --kill-after=5 dog cluster info -v -a -p node '
        'list -r md vdi getattr nova read write create -z resize object map '
        'snapshot -s clone delete nova-base nova-snapshot nova-resize tgtadm '
        '--lld iscsi --mode system --op show target new --tid -T bind -I '
        '--force logicalunit --lun --bstype sheepdog -b update --params '
        'localhost'.split()) | {'PATH=' + rootwrap.ROOT_PATH}

    def setUp(self):
        super().setUp()
        self.filters = wrapper.load_filters(
            [os.path.join(sys.prefix, 'etc/nova/rootwrap.d')])
        self.filters = [each for each in self.filters
                        if each.name.startswith('sheepdog-')]
        self.calls = []

        def execute(_runner, command, _data):
            self.calls.append(list(command))
            return ('0 127.0.0.1:7000 128 0' if 'node' in command and
                    'list' in command else
                    '127.0.0.1:7000 0 1 2 3' if 'md' in command else
                    'Cluster store: plain with 2 redundancy policy'
                    if 'cluster' in command else ''), ''

        with mock.patch.object(rootwrap.Runner, '_execute', execute):
            self._call_all()
        self.commands = strategies.sampled_from(self.calls)
        self.words = strategies.sampled_from(
            sorted(self.WORDS) + sum(self.calls, []) +
            ['', '..', '-h', '/bin/sh', 'volume-1', '7', '/dev/sda',
             'iqn.2010-10.org.openstack:volume-1', 'tcp:127.0.0.1:7000:x'])

    @staticmethod
    def _call_all():
        base = '%s_base.%s' % (OWNER, TOKEN)
        scratch = OWNER + '_scratch'
        libvirt_utils.get_sheepdog_space()
        libvirt_utils.list_sheepdog_vdis()
        for vdi in VDI, OWNER + '_disk.eph12.rescue', base, scratch:
            libvirt_utils.sheepdog_vdi_exists(vdi)
            libvirt_utils.delete_sheepdog_vdi(vdi)
        libvirt_utils.read_sheepdog_record(OWNER + '_state')
        libvirt_utils.write_sheepdog_record(OWNER + '_lease.3', 'text')
        libvirt_utils.create_sheepdog_vdi(scratch, 4096)
        libvirt_utils.resize_sheepdog_vdi(VDI, 4096)
        libvirt_utils.snapshot_sheepdog_vdi(VDI, 'nova-resize')
        libvirt_utils.clone_sheepdog_vdi(base, 'nova-base', VDI)
        libvirt_utils.delete_sheepdog_vdi(base, 'nova-base')
        libvirt_utils.get_sheepdog_objects(scratch)
        targets.list_targets()
        targets.make_target(IQN, VDI, targets.FIRST_NUMBER)

    def _is_allowed(self, command):
        return any(candidate.match(command) for candidate in self.filters)

    def _is_of_nova(self, word):
        """Tell whether a word that Nova changes may be in a command."""
        if re.fullmatch(r'[0-9]+|[0-9.]+', word):
            return True
        if word.startswith('tcp:'):
            word = re.sub(r'\Atcp:(localhost|[0-9.]+):[0-9]+:', '', word)
        if word.startswith('online=0,path=tcp:'):
            return self._is_of_nova(word.partition('path=')[2])
        if word.startswith(libvirt_utils.SHEEPDOG_IQN):
            word = word[len(libvirt_utils.SHEEPDOG_IQN):].replace('.', '_', 1)
        return (libvirt_utils.split_sheepdog_vdi(word) is not None or
                re.fullmatch(r'scsi_id=[0-9a-f]{32},scsi_sn=[0-9a-f]{32}',
                             word) is not None)

    def test_what_nova_asks_is_allowed(self):
        self.assertEqual([], [call for call in self.calls
                              if not self._is_allowed(call)])

    def _change(self, draw, word):
        """Return the words to have in the place of one."""
        start = draw(strategies.integers(0, len(word)))
        left, right = word[:start], word[start:]
        # Each is called if it is chosen: draws are what takes time.
        return draw(strategies.sampled_from([
            lambda: [],
            lambda: [word, word],
            lambda: [draw(self.words)],
            lambda: [word, draw(self.words)],
            lambda: [left + draw(strategies.text(max_size=3)) + right],
            lambda: [left + draw(strategies.sampled_from(
                ['\n', ' ', ',', ';', '\0', '.', '/', '_', '0'])) + right],
            lambda: [left + right[1:]]]))()

    @hypothesis.settings(settings, max_examples=3000)
    @hypothesis.given(strategies.data())
    def test_what_comes_close_is_of_nova(self, data):
        command = list(data.draw(self.commands))
        for _change in range(data.draw(strategies.integers(1, 3))):
            place = data.draw(strategies.integers(0, len(command) - 1))
            command[place:place + 1] = self._change(data.draw, command[place])
            if not command:
                return
        if not self._is_allowed(command):
            return
        # Of the first word rootwrap runs what the filter names.
        self.assertEqual([], [word for word in command[1:]
                              if word not in self.WORDS and
                              not self._is_of_nova(word)], command)
        if '--tid' in command:
            number = int(command[command.index('--tid') + 1])
            self.assertTrue(targets.FIRST_NUMBER <= number <
                            2 * targets.FIRST_NUMBER)
