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

import multiprocessing
import os
import select
import shutil
import subprocess
from unittest import mock

import ddt
import fixtures
from oslo_utils import units

from nova import exception
from nova import test
from nova.tests.unit.virt.libvirt.sheepdog import base
from nova.virt.libvirt.sheepdog import targets
from nova.virt.libvirt.sheepdog import transfer
from nova.virt.libvirt import utils as libvirt_utils

OWNER = '7b6d2f63-5a58-4b3a-9d4e-1f6b1a0c2d3e'
SCRATCH = OWNER + '_scratch'


class ProgressTestCase(test.NoDBTestCase):

    def test_progress(self):
        now = 0.0
        self.useFixture(fixtures.MonkeyPatch(
            'nova.virt.libvirt.sheepdog.transfer.time',
            mock.Mock(monotonic=lambda: now)))
        progress = transfer.Progress('Import', 30 * units.Mi)
        done = []
        for now in 0.0, 4.0, 5.0, 6.0, 10.0:
            if now in (0.0, 10.0):
                progress.begin(10 * units.Mi)
            progress.show(now % 10 / 10)
            done.append(progress.done // units.Mi)
        self.assertEqual([0, 4, 5, 6, 10], done)
        self.assertEqual(
            ['Import: 5 of 30 MiB, 1.0 MiB/s, 25 s left',
             'Import: 10 of 30 MiB, 1.0 MiB/s, 20 s left'],
            [line.partition('] ')[2] for line in
             self.stdlog.logger.output.splitlines() if 'Import' in line])


class _TransferTestCase(base.SheepdogTestMixin, test.NoDBTestCase):

    IS_REAL = True

    def setUp(self):
        super().setUp()
        self.start_cluster()
        self.transfer = self.make_transfer()
        self.directory = self.useFixture(fixtures.TempDir())
        # A comma would end an option of qemu-img.
        self.path = self.directory.join('a,b')

    def make_file(self, size, *pieces):
        """Make a sparse file.

        :param pieces: pairs of an offset and data
        """
        with open(self.path, 'wb') as file:
            file.truncate(size)
            for offset, data in pieces:
                file.seek(offset)
                file.write(data)

    def make_vdi(self, size, *offsets):
        libvirt_utils.create_sheepdog_vdi(SCRATCH, size)
        for offset in offsets:
            self.assertEqual((0, b'', b''), self.sheepdog.run(
                'vdi', 'write', SCRATCH, str(offset), '1', stdin=b'x'))

    def record_qemu_img(self, before=''):
        """Have qemu-img keep a list of its calls.

        :param before: what a shell does first
        :returns: function that lists the arguments of each call so far
        """
        path = self.directory.join('calls')
        open(path, 'w').close()
        real = shutil.which('qemu-img')
        self.install('qemu-img', """
            echo "$*" >>'%s'
            %s
            exec '%s' "$@" """ % (path, before, real))

        def get_calls():
            with open(path) as calls:
                return calls.read().splitlines()

        return get_calls

    def assert_nothing_is_left(self):
        self.assertEqual({}, targets.list_targets())


class CopyInTestCase(_TransferTestCase):

    def test_data(self):
        data = b'A' * 4096
        self.make_file(200 * units.Mi, (0, data), (100 * units.Mi, data))
        self.make_vdi(200 * units.Mi)
        begun = []
        self.sheepdog.reset_stats()
        self.transfer.copy_in(self.path, SCRATCH, begun)
        for offset in 0, 100 * units.Mi:
            self.assertEqual(data, self.dog(
                'vdi', 'read', SCRATCH, str(offset), '4096'))
        # What is zero was neither written nor read.
        self.assertEqual([0, 25],
                         libvirt_utils.get_sheepdog_objects(SCRATCH))
        self.assertLess(self.sheepdog.stats()['bytes_written'], units.Mi)
        self.assertEqual(os.stat(self.path).st_blocks * 512, begun[0].done)
        self.assert_nothing_is_left()

    def test_progress(self):
        self.patch_object(transfer, 'PROGRESS', new=0)
        self.make_file(8 * units.Mi, (0, b'A' * 8 * units.Mi))
        self.make_vdi(8 * units.Mi)
        self.transfer.copy_in(self.path, SCRATCH)
        self.assertIn('Import into VDI %s: 8 of 8 MiB' % SCRATCH,
                      self.stdlog.logger.output)

    def test_native(self):
        self.transfer = transfer.Transfer(targets.Targets('native'))
        get_calls = self.record_qemu_img('exit 0')
        self.make_file(units.Mi)
        self.transfer.copy_in(self.path, SCRATCH)
        call, = get_calls()
        self.assertTrue(call.endswith(
            ' driver=raw,file.filename=%s driver=raw,file.driver=sheepdog,'
            'file.server.type=inet,file.server.host=127.0.0.1,'
            'file.server.port=%d,file.vdi=%s' % (
                self.path.replace(',', ',,'), self.sheepdog.port, SCRATCH)),
            call)

    def test_no_vdi(self):
        self.make_file(units.Mi)
        self.assertRaises(exception.TgtError, self.transfer.copy_in,
                          self.path, SCRATCH)
        self.assert_nothing_is_left()

    def test_vdi_that_is_too_small(self):
        self.make_file(8 * units.Mi, (7 * units.Mi, b'A'))
        self.make_vdi(4 * units.Mi)
        self.assertRaisesRegex(
            exception.SheepdogError, 'qemu-img failed: qemu-img: .+',
            self.transfer.copy_in, self.path, SCRATCH)
        self.assert_nothing_is_left()


@ddt.ddt
class CopyOutTestCase(_TransferTestCase):

    @ddt.data('raw', 'qcow2')
    def test_data(self, path_format):
        self.make_vdi(units.Gi, 0, 4 * units.Mi, 1000 * units.Mi)
        self.transfer.copy_out(SCRATCH, self.path, path_format)
        # The copy of the VDI: what it has and nothing else.
        raw = self.directory.join('raw')
        subprocess.run(['qemu-img', 'convert', '-f', path_format, '-O', 'raw',
                        self.path, raw], check=True)
        self.assertEqual(units.Gi, os.path.getsize(raw))
        with open(raw, 'rb') as file:
            for offset in 0, 4 * units.Mi, 1000 * units.Mi:
                file.seek(offset)
                self.assertEqual(b'x', file.read(1))
        self.assertLess(os.stat(raw).st_blocks * 512, units.Mi)
        self.assert_nothing_is_left()

    def test_nothing_but_data_is_read(self):
        self.make_vdi(units.Gi, 0, 1000 * units.Mi)
        self.sheepdog.reset_stats()
        self.transfer.copy_out(SCRATCH, self.path, 'raw')
        read = self.sheepdog.stats()['clients']['tgt']['bytes_read']
        # qemu-img looks at the beginning for the format.
        self.assertLess(read, 9 * units.Mi)

    def _copy_out(self, get_calls):
        """Copy to a new file, and return what was copied by each call."""
        before = len(get_calls())
        self.transfer.copy_out(SCRATCH, self.path, 'raw')
        os.unlink(self.path)
        pieces = []
        for call in get_calls()[before:]:
            if call.startswith('convert '):
                piece, other = (part.rpartition(',offset=')[2]
                                for part in call.split(' ')[-2:])
                self.assertEqual(piece, other)
                pieces.append(piece)
        return pieces

    def test_pieces(self):
        mib = units.Mi
        self.make_vdi(1022 * mib)
        get_calls = self.record_qemu_img()
        self.assertEqual([], self._copy_out(get_calls))
        for offset in 4, 8, 72, 140, 1020:
            self.sheepdog.run('vdi', 'write', SCRATCH, '%dM' % offset, '1',
                              stdin=b'x')
        for maximum, pieces in (
                # A gap of 60 MiB is copied, one of 64 MiB is not.
                (64, [(4, 72), (140, 4), (1020, 2)]),
                (2, [(4, 140), (1020, 2)]),
                (1, [(4, 1018)])):
            self.patch_object(transfer, 'MAX_PIECES', new=maximum)
            self.assertEqual(
                ['%d,size=%d' % (start * mib, length * mib)
                 for start, length in pieces], self._copy_out(get_calls))

    def test_progress_counts_all_pieces(self):
        self.patch_object(transfer, 'PROGRESS', new=0)
        self.make_vdi(units.Gi, 0, 1000 * units.Mi)
        self.transfer.copy_out(SCRATCH, self.path, 'raw')
        self.assertIn('Copy of VDI %s: 8 of 8 MiB' % SCRATCH,
                      self.stdlog.logger.output)

    def test_warning_of_qemu_img(self):
        # as QEMU before 6.1 has one for its Sheepdog driver
        self.record_qemu_img("echo 'qemu-img: warning: deprecated' >&2")
        self.make_vdi(8 * units.Mi, 0)
        self.transfer.copy_out(SCRATCH, self.path, 'raw')
        self.assertEqual(8 * units.Mi, os.path.getsize(self.path))

    def test_native(self):
        self.transfer = transfer.Transfer(targets.Targets('native'))
        self.make_vdi(8 * units.Mi, 0)
        source = (
            'driver=raw,file.driver=sheepdog,file.server.type=inet,'
            'file.server.host=127.0.0.1,file.server.port=%d,file.vdi=%s' % (
                self.sheepdog.port, SCRATCH))
        get_calls = self.record_qemu_img("""
            [ "$1" != info ] || echo '{"virtual-size": 8388608}'
            exit 0""")
        self.transfer.copy_out(SCRATCH, self.path, 'raw')
        info, create, convert = get_calls()
        self.assertTrue(info.endswith(' ' + source), info)
        self.assertTrue(create.endswith(' %s 8388608' % self.path), create)
        self.assertIn(' %s,offset=0,size=4194304 ' % source, convert)

    def test_no_vdi(self):
        self.assertRaises(exception.TgtError, self.transfer.copy_out,
                          SCRATCH, self.path, 'raw')
        self.assert_nothing_is_left()

    @ddt.data('info', 'create', 'convert')
    def test_failure(self, subcommand):
        self.make_vdi(8 * units.Mi, 0)
        self.record_qemu_img("""
            [ "$1" != %s ] || { echo 'it is full' >&2; exit 1; }""" %
                             subcommand)
        self.assertRaisesRegex(
            exception.SheepdogError, 'qemu-img failed: it is full',
            self.transfer.copy_out, SCRATCH, self.path, 'raw')
        self.assert_nothing_is_left()

    @ddt.data('', 'x', '[]', '{}')
    def test_size_that_cannot_be_made_out(self, out):
        self.make_vdi(8 * units.Mi, 0)
        self.record_qemu_img("""
            [ "$1" != info ] || { echo '%s'; exit; }""" % out)
        self.assertRaisesRegex(
            exception.SheepdogError, "what 'qemu-img info' says of VDI ",
            self.transfer.copy_out, SCRATCH, self.path, 'raw')
        self.assert_nothing_is_left()


class ConvertTestCase(base.SheepdogTestMixin, test.NoDBTestCase):

    def setUp(self):
        super().setUp()
        self.flags(images_sheepdog_timeout=20, group='libvirt')
        self.progress = mock.Mock(spec=transfer.Progress)

    def convert(self, size=1):
        transfer.convert('source', 'target', size, self.progress)

    def fail(self):
        """Return the words of a copy that fails."""
        error = self.assertRaises(exception.SheepdogError, self.convert)
        # as it is stored as the fault of a server
        return str(error).encode().decode().partition('qemu-img failed: ')[2]

    def start_fake(self, script=''):
        """Have a qemu-img that goes on for ever once it has begun.

        :param script: what it does first
        :returns: a file that is at its end when qemu-img has ended
        """
        fifo = os.path.join(self.useFixture(fixtures.TempDir()).path, 'fifo')
        os.mkfifo(fifo)
        self.begun = fifo + '.begun'
        self.install('qemu-img', """
            exec 3>'%s' 4>'%s'
            %s
            # It would end if nobody read what it prints.
            exec tail -f /dev/null >/dev/null""" % (
                fifo, self.begun, script))
        output = os.fdopen(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), 'rb')
        self.addCleanup(output.close)
        return output

    def assert_ended(self, output):
        self.assertTrue(select.select([output], [], [], 60)[0])
        self.assertEqual(b'', output.read())

    def test_tells_how_far_it_is(self):
        self.install('qemu-img', r"""
            printf '    (0.00/100%%)\r    (50.25/100%%)\r'
            printf '    (100.00/100%%)\r\n'""")
        self.convert()
        self.assertEqual([mock.call.show(0), mock.call.show(0.5025),
                          mock.call.show(1)], self.progress.mock_calls)

    def test_fails_on_its_way(self):
        self.install('qemu-img', r"""
            printf '    (0.00/100%%)\r    (50.25/100%%)\r'
            echo 'qemu-img: it is full' >&2
            exit 1""")
        self.assertIn('qemu-img: it is full', self.fail())
        self.assertNotIn('100%', self.fail())

    def test_words_that_are_not_utf8(self):
        self.install('qemu-img', r"printf 'no \377 way'; exit 1")
        self.assertEqual(r'no \udcff way', self.fail())

    def test_ends_without_a_word(self):
        self.install('qemu-img', 'kill -KILL $$')
        self.assertEqual('exit status -9', self.fail())

    def test_not_installed(self):
        self.install_only('env', 'timeout', 'setpriv')
        self.assertIn('not installed', self.fail())
        self.install_only('env', 'timeout')
        self.assertIn('setpriv', self.fail())

    def test_no_end(self):
        self.flags(images_sheepdog_timeout=1, group='libvirt')
        output = self.start_fake()
        self.assertEqual('no answer within [libvirt]images_sheepdog_timeout',
                         self.fail())
        self.assert_ended(output)

    def test_time_depends_on_the_size(self):
        path = os.path.join(self.useFixture(fixtures.TempDir()).path, 'limit')
        self.install('qemu-img', r"tr '\0' ' ' </proc/$PPID/cmdline >'%s'" %
                     path)
        self.convert(3 * units.Mi)
        with open(path) as command:
            self.assertTrue(command.read().startswith(
                'timeout --kill-after=5 23 setpriv --pdeathsig TERM '
                'qemu-img convert '))

    def test_ends_when_it_is_interrupted(self):
        class Interrupt(BaseException):
            pass

        self.flags(images_sheepdog_timeout=1000, group='libvirt')
        self.progress.show.side_effect = Interrupt
        output = self.start_fake(r"printf '    (0.00/100%%)\r'")
        self.assertRaises(Interrupt, self.convert)
        self.assert_ended(output)

    def test_dies_with_nova_compute(self):
        self.flags(images_sheepdog_timeout=1000, group='libvirt')
        output = self.start_fake()
        compute = multiprocessing.get_context('fork').Process(
            target=self.convert)
        compute.start()
        self.wait_until(os.path.exists, self.begun)
        compute.kill()
        compute.join()
        self.assert_ended(output)
