#!/usr/bin/python3
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

"""Make a Linux for guests, of Debian's kernel, busybox and guest agent.

It boots in seconds without KVM, as all that it has is in its ramdisk.  Its
first disk, /dev/vda, has to hold an ext4 file system.  There it counts its
boots, and beats about once a second, and says so as the guest of
nova/tests/fixtures/boot_sector.py does.  Of other disks it says
"sheepdog-guest vdb boot N" where there is such a file system, and it counts
its boots there too, and "sheepdog-guest vdb swap SECTORS" where it may swap.
"""

import pathlib
import re
import shutil
import subprocess
import tempfile

KERNEL = 'linux-image-cloud-amd64'
PACKAGES = ('busybox-static', 'qemu-guest-agent')
# in the order in which one needs the other
MODULES = ('virtio_ring', 'virtio', 'virtio_pci_legacy_dev',
           'virtio_pci_modern_dev', 'virtio_pci', 'virtio_blk',
           'virtio_console')
INIT = r"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in %s; do
    insmod /modules/$module.ko
done
until [ -b /dev/vda ]; do
    usleep 50000
done
use() {
    mkdir /$1
    if mount -t ext4 /dev/$1 /$1; then
        number=$(cat /$1/boots)
        number=$((number + 1))
        echo $number >/$1/boots
        sync
        echo "sheepdog-guest $2boot $number"
    elif swapon /dev/$1; then
        echo "sheepdog-guest $2swap $(cat /sys/block/$1/size)"
    fi
}
for disk in /dev/vd[b-z]; do
    [ ! -b $disk ] || use ${disk#/dev/} "${disk#/dev/} "
done 2>/dev/null
use vda ""
for port in /dev/vport*; do
    [ ! -c "$port" ] || qemu-ga -m virtio-serial -p "$port" -t /run &
done
number=0
while number=$((number + 1)); do
    echo $number >/vda/beats
    sync
    echo "sheepdog-guest beat $number"
    sleep 1
done
""" % ' '.join(MODULES)


class Failure(Exception):
    """The guest could not be made."""


def output_of(*command, **kwargs):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE,
                          universal_newlines=True, **kwargs).stdout


def name_packages():
    """Return the names of the packages that are needed."""
    depends = output_of('apt-cache', 'depends', KERNEL)
    kernel = re.search(r'Depends: (linux-image-\S+)', depends)
    if not kernel:
        raise Failure('apt-cache knows no dependency of %s.' % KERNEL)
    return [kernel.group(1), *PACKAGES]


def find(directory, pattern):
    """Return the path that matches a pattern with '**'."""
    path = next(directory.glob(pattern), None)
    if not path:
        raise Failure('No %s is in the packages.' % pattern)
    return path


def make_tree(tree, unpacked):
    """Make what the guest has in its ramdisk.

    :param tree: directory for it
    :param unpacked: directory that holds the content of the packages
    """
    for name in ('bin', 'dev', 'modules', 'proc', 'run', 'sys', 'var'):
        (tree / name).mkdir()
    (tree / 'var/run').symlink_to('/run')
    init = tree / 'init'
    init.write_text(INIT)
    init.chmod(0o755)
    agent = find(unpacked, '**/sbin/qemu-ga')
    for program in find(unpacked, '**/bin/busybox'), agent:
        shutil.copy(program, tree / 'bin')
    for name in MODULES:
        shutil.copy(find(unpacked, '**/%s.ko' % name), tree / 'modules')
    # QEMU, which is on this host, needs these libraries too.
    libraries = output_of('ldd', agent)
    if 'not found' in libraries:
        raise Failure('qemu-ga needs more than this host has:\n' + libraries)
    for path in re.findall(r'(/\S+) \(0x', libraries):
        target = tree / path[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def make(directory, apt_get):
    """Make the files 'kernel' and 'ramdisk'.

    :param directory: where to make them; it must not exist
    :param apt_get: function that runs apt-get with arguments in a directory
    :raises: Failure, or subprocess.CalledProcessError
    """
    with tempfile.TemporaryDirectory(dir=directory.parent) as work:
        work = pathlib.Path(work)
        downloads, unpacked, tree, made = (
            work / name for name in ('downloads', 'unpacked', 'tree', 'made'))
        for path in downloads, unpacked, tree, made:
            path.mkdir()
        apt_get('download', *name_packages(), cwd=downloads)
        for package in downloads.glob('*.deb'):
            subprocess.run(['dpkg-deb', '--extract', package, unpacked],
                           check=True)
        make_tree(tree, unpacked)
        shutil.copy(find(unpacked, 'boot/vmlinuz-*'), made / 'kernel')
        names = '\n'.join(str(path.relative_to(tree))
                          for path in sorted(tree.rglob('*')))
        with open(made / 'ramdisk', 'wb') as ramdisk:
            subprocess.run(
                [tree / 'bin/busybox', 'cpio', '-o', '-H', 'newc'], check=True,
                input=names.encode(), stdout=ramdisk, cwd=tree,
                stderr=subprocess.DEVNULL)
        made.rename(directory)
