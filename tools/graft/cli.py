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
import json
import os
import runpy
import subprocess
import sys

import graft
from graft import patch
from graft import record
from graft import rootwrap
from graft import series
from graft import source
from graft import tree

DESCRIPTION = """
Gives OpenStack Nova a Sheepdog image backend: weaves the patch into a
pristine Nova of any supported release, and takes it back. On a compute host it
also tells what is wrong, and what Nova has in the cluster.
"""
# The commands that run in the patched Nova: its file that has their options.
COMMANDS = 'nova/virt/libvirt/sheepdog/commands/cli.py'
# Runs one of them, by the Python of that Nova.
START = """\
import argparse, json, sys
root, arguments = sys.argv[1:]
if root not in sys.path:
    sys.path.insert(0, root)
from nova.virt.libvirt.sheepdog.commands import cli
sys.exit(cli.run(argparse.Namespace(**json.loads(arguments))))
"""
STATES = {
    record.RESTORED: '%s is Nova\'s own again: "apply" patches it.',
    record.UPDATED: '%s is of an update: "apply" patches it if it fits.',
    record.EDITED: 'Somebody changed %s.',
    record.REMOVED: 'Somebody removed %s: "apply" brings it back.',
    record.UNREADABLE: 'Only root can see %s.',
}
OPERATORS = runpy.run_path(str(patch.find_root() / COMMANDS))


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
    commands = parser.add_subparsers(
        required=True, dest='command', metavar='COMMAND')

    def add_for_nova(run, summary, more='', release=False, name=None):
        command = commands.add_parser(
            name or run.__name__[1:], help=summary,
            description=f'{summary}. {more}')
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

    command = add_for_nova(
        _apply, 'Patch a Nova, all of it or nothing',
        'What another version of nova-sheepdog or an interrupted run did to '
        'it is taken back first. After an update of Nova, each file that it '
        'brought is patched again.')
    command.add_argument(
        '--rootwrap-conf', metavar='FILE',
        help='the rootwrap.conf that this Nova uses (default: the one that '
        'was installed with it); the filters go into the first directory of '
        'its filters_path that is there and belongs to root')
    command.add_argument(
        '--with-tests', action='store_true',
        help='add what is below nova/tests as well, a simulated cluster '
        'among it, and in a source tree the documents; never on a host that '
        'runs servers')
    add_for_nova(
        _revert, 'Take the patch back',
        'Every file of Nova becomes what it was, byte for byte, and every '
        'file that the patch brought is removed. What an update of Nova '
        'brought since stays.')
    add_for_nova(
        _status, 'Say which Nova it is and whether it is patched',
        'Any user may ask. Exit status: 0 when it is patched and whole, '
        'else 1.').add_argument(
        '--json', action='store_true', help='print a JSON object')
    command = add_for_nova(
        _diff, 'Print the patch as a unified diff',
        'It is for "patch -p1" and "git apply" in the source tree of a '
        'pristine Nova. A patched Nova counts as what it was before.',
        release=True)
    forms = command.add_mutually_exclusive_group()
    forms.add_argument(
        '--series', metavar='DIR',
        help='for review: write a patch for each commit into DIR, which is '
        'made, for "git am" in a checkout of this Nova')
    forms.add_argument(
        '--installed', action='store_true',
        help='leave out what only a source tree has, tests, documents and '
        'rootwrap filters: for "patch -p1" in the directory that holds the '
        'nova package (default for a Nova that is installed)')
    forms.add_argument(
        '--prefix', metavar='DIR',
        help='for "patch -p0" in / where the nova package is in DIR, as in '
        'Kolla\'s images: without tests and documents, and with the filters '
        'in /etc/nova/rootwrap.d')
    add_for_nova(
        _check, 'Say whether the patch fits, and what does not',
        'It also says whether the patch was tested with this release. Exit '
        'status: 0 when it fits, else 1.', release=True)
    OPERATORS['add_commands'](
        lambda name, summary, more: add_for_nova(
            {'doctor': _doctor, 'metrics': _metrics}.get(name, _run_in_nova),
            summary, more, name=name))
    return parser


def _name(nova):
    return f'Nova {nova.release} in {nova.root}'


def _apply(arguments):
    nova = tree.find(arguments.nova)
    done = record.Record(nova)
    the_patch = patch.Patch(with_tests=arguments.with_tests)
    fingerprint = the_patch.fingerprint
    with done.locked():
        _mend(done)
        filters, hints = [], []
        if not nova.is_source:
            filters, hints = rootwrap.place(
                the_patch.files, done, arguments.rootwrap_conf or
                nova.find_rootwrap_configuration())
        if (done.is_whole and done.manifest['fingerprint'] == fingerprint and
                all(done.owns(change.path) for change in filters)):
            print(f'{_name(nova)} is patched already; nothing to do.', *hints,
                  sep='\n')
            return
        changes = the_patch.changes(done.read, nova.release)
        if not nova.is_source:
            changes = [change for change in changes
                       if change.path.startswith('nova/')] + filters
        is_again = done.is_applied
        if is_again:
            if {record.RESTORED, record.UPDATED} & set(
                    done.states().values()):
                print('Nova was updated since it was patched.')
            else:
                print('Took back the patch of nova-sheepdog '
                      f'{done.manifest["version"]}.')
            done.revert()
        done.apply(changes + record.installation_record_change(nova, changes),
                   the_patch.version, fingerprint)
    new = sum(change.before is None for change in changes)
    print(f'Patched {_name(nova)}: {len(changes) - new} files changed, {new} '
          'added.', *hints, sep='\n')
    if nova.release not in the_patch.releases:
        print('The patch fits this release, and was not tested with it.')
    if nova.root.name == 'dist-packages' and not nova.installation_record:
        print('"dpkg --verify python3-nova" now names the changed files.')
    if not is_again:
        print('Still to do on each compute host, where it is not done yet:')
        for number, step in enumerate(_steps(nova, arguments), 1):
            print(f'  {number}. {step}')


def _steps(nova, arguments):
    """What the operator has to do before Nova can use the patch."""
    configuration = (arguments.rootwrap_conf or
                     nova.find_rootwrap_configuration() or
                     '/etc/nova/rootwrap.conf')
    place = f' --nova {arguments.nova}' if arguments.nova else ''
    return [
        'Start tgtd so that only this host reaches it: "tgtd --iscsi '
        'portal=127.0.0.1:3260".',
        'Let sudo run rootwrap\'s daemon, by this line in a file of '
        f'/etc/sudoers.d:\n     nova ALL = (root) NOPASSWD: '
        f'{nova.rootwrap_daemon} {configuration}',
        'Set images_type = sheepdog in [libvirt] of nova.conf, and '
        'images_sheepdog_host and images_sheepdog_port if the sheep daemon '
        'is not at localhost:7000.',
        f'Run "nova-sheepdog doctor{place}", which says what is missing and '
        'what mends it, and restart nova-compute.']


def _mend(done):
    _refuse_edited(done)
    if done.is_interrupted:
        done.roll_back()
        print('An earlier run was interrupted; the pristine Nova is back.')


def _refuse_edited(done):
    edited = [path for path, state in done.states().items()
              if state == record.EDITED]
    if edited:
        raise graft.GraftError(
            'Somebody changed what the patch wrote; nothing was done. '
            'Not as it was:\n  ' + '\n  '.join(map(str, edited)) +
            '\nInstall this Nova again, and remove those of these files '
            'that it does not bring.')


def _revert(arguments):
    nova = tree.find(arguments.nova)
    done = record.Record(nova)
    with done.locked():
        _mend(done)
        elsewhere = done.left_elsewhere
        if done.is_applied:
            done.revert()
            print(f'Took the patch back from {_name(nova)}.')
        else:
            print(f'{_name(nova)} is not patched.')
        for path in elsewhere:
            print(f'This Nova was patched in another place; left {path} '
                  'there.')


def _find_status(nova, done):
    """What "status" tells of a Nova, as a program reads it."""
    state = 'interrupted' if done.is_interrupted else 'not patched'
    version = current = None
    files = {}
    if done.is_applied:
        files = {str(path): is_now for path, is_now in done.states().items()
                 if is_now != record.PATCHED}
        state = ('patched' if set(files.values()) <= {record.UNREADABLE}
                 else 'patched in part')
        version = done.manifest['version']
        current = done.manifest['fingerprint'] in {
            patch.Patch(with_tests=with_tests).fingerprint
            for with_tests in (False, True)}
    return {'release': nova.release, 'package': str(nova.package),
            'state': state, 'version': version, 'is_current': current,
            'files': files}


def _status(arguments):
    nova = tree.find(arguments.nova)
    done = record.Record(nova)
    status = _find_status(nova, done)
    if arguments.json:
        print(json.dumps(status, indent=1))
    else:
        print(f'Nova {nova.release} in {nova.package}')
        if done.is_interrupted:
            print('A run of nova-sheepdog was interrupted here. Run "apply" '
                  'or "revert".')
        elif done.is_applied:
            print(f'{status["state"].capitalize()} by nova-sheepdog '
                  f'{status["version"]}.')
            if not status['is_current']:
                print('The patch of this nova-sheepdog, '
                      f'{graft.__version__}, is another one: "apply" puts it '
                      'in its place.')
        else:
            print('Not patched.')
        for path, is_now in status['files'].items():
            print(STATES[is_now] % path)
    return 0 if status['state'] == 'patched' else 1


def _pristine(arguments):
    """Function that reads the pristine files, the release, and its form."""
    nova = (tree.download(arguments.release) if arguments.release else
            tree.find(arguments.nova))
    done = record.Record(nova)
    _refuse_edited(done)
    return done.read, nova.release, nova.is_source


def _diff(arguments):
    read, release, is_source = _pristine(arguments)
    if arguments.series:
        count = series.Series(patch.Patch()).write(
            arguments.series, read, release)
        print(f'Wrote {count} patches. In a checkout of Nova {release}: '
              f'git am --signoff {os.path.abspath(arguments.series)}/*.patch')
        return
    is_whole = is_source and not (arguments.installed or arguments.prefix)
    changes = patch.Patch(with_tests=is_whole).changes(read, release)
    if not (is_whole or arguments.prefix):
        changes = [change for change in changes
                   if change.path.startswith('nova/')]
    # In UTF-8, as the files are, in every locale.
    sys.stdout.buffer.write(
        patch.diff(changes, arguments.prefix).encode())
    sys.stdout.flush()


def _check(arguments):
    read, release, is_source = _pristine(arguments)
    the_patch = patch.Patch(with_tests=is_source)
    the_patch.changes(read, release)
    tested = 'tested' if release in the_patch.releases else 'not tested'
    print(f'Nova {release}: the patch fits, {tested}.')


def _run_in_nova(arguments, **more):
    """Run a command by the patched Nova, in the Python of that."""
    nova = tree.find(arguments.nova)
    if not (nova.root / COMMANDS).exists():
        raise graft.GraftError(f'{_name(nova)} is not patched: run '
                               '"nova-sheepdog apply" first.')
    options = {name: value for name, value in vars(arguments).items()
               if name not in ('run', 'nova')}
    # Neither the directory that this runs in nor PYTHONPATH shall bring code.
    return subprocess.run(
        [nova.python, '-I', '-W', 'ignore', '-c', START, nova.root,
         json.dumps({**options, **more})]).returncode


def _doctor(arguments):
    def finding(check, state, text, remedy=None):
        return {'check': check, 'state': OPERATORS[state], 'text': text,
                'remedy': remedy}

    place = f' --nova {arguments.nova}' if arguments.nova else ''
    apply = f'nova-sheepdog apply{place}'
    try:
        nova = tree.find(arguments.nova)
        done = record.Record(nova)
        status = _find_status(nova, done)
        the_patch = patch.Patch(with_tests=False)
        tested = nova.release in the_patch.releases
        findings = [finding(
            'nova', 'OK' if tested else 'WARNING', str(nova.package) + (
                f', {nova.release}' if tested else
                f': the patch was not tested with {nova.release}'))]
        if status['state'] == 'not patched':
            the_patch.changes(done.read, nova.release)
    except source.Misfit as misfit:
        findings.append(finding(
            'patch', 'WRONG', 'The patch does not fit: ' +
            '; '.join(misfit.problems),
            'install a release of Nova that it was tested with: ' +
            ', '.join(sorted(the_patch.releases))))
    except graft.GraftError as error:
        findings = [finding('nova', 'WRONG', str(error))]
    else:
        if status['state'] == 'patched':
            findings.append(finding(
                'patch', *(
                    ('OK', f'nova-sheepdog {status["version"]}')
                    if status['is_current'] else
                    ('WARNING', 'it is not the patch of this nova-sheepdog, '
                     f'{graft.__version__}', apply))))
            return _run_in_nova(arguments, findings=findings)
        edited = record.EDITED in status['files'].values()
        findings.append(finding(
            'patch', 'WRONG', f'this Nova is {status["state"]}' + ''.join(
                '; ' + (STATES[state] % path).rstrip('.')
                for path, state in status['files'].items()),
            'install this Nova again' if edited else apply))
    findings.append(finding(
        'host', 'NOT_CHECKED', 'options, libvirtd, QEMU, dog, sudo, tgtd and '
        'the cluster are looked at by the patched Nova',
        f'nova-sheepdog doctor{place}, once the above is mended'))
    return OPERATORS['show_findings'](findings, arguments.json)


def _metrics(arguments):
    nova = tree.find(arguments.nova)
    if _find_status(nova, record.Record(nova))['state'] == 'patched':
        return _run_in_nova(arguments)
    # What tells that an upgrade of Nova has taken the patch away.
    OPERATORS['write'](
        '# HELP nova_sheepdog_patched Whether the Nova of this host is '
        'patched.\n# TYPE nova_sheepdog_patched gauge\n'
        'nova_sheepdog_patched 0\n', arguments.output)
