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

"""The right to make and delete base images, for one host of a cluster.

A lease is a VDI ``<key>_lease.<generation>`` with a record: the holder's
token, a count, the seconds for which it may be silent, and its host. Creating
a VDI succeeds on one host only. Whoever creates the next generation takes the
place of a holder that died. A lease counts only as long as there are all
generations before it: the holder deletes them before its own, so a host that
has waited for too long finds that it follows none.

Nothing here is an attribute of a VDI, as Sheepdog never frees one.
"""

import contextlib
import os
import threading
import time

from oslo_log import log as logging
from oslo_utils import excutils
from oslo_utils import fileutils
from oslo_utils import uuidutils

import nova.conf
from nova import exception
from nova.i18n import _
from nova.virt.libvirt import utils as libvirt_utils

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)

# Seconds between two renewals, and between two looks of a host that waits.
RENEWAL = 5
POLL = 1
# Seconds without progress after which a holder lets its lease run out.
STALL = 300
# Seconds between two lines of the log that tell what a boot waits for.
REPORT = 60


class LeaseLost(exception.SheepdogError):
    """Another host may have taken over."""


def get_lease_time():
    """Tell for how long the holder of a lease may be silent.

    A holder starts no command later than half this time after its last
    renewal, so every command it started has ended before another host may
    take over: a call of dog goes on when nova-compute was killed.

    :returns: seconds
    """
    return 2 * CONF.libvirt.images_sheepdog_timeout + 30


def get_directory():
    """Make the directory of what imports of this host need while they last.

    What is there when nova-compute starts was left by one that was killed.

    :returns: its path; other hosts that share instances_path have others
    """
    directory = os.path.join(CONF.instances_path, '_sheepdog', CONF.host)
    fileutils.ensure_tree(directory)
    return directory


def get_name(key, generation):
    return libvirt_utils.get_sheepdog_vdi(key, 'lease.%d' % generation)


class Record:
    """What the VDI of a lease says.

    :ivar text: all of it, which changes with each renewal
    :ivar token: the holder's token, '' if it has written nothing yet
    :ivar seconds: for how long the holder may be silent
    :ivar host: the holder
    """

    def __init__(self, text):
        words = text.split(' ')
        self.text = text
        self.token = words[0]
        self.seconds = get_lease_time()
        self.host = _('unknown')
        if len(words) == 4 and words[2].isdecimal():
            self.seconds = int(words[2])
            self.host = words[3]

    @classmethod
    def read(cls, vdi, **how):
        """:raises: exception.SheepdogVDINotFound or exception.SheepdogError
        """
        return cls(libvirt_utils.read_sheepdog_record(vdi, **how))


class Silence:
    """Measures for how long a lease has said the same."""

    def __init__(self):
        self._text = self._since = None

    def measure(self, text):
        """:returns: seconds since text changed, as far as it was seen"""
        if text != self._text:
            self._text, self._since = text, time.monotonic()
        return time.monotonic() - self._since


class Lease:
    """A lease that this host has, as a context.

    :ivar token: name for what is made meanwhile
    """

    def __init__(self, key, generation, digest):
        """The parameters are those of Leases.take()."""
        self.token = uuidutils.generate_uuid(dashed=False)
        self.is_lost = False
        self._key = key
        self._generation = generation
        self._vdi = get_name(key, generation)
        self._text = ''
        self._count = self._runs = 0
        self._renewed = time.monotonic()
        self._watched = []
        self._ended = threading.Event()
        # Held while a command runs that changes something.
        self._busy = threading.Lock()
        # Tells the next nova-compute of this host what this one left.
        self._note = os.path.join(
            get_directory(), '%s.%s' % (self._vdi, self.token))
        with open(self._note, 'w') as note:
            note.write(digest)

    def create(self, dead):
        """Create the VDI.

        :param dead: as for Leases.take()
        :returns: False if the holder before is another one by now
        :raises: exception.SheepdogVDIExists if another host has the lease, or
            exception.SheepdogError
        """
        with contextlib.ExitStack() as undo:
            undo.callback(os.unlink, self._note)
            libvirt_utils.create_sheepdog_vdi(
                self._vdi, libvirt_utils.SHEEPDOG_SMALL)
            undo.callback(libvirt_utils.delete_sheepdog_vdi, self._vdi)
            if self._generation:
                try:
                    found = libvirt_utils.read_sheepdog_record(
                        get_name(self._key, self._generation - 1))
                except exception.SheepdogVDINotFound:
                    return False
                if found != dead:
                    return False
            # One that could not be given back; it does not count.
            libvirt_utils.delete_sheepdog_vdi(
                get_name(self._key, self._generation + 1))
            undo.pop_all()
        return True

    def __enter__(self):
        try:
            self._renew()
        except Exception:
            with excutils.save_and_reraise_exception():
                self.give_back()
        self._renewer = threading.Thread(target=self._keep, daemon=True)
        self._renewer.start()
        return self

    def __exit__(self, *_exc_info):
        self._ended.set()
        self._renewer.join()
        self.give_back()

    def watch(self, get_progress):
        """Note what tells that the work under this lease makes progress.

        :param get_progress: function; what it returns changes with progress
        """
        self._watched.append(get_progress)

    def _renew(self):
        start = time.monotonic()
        self._count += 1
        text = '%s %d %d %s' % (self.token, self._count, get_lease_time(),
                                CONF.host)
        libvirt_utils.write_sheepdog_record(self._vdi, text, urgent=True)
        self._text, self._renewed = text, start

    def _keep(self):
        """Renew the lease as long as there is progress."""
        successor = get_name(self._key, self._generation + 1)
        stall = Silence()
        while not self._ended.wait(RENEWAL):
            progress = [self._runs, *(look() for look in self._watched)]
            if stall.measure(progress) >= max(STALL, get_lease_time()):
                LOG.warning('%s has made no progress and is given up',
                            self._vdi)
                return
            try:
                if (libvirt_utils.read_sheepdog_record(
                        self._vdi, urgent=True) != self._text or
                        libvirt_utils.sheepdog_vdi_exists(
                            successor, urgent=True)):
                    self.is_lost = True
                    return
                self._renew()
            except exception.SheepdogVDINotFound:
                self.is_lost = True
                return
            except exception.SheepdogError as e:
                LOG.warning('Cannot renew %(vdi)s: %(error)s',
                            {'vdi': self._vdi, 'error': e})

    def check(self):
        """Make sure that no other host may have the lease before long.

        :raises: LeaseLost
        """
        if (self.is_lost or time.monotonic() - self._renewed >
                get_lease_time() / 2):
            self.is_lost = True
            raise LeaseLost(reason=_(
                '%s has not been renewed for so long that another host may '
                'have taken over') % self._vdi)

    def run(self, helper, *args):
        """Call one of the helpers that change something in the cluster.

        The lease is checked when the command starts, not when it queues.

        :param helper: function of nova.virt.libvirt.utils
        :param args: its arguments
        :raises: LeaseLost or what it raises
        """
        with self._busy:
            try:
                helper(*args, check=self.check)
            except exception.SheepdogVDIExists as e:
                # To those above it would mean a disk of the server.
                raise exception.SheepdogError(reason=str(e))
        self._runs += 1

    def stop(self):
        """Give the lease back although its work goes on, which then fails.

        The note stays, so that the next nova-compute deletes what is left.
        """
        try:
            self.check()
        except LeaseLost:
            return
        self.is_lost = True
        if self._busy.acquire(timeout=CONF.libvirt.images_sheepdog_timeout):
            self._busy.release()
            self._delete()

    def give_back(self):
        """Delete the VDI, if it is still the one of this lease."""
        try:
            self.check()
        except LeaseLost as e:
            LOG.warning('Left what belongs to it for an image cache pass: %s',
                        e)
        else:
            if self._delete():
                os.unlink(self._note)

    def _delete(self):
        """Delete the VDI; return whether that succeeded."""
        try:
            for generation in range(self._generation + 1):
                libvirt_utils.delete_sheepdog_vdi(
                    get_name(self._key, generation))
            return True
        except exception.SheepdogError as e:
            LOG.warning('Left %(vdi)s for an image cache pass: %(error)s',
                        {'vdi': self._vdi, 'error': e})
            return False


class Leases:
    """The leases that this host has or wants."""

    def __init__(self):
        self._held = set()

    def take(self, key, generation=0, digest='', dead=None):
        """Take a lease if no host has this generation of it.

        :param key: id that the names of the VDIs of the image begin with
        :param generation: how many hosts had it before and died with it
        :param digest: that of the base image to be made or deleted
        :param dead: what the record of the last of them says
        :returns: the Lease, to be entered, or None
        :raises: exception.SheepdogError
        """
        taken = Lease(key, generation, digest)
        try:
            if not taken.create(dead):
                return None
        except exception.SheepdogVDIExists:
            return None
        self._held = {held for held in self._held
                      if not held._ended.is_set()} | {taken}
        return taken

    def wait(self, key, is_needless, digest='', check=None):
        """Wait until no live host has a lease, and take it.

        :param key: as for take(), and digest too
        :param is_needless: function called again and again; the waiting ends
            when it returns True
        :param check: function called while it waits; what it raises ends that
        :returns: the Lease, to be entered; None if it is needless
        :raises: exception.SheepdogError
        """
        generation = 0
        silence = Silence()
        start = time.monotonic()
        reported = dead = None
        while not is_needless():
            taken = self.take(key, generation, digest, dead)
            if taken:
                return taken
            vdi = get_name(key, generation)
            try:
                record = Record.read(vdi)
            except exception.SheepdogVDINotFound:
                generation = 0
                continue
            silent = silence.measure((vdi, record.text))
            if silent >= record.seconds:
                LOG.warning('%(vdi)s of host %(host)s has not been renewed '
                            'for %(seconds)d s; taking over',
                            {'vdi': vdi, 'host': record.host,
                             'seconds': silent})
                generation += 1
                dead = record.text
                continue
            if reported is None or time.monotonic() - reported >= REPORT:
                reported = time.monotonic()
                LOG.info('Waiting for host %(host)s, which makes the base '
                         'image of %(key)s; for %(seconds)d s so far',
                         {'host': record.host, 'key': key,
                          'seconds': reported - start})
            if check:
                check()
            time.sleep(POLL)
        return None

    def stop(self):
        """Give all leases back, as nova-compute is about to end."""
        for held in self._held:
            if not held._ended.is_set():
                held.stop()
