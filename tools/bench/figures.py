# Licensed under the Apache License, Version 2.0 (the "License"); you may
# not use this file except in compliance with the License. You may obtain
# a copy of the License at
#
#      http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
# WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
# License for the specific language governing permissions and limitations
# under the License.

"""What is measured, and what is wanted of it."""

import collections
import statistics
import typing as ty


class Row(ty.NamedTuple):
    """One line of the table.

    :ivar words: what it is
    :ivar against: what it is compared with
    :ivar unit: 'x' for a ratio, else what stands behind the number
    :ivar at_most: the most that is wanted; None for no such limit
    :ivar at_least: the least that is wanted; None alike
    """

    words: str
    against: str
    unit: str = 'x'
    at_most: ty.Optional[float] = None
    at_least: ty.Optional[float] = None

    def is_met(self, value):
        """:returns: None if nothing is wanted of it"""
        if self.at_most is None and self.at_least is None:
            return None
        return ((self.at_most is None or value <= self.at_most) and
                (self.at_least is None or value >= self.at_least))

    @property
    def wanted(self):
        if self.at_most == self.at_least:
            return '' if self.at_most is None else self.show(self.at_most)
        return (self.show(self.at_most) + ' or less' if self.at_least is None
                else self.show(self.at_least) + ' or more')

    def show(self, value):
        """:returns: a value with its unit, as a table has it"""
        number = ('%d' % value if float(value).is_integer() else
                  '%.*f' % (1 if value >= 10 else 2, value))
        return number + (self.unit if self.unit in ('', 'x')
                         else ' ' + self.unit)


# The VDIs that are in the cluster when its size is what matters
SIZES = (10, 1000, 10000)

#: By name of a figure: what it is about, and its rows by name
FIGURES = {
    'boot': ('second and later boots, against bare calls of dog', {
        'boot': Row(
            'root disk ready, second and later boots',
            'bare dog vdi clone and resize, by the same rootwrap daemon',
            at_most=1.2),
        'target': Row(
            'the same, with the target by which a guest opens it',
            'the same bare calls'),
    }),
    'backends': ('the same boots, against other ways to make a disk', {
        'backends-import': Row(
            'times as fast: root disk ready, image of 2 GiB with 256 MiB of '
            'data',
            'an import per boot of the image that the host has as a raw file',
            at_least=10),
        'backends-flat': Row(
            'times as fast: the same',
            'Flat, whose copy is on the same host'),
        'backends-qcow2': Row(
            'times as fast: the same',
            'Qcow2, whose backing file is on the same host'),
    }),
    'import': ('the import at the first boot, against qemu-img', {
        'import': Row(
            'times as fast: first boot of that image, as raw file on the host',
            'dog vdi create and qemu-img convert through tgtd',
            at_least=1),
        'import-native': Row(
            'times as fast: the same by the native transport',
            "dog vdi create and qemu-img convert by QEMU's own driver",
            at_least=1),
        'import-glance': Row(
            'times as fast: first boot of that image, as QCOW2 in Glance',
            'the convert through tgtd of what is on the host'),
    }),
    'written': ('bytes that an import writes', {
        'written': Row(
            'bytes that clients write at a first boot',
            'bytes of data in the image', at_most=1.02),
    }),
    'image': ('createImage of a server that runs', {
        'image-read': Row(
            'bytes that clients read during a createImage',
            'bytes of the objects that the disk has', at_most=1.02),
        'image-stopped': Row(
            'time that the guest is stopped by it', 'none', 's', at_most=0),
    }),
    'growth': ('a cluster with many VDIs', {
        'growth-%s-%d' % (action, size): Row(
            '%s, with %s VDIs in the cluster' % (words, format(size, ',')),
            'with %d' % SIZES[0], at_most=1.1)
        for action, words in (('boot', 'root disk ready'),
                              ('delete', 'delete'), ('snapshot', 'snapshot'))
        for size in SIZES[1:]}),
    'crowd': ('boots on many hosts at once', {
        'crowd': Row('imports made by 100 boots of a new image on 10 hosts',
                     'one', '', at_most=1, at_least=1),
    }),
    'memory': ('memory that an import takes', {
        'memory': Row(
            "memory of nova-compute's process at its most, over an import of "
            '20 GiB', 'before it', 'MiB', at_most=64),
    }),
    'guest-io': ("a guest's reads and writes", {
        'guest-io-%s-%s' % (kind, size): Row(
            'time of %ss of %s KiB, %d at once, by the iscsi transport' % (
                kind, size, depth), 'by the native transport')
        for kind in ('read', 'write')
        for size, depth in ((4, 16), (256, 8))}),
}


def ratio(samples, one, other):
    """Compare what was measured in turn.

    :param samples: dict of label to list of seconds
    :param one: label
    :param other: label
    :returns: median of the one over that of the other
    """
    return statistics.median(samples[one]) / statistics.median(samples[other])


Line = collections.namedtuple('Line', ('row', 'value', 'reason'))


def fill(names, results):
    """Put together what was wanted and what was measured.

    :param names: names of figures
    :param results: dict of the name of a row to the result, a dict with
        'value', or with 'reason' for why it could not be measured
    :returns: dict of the name of a row to its Line
    """
    return {
        name: Line(row, results.get(name, {}).get('value'),
                   results.get(name, {}).get('reason', 'not measured'))
        for figure in names for name, row in FIGURES[figure][1].items()}
