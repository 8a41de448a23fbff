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
import functools
import os
import re
import shutil
import socket
import tempfile
import threading
import typing as ty

from graft.fragment import after
from graft.fragment import substitute
from oslo_concurrency import processutils
from oslo_utils import excutils
from oslo_utils import fileutils
from oslo_utils import netutils
from oslo_utils import units
from oslo_utils import uuidutils

from nova.compute import task_states
from nova.compute import vm_states
from nova import context as nova_context
from nova import exception
from nova.i18n import _
from nova import objects
from nova.virt import images
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt.imagebackend import CONF
from nova.virt.libvirt.imagebackend import disk
from nova.virt.libvirt.imagebackend import Image
from nova.virt.libvirt.imagebackend import LOG
from nova.virt.libvirt import sheepdog_base
from nova.virt.libvirt.storage import rootwrap
from nova.virt.libvirt.storage import tgt
from nova.virt.libvirt import utils as libvirt_utils


@after('', 'class Rbd(Image):')
class Sheepdog(Image):
    """Keeps every disk on a VDI of a Sheepdog cluster.

    A VDI is named '<instance uuid>_<disk name>'. It appears under that name
    only when it is complete: it is a clone of a base image, see sheepdog_base,
    or of a scratch VDI that data was copied into. A clone either is made or
    is not.

    A guest reaches its VDIs by one of two transports: 'native' is QEMU's own
    Sheepdog driver, 'iscsi' is a target of the tgtd of this host.
    """

    # 2^20 objects of 4 MiB; dog refuses to make a larger VDI
    MAX_SIZE = 4 * units.Ti
    SNAPSHOT_TAG = 'nova-snapshot'
    # How often to look whether tgtd has been restarted, in seconds
    RESTORE_INTERVAL = 2

    # What images_sheepdog_transport=auto means here; check_host() finds out.
    _auto_transport = 'iscsi'
    _stop_keeping = None
    # By VDI of which an image is made: the id of the image; then that, the
    # size in bytes and a context that keeps the scratch VDI
    _image_ids: ty.Dict[str, str] = {}
    _snapshots: ty.Dict[str, ty.Tuple] = {}

    def __init__(
        self, instance=None, disk_name=None, path=None, disk_info_mapping=None
    ):
        if path:
            # as find_disk() made it
            self.vdi = path.partition(':')[2]
        else:
            self.vdi = '%s_%s' % (instance.uuid, disk_name)
        super().__init__(
            'sheepdog:' + self.vdi, 'network', 'raw', is_block_dev=False,
            disk_info_mapping=disk_info_mapping)
        self.scratch = self.vdi.partition('_')[0] + '_scratch'
        self._instance = instance
        self._base = None
        # A server that is being built has no disk yet, unless a nova-compute
        # was killed, which create_image() notices.
        self._is_missing = (
            self._get_of_instance('vm_state') == vm_states.BUILDING)
        if self.get_transport() == 'iscsi':
            # tgtd's backing store cannot discard
            self.discard_mode = None

    @classmethod
    def get_transport(cls):
        """Tell how guests of this host reach their VDIs.

        :returns: 'native' or 'iscsi'
        """
        transport = CONF.libvirt.images_sheepdog_transport
        return cls._auto_transport if transport == 'auto' else transport

    def libvirt_info(
        self, cache_mode, extra_specs, boot_order=None, disk_unit=None,
    ):
        """Get `LibvirtConfigGuestDisk` filled for this image.

        :cache_mode: Caching mode for this image
        :extra_specs: Instance type extra specs dict.
        :boot_order: Disk device boot order
        """
        info = super().libvirt_info(cache_mode, extra_specs,
                                    boot_order=boot_order,
                                    disk_unit=disk_unit)
        info.source_path = None
        info.source_protocol = self.get_transport().replace(
            'native', 'sheepdog')
        if info.source_protocol == 'sheepdog':
            info.source_name = self.vdi
            host, port = libvirt_utils.get_sheepdog_gateway()
        else:
            info.source_name = '%s/%s' % (
                libvirt_utils.get_sheepdog_iqn(self.vdi), tgt.LUN)
            host, _colon, port = (
                CONF.libvirt.images_sheepdog_portal.partition(':'))
        info.source_hosts = [host]
        info.source_ports = [port]
        return info

    def _can_fallocate(self):
        return False

    def exists(self):
        # Nova asks several times before it makes a disk.
        if not self._is_missing:
            self._is_missing = not libvirt_utils.sheepdog_vdi_exists(self.vdi)
        return not self._is_missing

    def _get_of_instance(self, name):
        return (getattr(self._instance, name)
                if self._instance and name in self._instance else None)

    @staticmethod
    def is_shared_block_storage():
        return True

    def create_image(
        self, prepare_template, base, size, safe=False, *args, **kwargs):
        self._check_size(size)
        try:
            if not self.exists():
                self._create_image(prepare_template, base, size, args, kwargs)
                self._is_missing = False
                return
        except exception.SheepdogVDIExists:
            self._is_missing = False
        if size:
            self.resize_image(size)

    def _create_image(self, prepare_template, base, size, args, kwargs):
        """Do as create_image() does, with a disk that is not there.

        :raises: exception.SheepdogVDIExists if it is
        """
        name = os.path.basename(base)
        self._base = self._get_base(name, kwargs)
        if self._base is None:
            # Nova copies it from another host, which has it by that name.
            prepare_template(target=base, *args, **kwargs)
            self._import(base, size)
        elif not self._base.clone(self.vdi, size):
            def fetch(target):
                prepare_template(target=target, *args, **kwargs)

            if kwargs.get('image_id') and self._is_for_once():
                with self._local_copy(self.scratch, fetch) as path:
                    self._import(path, size)
            else:
                self._base.provide(
                    lambda: self._base.clone(self.vdi, size),
                    lambda vdi: self._fill(vdi, fetch))

    def _get_base(self, name, arguments):
        """Get the base that a disk may be a clone of.

        :param name: name that Nova's image cache has for it
        :param arguments: what else create_image() was given
        :returns: the sheepdog_base.Base, None if it has none
        """
        if arguments.get('image_id'):
            return sheepdog_base.Base.of_image(
                sheepdog_base.IMAGE_API.get(
                    arguments['context'], arguments['image_id']),
                arguments.get('trusted_certs'))
        if name.startswith('ephemeral_'):
            # The label, which Nova's own cache does not tell apart
            index = self.vdi.partition('.eph')[2] or '0'
            return sheepdog_base.Base.of_template(
                name, arguments.get('specified_fs') or '', index)
        if name.startswith('swap_'):
            return sheepdog_base.Base.of_template(name)
        return None

    def _is_for_once(self):
        """Tell whether the image goes when the instance is there again.

        A resize makes no disk of an image unless it is one to another cell,
        of which its migration context tells nothing there: it is missing.
        """
        return (self._get_of_instance('vm_state') ==
                vm_states.SHELVED_OFFLOADED or
                self._get_of_instance('task_state') ==
                task_states.RESIZE_FINISH)

    def flatten(self):
        """Give up what an image leaves that goes with the next step.

        A clone needs no base; that is for an image which is used but once.
        """
        try:
            if self._base and self._is_for_once():
                self._base.drop()
        except exception.SheepdogError as e:
            LOG.warning('Left base image %(vdi)s for a later image cache '
                        'pass: %(error)s',
                        {'vdi': self._base.vdi, 'error': e})

    @classmethod
    def cache_image(cls, context, image_id):
        """Have the base of an image in the cluster before it is needed.

        :param context: security context
        :param image_id: id of the Glance image
        :returns: True if it was not there
        """
        base = sheepdog_base.Base.of_image(
            sheepdog_base.IMAGE_API.get(context, image_id))
        is_new = False

        def fill(vdi):
            nonlocal is_new
            is_new = True
            return cls._fill(vdi, functools.partial(
                libvirt_utils.fetch_image, context, image_id=image_id))

        base.provide(base.exists, fill)
        return is_new

    @staticmethod
    @contextlib.contextmanager
    def _local_copy(vdi, fetch):
        """Have the raw data of an image in a local file, as long as needed.

        :param vdi: name of the VDI that it is to be copied into
        :param fetch: function that makes the file, its argument the path
        :returns: path of the file
        """
        path = os.path.join(sheepdog_base.get_directory(), vdi)
        with fileutils.remove_path_on_error(path):
            fetch(target=path)
            yield path
        os.unlink(path)

    @classmethod
    def _fill(cls, vdi, fetch):
        """Make a VDI and copy an image into it.

        :param vdi: name of the VDI
        :param fetch: as for _local_copy()
        :returns: its size in bytes
        """
        with cls._local_copy(vdi, fetch) as path:
            size = disk.get_disk_size(path)
            cls._check_vdi_size(vdi, size)
            libvirt_utils.create_sheepdog_vdi(vdi, size)
            cls._copy_in(path, vdi)
        return size

    def resize_image(self, size):
        self._check_size(size)
        libvirt_utils.resize_sheepdog_vdi(self.vdi, size)

    def _check_size(self, size):
        self._check_vdi_size(self.vdi, size)

    @classmethod
    def _check_vdi_size(cls, vdi, size):
        if size and size > cls.MAX_SIZE:
            raise exception.InvalidDiskInfo(
                reason=_('VDI %(vdi)s would have %(size)d GiB, and 4096 GiB '
                         'is the most that Sheepdog can keep in one; use a '
                         'flavor with a smaller disk') %
                {'vdi': vdi, 'size': size // units.Gi})

    def import_file(self, instance, local_file, remote_name):
        libvirt_utils.delete_sheepdog_vdi(self.vdi)
        self._import(local_file)

    def _import(self, path, size=None):
        """Make the VDI, with the data of a local raw file.

        :param path: path of the file
        :param size: size of the VDI in bytes, None for that of the file
        """
        self.verify_base_size(path, size)
        file_size = disk.get_disk_size(path)
        self._check_size(file_size)
        with self._scratch_vdi():
            self._make_scratch(libvirt_utils.create_sheepdog_vdi,
                               self.scratch, max(size or 0, file_size))
            self._copy_in(path, self.scratch)
            libvirt_utils.snapshot_sheepdog_vdi(self.scratch,
                                                self.SNAPSHOT_TAG)
            libvirt_utils.clone_sheepdog_vdi(self.scratch, self.SNAPSHOT_TAG,
                                             self.vdi)

    def snapshot_extract(self, target, out_format, frozen=None):
        """Copy the disk as it is at this moment, whether in use or not.

        :param target: The target path for the image snapshot.
        :param out_format: The image snapshot format.
        :param frozen: context manager to hold while the cluster takes its
            snapshot, which is a part of a second, and not while it is copied
        """
        image_id = self._image_ids.pop(self.vdi, None)
        with contextlib.ExitStack() as scratch:
            scratch.enter_context(self._scratch_vdi())
            with frozen or contextlib.nullcontext():
                if not libvirt_utils.snapshot_sheepdog_disk(
                        self.vdi, self.SNAPSHOT_TAG):
                    raise exception.DiskNotFound(location=self.path)
            try:
                self._make_scratch(libvirt_utils.clone_sheepdog_vdi,
                                   self.vdi, self.SNAPSHOT_TAG, self.scratch)
            finally:
                libvirt_utils.delete_sheepdog_vdi(self.vdi,
                                                  self.SNAPSHOT_TAG)
            self._copy_out(self.scratch, target, out_format)
            if image_id and self._may_be_base(image_id, target, out_format):
                self._snapshots[self.vdi] = (
                    image_id, disk.get_disk_size(target), scratch.pop_all())

    def direct_snapshot(self, context, snapshot_name, image_format,
                        image_id, base_image_id):
        """Learn which image is about to be made; it is made by a copy."""
        # That of a resize to another cell is booted from there, where the
        # cluster is another one, and goes.
        if self._get_of_instance('task_state') != task_states.RESIZE_MIGRATING:
            self._image_ids[self.vdi] = image_id
        raise NotImplementedError()

    def cleanup_direct_snapshot(self, location, also_destroy_volume=False,
                                ignore_errors=False):
        """Give up the base of an image that was not uploaded."""
        if self.vdi in self._snapshots:
            _image_id, _size, scratch = self._snapshots.pop(self.vdi)
            try:
                scratch.close()
            except exception.NovaException as e:
                self._warn_of_scratch(e)

    def publish_snapshot(self, context):
        """Make the base of an image that has been uploaded.

        A boot can do without, so nothing is raised.

        :param context: security context
        """
        if self.vdi not in self._snapshots:
            return
        image_id, size, scratch = self._snapshots.pop(self.vdi)

        def is_intact():
            # Nova deletes the scratch VDI with the instance, and says so
            # before it begins.
            instance = objects.Instance.get_by_uuid(
                context, self._instance.uuid)
            return instance.task_state != task_states.DELETING

        try:
            with scratch:
                image = sheepdog_base.IMAGE_API.get(context, image_id)
                if image['status'] != 'active':
                    return
                libvirt_utils.snapshot_sheepdog_vdi(self.scratch,
                                                    self.SNAPSHOT_TAG)
                sheepdog_base.Base.of_image(
                    image, signed=False).make_of_snapshot(
                        self.scratch, self.SNAPSHOT_TAG, size, is_intact)
        except Exception as e:
            LOG.warning('Image %(image)s is complete, and its first boot '
                        'will import it: %(error)s',
                        {'image': image_id, 'error': e},
                        instance=self._instance)

    def _may_be_base(self, image_id, path, path_format):
        """Have Nova check what a guest has written to its disk.

        A boot from the image would be refused if the disk looked like, say,
        a QCOW2 file that refers to others.

        :param image_id: id of the image
        :param path: path of the file to be uploaded
        :param path_format: its format
        :returns: whether the checks of a boot from it would pass
        """
        head = path + '.head'
        try:
            libvirt_utils.run_with_time_limit(
                'qemu-img', 'dd', '-f', path_format, '-O', 'raw', 'bs=1M',
                'count=1', 'if=' + path, 'of=' + head,
                timeout=CONF.libvirt.images_sheepdog_timeout)
            # Nova before 28 has no inspection of its own.
            inspect = getattr(images, 'do_image_deep_inspection', None)
            if inspect:
                inspect({'disk_format': 'raw'}, image_id, head)
            return (path_format in ('raw', 'qcow2') and
                    images.qemu_img_info(head).file_format == 'raw')
        except (exception.NovaException, processutils.ProcessExecutionError,
                OSError) as e:
            LOG.warning('The disk does not become a base image: %s', e,
                        instance=self._instance)
            return False
        finally:
            fileutils.delete_if_exists(head)

    @contextlib.contextmanager
    def _scratch_vdi(self):
        """Have no scratch VDI any more when the body ends."""
        try:
            yield
        except Exception:
            with excutils.save_and_reraise_exception():
                try:
                    self._delete_scratch(self.vdi)
                except exception.NovaException as e:
                    self._warn_of_scratch(e)
        else:
            self._delete_scratch(self.vdi)

    def _warn_of_scratch(self, error):
        LOG.warning('Left scratch VDI %(vdi)s for the deletion of its '
                    'instance: %(error)s',
                    {'vdi': self.scratch, 'error': error})

    def _make_scratch(self, make, *arguments):
        try:
            make(*arguments)
        except exception.SheepdogVDIExists:
            # of a nova-compute that was killed
            self._delete_scratch(self.vdi)
            make(*arguments)

    @classmethod
    def _delete_scratch(cls, vdi):
        # The VDI goes last: as long as it is there, _make_scratch() notices
        # what is left.
        libvirt_utils.delete_sheepdog_vdi_and_snapshots(
            vdi.partition('_')[0] + '_scratch', cls.SNAPSHOT_TAG)

    @classmethod
    def _copy_in(cls, path, vdi):
        """Copy a local raw file to a VDI that is new.

        :param path: path of the file
        :param vdi: name of the VDI
        """
        size = os.stat(path).st_blocks * 512
        progress = libvirt_utils.SheepdogProgress(
            'Import into VDI %s' % vdi, size)
        with cls._reachable(vdi) as target:
            libvirt_utils.copy_with_qemu_img(
                cls._get_options({'driver': 'raw', 'file.filename': path}),
                target, size,
                progress.begin(size))

    @classmethod
    def _copy_out(cls, vdi, path, path_format):
        """Copy what a VDI has allocated to a file.

        Only that is read, as tgtd would send the zeros of the rest.

        :param vdi: name of the VDI, which no guest uses
        :param path: path of the file
        :param path_format: its format
        """
        with cls._reachable(vdi) as source:
            size = libvirt_utils.get_size_by_qemu_img(source)
            pieces = libvirt_utils.get_sheepdog_pieces(vdi, size)
            progress = libvirt_utils.SheepdogProgress(
                'Copy of VDI %s' % vdi, sum(length for _start, length in
                                            pieces))
            libvirt_utils.create_with_qemu_img(path, path_format, size)
            for start, length in pieces:
                part = ',offset=%d,size=%d' % (start, length)
                libvirt_utils.copy_with_qemu_img(
                    source + part, cls._get_options({
                        'driver': 'raw', 'file.driver': path_format,
                        'file.file.filename': path}) + part, length,
                    progress.begin(length))

    @staticmethod
    def _get_options(options):
        # A comma would end one.
        return ','.join('%s=%s' % (name, value.replace(',', ',,'))
                        for name, value in options.items())

    @classmethod
    @contextlib.contextmanager
    def _reachable(cls, vdi):
        """Have a VDI within reach of qemu-img.

        :param vdi: name of the VDI, which no guest uses
        :returns: the VDI, as qemu-img's --image-opts has it
        """
        if cls.get_transport() == 'native':
            host, port = libvirt_utils.get_sheepdog_gateway()
            options = {'driver': 'sheepdog', 'server.type': 'inet',
                       'server.host': host, 'server.port': port, 'vdi': vdi}
            exported = contextlib.nullcontext()
        else:
            # A name of its own: a copy that outlived its nova-compute must
            # not find the target of the next one.
            iqn = '%s.%s' % (libvirt_utils.get_sheepdog_iqn(vdi),
                             uuidutils.generate_uuid(dashed=False))
            options = {'driver': 'iscsi', 'transport': 'tcp',
                       'portal': CONF.libvirt.images_sheepdog_portal,
                       'target': iqn, 'lun': tgt.LUN}
            exported = tgt.exported(iqn, vdi)
        with exported:
            yield cls._get_options({'driver': 'raw', **{
                'file.' + name: value for name, value in options.items()}})

    def get_model(self, connection):
        raise exception.Invalid(
            _('Nova cannot inject files, keys or passwords into VDI %s; use a '
              'config drive or the metadata service, and leave '
              '[libvirt]inject_partition at -2') % self.vdi)

    @classmethod
    def check_host(cls, host):
        """Make sure that this host can run guests on Sheepdog.

        :param host: the nova.virt.libvirt.host.Host
        :raises: exception.InvalidConfiguration, with what to change
        """
        rootwrap.start()
        try:
            cls._check_options()
            libvirt_utils.check_sheepdog_cluster()
            cls._check_transport(host)
        except (exception.SheepdogError, exception.TgtError) as e:
            raise exception.InvalidConfiguration(
                _("[libvirt]images_type = sheepdog cannot be used: %s") % e)

    @staticmethod
    def _check_options():
        def refuse(option, reason):
            raise exception.InvalidConfiguration(
                _("%(option)s does not go with [libvirt]images_type = "
                  "sheepdog: %(reason)s") %
                {'option': option, 'reason': reason})

        if CONF.libvirt.virt_type not in ('kvm', 'qemu'):
            refuse('[libvirt]virt_type = %s' % CONF.libvirt.virt_type,
                   _('use kvm or qemu'))
        if not CONF.force_raw_images:
            refuse('[DEFAULT]force_raw_images = False',
                   _('VDIs hold raw data; set it to True'))
        if CONF.libvirt.inject_partition != -2:
            refuse('[libvirt]inject_partition = %d' %
                   CONF.libvirt.inject_partition,
                   _('Nova cannot change what is on a VDI; set it to -2'))
        if CONF.ephemeral_storage_encryption.enabled:
            refuse('[ephemeral_storage_encryption]enabled = True',
                   _('VDIs are not encrypted; set it to False'))
        host = CONF.libvirt.images_sheepdog_host
        if host != 'localhost' and not netutils.is_valid_ipv4(host):
            refuse('[libvirt]images_sheepdog_host = %s' % host,
                   _('Sheepdog takes an IPv4 address or localhost'))
        portal = CONF.libvirt.images_sheepdog_portal
        address, _colon, port = portal.partition(':')
        if not (netutils.is_valid_ipv4(address) and
                netutils.is_valid_port(port)):
            refuse('[libvirt]images_sheepdog_portal = %s' % portal,
                   _('give an IPv4 address and a port, such as '
                     '127.0.0.1:3260'))

    @classmethod
    def _check_transport(cls, host):
        """Find out what 'auto' means, and try the transport.

        :param host: the nova.virt.libvirt.host.Host
        :raises: exception.InvalidConfiguration or exception.TgtError
        """
        emulators = {
            domain.emulator for guest in host.get_capabilities().guests
            for virt_type, domain in guest.domains.items()
            if guest.arch == host.get_capabilities().host.cpu.arch and
            virt_type == CONF.libvirt.virt_type and domain.emulator}
        if CONF.libvirt.images_sheepdog_transport == 'auto':
            native = not cls._find_lack('sheepdog', emulators)
            cls._auto_transport = 'native' if native else 'iscsi'
        lack = cls._find_lack(
            cls.get_transport().replace('native', 'sheepdog'), emulators)
        if lack:
            raise exception.InvalidConfiguration(
                _("[libvirt]images_sheepdog_transport = %(transport)s cannot "
                  "be used: %(lack)s. The native transport wants a QEMU "
                  "before 6.1 built with Sheepdog, and the iscsi transport "
                  "one with libiscsi (Debian: the package "
                  "qemu-block-extra)") %
                {'transport': cls.get_transport(), 'lack': lack})
        if cls.get_transport() == 'iscsi':
            if CONF.libvirt.images_sheepdog_port > 9999:
                raise exception.InvalidConfiguration(
                    _("[libvirt]images_sheepdog_port = %d cannot be used "
                      "with the iscsi transport: tgtd reads four digits of it "
                      "(seen in tgt 1.0.85). Have sheep listen on a port "
                      "below 10000") % CONF.libvirt.images_sheepdog_port)
            tgt.check()
            cls._check_portal()
        LOG.info('Guests reach their VDIs by the %s transport',
                 cls.get_transport())

    @staticmethod
    def _find_lack(protocol, emulators):
        """Find a program of this host's QEMU that lacks a block driver.

        :param protocol: 'sheepdog' or 'iscsi'
        :param emulators: set of the paths of libvirt's emulators; what
            stands elsewhere, as in another container, is not asked
        :returns: what lacks it, None if all have it
        """
        target = {
            'sheepdog': ('server.type=inet,server.host=127.0.0.1,'
                         'server.port=1,vdi=none'),
            'iscsi': ('transport=tcp,portal=127.0.0.1:1,'
                      'target=iqn.2014-06.org.openstack.nova:none,lun=1'),
        }[protocol]
        commands = [
            (emulator, '-machine', 'none', '-nodefaults', '-display', 'none',
             '-blockdev', 'driver=%s,node-name=none,%s' % (protocol, target))
            for emulator in emulators if os.path.exists(emulator)]
        commands.append(('qemu-img', 'info', '--image-opts',
                         'driver=%s,%s' % (protocol, target)))
        # There is nothing at the address, so all of them fail; what they say
        # tells whether the driver got as far as that.
        for command in commands:
            try:
                libvirt_utils.run_with_time_limit(*command, timeout=20)
            except processutils.ProcessExecutionError as e:
                if e.exit_code == 127:
                    return e.stderr.strip()
                if any(words in e.stderr for words in (
                        "does not accept value '%s'" % protocol,
                        "Unknown driver '%s'" % protocol,
                        "Unknown protocol '%s'" % protocol,
                        'failed to open module')):
                    return _('%(program)s has no %(protocol)s driver') % {
                        'program': command[0], 'protocol': protocol}
        return None

    @staticmethod
    def _check_portal():
        address, _colon, port = (
            CONF.libvirt.images_sheepdog_portal.partition(':'))
        try:
            socket.create_connection((address, int(port)), timeout=10).close()
        except OSError as e:
            raise exception.InvalidConfiguration(
                _("Nobody answers at [libvirt]images_sheepdog_portal = "
                  "%(portal)s: %(error)s. Start tgtd with '--iscsi "
                  "portal=%(portal)s', or name the portal it has") %
                {'portal': CONF.libvirt.images_sheepdog_portal, 'error': e})

    @staticmethod
    def get_exports(guest_config):
        """Tell which targets a guest needs.

        :param guest_config: its vconfig.LibvirtConfigGuest
        :returns: dict of IQN to name of the VDI
        """
        return {libvirt_utils.get_sheepdog_iqn(vdi): vdi
                for vdi in Sheepdog._get_vdis(guest_config, 'iscsi')}

    @staticmethod
    def _get_vdis(guest_config, protocol):
        vdis = (libvirt_utils.get_sheepdog_vdi_of_disk(device)
                for device in guest_config.devices
                if isinstance(device, vconfig.LibvirtConfigGuestDisk) and
                device.source_protocol == protocol)
        # and not a volume
        return [vdi for vdi in vdis if vdi and
                uuidutils.is_uuid_like(vdi.partition('_')[0])]

    @classmethod
    def export_disks(cls, xml):
        """Have the disks ready of a guest that is about to start.

        :param xml: XML of the guest
        :raises: exception.TgtError or exception.SheepdogError
        """
        guest_config = vconfig.LibvirtConfigGuest()
        guest_config.parse_str(xml)
        # tgtd says so if there is none, and QEMU does not.
        for vdi in cls._get_vdis(guest_config, 'sheepdog'):
            if not (libvirt_utils.sheepdog_vdi_exists(vdi) or
                    cls._finish_roll_back(vdi)):
                raise libvirt_utils.get_sheepdog_error(
                    'dog vdi getattr %s nova' % vdi, _('no such VDI'))
        vdis = cls.get_exports(guest_config)
        try:
            tgt.export(vdis)
        except exception.TgtError:
            with excutils.save_and_reraise_exception() as context:
                if {vdi for vdi in vdis.values()
                        if cls._finish_roll_back(vdi)}:
                    context.reraise = False
                    tgt.export(vdis)

    @staticmethod
    def _finish_roll_back(vdi):
        """Make a disk again that an interrupted roll_back_disks() deleted.

        :param vdi: name of the VDI
        :returns: False if it is there, or was not deleted by that
        :raises: exception.SheepdogError
        """
        try:
            libvirt_utils.clone_sheepdog_vdi(
                vdi, libvirt_utils.RESIZE_SNAPSHOT_NAME, vdi)
        except (exception.SheepdogVDINotFound, exception.SheepdogVDIExists):
            return False
        LOG.warning('Made VDI %s again as it was before the resize, whose '
                    'reversal was interrupted', vdi)
        return True

    @classmethod
    def keep_exports(cls, host, is_arriving):
        """Make the targets of running guests again whenever tgtd restarts.

        QEMU's initiator logs in again by itself when they are back. A guest
        whose instance is on another host, where it was evacuated to, gets
        none: it would write to what is used there.

        :param host: the nova.virt.libvirt.host.Host
        :param is_arriving: function that tells whether a guest, a
            nova.virt.libvirt.guest.Guest, is being migrated to this host
        """
        if cls.get_transport() != 'iscsi':
            return
        seen = None
        elsewhere = set()

        def get_vdis():
            nonlocal elsewhere
            instances = objects.InstanceList.get_uuids_by_host(
                nova_context.get_admin_context(), CONF.host)
            vdis = {}
            before, elsewhere = elsewhere, set()
            for guest in host.list_guests(only_running=True):
                if guest.uuid in instances or is_arriving(guest):
                    vdis.update(cls.get_exports(guest.get_config()))
                else:
                    elsewhere.add(guest.uuid)
            if elsewhere - before:
                LOG.warning('No target is made for guests whose instances '
                            'are on another host: %s', ', '.join(elsewhere))
            return vdis

        def restore():
            nonlocal seen
            start = tgt.get_tgtd_start()
            if start is None or start == seen:
                return
            try:
                vdis = tgt.restore(get_vdis)
            except Exception as e:
                LOG.error('Cannot restore the targets of running guests, '
                          'which hang until then; trying again: %s', e)
            else:
                # One of them may be on its way here.
                seen = None if elsewhere else start
                if vdis:
                    LOG.info('tgtd had been restarted; exported again: %s',
                             ', '.join(vdis))

        def keep(stop):
            while True:
                restore()
                if stop.wait(cls.RESTORE_INTERVAL):
                    return

        cls.stop_keeping_exports()
        cls._stop_keeping = threading.Event()
        # Not a looping call: one that is not stopped keeps the process, and
        # drivers before Nova 34 are not told when to stop.
        threading.Thread(target=keep, args=(cls._stop_keeping,),
                         daemon=True).start()

    @classmethod
    def stop_keeping_exports(cls):
        """End what keep_exports() does."""
        if cls._stop_keeping:
            cls._stop_keeping.set()

    @classmethod
    def _may_export(cls):
        """Tell whether this host may have targets.

        If not, tgt need not even be installed.
        """
        return (cls.get_transport() == 'iscsi' or
                tgt.get_tgtd_start() is not None)

    @classmethod
    def unexport_disks(cls, instance, ignore_errors=False):
        """Remove the targets of an instance from this host.

        :param instance: the nova.objects.instance.Instance
        :param ignore_errors: whether to log an error and go on
        :raises: exception.TgtError
        """
        if not cls._may_export():
            return
        try:
            tgt.unexport(libvirt_utils.get_sheepdog_iqn(instance.uuid + '_'))
        except exception.TgtError as e:
            if not ignore_errors:
                raise
            LOG.warning('Left targets of an instance that is not on this '
                        'host: %s', e, instance=instance)

    @classmethod
    def get_exported(cls):
        """Tell what this host exports.

        :returns: set of the UUIDs of instances, and of images that are being
            imported
        :raises: exception.TgtError
        """
        if not cls._may_export():
            return set()
        prefix = libvirt_utils.SHEEPDOG_IQN
        return {iqn[len(prefix):].partition('.')[0]
                for iqn in tgt.get_targets(prefix)}

    @classmethod
    def clean_up_imports(cls):
        """Remove what the imports of a nova-compute left that was killed.

        It does no harm, so an error is no reason not to start.
        """
        if cls._may_export():
            # A copy that goes on without it is ended by that.
            try:
                tgt.unexport(libvirt_utils.SHEEPDOG_IQN, part='.import.')
            except exception.TgtError as e:
                LOG.warning('Left targets of imports: %s', e)
        sheepdog_base.delete_half_made()

    @staticmethod
    def get_snapshot_prefix():
        """Tell how the directories begin that images are made in.

        They stand beside those of other hosts where snapshots_directory is
        shared.

        :returns: the prefix for tempfile.mkdtemp(), which adds 8 characters
        """
        if CONF.libvirt.images_type != 'sheepdog':
            return tempfile.gettempprefix()
        return 'sheepdog-%s-' % CONF.host

    @classmethod
    def clean_up_snapshots(cls):
        """Remove the files of images that a killed nova-compute was making.
        """
        parent = CONF.libvirt.snapshots_directory
        pattern = re.compile(
            re.escape(cls.get_snapshot_prefix()) + '[a-z0-9_]{8}')
        for name in os.listdir(parent) if os.path.isdir(parent) else ():
            if pattern.fullmatch(name):
                LOG.info('Removing %s, in which an image was made', name)
                shutil.rmtree(os.path.join(parent, name), ignore_errors=True)

    @classmethod
    def delete_disks(cls, instance, names):
        """Delete VDIs of an instance and the snapshots Nova took of them.

        :param instance: the nova.objects.instance.Instance
        :param names: names of the disks; those that do not exist are left
            out
        :raises: exception.SheepdogError if one is left
        """
        cls._delete_scratch('%s_' % instance.uuid)
        for name in names:
            cls._delete_disk(instance, name, *cls._get_tags(name))

    @classmethod
    def _get_tags(cls, name):
        """Name the snapshots that Nova takes of a disk.

        :param name: name of the disk
        :returns: list of tags
        """
        tags = []
        if name in ('disk', 'disk.rescue'):
            # An image is made of it.
            tags.append(cls.SNAPSHOT_TAG)
        if not name.endswith('.rescue'):
            # A server that is in rescue cannot be resized.
            tags.append(libvirt_utils.RESIZE_SNAPSHOT_NAME)
        return tags

    @classmethod
    def _get_resized(cls, instance, names):
        """Name the VDIs of which a resize keeps a snapshot."""
        return ['%s_%s' % (instance.uuid, name) for name in names
                if libvirt_utils.RESIZE_SNAPSHOT_NAME in cls._get_tags(name)]

    @staticmethod
    def _delete_disk(instance, name, *tags):
        """Delete a VDI of an instance and snapshots of it.

        :param instance: the nova.objects.instance.Instance
        :param name: name of the disk
        :param tags: names of the snapshots
        :raises: exception.SheepdogError if one is left
        """
        vdi = '%s_%s' % (instance.uuid, name)
        if (libvirt_utils.delete_sheepdog_vdi_and_snapshots(vdi, *tags) and
                libvirt_utils.sheepdog_vdi_exists(vdi)):
            raise libvirt_utils.get_sheepdog_error(
                'dog vdi delete %s' % vdi,
                _('the VDI is still there; delete the server again'))

    @classmethod
    def delete_working_disks(cls, instance, names):
        """Delete VDIs of an instance, but not their snapshots.

        The parameters and exceptions are those of delete_disks().
        """
        for name in names:
            cls._delete_disk(instance, name)

    @classmethod
    def delete_snapshots(cls, instance, names):
        """Delete what snapshot_disks() keeps.

        The parameters and exceptions are those of delete_disks().
        """
        for vdi in cls._get_resized(instance, names):
            libvirt_utils.delete_sheepdog_vdi(
                vdi, libvirt_utils.RESIZE_SNAPSHOT_NAME)

    @classmethod
    def snapshot_disks(cls, instance, names):
        """Keep VDIs of an instance as they are before its resize.

        :param instance: the nova.objects.instance.Instance, shut down
        :param names: names of the disks; those that do not exist are left
            out
        :raises: exception.SheepdogError
        """
        for vdi in cls._get_resized(instance, names):
            libvirt_utils.snapshot_sheepdog_disk(
                vdi, libvirt_utils.RESIZE_SNAPSHOT_NAME)

    @classmethod
    def roll_back_disks(cls, instance, names):
        """Have VDIs as they were when snapshot_disks() was called.

        It may be called again when it was interrupted. 'dog vdi rollback'
        would delete the disk and make it again as well, but who is to call it
        again when there is no disk?

        :param instance: the nova.objects.instance.Instance, shut down
        :param names: names of the disks; those that have no such snapshot
            are left as they are
        :raises: exception.SheepdogError
        """
        for vdi in cls._get_resized(instance, names):
            tag = libvirt_utils.RESIZE_SNAPSHOT_NAME
            try:
                libvirt_utils.clone_sheepdog_vdi(vdi, tag, vdi)
            except exception.SheepdogVDINotFound:
                continue
            except exception.SheepdogVDIExists:
                # so there is the snapshot to make it of
                libvirt_utils.delete_sheepdog_vdi(vdi)
                libvirt_utils.clone_sheepdog_vdi(vdi, tag, vdi)
            libvirt_utils.delete_sheepdog_vdi(vdi, tag)


class Backend:

    substitute('__init__', 'self.BACKEND = {',
               "            'rbd': Rbd,\n",
               "            'rbd': Rbd,\n"
               "            'sheepdog': Sheepdog,\n")
