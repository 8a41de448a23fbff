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

"""What a nova-compute would have around its disks.

Nova's code is the real one, and so are rootwrap, its daemon, tgtd and QEMU.
Glance is a directory on this host.
"""

import contextlib
import os
import random
import shutil
import tempfile
from unittest import mock

from nova.compute import vm_states
import nova.conf
from nova import context as nova_context
from nova.image import glance
from nova import objects
import nova.privsep
from nova.virt.libvirt import imagebackend
from nova.virt.libvirt import imagecache
from nova.virt.libvirt.sheepdog import host as sheepdog_host
from nova.virt.libvirt.sheepdog import images as sheepdog_images
from nova.virt.libvirt.sheepdog import rootwrap
from nova.virt.libvirt import utils as libvirt_utils
from oslo_concurrency import processutils
from oslo_utils import units
from oslo_utils import uuidutils

import paths  # noqa: F401

import sheepdog  # isort: skip

CONF = nova.conf.CONF

IMAGE_SIZE = 2 * units.Gi
IMAGE_DATA = 256 * units.Mi
DISK_SIZE = 4 * units.Gi
# Why something is not measured
NEEDS_QEMU = 'needs --qemu'


def make_cluster(prefix='SHEEPDOG'):
    """Have the cluster that SHEEPDOG_HOST, _PORT and _DOG name.

    Where they name none it is a simulated one of its own.

    :param prefix: of the names of the first two
    :returns: the sheepdog.Cluster, a context
    """
    if not is_cluster_real():
        return sheepdog.SheepdogFixture()
    return sheepdog.Cluster(os.environ['SHEEPDOG_DOG'],
                            os.environ[prefix + '_HOST'],
                            int(os.environ[prefix + '_PORT']))


def is_cluster_real():
    return 'SHEEPDOG_HOST' in os.environ


class Images:
    """A Glance whose images are files.

    Each image has an id of its own; several may be the same file.
    """

    def __init__(self, files=None):
        """:param files: dict of the id of each to its path and format"""
        self.files = files or {}

    def add(self, path, disk_format):
        """:returns: id of the new image"""
        image_id = uuidutils.generate_uuid()
        self.files[image_id] = path, disk_format
        return image_id

    def show(self, context, image_id, **kwargs):
        path, disk_format = self.files[image_id]
        return {'id': image_id, 'name': 'bench', 'status': 'active',
                'disk_format': disk_format, 'container_format': 'bare',
                'size': os.path.getsize(path), 'checksum': image_id,
                'min_disk': 0, 'min_ram': 0, 'properties': {}}

    def download(self, context, image_id, data=None, dst_path=None,
                 trusted_certs=None):
        with open(self.files[image_id][0], 'rb') as source:
            with (contextlib.nullcontext(data) if data
                  else open(dst_path, 'wb')) as target:
                shutil.copyfileobj(source, target, 2 ** 16)


class Host:
    """The disks of one nova-compute; a context.

    :ivar sheepdog: what the driver holds, a sheepdog_host.SheepdogHost
    :ivar images: the Images
    :ivar directory: for files, and gone at the end
    :ivar calls: what root was asked to run, such as 'dog vdi clone'
    """

    def __init__(self, cluster, images=None):
        """:param cluster: the sheepdog.Cluster, or what has its host and port
        :param images: the Images, if other hosts have them too
        """
        self.images = images or Images()
        self.context = nova_context.get_admin_context()
        self.calls = []
        self._cluster = cluster
        # By address: all that were used
        self._clusters = {}
        self._stack = contextlib.ExitStack()
        # What the names of VDIs begin with that are to go at the end
        self._ids = set()

    def __enter__(self):
        self.directory = self._stack.enter_context(
            tempfile.TemporaryDirectory(prefix='bench-'))
        CONF([], project='nova', default_config_files=[])
        objects.register_all()
        nova.privsep.sys_admin_pctxt.set_client_mode(False)
        for name, value in (('rootwrap_config', '/etc/nova/rootwrap.conf'),
                            ('state_path', self.directory),
                            ('tempdir', self.directory),
                            ('my_ip', '127.0.0.1')):
            CONF.set_override(name, value)
        for name, value in (
                ('images_type', 'sheepdog'), ('virt_type', 'qemu'),
                ('images_sheepdog_transport', 'iscsi'),
                ('images_sheepdog_portal', os.environ['TESTBED_PORTAL'])):
            CONF.set_override(name, value, 'libvirt')
        self.use(self._cluster)
        self.use_instances('instances')
        self._stack.enter_context(mock.patch.object(
            glance, 'get_default_image_service', lambda: self.images))
        # No server that waits for an image is deleted meanwhile.
        self._stack.enter_context(mock.patch.object(
            objects.Instance, 'get_by_uuid', lambda context, uuid:
            objects.Instance(uuid=uuid, task_state=None)))
        self.sheepdog = sheepdog_host.SheepdogHost(None)
        self._stack.callback(self.sheepdog.stop)
        for owner, name, replacement in (
                (imagebackend.Sheepdog, 'host', self.sheepdog),
                (rootwrap, 'execute', self._note_and_execute)):
            self._stack.enter_context(
                mock.patch.object(owner, name, replacement))
        return self

    def __exit__(self, *exc_info):
        try:
            self._delete_all()
        finally:
            self._stack.close()

    def _note_and_execute(self, *command, **kwargs):
        self.calls.append(' '.join(
            command[:3] if command[0] == 'dog' else
            [command[0], command[4], command[6]]))
        return rootwrap.get_runner().execute(*command, **kwargs)

    def _delete_all(self):
        if not is_cluster_real() or not self._ids:
            return
        for cluster in list(self._clusters.values()):
            self.use(cluster)
            for vdi in sorted(libvirt_utils.list_sheepdog_vdis(),
                              key=lambda vdi: vdi.tag or ''):
                # a VDI before its snapshots
                if vdi.name.partition('_')[0] in self._ids:
                    libvirt_utils.delete_sheepdog_vdi(vdi.name, vdi.tag)

    def use(self, cluster):
        """Have another cluster or another way to it.

        :param cluster: what has its host and port
        """
        self._clusters[cluster.host, cluster.port] = cluster
        CONF.set_override('images_sheepdog_host', cluster.host, 'libvirt')
        CONF.set_override('images_sheepdog_port', cluster.port, 'libvirt')

    def use_instances(self, name):
        """Have files of instances, and the image cache, in a directory.

        :param name: of the directory
        """
        CONF.set_override('instances_path',
                          os.path.join(self.directory, name))

    def add_image(self, path, disk_format):
        """:returns: id of the new image"""
        image_id = self.images.add(path, disk_format)
        self._ids.add(image_id)
        return image_id

    def make_instance(self):
        """:returns: an objects.Instance that is about to be built"""
        instance = objects.Instance(
            id=1, uuid=uuidutils.generate_uuid(),
            vm_state=vm_states.BUILDING)
        self._ids.add(instance.uuid)
        return instance

    def boot(self, disk, image_id, size=DISK_SIZE,
             fetch=libvirt_utils.fetch_image):
        """Do what the driver does at a boot to have the root disk.

        :param disk: the imagebackend.Image
        :param image_id: id of the image
        :param size: size of the disk in bytes
        :param fetch: function that brings the image as a raw file
        """
        with mock.patch.object(libvirt_utils, 'fetch_image', fetch):
            disk.cache(fetch_func=fetch, context=self.context,
                       filename=imagecache.get_cache_fname(image_id),
                       image_id=image_id, size=size, trusted_certs=None)

    def get_base(self, image_id):
        """:returns: the sheepdog_images.ImageBase of an image"""
        return sheepdog_images.ImageBase(
            self.sheepdog.images, self.context, image_id)

    def count_calls(self, function):
        """:returns: what root was asked to run by a function, in order"""
        before = len(self.calls)
        function()
        return self.calls[before:]

    def booting(self, image_id, size=DISK_SIZE):
        """Be a contender, see turns.measure(): a boot, and no more."""
        disk = imagebackend.Sheepdog(self.make_instance(), 'disk')
        yield
        self.boot(disk, image_id, size)
        yield
        libvirt_utils.delete_sheepdog_vdi(disk.vdi)


def link(path):
    """Bring an image that is on the host already.

    :param path: of the raw file
    :returns: a function, see Host.boot()
    """
    def fetch(context, target, image_id, trusted_certs=None):
        os.link(path, target)

    return fetch


def write_image(path, size=IMAGE_SIZE, data=IMAGE_DATA, piece=4 * units.Mi):
    """Make a raw image with data here and there, at random places.

    :param path: of the file
    :param size: of the image in bytes
    :param data: bytes of random data in it
    :param piece: bytes of data that are together
    """
    places = random.sample(range(size // piece - 1), data // piece)
    with open(path, 'wb') as image:
        image.truncate(size)
        for place in places:
            # in the middle between two objects of a VDI
            image.seek(place * piece + piece // 2)
            image.write(os.urandom(piece))


def to_qcow2(path):
    """:returns: path of the same image as QCOW2"""
    target = path + '.qcow2'
    processutils.execute('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2',
                         path, target)
    return target


def use_native_transport():
    """Have the native transport, where a qemu-img with it was given.

    :returns: False if there is none
    """
    if 'BENCH_QEMU' not in os.environ:
        return False
    imagebackend.Sheepdog.host.targets.transport = 'native'
    os.environ['PATH'] = os.pathsep.join(
        (os.environ['BENCH_QEMU'], os.environ['PATH']))
    return True
