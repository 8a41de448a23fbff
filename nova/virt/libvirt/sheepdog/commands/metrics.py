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

"""Prints figures of this host, and of its cluster, for Prometheus.

node-exporter's textfile collector reads the format:
https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import collections

from oslo_serialization import jsonutils

import nova.conf
from nova import exception
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt.sheepdog.commands import cli
from nova.virt.libvirt.sheepdog.commands import doctor
from nova.virt.libvirt.sheepdog.commands import servers
from nova.virt.libvirt.sheepdog.commands import start
from nova.virt.libvirt.sheepdog.commands import vdis
from nova.virt.libvirt.sheepdog import disks
from nova.virt.libvirt.sheepdog import images
from nova.virt.libvirt.sheepdog import rootwrap
from nova.virt.libvirt.sheepdog import targets
from nova.virt.libvirt import utils as libvirt_utils

CONF = nova.conf.CONF

HELP = {
    'patched': 'Whether the Nova of this host is patched.',
    'up': 'Whether it answered, when these figures were made.',
    'targets': 'Targets of tgtd on this host.',
    'hanging_guests': 'Running guests that have lost a target; they hang '
                      'until nova-compute makes it again.',
    'calls_total': 'Calls that nova-compute has made since it started.',
    'call_failures_total': 'Those that failed, as its log tells.',
    'call_seconds_total': 'Time that they took.',
    'call_wait_seconds_total': 'Time that they waited for their turn, see '
                               'images_sheepdog_max_calls.',
    'cluster_size_bytes': 'Size of the cluster, copies and parity divided '
                          'out.',
    'cluster_used_bytes': 'What of it is used.',
    'cluster_free_bytes': 'What of it is free.',
    'cluster_nodes': 'Sheep daemons that store data.',
    'cluster_zones': 'Zones that they are in.',
    'cluster_wanted_zones': 'Zones that each object should be in.',
    'vdis': 'VDIs and snapshots by kind, and "others" that are not Nova\'s.',
    'vdi_bytes': 'Bytes of data that only these have, copies not counted.',
    'vdi_oldest_timestamp_seconds': 'When the oldest of the kind was made.',
    'orphans': 'VDIs and snapshots of servers that Nova does not have.',
    'orphan_bytes': 'Bytes of data that only these have, copies not counted.',
    'base_image_created_timestamp_seconds': 'When the base was made.',
    'base_image_used_timestamp_seconds': 'When a server last booted from it, '
                                         'to the hour.',
}


class Metrics:
    """Figures and their labels, in the text format of Prometheus."""

    def __init__(self):
        self._samples = collections.defaultdict(list)

    def add(self, name, value, **labels):
        """Add a figure.

        :param name: a name in HELP
        :param value: a number
        :param labels: what tells it from others of that name
        """
        self._samples[name].append((labels, value))

    def __str__(self):
        lines = []
        for name, samples in self._samples.items():
            full = 'nova_sheepdog_' + name
            lines.append('# HELP %s %s' % (full, HELP[name]))
            lines.append('# TYPE %s %s' % (
                full, 'counter' if name.endswith('_total') else 'gauge'))
            for labels, value in samples:
                # jsonutils quotes what the format wants quoted.
                words = ','.join('%s=%s' % (label, jsonutils.dumps(text))
                                 for label, text in labels.items())
                lines.append('%s%s %s' % (
                    full, words and '{%s}' % words, value))
        return '\n'.join(lines) + '\n'


def _add_host(metrics):
    try:
        libvirt = doctor.Libvirt()
    except libvirt_guest.libvirt.libvirtError:
        libvirt = None
    metrics.add('up', int(libvirt is not None), service='libvirtd')
    if CONF.libvirt.images_sheepdog_transport != 'native':
        try:
            found = targets.list_all_targets()
            novas = sum(iqn.startswith(libvirt_utils.SHEEPDOG_IQN)
                        for iqn in found)
            metrics.add('targets', novas, owner='nova')
            metrics.add('targets', len(found) - novas, owner='others')
            if libvirt:
                metrics.add('hanging_guests', len(libvirt.find_hanging()))
            metrics.add('up', 1, service='tgtd')
        except exception.TgtError:
            metrics.add('up', 0, service='tgtd')
    try:
        with open(rootwrap.get_calls_path()) as file:
            calls = jsonutils.loads(file.read())
    except FileNotFoundError:
        # nova-compute has not been here for a minute.
        calls = {}
    for name, counts in calls.items():
        metrics.add('calls_total', counts['calls'], call=name)
        metrics.add('call_failures_total', counts['failures'], call=name)
        metrics.add('call_seconds_total', counts['seconds'], call=name)
        metrics.add('call_wait_seconds_total', counts['waited'], call=name)


def _add_space(metrics):
    policy = libvirt_utils.get_sheepdog_policy()
    nodes = libvirt_utils.list_sheepdog_nodes()
    metrics.add('cluster_nodes', len(nodes))
    metrics.add('cluster_zones', len({node.zone for node in nodes}))
    metrics.add('cluster_wanted_zones', sum(policy))
    space = libvirt_utils.get_sheepdog_space()
    metrics.add('cluster_size_bytes', space['total'])
    metrics.add('cluster_used_bytes', space['used'])
    metrics.add('cluster_free_bytes', space['free'])


def _get_kind(each):
    """Name the kind of a VDI or snapshot in one word."""
    if each.vdi.tag is None:
        return each.kind
    # Of a base it is what is cloned, and of a server what a resize keeps.
    return {images.TAG: 'base', disks.RESIZE_TAG: 'resize'}.get(
        each.vdi.tag, 'snapshot')


def _add_vdis(metrics, found, others):
    by_kind = collections.defaultdict(list)
    for each in found:
        by_kind[_get_kind(each)].append(each.vdi)
    for kind, listed in sorted(by_kind.items()):
        metrics.add('vdis', len(listed), kind=kind)
        metrics.add('vdi_bytes', sum(vdi.own for vdi in listed), kind=kind)
        metrics.add('vdi_oldest_timestamp_seconds',
                    min(vdi.created for vdi in listed), kind=kind)
    metrics.add('vdis', others, kind='others')


def _add_bases(metrics, found):
    for each in found:
        if each.kind != 'base' or each.vdi.tag is not None:
            continue
        digest = each.disk.partition('.')[2]
        labels = {'image': each.owner, 'base': digest}
        metrics.add('base_image_created_timestamp_seconds', each.vdi.created,
                    **labels)
        used = images.Base(None, each.owner, digest).get_last_use()
        if used:
            metrics.add('base_image_used_timestamp_seconds', used, **labels)


def _add_cluster(metrics, cloud):
    try:
        _add_space(metrics)
        found, others = vdis.list_vdis()
        _add_vdis(metrics, found, others)
        _add_bases(metrics, found)
        metrics.add('up', 1, service='cluster')
    except exception.SheepdogError:
        metrics.add('up', 0, service='cluster')
        return
    try:
        vdis.judge(found, servers.connect(cloud))
        orphans = [each.vdi for each in found if each.is_orphan]
        metrics.add('orphans', len(orphans))
        metrics.add('orphan_bytes', sum(vdi.own for vdi in orphans))
        metrics.add('up', 1, service='nova')
    except start.Failure:
        metrics.add('up', 0, service='nova')


def run(arguments):
    """Run "nova-sheepdog metrics".

    :param arguments: what its parser returned
    :raises: start.Failure
    """
    start.configure(arguments.config_file)
    doctor.load_libvirt()
    metrics = Metrics()
    metrics.add('patched', 1)
    _add_host(metrics)
    if arguments.cluster:
        _add_cluster(metrics, arguments.os_cloud)
    cli.write(str(metrics), arguments.output)
