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

"""The options of "nova-sheepdog vdis", "doctor" and "metrics", and the start.

nova-sheepdog itself reads this file for its own --help, where Nova need not
be installed: hence no import of Nova here before a command runs.
"""

import argparse
import importlib
import json
import os
import sys
import tempfile

# States of what doctor has looked at.
OK = 'ok'
WARNING = 'warning'
WRONG = 'wrong'
NOT_CHECKED = 'not checked'


def add_commands(add):
    """Describe the commands.

    :param add: function that makes the parser of a command, of its name, its
        summary and the rest of its description
    """
    vdis = add(
        'vdis', 'List what Nova has in the Sheepdog cluster',
        'It is for a compute host. Which servers there are it asks Nova\'s '
        'API, if the OS_* variables of an administrator or --os-cloud say '
        'how. Else it asks the conductor that nova-compute of this host '
        'uses, which knows the servers of its cell alone. OWN and SHARED are '
        'the bytes of data that only this VDI has and that it shares with '
        'others, copies not counted; TRANSPORT is how this host reaches it. '
        'An orphan belongs to a server that Nova does not have. Exit status: '
        '0; 1 after an error, or when an orphan could not be deleted.')
    _add_configuration(vdis)
    _add_api(vdis)
    vdis.add_argument(
        '--host', metavar='ADDRESS', help='IPv4 address of a sheep daemon '
        '(default: [libvirt] images_sheepdog_host of the configuration)')
    vdis.add_argument(
        '--port', type=int, help='its TCP port (default: [libvirt] '
        'images_sheepdog_port of the configuration)')
    vdis.add_argument(
        '--json', action='store_true', help='print a JSON list, an object '
        'for each VDI; sizes in bytes, times in seconds of the epoch')
    vdis.add_argument(
        '--clean', action='store_true', help='delete the orphans, after they '
        'were shown and you said yes. Snapshots that Nova did not take stay, '
        'and so does every orphan with a VDI or snapshot younger than 10 '
        'minutes. Never use it where two Novas share a cluster: to each of '
        'them the disks of the other are orphans')
    vdis.add_argument(
        '--yes', action='store_true', help='do not ask before --clean deletes')

    doctor = add(
        'doctor', 'Say what is wrong with this compute host, and what mends '
        'it',
        'It is for a compute host, before and after nova-compute starts, as '
        'root. It looks at the host as nova-compute does, changes nothing, '
        'and does not need Nova\'s API. Exit status: 0 when nothing is '
        'wrong, else 1; a warning is nothing wrong.')
    _add_configuration(doctor)
    doctor.add_argument(
        '--user', default='nova', help='who runs nova-compute (default: '
        'nova); counts for root only, as others look as themselves')
    doctor.add_argument(
        '--json', action='store_true', help='print a JSON list, an object '
        'for each thing that was looked at')

    metrics = add(
        'metrics', 'Print figures of this host for Prometheus',
        'They are in the format of node-exporter\'s textfile collector: '
        'targets, guests that hang, and the calls of dog and tgtadm that '
        'nova-compute made; with --cluster also the room in the cluster, its '
        'VDIs, orphans and base images. Exit status: 0 also when a service '
        'did not answer, which nova_sheepdog_up then says.')
    _add_configuration(metrics)
    _add_api(metrics)
    metrics.add_argument(
        '--cluster', action='store_true', help='tell of the cluster as well: '
        'for one host of each cluster, as it reads the inode of every VDI')
    metrics.add_argument(
        '--output', metavar='FILE', help='replace this file at once, rather '
        'than print')


def _add_configuration(command):
    command.add_argument(
        '--config-file', metavar='FILE', action='append',
        help='configuration of nova-compute; may be given again (default: '
        'what nova-compute itself reads, mostly /etc/nova/nova.conf and '
        '/etc/nova/nova-compute.conf)')


def _add_api(command):
    command.add_argument(
        '--os-cloud', metavar='NAME', help='cloud of clouds.yaml whose Nova '
        'to ask for the servers')


def show_findings(findings, as_json):
    """Print what doctor has found.

    :param findings: list of dicts: 'check', 'state', 'text' and 'remedy',
        which is None where nothing is to be done
    :param as_json: whether a program reads it
    :returns: exit status
    """
    if as_json:
        # The tool that patches Nova has no oslo.serialization.
        print(json.dumps(findings, indent=1))  # noqa: N324
    else:
        for finding in findings:
            print('%(state)-12s %(check)s: %(text)s' % finding)
            if finding['remedy']:
                print('%-12s -> %s' % ('', finding['remedy']))
    return 1 if any(finding['state'] == WRONG for finding in findings) else 0


def write(text, path):
    """Print what metrics has made, or replace a file by it.

    :param text: what to write
    :param path: path of the file, None to print it
    :raises: OSError
    """
    if path is None:
        sys.stdout.write(text)
        return
    # A collector sees the old file or the new one.
    with tempfile.NamedTemporaryFile(
            'w', dir=os.path.dirname(path) or '.', prefix='.', suffix='.new',
            delete=False) as file:
        try:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
            file.flush()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def run(arguments):
    """Run a command.

    :param arguments: what its parser returned, and 'command', its name
    :returns: exit status
    """
    package = 'nova.virt.libvirt.sheepdog.commands'
    try:
        start = importlib.import_module(package + '.start')
        command = importlib.import_module(
            '%s.%s' % (package, arguments.command))
    except ImportError as e:
        print('nova-sheepdog: %s cannot run this Nova: %s. Run the '
              'nova-sheepdog of its environment.' % (sys.executable, e),
              file=sys.stderr)
        return 1
    return start.run(command, arguments)


def main(argv=None):
    """Run a command without the nova-sheepdog that patches Nova.

    :param argv: its arguments; None: those of the process
    :returns: exit status
    """
    parser = argparse.ArgumentParser(prog='nova-sheepdog')
    commands = parser.add_subparsers(
        required=True, dest='command', metavar='COMMAND')
    add_commands(lambda name, summary, more: commands.add_parser(
        name, help=summary, description='%s. %s' % (summary, more)))
    return run(parser.parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
