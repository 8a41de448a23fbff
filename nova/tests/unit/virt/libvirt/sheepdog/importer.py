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

"""A process that makes a base image, to be killed by a test."""

import os
import shutil
import sys

import nova.conf
from nova import utils
from nova.virt.libvirt.sheepdog import images
from nova.virt.libvirt.sheepdog import rootwrap
from nova.virt.libvirt.sheepdog import targets
from nova.virt.libvirt.sheepdog import transfer

CONF = nova.conf.CONF


def main(configuration, control_socket, path, name):
    """Make the base of a template.

    :param configuration: path of nova.conf
    :param control_socket: path of that of tgtd
    :param path: of the template, a raw file
    :param name: of the template
    """
    CONF([], default_config_files=[configuration])
    # As in SheepdogTestMixin.
    utils.get_root_helper = lambda: 'env'
    CONF.set_override('disable_rootwrap', True, 'workarounds')
    rootwrap.ROOT_PATH = os.environ['PATH']
    targets.CONTROL_SOCKET = control_socket
    images.TemplateBase(
        images.Images(transfer.Transfer(targets.Targets('iscsi'))),
        lambda target: shutil.copy(path, target), name).provide()


if __name__ == '__main__':
    main(*sys.argv[1:])
