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

"""What the test bed does inside its namespaces."""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time

import hosts
import network

BED = pathlib.Path('/run/testbed')
CONTROL = BED / 'control'
LOGS = BED / 'logs'
# In the order of the backend's path of root
DOG_DIRECTORIES = ('/usr/local/sbin', '/usr/local/bin', '/usr/sbin')
DOG = pathlib.Path(DOG_DIRECTORIES[0], 'dog')
ACTIONS = ('start', 'stop', 'kill', 'restart', 'hide', 'show')
LIBVIRT_SOCKET = '/run/libvirt/libvirt-sock'

LIBVIRTD_CONF = """\
auth_unix_rw = "none"
unix_sock_rw_perms = "0777"
"""

# libvirtd has neither cgroups nor virtlogd here, and what it would change
# on the files of a guest is the guest's user's already.
QEMU_CONF = """\
user = "%(user)s"
group = "%(group)s"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"""

SUDOERS = """\
Defaults env_reset
Defaults secure_path="%(path)s"
Defaults env_file="/etc/nova/root-environment"
%(user)s ALL = (root) NOPASSWD: %(program)s /etc/nova/rootwrap.conf *
"""
# As the README says it.
SUDOERS_DAEMON = """\
%(user)s ALL = (root) NOPASSWD: %(program)s-daemon /etc/nova/rootwrap.conf
"""


def mount(kind, target, data=None):
    target.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ['mount', '-t', kind, '-o', data or 'mode=755', kind, target],
        check=True)


def bind(source, target):
    target.mkdir(parents=True, exist_ok=True)
    subprocess.run(['mount', '--bind', source, target], check=True)


def reveal(paths):
    """Let everybody reach paths, without a change to the machine's modes.

    A checkout is often under a home that only its owner may enter.  Such a
    directory is covered by an empty one that holds nothing but the way to
    these paths.
    """
    for number, path in enumerate(paths):
        # Covering one directory hides what is below it.
        bind(path, BED / 'revealed' / str(number))
    for number, path in enumerate(paths):
        for parent in reversed(path.parents):
            if parent.exists() and not parent.stat().st_mode & 0o001:
                mount('tmpfs', parent)
        if not path.exists():
            bind(BED / 'revealed' / str(number), path)


def private_directories():
    """Cover what libvirtd, tgtd and sudo read and write."""
    mount('tmpfs', pathlib.Path('/run'))
    for path in ('/etc', *DOG_DIRECTORIES, '/var/lib', '/var/log',
                 '/var/cache'):
        layer = BED / 'layers' / path.replace('/', '-')
        for part in 'upper', 'work':
            (layer / part).mkdir(parents=True)
        mount('overlay', pathlib.Path(path),
              'lowerdir=%s,upperdir=%s/upper,workdir=%s/work' % (
                  path, layer, layer))
    for path in ('/etc/libvirt', '/etc/nova', '/var/lib/libvirt',
                 '/var/log/libvirt', '/var/cache/libvirt', '/run/tgtd'):
        mount('tmpfs', pathlib.Path(path))
    # libvirtd finds it as root and misses it as the user of the guests; each
    # time it does, it asks QEMU anew what it can do, which takes a second.
    kvm = pathlib.Path('/dev/kvm')
    if kvm.exists():
        nothing = BED / 'kvm'
        nothing.touch(mode=0)
        subprocess.run(['mount', '--bind', nothing, kvm], check=True)


def write(path, text, mode=0o644):
    path = pathlib.Path(path)
    path.write_text(text)
    path.chmod(mode)


def configure(options, path):
    """Write what libvirtd, sudo and rootwrap read."""
    user = options.user.pw_name
    write('/etc/libvirt/libvirtd.conf', LIBVIRTD_CONF)
    write('/etc/libvirt/qemu.conf', QEMU_CONF % {
        'user': '+%d' % options.user.pw_uid,
        'group': '+%d' % options.user.pw_gid})

    nova = options.venv / 'etc/nova'
    shutil.copytree(nova, '/etc/nova', dirs_exist_ok=True)
    # Where the backend looks for what it runs as root, before any other that
    # the machine may have; while it is hidden there is none.
    for directory in DOG_DIRECTORIES:
        dog = pathlib.Path(directory, 'dog')
        if dog.exists() and not dog.samefile(options.dog):
            dog.unlink()
    if not DOG.exists():
        DOG.symlink_to(options.dog)

    program = str(options.venv / 'bin/nova-rootwrap')
    for character in '\\ ,:=':
        program = program.replace(character, '\\' + character)
    os.unlink('/etc/sudoers')
    # The directory of a daemon that is killed goes with the bed.
    write('/etc/nova/root-environment', 'TMPDIR=%s\n' % BED)
    write('/etc/sudoers', (
        SUDOERS + (SUDOERS_DAEMON if options.rootwrap_daemon else '')) % {
            'user': user, 'path': path, 'program': program}, 0o440)
    for database, entry in (
            # sudo looks its host up, and no resolver need be there to answer.
            ('hosts', '127.0.0.1 %s\n' % socket.gethostname()),
            # libvirtd looks these up, whatever qemu.conf says. In Debian they
            # come with libvirt-daemon-system, which would start a libvirtd.
            ('passwd', 'libvirt-qemu:x:%d:%d::/:/usr/sbin/nologin\n' % (
                options.user.pw_uid, options.user.pw_gid)),
            ('group', 'libvirt-qemu:x:%d:\n' % options.user.pw_gid)):
        with open('/etc/' + database, 'a') as entries:
            entries.write(entry)


class Daemon:
    """A daemon that can be killed and started again.

    :param ready: returns true when it answers
    """

    def __init__(self, name, command, ready):
        self.name = name
        self.command = command
        self.ready = ready
        self.process = None

    def start(self):
        if self.process and self.process.poll() is None:
            return
        with open(LOGS / (self.name + '.log'), 'ab') as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log)
        deadline = time.monotonic() + 30
        while not self.ready():
            if self.process.poll() is not None:
                raise RuntimeError('%s ended with status %d, see %s/%s.log' % (
                    self.name, self.process.returncode, LOGS, self.name))
            if time.monotonic() > deadline:
                raise RuntimeError('%s does not answer' % self.name)
            time.sleep(0.05)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.process.terminate()
        try:
            # tgtd ignores it while it serves a sheepdog unit.
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.kill()

    def restart(self):
        self.stop()
        self.start()


class Program:
    """A program that can be missing for a while."""

    def __init__(self, path):
        self.path = path

    def hide(self):
        os.rename(self.path, self.path + '.hidden')

    def show(self):
        os.rename(self.path + '.hidden', self.path)


def libvirtd_answers():
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(LIBVIRT_SOCKET) == 0


def tgtadm_show():
    return subprocess.run(
        ['tgtadm', '--lld', 'iscsi', '--mode', 'target', '--op', 'show'],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        universal_newlines=True)


def targets():
    """Return the names of tgtd's targets, comma-separated."""
    shown = tgtadm_show()
    if shown.returncode:
        raise RuntimeError('tgtd does not answer')
    return ','.join(line.split()[2] for line in shown.stdout.splitlines()
                    if line.startswith('Target '))


def guests():
    """Return the guests that run and those that libvirt knows of, comma-
    separated.

    libvirtd is not asked: it may have been killed.
    """
    running = []
    for path in pathlib.Path('/proc').glob('[0-9]*/comm'):
        # Any process may have ended.
        with contextlib.suppress(OSError):
            if path.read_text().startswith('qemu-system'):
                running.append('process %s' % path.parent.name)
    return ','.join(running + [
        path.stem for path in pathlib.Path('/etc/libvirt/qemu').glob('*.xml')])


def serve(controlled, user, environment):
    """Answer requests at the control socket.

    :param controlled: dict of Daemons and Programs by name
    :param user: pwd entry of who runs commands in a host
    :param environment: what these commands get
    """
    lock = threading.Lock()
    made = {}

    def make_hosts(*words):
        for host in made.values():
            host.end()
        made.clear()
        sheep = {name: [network.parse(address)
                        for address in addresses.split(',')]
                 for name, _equals, addresses in (
                     word.partition('=') for word in words)}
        with open(LOGS / 'hosts.log', 'ab') as log:
            made.update(hosts.make(sheep, log))

    def run_in_host(name, *command):
        with open(LOGS / (name + '.log'), 'ab') as log:
            subprocess.Popen(made[name].command(*command, user=user),
                             env=environment, stdin=subprocess.DEVNULL,
                             stdout=log, stderr=log)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            words = self.rfile.readline().decode().split()
            try:
                with lock:
                    if words == ['targets']:
                        answer = 'ok ' + targets()
                    elif words == ['guests']:
                        answer = 'ok ' + guests()
                    elif words[0] == 'hosts':
                        make_hosts(*words[1:])
                        answer = 'ok'
                    elif words[0] == 'signal':
                        made[words[1]].signal(*words[2:])
                        answer = 'ok'
                    elif words[0] == 'run':
                        run_in_host(*words[1:])
                        answer = 'ok'
                    else:
                        action, name = words
                        if action not in ACTIONS:
                            raise ValueError('no such action: ' + action)
                        getattr(controlled[name], action)()
                        answer = 'ok'
            except Exception as failure:
                answer = 'error %s: %s' % (type(failure).__name__, failure)
            self.wfile.write(answer.encode() + b'\n')

    server = socketserver.ThreadingUnixStreamServer(str(CONTROL), Handler)
    CONTROL.chmod(0o777)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def concurrency(venv):
    """Return the variable that selects what nova-compute's default is.

    Nova's tests choose eventlet when it is not set, in every release.
    """
    threading_mode = any(
        "patch(backend='threading')" in path.read_text()
        for path in venv.glob('lib/python3*/site-packages/nova/cmd/'
                              'compute.py'))
    return {'OS_NOVA_DISABLE_EVENTLET_PATCHING': '1' if threading_mode
            else '0'}


def supervise(options):
    """Start the daemons, run COMMAND, return its exit status."""
    # The command's user gets Ctrl-C too; this one waits for it to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    private_directories()
    repository = pathlib.Path(__file__).resolve().parents[2]
    revealed = [repository, options.venv]
    # What it needs of its own is beside it.
    revealed.append(options.dog.resolve().parent.parent)
    reveal(revealed)
    path = ('%s/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:'
            '/bin' % options.venv)
    configure(options, path)

    home, temporary = BED / 'home', BED / 'tmp'
    for directory in home, temporary, LOGS:
        directory.mkdir()
        os.chown(directory, options.user.pw_uid, options.user.pw_gid)
    portal = '127.0.0.1:3260'
    daemons = {
        'libvirtd': Daemon('libvirtd', ['libvirtd'], libvirtd_answers),
        'tgtd': Daemon(
            'tgtd', ['tgtd', '-f', '--iscsi', 'portal=' + portal],
            lambda: tgtadm_show().returncode == 0),
    }
    for daemon in daemons.values():
        daemon.start()

    environment = dict(os.environ, **concurrency(options.venv))
    environment.update(
        PATH=path, HOME=str(home), TMPDIR=str(temporary),
        TESTBED_CONTROL=str(CONTROL), TESTBED_PORTAL=portal,
        TESTBED_LOGS=str(LOGS), TESTBED_GUEST=str(repository / '.cache/guest'),
        TESTBED_ROOTWRAP_DAEMON='1' if options.rootwrap_daemon else '')
    serve(dict(daemons, dog=Program(str(DOG)),
               tgtadm=Program('/usr/sbin/tgtadm')),
          options.user, environment)
    return subprocess.run(
        options.command, env=environment, cwd=home, user=options.user.pw_uid,
        group=options.user.pw_gid, extra_groups=(),
        # An interrupt that the supervisor ignores is COMMAND's to take.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ).returncode


def run(options):
    """Be the first process of the namespace: reap what others leave.

    :returns: the exit status of COMMAND
    """
    supervisor = os.fork()
    if not supervisor:
        status = 1
        try:
            status = supervise(options)
        except Exception as failure:
            print('testbed: %s' % failure, file=sys.stderr)
        finally:
            sys.stderr.flush()
            os._exit(status if status >= 0 else 128 - status)
    # libvirt takes a guest that nobody waits for to be running still.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        process, status = os.wait()
        if process == supervisor:
            return os.waitstatus_to_exitcode(status)
