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

"""Runs commands as root, within limits of time and number.

nova-rootwrap starts sudo and a Python for each command, which takes some
0.15 s; its daemon takes 1 ms. Both read the same rootwrap.conf and filters.
"""

from concurrent import futures
import functools
import itertools
from multiprocessing import managers
import os
import pwd
import shutil
import threading
import time

from oslo_concurrency import processutils
from oslo_log import log as logging
from oslo_rootwrap import client
from oslo_rootwrap import cmd
from oslo_serialization import jsonutils

import nova.conf
from nova.i18n import _
from nova import utils

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)

# Where root looks for dog and tgtadm. Left to sudo it might be the PATH of
# the user nova, who could have root run any program of that name.
ROOT_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
FILTERS = 'sheepdog.filters'


class CommandError(Exception):
    """A command failed.

    :ivar reason: why, in words that are fit for a fault of a server
    :ivar timed_out: whether it did not end in time
    :ivar refused_by: 'sudo' or 'rootwrap', if one of them did not allow it
    """

    def __init__(self, reason, timed_out=False, refused_by=None):
        super().__init__(reason)
        self.reason = reason
        self.timed_out = timed_out
        self.refused_by = refused_by


def limit(command, timeout, *environment):
    """Put a command into the C locale and under a time limit.

    ``timeout`` of coreutils keeps the time: nova-compute may not send a signal
    to a process that sudo started.

    :param command: the command and its arguments
    :param timeout: seconds
    :param environment: more variables, as 'NAME=value'
    :returns: the list of words to run
    """
    return ['env', 'LC_ALL=C', *environment, 'timeout', '--kill-after=5',
            str(timeout), *command]


def run(*command, timeout):
    """Run a command as the user of nova-compute.

    :param command: the command and its arguments
    :param timeout: seconds
    :returns: its standard output and standard error
    :raises: CommandError
    """
    start = time.monotonic()
    try:
        return processutils.execute(*limit(command, timeout))
    except (processutils.ProcessExecutionError, OSError) as e:
        raise explain(e, time.monotonic() - start >= timeout)


def _escape(text):
    """Make UTF-8 of what a command prints, as a fault may quote it."""
    return text.encode('utf-8', 'backslashreplace').decode()


def join_lines(text):
    """Put what a command says into one line that can be stored as a fault.

    :param text: what it says, which need not be UTF-8; or None
    """
    text = _escape(text or '')
    # dog says some things twice.
    return '; '.join(dict.fromkeys(text.strip().splitlines()))


def explain(error, is_late):
    """Make the CommandError of what running a command raised.

    :param error: a ProcessExecutionError or OSError
    :param is_late: whether the time limit has passed
    :returns: the CommandError
    """
    if isinstance(error, OSError):
        return CommandError(str(error))
    said = join_lines(error.stderr)
    # timeout killed it, or the kernel for want of memory. Without rootwrap the
    # status is -9.
    was_killed = error.exit_code in (137, -9)
    if error.exit_code == 124 or was_killed and is_late:
        return CommandError(
            _('no answer within [libvirt]images_sheepdog_timeout'),
            timed_out=True)
    if error.exit_code == cmd.RC_UNAUTHORIZED and 'Unauthorized' in said:
        return CommandError(
            _('rootwrap does not allow it: install %s where the filters_path '
              'of rootwrap.conf looks') % FILTERS, refused_by='rootwrap')
    if said.startswith('sudo: ') and 'required' in said:
        return CommandError(
            _('sudo does not let this user run nova-rootwrap without a '
              'password; allow it in a file in /etc/sudoers.d (%s)') % said,
            refused_by='sudo')
    if error.exit_code == 127:
        return CommandError(
            _('it is not installed where it is looked for, in %(path)s: '
              '%(error)s') % {'path': ROOT_PATH, 'error': said})
    return CommandError(said or join_lines(error.stdout) or
                        _('exit status %s') % error.exit_code)


class Runner:
    """Runs at most so many commands as root at once; others wait.

    Each worker has a daemon of rootwrap and a connection of its own, because
    oslo.rootwrap's client runs one command after the other. A daemon that is
    not used ends by itself, after the daemon_timeout of rootwrap.conf.
    """

    def __init__(self, limit, root_helper, daemon=None):
        """:param limit: number of commands that may run at once
        :param root_helper: what runs one command as root
        :param daemon: command that starts a daemon, a list; None for none
        """
        self._root_helper = root_helper
        self._daemon = daemon
        self._workers = futures.ThreadPoolExecutor(limit)
        # For what must not wait until a slow cluster has answered others.
        self._urgent = futures.ThreadPoolExecutor(1)
        # By worker. Not a threading.local(): eventlet would empty it in its
        # main loop, where a client cannot end its daemon.
        self._clients = {}
        # By subcommand.
        self._calls = {}
        self._calls_lock = threading.Lock()

    def execute(self, *command, timeout, data=None, urgent=False,
                check=None):
        """Run a command as root.

        :param command: the command and its arguments
        :param timeout: seconds it may take once it has started
        :param data: text for its standard input
        :param urgent: whether it does not wait for others
        :param check: function called when its turn has come; the command is
            not run if that raises an exception
        :returns: its standard output and standard error
        :raises: CommandError, or what check raises
        """
        workers = self._urgent if urgent else self._workers
        try:
            call = workers.submit(self._run, command, timeout, data, check,
                                  time.monotonic())
        except RuntimeError:
            raise CommandError(_('nova-compute is about to end'))
        return call.result()

    def _run(self, command, timeout, data, check, asked):
        start = time.monotonic()
        if check:
            check()
        try:
            out, err = self._execute(
                limit(command, timeout, 'PATH=' + ROOT_PATH), data)
            return _escape(out), err
        except (processutils.ProcessExecutionError, OSError) as e:
            raise explain(e, time.monotonic() - start >= timeout)
        finally:
            self._note(command, calls=1, waited=start - asked,
                       seconds=time.monotonic() - start)
            LOG.debug("'%(command)s' took %(seconds).3f s, after it waited "
                      "%(waited).3f s for others",
                      {'command': ' '.join(command), 'waited': start - asked,
                       'seconds': time.monotonic() - start})

    def _note(self, command, **more):
        """Add to what save_calls() tells of a subcommand."""
        # dog vdi clone -a HOST ..., and tgtadm --lld iscsi --mode target --op
        # new ...
        words = (itertools.takewhile(lambda word: word[0] != '-', command)
                 if command[0] == 'dog' else command[0:7:2])
        name = ' '.join(word for word in words if word != 'iscsi')
        with self._calls_lock:
            counts = self._calls.setdefault(name, {
                'calls': 0, 'failures': 0, 'seconds': 0.0, 'waited': 0.0})
            for key, value in more.items():
                counts[key] += value

    def note_failure(self, command):
        """Note that a command failed; not all that do not succeed did.

        :param command: the command and its arguments
        """
        self._note(command, failures=1)

    def save_calls(self, path):
        """Write what was called, for "nova-sheepdog metrics".

        :param path: of the file to write
        """
        with self._calls_lock:
            text = jsonutils.dumps(self._calls)
        try:
            with open(path + '.new', 'w') as file:
                file.write(text)
            os.replace(path + '.new', path)
        except OSError as e:
            LOG.warning('Cannot tell which commands were called: %s', e)

    @property
    def uses_daemon(self):
        """Whether the next command is run by rootwrap's daemon."""
        return self._daemon is not None

    def _execute(self, command, data):
        if self._daemon:
            try:
                result = self._get_client().execute(list(command), data)
            except managers.RemoteError as e:
                # As a rule the daemon refused the command, and fails to say
                # so to its standard error, which it has closed (oslo.rootwrap
                # 6.3.1 and 7.10.0 unless use_syslog is set). nova-rootwrap
                # refuses it in words.
                LOG.debug('nova-rootwrap-daemon: %s', e)
            # The client raises a bare Exception if sudo refuses.
            except Exception as e:
                self._do_without(e)
            else:
                return self._evaluate(command, *result)
        return processutils.execute(
            *command, process_input=data, run_as_root=True,
            root_helper=self._root_helper)

    def _get_client(self):
        """Return the client of this worker."""
        worker = threading.get_ident()
        if worker not in self._clients:
            self._clients[worker] = client.Client(self._daemon)
        return self._clients[worker]

    @staticmethod
    def _evaluate(command, status, out, err):
        """Return or raise what processutils.execute() would have."""
        if status < 0:
            # as nova-rootwrap and shells tell of a signal
            status = 128 - status
        if not err:
            # The daemon keeps to itself what nova-rootwrap says.
            reason = {cmd.RC_UNAUTHORIZED: 'Unauthorized command',
                      cmd.RC_NOEXECFOUND: 'Executable not found'}.get(status)
            err = reason and '%s: %s' % (reason, ' '.join(command)) or err
        if status:
            raise processutils.ProcessExecutionError(
                stdout=out, stderr=err, exit_code=status,
                cmd=' '.join(command))
        return out, err

    def _do_without(self, error):
        """Run commands by nova-rootwrap from now on, and tell how to mend it.
        """
        daemon, self._daemon = self._daemon, None
        if daemon:
            program, configuration = daemon[-2:]
            LOG.info(
                'Running dog and tgtadm by nova-rootwrap, which makes each '
                'call 0.15 s longer than its daemon does. To have the daemon, '
                'put this into a file in /etc/sudoers.d and restart '
                'nova-compute: "%(user)s ALL = (root) NOPASSWD: %(program)s '
                '%(configuration)s". Why not now: %(error)s',
                {'user': pwd.getpwuid(os.geteuid()).pw_name,
                 'program': shutil.which(program) or program,
                 'configuration': configuration,
                 # The client may be too quick to see that sudo has ended, and
                 # then finds no socket.
                 'error': _('sudo did not start it (%s)') % error
                 if isinstance(error, OSError) else
                 ' '.join(str(error).split())})

    def stop(self):
        """Let the workers end, and then their daemons."""
        for workers in self._workers, self._urgent:
            workers.shutdown(wait=False)
        threading.Thread(target=self._end_daemons, daemon=True).start()

    def _end_daemons(self):
        for workers in self._workers, self._urgent:
            workers.shutdown()
        # A client ends its daemon when nothing refers to it any more.
        self._clients.clear()


@functools.lru_cache(maxsize=None)
def get_runner():
    """Return the Runner of this process, made as nova.conf says.

    There is one for a process, as it keeps a limit of the process.
    """
    daemon = None
    if os.geteuid() and not CONF.workarounds.disable_rootwrap:
        # No terminal is there to give a password.
        daemon = ['sudo', '-n', 'nova-rootwrap-daemon', CONF.rootwrap_config]
    return Runner(CONF.libvirt.images_sheepdog_max_calls,
                  utils.get_root_helper(), daemon)


def get_calls_path():
    """Return the path of the file that Runner.save_calls() is to write."""
    # Beside what imports of this host need, which goes when they end.
    return os.path.join(CONF.instances_path, '_sheepdog',
                        CONF.host + '.calls.json')


def execute(*command, **kwargs):
    """See Runner.execute()."""
    return get_runner().execute(*command, **kwargs)


def note_failure(command):
    """See Runner.note_failure()."""
    get_runner().note_failure(command)


def stop():
    """End the daemons of this process, as it is about to end itself."""
    if get_runner.cache_info().currsize:
        get_runner().stop()
        get_runner.cache_clear()
