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
long as that is there the guest has to be received. This needs no memory of
nova-compute and no message between the hosts, so it also happens when
nova-compute has been restarted meanwhile.

The destination notes in the record of the instance, see disks.py, that a guest
may come, and where its portal is. While that is there no other host starts the
guest: libvirt goes on with a migration whose nova-compute has died, and Nova
then takes the guest to be at the source.
"""

from lxml import etree

from nova.compute import vm_states
import nova.conf
from nova import context as nova_context
from nova import exception
from nova.i18n import _
from nova import objects
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt.sheepdog import targets
from nova.virt.libvirt import utils as libvirt_utils

CONF = nova.conf.CONF

# The element in a domain's metadata
NAMESPACE = 'http://openstack.org/xmlns/libvirt/nova/sheepdog/1.0'


def _refuse(instance_uuid, reason):
    raise exception.MigrationPreCheckError(
        reason=_('instance %(uuid)s: %(reason)s') %
        {'uuid': instance_uuid, 'reason': reason})


def check_destination(instance, found, transport, block_migration, is_here):
    """Refuse at the destination what could not be done safely.

    :param instance: the nova.objects.instance.Instance
    :param found: names of its disks that are in the cluster
    :param transport: the transport of the destination
    :param block_migration: True if its disks are to be copied
    :param is_here: whether libvirt at the destination has such a guest
    :raises: exception.MigrationPreCheckError
    """
    if block_migration:
        _refuse(instance.uuid, _(
            'the disks of the destination are on Sheepdog, and no block '
            'migration can copy there; migrate without it'))
    if instance.image_ref and 'disk' not in found:
        _refuse(instance.uuid, _(
            'its root disk is not on the Sheepdog cluster of the '
            'destination; migrate it cold'))
    if found and transport != 'iscsi':
        _refuse(instance.uuid, _(
            'guests of the destination reach their VDIs by the native '
            'transport, which cannot be told to read again what the source '
            'has changed; migrate it cold'))
    if is_here:
        # Its targets would be made anew under it.
        _refuse(instance.uuid, _(
            'the libvirtd of the destination has a guest of this instance '
            'already; see that it is stale, and undefine it'))


def check_source(guest, image_type):
    """Refuse at the source what could not be done safely.

    :param guest: the nova.virt.libvirt.guest.Guest
    :param image_type: images_type of the destination
    :raises: exception.MigrationPreCheckError
    """
    config = guest.get_config()
    native = targets.get_vdis(config, 'sheepdog')
    if not native and not targets.get_exports(config):
        return
    if image_type != 'sheepdog':
        _refuse(guest.uuid, _(
            'its disks are on Sheepdog, and those of the destination are '
            'not: [libvirt]images_type is %s there') % image_type)
    if native:
        _refuse(guest.uuid, _(
            'it reaches its VDIs by the native transport, and so would it '
            'at the destination, where it could not be told to read again '
            'what the source has changed; migrate it cold'))


def check_not_elsewhere(instance, arrival):
    """Refuse to start a guest that may run on another host.

    :param instance: the nova.objects.instance.Instance, which libvirt here
        does not have
    :param arrival: what the record of the instance says
    :raises: exception.InstancePowerOnFailure
    """
    host = (arrival or {}).get('host')
    if host in (None, CONF.host):
        return
    context = nova_context.get_admin_context()
    last = max(
        (migration for migration in objects.MigrationList.get_by_filters(
            context, {'instance_uuid': instance.uuid,
                      'migration_type': 'live-migration'})),
        key=lambda migration: migration.id, default=None)
    if not last or last.dest_compute != host or last.status == 'completed':
        return
    try:
        if objects.Service.get_by_compute_host(context, host).forced_down:
            # The administrator says by this that it is fenced.
            return
    except exception.ComputeHostNotFound:
        return
    raise exception.InstancePowerOnFailure(reason=_(
        'its live migration to host %s was interrupted, and the guest may run '
        'there. End it there ("virsh destroy" and "virsh undefine"), or fence '
        'that host and force its service down; then reboot the server hard') %
        host)


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


def has_exports(xml):
    """Tell whether a guest has targets of this host.

    :param xml: its XML
    """
    config = vconfig.LibvirtConfigGuest()
    config.parse_str(xml)
    return bool(targets.get_exports(config))


def get_destination_xml(xml, instance, arrival):
    """Rewrite the XML of a guest for its destination.

    :param xml: the XML that it would have there
    :param instance: the nova.objects.instance.Instance
    :param arrival: what the destination has noted
    :returns: XML with the destination's portal, and with the element by
        which the destination knows what to do
    """
    tree = etree.fromstring(xml)
    address, _colon, port = arrival['portal'].partition(':')
    for source in tree.findall("./devices/disk/source[@protocol='iscsi']"):
        if source.get('name').startswith(libvirt_utils.SHEEPDOG_IQN):
            source.find('host').set('name', address)
            source.find('host').set('port', port)
    metadata = tree.find('metadata')
    if metadata is None:
        metadata = etree.SubElement(tree, 'metadata')
    name = '{%s}arrival' % NAMESPACE
    for element in metadata.findall(name):
        # It has not been received yet where it is now.
        metadata.remove(element)
    etree.SubElement(
        metadata, name, nsmap={'sheepdog': NAMESPACE},
        resume='no' if instance.vm_state == vm_states.PAUSED else 'yes')
    return etree.tostring(tree, encoding='unicode')


def get_arrival(domain):
    """Return the element by which a guest has to be received, or None.

    :param domain: a libvirt.virDomain of any kind and state
    """
    libvirt = libvirt_guest.libvirt
    try:
        return etree.fromstring(domain.metadata(
            libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE))
    except libvirt.libvirtError as e:
        if e.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_METADATA,
                                  libvirt.VIR_ERR_NO_DOMAIN):
            return None
        raise


def remove_arrival(domain):
    """Note that a guest has been received."""
    libvirt = libvirt_guest.libvirt
    domain.setMetadata(
        libvirt.VIR_DOMAIN_METADATA_ELEMENT, None, None, NAMESPACE,
        libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG)


def is_paused(domain):
    return domain.state()[0] == libvirt_guest.libvirt.VIR_DOMAIN_PAUSED


def has_arrived(domain):
    """Tell whether a guest waits, stopped, and the source does not run it."""
    libvirt = libvirt_guest.libvirt
    return tuple(domain.state()) == (libvirt.VIR_DOMAIN_PAUSED,
                                     libvirt.VIR_DOMAIN_PAUSED_USER)
