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

"""The disks of one instance on a Sheepdog cluster.

A name that exists proves little: a delete that was cut short can leave a VDI
listed that reads as zeros, and a snapshot can be left from a resize that
failed weeks ago. So a resize is kept in a record, the VDI ``<uuid>_state``:

* Snapshots ``nova-resize`` count only as long as the record names the disks.
* A reversal is noted there before its first destructive command. It is then
  finished as a whole, by whatever starts the guest next, or the guest does not
  start. Snapshots go when all disks are back and the record is deleted.
* A deletion is noted before it begins, in Nova's database. The guest does not
  start after one that failed.
"""

from concurrent import futures
import contextlib

from oslo_log import log as logging
from oslo_serialization import jsonutils

from nova import block_device
from nova.compute import vm_states
from nova import context as nova_context
from nova import exception
from nova.i18n import _
from nova import objects
from nova.virt import driver
from nova.virt.libvirt import blockinfo
from nova.virt.libvirt.sheepdog import images
from nova.virt.libvirt import utils as libvirt_utils

LOG = logging.getLogger(__name__)

# In the system metadata of an instance while its disks are being deleted
DELETING = 'sheepdog_deleting'
RESIZE_TAG = libvirt_utils.RESIZE_SNAPSHOT_NAME
# Commands for the disks of one server that run at once.
PARALLEL = 8


class State:
    """The record of an instance.

    :ivar kept: names of the disks of which a resize keeps snapshots, None if
        none is under way
    :ivar reverting: whether they are being made again of these
    :ivar rescued: names of the disks that a rescue has made
    :ivar arrival: what a live migration has noted, see migration.py
    """

    def __init__(self, instance_uuid, ignore_garbage=False):
        """:param instance_uuid: UUID of the instance
        :param ignore_garbage: whether to take what Nova did not write for
            nothing, as the record is to be deleted
        :raises: exception.SheepdogError
        """
        self._vdi = libvirt_utils.get_sheepdog_vdi(instance_uuid, 'state')
        try:
            text = libvirt_utils.read_sheepdog_record(self._vdi)
            self.exists = True
        except exception.SheepdogVDINotFound:
            text = ''
            self.exists = False
        try:
            # Nothing but zeros is what a delete that was cut short leaves.
            values = jsonutils.loads(text) if text else {}
        except ValueError:
            values = None
        if not isinstance(values, dict):
            if not ignore_garbage:
                raise exception.SheepdogError(reason=_(
                    'VDI %s does not hold what Nova writes there') % self._vdi)
            values = {}
        self.kept = values.get('kept')
        self.reverting = values.get('reverting', False)
        self.rescued = values.get('rescued', [])
        self.arrival = values.get('arrival')

    def save(self):
        """Write what the attributes say, or delete what says nothing.

        :raises: exception.SheepdogError
        """
        values = {name: getattr(self, name) for name in
                  ('kept', 'reverting', 'rescued', 'arrival')
                  if getattr(self, name) or
                  name == 'kept' and self.kept is not None}
        if not values:
            if self.exists:
                self.delete()
            return
        if not self.exists:
            # It may be there even if dog fails.
            self.exists = True
            libvirt_utils.create_sheepdog_vdi(
                self._vdi, libvirt_utils.SHEEPDOG_SMALL)
        libvirt_utils.write_sheepdog_record(
            self._vdi, jsonutils.dumps(values))

    def delete(self):
        """:raises: exception.SheepdogError"""
        libvirt_utils.remove_sheepdog_vdi(self._vdi)
        self.exists = False


def note_rescued(instance_uuid, name):
    """Note that a rescue is about to make a disk.

    :param instance_uuid: UUID of the instance
    :param name: name of the disk
    :raises: exception.SheepdogError
    """
    state = State(instance_uuid)
    if name not in state.rescued:
        state.rescued.append(name)
        state.save()


def _get_ephemerals(instance, block_device_info):
    """Return how many ephemeral disks with a number an instance has."""
    if block_device_info is not None:
        return len(driver.block_device_info_get_ephemerals(block_device_info))
    bdms = objects.BlockDeviceMappingList.get_by_instance_uuid(
        nova_context.get_admin_context(read_deleted='yes'), instance.uuid)
    return len([bdm for bdm in bdms
                if block_device.new_format_is_ephemeral(bdm)])


def prepare(instance):
    """Make sure that a guest may start on what its disks hold.

    :param instance: the nova.objects.instance.Instance
    :raises: exception.DiskNotFound or exception.SheepdogError
    """
    if DELETING in instance.system_metadata:
        raise exception.DiskNotFound(location=_(
            'VDI %s for all one can tell: the disks of the server were to be '
            'deleted, and may be empty; rebuild the server or delete it') %
            libvirt_utils.get_sheepdog_vdi(instance.uuid, 'disk'))
    state = State(instance.uuid)
    if state.reverting:
        Disks(instance).finish_reversal(state)


def check_exist(vdis):
    """Make sure that disks are there which must not be made anew.

    :param vdis: names of VDIs
    :raises: exception.DiskNotFound or exception.SheepdogError
    """
    for vdi in vdis:
        if not libvirt_utils.sheepdog_vdi_exists(vdi):
            raise exception.DiskNotFound(location=_(
                'VDI %s, which is not in the cluster; rebuild the server or '
                'delete it') % vdi)


class Disks:
    """The disks of one instance.

    :ivar names: all that it can have, but for those of a rescue, which are in
        the record
    """

    def __init__(self, instance, block_device_info=None):
        """:param instance: the nova.objects.instance.Instance
        :param block_device_info: its block device info, which tells how many
            ephemeral disks it has; None to ask the database
        """
        self._instance = instance
        self.names = ['disk', 'disk.local', 'disk.swap', 'disk.config'] + [
            blockinfo.get_eph_disk(index) for index in range(
                _get_ephemerals(instance, block_device_info))]

    def _get_vdi(self, name):
        return libvirt_utils.get_sheepdog_vdi(self._instance.uuid, name)

    def _for_each(self, function, names):
        """Call a function for each name at once; return what it returns.

        All calls end, and then the first error is raised.
        """
        with futures.ThreadPoolExecutor(PARALLEL) as workers:
            calls = [workers.submit(function, name) for name in names]
        return [call.result() for call in calls]

    def find(self, names=None):
        """Tell which of the disks exist.

        :param names: names to look for, None for all but those of a rescue
        :returns: list of names, in their order
        :raises: exception.SheepdogError
        """
        names = self.names if names is None else names
        exist = self._for_each(
            lambda name: libvirt_utils.sheepdog_vdi_exists(
                self._get_vdi(name)), names)
        return [name for name, exists in zip(names, exist) if exists]

    def _delete(self, name):
        """Delete a disk with the snapshots that Nova took of it."""
        # An image is made of a root disk, the one in use in a rescue too.
        tags = [images.SNAPSHOT_TAG] if name in (
            'disk', 'disk.rescue', 'scratch') else []
        if name in self.names:
            tags.append(RESIZE_TAG)
        libvirt_utils.remove_sheepdog_vdi(self._get_vdi(name), *tags)

    def delete(self):
        """Delete all disks, and what else there is of the instance.

        :raises: exception.SheepdogError if something is left
        """
        state = State(self._instance.uuid, ignore_garbage=True)
        # Before the guest of a new one starts all disks are made anew.
        if not self._instance.deleted and self._instance.vm_state not in (
                vm_states.BUILDING, vm_states.SHELVED_OFFLOADED):
            self._instance.system_metadata[DELETING] = 'True'
            with contextlib.suppress(exception.InstanceNotFound):
                self._instance.save()
        self._for_each(self._delete,
                       [*self.names, *state.rescued, 'scratch'])
        if state.exists:
            state.delete()
        # The driver saves it when the files are deleted as well.
        self._instance.system_metadata.pop(DELETING, None)

    def delete_rescued(self):
        """Delete the disks that a rescue has made.

        :raises: exception.SheepdogError if one is left
        """
        state = State(self._instance.uuid)
        self._for_each(self._delete, state.rescued)
        state.rescued = []
        state.save()

    def keep(self):
        """Keep the disks as they are before a resize, in snapshots.

        :raises: exception.SheepdogError; then nothing is kept
        """
        self.finish_reversal()
        names = self.find()
        try:
            self._for_each(self._keep, names)
            state = State(self._instance.uuid)
            state.kept = names
            state.save()
        except Exception:
            self.forget()
            raise

    def _keep(self, name):
        # What is there was left by a resize that failed.
        libvirt_utils.delete_sheepdog_vdi(self._get_vdi(name), RESIZE_TAG)
        libvirt_utils.snapshot_sheepdog_vdi(self._get_vdi(name), RESIZE_TAG)

    def forget(self):
        """Delete what keep() keeps.

        :raises: exception.SheepdogError
        """
        state = State(self._instance.uuid)
        names = state.kept or self.names
        # Without the record nothing is made again of the snapshots, so it
        # does no harm if only some of them are deleted.
        state.kept, state.reverting = None, False
        state.save()
        self._for_each(
            lambda name: libvirt_utils.delete_sheepdog_vdi(
                self._get_vdi(name), RESIZE_TAG), names)

    def prepare_resized(self):
        """Make sure that a resize goes on with the disks that it kept.

        Disks that it adds are made anew, and swap, which holds nothing.

        :raises: exception.DiskNotFound or exception.SheepdogError
        """
        kept = State(self._instance.uuid).kept
        if kept is None or self._instance.image_ref and 'disk' not in kept:
            raise exception.DiskNotFound(location=_(
                'the cluster of this host, which knows nothing of this resize '
                'of server %s') % self._instance.uuid)
        found = self._find_kept(kept)
        self.delete_working([name for name in found
                             if name not in kept and name != 'disk.config'])

    def _find_kept(self, kept):
        """Do what find() does, and see that what a resize keeps is there."""
        found = self.find()
        for name in kept:
            if name not in found and name != 'disk.swap':
                raise exception.DiskNotFound(location=_(
                    'VDI %s, which the server had before its resize') %
                    self._get_vdi(name))
        return found

    def are_half_resized(self):
        """Tell whether a resize is under way, which may have failed.

        :returns: True if it may not have made all disks that it was to make;
            those that the server had before are there
        :raises: exception.DiskNotFound or exception.SheepdogError
        """
        state = State(self._instance.uuid)
        if state.kept is None or state.reverting:
            return False
        self._find_kept(state.kept)
        return True

    def delete_working(self, names):
        """Delete working VDIs, and leave their snapshots."""
        self._for_each(lambda name: libvirt_utils.remove_sheepdog_vdi(
            self._get_vdi(name)), names)

    def restore(self):
        """Have the disks as they were when keep() was called, if it was.

        :returns: False if nothing is known of that
        :raises: exception.SheepdogError; the next start of the guest, or this,
            goes on with it
        """
        state = State(self._instance.uuid)
        if state.kept is None:
            return False
        if not state.reverting:
            state.reverting = True
            state.save()
        self.finish_reversal(state)
        return True

    def finish_reversal(self, state=None):
        """Make the disks again as the record says, if it says so.

        :param state: the State, if it is known
        :raises: exception.SheepdogError
        """
        state = state or State(self._instance.uuid)
        if not state.reverting:
            return
        LOG.info('Making the disks again as they were before the resize: %s',
                 ', '.join(state.kept), instance=self._instance)

        def restore(name):
            vdi = self._get_vdi(name)
            libvirt_utils.remove_sheepdog_vdi(vdi)
            libvirt_utils.clone_sheepdog_vdi(vdi, RESIZE_TAG, vdi)

        # 'dog vdi rollback' does the same two steps in one process, and what
        # would call it again when there is no disk?
        self._for_each(restore, state.kept)
        # What the resize has added.
        self.delete_working([name for name in self.names
                             if name not in [*state.kept, 'disk.config']])
        self.forget()
