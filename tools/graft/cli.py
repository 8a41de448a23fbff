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

"""The nova-sheepdog command."""

import argparse
import os
import pathlib
import shlex
import sys

import graft
from graft import patch
from graft import record
from graft import tree

DESCRIPTION = """
Gives OpenStack Nova a Sheepdog image backend: weaves the patch into a
pristine Nova of any supported release, and takes it back.
"""


def main(argv=None):
    """Run the command.

    :param argv: its arguments; None: those of the process
    :returns: exit status
    """
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments) or 0
    except graft.GraftError as error:
        print(f'nova-sheepdog: {error}', file=sys.stderr)
    except PermissionError as error:
        print(f'nova-sheepdog: {error}. Run it as the user who owns this '
              'Nova.', file=sys.stderr)
    except OSError as error:
        print(f'nova-sheepdog: {error}', file=sys.stderr)
    return 1


def _parser():
    parser = argparse.ArgumentParser(
        prog='nova-sheepdog', description=DESCRIPTION)
    parser.add_argument('--version', action='version',
                        version=f'%(prog)s {graft.__version__}')
    commands = parser.add_subparsers(required=True, metavar='COMMAND')

    def add(run, summary, release=False):
        name = run.__name__[1:]
        command = commands.add_parser(name, help=summary,
                                      description=run.__doc__)
        command.set_defaults(run=run)
        places = command.add_mutually_exclusive_group()
        places.add_argument(
            '--nova', metavar='DIR',
            help='a source tree, a virtual environment, a site-packages '
            'directory or the nova package itself (default: the Nova that '
            f'{sys.executable} imports)')
        if release:
            places.add_argument(
                '--release', metavar='X', help='take this release, like '
                '34.0.0, from PyPI instead; it is downloaded once')
        return command

    add(_apply, 'patch a Nova').add_argument(
        '--rootwrap-conf', metavar='FILE',
        help='the rootwrap.conf that this Nova uses (default: the one that '
        'was installed with it); the filters go into the first directory of '
        'its filters_path that is there and belongs to root')
    add(_revert, 'take the patch back')
    add(_status, 'say which Nova it is and whether it is patched')
    add(_diff, 'print the patch as a unified diff', release=True)
    add(_check, 'say whether the patch fits', release=True)
    return parser


def _name(nova):
    return f'Nova {nova.release} in {nova.root}'


def _apply(arguments):
    """Patch a Nova, all of it or nothing. A Nova patched by another version
    of nova-sheepdog, or by a run that was interrupted, is brought back to its
    pristine state first."""
    nova = tree.find(arguments.nova)
    done = record.Record(nova)
    the_patch = patch.Patch()
    fingerprint = the_patch.fingerprint
    with done.locked():
        _mend(done)
        if done.is_applied:
            _refuse_changed(done)
            if done.manifest['fingerprint'] == fingerprint:
                print(f'{_name(nova)} is patched already; nothing to do.')
                return
        changes = the_patch.changes(done.read, nova.release)
        filters, hints = _place_filters(
            nova, the_patch, changes, done, arguments.rootwrap_conf)
        if done.is_applied:
            print(f'Took back nova-sheepdog {done.manifest["version"]}.')
            done.revert()
        changes = [change for change in changes if nova.is_source or
                   not change.path.startswith('etc/')] + filters
        count = len(changes)
        changes += record.installation_record_change(nova, changes)
        done.apply(changes, the_patch.version, fingerprint)
    new = sum(change.before is None for change in changes)
    print(f'Patched {_name(nova)}: {count - new} files changed, {new} added.')
    for hint in hints:
        print(hint)
    print('Next: set images_type = sheepdog in [libvirt] of nova.conf and '
          'restart nova-compute.')


def _mend(done):
    if done.is_interrupted:
        _refuse_changed(done)
        done.roll_back()
        print('An earlier run was interrupted; brought back the pristine '
              'Nova.')
    elif done.is_replaced:
        print(f'Nova {done.manifest["release"]} was patched here and then '
              'replaced; removed what the patch left.')
        done.roll_back()


def _refuse_changed(done):
    changed = done.changed_since()
    if changed:
        raise graft.GraftError(
            'Somebody changed what the patch wrote; nothing was done. '
            'Changed or missing:\n  ' + '\n  '.join(map(str, changed)) +
            '\nBring these files back as they were, or install this Nova '
            'again.')


def _place_filters(nova, the_patch, changes, done, configuration):
    """Where the rootwrap filters of an installed Nova go.

    :returns: the changes that put them there, and what the operator needs to
        know or do
    """
    wanted = [change for change in changes if change.path.startswith(
        patch.ROOTWRAP_DIRECTORY)]
    if nova.is_source:
        return [], []
    configuration = (configuration and pathlib.Path(configuration) or
                     nova.find_rootwrap_configuration())
    directories = (tree.filters_directories(configuration)
                   if configuration else
                   [pathlib.Path('/etc/nova/rootwrap.d')])
    usable = [directory for directory in directories
              if directory.is_dir() and directory.stat().st_uid == 0 and
              os.access(directory, os.W_OK)]
    placed, hints = [], []
    for change in wanted:
        name = pathlib.Path(change.path).name
        found = next((directory / name for directory in directories
                      if (directory / name).exists()), None)
        if found and found.read_bytes() == change.after and not done.owns(
                found):
            hints.append(f'The rootwrap filters are in {found} already.')
        elif found and not done.owns(found):
            raise graft.GraftError(
                f'{found} is there already and differs from '
                f'{the_patch.files[change.path]}. Remove it and try again.')
        elif usable and configuration:
            path = usable[0].resolve() / name
            placed.append(patch.Change(str(path), None, change.after, 0o644))
            hints.append(f'The rootwrap filters are in {path}, which '
                         f'{configuration} names.')
        else:
            source = the_patch.files[change.path]
            target = directories[0] / name
            hints.append(
                'The rootwrap filters are not installed: '
                f'{configuration or "no rootwrap.conf"} names no directory '
                'that is there and that this user may write to. Do it by:\n  '
                f'sudo install -D -o root -g root -m 0644 '
                f'{shlex.quote(str(source))} {shlex.quote(str(target))}')
    return placed, hints


def _revert(arguments):
    """Take the patch back: every file of Nova becomes what it was, byte for
    byte, and every file that the patch brought is removed."""
    nova = tree.find(arguments.nova)
    done = record.Record(nova)
    with done.locked():
        if done.is_applied and not done.is_replaced:
            _refuse_changed(done)
            done.revert()
            print(f'Took the patch back from {_name(nova)}.')
        elif done.manifest or done.is_interrupted:
            _mend(done)
        else:
            print(f'{_name(nova)} is not patched; nothing to do.')


def _status(arguments):
    """Say which Nova it is, its release, and whether it is patched and by
    which version. Exit status: 0 when it is patched and whole, else 1."""
    nova = tree.find(arguments.nova)
    done = record.Record(nova)
    print(f'Nova {nova.release} in {nova.package}')
    if done.is_interrupted:
        print('A run of nova-sheepdog was interrupted here: run "apply" or '
              '"revert" again.')
    elif done.is_replaced:
        print(f'The patched Nova {done.manifest["release"]} was replaced: '
              'run "apply" to patch this one, or "revert" to remove what '
              'the patch left.')
    elif done.is_applied:
        print(f'Patched by nova-sheepdog {done.manifest["version"]}.')
        changed = done.changed_since()
        for path in changed:
            print(f'Changed since, or missing: {path}')
        return 1 if changed else 0
    else:
        print('Not patched.')
    return 1


def _pristine(arguments):
    """Function that reads the pristine files, and the release."""
    if arguments.release:
        wheel = tree.download(arguments.release)
        return wheel.read, wheel.release
    nova = tree.find(arguments.nova)
    done = record.Record(nova)
    _refuse_changed(done)
    return done.read, nova.release


def _diff(arguments):
    """Print the patch as a unified diff against a pristine Nova, for
    "patch -p1" and "git apply" in its source tree."""
    read, release = _pristine(arguments)
    sys.stdout.write(patch.diff(patch.Patch().changes(read, release)))


def _check(arguments):
    """Say whether the patch fits, and what does not. Exit status: 0 when it
    fits, else 1."""
    read, release = _pristine(arguments)
    changes = patch.Patch().changes(read, release)
    print(f'The patch fits Nova {release}: {len(changes)} files.')
