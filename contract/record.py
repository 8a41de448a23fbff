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

"""Record more calls of the real dog: ``python -m contract.record``.

Wants SHEEPDOG_DOG, SHEEPDOG_HOST and SHEEPDOG_PORT, see clusters.py, and
writes more-transcripts.json anew.
"""

import argparse
import os
import sys
import tempfile

from contract import clusters
from contract import transcripts

#: The file it writes.
NAME = 'more-transcripts.json'

_MIB = 1 << 20
_LONG_NAME = 'n' * 255


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
    yield _vdi('object map of one object', 'object', 'map', '-i', '9', 'map')
    yield _vdi('object map of one hole', 'object', 'map', '-i', '0x2', 'map')
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
    yield _vdi('read, a bad offset', 'read', 'io', 'x', '1')
    yield _vdi('write, a bad length', 'write', 'io', '0', '1MB')
    yield _vdi('read all of it', 'read', 'io')
    yield _vdi('the space it takes', 'list', '-r', 'io')
    yield _vdi('resize to no number of objects', 'resize', 'io', '20971521')
    yield _vdi('write the last byte', 'write', 'io', '20971520', '1',
               letter='E', size=1)
    yield _vdi('object map of six objects', 'object', 'map', 'io')
    yield _vdi('resize beyond 4 TiB', 'resize', 'io', '5T')
    yield _vdi('resize without a size', 'resize', 'io')
    yield _vdi('delete', 'delete', 'io')
    yield _vdi('create, preallocated', 'create', '-P', 'full', '12M')
    yield _vdi('object map of a preallocated VDI', 'object', 'map', 'full')
    yield _vdi('read it', 'read', 'full', '0', '4')
    yield _vdi('delete it', 'delete', 'full')


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
    yield _vdi('attribute of what has only snapshots', 'setattr', 'base',
               'key', 'value')
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
    yield _vdi('rollback without a tag', 'rollback', '-f', 'base')
    yield _vdi('rollback, answering no', 'rollback', '-s', 'first', 'base',
               letter='n', size=3)
    yield _vdi('delete it', 'delete', 'base')
    yield _vdi('rollback without a working VDI', 'rollback', '-f', '-s',
               'first', 'base')
    yield _vdi('it has a working VDI again', 'list', '-r', 'base')
    yield _vdi('snapshot with a long tag', 'snapshot', '-s', 't' * 300,
               'base')
    yield _vdi('the tag was cut', 'list', '-r', 'base')
    yield _vdi('snapshot with an empty tag', 'snapshot', '-s', '', 'base')
    yield _vdi('snapshot with tag 0', 'snapshot', '-s', '0', 'base')
    yield _vdi('snapshot with a tag that begins with a digit', 'snapshot',
               '-s', '1st', 'base')


def _names():
    yield _vdi('create, name with a blank', 'create', 'two words', '4M')
    yield _vdi('create, name with a backslash', 'create', 'a\\b', '4M')
    yield _vdi('create, name with a tab', 'create', 'a\tb', '4M')
    yield _vdi('create, name not in ASCII', 'create', 'gr\xfc\xdfe', '4M')
    yield _vdi('create, empty name', 'create', '', '4M')
    yield _vdi('create, name of 255 bytes', 'create', _LONG_NAME, '4M')
    yield _vdi('list by name with a blank', 'list', '-r', 'two words')
    yield _vdi('list by name with a backslash', 'list', '-r', 'a\\b')
    yield _vdi('list by name with a tab', 'list', '-r', 'a\tb')
    yield _vdi('list by name not in ASCII', 'list', 'gr\xfc\xdfe')
    yield _vdi('list by name of 256 bytes finds nothing', 'list', '-r',
               _LONG_NAME + 'n')
    yield _vdi('read by name of 256 bytes', 'read', _LONG_NAME + 'n', '0',
               '1')
    yield _vdi('clone to a name of 300 bytes that is taken', 'clone', '-s',
               '1st', 'base', 'n' * 300)
    yield _vdi('options after the operands', 'create', 'last', '4M', '-c',
               '3')
    yield _vdi('options shortened', 'create', 'short', '4M', '--cop=1')
    yield _vdi('they are listed in order of their vids', 'list', '-r')
    yield _vdi('an option it does not have', 'list', '-q')
    yield _vdi('no name', 'delete')
    yield _vdi('copies that cannot be', 'create', '-c', '3:1', 'ec', '4M')
    yield _vdi('a port that cannot be', 'list', '-p', '70000')
    yield _vdi('no name of a host', 'list', '-a', 'no.such.host.invalid')
    for size in ('0', '1', '1.5M', '1k', '4T', '4398046511105', '-1', '', 'M',
                 '1e3', '1 M'):
        yield _vdi('create, size "%s"' % size, 'create', 'size' + size, size)
        yield _vdi('list size "%s"' % size, 'list', '-r', 'size' + size)


def _attributes():
    yield _vdi('create', 'create', 'attr', '4M')
    yield _vdi('setattr of a long value', 'setattr', 'attr', 'long',
               letter='v', size=65535)
    yield _vdi('getattr of a long value', 'getattr', 'attr', 'long')
    yield _vdi('setattr from standard input', 'setattr', 'attr', 'stdin',
               letter='V', size=100)
    yield _vdi('getattr of that', 'getattr', 'attr', 'stdin')
    yield _vdi('setattr of an empty value', 'setattr', 'attr', 'empty', '')
    yield _vdi('getattr of an empty value', 'getattr', 'attr', 'empty')
    yield _vdi('setattr without a key', 'setattr', 'attr')
    yield _vdi('getattr without a key', 'getattr', 'attr')
    yield _vdi('setattr of a key of 300 bytes', 'setattr', 'attr', 'k' * 300,
               'cut')
    yield _vdi('getattr of its first 255 bytes', 'getattr', 'attr', 'k' * 255)
    yield _vdi('snapshot', 'snapshot', '-s', 'tag', 'attr')
    yield _vdi('getattr after a snapshot', 'getattr', 'attr', 'stdin')
    yield _vdi('delete', 'delete', 'attr')
    yield _vdi('getattr of a deleted VDI with a snapshot', 'getattr', 'attr',
               'stdin')
    yield _vdi('create again', 'create', 'attr', '4M')
    yield _vdi('attributes outlive their VDI', 'getattr', 'attr', 'stdin')
    yield _vdi('setattr, exclusive', 'setattr', '-x', 'attr', 'lock', 'one')
    yield _vdi('setattr, exclusive, again', 'setattr', '-x', 'attr', 'lock',
               'two')
    yield _vdi('setattr, delete', 'setattr', '-d', 'attr', 'lock')
    yield _vdi('setattr, exclusive, after that', 'setattr', '-x', 'attr',
               'lock', 'three')
    yield _vdi('getattr of the third', 'getattr', 'attr', 'lock')


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


def _disks():
    for options in (), ('-A',), ('-r',), ('-A', '-r'):
        yield _case(' '.join(('node md info', *options)), 'node', 'md',
                    'info', *options)
    yield _case('node md alone', 'node', 'md')
    yield _case('node md, usage', 'node', 'md', '-h')
    yield _case('node md of what it does not have', 'node', 'md', 'nosuch')
    yield _case('node md plug without a disk', 'node', 'md', 'plug')


def _cluster():
    yield _case('cluster info', 'cluster', 'info', '-v')
    yield _case('cluster format of a cluster with VDIs, answering nothing',
                'cluster', 'format', '-c', '2')
    yield _case('cluster format of another store', 'cluster', 'format', '-f',
                '-b', 'nosuch')
    yield _vdi('lock list without locks', 'lock', 'list')
    yield _vdi('unlock what is not locked', 'lock', 'unlock', 'attr')
    yield _vdi('unlock a name that does not exist', 'lock', 'unlock',
               'nosuch')
    yield _case('cluster format, erasure coded', 'cluster', 'format', '-f',
                '-c', '2:1')
    yield _vdi('mark the cluster', 'create', clusters.MARKER, '4M')
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
    yield _case('cluster format, three copies and locks', 'cluster', 'format',
                '-f', '-l', '-c', '3')
    yield _vdi('mark the cluster again', 'create', clusters.MARKER, '4M')
    yield _case('cluster info, three copies', 'cluster', 'info', '-v')
    yield _vdi('create in a cluster with locks', 'create', 'locks', '4M')
    yield _vdi('lock list', 'lock', 'list')


def cases():
    """:returns: the calls to record, in order, without what they give"""
    return [case for part in (_object_maps, _writes, _snapshots, _names,
                              _attributes, _base_images,
                              _missing_snapshots, _object_sizes, _disks,
                              _cluster)
            for case in part()]


def main():
    argparse.ArgumentParser(
        prog='python -m contract.record',
        description='Record what a real dog does into contract/%s.' % NAME,
        epilog='Set SHEEPDOG_DOG to the path of dog, and SHEEPDOG_HOST and '
               'SHEEPDOG_PORT to a sheep of a cluster that was never '
               'formatted. All that is in it is lost.').parse_args()
    if 'SHEEPDOG_DOG' not in os.environ:
        sys.exit('SHEEPDOG_DOG is not set: only a real cluster is recorded')
    cluster = clusters.get()
    recorded = []
    with cluster, tempfile.TemporaryDirectory() as directory:
        try:
            clusters.format(cluster, '-c', '2')
        except clusters.NotUsable as exc:
            sys.exit(exc)
        for case in cases():
            status, output, error = transcripts.outcome(cluster, case,
                                                        directory)
            recorded.append(dict(case, rc=status, stdout=output,
                                 stderr=error))
    path = transcripts.save(NAME, recorded)
    print('%d calls recorded in %s' % (len(recorded), path))
    print('next: python -m unittest discover contract')


if __name__ == '__main__':
    main()
