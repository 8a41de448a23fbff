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
import sys

import graft
from graft import patch
from graft import record
from graft import rootwrap
from graft import source
from graft import tree
from graft import vdis

DESCRIPTION = """
Gives OpenStack Nova a Sheepdog image backend: weaves the patch into a
pristine Nova of any supported release, and takes it back. On a compute host it
also tells what Nova has in the cluster.
"""
REPLACED = """\
The patched Nova was replaced by another one. Run "apply" to patch this one,
or "revert" to remove what is left of the patch."""


def main(argv=None):
    """Run the command.

    :param argv: its arguments; None: those of the process
    :returns: exit status
    """
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments) or 0
    except source.Misfit as misfit:
        _complain('The patch does not fit; nothing was changed.\n  ' +
                  '\n  '.join(misfit.problems) +
                  '\nTake a Nova of a supported release that nobody else '
                  'patched, or mend the fragments named.')
    except graft.GraftError as error:
        _complain(error)
    except PermissionError as error:
        _complain(f'{error}. Run it as the user who owns this Nova.')
    except BrokenPipeError:
        # Who read the diff wants no more of it. Python shall not try to
        # write the rest when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        _complain(error)
    except KeyboardInterrupt:
        _complain('Interrupted.')
        return 130
    return 1


def _complain(message):
    print(f'nova-sheepdog: {message}', file=sys.stderr)


def _parser():
    parser = argparse.ArgumentParser(
        prog='nova-sheepdog', description=DESCRIPTION)
    parser.add_argument('--version', action='version',
                        version=f'%(prog)s {graft.__version__}')
    commands = parser.add_subparsers(required=True, metavar='COMMAND')

    def add(run, summary, more=''):
        command = commands.add_parser(
            run.__name__[1:], help=summary, description=f'{summary}. {more}')
        command.set_defaults(run=run)
        return command

    def add_for_nova(run, summary, more='', release=False):
        command = add(run, summary, more)
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

    add_for_nova(_apply, 'Patch a Nova, all of it or nothing',
        'What another version of nova-sheepdog or an interrupted run did to '
        'it is taken back first.').add_argument(
        '--rootwrap-conf', metavar='FILE',
        help='the rootwrap.conf that this Nova uses (default: the one that '
        'was installed with it); the filters go into the first directory of '
        'its filters_path that is there and belongs to root')
    add_for_nova(_revert, 'Take the patch back',
        'Every file of Nova becomes what it was, byte for byte, and every '
        'file that the patch brought is removed.')
    add_for_nova(_status, 'Say which Nova it is and whether it is patched',
        'Exit status: 0 when it is patched and whole, else 1.')
    add_for_nova(_diff, 'Print the patch as a unified diff',
        'It is for "patch -p1" and "git apply" in the source tree of a '
        'pristine Nova. A patched Nova counts as what it was before.',
        release=True)
    add_for_nova(_check, 'Say whether the patch fits, and what does not',
        'Exit status: 0 when it fits, else 1.', release=True)
    _add_vdis(add(
        _vdis, 'List what Nova has in the Sheepdog cluster',
        'It is for a compute host. Which servers there are it asks Nova\'s '
        'API, for which it needs the rights of an administrator: the OS_* '
        'variables or --os-cloud. OWN and SHARED are the bytes of data that '
        'only this VDI has and that it shares with others, copies not '
        'counted; TRANSPORT is how this host reaches it. An orphan belongs '
        'to a server that Nova does not have. Exit status: 0; 1 after an '
        'error, or when an orphan could not be deleted.'))
    return parser


def _add_vdis(command):
    command.add_argument(
        '--config-file', metavar='FILE', action='append',
        help='configuration of nova-compute; may be given again (default: '
        f'those of {" and ".join(vdis.CONFIG_FILES)} that are there)')
    command.add_argument(
        '--host', metavar='ADDRESS', help='IPv4 address of a sheep daemon '
        '(default: [libvirt] images_sheepdog_host of the configuration)')
    command.add_argument(
        '--port', type=int, help='its TCP port (default: [libvirt] '
        'images_sheepdog_port of the configuration)')
    command.add_argument(
        '--os-cloud', metavar='NAME', help='cloud of clouds.yaml whose Nova '
        'to ask (default: what the OS_* variables say)')
    command.add_argument(
        '--clean', action='store_true', help='delete the orphans, after they '
        'were shown and you said yes. Snapshots that Nova did not take stay, '
        'and so does every orphan with a VDI or snapshot younger than '
        f'{vdis.MINIMUM_AGE // 60} minutes. Never use it where two Novas '
        'share a cluster: to each of them the disks of the other are orphans')
    command.add_argument(
        '--yes', action='store_true', help='do not ask before --clean deletes')


def _name(nova):
    return f'Nova {nova.release} in {nova.root}'


def _apply(arguments):
    nova = tree.find(arguments.nova)
    done = record.Record(nova)
    the_patch = patch.Patch()
    fingerprint = the_patch.fingerprint
    with done.locked():
        _mend(done)
        _refuse_changed(done)
        if (done.is_applied and not done.missing() and
                done.manifest['fingerprint'] == fingerprint):
            print(f'{_name(nova)} is patched already; nothing to do.')
            return
        changes = the_patch.changes(done.read, nova.release)
        hints = []
        if not nova.is_source:
            filters, hints = rootwrap.place(
                changes, the_patch.files, done, arguments.rootwrap_conf or
                nova.find_rootwrap_configuration())
            changes = [change for change in changes
                       if change.path.startswith('nova/')] + filters
        if done.is_applied:
            version = done.manifest['version']
            done.revert()
            print(f'Took back the patch of nova-sheepdog {version}.')
        done.apply(changes + record.installation_record_change(nova, changes),
                   the_patch.version, fingerprint)
    new = sum(change.before is None for change in changes)
    print(f'Patched {_name(nova)}: {len(changes) - new} files changed, {new} '
          'added.', *hints, sep='\n')
    if nova.root.name == 'dist-packages' and not nova.installation_record:
        print('"dpkg --verify python3-nova" now names the changed files.')
    print('Next: set images_type = sheepdog in [libvirt] of nova.conf and '
          'restart nova-compute.')


def _mend(done):
    if done.is_interrupted:
        _refuse_changed(done)
        done.roll_back()
        print('An earlier run was interrupted; the pristine Nova is back.')
    elif done.is_replaced:
        done.roll_back()
        print('The patched Nova was replaced by another one; removed what '
              'was left of the patch.')


def _refuse_changed(done):
    changed = done.changed_since()
    if changed:
        raise graft.GraftError(
            'Somebody changed what the patch wrote; nothing was done. '
            'Not as it was:\n  ' + '\n  '.join(map(str, changed)) +
            '\nBring these files back as they were, or install this Nova '
            'again.')


def _revert(arguments):
    nova = tree.find(arguments.nova)
    done = record.Record(nova)
    with done.locked():
        _mend(done)
        _refuse_changed(done)
        elsewhere = done.left_elsewhere
        if done.is_applied:
            done.revert()
            print(f'Took the patch back from {_name(nova)}.')
        else:
            print(f'{_name(nova)} is not patched.')
        for path in elsewhere:
            print(f'This Nova was patched in another place; left {path} '
                  'there.')


def _status(arguments):
    nova = tree.find(arguments.nova)
    done = record.Record(nova)
    print(f'Nova {nova.release} in {nova.package}')
    if done.is_interrupted:
        print('A run of nova-sheepdog was interrupted here. Run "apply" or '
              '"revert".')
    elif done.is_replaced:
        print(REPLACED)
    elif done.is_applied:
        print(f'Patched by nova-sheepdog {done.manifest["version"]}.')
        if done.manifest['fingerprint'] != patch.Patch().fingerprint:
            print(f'The patch of this nova-sheepdog, {graft.__version__}, is '
                  'another one: "apply" puts it in its place.')
        changed, missing = done.changed_since(), done.missing()
        for path in changed:
            print(f'Somebody changed {path}.')
        for path in missing:
            print(f'Somebody removed {path}: "apply" brings it back.')
        return 1 if changed or missing else 0
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
    if done.is_replaced:
        raise graft.GraftError(REPLACED)
    _refuse_changed(done)
    return done.read, nova.release


def _diff(arguments):
    read, release = _pristine(arguments)
    # In UTF-8, as the files are, in every locale.
    sys.stdout.buffer.write(
        patch.diff(patch.Patch().changes(read, release)).encode())
    sys.stdout.flush()


def _check(arguments):
    read, release = _pristine(arguments)
    changes = patch.Patch().changes(read, release)
    print(f'The patch fits Nova {release}: {len(changes)} files.')


def _vdis(arguments):
    if arguments.yes and not arguments.clean:
        raise graft.GraftError('--yes goes with --clean.')
    configuration = vdis.configure(arguments.config_file)
    cluster = vdis.Cluster(arguments.host or configuration.host,
                           arguments.port or configuration.port)
    api = vdis.Api(arguments.os_cloud)
    found, others = vdis.look(cluster, api)
    orphans = [each for each in found if each.is_orphan]
    if not arguments.clean:
        vdis.show(found, configuration)
        print(f'{len(found)} VDIs and snapshots, {len(orphans)} of them '
              f'orphans. Not of Nova: {others}.')
        return 0
    if not orphans:
        print('There are no orphans to delete.')
        return 0
    api.check_host(configuration.name)
    vdis.show(orphans, configuration)
    if not (arguments.yes or _confirm(len(orphans), cluster.name)):
        print('Nothing was deleted.')
        return 1
    failures = vdis.clean(orphans, cluster, api)
    if failures:
        raise graft.GraftError('Not all could be deleted:\n  ' +
                               '\n  '.join(failures))
    return 0


def _confirm(count, name):
    if not sys.stdin.isatty():
        raise graft.GraftError('Nobody is here to say yes, so nothing was '
                               'deleted. Give --yes if that is meant.')
    answer = input(f'Delete these {count} VDIs and snapshots of the cluster '
                   f'at {name} for good? [y/N] ')
    return answer.strip().lower() in ('y', 'yes')
