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

import contextlib
import os
import typing as ty

from graft.fragment import substitute

from nova.compute import task_states
from nova.compute import vm_states
from nova import exception
from nova.i18n import _
from nova.virt.libvirt.imagebackend import CONF
from nova.virt.libvirt.imagebackend import disk
from nova.virt.libvirt.imagebackend import Image
from nova.virt.libvirt.sheepdog import disks as sheepdog_disks
from nova.virt.libvirt.sheepdog import host as sheepdog_host
from nova.virt.libvirt.sheepdog import images as sheepdog_images
from nova.virt.libvirt.sheepdog import targets as sheepdog_targets
from nova.virt.libvirt import utils as libvirt_utils


class Sheepdog(Image):
    """A disk on a VDI of a Sheepdog cluster.

    A VDI appears under its name only when it is complete: it is a clone of a
    base image, see sheepdog/images.py, or of a scratch VDI that data was
    copied into. A clone either is made or is not.

    :ivar host: what the driver holds for this host
    """

    host: ty.Union[sheepdog_host.Host, ty.Any] = sheepdog_host.Host()

    def __init__(
        self, instance=None, disk_name=None, path=None, disk_info_mapping=None
    ):
        if path:
            # as find_disk() made it
            self.vdi = path.partition(':')[2]
        else:
            self.vdi = libvirt_utils.get_sheepdog_vdi(
                instance.uuid, disk_name)
        super().__init__(
            libvirt_utils.get_sheepdog_path(self.vdi), 'network', 'raw',
            is_block_dev=False, disk_info_mapping=disk_info_mapping)
        self._instance = instance
        self._scratch = libvirt_utils.get_sheepdog_vdi(
            self.vdi.partition('_')[0], 'scratch')
        # Nova asks several times whether there is a disk before it makes it.
        self._exists = False if self._is_new() else None
        if self._is_by_iscsi():
            # tgtd's backing store cannot discard
            self.discard_mode = None

    def _is_by_iscsi(self):
        return self.host.targets.transport == 'iscsi'

    def _get_of_instance(self, name):
        return (getattr(self._instance, name)
                if self._instance and name in self._instance else None)

    def _is_evacuated(self):
        """Tell whether the instance comes from another host with its disks."""
        return (self._get_of_instance('task_state') ==
                task_states.REBUILD_SPAWNING and
                self._get_of_instance('host') != CONF.host)

    def _is_new(self):
        """Tell whether this disk has to be made, whatever bears its name.

        What does was left by a build, an unshelve, a rebuild or a rescue that
        failed, and need not be whole.
        """
        return (self.vdi.endswith('.rescue') or
                self._get_of_instance('vm_state') in (
                    vm_states.BUILDING, vm_states.SHELVED_OFFLOADED) or
                self._get_of_instance('task_state') ==
                task_states.REBUILD_SPAWNING and not self._is_evacuated())

    def _image_is_temporary(self):
        """Whether Nova deletes the Glance image once the instance runs.

        So it does after an unshelve, and after a resize to another cell, of
        which the migration context tells nothing there. A resize within a cell
        makes no disk of an image.
        """
        return (self._get_of_instance('vm_state') ==
                vm_states.SHELVED_OFFLOADED or
                self._get_of_instance('task_state') ==
                task_states.RESIZE_FINISH)

    def libvirt_info(
        self, cache_mode, extra_specs, boot_order=None, disk_unit=None,
    ):
        info = super().libvirt_info(cache_mode, extra_specs,
                                    boot_order=boot_order,
                                    disk_unit=disk_unit)
        info.source_path = None
        if self._is_by_iscsi():
            info.source_protocol = 'iscsi'
            info.source_name = '%s/%s' % (
                libvirt_utils.get_sheepdog_iqn(self.vdi),
                sheepdog_targets.LUN)
            host, _colon, port = (
                CONF.libvirt.images_sheepdog_portal.partition(':'))
        else:
            info.source_protocol = 'sheepdog'
            info.source_name = self.vdi
            host, port = libvirt_utils.get_sheepdog_gateway()
        info.source_hosts = [host]
        info.source_ports = [port]
        return info

    def _can_fallocate(self):
        return False

    def exists(self):
        if self._exists is None:
            self._exists = libvirt_utils.sheepdog_vdi_exists(self.vdi)
        return self._exists

    @staticmethod
    def is_shared_block_storage():
        return True

    def create_image(
        self, prepare_template, base, size, safe=False, *args, **kwargs):
        sheepdog_images.check_size(self.vdi, size)
        self._note_rescued()
        if self.exists():
            if size:
                self.resize_image(size)
            return
        if self._is_evacuated() and not self.vdi.endswith('.swap'):
            # A blank disk would take the place of the server's data.
            sheepdog_disks.check_exist([self.vdi])
        try:
            self._create_image(prepare_template, base, size, args, kwargs)
        except exception.SheepdogVDIExists:
            if not self._is_new():
                raise
            libvirt_utils.remove_sheepdog_vdi(
                self.vdi, sheepdog_images.SNAPSHOT_TAG,
                sheepdog_disks.RESIZE_TAG)
            self._create_image(prepare_template, base, size, args, kwargs)
        self._exists = True

    def _create_image(self, prepare_template, base, size, args, kwargs):
        """Make a disk that is not there.

        :raises: exception.SheepdogVDIExists if it is
        """
        def make(target):
            prepare_template(target=target, *args, **kwargs)

        images = self.host.images
        name = os.path.basename(base)
        if kwargs.get('image_id'):
            image = sheepdog_images.ImageBase(
                images, kwargs['context'], kwargs['image_id'],
                kwargs.get('trusted_certs'))
        elif name.startswith(('ephemeral_', 'swap_')):
            # Nova's own cache tells apart neither the labels nor what mkfs
            # is run for each type of operating system.
            image = sheepdog_images.TemplateBase(
                images, make, name, kwargs.get('specified_fs') or '',
                self._get_of_instance('os_type') or '',
                CONF.default_ephemeral_format or '',
                self.vdi.partition('.eph')[2] or '0')
        else:
            raise exception.DiskNotFound(location=_(
                'VDI %s, and its image is gone') % self.vdi)
        if kwargs.get('image_id') and self._image_is_temporary():
            # One import for one boot leaves no base; one that createImage
            # left goes, as the disk does not need it.
            if not image.clone(self.vdi, size):
                with sheepdog_images.local_copy(self._scratch, make) as path:
                    self._import(path, size)
            image.drop()
            return
        for _attempt in range(sheepdog_images.ATTEMPTS):
            if image.clone(self.vdi, size):
                return
            image.provide(self._instance)
        raise exception.SheepdogError(reason=_(
            'base image %s is gone again as soon as it is made') % image.vdi)

    def resize_image(self, size):
        sheepdog_images.check_size(self.vdi, size)
        libvirt_utils.resize_sheepdog_vdi(self.vdi, size)

    def _note_rescued(self):
        owner, _underscore, name = self.vdi.partition('_')
        if name.endswith('.rescue'):
            sheepdog_disks.note_rescued(owner, name)

    def import_file(self, instance, local_file, remote_name):
        self._note_rescued()
        libvirt_utils.remove_sheepdog_vdi(self.vdi)
        self._import(local_file)

    def _import(self, path, size=None):
        """Make the VDI, with the data of a local raw file.

        :param path: path of the file
        :param size: size of the VDI in bytes, None for that of the file
        """
        self.verify_base_size(path, size)
        file_size = disk.get_disk_size(path)
        sheepdog_images.check_size(self.vdi, file_size)
        tag = sheepdog_images.SNAPSHOT_TAG
        # There may be one of a nova-compute that was killed.
        libvirt_utils.remove_sheepdog_vdi(self._scratch, tag)
        try:
            libvirt_utils.create_sheepdog_vdi(
                self._scratch, max(size or 0, file_size))
            self.host.images.transfer.copy_in(path, self._scratch)
            libvirt_utils.snapshot_sheepdog_vdi(self._scratch, tag)
            libvirt_utils.clone_sheepdog_vdi(self._scratch, tag, self.vdi)
        finally:
            sheepdog_images.remove_scratch(self._scratch)

    def snapshot_extract(self, target, out_format, frozen=None):
        """Copy the disk as it is at this moment, whether in use or not.

        The scratch VDI, of which it is copied, is left for
        SheepdogHost.snapshot().

        :param target: The target path for the image snapshot.
        :param out_format: The image snapshot format.
        :param frozen: context manager to hold while the cluster takes its
            snapshot, which is a part of a second
        """
        tag = sheepdog_images.SNAPSHOT_TAG
        sheepdog_disks.check_exist([self.vdi])
        self.host.check_room()
        libvirt_utils.remove_sheepdog_vdi(self._scratch, tag)
        libvirt_utils.delete_sheepdog_vdi(self.vdi, tag)
        with frozen or contextlib.nullcontext():
            libvirt_utils.snapshot_sheepdog_vdi(self.vdi, tag)
        try:
            libvirt_utils.clone_sheepdog_vdi(self.vdi, tag, self._scratch)
        finally:
            libvirt_utils.delete_sheepdog_vdi(self.vdi, tag)
        self.host.images.transfer.copy_out(self._scratch, target, out_format)

    def get_model(self, connection):
        raise exception.Invalid(
            _('Nova cannot inject files, keys or passwords into VDI %s; use a '
              'config drive or the metadata service, and leave '
              '[libvirt]inject_partition at -2') % self.vdi)


class Backend:

    substitute('__init__', 'self.BACKEND = {',
               "            'rbd': Rbd,\n",
               "            'rbd': Rbd,\n"
               "            'sheepdog': Sheepdog,\n")
