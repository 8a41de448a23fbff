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

"""A process that makes a disk of an image, to be killed by a test."""

import os
import shutil
import sys

import nova.conf
from nova import utils
from nova.virt.libvirt import imagebackend
from nova.virt.libvirt import sheepdog_base
from nova.virt.libvirt.storage import tgt
from nova.virt.libvirt import utils as libvirt_utils

CONF = nova.conf.CONF


def main(configuration, control_socket, path, key, digest, vdi):
    """Do what a boot does of which this is not a process of its own.

    :param configuration: path of nova.conf
    :param control_socket: path of that of tgtd
    :param path: of the image, a raw file
    :param key: id of the image
    :param digest: what tells its base from others
    :param vdi: name of the disk
    """
    CONF([], default_config_files=[configuration])
    # As in SheepdogTestMixin.
    utils.get_root_helper = lambda: 'env'
    libvirt_utils.ROOT_PATH = os.environ['PATH']
    tgt.CONTROL_SOCKET = control_socket
    base = sheepdog_base.Base(key, digest)
    base.provide(
        lambda: base.clone(vdi),
        lambda new: imagebackend.Sheepdog._fill(
            new, lambda target: shutil.copy(path, target)))


if __name__ == '__main__':
    main(*sys.argv[1:])
