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

import pathlib
import subprocess

import ddt
import fixtures

from graft import patch
from graft.tests import base
from graft.tests import test_cli

DISK = '''\
"""One disk."""

import os
import sys

from nova import exception

# Bytes.
LIMIT = 5


def sync():
    os.sync()


# What follows is for the last commit.

# Ends it.
def end():
    sys.exit()


@property
class Disk:
    """A disk."""

    size = 5

    def open(self):
        pass

    # Last

    def close(self):
        raise exception.NovaException()
'''
FIRST = '''\
"""One disk."""

import os

# Bytes.
LIMIT = 5


def sync():
    os.sync()


@property
class Disk:
    """A disk."""

    size = 5

    def open(self):
        pass
'''
FILES = {
    **base.PATCH,
    'nova/virt/libvirt/driver.py': '''\
import sys

from graft.fragment import after

from nova.virt.libvirt.driver import CONF
from nova.virt import sheepdog


class Driver:

    @after('cleanup', "if CONF.images_type == 'rbd':")
    def _(self, instance):
        if CONF.images_type == 'sheepdog':
            self.cleanup_sheepdog(instance)

    def cleanup_sheepdog(self, instance):
        sheepdog.clean(instance)

    def last(self):
        sys.exit()
''',
    'nova/virt/sheepdog/disk.py': DISK,
    'nova/virt/sheepdog/user.py': 'from nova.virt.sheepdog import disk\n',
}
SERIES = {
    'series/1-options.txt': '''\
conf: Add an option

Bytes outside of ASCII: \u00e9.
---
nova/conf/libvirt.py
etc/nova/rootwrap.d/sheepdog.filters
''',
    'series/2-hooks.txt': '''\
Add hooks

Part of: blueprint sheepdog
---
nova/virt/notes.txt
nova/virt/sheepdog/
nova/virt/libvirt/driver.py: Driver.cleanup
nova/virt/libvirt/driver.py: Driver.cleanup_sheepdog
''',
    'series/3-rest.txt': '''\
Add the rest

It is the last.
---
doc/
nova/virt/libvirt/driver.py
nova/virt/sheepdog/disk.py: end
nova/virt/sheepdog/disk.py: Disk.close
''',
}


@ddt.ddt
class SeriesTestCase(test_cli.CommandTestCase):

    def setUp(self):
        super().setUp()
        self.files = {**FILES, **SERIES}
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path) / 'patches'

    def write(self):
        self.useFixture(base.Patch(self.files))
        return self.succeed('diff', '--series', str(self.directory))

    def git(self, *arguments):
        return subprocess.run(
            ['git', '-c', 'user.name=a', '-c', 'user.email=b@example',
             *arguments], cwd=self.tree.root, check=True,
            stdout=subprocess.PIPE, text=True).stdout

    def test_series(self):
        told = self.write()
        self.assertIn('Wrote 3 patches', told)
        self.assertIn(f'git am --signoff {self.directory}/*.patch', told)
        self.git('init', '-q')
        self.git('add', '-A')
        self.git('commit', '-qm', 'Nova')
        self.git('am', '-q', '--whitespace=error',
                 *sorted(self.directory.iterdir()))
        self.assertEqual('', self.git('status', '--short'))
        # At last it is the tree that the patch makes at once.
        for change in patch.Patch().changes(
                lambda name: base.NOVA.get(name, '').encode() or None,
                '34.0.0'):
            self.assertEqual(change.after,
                             (self.tree.root / change.path).read_bytes())
        self.assertEqual(
            ['Add the rest', 'Add hooks', 'conf: Add an option', 'Nova'],
            self.git('log', '--format=%s').splitlines())
        self.assertIn('Bytes outside of ASCII: \u00e9.\n\nChange-Id: I',
                      self.git('log', '-1', '--format=%b', 'HEAD~2'))
        self.assertIn('blueprint sheepdog\nChange-Id: I',
                      self.git('log', '-1', '--format=%b', 'HEAD~1'))
        self.assertEqual(
            'etc/nova/rootwrap.d/sheepdog.filters\nnova/conf/libvirt.py\n',
            self.git('diff', '--name-only', 'HEAD~3', 'HEAD~2'))

    def test_part_of_a_file(self):
        self.write()
        letters = [path.read_text() for path in
                   sorted(self.directory.iterdir())]
        first = letters[1].partition('+++ b/nova/virt/sheepdog/disk.py\n')[2]
        lines = first.partition('diff --git')[0].splitlines()[1:]
        self.assertEqual(FIRST, ''.join(
            line[1:] + '\n' for line in lines if line.startswith('+')))
        self.assertIn('+            self.cleanup_sheepdog', letters[1])
        self.assertNotIn('import sys', letters[1])
        self.assertIn('+import sys', letters[2])

    def test_same_bytes_every_time(self):
        self.write()
        before = base.read(self.directory)
        self.directory = self.directory.with_name('again')
        self.write()
        self.assertEqual(before, base.read(self.directory))

    @ddt.data(
        ('series/1-options.txt', 'nova/conf/libvirt.py\n', '',
         'nova/conf/libvirt.py: no commit of series/ brings it'),
        ('series/3-rest.txt', 'nova/virt/libvirt/driver.py\n', '',
         'driver.py:19: no commit of series/ brings Driver.last'),
        ('series/3-rest.txt', ': end', ': gone',
         '3-rest: there is no nova/virt/sheepdog/disk.py: gone'),
        ('series/3-rest.txt', '---\n', '---\nnova/virt/sheepdog/\n',
         'nova/virt/sheepdog/ is claimed twice'),
        ('series/1-options.txt', '---\n',
         '---\nnova/virt/sheepdog/user.py\n',
         '1-options: nova/virt/sheepdog/user.py imports '
         'nova.virt.sheepdog.disk, which a later commit brings'),
        ('series/3-rest.txt', '---\n', '', 'there is no line "---"'))
    @ddt.unpack
    def test_refused(self, name, old, new, words):
        self.files[name] = self.files[name].replace(old, new)
        self.useFixture(base.Patch(self.files))
        self.fail_with(words, 'diff', '--series', str(self.directory))
        self.assertFalse(self.directory.exists())
