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

"""Measure one figure, in the test bed; see __main__.py for what starts it."""

import importlib
import os
import sys

# By the name of a figure: the module that measures it, in a function of that
# name
MODULES = {
    'boot': 'boots',
    'backends': 'boots',
    'import': 'imports',
    'written': 'imports',
    'image': 'servers',
    'growth': 'growth',
    'crowd': 'crowd',
    'memory': 'imports',
    'guest-io': 'guest_io',
}


def main(name):
    """:param name: of the figure"""
    # Chosen here, before anything of Nova is imported that asks for it.
    module = importlib.import_module(MODULES[name])
    getattr(module, 'measure_' + name.replace('-', '_'))()
    sys.stdout.flush()
    # libvirt's event loop never ends by itself.
    os._exit(0)


if __name__ == '__main__':
    main(*sys.argv[1:])
