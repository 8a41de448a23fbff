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

"""Record calls of the real dog: ``python -m contract.record``.

Wants SHEEPDOG_DOG, SHEEPDOG_HOST and SHEEPDOG_PORT, see clusters.py, and
writes transcripts.json anew.
"""

import argparse
import os
import sys

from contract import clusters
from contract import transcripts

_MIB = 1 << 20


def _case(title, *argv, letter=None, size=0):
    """A call to record.

    :param letter: what standard input holds
    :param size: how often
    """
    case = {'title': title, 'argv': list(argv), 'stdin_bytes': size}
    if letter:
        case['stdin_letter'] = letter
    return case


def _vdi(title, *argv, **options):
    return _case(title, 'vdi', *argv, **options)


def _before_format():
    yield _vdi('create before the cluster is formatted', 'create', 'a', '64M')
    yield _vdi('list before the cluster is formatted', 'list', '-r')
    yield _vdi('getattr before the cluster is formatted', 'getattr', 'a',
               'nova')
    yield _case('cluster info before format', 'cluster', 'info')
    yield _case('cluster info before format, verbose', 'cluster', 'info',
                '-v')
    yield _case('format', 'cluster', 'format', '-c', '2')
    yield _vdi('mark the cluster', 'create', clusters.MARKER, '4M')


def _cluster():
    yield _case('cluster info', 'cluster', 'info')
    yield _case('cluster info, verbose', 'cluster', 'info', '-v')
    yield _case('node list', 'node', 'list', '-r')
    yield _case('node info: id size used avail use%; last line Total size '
                'used avail use% virtual', 'node', 'info', '-r')
    yield _case('node md info', 'node', 'md', 'info', '-r')


def _calls():
    yield _vdi('create', 'create', 'a', '64M')
    yield _vdi('create, size in bytes', 'create', 'bytes', '67108864')
    yield _vdi('create an existing name', 'create', 'a', '64M')
    yield _vdi('create larger than 4 TiB', 'create', 'huge', '5T')
    yield _vdi('create, no size', 'create', 'size0', '0')
    yield _vdi('create, one byte', 'create', 'size1', '1')
    yield _vdi('create, 4 TiB', 'create', 'size4T', '4T')
    yield _vdi('list one', 'list', '-r', 'a')
    yield _vdi('list one that does not exist', 'list', '-r', 'nosuch')
    yield _vdi('list all', 'list', '-r')
    yield _vdi('list all, not raw', 'list')
    yield _vdi('write 5 MiB at 0', 'write', 'a', letter='Z', size=5 * _MIB)
    yield _vdi('write 1 MiB at 8 MiB, offset and length in bytes', 'write',
               'a', '8388608', '1048576', letter='Y', size=_MIB)
    yield _vdi('write less than the length announced', 'write', 'a',
               '16777216', '2097152', letter='X', size=_MIB)
    yield _vdi('write beyond the end', 'write', 'a', '68157440', '4096',
               letter='W', size=4096)
    yield _vdi('write across the end (clipped at the end)', 'write', 'a',
               '66060288', '2097152', letter='V', size=2 * _MIB)
    yield _vdi('write to a name that does not exist', 'write', 'nosuch', '0',
               '4096', letter='U', size=4096)
    yield _vdi('read 6 bytes across written and hole', 'read', 'a',
               '5242877', '6')
    yield _vdi('read to the end', 'read', 'a')
    yield _vdi('read a name that does not exist', 'read', 'nosuch', '0', '1')
    yield _vdi('object map: index (decimal) and vid of each allocated object',
               'object', 'map', 'a')
    yield _vdi('resize up', 'resize', 'a', '134217728')
    yield _vdi('resize to the same size', 'resize', 'a', '134217728')
    yield _vdi('resize down', 'resize', 'a', '32M')
    yield _vdi('resize a name that does not exist', 'resize', 'nosuch', '32M')
    yield _vdi('snapshot', 'snapshot', '-s', 'one', 'a')
    yield _vdi('snapshot with the same tag', 'snapshot', '-s', 'one', 'a')
    yield _vdi('snapshot of a name that does not exist', 'snapshot', '-s',
               'one', 'nosuch')
    yield _vdi('list one with a snapshot', 'list', '-r', 'a')
    yield _vdi('list one with a snapshot, not raw', 'list', 'a')
    yield _vdi('overwrite after the snapshot', 'write', 'a', '0', '4096',
               letter='T', size=4096)
    yield _vdi('read from the snapshot', 'read', '-s', 'one', 'a', '0', '4')
    yield _vdi('read from the working VDI', 'read', 'a', '0', '4')
    yield _vdi('read from a tag that does not exist', 'read', '-s', 'none',
               'a', '0', '4')
    yield _vdi('clone', 'clone', '-s', 'one', 'a', 'clone')
    yield _vdi('clone to an existing name', 'clone', '-s', 'one', 'a',
               'clone')
    yield _vdi('clone without a snapshot', 'clone', 'a', 'clone2')
    yield _vdi('clone from a tag that does not exist', 'clone', '-s', 'none',
               'a', 'clone2')
    yield _vdi('clone from a tag that does not exist to an existing name',
               'clone', '-s', 'none', 'a', 'clone')
    yield _vdi('clone from a name that does not exist', 'clone', '-s', 'one',
               'nosuch', 'clone2')
    yield _vdi('list the clone', 'list', '-r', 'clone')
    yield _vdi('getattr of a key that is not set', 'getattr', 'a', 'nova')
    yield _vdi('getattr of a name that does not exist', 'getattr', 'nosuch',
               'nova')
    yield _vdi('delete the working VDI (its snapshot stays)', 'delete', 'a')
    yield _vdi('list after delete', 'list', '-r', 'a')
    yield _vdi('getattr of what has only snapshots', 'getattr', 'a', 'nova')
    yield _vdi('create again under the name whose snapshot is left', 'create',
               'a', '64M')
    yield _vdi('delete again', 'delete', 'a')
    yield _vdi('delete the snapshot (its clone keeps its data)', 'delete',
               '-s', 'one', 'a')
    yield _vdi('read the clone after its parent is gone', 'read', 'clone',
               '0', '4')
    yield _vdi('delete a name that does not exist: note the exit status',
               'delete', 'nosuch')
    yield _vdi('delete a tag that does not exist: note the exit status',
               'delete', '-s', 'none', 'clone')
    yield _vdi('no daemon at the port', 'list', '-r')
    yield _vdi('no daemon at the port, create', 'create', 'x', '64M')
    yield _vdi('no daemon at the port, getattr', 'getattr', 'x', 'nova')
    yield _vdi('no daemon at the port, delete: note the exit status',
               'delete', 'clone')
    yield _case('no daemon at the port, cluster info', 'cluster', 'info',
                '-v')


def _object_maps():
    yield _vdi('object map of a name that does not exist',
               'object', 'map', 'nosuch')
    yield _vdi('create', 'create', 'map', '40M')
    yield _vdi('object map of an empty VDI', 'object', 'map', 'map')
    yield _vdi('write into object 1', 'write', 'map', '5M', '4096',
               letter='A', size=4096)
    yield _vdi('write into object 9', 'write', 'map', '37748736', '512',
               letter='B', size=512)
    yield _vdi('object map with holes', 'object', 'map', 'map')
    yield _vdi('snapshot, tag with a dash', 'snapshot', '-s', 'a-tag-2',
               'map')
    yield _vdi('write to object 1 after the snapshot', 'write', 'map', '4M',
               '512', letter='C', size=512)
    yield _vdi('write to object 0 after the snapshot', 'write', 'map', '0',
               '1', letter='D', size=1)
    yield _vdi('object map: own and shared objects', 'object', 'map', 'map')
    yield _vdi('object map of the snapshot by tag', 'object', 'map', '-s',
               'a-tag-2', 'map')
    yield _vdi('object map of the snapshot by id', 'object', 'map', '-s', '1',
               'map')
    yield _vdi('object map of a tag that does not exist', 'object', 'map',
               '-s', 'none', 'map')
    yield _vdi('clone', 'clone', '-s', 'a-tag-2', 'map', 'map-clone')
    yield _vdi('object map of the clone', 'object', 'map', 'map-clone')
    yield _vdi('resize the clone', 'resize', 'map-clone', '80M')
    yield _vdi('write beyond the old end', 'write', 'map-clone', '79M', '512',
               letter='E', size=512)
    yield _vdi('object map of the resized clone', 'object', 'map',
               'map-clone')
    yield _vdi('its parent has its size still', 'list', '-r', 'map')
    yield _vdi('the clone', 'list', '-r', 'map-clone')
    yield _vdi('clone the clone without a snapshot', 'clone', '-s', 'none',
               'map-clone', 'grandchild')
    yield _vdi('snapshot the clone', 'snapshot', '-s', 'own', 'map-clone')
    yield _vdi('clone the clone', 'clone', '-s', 'own', 'map-clone',
               'grandchild')
    yield _vdi('object map of the grandchild', 'object', 'map', 'grandchild')
    yield _vdi('delete the clone', 'delete', 'map-clone')
    yield _vdi('delete its snapshot', 'delete', '-s', 'own', 'map-clone')
    yield _vdi('delete the parent', 'delete', 'map')
    yield _vdi('delete the parent\'s snapshot', 'delete', '-s', 'a-tag-2',
               'map')
    yield _vdi('read what only the grandchild has left', 'read',
               'grandchild', '5M', '3')
    yield _vdi('read what came from the clone', 'read', 'grandchild', '79M',
               '3')
    yield _vdi('nothing of the parent is listed', 'list', '-r', 'map')
    yield _vdi('delete the grandchild', 'delete', 'grandchild')


def _writes():
    yield _vdi('create', 'create', 'io', '20M')
    yield _vdi('write, length 0', 'write', 'io', '0', '0')
    yield _vdi('object map after a write of length 0', 'object', 'map', 'io')
    yield _vdi('write, empty standard input', 'write', 'io', '4M', '512')
    yield _vdi('object map after it', 'object', 'map', 'io')
    yield _vdi('write at an offset that is no sector', 'write', 'io', '1',
               '3', letter='A', size=3)
    yield _vdi('write across objects', 'write', 'io', '8388606', '4',
               letter='B', size=4)
    yield _vdi('read across objects', 'read', 'io', '8388604', '8')
    yield _vdi('read at an offset that is no sector', 'read', 'io', '0', '5')
    yield _vdi('write more than the length', 'write', 'io', '12M', '4',
               letter='C', size=8)
    yield _vdi('read that', 'read', 'io', '12M', '8')
    yield _vdi('write at the end', 'write', 'io', '20M', '1', letter='D',
               size=1)
    yield _vdi('read at the end', 'read', 'io', '20M', '1')
    yield _vdi('read beyond the end', 'read', 'io', '20971521', '1')
    yield _vdi('read across the end', 'read', 'io', '20971519', '10')
    yield _vdi('read, length 0', 'read', 'io', '0', '0')
    yield _vdi('read all of it', 'read', 'io')
    yield _vdi('the space it takes', 'list', '-r', 'io')
    yield _vdi('resize to no number of objects', 'resize', 'io', '20971521')
    yield _vdi('write the last byte', 'write', 'io', '20971520', '1',
               letter='E', size=1)
    yield _vdi('object map of six objects', 'object', 'map', 'io')
    yield _vdi('resize beyond 4 TiB', 'resize', 'io', '5T')
    yield _vdi('delete', 'delete', 'io')


def _snapshots():
    yield _vdi('create', 'create', 'base', '16M')
    yield _vdi('write', 'write', 'base', '0', str(5 * _MIB), letter='A',
               size=5 * _MIB)
    yield _vdi('snapshot', 'snapshot', '-s', 'first', 'base')
    yield _vdi('overwrite a part of an object', 'write', 'base', '100', '10',
               letter='B', size=10)
    yield _vdi('read the working VDI around it', 'read', 'base', '99', '12')
    yield _vdi('read the snapshot around it', 'read', '-s', 'first', 'base',
               '99', '12')
    yield _vdi('snapshot again', 'snapshot', '-s', 'second', 'base')
    yield _vdi('list', 'list', '-r', 'base')
    yield _vdi('delete the working VDI', 'delete', 'base')
    yield _vdi('snapshots are left', 'list', '-r', 'base')
    yield _vdi('delete what has only snapshots', 'delete', 'base')
    yield _vdi('read what has only snapshots', 'read', 'base', '0', '1')
    yield _vdi('resize what has only snapshots', 'resize', 'base', '32M')
    yield _vdi('snapshot what has only snapshots', 'snapshot', '-s', 'third',
               'base')
    yield _vdi('snapshot what has only snapshots, under a tag it has',
               'snapshot', '-s', 'first', 'base')
    yield _vdi('clone a snapshot of a deleted VDI', 'clone', '-s', 'first',
               'base', 'child')
    yield _vdi('read the clone', 'read', 'child', '99', '12')
    yield _vdi('write to the clone', 'write', 'child', '0', '2', letter='C',
               size=2)
    yield _vdi('read the clone again', 'read', 'child', '0', '4')
    yield _vdi('the snapshot is as it was', 'read', '-s', 'first', 'base',
               '0', '4')
    yield _vdi('delete the first snapshot by id', 'delete', '-s', '1', 'base')
    yield _vdi('delete the second snapshot', 'delete', '-s', 'second',
               'base')
    yield _vdi('delete it again', 'delete', '-s', 'second', 'base')
    yield _vdi('nothing is listed', 'list', '-r', 'base')
    yield _vdi('the clone has its data', 'read', 'child', '0', '4')
    yield _vdi('the clone has shared data', 'read', 'child', '4M', '2')
    yield _vdi('the clone\'s space', 'list', '-r', 'child')
    yield _vdi('create under the name that is free again', 'create', 'base',
               '8M')
    yield _vdi('it is new', 'read', 'base', '0', '2')
    yield _vdi('its snapshot ids begin anew', 'snapshot', '-s', 'first',
               'base')
    yield _vdi('list it', 'list', '-r', 'base')
    yield _vdi('delete it', 'delete', 'base')
    yield _vdi('delete its snapshot', 'delete', '-s', 'first', 'base')


def _base_images():
    yield _vdi('create', 'create', 'image', '8M')
    yield _vdi('write', 'write', 'image', '0', '3', letter='A', size=3)
    yield _vdi('snapshot', 'snapshot', '-s', 'nova-base', 'image')
    yield _vdi('snapshot under a tag that it has', 'snapshot', '-s',
               'nova-base', 'image')
    yield _vdi('delete the working VDI first', 'delete', 'image')
    yield _vdi('create it again beside the snapshot', 'create', 'image',
               '8M')
    yield _vdi('getattr of the new one', 'getattr', 'image', 'nova')
    yield _vdi('snapshot under the tag of the old one', 'snapshot', '-s',
               'nova-base', 'image')
    yield _vdi('clone of the old snapshot', 'clone', '-s', 'nova-base',
               'image', 'boot')
    yield _vdi('the clone has the old data', 'read', 'boot', '0', '3')
    yield _vdi('clone to a name that is taken', 'clone', '-s', 'nova-base',
               'image', 'boot')
    yield _vdi('delete the old snapshot', 'delete', '-s', 'nova-base',
               'image')
    yield _vdi('clone of a tag that is gone', 'clone', '-s', 'nova-base',
               'image', 'late')
    yield _vdi('the new one can have the tag now', 'snapshot', '-s',
               'nova-base', 'image')
    yield _vdi('delete the new one', 'delete', 'image')
    yield _vdi('delete its snapshot', 'delete', '-s', 'nova-base', 'image')
    yield _vdi('clone of a VDI that is gone', 'clone', '-s', 'nova-base',
               'image', 'late')
    yield _vdi('read a VDI that is gone', 'read', 'image', '0', '512')
    yield _vdi('write to a VDI that is gone', 'write', 'image', '0', '512',
               letter='B', size=512)
    yield _vdi('the clone has its data still', 'read', 'boot', '0', '3')
    yield _vdi('a record that was never written', 'create', 'record', '4M')
    yield _vdi('read it', 'read', 'record', '0', '512')
    yield _vdi('write it', 'write', 'record', '0', '512', letter='C',
               size=512)
    yield _vdi('write it again', 'write', 'record', '0', '512', letter='D',
               size=512)
    yield _vdi('read it again', 'read', 'record', '0', '512')
    yield _vdi('delete the record', 'delete', 'record')
    yield _vdi('create another one of that name', 'create', 'record', '4M')
    yield _vdi('it is empty', 'read', 'record', '0', '512')


def _missing_snapshots():
    yield _vdi('create', 'create', 'some', '8M')
    yield _vdi('delete a snapshot it does not have', 'delete', '-s',
               'nova-resize', 'some')
    yield _vdi('snapshot', 'snapshot', '-s', 'nova-snapshot', 'some')
    yield _vdi('delete the working VDI', 'delete', 'some')
    yield _vdi('delete a snapshot it never had', 'delete', '-s',
               'nova-resize', 'some')
    yield _vdi('delete the snapshot that it has', 'delete', '-s',
               'nova-snapshot', 'some')
    yield _vdi('delete a snapshot of what is gone', 'delete', '-s',
               'nova-snapshot', 'some')


def _object_sizes():
    yield _vdi('create, objects of 4 MiB', 'create', '-z', '22', 'four',
               '40M')
    yield _vdi('create, objects of 8 MiB', 'create', '-z', '23', 'eight',
               '40M')
    for name in 'four', 'eight':
        yield _vdi('write', 'write', name, '17M', '1', letter='A', size=1)
        yield _vdi('object map', 'object', 'map', name)
        yield _vdi('snapshot', 'snapshot', '-s', 'tag', name)
        yield _vdi('clone', 'clone', '-s', 'tag', name, name + '-clone')
        yield _vdi('list the clone', 'list', '-r', name + '-clone')
    yield _vdi('resize beyond 4 TiB', 'resize', 'four', '5T')
    yield _vdi('resize beyond 4 TiB, objects of 8 MiB', 'resize', 'eight',
               '5T')


def _formats():
    yield _case('cluster format, erasure coded', 'cluster', 'format', '-f',
                '-c', '2:1')
    yield _vdi('mark the cluster again', 'create', clusters.MARKER, '4M')
    yield _case('cluster info, erasure coded', 'cluster', 'info', '-v')
    yield _vdi('create, erasure coded', 'create', 'ec', '8M')
    yield _vdi('write, erasure coded', 'write', 'ec', '4194300', '8',
               letter='A', size=8)
    yield _vdi('snapshot, erasure coded', 'snapshot', '-s', 'tag', 'ec')
    yield _vdi('clone, erasure coded', 'clone', '-s', 'tag', 'ec', 'child')
    yield _vdi('write to the clone, erasure coded', 'write', 'child',
               '4194302', '3', letter='B', size=3)
    yield _vdi('read the clone, erasure coded', 'read', 'child', '4194298',
               '12')
    yield _vdi('read the snapshot, erasure coded', 'read', '-s', 'tag', 'ec',
               '4194298', '12')
    yield _vdi('list, erasure coded', 'list', '-r')
    yield _case('cluster format, three copies, locks and objects of 8 MiB',
                'cluster', 'format', '-f', '-l', '-c', '3', '-z', '23')
    yield _vdi('mark the cluster once more', 'create', clusters.MARKER, '4M')
    yield _case('cluster info, three copies', 'cluster', 'info', '-v')
    yield _vdi('create, objects as the cluster has them', 'create', 'eight',
               '40M')
    yield _vdi('list, three copies', 'list', '-r')


def cases():
    """:returns: the calls to record, in order, without what they give"""
    return [case for part in (_before_format, _cluster, _calls, _object_maps,
                              _writes, _snapshots, _base_images,
                              _missing_snapshots, _object_sizes, _formats)
            for case in part()]


def main():
    argparse.ArgumentParser(
        prog='python -m contract.record',
        description='Record what a real dog does into contract/%s.' %
                    transcripts.NAME,
        epilog='Set SHEEPDOG_DOG to the path of dog, and SHEEPDOG_HOST and '
               'SHEEPDOG_PORT to a sheep of a cluster that was never '
               'formatted. All that is in it is lost.').parse_args()
    if 'SHEEPDOG_DOG' not in os.environ:
        sys.exit('SHEEPDOG_DOG is not set: only a real cluster is recorded')
    recorded = []
    with clusters.get() as cluster:
        try:
            clusters.check_unformatted(cluster)
        except clusters.NotUsable as exc:
            sys.exit(exc)
        for case in cases():
            status, output, error = transcripts.outcome(cluster, case)
            recorded.append(dict(case, rc=status, stdout=output,
                                 stderr=error))
    path = transcripts.save(recorded)
    print('%d calls recorded in %s' % (len(recorded), path))
    print('next: python -m unittest discover contract')


if __name__ == '__main__':
    main()
