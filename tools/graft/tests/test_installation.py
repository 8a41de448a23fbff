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

"""What pip and setuptools make of it."""

import io
import os
import pathlib
import subprocess
import sys

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

    def test_fragments_are_no_package_of_their_own(self):
        root = patch.find_root()
        library = self.useFixture(fixtures.TempDir()).path
        subprocess.run(
            [sys.executable, '-c', 'import setuptools; setuptools.setup()',
             '-q', 'build', '--build-base', library, '--build-lib',
             f'{library}/lib'], cwd=root, check=True)
        library = pathlib.Path(library, 'lib')
        self.assertEqual(['graft'], os.listdir(library))
        self.assertEqual(
            set(patch.Patch(root).files),
            set(patch.Patch(library / 'graft/files').files))
