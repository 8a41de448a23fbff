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

"""Many boots of a new image on many hosts at once."""

import concurrent.futures
import multiprocessing
import os
from unittest import mock

import host as bench_host
from nova.virt.libvirt import imagebackend
from nova.virt.libvirt.sheepdog import transfer
from nova.virt.libvirt import utils as libvirt_utils
from oslo_utils import units
import tell

HOSTS = 10
BOOTS = 10
# Seconds that a host may take
LIMIT = 300


class Gateway:
    """What a host knows of the cluster."""

    def __init__(self, host, port):
        self.host = host
        self.port = port


def boot_many(host, image_id):
    """Boot servers at once.

    :returns: their VDIs, and how many imports there were
    """
    imports = []
    copy = transfer.convert

    def note_and_copy(*args, **kwargs):
        imports.append(args)
        return copy(*args, **kwargs)

    def boot():
        disk = imagebackend.Sheepdog(host.make_instance(), 'disk')
        host.boot(disk, image_id)
        return disk.vdi

    with mock.patch.object(transfer, 'convert', note_and_copy), (
            concurrent.futures.ThreadPoolExecutor(BOOTS)) as pool:
        vdis = [future.result() for future in [
            pool.submit(boot) for _number in range(BOOTS)]]
    return vdis, len(imports)


def be_host(gateway, files, image_id, start, end, answers):
    """Be one host, in a process of its own.

    :param gateway: the Gateway
    :param files: see bench_host.Images
    :param image_id: id of the image
    :param start: barrier at which all hosts wait for one another
    :param end: barrier at which they wait before they delete their disks
    :param answers: queue for what boot_many() returns, or an exception
    """
    try:
        with bench_host.Host(gateway, bench_host.Images(files)) as host:
            start.wait(LIMIT)
            answers.put(boot_many(host, image_id))
            end.wait(LIMIT)
    except Exception as e:
        answers.put(e)
        start.abort()


def measure_crowd():
    # Each a Python of its own, with nothing of this one
    processes = multiprocessing.get_context('spawn')
    with bench_host.make_cluster() as cluster, (
            bench_host.Host(cluster)) as host:
        path = os.path.join(host.directory, 'image')
        bench_host.write_image(path, data=64 * units.Mi)
        image_id = host.add_image(path, 'raw')
        start, end = processes.Barrier(HOSTS), processes.Barrier(HOSTS + 1)
        answers = processes.Queue()
        hosts = [processes.Process(target=be_host, daemon=True, args=(
            Gateway(cluster.host, cluster.port), host.images.files, image_id,
            start, end, answers)) for _number in range(HOSTS)]
        for process in hosts:
            process.start()
        vdis = set()
        imports = 0
        for number in range(HOSTS):
            tell.progress('%d of %d hosts have booted' % (number, HOSTS),
                          at_once=True)
            answer = answers.get(timeout=2 * LIMIT)
            if isinstance(answer, Exception):
                raise answer
            vdis.update(answer[0])
            imports += answer[1]
        lacking = [vdi for vdi in vdis
                   if not libvirt_utils.sheepdog_vdi_exists(vdi)]
        if len(vdis) != HOSTS * BOOTS or lacking:
            raise RuntimeError('%d disks were made, and these are not there: '
                               '%s' % (len(vdis), ', '.join(lacking)))
        end.wait(LIMIT)
        for process in hosts:
            process.join()
        tell.result('crowd', imports, boots=len(vdis))
