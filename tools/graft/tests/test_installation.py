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

"""What pip makes of it, and the packages that are made of it."""

import importlib
import io
import os
import pathlib
import subprocess
import sys
import tarfile
import zipfile

import fixtures
import testtools

from graft import cli
from graft import patch
from graft.tests import base


class InstalledByPipTestCase(testtools.TestCase):

    def test_pip_knows_the_patched_nova(self):
        self.useFixture(base.Patch(base.PATCH))
        top = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        venv = top / 'venv'
        subprocess.run([sys.executable, '-m', 'venv', venv], check=True)
        self.useFixture(fixtures.EnvironmentVariable('PIP_NO_INDEX', '1'))

        def pip(*arguments):
            return subprocess.run(
                [venv / 'bin/python', '-m', 'pip', *arguments], check=True,
                capture_output=True, text=True).stdout

        pip('install', base.make_wheel(top))
        with fixtures.MonkeyPatch('sys.stdout', io.StringIO()):
            self.assertEqual(0, cli.main(['apply', '--nova', str(venv)]))
        # Python leaves its bytecode.
        subprocess.run([venv / 'bin/python', '-c',
                        'import nova.virt.sheepdog'], check=True)
        pip('check')
        self.assertIn('  nova/virt/sheepdog/tool\n', pip('show', '-f', 'nova'))
        pip('uninstall', '-y', 'nova')
        left = {name for name in base.read(venv / 'lib')
                if 'nova' in name.split('/')[2:]}
        self.assertEqual(set(), left)


class BuildTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.root = patch.find_root()
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        self.useFixture(fixtures.MonkeyPatch(
            'sys.path', [str(self.root / 'packaging'), *sys.path]))
        self.backend = importlib.import_module('backend')

    def build_wheel(self):
        return self.directory / self.backend.build_wheel(self.directory)

    def test_wheel(self):
        path = self.build_wheel()
        library = self.directory / 'lib'
        with zipfile.ZipFile(path) as archive:
            archive.extractall(library)
            tool = archive.getinfo(
                'graft/files/nova/tests/fixtures/sheepdog/dog')
        # A package called nova must never be installed from here.
        name = self.backend.NAME
        self.assertEqual({'graft', f'{name}.data', f'{name}.dist-info'},
                         set(os.listdir(library)))
        built = patch.Patch(library / 'graft/files')
        self.assertEqual(set(patch.Patch(self.root).files), set(built.files))
        self.assertIn('34.0.0', built.releases)
        self.assertEqual(0o755, tool.external_attr >> 16 & 0o777)

    def test_same_bytes_every_time(self):
        for build in self.backend.build_wheel, self.backend.build_sdist:
            first = (self.directory / build(self.directory)).read_bytes()
            self.useFixture(fixtures.MonkeyPatch('time.time', lambda: 0))
            self.assertEqual(
                first, (self.directory / build(self.directory)).read_bytes())

    def test_source_distribution_needs_no_network_and_no_room(self):
        name = self.backend.build_sdist(self.directory)
        with tarfile.open(self.directory / name) as archive:
            archive.extractall(self.directory)
        tree = self.directory / self.backend.NAME
        before = base.read(tree)
        venv = self.directory / 'venv'
        subprocess.run([sys.executable, '-m', 'venv', venv], check=True)
        subprocess.run(
            [venv / 'bin/python', '-m', 'pip', 'install', '--quiet',
             '--no-index', '--disable-pip-version-check', tree], check=True)
        self.assertEqual(before, base.read(tree))
        for path in ('bin/nova-sheepdog', 'share/man/man1/nova-sheepdog.1',
                     'share/doc/nova-sheepdog/index.rst'):
            self.assertTrue((venv / path).exists(), path)
        subprocess.run([venv / 'bin/nova-sheepdog', '--version'], check=True,
                       stdout=subprocess.DEVNULL)

    def test_debian_package(self):
        dist = importlib.import_module('dist')
        self.useFixture(fixtures.MonkeyPatch('dist.DIST', self.directory))
        dist.make_deb()
        deb = next(self.directory.glob('*.deb'))
        first = deb.read_bytes()
        listed = {line.split()[-1]: line.split()[0] for line in
                  subprocess.run(
                      ['dpkg-deb', '--contents', deb], check=True, text=True,
                      stdout=subprocess.PIPE).stdout.splitlines()}
        # sudo takes no other mode.
        for path, mode in {
                './etc/sudoers.d/nova-sheepdog': '-r--r-----',
                './usr/share/nova/rootwrap/sheepdog.filters': '-rw-r--r--',
                './usr/share/nova-sheepdog/graft/files/nova/tests/fixtures/'
                'sheepdog/dog': '-rwxr-xr-x',
                './usr/bin/nova-sheepdog': '-rwxr-xr-x'}.items():
            self.assertEqual(mode, listed.get(path), path)
        dist.make_deb()
        self.assertEqual(first, deb.read_bytes())
