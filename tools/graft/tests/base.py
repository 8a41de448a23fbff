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

"""A small Nova and a small patch for the tests."""

import base64
import csv
import hashlib
import os
import pathlib
import shutil
import textwrap
import zipfile

import fixtures


DRIVER = '''\
# The licence

import os

from nova import exception
import nova.conf

CONF = nova.conf.CONF


class Driver:
    """A driver."""

    def cleanup(self, instance):
        if CONF.images_type == 'rbd':
            self._cleanup_rbd(instance)
        os.sync()
        raise exception.NovaException()

    def _cleanup_rbd(self, instance):
        pass
'''
OPTIONS = '''\
from oslo_config import cfg

opts = [
    cfg.StrOpt('images_type', choices=('raw', 'rbd')),
]
'''
INDEX = '''\
Guides
======

.. toctree::

   flavors
   quotas

All have
been read.
'''
NOVA = {
    'nova/__init__.py': '',
    'nova/version.py': '',
    'nova/conf/__init__.py': '',
    'nova/conf/libvirt.py': OPTIONS,
    'nova/virt/libvirt/driver.py': DRIVER,
    'etc/nova/rootwrap.d/compute.filters': '[Filters]\n',
    'doc/source/conf.py': '',
    'doc/source/admin/index.rst': INDEX,
}
PATCH = {
    'nova/virt/libvirt/driver.py': '''\
from graft.fragment import after
from nova.virt.libvirt.driver import CONF
from nova.virt import sheepdog


class Driver:

    @after('cleanup', "if CONF.images_type == 'rbd':")
    def _(self, instance):
        if CONF.images_type == 'sheepdog':
            self.cleanup_sheepdog(instance)

    @after('', 'def _cleanup_rbd(self, instance):')
    def cleanup_sheepdog(self, instance):
        sheepdog.clean(instance)
''',
    'nova/conf/libvirt.py': '''\
from graft.fragment import substitute

substitute('', 'opts = [', "'rbd'", "'rbd', 'sheepdog'")
''',
    'nova/virt/sheepdog/__init__.py': '# Ours\n',
    'nova/virt/sheepdog/tool': '#!/bin/sh\n',
    'nova/virt/notes.txt': 'no line end',
    'etc/nova/rootwrap.d/sheepdog.filters': '[Filters]\ndog: dog\n',
    'doc/source/admin/index.rst': '''\
.. after: flavors

   sheepdog

.. after: been read.

This one too.
''',
    'doc/source/admin/sheepdog.rst': 'Sheepdog\n========\n',
}


def write(root, files):
    """Write files, by their paths below a directory."""
    for name, content in files.items():
        path = pathlib.Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def read(root):
    """All that is below a directory: mode and content by path."""
    found = {}
    for directory, names, files in os.walk(root):
        for name in names + files:
            path = pathlib.Path(directory, name)
            found[str(path.relative_to(root))] = (
                path.stat().st_mode, path.is_file() and path.read_bytes())
    return found


def make_wheel(directory):
    """Make a wheel of Nova as PyPI has it.

    :returns: its path
    """
    information = 'nova-34.0.0.dist-info'
    files = {
        f'{information}/METADATA':
            'Metadata-Version: 2.1\nName: nova\nVersion: 34.0.0\n',
        f'{information}/WHEEL': 'Wheel-Version: 1.0\n'
            'Root-Is-Purelib: true\nTag: py3-none-any\n'}
    for name, content in NOVA.items():
        files[name.replace('etc/', 'nova-34.0.0.data/data/etc/')] = content
    files[f'{information}/RECORD'] = ''.join(f'{name},,\n' for name in files)
    path = pathlib.Path(directory, 'nova-34.0.0-py3-none-any.whl')
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_source(directory):
    """Make a source distribution of Nova as PyPI has it.

    :returns: its path
    """
    top = pathlib.Path(directory, 'nova-34.0.0')
    write(top, NOVA)
    write(top, {
        'PKG-INFO': 'Metadata-Version: 2.1\nName: nova\nVersion: 34.0.0\n',
        # It needs no network, other than that of Nova.
        'pyproject.toml': '[build-system]\nrequires = []\n'
            'build-backend = "backend"\nbackend-path = ["."]\n',
        'backend.py': textwrap.dedent("""\
            import os
            import shutil

            def prepare_metadata_for_build_wheel(directory, settings=None):
                os.mkdir(f'{directory}/nova-34.0.0.dist-info')
                shutil.copy('PKG-INFO',
                            f'{directory}/nova-34.0.0.dist-info/METADATA')
                return 'nova-34.0.0.dist-info'
            """)})
    archive = shutil.make_archive(top, 'gztar', directory, top.name)
    shutil.rmtree(top)
    return pathlib.Path(archive)


class Patch(fixtures.Fixture):
    """A patch, which nova-sheepdog takes for its own.

    :ivar root: its directory
    """

    def __init__(self, files):
        self.files = files

    def _setUp(self):
        self.root = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        write(self.root, self.files)
        for name in self.files:
            if name.endswith('/tool'):
                (self.root / name).chmod(0o755)
        self.useFixture(fixtures.MonkeyPatch(
            'graft.patch.find_root', lambda: self.root))


class SourceTree(fixtures.Fixture):
    """The source tree of a Nova.

    :ivar root: its directory, which holds the nova package
    :ivar top: the same
    """

    release = '34.0.0'

    def _setUp(self):
        self.top = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self._make()
        (self.root / 'nova/virt/libvirt/driver.py').chmod(0o640)

    def _make(self):
        self.root = self.top
        write(self.root, NOVA)
        write(self.root, {'PKG-INFO': f'Version: {self.release}\n'})


class InstalledNova(SourceTree):
    """A Nova as pip installs it.

    :ivar top: the prefix that it is in
    :ivar root: its site-packages directory
    :ivar filters: directory that its rootwrap.conf names
    """

    def _make(self):
        self.root = self.top / 'lib/python3.11/site-packages'
        self.filters = self.top / 'rootwrap.d'
        self.filters.mkdir()
        self.useFixture(fixtures.MonkeyPatch(
            'graft.rootwrap.OWNER', os.geteuid()))
        files = {name: content for name, content in NOVA.items()
                 if name.startswith('nova/')}
        files['../../../etc/nova/rootwrap.conf'] = textwrap.dedent(f'''\
            [DEFAULT]
            filters_path = /nonexistent/rootwrap.d, {self.filters}
            ''')
        information = f'nova-{self.release}.dist-info'
        files[f'{information}/METADATA'] = (
            f'Metadata-Version: 2.1\nName: nova\nVersion: {self.release}\n')
        self.root.mkdir(parents=True)
        write(self.root, files)
        self.record = self.root / information / 'RECORD'
        with open(self.record, 'w', newline='') as stream:
            writer = csv.writer(stream, lineterminator='\n')
            for name in files:
                writer.writerow(self.record_row(name))
            writer.writerow([f'{information}/RECORD', '', ''])

    def record_row(self, name):
        """What a true RECORD says of a file."""
        content = (self.root / name).read_bytes()
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest())
        return [name, 'sha256=' + digest.decode().rstrip('='),
                str(len(content))]
