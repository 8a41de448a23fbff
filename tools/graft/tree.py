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

"""Where a Nova is, which one it is, and what it holds."""

import contextlib
import csv
import email
import glob
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from graft import GraftError


def _is_nova(package):
    return all((package / name).is_file() for name in
               ('__init__.py', 'version.py', 'virt/libvirt/driver.py'))


def find(directory=None):
    """Find a Nova.

    :param directory: a source tree, a virtual environment, a site-packages
        directory, or the nova package itself; None: the Nova that this
        Python would import
    :returns: Nova
    :raises GraftError: there is none, or more than one
    """
    if directory is None:
        spec = importlib.util.find_spec('nova')
        # A directory without __init__.py, like this project's own nova/,
        # has no origin.
        if spec is None or not spec.origin:
            raise GraftError(
                f'{sys.executable} has no Nova to import. Say where Nova is '
                'with --nova, or run the nova-sheepdog of its environment.')
        candidates = [pathlib.Path(spec.origin).parent]
    else:
        top = pathlib.Path(directory)
        candidates = [top, top / 'nova']
        for pattern in ('lib/python3*/site-packages/nova',
                        'lib/python3*/dist-packages/nova'):
            candidates += map(pathlib.Path, glob.glob(
                os.path.join(glob.escape(str(top)), pattern)))
    found = sorted({path.resolve() for path in candidates if _is_nova(path)})
    if not found:
        raise GraftError(
            f'No Nova in {directory or candidates[0]}: --nova takes a source '
            'tree, a virtual environment, a site-packages directory or the '
            'nova package itself.')
    if len(found) > 1:
        raise GraftError(
            f'More than one Nova in {directory}: '
            f'{", ".join(map(str, found))}. Name one of them with --nova.')
    return Nova(found[0])


class Nova:
    """A Nova on disk.

    :ivar package: its nova package
    :ivar root: the directory that holds the package
    :ivar is_source: whether it is a source tree and not an installed Nova
    :ivar release: its version, 'unknown' when nothing says it
    :ivar installation_record: path of the list of installed files, None when
        there is none
    """

    def __init__(self, package):
        self.package = package
        self.root = package.parent
        # "pip install --target" makes an etc/nova too.
        self.installation_record = next(
            self.root.glob('nova-*.dist-info/RECORD'), None)
        self.is_source = not self.installation_record and any(
            (self.root / name).exists() for name in
            ('setup.cfg', 'pyproject.toml', 'etc/nova'))
        self.release = self._find_release()

    def _find_release(self):
        for found in importlib.metadata.distributions(
                name='nova', path=[str(self.root)]):
            return found.version
        try:
            with open(self.root / 'PKG-INFO') as stream:
                return email.message_from_file(stream)['Version']
        except FileNotFoundError:
            pass
        if (self.root / '.git').exists() and shutil.which('git'):
            done = subprocess.run(
                ['git', '-C', str(self.root), 'describe', '--tags'],
                capture_output=True, text=True)
            if done.returncode == 0:
                return done.stdout.strip()
        return 'unknown'

    def read(self, path):
        """Content of a path of Nova's source tree, None when absent.

        The rootwrap filters of an installed Nova are not beside the
        package; they count as absent.
        """
        if not self.is_source and not path.startswith('nova/'):
            return None
        try:
            return (self.root / path).read_bytes()
        except FileNotFoundError:
            return None

    @property
    def python(self):
        """Path of the Python that runs this Nova."""
        found = os.path.normpath(self.root / '../../../bin/python3')
        return (found if not self.is_source and os.access(found, os.X_OK) else
                sys.executable)

    @property
    def rootwrap_daemon(self):
        """Path of the nova-rootwrap-daemon that goes with this Nova."""
        # lib/python3/site-packages is three below where bin is.
        top = '/usr' if self.is_source else self.root / '../../..'
        return os.path.normpath(os.path.join(top, 'bin/nova-rootwrap-daemon'))

    def find_rootwrap_configuration(self):
        """Path of the rootwrap.conf that came with this Nova, or None."""
        candidates = []
        if self.installation_record:
            with open(self.installation_record, newline='') as stream:
                for row in csv.reader(stream):
                    if row and row[0].endswith('etc/nova/rootwrap.conf'):
                        candidates.append((self.root / row[0]).resolve())
        if self.root.is_relative_to('/usr'):
            candidates.append(pathlib.Path('/etc/nova/rootwrap.conf'))
        return next(filter(pathlib.Path.exists, candidates), None)


def download(release):
    """Get the source of a release of Nova from PyPI, once.

    :param release: its version, like 34.0.0
    :returns: Nova
    :raises GraftError: pip did not get it
    """
    if not re.fullmatch(r'[0-9]+(\.[0-9]+)+([.a-z0-9]+)?', release):
        raise GraftError(f'--release {release}: this is no version of Nova; '
                         'one looks like 34.0.0.')
    cache = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or
                         pathlib.Path.home() / '.cache', 'nova-sheepdog')
    name = f'nova-{release}'
    if not (cache / name).exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as directory:
            _run_pip(release, directory)
            found = os.listdir(directory)
            if found != [f'{name}.tar.gz']:
                raise GraftError(f'pip brought {found} for nova=={release}, '
                                 f'not {name}.tar.gz. Name the release in '
                                 'full.')
            shutil.unpack_archive(f'{directory}/{found[0]}', directory)
            # Another run may have been faster.
            with contextlib.suppress(OSError):
                os.rename(f'{directory}/{name}', cache / name)
    return find(cache / name)


def _run_pip(release, directory):
    # The wheel has no documentation. For the name of the source pip asks the
    # source itself, which needs pbr; pip gets that too.
    done = subprocess.run(
        [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps',
         '--no-binary', 'nova', '--ignore-requires-python',
         '--dest', directory, f'nova=={release}'],
        stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines()
                 if not line.startswith('WARNING')]
        raise GraftError(f'pip could not download nova=={release}:\n  ' +
                         '\n  '.join(lines[-5:]) +
                         '\nUse a release that is on PyPI, or a tree on '
                         'disk with --nova.')
