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

"""What a cluster with many VDIs costs."""

import contextlib
import os
import socket

import figures
import host as bench_host
from nova.virt.libvirt import imagebackend
from nova.virt.libvirt.sheepdog import images as sheepdog_images
from nova.virt.libvirt import utils as libvirt_utils
from oslo_utils import units
from oslo_utils import uuidutils
import tell
import turns

from sheepdog_simulator import protocol  # isort: skip

# How often each action is measured
ROUNDS = {'boot': 60, 'delete': 30, 'snapshot': 25}
IMAGE_SIZE = 32 * units.Mi
DISK_SIZE = 64 * units.Mi


class Filling:
    """VDIs that are there to be many; a context."""

    def __init__(self, cluster):
        self._cluster = cluster
        self._name = 'bench-%s-%%d' % uuidutils.generate_uuid()
        self._count = 0

    def __enter__(self):
        # dog would start a process for each.
        self._connection = socket.create_connection(
            (self._cluster.host, self._cluster.port))
        self._connection.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self

    def __exit__(self, *exc_info):
        if bench_host.is_cluster_real():
            while self._count:
                self._count -= 1
                self._ask('DEL_VDI', self._count)
                tell.progress('deleting VDIs: %d left' % self._count)
        self._connection.close()

    def grow(self, count):
        """Have so many VDIs, of 4 MiB and without data."""
        while self._count < count:
            self._ask('NEW_VDI', self._count, size=4 * units.Mi)
            self._count += 1
            tell.progress('making VDIs: %d of %d' % (self._count, count))

    def _ask(self, operation, number, **fields):
        # NEW_VDI takes no tag.
        name = protocol.text_field((self._name % number).encode(),
                                   protocol.NAME_SIZE)
        request = protocol.Request(
            protocol.OPCODES[operation], protocol.FLAG_WRITE,
            data=name.ljust(2 * protocol.NAME_SIZE, b'\0')
            if operation == 'DEL_VDI' else name,
            specific=protocol.pack_vdi(**fields))
        self._connection.sendall(request.pack() + request.data)
        answer, length = protocol.Answer.unpack(
            protocol.receive(self._connection, protocol.HEADER_SIZE))
        if length:
            protocol.receive(self._connection, length)
        if answer.result != protocol.SUCCESS:
            raise RuntimeError('%s: %s' % (
                operation, protocol.result_text(answer.result)))


def get_contenders(host, cluster, size, image_id):
    """:param size: how many VDIs there are, for the label
    :returns: dict for turns.measure()
    """
    def boot_disk():
        host.use(cluster)
        disk = imagebackend.Sheepdog(host.make_instance(), 'disk')
        host.boot(disk, image_id, DISK_SIZE)
        return disk

    def boot():
        host.use(cluster)
        yield from host.booting(image_id, DISK_SIZE)

    def delete():
        disk = boot_disk()
        yield
        # an instance without ephemeral disks
        host.sheepdog.delete_disks(disk._instance, {})
        yield

    def snapshot():
        disk = boot_disk()
        target = os.path.join(host.directory, 'snapshot')
        yield
        disk.snapshot_extract(target, 'raw')
        yield
        os.unlink(target)
        sheepdog_images.remove_scratch(disk._scratch)
        libvirt_utils.delete_sheepdog_vdi(disk.vdi)

    return {(action.__name__, size): action
            for action in (boot, delete, snapshot)}


def measure(contenders, words):
    """Measure each action, with all sizes of the cluster in turn.

    :param contenders: dict of (action, size) to a contender
    :param words: see turns.measure()
    """
    samples = {}
    for action, rounds in ROUNDS.items():
        # The first round, which does not count, imports the image.
        samples.update(turns.measure(
            {label: contender for label, contender in contenders.items()
             if label[0] == action}, rounds, '%s with %s' % (action, words)))
    return samples


def tell_all(samples, sizes):
    """Tell the results for the last one of the sizes.

    :param samples: what measure() returned for all sizes so far
    :param sizes: how many VDIs there were
    """
    for action in ROUNDS:
        of_sizes = {size: samples[action, size] for size in sizes}
        tell.result('growth-%s-%d' % (action, sizes[-1]),
                    figures.ratio(of_sizes, sizes[-1], sizes[0]),
                    samples=of_sizes)


def measure_growth():
    most = int(os.environ['BENCH_VDIS'])
    sizes = [size for size in figures.SIZES if size <= most]
    with contextlib.ExitStack() as stack:
        def fill(cluster, size):
            filling = stack.enter_context(Filling(cluster))
            filling.grow(size)
            return filling

        def get_contenders_of(cluster, size):
            return get_contenders(host, cluster, size, image_id)

        cluster = stack.enter_context(bench_host.make_cluster())
        host = stack.enter_context(bench_host.Host(cluster))
        path = os.path.join(host.directory, 'image')
        bench_host.write_image(path, IMAGE_SIZE, 4 * units.Mi)
        image_id = host.add_image(path, 'raw')
        filling = fill(cluster, sizes[0])
        small = get_contenders_of(cluster, sizes[0])
        if not bench_host.is_cluster_real():
            contenders = dict(small)
            for size in sizes[1:]:
                other = stack.enter_context(bench_host.make_cluster())
                fill(other, size)
                contenders.update(get_contenders_of(other, size))
            samples = measure(contenders, '%d to %d VDIs' % (
                sizes[0], sizes[-1]))
            for number in range(1, len(sizes)):
                tell_all(samples, sizes[:number + 1])
        else:
            samples = {}
            if 'BENCH_SMALL_HOST' in os.environ:
                other = stack.enter_context(
                    bench_host.make_cluster('BENCH_SMALL'))
                fill(other, sizes[0])
                small = get_contenders_of(other, sizes[0])
            else:
                # There is but one, so it is measured as it grows.
                samples = measure(small, '%d VDIs' % sizes[0])
                small = {}
            for number, size in enumerate(sizes[1:], 1):
                filling.grow(size)
                samples.update(measure(
                    {**small, **get_contenders_of(cluster, size)},
                    '%d VDIs' % size))
                tell_all(samples, sizes[:number + 1])
    for size in figures.SIZES:
        if size not in sizes:
            for action in ROUNDS:
                tell.missing('growth-%s-%d' % (action, size),
                             'needs --vdis %d' % size)
