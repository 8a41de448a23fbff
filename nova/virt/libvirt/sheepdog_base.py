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
    data, and the checks that it has passed. Who wants other data or more
    checks looks for another name.
``<id>_record.<digest>``
    holds the size of the base and the time of the last boot from it.
``<id>_import.<token>``
    is what an image is copied into. A token is drawn anew for each, so none
    is ever written by two; the base is a clone, which is there with all its
    data or not at all.
``<id>_lease.<generation>``
    belongs to the one who may make or delete bases of this image, and says
    from time to time that he is alive. Who makes the next generation takes
    the place of one who died.

dog clears the table of a snapshot before it deletes it, and a clone that is
made meanwhile reads as zeros (seen on Sheepdog 1.0.1). So the base goes
before its snapshot, and who has cloned looks whether the base is still there.
Nothing here is an attribute of a VDI, as Sheepdog never frees one.
"""

import collections
from concurrent import futures
import contextlib
import hashlib
import os
import re
import threading
import time
import typing as ty
import uuid

from oslo_log import log as logging
from oslo_serialization import jsonutils
from oslo_utils import excutils
from oslo_utils import fileutils
from oslo_utils import units
from oslo_utils import uuidutils

import nova.conf
from nova import exception
from nova.i18n import _
from nova.image import glance
from nova import utils
from nova.virt.libvirt import utils as libvirt_utils

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)
IMAGE_API = glance.API()

TAG = 'nova-base'
# Seconds between two signs of life of who holds a lease, and between two
# looks of who waits for him
RENEWAL = 5
POLL = 1
# How often an import is begun that others take over, or delete
ATTEMPTS = 3
# Seconds between two notes of a host that it has booted from a base
USE_INTERVAL = 3600

_SMALL = 4 * units.Mi
_NAME = re.compile(r'([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})_'
                   r'(base|record|import|lease)\.([0-9a-f]+)')
_NOTE = re.compile(r'([0-9a-f-]{36})_lease\.([0-9]+)\.([0-9a-f]{32})')
_NAMESPACE = uuid.UUID('0b2f5b56-6a62-4d4e-9f0e-27c1f7a0e1d5')
_AGEING = str(uuid.uuid5(_NAMESPACE, 'ageing'))


def get_lease_time():
    """Tell how long the holder of a lease may be silent.

    He starts nothing after half of that time. So what he had started is over
    when another one takes his place, even if he was killed: a call of dog goes
    on without him.

    :returns: seconds
    """
    return 2 * CONF.libvirt.images_sheepdog_timeout + 30


def get_directory():
    """Make the directory of what imports of this host need while they last.

    What is there when nova-compute starts is of one that was killed.

    :returns: its path; other hosts that share instances_path have others
    """
    directory = os.path.join(CONF.instances_path, '_sheepdog', CONF.host)
    fileutils.ensure_tree(directory)
    return directory


def _delete(vdi):
    """Delete a VDI that holds data, and then its snapshot."""
    libvirt_utils.delete_sheepdog_vdi(vdi)
    libvirt_utils.delete_sheepdog_vdi(vdi, TAG)


class _Lease:
    """The right to make and delete bases of one image, as a context.

    :ivar token: name for what is made meanwhile
    """

    def __init__(self, key, generation, digest):
        """The parameters are those of take()."""
        self.token = uuidutils.generate_uuid(dashed=False)
        self.is_lost = False
        self._key = key
        self._generation = generation
        self._vdi = self.get_name(key, generation)
        self._value = None
        self._count = 0
        self._renewed = time.monotonic()
        self._ended = threading.Event()
        # Tells the next nova-compute of this host what this one left.
        self._note = os.path.join(
            get_directory(), '%s.%s' % (self._vdi, self.token))
        with open(self._note, 'w') as note:
            note.write(digest)

    @staticmethod
    def get_name(key, generation):
        return '%s_lease.%d' % (key, generation)

    @classmethod
    def take(cls, key, generation=0, digest=''):
        """Take the lease if nobody has this generation of it.

        :param key: id that the names of the VDIs of the image begin with
        :param generation: how many had it before and died with it
        :param digest: that of the Base which is to be made or deleted
        :returns: the lease, to be entered, or None
        """
        lease = cls(key, generation, digest)
        try:
            libvirt_utils.create_sheepdog_vdi(lease._vdi, _SMALL)
        except Exception as e:
            os.unlink(lease._note)
            if isinstance(e, exception.SheepdogVDIExists):
                return None
            raise
        return lease

    @classmethod
    def wait(cls, key, is_needless, digest=''):
        """Wait until nobody who is alive has the lease, and take it.

        :param key: as for take(), and digest too
        :param is_needless: function called again and again; the waiting ends
            when it returns True
        :returns: the lease, to be entered; None if it is needless
        """
        generation = 0
        seen = since = None
        while not is_needless():
            lease = cls.take(key, generation, digest)
            if lease:
                return lease
            vdi = cls.get_name(key, generation)
            try:
                found = (vdi, libvirt_utils.read_sheepdog_record(vdi))
            except exception.SheepdogVDINotFound:
                generation = 0
                continue
            if found != seen:
                LOG.debug('Waiting for who has %s', vdi)
                seen, since = found, time.monotonic()
            elif time.monotonic() - since >= get_lease_time():
                LOG.warning('Who had %s has died; taking its place', vdi)
                generation += 1
                continue
            time.sleep(POLL)
        return None

    def __enter__(self):
        try:
            self._write()
        except Exception:
            with excutils.save_and_reraise_exception():
                self._give_back()
        self._renewer = threading.Thread(target=self._keep, daemon=True)
        self._renewer.start()
        return self

    def _write(self):
        start = time.monotonic()
        self._count += 1
        value = '%s %d' % (self.token, self._count)
        libvirt_utils.write_sheepdog_record(self._vdi, value)
        self._value = value
        self._renewed = start

    def _keep(self):
        successor = self.get_name(self._key, self._generation + 1)
        while not self._ended.wait(RENEWAL):
            try:
                if (libvirt_utils.read_sheepdog_record(self._vdi) !=
                        self._value or
                        libvirt_utils.sheepdog_vdi_exists(successor)):
                    self.is_lost = True
                    return
                self._write()
            except exception.SheepdogVDINotFound:
                self.is_lost = True
                return
            except exception.SheepdogError as e:
                LOG.warning('Cannot renew %(vdi)s: %(error)s',
                            {'vdi': self._vdi, 'error': e})

    def check(self):
        """Make sure that nobody else may have it before this is used.

        :raises: exception.SheepdogError
        """
        if (self.is_lost or time.monotonic() - self._renewed >
                get_lease_time() / 2):
            self.is_lost = True
            raise libvirt_utils.get_sheepdog_error(
                'dog vdi write %s' % self._vdi,
                _('no sign of life could be given for so long that another '
                  'host may have begun to do the same'))

    def __exit__(self, *_exc_info):
        self._ended.set()
        self._renewer.join()
        self._give_back()

    def _give_back(self):
        try:
            self.check()
            for generation in range(self._generation, -1, -1):
                libvirt_utils.delete_sheepdog_vdi(
                    self.get_name(self._key, generation))
            os.unlink(self._note)
        except exception.SheepdogError as e:
            LOG.warning('Left %(vdi)s for an image cache pass: %(error)s',
                        {'vdi': self._vdi, 'error': e})


class Base:
    """The base of one image, in one cluster."""

    # By name of the VDI: when its last use was noted, by time.monotonic()
    _noted: ty.Dict[str, float] = {}

    def __init__(self, key, digest):
        """:param key: id that the names of its VDIs begin with
        :param digest: what tells it from others of that id
        """
        self.key = key
        self.digest = digest
        self.vdi = '%s_base.%s' % (key, digest)
        self._record = '%s_record.%s' % (key, digest)

    @classmethod
    def _of(cls, key, identity):
        """:param identity: all that a boot relies on, to be written as JSON
        """
        return cls(key, hashlib.sha256(jsonutils.dump_as_bytes(
            identity, sort_keys=True)).hexdigest()[:32])

    @classmethod
    def of_image(cls, image, trusted_certs=None, signed=True):
        """Get the base of a Glance image.

        :param image: what Glance says of it, a dict
        :param trusted_certs: the objects.TrustedCerts that a boot demands
        :param signed: whether its signature is checked as Nova is configured
            to do it
        """
        properties = image.get('properties', {})
        identity = {
            name: image.get(name, properties.get(name)) for name in (
                'id', 'size', 'checksum', 'os_hash_algo', 'os_hash_value',
                'disk_format')}
        # Nova before 28 inspects by qemu-img alone.
        identity['inspected'] = not getattr(
            CONF.workarounds, 'disable_deep_image_inspection', False)
        if image.get('disk_format') == 'vmdk':
            identity['vmdk'] = sorted(CONF.compute.vmdk_allowed_types)
        certificates = trusted_certs.ids if trusted_certs else None
        if not certificates and CONF.glance.enable_certificate_validation:
            certificates = CONF.glance.default_trusted_certificate_ids
        if signed and (certificates or CONF.glance.verify_glance_signatures):
            identity['signature'] = {
                name: value for name, value in properties.items()
                if name.startswith('img_signature')}
            identity['certificates'] = sorted(certificates or [])
        return cls._of(image['id'], identity)

    @classmethod
    def of_template(cls, *names):
        """Get the base of an ephemeral disk or swap.

        :param names: all that tells it from others
        """
        return cls._of(str(uuid.uuid5(_NAMESPACE, names[0])), names)

    def exists(self):
        """Tell whether it can be cloned.

        :raises: exception.SheepdogError
        """
        return libvirt_utils.sheepdog_vdi_exists(self.vdi)

    def clone(self, vdi, size=None):
        """Make a disk of the base.

        :param vdi: name of the VDI to make
        :param size: its size in bytes, None for that of the image
        :returns: False if there is no base
        :raises: exception.FlavorDiskSmallerThanImage or
            exception.SheepdogError
        """
        try:
            libvirt_utils.clone_sheepdog_vdi(self.vdi, TAG, vdi)
        except exception.SheepdogVDINotFound:
            return False
        try:
            with futures.ThreadPoolExecutor(1) as meanwhile:
                exists = meanwhile.submit(self.exists)
                if size:
                    self._resize(vdi, size)
            if not exists.result():
                # Its snapshot may have been on its way out.
                libvirt_utils.delete_sheepdog_vdi(vdi)
                return False
        except Exception:
            with excutils.save_and_reraise_exception():
                libvirt_utils.delete_sheepdog_vdi(vdi)
        self._note_use()
        return True

    def _resize(self, vdi, size):
        try:
            libvirt_utils.resize_sheepdog_vdi(vdi, size)
        except exception.SheepdogError as e:
            if 'Shrinking' not in str(e):
                raise
            raise exception.FlavorDiskSmallerThanImage(
                flavor_size=size, image_size=self._read_record()[0])

    def _read_record(self):
        """:returns: size in bytes, time of the last use since the epoch
        :raises: exception.SheepdogError
        """
        size, used = libvirt_utils.read_sheepdog_record(self._record).split()
        return int(size), int(used)

    def _write_record(self, size):
        libvirt_utils.write_sheepdog_record(
            self._record, '%d %d' % (size, time.time()))
        self._noted[self.vdi] = time.monotonic()

    def _note_use(self):
        interval = min(USE_INTERVAL, CONF.image_cache.
                       remove_unused_original_minimum_age_seconds / 4)
        last = self._noted.get(self.vdi)
        if last is not None and time.monotonic() - last < interval:
            return
        try:
            self._write_record(self._read_record()[0])
        except (exception.SheepdogError, ValueError) as e:
            LOG.warning('Cannot note that %(vdi)s is in use: %(error)s',
                        {'vdi': self.vdi, 'error': e})

    def is_unused(self, age):
        """Tell whether there was no boot from it for long.

        :param age: seconds
        :raises: exception.SheepdogError
        """
        try:
            return time.time() - self._read_record()[1] >= age
        except (exception.SheepdogVDINotFound, ValueError):
            # Who made or deleted it has died.
            return True

    def provide(self, use, fill):
        """Have the base there and use it; of all who want it one imports.

        :param use: function that uses the base, and returns False where
            there is none
        :param fill: function that is given the name of a VDI, which it makes
            and fills; it returns the size in bytes
        :raises: what these two raise
        """
        @utils.synchronized('sheepdog-base-' + self.key)
        def provide():
            for attempt in range(ATTEMPTS, 0, -1):
                lease = _Lease.wait(self.key, use, self.digest)
                if lease is None:
                    return
                with lease:
                    if use():
                        return
                    try:
                        self._import(lease, fill)
                    except Exception as e:
                        if not lease.is_lost or attempt == 1:
                            raise
                        LOG.warning('Another host may have taken over the '
                                    'import of %(vdi)s: %(error)s',
                                    {'vdi': self.vdi, 'error': e})
                        continue
                    if use():
                        return
            raise libvirt_utils.get_sheepdog_error(
                'dog vdi clone -s %s %s' % (TAG, self.vdi),
                _('the base image is gone again as soon as it is made'))

        provide()

    def _import(self, lease, fill):
        vdi = '%s_import.%s' % (self.key, lease.token)
        try:
            size = fill(vdi)
            libvirt_utils.snapshot_sheepdog_vdi(vdi, TAG)
            self._make(lease, vdi, TAG, size, lambda:
                       libvirt_utils.sheepdog_vdi_exists(vdi))
        except Exception:
            with excutils.save_and_reraise_exception():
                self._clean_up(vdi)
        else:
            self._clean_up(vdi)

    def _clean_up(self, vdi):
        try:
            _delete(vdi)
        except exception.SheepdogError as e:
            LOG.warning('Left VDI %(vdi)s for an image cache pass: %(error)s',
                        {'vdi': vdi, 'error': e})

    def make_of_snapshot(self, vdi, tag, size, is_intact):
        """Make the base of a snapshot, if nobody else makes one.

        :param vdi: name of the VDI
        :param tag: name of its snapshot
        :param size: its size in bytes
        :param is_intact: as for _make()
        :raises: exception.SheepdogError
        """
        lease = _Lease.take(self.key, digest=self.digest)
        if lease:
            with lease:
                self._make(lease, vdi, tag, size, is_intact)

    def _make(self, lease, vdi, tag, size, is_intact):
        """Make the base, and the snapshot by which all see it.

        :param lease: the _Lease
        :param vdi: name of the VDI that has the data
        :param tag: name of the snapshot of that
        :param size: its size in bytes
        :param is_intact: function that tells when it has been cloned whether
            nobody has begun to delete the snapshot
        """
        self._remove(lease)
        lease.check()
        libvirt_utils.clone_sheepdog_vdi(vdi, tag, self.vdi)
        try:
            if not is_intact():
                raise libvirt_utils.get_sheepdog_error(
                    'dog vdi clone -s %s %s %s' % (tag, vdi, self.vdi),
                    _('what was cloned has been deleted meanwhile'))
            with contextlib.suppress(exception.SheepdogVDIExists):
                libvirt_utils.create_sheepdog_vdi(self._record, _SMALL)
            self._write_record(size)
            lease.check()
            libvirt_utils.snapshot_sheepdog_vdi(self.vdi, TAG)
        except Exception:
            with excutils.save_and_reraise_exception():
                self._remove(lease)
        LOG.info('Made base image %(vdi)s of %(size)d bytes for all hosts',
                 {'vdi': self.vdi, 'size': size})

    def _remove(self, lease):
        """Delete the base, or what is left of one."""
        lease.check()
        libvirt_utils.delete_sheepdog_vdi(self.vdi)
        lease.check()
        libvirt_utils.delete_sheepdog_vdi(self.vdi, TAG)
        libvirt_utils.delete_sheepdog_vdi(self._record)

    def drop(self):
        """Delete the base, unless somebody is about to make it.

        :raises: exception.SheepdogError
        """
        lease = _Lease.take(self.key, digest=self.digest)
        if lease:
            with lease:
                self._remove(lease)

    def drop_unused(self, lease, age):
        """Delete the base if there was no boot from it for long.

        :param lease: the _Lease
        :param age: seconds
        :raises: exception.SheepdogError
        """
        if self.is_unused(age):
            LOG.info('Deleting base image %s', self.vdi)
            self._remove(lease)


class _Ageing:
    """Deletes what nobody needs, in Nova's image cache passes."""

    def __init__(self):
        # By name of the lease: what it said in the last pass, and since when
        self._seen = {}

    def _get_silence(self, lease, seen):
        """Tell for how many seconds a lease has said the same.

        :param lease: name of its VDI
        :param seen: dict to note it in
        """
        value = libvirt_utils.read_sheepdog_record(lease)
        known = self._seen.get(lease)
        since = known[1] if known and known[0] == value else time.monotonic()
        seen[lease] = (value, since)
        return time.monotonic() - since

    def _is_my_turn(self):
        """Find out whether this host does it, as it did before.

        The others look whether it has died: a listing of all VDIs by each
        host would be a burden on the cluster.
        """
        me = uuid.uuid5(_NAMESPACE, CONF.host).hex
        vdi = _Lease.get_name(_AGEING, 0)
        try:
            libvirt_utils.create_sheepdog_vdi(vdi, _SMALL)
            count = 0
        except exception.SheepdogVDIExists:
            value = libvirt_utils.read_sheepdog_record(vdi)
            host, _blank, count = value.partition(' ')
            if host != me:
                seen = {}
                silence = self._get_silence(vdi, seen)
                if silence < 2 * max(CONF.image_cache.manager_interval,
                                     get_lease_time()):
                    self._seen = seen
                    return False
        libvirt_utils.write_sheepdog_record(
            vdi, '%s %d' % (me, int(count or 0) + 1))
        return True

    def run(self):
        """Do one pass.

        :raises: exception.SheepdogError
        """
        if not self._is_my_turn():
            return
        listed = libvirt_utils.list_sheepdog_vdis()
        images = collections.defaultdict(lambda: collections.defaultdict(set))
        for vdi, _tag in listed:
            match = _NAME.fullmatch(vdi)
            if match and match.group(1) != _AGEING:
                key, kind, name = match.groups()
                images[key][kind].add(name)
        seen = {}
        for key, names in images.items():
            try:
                self._clean(key, names, listed, seen)
            except exception.SheepdogVDINotFound:
                # given back since
                continue
            except exception.SheepdogError as e:
                LOG.warning('Cannot delete what is not needed of image '
                            '%(key)s: %(error)s', {'key': key, 'error': e})
        self._seen = seen

    def _clean(self, key, names, listed, seen):
        """Delete what nobody needs of one image.

        :param key: id that the names of its VDIs begin with
        :param names: dict of kind to set of the second parts of the names
        :param listed: set of all VDIs
        :param seen: as for _get_silence()
        """
        ages = {}
        for digest in names['base'] | names['record']:
            base = Base(key, digest)
            if not {(base.vdi, None), (base.vdi, TAG)} <= listed:
                # It was just about to be complete, or never will be.
                ages[base] = get_lease_time()
            elif CONF.image_cache.remove_unused_base_images:
                ages[base] = (CONF.image_cache.
                              remove_unused_original_minimum_age_seconds)
        generation = 0
        if names['lease']:
            last = max(int(name) for name in names['lease'])
            if (self._get_silence(_Lease.get_name(key, last), seen) <
                    get_lease_time()):
                return
            generation = last + 1
        elif not names['import'] and not any(
                base.is_unused(age) for base, age in ages.items()):
            return
        lease = _Lease.take(key, generation)
        if lease is None:
            return
        with lease:
            for base, age in ages.items():
                base.drop_unused(lease, age)
            for token in names['import']:
                lease.check()
                _delete('%s_import.%s' % (key, token))


_ageing = _Ageing()


def _delete_half_made(path, key, generation, token):
    """Delete what the dead holder of a lease left.

    :param path: of his note; the other parameters are what its name tells
    """
    vdi = '%s_import.%s' % (key, token)
    try:
        _delete(vdi)
        try:
            record = libvirt_utils.read_sheepdog_record(
                _Lease.get_name(key, int(generation)))
        except exception.SheepdogVDINotFound:
            record = None
        if record == '' or record and record.startswith(token):
            with open(path) as note:
                digest = note.read()
            # Calls of dog may have outlived him.
            with _Lease.wait(key, lambda: False, digest) as lease:
                _delete(vdi)
                if digest and record:
                    Base(key, digest)._remove(lease)
        os.unlink(path)
    except exception.SheepdogError as e:
        LOG.warning('Left what was half made of image %(key)s for an image '
                    'cache pass: %(error)s', {'key': key, 'error': e})


def delete_half_made():
    """Delete what a nova-compute of this host left that was killed.

    Files and VDIs with data go now, in a thread; leases when it is sure that
    nothing which he had begun goes on, see get_lease_time().

    :returns: list of the threads
    """
    directory = get_directory()
    threads = []
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        match = _NOTE.fullmatch(name)
        if match:
            threads.append(threading.Thread(
                target=_delete_half_made, args=(path, *match.groups()),
                daemon=True))
            threads[-1].start()
        else:
            os.unlink(path)
    return threads


def delete_unused():
    """Delete bases that were not used for long, and half-made ones.

    This is for Nova's image cache pass, on any number of hosts. It lists all
    VDIs of the cluster, as nothing else does.

    :raises: exception.SheepdogError
    """
    _ageing.run()
