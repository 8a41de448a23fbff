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


"""What tox reads beside tox.ini: an environment for each test suite."""

import pathlib
import sys

from tox.config.loader import memory
from tox.config import types
from tox import plugin

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / 'tools'))

import suites  # noqa: E402


@plugin.impl
def tox_extend_envs():
    return suites.names()


@plugin.impl
def tox_add_core_config(core_conf, state):
    core_conf.loaders.append(memory.MemoryLoader(
        env_list=types.EnvList(suites.default_names())))
