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
"""Live migration of guests whose disks are on Sheepdog.

tgtd reads the inode of a VDI, which tells what objects there are and whose
they are, when QEMU at the destination opens its disks. The source writes on
after that: it makes objects, and copies those that the VDI shares with a
snapshot. The destination would not know of them. So libvirt leaves the guest
stopped at the destination, nova-compute there has tgtd read the inodes again,
and only then does the guest go on.

The source puts an element into the metadata of the destination's domain. As
long as that is there the guest has to be received; no memory of nova-compute
and no message between the hosts is needed for it, so it happens some
milliseconds after the source has stopped, and also when nova-compute has been
restarted meanwhile.
"""

import threading
import time

from lxml import etree
from oslo_log import log as logging
import oslo_messaging as messaging

from nova.compute import rpcapi as compute_rpcapi
from nova.compute import vm_states
import nova.conf
from nova import context as nova_context
from nova import exception
from nova.i18n import _
from nova import objects
from nova import utils
from nova.virt import event as virtevent
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import imagebackend
from nova.virt.libvirt.storage import tgt
from nova.virt.libvirt import utils as libvirt_utils

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)

# The element in a domain's metadata
NAMESPACE = 'http://openstack.org/xmlns/libvirt/nova/sheepdog/1.0'
# In migrate_data.bdms, which the destination fills, the serial number of what
# is about no volume but about all VDIs.
SERIAL = 'sheepdog'
# How often to look for guests whose event was missed, or whose VDIs could not
# be reloaded, in seconds
RECEIVE_INTERVAL = 2

_stop_receiving = None


def _refuse(instance_uuid, reason):
    raise exception.MigrationPreCheckError(
        reason=_('instance %(uuid)s: %(reason)s') %
        {'uuid': instance_uuid, 'reason': reason})


def check_destination(instance, names, block_migration, is_here=False):
    """Refuse at the destination what could not be done safely.

    :param instance: the nova.objects.instance.Instance
    :param names: names of all disks that it can have on Sheepdog
    :param block_migration: True if its disks are to be copied
    :param is_here: whether libvirt at the destination has such a guest
    :raises: exception.MigrationPreCheckError
    """
    if block_migration:
        _refuse(instance.uuid, _(
            'the disks of the destination are on Sheepdog, and no block '
            'migration can copy there; migrate without it'))
    vdis = _get_vdis(instance, names)
    if instance.image_ref and '%s_disk' % instance.uuid not in vdis:
        _refuse(instance.uuid, _(
            'its root disk is not on the Sheepdog cluster of the '
            'destination; migrate it cold'))
    if vdis and imagebackend.Sheepdog.get_transport() != 'iscsi':
        _refuse(instance.uuid, _(
            'guests of the destination reach their VDIs by the native '
            'transport, which cannot be told to read again what the source '
            'has changed; migrate it cold'))
    if is_here:
        # Its targets would be made anew under it.
        _refuse(instance.uuid, _(
            'the libvirtd of the destination has a guest of this instance '
            'already; see that it is stale, and undefine it'))


def check_source(guest, dest_check_data):
    """Refuse at the source what could not be done safely.

    :param guest: the nova.virt.libvirt.guest.Guest
    :param dest_check_data: what the destination has answered
    :raises: exception.MigrationPreCheckError
    """
    disks = [device for device in guest.get_config().devices
             if isinstance(device, vconfig.LibvirtConfigGuestDisk) and
             libvirt_utils.get_sheepdog_vdi_of_disk(device)]
    if not disks:
        return
    if dest_check_data.image_type != 'sheepdog':
        _refuse(guest.uuid, _(
            'its disks are on Sheepdog, and those of the destination are '
            'not: [libvirt]images_type is %s there') %
            dest_check_data.image_type)
    if any(disk.source_protocol == 'sheepdog' for disk in disks):
        _refuse(guest.uuid, _(
            'it reaches its VDIs by the native transport, and so would it '
            'at the destination, where it could not be told to read again '
            'what the source has changed; migrate it cold'))


def check_has_not_gone(instance):
    """Refuse to start a guest that runs on another host.

    nova-compute may have been killed in a live migration from here, which
    libvirt goes on with. Nova notes that it has failed, and takes the guest to
    be here. The other host is asked whether it has it.

    :param instance: the nova.objects.instance.Instance, of which libvirt here
        has no guest
    :raises: exception.InstancePowerOnFailure if it has, or does not answer
    """
    context = nova_context.get_admin_context()
    last = max(
        objects.MigrationList.get_by_filters(
            context, {'instance_uuid': instance.uuid}),
        key=lambda migration: migration.id, default=None)
    if not last or (
            last.migration_type, last.source_compute, last.status) != (
                'live-migration', CONF.host, 'error'):
        return
    there = instance.obj_clone()
    there.host = last.dest_compute
    answer = _('that host has its guest')
    try:
        if objects.Service.get_by_compute_host(
                context, there.host).forced_down:
            # It is fenced, says the administrator.
            return
        # Of what a host can be asked, this is answered for any guest.
        compute_rpcapi.ComputeAPI().get_console_output(context, there, 0)
    except (exception.ComputeHostNotFound, exception.InstanceNotFound):
        return
    except exception.ConsoleNotAvailable:
        pass
    except messaging.MessagingTimeout:
        answer = _('nova-compute there does not answer')
    raise exception.InstancePowerOnFailure(reason=_(
        'its live migration to host %(host)s was interrupted, and %(answer)s; '
        'have its guest end there ("virsh destroy" and "virsh undefine"), or '
        'force the service of that host down when it is fenced, and reboot it '
        'hard') % {'host': there.host, 'answer': answer})


def check_other_cell(instance, names):
    """Refuse a resize from another cell which has the same cluster.

    Nova takes the disks here for copies: it deletes what was left behind when
    the resize is confirmed, and what is here when it is reverted.

    :param instance: the nova.objects.instance.Instance
    :param names: names of all disks that it can have on Sheepdog
    :raises: exception.NoValidHost; after any other error the conductor looks
        for the instance in the wrong cell, and leaves it in its task state
    """
    vdis = _get_vdis(instance, names)
    if vdis:
        raise exception.NoValidHost(reason=_(
            'VDI %s is there already; if both cells have the same Sheepdog '
            'cluster, Nova would delete it while the server uses it: resize '
            'the server within its cell; if each has its own, an earlier '
            'resize to this cell was interrupted: delete what it has left '
            'there') % ', '.join(vdis))


def _get_vdis(instance, names):
    """Return those VDIs of an instance, its rescue disks aside, that exist."""
    vdis = ('%s_%s' % (instance.uuid, name) for name in names
            if 'rescue' not in name)
    return [vdi for vdi in vdis if libvirt_utils.sheepdog_vdi_exists(vdi)]


def prepare_destination(instance, names, migrate_data):
    """Make the targets of a guest that is to come, and tell the source.

    :param instance: the nova.objects.instance.Instance
    :param names: names of all disks that it can have on Sheepdog
    :param migrate_data: its objects.LibvirtLiveMigrateData
    :raises: exception.MigrationPreCheckError, exception.SheepdogError or
        exception.TgtError
    """
    if migrate_data.block_migration:
        # as the source has found out by itself
        check_destination(instance, names, block_migration=True)
    vdis = _get_vdis(instance, names)
    if not vdis:
        return
    tgt.export({libvirt_utils.get_sheepdog_iqn(vdi): vdi for vdi in vdis})
    migrate_data.bdms.append(objects.LibvirtLiveMigrateBDMInfo(
        serial=SERIAL, bus='', dev='', type='',
        connection_info={'driver_volume_type': SERIAL, 'data': {
            'portal': CONF.libvirt.images_sheepdog_portal}}))


def _get_info(migrate_data):
    if (isinstance(migrate_data, objects.LibvirtLiveMigrateData) and
            'bdms' in migrate_data):
        for info in migrate_data.bdms:
            if info.serial == SERIAL:
                return info.connection_info['data']
    return None


def is_needed(migrate_data):
    """Tell whether a guest has disks that this is about.

    :param migrate_data: its objects.LibvirtLiveMigrateData, as
        pre_live_migration() at the destination has returned it
    """
    return _get_info(migrate_data) is not None


def get_flags(flags):
    """Have libvirt leave the guest stopped when it has arrived.

    Post-copy would have it run at the destination before.

    :param flags: libvirt's flags for other guests
    :returns: the flags to use
    """
    libvirt = libvirt_guest.libvirt
    if flags & libvirt.VIR_MIGRATE_POSTCOPY:
        flags &= ~libvirt.VIR_MIGRATE_POSTCOPY
        # Nova leaves it out where there is post-copy.
        if CONF.libvirt.live_migration_permit_auto_converge:
            flags |= libvirt.VIR_MIGRATE_AUTO_CONVERGE
    return flags | libvirt.VIR_MIGRATE_PAUSED


def get_destination_xml(xml, instance, migrate_data):
    """Rewrite the XML of a guest for its destination.

    :param xml: the XML that it would have there
    :param instance: the nova.objects.instance.Instance
    :param migrate_data: its objects.LibvirtLiveMigrateData
    :returns: XML with the destination's portal, and with the element by
        which the destination knows what to do
    """
    tree = etree.fromstring(xml)
    address, _colon, port = _get_info(migrate_data)['portal'].partition(':')
    for source in tree.findall("./devices/disk/source[@protocol='iscsi']"):
        if source.get('name').startswith(libvirt_utils.SHEEPDOG_IQN):
            source.find('host').set('name', address)
            source.find('host').set('port', port)
    metadata = tree.find('metadata')
    if metadata is None:
        metadata = etree.SubElement(tree, 'metadata')
    name = '{%s}arrival' % NAMESPACE
    for arrival in metadata.findall(name):
        # It has not been received yet where it is now.
        metadata.remove(arrival)
    etree.SubElement(
        metadata, name, nsmap={'sheepdog': NAMESPACE},
        resume='no' if instance.vm_state == vm_states.PAUSED else 'yes')
    return etree.tostring(tree, encoding='unicode')


def _get_arrival(guest):
    """Return the element by which a guest has to be received, or None."""
    libvirt = libvirt_guest.libvirt
    try:
        return etree.fromstring(guest._domain.metadata(
            libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE))
    except libvirt.libvirtError as e:
        if e.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_METADATA,
                                  libvirt.VIR_ERR_NO_DOMAIN):
            return None
        raise


def is_arriving(guest):
    """Tell whether a guest comes, or has come and has to be received.

    :param guest: a nova.virt.libvirt.guest.Guest, of any kind and state
    """
    return _get_arrival(guest) is not None


def _receive(guest):
    """Let a guest go on that has come from another host.

    :param guest: a nova.virt.libvirt.guest.Guest that has the element
    :raises: exception.TgtError or libvirt.libvirtError; it may be tried again
    """
    libvirt = libvirt_guest.libvirt
    arrival = _get_arrival(guest)
    if arrival is None:
        # received by another thread
        return
    state, reason = guest._domain.state()
    if state == libvirt.VIR_DOMAIN_PAUSED:
        if reason != libvirt.VIR_DOMAIN_PAUSED_USER:
            # The source still runs.
            return
        start = time.monotonic()
        tgt.reload(imagebackend.Sheepdog.get_exports(guest.get_config()))
        if arrival.get('resume') == 'yes':
            guest.resume()
        LOG.info('Instance %(uuid)s has come from another host; reloaded its '
                 'VDIs in %(time).3f seconds',
                 {'uuid': guest.uuid, 'time': time.monotonic() - start})
    # Last, as what comes before may be tried again.
    guest._domain.setMetadata(
        libvirt.VIR_DOMAIN_METADATA_ELEMENT, None, None, NAMESPACE,
        libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG)


def receive(guest):
    """Let a guest go on if it has come from another host.

    :param guest: a nova.virt.libvirt.guest.Guest, of any kind and state
    :raises: exception.TgtError or libvirt.libvirtError if it has, and its
        VDIs could not be reloaded
    """
    if is_arriving(guest):
        utils.synchronized('sheepdog-receive-' + guest.uuid)(_receive)(guest)


def try_to_receive(guest):
    """Call receive(), and say so if it fails: it is tried again.

    :param guest: a nova.virt.libvirt.guest.Guest, of any kind and state
    """
    try:
        receive(guest)
    except Exception as e:
        LOG.error('Instance %(uuid)s may have come from another host and is '
                  'kept paused until its VDIs have been reloaded, because it '
                  'would read stale data; trying again every %(interval)d '
                  'seconds: %(error)s',
                  {'uuid': guest.uuid, 'interval': RECEIVE_INTERVAL,
                   'error': e})


def handle_event(host, event):
    """Receive a guest when libvirt says that it was stopped.

    That may be because it has arrived.

    :param host: the nova.virt.libvirt.host.Host
    :param event: a nova.virt.event.InstanceEvent of any kind
    """
    def receive_it():
        for guest in host.list_guests(only_running=True):
            if guest.uuid == event.uuid:
                try_to_receive(guest)

    if (isinstance(event, virtevent.LifecycleEvent) and
            event.transition == virtevent.EVENT_LIFECYCLE_PAUSED):
        # The next event may not have to wait for tgtd and the cluster.
        threading.Thread(target=receive_it, daemon=True).start()


def keep_receiving(host):
    """Receive, for ever, guests that handle_event() could not receive.

    :param host: the nova.virt.libvirt.host.Host
    """
    global _stop_receiving
    if imagebackend.Sheepdog.get_transport() != 'iscsi':
        return

    def receive_all(stop):
        while True:
            try:
                for guest in host.list_guests(only_running=True):
                    try_to_receive(guest)
            except Exception as e:
                LOG.warning('Cannot look for instances that have come from '
                            'other hosts; trying again: %s', e)
            if stop.wait(RECEIVE_INTERVAL):
                return

    stop_receiving()
    _stop_receiving = threading.Event()
    threading.Thread(target=receive_all, args=(_stop_receiving,),
                     daemon=True).start()


def stop_receiving():
    """End what keep_receiving() does."""
    if _stop_receiving:
        _stop_receiving.set()
