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

"""Imports of an image: how fast, what they write, what memory they take."""

import contextlib
import functools
import os
import re

import figures
import host as bench_host
import meter
import nova.conf
from nova.virt.libvirt import imagebackend
from nova.virt.libvirt.sheepdog import targets
from nova.virt.libvirt import utils as libvirt_utils
from oslo_concurrency import processutils
from oslo_utils import units
import tell
import turns

CONF = nova.conf.CONF

# As an operator would type it. The target is a new VDI: without
# --target-is-zero all that is zero would be written.
CONVERT = ('qemu-img', 'convert', '-n', '--target-is-zero', '-f', 'raw',
           '-O', 'raw')


@contextlib.contextmanager
def new_host(write=bench_host.write_image, **kwargs):
    """:returns: a host, path of the raw file of an image"""
    with bench_host.make_cluster() as cluster, (
            bench_host.Host(cluster)) as host:
        path = os.path.join(host.directory, 'image')
        tell.progress('writing the image', at_once=True)
        write(path, **kwargs)
        yield host, path


def first_boot(host, path, disk_format, fetch):
    """Be a contender: the first boot of an image.

    :param path: of the image
    :param disk_format: its format
    :param fetch: see Host.boot()
    """
    image_id = host.add_image(path, disk_format)
    disk = imagebackend.Sheepdog(host.make_instance(), 'disk')
    yield
    host.boot(disk, image_id, fetch=fetch)
    yield
    libvirt_utils.delete_sheepdog_vdi(disk.vdi)
    host.get_base(image_id).drop()


def convert(host, path):
    """Be a contender: what an operator could do, by the same transport."""
    instance = host.make_instance()
    vdi = '%s_scratch' % instance.uuid
    yield
    libvirt_utils.create_sheepdog_vdi(vdi, os.path.getsize(path))
    if host.sheepdog.targets.transport == 'native':
        processutils.execute(*CONVERT, path, 'sheepdog:%s:%s:%s' % (
            *libvirt_utils.get_sheepdog_gateway(), vdi))
    else:
        with host.sheepdog.targets.exported(vdi) as iqn:
            processutils.execute(*CONVERT, path, 'iscsi://%s/%s/%s' % (
                CONF.libvirt.images_sheepdog_portal, iqn, targets.LUN))
    yield
    libvirt_utils.delete_sheepdog_vdi(vdi)


def measure_import():
    with new_host() as (host, path):
        def measure(contenders, words):
            return turns.measure(
                dict(contenders, convert=functools.partial(
                    convert, host, path)), 7, words)

        local = functools.partial(first_boot, host, path, 'raw',
                                  bench_host.link(path))
        samples = measure({
            'first boot': local,
            'first boot from Glance': functools.partial(
                first_boot, host, bench_host.to_qcow2(path), 'qcow2',
                libvirt_utils.fetch_image)}, 'imports')
        tell.result('import', figures.ratio(samples, 'convert', 'first boot'),
                    samples=samples, calls=host.count_calls(
                        lambda: list(local())))
        tell.result('import-glance', figures.ratio(
            samples, 'convert', 'first boot from Glance'))
        if bench_host.use_native_transport():
            samples = measure({'first boot': local}, 'native imports')
            tell.result(
                'import-native',
                figures.ratio(samples, 'convert', 'first boot'),
                samples=samples)
        else:
            tell.missing('import-native', bench_host.NEEDS_QEMU)


def measure_written():
    with new_host() as (host, path):
        data = os.stat(path).st_blocks * 512
        counter = meter.Meter(libvirt_utils.get_sheepdog_gateway())
        host.use(counter)
        image_id = host.add_image(path, 'raw')
        tell.progress('importing the image', at_once=True)
        host.boot(imagebackend.Sheepdog(host.make_instance(), 'disk'),
                  image_id)
        tell.result('written', counter.bytes_written / data,
                    written=counter.bytes_written, data=data)


def get_memory(name):
    """Read from what the kernel knows of this process.

    :param name: 'VmRSS', what it has in memory, or 'VmHWM', the most that it
        had
    :returns: bytes
    """
    with open('/proc/self/status') as status:
        return int(re.search(r'^%s:\s+(\d+) kB' % name, status.read(),
                             re.M).group(1)) * units.Ki


def measure_memory():
    with new_host(size=20 * units.Gi) as (host, path):
        image_id = host.add_image(bench_host.to_qcow2(path), 'qcow2')
        os.unlink(path)
        disk = imagebackend.Sheepdog(host.make_instance(), 'disk')
        # What an import needs once and for all is there before.
        libvirt_utils.get_sheepdog_space()
        with open('/proc/self/clear_refs', 'w') as peak:
            peak.write('5')
        before = get_memory('VmRSS')
        tell.progress('importing 20 GiB', at_once=True)
        host.boot(disk, image_id, 20 * units.Gi)
        most = get_memory('VmHWM')
        tell.result('memory', (most - before) / units.Mi, before=before,
                    most=most)
