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

"""Run a command beside a private libvirtd and tgtd, and leave nothing.

Everything happens in a network, a process and a mount namespace of its own,
so it reaches no Sheepdog cluster but the one that was named, and it ends with
this process however that ends: the kernel ends what runs there and drops what
was mounted.
"""

import argparse
import os
import pathlib
import pwd
import shutil
import signal
import subprocess
import sys

import inside
import network

PROGRAMS = ('ip', 'libvirtd', 'mount', 'nsenter', 'qemu-system-x86_64',
            'setpriv', 'sudo', 'tgtadm', 'tgtd', 'unshare')


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog='python3 tools/testbed',
        description='Start a private libvirtd and tgtd on loopback, and run '
                    'COMMAND beside them as a user who may call nothing but '
                    'nova-rootwrap as root.',
        epilog='COMMAND finds in its environment: TESTBED_CONTROL, the '
               'socket at which "start|stop|kill|restart libvirtd|tgtd", '
               '"hide|show dog|tgtadm", "targets" and "guests" are asked for, '
               'a line each way, and so are "hosts NAME=SHEEP NAME=SHEEP", '
               'for two more hosts that find the sheep of a cluster at '
               'SHEEP, ADDRESS:PORT,ADDRESS:PORT..., "hosts" to end them, '
               '"run NAME COMMAND" in one of them, and "signal NAME SIGNAL '
               '[PROGRAM]" for its QEMU processes or those of a program; '
               'TESTBED_PORTAL, ADDRESS:PORT of tgtd; TESTBED_LOGS, a '
               'directory; '
               'TESTBED_GUEST, where the Linux of "tools/environment.py '
               '--guest" is; '
               'TESTBED_ROOTWRAP_DAEMON, empty where sudo does not allow '
               'it; HOME and TMPDIR of its own; VENV/bin first in its PATH. '
               'libvirtd is qemu:///system, and /etc/nova holds what '
               'VENV/etc/nova does.')
    parser.add_argument(
        '--venv', required=True, type=pathlib.Path,
        help='environment with the Nova to use')
    parser.add_argument(
        '--dog', type=pathlib.Path,
        help='the dog to use (default: the one of the simulated cluster in '
             'this Nova)')
    parser.add_argument(
        '--sheepdog', action='append', default=[], metavar='HOST:PORT',
        type=network.parse,
        help='a sheep of a cluster that COMMAND shall reach, and with it all '
             'sheep that this cluster has now; may be given again, for '
             'another one (default: none)')
    parser.add_argument(
        '--user', default='nobody', type=pwd.getpwnam,
        help='user who runs COMMAND and the guests (default: nobody)')
    parser.add_argument(
        '--rootwrap-daemon', action='store_true',
        help='allow nova-rootwrap-daemon as well')
    parser.add_argument(
        '--inside', action='store_true', help=argparse.SUPPRESS)
    parser.add_argument('command', metavar='COMMAND', nargs='+')
    options = parser.parse_args(arguments)
    options.venv = options.venv.absolute()
    if not (options.venv / 'bin/nova-rootwrap').exists():
        parser.error('--venv: %s has no bin/nova-rootwrap; '
                     'tools/environment.py makes one that has'
                     % options.venv)
    if options.dog:
        options.dog = options.dog.absolute()
    else:
        options.dog = next(options.venv.glob(
            'lib/python3*/site-packages/nova/tests/fixtures/sheepdog/dog'),
            None)
    if not (options.dog and os.access(options.dog, os.X_OK)):
        parser.error('--dog: %s cannot be run' % (
            options.dog or 'what is not given, and is not in this Nova,'))
    if os.geteuid():
        parser.error('this needs root: namespaces, libvirtd and tgtd do')
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if missing:
        parser.error('not found: %s; tools/environment.py --system installs '
                     'what is missing' % ', '.join(missing))
    return options


def main():
    options = parse(sys.argv[1:])
    if options.inside:
        return inside.run(options)
    sheep = []
    for gateway in options.sheepdog:
        try:
            sheep += network.find_sheep(options.dog, gateway)
        except (OSError, ValueError, subprocess.SubprocessError) as failure:
            sys.exit('testbed: the sheep of the cluster at %s:%d cannot be '
                     'found: %s' % (*gateway, failure))

    def stop(number, frame):
        sys.exit(128 + number)

    for number in signal.SIGTERM, signal.SIGHUP, signal.SIGALRM:
        signal.signal(number, stop)
    # It goes to COMMAND too, which has ten seconds to end in its own way.
    signal.signal(signal.SIGINT, lambda number, frame: signal.alarm(10))
    # setpriv has the kernel kill unshare should this process be killed, and
    # unshare has it kill all of the namespace should itself be.
    with network.start(
            ['setpriv', '--pdeathsig', 'KILL',
             'unshare', '--mount', '--pid', '--fork', '--kill-child',
             '--mount-proc', sys.executable, os.path.dirname(__file__),
             '--inside', *sys.argv[1:]], sheep) as process:
        return process.wait()


if __name__ == '__main__':
    sys.exit(main())
