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

"""Reads and writes as a guest's, by either transport."""

import os

import figures
import host as bench_host
import nova.conf
from nova.virt.libvirt import imagebackend
from nova.virt.libvirt.sheepdog import targets
from nova.virt.libvirt import utils as libvirt_utils
from oslo_concurrency import processutils
from oslo_utils import units
import tell
import turns

CONF = nova.conf.CONF

ROUNDS = 5
SIZE = 256 * units.Mi
# By size of a request in KiB: how many at once, and how many in all
LOADS = {4: (16, 8000), 256: (8, 1000)}
KINDS = {'read': (), 'write': ('-w',)}


def measure_guest_io():
    rows = figures.FIGURES['guest-io'][1]
    directory = os.environ.get('BENCH_QEMU')
    if not directory:
        for row in rows:
            tell.missing(row, bench_host.NEEDS_QEMU)
        return
    with bench_host.make_cluster() as cluster, (
            bench_host.Host(cluster)) as host:
        path = os.path.join(host.directory, 'image')
        with open(path, 'wb') as image:
            for _number in range(SIZE // units.Mi):
                image.write(os.urandom(units.Mi))
        disk = imagebackend.Sheepdog(host.make_instance(), 'disk')
        # without a base, so that all of it is the VDI's own
        disk.import_file(None, path, None)
        urls = {
            'native': (os.path.join(directory, 'qemu-img'),
                       'sheepdog:%s:%s:%s' % (
                           *libvirt_utils.get_sheepdog_gateway(), disk.vdi)),
        }

        def run(transport, kind, size):
            program, url = urls[transport]
            depth, count = LOADS[size]

            def contender():
                yield
                processutils.execute(
                    program, 'bench', *KINDS[kind], '-t', 'none',
                    '-f', 'raw', '-c', str(count), '-d', str(depth),
                    '-s', str(size * units.Ki), url)
                yield

            return contender

        for size in LOADS:
            for kind in KINDS:
                # Neither transport learns of what another client writes, so
                # each opens it anew.
                with host.sheepdog.targets.exported(disk.vdi) as iqn:
                    urls['iscsi'] = 'qemu-img', 'iscsi://%s/%s/%s' % (
                        CONF.libvirt.images_sheepdog_portal, iqn, targets.LUN)
                    samples = turns.measure(
                        {transport: run(transport, kind, size)
                         for transport in ('iscsi', 'native')}, ROUNDS,
                        '%ss of %d KiB' % (kind, size))
                tell.result('guest-io-%s-%d' % (kind, size), figures.ratio(
                    samples, 'iscsi', 'native'), samples=samples)
        libvirt_utils.delete_sheepdog_vdi(disk.vdi)
