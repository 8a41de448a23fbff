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

"""Runs commands as root, by the daemon of rootwrap where sudo allows it.

nova-rootwrap starts sudo and a Python for each command, which takes some
0.15 s; the daemon takes 1 ms. Both read the same rootwrap.conf and filters.
"""

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

import nova.conf
from nova.i18n import _
from nova import utils

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)


class RootRunner:
    """Runs so many commands as root at once, and has others wait.

    oslo.rootwrap's client runs one command after the other. So each of the
    commands that run at once has a client, and thus a daemon, of its own. They
    are made when they are needed, and go when they are not.
    """

    # Seconds after which a daemon is ended that was not needed. rootwrap.conf
    # has it end by itself after 600, and its client would warn of that.
    IDLE = 300

    def __init__(self, limit, root_helper, daemon=None):
        """:param limit: how many commands may run at once
        :param root_helper: what runs one command as root
        :param daemon: list of words, the command that starts a daemon; None
            to have none
        """
        self._slots = threading.BoundedSemaphore(limit)
        self._root_helper = root_helper
        self._daemon = daemon
        self._lock = threading.Lock()
        # Pairs of a client and the time of its last call. The last one is the
        # next one to be used, so that the first ones get old.
        self._idle = []

    def execute(self, *command, title, data=None):
        """Run a command as root.

        :param command: the command and its arguments
        :param title: what the log calls it
        :param data: str or bytes for its standard input
        :returns: its standard output and standard error
        :raises: processutils.ProcessExecutionError if its exit status is not
            0; what it is if rootwrap refuses does not depend on the daemon
        """
        asked = time.monotonic()
        with self._slots:
            started = time.monotonic()
            try:
                return self._execute(command, data)
            finally:
                LOG.debug("'%(title)s' took %(seconds).3f s, after it waited "
                          "%(waited).3f s for others",
                          {'title': title, 'waited': started - asked,
                           'seconds': time.monotonic() - started})

    def _execute(self, command, data):
        if self._daemon:
            try:
                result = self._ask_daemon(command, data)
            except managers.RemoteError as e:
                # It did not run it. As a rule it refused it, and fails to say
                # so to its standard error, which it has closed (seen in
                # oslo.rootwrap 6.3.1 and 7.10.0 unless use_syslog is set).
                # nova-rootwrap refuses it in words.
                LOG.debug('nova-rootwrap-daemon: %s', e)
            # It is a bare one that the client raises if sudo refuses.
            except Exception as e:
                self._do_without(e)
            else:
                return self._evaluate(command, *result)
        return processutils.execute(
            *command, process_input=data, run_as_root=True,
            root_helper=self._root_helper)

    def _ask_daemon(self, command, data):
        # Who is interrupted does not give it back, and so ends its daemon: it
        # might answer the next command with what is left of this one.
        daemon = self._take() or client.Client(self._daemon)
        result = daemon.execute(list(command), data)
        with self._lock:
            if self._daemon:
                self._idle.append((daemon, time.monotonic()))
        return result

    def _take(self):
        """Return a client that is idle, if there is one."""
        with self._lock:
            before = self._idle
            self._idle = [(daemon, used) for daemon, used in before
                          if time.monotonic() - used < self.IDLE]
            return self._idle.pop()[0] if self._idle else None

    @staticmethod
    def _evaluate(command, status, out, err):
        if status < 0:
            # as nova-rootwrap and shells tell of a signal
            status = 128 - status
        if not err:
            # The daemon keeps to itself what nova-rootwrap says.
            reason = {cmd.RC_UNAUTHORIZED: 'Unauthorized command',
                      cmd.RC_NOEXECFOUND: 'Executable not found'}.get(status)
            err = reason and 'nova-rootwrap-daemon: %s: %s' % (
                reason, ' '.join(command)) or err
        if status:
            raise processutils.ProcessExecutionError(
                stdout=out, stderr=err, exit_code=status,
                cmd=' '.join(command))
        return out, err

    def _do_without(self, error):
        if self._daemon:
            program, configuration = self._daemon[-2:]
            self.stop()
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
        """End the daemons; what still has to be run is run without one."""
        with self._lock:
            self._daemon = None
            # A client ends its daemon when nothing refers to it any more.
            self._idle = []


_runner = None


def start():
    """Read the options, and forget what was found out before."""
    global _runner
    stop()
    root_helper = utils.get_root_helper()
    daemon = None
    if os.geteuid() and not CONF.workarounds.disable_rootwrap:
        # No terminal is there to give a password.
        daemon = ['sudo', '-n', 'nova-rootwrap-daemon', CONF.rootwrap_config]
    _runner = RootRunner(
        CONF.libvirt.images_sheepdog_max_calls, root_helper,
        daemon)


def stop():
    """End the daemons of this process, as it is about to end itself."""
    if _runner:
        _runner.stop()


def execute(*command, **kwargs):
    """See RootRunner.execute()."""
    if not _runner:
        start()
    return _runner.execute(*command, **kwargs)
