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

"""What Nova has in the cluster, and what of it nobody needs."""

import collections
import re
import sys
import time

from oslo_serialization import jsonutils

import nova.conf
from nova import exception
from nova.i18n import _
from nova.virt.libvirt.sheepdog.commands import servers
from nova.virt.libvirt.sheepdog.commands import start
from nova.virt.libvirt.sheepdog import disks
from nova.virt.libvirt.sheepdog import images
from nova.virt.libvirt.sheepdog import targets
from nova.virt.libvirt import utils as libvirt_utils

CONF = nova.conf.CONF

# Seconds. An orphan has to be older, so that nothing goes that Nova is about
# to make or to delete.
MINIMUM_AGE = 600
TAGS = (images.SNAPSHOT_TAG, disks.RESIZE_TAG, images.TAG)
# As rootwrap's filters have them. Others may give their VDIs similar names.
_OF_SERVER = re.compile(
    r'disk(\.(local|swap|config|eph[0-9]+))?(\.rescue)?|scratch|state')
_OF_IMAGE = re.compile(r'(base|record|import|lease)\.[0-9a-f]+')


class Found:
    """A VDI or snapshot of Nova's, and what is known of it.

    :ivar vdi: the libvirt_utils.SheepdogVDI
    :ivar owner: UUID of the server or id of the image
    :ivar kind: 'disk', 'scratch' and so on
    :ivar state: of the server, or another word for what it is
    :ivar host: where its server is, or None
    :ivar is_orphan: whether Nova says that it has no such server
    """

    def __init__(self, vdi, owner, kind):
        self.vdi = vdi
        self.owner = owner
        self.kind = kind
        self.state = self.host = None
        self.is_orphan = False

    @property
    def disk(self):
        """Its name behind the owner's, such as 'disk.swap'."""
        return self.vdi.name[len(self.owner) + 1:]

    @property
    def shown(self):
        return (self.disk if self.vdi.tag is None else
                '%s@%s' % (self.disk, self.vdi.tag))

    @property
    def is_of_image(self):
        return _OF_IMAGE.fullmatch(self.disk) is not None

    @property
    def is_novas(self):
        """Whether Nova made it; anybody can take a snapshot."""
        return self.vdi.tag is None or self.vdi.tag in TAGS


def list_vdis():
    """List what Nova may have made.

    :returns: list of Found, in the order of their names, and the number of
        all other VDIs and snapshots
    :raises: exception.SheepdogError
    """
    found, others = [], 0
    for vdi in libvirt_utils.list_sheepdog_vdis():
        owner, kind, _rest = (
            libvirt_utils.split_sheepdog_vdi(vdi.name) or ('', '', ''))
        each = Found(vdi, owner, kind)
        if _OF_SERVER.fullmatch(each.disk) or each.is_of_image:
            found.append(each)
        else:
            others += 1
    found.sort(key=lambda each: (each.vdi.name, each.vdi.tag or ''))
    return found, others


def judge(found, nova):
    """Find out which VDIs are needed.

    :param found: what list_vdis() returned; servers are asked for after it,
        as one may have been made meanwhile
    :param nova: a servers.Api or servers.Conductor
    :raises: start.Failure
    """
    known = nova.find({each.owner for each in found if not each.is_of_image})
    names = {(each.vdi.name, each.vdi.tag) for each in found}
    now = time.time()
    young = {each.owner for each in found
             if now - each.vdi.created < MINIMUM_AGE}
    for each in found:
        server = known.get(each.owner)
        if not each.is_novas:
            each.state = "not Nova's"
        elif each.is_of_image:
            # It is whole only with the snapshot that is cloned.
            whole = {(each.vdi.name, None),
                     (each.vdi.name, images.TAG)} <= names
            each.state = ('base image' if whole or each.kind == 'record' or
                          each.owner == images.AGEING else
                          'base image, half-made')
        elif server is None:
            each.state = 'unknown to the conductor'
        elif server.state:
            each.state, each.host = server
        elif each.owner in young:
            each.state = 'orphan, but young'
        else:
            each.state = 'orphan'
            each.is_orphan = True


def _find_transport(each, exported):
    if each.vdi.tag is not None:
        return None
    # That of a scratch VDI has something of its own behind the name.
    iqn = libvirt_utils.get_sheepdog_iqn(each.vdi.name)
    if any(name == iqn or each.kind == 'scratch' and
           name.startswith(iqn + '.') for name in exported):
        return 'iscsi'
    if (CONF.libvirt.images_sheepdog_transport == 'native' and
            each.host == CONF.host):
        return 'native'
    return None


def _list_exported():
    try:
        return targets.list_targets()
    except exception.TgtError:
        # It has no tgtd, say.
        return {}


def _show_amount(number):
    """Put a number of bytes into words."""
    power = min(max(number.bit_length() - 1, 0) // 10, 4)
    return '%.*f %s' % (min(power, 1), number / 1024 ** power,
                        ('B', 'KiB', 'MiB', 'GiB', 'TiB')[power])


def _show_table(found):
    exported = _list_exported()
    rows = [('INSTANCE OR IMAGE', 'DISK', 'SIZE', 'OWN', 'SHARED',
             'TRANSPORT', 'HOST', 'STATE')]
    rows += [(each.owner, each.shown, _show_amount(each.vdi.size),
              _show_amount(each.vdi.own), _show_amount(each.vdi.shared),
              _find_transport(each, exported) or '-', each.host or '-',
              each.state) for each in found]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = [cell.rjust(width) if 2 <= number <= 4 else cell.ljust(width)
                 for number, (cell, width) in enumerate(zip(row, widths))]
        print('  '.join(cells).rstrip())


def _show_json(found):
    exported = _list_exported()
    print(jsonutils.dumps([{
        **each.vdi._asdict(), 'owner': each.owner, 'disk': each.disk,
        'state': each.state, 'host': each.host,
        'transport': _find_transport(each, exported),
        'is_orphan': each.is_orphan} for each in found], indent=1))


def _clean(orphans, nova):
    """Delete orphans: of each server the snapshots, then the VDIs.

    :returns: list of what was not deleted and why
    """
    failures = []
    by_owner = collections.defaultdict(list)
    for each in orphans:
        by_owner[each.owner].append(each)
    for owner, vdis in by_owner.items():
        # As late as can be.
        try:
            if not nova.is_gone(owner):
                failures.append('%s: Nova knows it now' % owner)
                continue
        except start.Failure as e:
            failures.append(str(e))
            continue
        for each in sorted(vdis, key=lambda each: each.vdi.tag is None):
            try:
                if each.vdi.tag is None:
                    libvirt_utils.remove_sheepdog_vdi(each.vdi.name)
                else:
                    libvirt_utils.delete_sheepdog_vdi(each.vdi.name,
                                                      each.vdi.tag)
            except exception.SheepdogError as e:
                failures.append('%s_%s: %s' % (owner, each.shown, e))
            else:
                print('Deleted %s_%s' % (owner, each.shown))
    return failures


def _confirm(count):
    if not sys.stdin.isatty():
        raise start.Failure(_('Nobody is here to say yes, so nothing was '
                              'deleted. Give --yes if that is meant'))
    answer = input(_('Delete these %(count)d VDIs and snapshots of the '
                     'cluster at %(gateway)s for good? [y/N] ') % {
        'count': count,
        'gateway': '%s:%s' % libvirt_utils.get_sheepdog_gateway()})
    return answer.strip().lower() in ('y', 'yes')


def run(arguments):
    """Run "nova-sheepdog vdis".

    :param arguments: what its parser returned
    :returns: exit status
    :raises: start.Failure or exception.NovaException
    """
    if arguments.clean and arguments.json:
        raise start.Failure(_('--json does not go with --clean'))
    if arguments.yes and not arguments.clean:
        raise start.Failure(_('--yes goes with --clean'))
    start.configure(arguments.config_file)
    for name in 'host', 'port':
        value = getattr(arguments, name)
        if value:
            CONF.set_override('images_sheepdog_' + name, value, 'libvirt')
    nova = servers.connect(arguments.os_cloud)
    try:
        found, others = list_vdis()
    except exception.SheepdogUnreachable as e:
        raise start.Failure(_('%s Name a sheep daemon that runs with --host '
                              'and --port') % e)
    judge(found, nova)
    orphans = [each for each in found if each.is_orphan]
    if arguments.json:
        _show_json(found)
        return 0
    if not arguments.clean:
        _show_table(found)
        print(_('%(all)d VDIs and snapshots, %(orphans)d of them orphans. '
                'Not of Nova: %(others)d.') % {
            'all': len(found), 'orphans': len(orphans), 'others': others})
        return 0
    if not orphans:
        print(_('There are no orphans to delete.'))
        return 0
    nova.check_host()
    _show_table(orphans)
    if not (arguments.yes or _confirm(len(orphans))):
        print(_('Nothing was deleted.'))
        return 1
    failures = _clean(orphans, nova)
    if failures:
        raise start.Failure(_('Not all could be deleted:\n  %s') %
                            '\n  '.join(failures))
    return 0
