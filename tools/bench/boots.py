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

"""Second and later boots: how soon the root disk is there."""

import contextlib
import functools
import os
import shutil

import figures
import host as bench_host
from nova.virt.libvirt import imagebackend
from nova.virt.libvirt.sheepdog import images as sheepdog_images
from nova.virt.libvirt import utils as libvirt_utils
import tell
import turns


@contextlib.contextmanager
def booted_before():
    """Have a host, and an image that has its base.

    :returns: the host, id of the image, path of its raw file
    """
    with bench_host.make_cluster() as cluster, (
            bench_host.Host(cluster)) as host:
        path = os.path.join(host.directory, 'image')
        bench_host.write_image(path)
        image_id = host.add_image(path, 'raw')
        tell.progress('importing the image', at_once=True)
        host.boot(imagebackend.Sheepdog(host.make_instance(), 'disk'),
                  image_id)
        yield host, image_id, path


def measure_boot():
    with booted_before() as (host, image_id, _path):
        base = host.get_base(image_id)

        def bare():
            vdi = '%s_disk' % host.make_instance().uuid
            yield
            libvirt_utils.clone_sheepdog_vdi(
                base.vdi, sheepdog_images.TAG, vdi)
            libvirt_utils.resize_sheepdog_vdi(vdi, bench_host.DISK_SIZE)
            yield
            libvirt_utils.delete_sheepdog_vdi(vdi)

        def with_target():
            disk = imagebackend.Sheepdog(host.make_instance(), 'disk')
            iqn = libvirt_utils.get_sheepdog_iqn(disk.vdi)
            yield
            host.boot(disk, image_id)
            host.sheepdog.targets.export({iqn: disk.vdi})
            yield
            host.sheepdog.targets.unexport(iqn)
            libvirt_utils.delete_sheepdog_vdi(disk.vdi)

        contenders = {'boot': functools.partial(host.booting, image_id),
                      'bare': bare, 'with target': with_target}
        samples = turns.measure(contenders, 30, 'boots')
        calls = {}
        for label, contender in contenders.items():
            steps = contender()
            next(steps)
            calls[label] = host.count_calls(functools.partial(next, steps))
            list(steps)
    tell.result('boot', figures.ratio(samples, 'boot', 'bare'),
                samples=samples, calls=calls)
    tell.result('target', figures.ratio(samples, 'with target', 'bare'))


def measure_backends():
    with booted_before() as (host, image_id, path):
        def local(backend):
            host.use_instances('local')
            instance = host.make_instance()
            directory = libvirt_utils.get_instance_path(instance)
            os.makedirs(directory)
            disk = backend(instance, 'disk')
            yield
            host.boot(disk, image_id, fetch=bench_host.link(path))
            yield
            shutil.rmtree(directory)

        def clone():
            host.use_instances('instances')
            yield from host.booting(image_id)

        def import_again():
            host.use_instances('local')
            disk = imagebackend.Sheepdog(host.make_instance(), 'disk')
            # It has no base yet.
            new_id = host.add_image(path, 'raw')
            yield
            host.boot(disk, new_id, fetch=bench_host.link(path))
            yield
            libvirt_utils.delete_sheepdog_vdi(disk.vdi)
            host.get_base(new_id).drop()

        samples = turns.measure({
            'Sheepdog': clone,
            'Flat': functools.partial(local, imagebackend.Flat),
            'Qcow2': functools.partial(local, imagebackend.Qcow2),
            'import per boot': import_again}, 7, 'boots')
    tell.result('backends-import',
                figures.ratio(samples, 'import per boot', 'Sheepdog'),
                samples=samples)
    for label in 'Flat', 'Qcow2':
        tell.result('backends-' + label.lower(),
                    figures.ratio(samples, label, 'Sheepdog'))
