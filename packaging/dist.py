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

"""Makes all that a release consists of, the same bytes every time.

"tox -e dist" runs it. It makes dist/ anew, with --packages only the first
two, for which it needs no network:

* the wheel and the source distribution;
* nova-sheepdog_*.deb, which patches the python3-nova of a Debian host, and
  nova-sheepdog.spec, of which rpmbuild makes the same for an RPM one;
* for each tested release of Nova, as Nova has it on PyPI:
  nova-X.patch, for its source tree and for a distribution's source package;
  nova-X-installed.patch, for the directory that holds an installed nova;
  nova-X-kolla.patch, for the "patches" directory of Kolla;
* SHA256SUMS.
"""

import argparse
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import backend

sys.path.insert(0, str(backend.ROOT / 'tools'))

from graft import patch  # noqa: E402
from graft import tree  # noqa: E402

PACKAGING = backend.ROOT / 'packaging'
DIST = backend.ROOT / 'dist'
KOLLA = '/var/lib/kolla/venv/lib/python3/site-packages'
BLUEPRINT = ('https://blueprints.launchpad.net/nova/+spec/'
             'libvirt-sheepdog-backed-instances')
HEADER = """\
Description: Sheepdog image backend for the libvirt driver
 With images_type = sheepdog in [libvirt] of nova.conf, servers have their
 disks on the VDIs of a Sheepdog cluster.
 .
 {what}
Author: the nova-sheepdog developers
Origin: other, nova-sheepdog {version}
Bug: {blueprint}
Forwarded: no

"""


def make_patches(release):
    nova = tree.download(release)
    for suffix, prefix, what in (
            ('', None, f'For the source tree of Nova {release}.'),
            ('-installed', None, f'For an installed Nova {release}, in the '
             'directory that holds the nova package: no\n tests, and no '
             'rootwrap filters.'),
            ('-kolla', KOLLA, f'For Kolla\'s images with Nova {release}; '
             'Kolla applies it in /.')):
        changes = [change for change in patch.Patch(
            with_tests=not suffix).changes(nova.read, release)
            if suffix != '-installed' or change.path.startswith('nova/')]
        (DIST / f'nova-{release}{suffix}.patch').write_text(
            HEADER.format(what=what, version=backend.VERSION,
                          blueprint=BLUEPRINT) +
            patch.diff(changes, prefix))


def put(source, target, mode):
    """Write a file; what it holds is given as a path or a text."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.encode() if isinstance(source, str) else
                       source.read_bytes())
    target.chmod(mode)


def lay_out(top, nova_compute, tgt):
    """Put all files of a distribution's package below a directory.

    :param top: the directory
    :param nova_compute: how the distribution calls this service
    :param tgt: how it calls that of tgtd
    """
    share = top / 'usr/share'
    data = f'{backend.NAME}.data/data/share/'
    for path, source in backend.installed().items():
        put(source, share / (path[len(data):] if path.startswith(data) else
                             f'nova-sheepdog/{path}'),
            backend.mode_of(source))
    # Nova's own packages keep theirs in /etc, as files to be edited. This is
    # the other directory that rootwrap.conf names.
    put(backend.ROOT / 'etc/nova/rootwrap.d/sheepdog.filters',
        share / 'nova/rootwrap/sheepdog.filters', 0o644)
    put(PACKAGING / 'nova-sheepdog', top / 'usr/bin/nova-sheepdog', 0o755)
    put(PACKAGING / 'sudoers', top / 'etc/sudoers.d/nova-sheepdog', 0o440)
    for name, service in ('tgt', tgt), ('nova-compute', nova_compute):
        drop_in = (PACKAGING / f'{name}.conf').read_text()
        put(drop_in.replace('tgt.service', f'{tgt}.service'),
            top / 'usr/lib/systemd/system' /
            f'{service}.service.d/nova-sheepdog.conf', 0o644)


def make_deb():
    with tempfile.TemporaryDirectory() as directory:
        top = pathlib.Path(directory, 'deb')
        lay_out(top, 'nova-compute', 'tgt')
        share = top / 'usr/share'
        documents = share / 'doc/nova-sheepdog'
        (documents / 'LICENSE').unlink()
        put(PACKAGING / 'copyright', documents / 'copyright', 0o644)
        put(filled(PACKAGING / 'changelog'), documents / 'changelog', 0o644)
        subprocess.run(['gzip', '-9n', share / 'man/man1/nova-sheepdog.1',
                        documents / 'changelog'], check=True)
        size = sum(path.stat().st_size for path in top.rglob('*')
                   if path.is_file())
        for path in (PACKAGING / 'debian').iterdir():
            put(path, top / 'DEBIAN' / path.name, backend.mode_of(path))
        control = top / 'DEBIAN/control'
        control.write_text(filled(control).replace('@SIZE@',
                                                   str(size // 1024)))
        for path in [top, *top.rglob('*')]:
            if path.is_dir():
                path.chmod(0o755)
            os.utime(path, (backend.TIME, backend.TIME))
        subprocess.run(
            ['dpkg-deb', '--root-owner-group', '-Zgzip', '--build', top, DIST],
            check=True, stdout=subprocess.DEVNULL,
            env={**os.environ, 'SOURCE_DATE_EPOCH': str(backend.TIME)})


def filled(path):
    """Text of a template, with what it asks for."""
    # 0.1.0~dev0 comes before 0.1.0 for dpkg and rpm.
    return path.read_text().replace(
        '@VERSION@', backend.VERSION.replace('.dev', '~dev')).replace(
        '@DIRECTORY@', backend.NAME).replace(
        '@SOURCE@', f'{backend.NAME}.tar.gz')


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.partition('\n\n')[0])
    parser.add_argument(
        '--packages', action='store_true',
        help='leave out the patches, for which Nova is downloaded')
    parser.add_argument(
        '--root', metavar='DIR', type=pathlib.Path,
        help='make nothing else than the files of an RPM package, below DIR')
    arguments = parser.parse_args()
    if arguments.root:
        return lay_out(arguments.root, 'openstack-nova-compute', 'tgtd')
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    backend.build_sdist(DIST)
    backend.build_wheel(DIST)
    make_deb()
    (DIST / 'nova-sheepdog.spec').write_text(
        filled(PACKAGING / 'nova-sheepdog.spec'))
    for release in () if arguments.packages else sorted(
            patch.Patch().releases):
        make_patches(release)
    files = sorted(DIST.iterdir())
    sums = ''.join(f'{hashlib.sha256(path.read_bytes()).hexdigest()}  '
                   f'{path.name}\n' for path in files)
    (DIST / 'SHA256SUMS').write_text(sums)
    print(*(f'dist/{path.name}' for path in files), 'dist/SHA256SUMS',
          sep='\n')


if __name__ == '__main__':
    main()
