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

"""Base images in a Sheepdog cluster, one for all hosts.

The names of their VDIs begin with the id of a Glance image, or with an id
made of the name that Nova's image cache gives to an ephemeral disk or swap:

``<id>_base.<digest>``
    has a snapshot to be cloned, and is there as long as that may be cloned.
    The digest is one of all that a boot relies on: what Glance says of the
    data, and the checks that it has passed. A boot that wants other data or
    more checks looks for another name.
``<id>_record.<digest>``
    holds the size of the base and the time of the last boot from it.
``<id>_import.<token>``
    is what an image is copied into. Each import has a token of its own; the
    base is a clone, which is there with all its data or not at all.
``<id>_lease.<generation>``
    see lease.py.

dog clears the table of a snapshot before it deletes it, and a clone that is
made meanwhile reads as zeros (Sheepdog 1.0.1). So the base goes before its
snapshot, and a boot that has cloned looks whether the base is still there.
"""

import collections
from concurrent import futures
import contextlib
import glob
import hashlib
import os
import re
import shutil
import threading
import time
import uuid

from oslo_concurrency import lockutils
from oslo_log import log as logging
from oslo_serialization import jsonutils
from oslo_utils import excutils
from oslo_utils import fileutils
from oslo_utils import units

from nova.compute import task_states
import nova.conf
from nova import context as nova_context
from nova import exception
from nova.i18n import _
from nova.image import glance
from nova import objects
from nova.virt.disk import api as disk
from nova.virt import images as virt_images
from nova.virt.libvirt.sheepdog import lease as leases
from nova.virt.libvirt.sheepdog import rootwrap
from nova.virt.libvirt import utils as libvirt_utils

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)
IMAGE_API = glance.API()

TAG = 'nova-base'
# Tag of a disk or scratch VDI, for the moment until it has been cloned.
SNAPSHOT_TAG = 'nova-snapshot'
# Maximum number of imports that are begun for one boot, if other hosts take
# over or delete the base.
ATTEMPTS = 3
# Maximum of seconds between two notes of a host that it booted from a base.
USE_INTERVAL = 3600
# Seconds between two looks whether a server that waits has been deleted.
DELETION_INTERVAL = 5

# For ids that are made of names.
NAMESPACE = uuid.UUID('0b2f5b56-6a62-4d4e-9f0e-27c1f7a0e1d5')
AGEING = str(uuid.uuid5(NAMESPACE, 'ageing'))
_LEASE_NOTE = re.compile(r'([0-9a-f-]{36})_lease\.([0-9]+)\.([0-9a-f]{32})')
_SNAPSHOT_NOTE = 'snapshot.'


def check_size(vdi, size):
    """Refuse a VDI that Sheepdog cannot keep.

    :param vdi: name of the VDI
    :param size: its size in bytes, or None
    :raises: exception.InvalidDiskInfo
    """
    if size and size > libvirt_utils.SHEEPDOG_MAX_SIZE:
        raise exception.InvalidDiskInfo(
            reason=_('VDI %(vdi)s would have %(size)d GiB, and 4096 GiB is '
                     'the most that Sheepdog can keep in one; use a flavor '
                     'with a smaller disk') %
            {'vdi': vdi, 'size': size // units.Gi})


def _delete(vdi):
    """Delete a VDI that holds data, and then its snapshot."""
    libvirt_utils.delete_sheepdog_vdi(vdi)
    libvirt_utils.delete_sheepdog_vdi(vdi, TAG)


def remove_scratch(vdi):
    """Delete a scratch VDI, or leave it for the deletion of its instance.

    :param vdi: its name
    """
    try:
        libvirt_utils.remove_sheepdog_vdi(vdi, SNAPSHOT_TAG)
    except exception.SheepdogError as e:
        LOG.warning('Left scratch VDI %(vdi)s for the deletion of its '
                    'instance: %(error)s', {'vdi': vdi, 'error': e})


@contextlib.contextmanager
def local_copy(vdi, make):
    """Have the raw data of an image in a local file, as long as needed.

    :param vdi: name of the VDI that it is to be copied into
    :param make: function that makes the file, its argument the path
    :returns: path of the file
    """
    path = os.path.join(leases.get_directory(), vdi)
    try:
        make(target=path)
        yield path
    finally:
        fileutils.delete_if_exists(path)


def _get_progress(path):
    """Return what grows while an image is downloaded and converted."""
    blocks = 0
    # Nova adds a suffix for each step.
    for name in glob.glob(glob.escape(path) + '*'):
        with contextlib.suppress(FileNotFoundError):
            blocks += os.stat(name).st_blocks
    return blocks


class Base:
    """The base of one image, in one cluster."""

    def __init__(self, images, key, identity):
        """:param images: the Images of this host
        :param key: id that the names of its VDIs begin with
        :param identity: all that a boot relies on, to be written as JSON; or
            the digest of that, a str
        """
        self._images = images
        self.key = key
        self.digest = (
            identity if isinstance(identity, str) else hashlib.sha256(
                jsonutils.dump_as_bytes(identity, sort_keys=True)
            ).hexdigest()[:32])
        self.vdi = libvirt_utils.get_sheepdog_vdi(key, 'base.' + self.digest)
        self._record = libvirt_utils.get_sheepdog_vdi(
            key, 'record.' + self.digest)

    def _fetch(self, target):
        """Make a raw file of the data, its path the target."""
        raise NotImplementedError()

    def exists(self):
        """Tell whether it is there, and has not begun to be deleted.

        :raises: exception.SheepdogError
        """
        return libvirt_utils.sheepdog_vdi_exists(self.vdi)

    def is_complete(self):
        """Tell whether it can be cloned.

        A host that dies as it makes the base leaves one without a snapshot.

        :raises: exception.SheepdogError
        """
        return self.exists() and libvirt_utils.sheepdog_snapshot_exists(
            self.vdi, TAG)

    def clone(self, vdi, size=None):
        """Make a disk of the base.

        :param vdi: name of the VDI to make
        :param size: its size in bytes, None for that of the image
        :returns: False if there is no base
        :raises: exception.FlavorDiskSmallerThanImage,
            exception.SheepdogVDIExists or exception.SheepdogError
        """
        try:
            libvirt_utils.clone_sheepdog_vdi(self.vdi, TAG, vdi)
        except exception.SheepdogVDINotFound:
            return False
        try:
            with futures.ThreadPoolExecutor(1) as meanwhile:
                exists = meanwhile.submit(self.exists)
                if size and not libvirt_utils.resize_sheepdog_vdi(vdi, size):
                    raise exception.FlavorDiskSmallerThanImage(
                        flavor_size=size, image_size=self._read_record()[0])
            if not exists.result():
                # Its snapshot may have been on its way out.
                libvirt_utils.remove_sheepdog_vdi(vdi)
                return False
        except Exception:
            with excutils.save_and_reraise_exception(logger=LOG):
                libvirt_utils.remove_sheepdog_vdi(vdi)
        self._note_use()
        return True

    def _read_record(self):
        """Return the size in bytes, and the time of the last use."""
        text = libvirt_utils.read_sheepdog_record(self._record)
        try:
            size, used = text.split()
            return int(size), int(used)
        except ValueError:
            raise exception.SheepdogVDINotFound(reason=self._record)

    def _write_record(self, size):
        libvirt_utils.write_sheepdog_record(
            self._record, '%d %d' % (size, time.time()))
        self._images.noted[self.vdi] = time.monotonic()

    def _note_use(self):
        interval = min(USE_INTERVAL, CONF.image_cache.
                       remove_unused_original_minimum_age_seconds / 4)
        last = self._images.noted.get(self.vdi)
        if last is not None and time.monotonic() - last < interval:
            return
        try:
            self._write_record(self._read_record()[0])
        except exception.SheepdogError as e:
            LOG.warning('Cannot note that %(vdi)s is in use: %(error)s',
                        {'vdi': self.vdi, 'error': e})

    def get_last_use(self):
        """Return the time of the last boot from it, None if it has no record.

        :raises: exception.SheepdogError
        """
        try:
            return self._read_record()[1]
        except exception.SheepdogVDINotFound:
            # The host that made or deleted it has died.
            return None

    def is_unused(self, age):
        """Tell whether there was no boot from it for so many seconds.

        :raises: exception.SheepdogError
        """
        used = self.get_last_use()
        return used is None or time.time() - used >= age

    def provide(self, instance=None):
        """Make the base if there is none; of all hosts that want it one does.

        :param instance: the nova.objects.instance.Instance that waits for it;
            it stops waiting if it is deleted
        :returns: whether this call made it
        :raises: exception.UnexpectedDeletingTaskStateError,
            exception.SheepdogError, or what Nova raises for a bad image
        """
        waiting = _Waiting(instance)
        lock = lockutils.internal_lock('sheepdog-base-' + self.key)
        while not lock.acquire(timeout=leases.POLL):
            waiting.check()
        try:
            for attempt in range(ATTEMPTS, 0, -1):
                lease = self._images.leases.wait(
                    self.key, self.is_complete, self.digest, waiting.check)
                if lease is None:
                    return False
                try:
                    with lease:
                        if self.is_complete():
                            return False
                        self._import(lease)
                    return True
                except Exception as e:
                    if not lease.is_lost or attempt == 1:
                        raise
                    LOG.warning('Another host may have taken over the import '
                                'of %(vdi)s: %(error)s',
                                {'vdi': self.vdi, 'error': e})
        finally:
            lock.release()

    def _import(self, lease):
        vdi = libvirt_utils.get_sheepdog_vdi(self.key, 'import.' + lease.token)
        path = os.path.join(leases.get_directory(), vdi)
        begun = []
        lease.watch(lambda: _get_progress(path))
        lease.watch(lambda: [progress.done for progress in begun])
        try:
            with local_copy(vdi, self._fetch):
                size = disk.get_disk_size(path)
                check_size(vdi, size)
                lease.run(libvirt_utils.create_sheepdog_vdi, vdi, size)
                self._images.transfer.copy_in(path, vdi, begun)
            lease.run(libvirt_utils.snapshot_sheepdog_vdi, vdi, TAG)
            self.publish(lease, vdi, TAG, size, lambda:
                         libvirt_utils.sheepdog_vdi_exists(vdi))
        finally:
            try:
                _delete(vdi)
            except exception.SheepdogError as e:
                LOG.warning('Left VDI %(vdi)s for an image cache pass: '
                            '%(error)s', {'vdi': vdi, 'error': e})

    def publish(self, lease, vdi, tag, size, is_intact):
        """Make the base, and the snapshot by which all hosts see it.

        :param lease: the Lease of this image
        :param vdi: name of the VDI that has the data
        :param tag: name of the snapshot of that
        :param size: its size in bytes
        :param is_intact: function that tells when it has been cloned whether
            nobody has begun to delete the snapshot
        :raises: exception.SheepdogError
        """
        self.remove(lease)
        lease.run(libvirt_utils.clone_sheepdog_vdi, vdi, tag, self.vdi)
        try:
            if not is_intact():
                raise exception.SheepdogVDINotFound(reason=vdi)
            lease.run(libvirt_utils.create_sheepdog_vdi, self._record,
                      libvirt_utils.SHEEPDOG_SMALL)
            self._write_record(size)
            lease.run(libvirt_utils.snapshot_sheepdog_vdi, self.vdi, TAG)
        except Exception:
            with excutils.save_and_reraise_exception(logger=LOG):
                self.remove(lease)
        LOG.info('Made base image %(vdi)s of %(size)d bytes for all hosts',
                 {'vdi': self.vdi, 'size': size})

    def remove(self, lease):
        """Delete the base, or what is left of one.

        :param lease: the Lease of this image
        :raises: exception.SheepdogError
        """
        for arguments in (self.vdi,), (self.vdi, TAG), (self._record,):
            lease.run(libvirt_utils.delete_sheepdog_vdi, *arguments)

    def drop(self):
        """Delete the base, unless a host is about to make it.

        A later boot can make it again, so nothing is raised.
        """
        try:
            lease = self._images.leases.take(self.key, digest=self.digest)
            if lease:
                with lease:
                    self.remove(lease)
        except exception.SheepdogError as e:
            LOG.warning('Left base image %(vdi)s for a later image cache '
                        'pass: %(error)s', {'vdi': self.vdi, 'error': e})


class _Waiting:
    """A server that waits for an image, until it is deleted."""

    def __init__(self, instance):
        self._instance = instance
        self._checked = time.monotonic()

    def check(self):
        """:raises: exception.UnexpectedDeletingTaskStateError or
            exception.InstanceNotFound if it does not want the image any more
        """
        if not self._instance or (
                time.monotonic() - self._checked < DELETION_INTERVAL):
            return
        self._checked = time.monotonic()
        instance = objects.Instance.get_by_uuid(
            nova_context.get_admin_context(), self._instance.uuid)
        if instance.task_state == task_states.DELETING:
            raise exception.UnexpectedDeletingTaskStateError(
                instance_uuid=instance.uuid,
                expected={'task_state': [self._instance.task_state]},
                actual={'task_state': instance.task_state})


class ImageBase(Base):
    """The base of a Glance image."""

    def __init__(self, images, context, image_id, trusted_certs=None):
        """:param images: the Images of this host
        :param context: security context
        :param image_id: id of the image
        :param trusted_certs: the objects.TrustedCerts that a boot demands
        """
        self._context = context
        self._image_id = image_id
        self._trusted_certs = trusted_certs
        self.image = IMAGE_API.get(context, image_id)
        certificates = trusted_certs.ids if trusted_certs else None
        if not certificates and CONF.glance.enable_certificate_validation:
            certificates = CONF.glance.default_trusted_certificate_ids
        identity = self.get_identity(self.image)
        if certificates or CONF.glance.verify_glance_signatures:
            properties = self.image.get('properties', {})
            identity['signature'] = {
                name: value for name, value in properties.items()
                if name.startswith('img_signature')}
            identity['certificates'] = sorted(certificates or [])
        super().__init__(images, image_id.lower(), identity)

    @staticmethod
    def get_identity(image):
        """Return what a boot relies on that demands no signature.

        :param image: what Glance says of the image, a dict
        """
        properties = image.get('properties', {})
        identity = {
            name: image.get(name, properties.get(name)) for name in (
                'id', 'size', 'checksum', 'os_hash_algo', 'os_hash_value',
                'disk_format')}
        # Nova before 28 inspects by qemu-img alone, unless it was patched.
        identity['inspected'] = (
            hasattr(virt_images, 'do_image_deep_inspection') and
            not getattr(CONF.workarounds, 'disable_deep_image_inspection',
                        False))
        if image.get('disk_format') == 'vmdk':
            identity['vmdk'] = sorted(CONF.compute.vmdk_allowed_types)
        return identity

    def _fetch(self, target):
        libvirt_utils.fetch_image(self._context, target, self._image_id,
                                  self._trusted_certs)


class TemplateBase(Base):
    """The base of an ephemeral disk or swap."""

    def __init__(self, images, make, *identity):
        """:param images: the Images of this host
        :param make: function that makes a raw file, its argument the path
        :param identity: name that Nova's image cache has for it, and all else
            that tells it from others
        """
        self._fetch = make
        super().__init__(images, str(uuid.uuid5(NAMESPACE, identity[0])),
                         identity)


class Images:
    """The base images, as this host sees them."""

    def __init__(self, transfer):
        """:param transfer: the transfer.Transfer of this host"""
        self.transfer = transfer
        self.leases = leases.Leases()
        # By name of a base: when this host last noted that it uses it.
        self.noted = {}
        # By name of a lease: its Silence, over the image cache passes.
        self._silences = {}

    @contextlib.contextmanager
    def snapshot(self, context, instance, image_id, directory):
        """Make the base of an image that the body extracts and uploads.

        Its data is in the scratch VDI of the instance, which goes in the end.

        :param context: security context
        :param instance: the nova.objects.instance.Instance
        :param image_id: id of the image
        :param directory: path of the directory that it is extracted to
        """
        # If nova-compute is killed, clean_up() deletes the directory.
        note = os.path.join(leases.get_directory(),
                            _SNAPSHOT_NOTE + instance.uuid)
        with open(note, 'w') as file:
            file.write(directory)
        try:
            yield
            # A resize to another cell boots the image in another cluster.
            if instance.task_state != task_states.RESIZE_MIGRATING:
                self._publish(context, instance, image_id, directory)
        finally:
            os.unlink(note)
            remove_scratch(
                libvirt_utils.get_sheepdog_vdi(instance.uuid, 'scratch'))

    def _publish(self, context, instance, image_id, directory):
        """Make the base of an image that has been uploaded.

        A boot can do without, so nothing is raised.
        """
        scratch = libvirt_utils.get_sheepdog_vdi(instance.uuid, 'scratch')

        def is_intact():
            # Nova deletes the scratch VDI with the instance, and says so
            # before it begins.
            there = objects.Instance.get_by_uuid(context, instance.uuid)
            return there.task_state != task_states.DELETING

        try:
            image = IMAGE_API.get(context, image_id)
            path = os.path.join(directory, os.listdir(directory)[0])
            if image['status'] != 'active' or not self._passes(image, path):
                return
            base = Base(self, image_id.lower(), ImageBase.get_identity(image))
            libvirt_utils.snapshot_sheepdog_vdi(scratch, SNAPSHOT_TAG)
            lease = self.leases.take(base.key, digest=base.digest)
            if lease:
                with lease:
                    base.publish(lease, scratch, SNAPSHOT_TAG,
                                 disk.get_disk_size(path), is_intact)
        except Exception as e:
            LOG.warning('Image %(image)s is complete, and its first boot '
                        'will import it: %(error)s',
                        {'image': image_id, 'error': e}, instance=instance)

    @staticmethod
    def _passes(image, path):
        """Tell whether the checks of a boot from an image would pass.

        A boot would be refused if the guest had made its disk look like, say,
        a QCOW2 file that refers to others.
        """
        head = path + '.head'
        try:
            rootwrap.run(
                'qemu-img', 'dd', '-f', image['disk_format'], '-O', 'raw',
                'bs=1M', 'count=1', 'if=' + path, 'of=' + head,
                timeout=CONF.libvirt.images_sheepdog_timeout)
            inspect = getattr(virt_images, 'do_image_deep_inspection', None)
            if inspect:
                inspect({'disk_format': 'raw'}, image['id'], head)
            return (image['disk_format'] in ('raw', 'qcow2') and
                    virt_images.qemu_img_info(head).file_format == 'raw')
        except (exception.NovaException, rootwrap.CommandError) as e:
            LOG.warning('The disk does not become a base image: %s', e)
            return False
        finally:
            fileutils.delete_if_exists(head)

    def stop(self):
        """Give back what other hosts wait for, as nova-compute ends."""
        self.leases.stop()

    def clean_up(self):
        """Delete what a nova-compute of this host left that was killed.

        Files and VDIs with data go now, in a thread; leases when it is sure
        that no command which it had begun goes on, see lease.py.
        """
        directory = leases.get_directory()
        for name in os.listdir(directory):
            path = os.path.join(directory, name)
            match = _LEASE_NOTE.fullmatch(name)
            if match:
                threading.Thread(
                    target=self._clean_up_import,
                    args=(path, *match.groups()), daemon=True).start()
                continue
            if name.startswith(_SNAPSHOT_NOTE):
                with open(path) as note:
                    snapshot = note.read()
                LOG.info('Removing %s, in which an image was made', snapshot)
                shutil.rmtree(snapshot or path, ignore_errors=True)
            os.unlink(path)

    def _clean_up_import(self, path, key, generation, token):
        """Delete what the dead holder of a lease left.

        :param path: of its note; the other parameters are what its name tells
        """
        vdi = libvirt_utils.get_sheepdog_vdi(key, 'import.' + token)
        try:
            _delete(vdi)
            try:
                holder = leases.Record.read(
                    leases.get_name(key, int(generation))).token
            except exception.SheepdogVDINotFound:
                holder = None
            if holder in ('', token):
                with open(path) as note:
                    digest = note.read()
                # Calls of dog may have outlived nova-compute.
                with self.leases.wait(key, lambda: False, digest) as lease:
                    _delete(vdi)
                    if digest and holder:
                        Base(self, key, digest).remove(lease)
            os.unlink(path)
        except exception.SheepdogError as e:
            LOG.warning('Left what was half made of image %(key)s for an '
                        'image cache pass: %(error)s',
                        {'key': key, 'error': e})

    def delete_unused(self):
        """Delete bases that were not used for long, and half-made ones.

        This is for Nova's image cache pass, on any number of hosts. It lists
        all VDIs of the cluster, as nothing else does.

        :raises: exception.SheepdogError
        """
        silences = {}
        if not self._is_my_turn(silences):
            self._silences = silences
            return
        listed = {(vdi.name, vdi.tag)
                  for vdi in libvirt_utils.list_sheepdog_vdis()}
        found = collections.defaultdict(lambda: collections.defaultdict(set))
        for vdi, _tag in listed:
            parts = libvirt_utils.split_sheepdog_vdi(vdi)
            if parts and parts[0] != AGEING and parts[1] in (
                    'base', 'record', 'import', 'lease'):
                key, kind, name = parts
                found[key][kind].add(name)
        for key, names in found.items():
            try:
                self._age(key, names, listed, silences)
            except exception.SheepdogVDINotFound:
                # given back since
                continue
            except (exception.SheepdogError, ValueError) as e:
                LOG.warning('Cannot delete what is not needed of image '
                            '%(key)s: %(error)s', {'key': key, 'error': e})
        self._silences = silences

    def _measure(self, lease, text, silences):
        """Return for how many seconds a lease has said the same."""
        silences[lease] = self._silences.get(lease, leases.Silence())
        return silences[lease].measure(text)

    def _is_my_turn(self, silences):
        """Find out whether this host does it, as it did before.

        The others look whether it has died: a listing of all VDIs by each
        host would be a burden on the cluster.
        """
        me = uuid.uuid5(NAMESPACE, CONF.host).hex
        vdi = leases.get_name(AGEING, 0)
        try:
            libvirt_utils.create_sheepdog_vdi(
                vdi, libvirt_utils.SHEEPDOG_SMALL)
            count = ''
        except exception.SheepdogVDIExists:
            text = libvirt_utils.read_sheepdog_record(vdi)
            host, _blank, count = text.partition(' ')
            if host != me and self._measure(vdi, text, silences) < 2 * max(
                    CONF.image_cache.manager_interval,
                    leases.get_lease_time()):
                return False
        libvirt_utils.write_sheepdog_record(vdi, '%s %d' % (
            me, int(count) + 1 if count.isdecimal() else 1))
        return True

    def _age(self, key, names, listed, silences):
        """Delete what no host needs of one image.

        :param key: id that the names of its VDIs begin with
        :param names: dict of kind to set of the last parts of the names
        :param listed: set of all VDIs
        :param silences: as for _measure()
        """
        ages = {}
        for digest in names['base'] | names['record']:
            base = Base(self, key, digest)
            if not {(base.vdi, None), (base.vdi, TAG)} <= listed:
                # It was just about to be complete, or never will be.
                ages[base] = leases.get_lease_time()
            elif CONF.image_cache.remove_unused_base_images:
                ages[base] = (CONF.image_cache.
                              remove_unused_original_minimum_age_seconds)
        generation = 0
        while str(generation) in names['lease']:
            generation += 1
        dead = None
        if generation:
            vdi = leases.get_name(key, generation - 1)
            record = leases.Record.read(vdi)
            if self._measure(vdi, record.text, silences) < record.seconds:
                return
            dead = record.text
        elif not names['lease'] and not names['import'] and not any(
                base.is_unused(age) for base, age in ages.items()):
            return
        lease = self.leases.take(key, generation, dead=dead)
        if lease is None:
            return
        with lease:
            for name in names['lease']:
                if int(name) > generation:
                    lease.run(libvirt_utils.delete_sheepdog_vdi,
                              leases.get_name(key, name))
            for base, age in ages.items():
                if base.is_unused(age):
                    LOG.info('Deleting base image %s', base.vdi)
                    base.remove(lease)
            for token in names['import']:
                vdi = libvirt_utils.get_sheepdog_vdi(key, 'import.' + token)
                lease.run(libvirt_utils.delete_sheepdog_vdi, vdi)
                lease.run(libvirt_utils.delete_sheepdog_vdi, vdi, TAG)
