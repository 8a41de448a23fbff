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

"""Builds the wheel and the source distribution, as PEP 517 asks.

It has nothing but Python's standard library, so it works without a network;
it leaves nothing in the checkout; and the same sources make the same bytes.
"""

import base64
import contextlib
import fnmatch
import gzip
import hashlib
import io
import os
import pathlib
import re
import runpy
import subprocess
import sys
import tarfile
import zipfile

# pip has had Python write this file's bytecode into the checkout by now.
if __spec__ and __spec__.cached:
    with contextlib.suppress(OSError):
        os.unlink(__spec__.cached)
        os.rmdir(os.path.dirname(__spec__.cached))

ROOT = pathlib.Path(__file__).resolve().parents[1]
VERSION = runpy.run_path(str(ROOT / 'tools/graft/__init__.py'))['__version__']
NAME = f'nova_sheepdog-{VERSION}'
# Of every file in every archive: 1980, before which zip knows no time.
TIME = 315532800

# Our pages, and not what goes into those of Nova.
GUIDE = re.compile(
    r'doc/source/((admin/sheepdog/|contributor/)?[^/]+\.(rst|csv))')
EXAMPLES = ('sudoers', 'tgt.conf', 'nova-compute.conf', *(
    f'monitoring/{name}' for name in (
        'alerts.yaml', 'alerts_test.yaml', 'dashboard.json',
        'nova-sheepdog-metrics.service', 'nova-sheepdog-metrics.timer')))


def sources():
    """The files of the source distribution: paths relative to ROOT."""
    # git may not be there, as in a container image that is being built.
    ignored = ['.git', 'PKG-INFO'] + [
        os.path.basename(line.strip('/')) for line in
        (ROOT / '.gitignore').read_text().splitlines()]
    found = []
    for directory, directories, names in os.walk(ROOT):
        for entries in directories, names:
            entries[:] = [name for name in sorted(entries) if not any(
                fnmatch.fnmatch(name, pattern) for pattern in ignored)]
        found += [os.path.relpath(os.path.join(directory, name), ROOT)
                  for name in names]
    return sorted(found)


def installed():
    """What is installed, by its paths in the wheel: paths here, or texts."""
    files = {}
    share = f'{NAME}.data/data/share/'
    documents = f'{share}doc/nova-sheepdog'
    for name in sources():
        top = name.partition('/')[0]
        if top in ('nova', 'etc', 'locks', 'releasenotes', 'series') or (
                name.startswith('doc/source/admin/')):
            # Data of the graft: a package called nova must never be
            # installed from here.
            files[f'graft/files/{name}'] = ROOT / name
        elif re.fullmatch(r'tools/graft/[^/]+\.py', name):
            files[name[len('tools/'):]] = ROOT / name
        if GUIDE.fullmatch(name):
            files[f'{documents}/{GUIDE.fullmatch(name).group(1)}'] = (
                ROOT / name)
    for name in 'README.rst', 'LICENSE':
        files[f'{documents}/{name}'] = ROOT / name
    for name in EXAMPLES:
        files[f'{documents}/examples/{name}'] = ROOT / 'packaging' / name
    files[f'{share}man/man1/nova-sheepdog.1'] = manual()
    files[f'{share}bash-completion/completions/nova-sheepdog'] = (
        ROOT / 'packaging/completion')
    return files


def manual():
    """The manual page: what --help says, command by command."""
    def help_of(*command):
        return subprocess.run(
            [sys.executable, '-c', 'import sys; from graft import cli; '
             'sys.executable = "python3"; cli.main()', *command, '--help'],
            cwd=ROOT / 'tools', check=True, stdout=subprocess.PIPE, text=True,
            env={**os.environ, 'COLUMNS': '72', 'LC_ALL': 'C.UTF-8',
                 'PYTHONDONTWRITEBYTECODE': '1'}).stdout.replace(
                     'usage: -c', 'usage: nova-sheepdog')

    def section(title, text):
        text = text.replace('\\', r'\e').replace('-', r'\-')
        lines = re.sub(r"(?m)^([.'])", r'\\&\1', text)
        return f'.SH {title}\n.nf\n{lines}.fi\n'

    overview = help_of()
    return ''.join([
        f'.TH NOVA\\-SHEEPDOG 1 "" "nova\\-sheepdog {VERSION}"\n'
        '.SH NAME\n'
        'nova\\-sheepdog \\- weave the Sheepdog image backend into Nova\n',
        section('SYNOPSIS', overview),
        *(section(name.upper(), help_of(name)) for name in
          re.findall(r'(?m)^    ([a-z]+) ', overview)),
        '.SH SEE ALSO\n/usr/share/doc/nova\\-sheepdog/index.rst\n'])


def metadata():
    text = (ROOT / 'packaging/METADATA').read_text()
    return (text.replace('@VERSION@', VERSION) + '\n' +
            (ROOT / 'README.rst').read_text())


def _build_wheel(directory, files):
    """Make a wheel.

    :param directory: where to make it
    :param files: dict of paths in the wheel to paths on disk, or to texts
    :returns: its name
    """
    information = f'{NAME}.dist-info'
    files = {**files,
             f'{information}/METADATA': metadata(),
             f'{information}/WHEEL': 'Wheel-Version: 1.0\n'
                 'Generator: nova-sheepdog\nRoot-Is-Purelib: true\n'
                 'Tag: py3-none-any\n',
             f'{information}/entry_points.txt': '[console_scripts]\n'
                 'nova-sheepdog = graft.cli:main\n',
             f'{information}/licenses/LICENSE': ROOT / 'LICENSE'}
    rows = []
    name = f'{NAME}-py3-none-any.whl'
    with zipfile.ZipFile(pathlib.Path(directory, name), 'w') as archive:
        def add(path, content, mode):
            entry = zipfile.ZipInfo(path)
            entry.external_attr = (0o100000 | mode) << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED, 9)

        for path, file in sorted(files.items()):
            content = (file.encode() if isinstance(file, str) else
                       file.read_bytes())
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest())
            rows.append(f'{path},sha256={digest.decode().rstrip("=")},'
                        f'{len(content)}\n')
            add(path, content, mode_of(file))
        record = f'{information}/RECORD'
        add(record, ''.join(rows) + f'{record},,\n', 0o644)
    return name


def mode_of(file):
    """Mode of a path, whatever umask it was made with, or of a text."""
    is_program = not isinstance(file, str) and file.stat().st_mode & 0o100
    return 0o755 if is_program else 0o644


def build_wheel(wheel_directory, config_settings=None,
                metadata_directory=None):
    return _build_wheel(wheel_directory, installed())


def build_editable(wheel_directory, config_settings=None,
                   metadata_directory=None):
    return _build_wheel(wheel_directory,
                        {'nova_sheepdog.pth': f'{ROOT / "tools"}\n'})


def build_sdist(sdist_directory, config_settings=None):
    name = f'{NAME}.tar.gz'
    with open(pathlib.Path(sdist_directory, name), 'wb') as stream, \
            gzip.GzipFile('', 'wb', 9, stream, TIME) as packed, \
            tarfile.open(fileobj=packed, mode='w') as archive:
        def add(path, content, mode):
            entry = tarfile.TarInfo(f'{NAME}/{path}')
            entry.size, entry.mode, entry.mtime = len(content), mode, TIME
            archive.addfile(entry, io.BytesIO(content))

        add('PKG-INFO', metadata().encode(), 0o644)
        for path in sources():
            add(path, (ROOT / path).read_bytes(), mode_of(ROOT / path))
    return name
