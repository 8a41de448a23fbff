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

"""Where the rootwrap filters of an installed Nova go."""

import configparser
import os
import pathlib
import shlex

from graft import GraftError
from graft import patch

DEFAULT_DIRECTORY = pathlib.Path('/etc/nova/rootwrap.d')
# rootwrap trusts no directory that belongs to somebody else.
OWNER = 0


def _directories(configuration):
    """The directories that a rootwrap.conf names for filters."""
    parser = configparser.RawConfigParser()
    try:
        with open(configuration) as stream:
            parser.read_file(stream)
        value = parser.get('DEFAULT', 'filters_path')
    except (OSError, configparser.Error) as error:
        raise GraftError(f'{configuration}: {error}. Name the rootwrap.conf '
                         'that Nova uses with --rootwrap-conf.')
    return [pathlib.Path(part.strip()) for part in value.split(',')
            if part.strip()]


def _is_usable(directory):
    return (directory.is_dir() and directory.stat().st_uid == OWNER and
            os.access(directory, os.W_OK))


def place(sources, done, configuration):
    """Find the place of the filters.

    :param sources: paths of the patch's files, by their paths in Nova's
        source tree; those of filters count
    :param done: record.Record of the Nova
    :param configuration: path of its rootwrap.conf, None when it has none
    :returns: list of patch.Change with absolute paths, and list of texts for
        the operator: where they are or how to put them there
    :raises GraftError: the configuration cannot be read
    """
    directories = (_directories(configuration) if configuration
                   else [DEFAULT_DIRECTORY])
    usable = [directory for directory in directories
              if configuration and _is_usable(directory)]
    placed, hints = [], []
    for source, file in sources.items():
        if not source.startswith(patch.ROOTWRAP_DIRECTORY):
            continue
        name = pathlib.Path(source).name
        content = file.read_bytes()
        present = [directory / name for directory in directories
                   if (directory / name).exists() and
                   not done.owns(directory / name)]
        if present and present[0].read_bytes() == content:
            hints.append(f'The rootwrap filters are in {present[0]} already.')
        elif usable and not present:
            path = usable[0].resolve() / name
            placed.append(patch.Change(str(path), None, content))
            hints.append(f'The rootwrap filters are in {path}, which '
                         f'{configuration} names.')
        else:
            if present:
                target = present[0]
                reason = f'{target} differs and is not from this command'
            else:
                target = directories[0] / name
                reason = (f'{configuration} names no directory of root that '
                          'is there and can be written to' if configuration
                          else 'this Nova came without a rootwrap.conf')
            hints.append(
                f'The rootwrap filters are not installed: {reason}. Do it '
                'by:\n  sudo install -D -o root -g root -m 0644 '
                f'{shlex.quote(str(file))} '
                f'{shlex.quote(str(target))}')
    return placed, hints
