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

"""Starts a command as nova-compute starts: with its nova.conf."""

import logging
import os
import pwd
import sys

from oslo_config import cfg

from nova import config
from nova import exception
from nova.i18n import _
from nova import objects


class Failure(Exception):
    """A command cannot go on; the message says what to do."""


def configure(files=None):
    """Read what nova-compute reads.

    :param files: paths of its configuration; None for those that are there
    :raises: Failure if one cannot be read
    """
    files = files or cfg.find_config_files('nova', 'nova-compute')
    directories = cfg.find_config_dirs('nova', 'nova-compute')
    try:
        # The names of the options are Nova's own.
        config.parse_args(
            ['nova-compute', *('--config-file=' + path for path in files),
             *('--config-dir=' + path for path in directories)],
            configure_db=False, init_rpc=False)
    except cfg.Error as e:
        raise Failure(_(
            '%s. Name the configuration of nova-compute with --config-file, '
            'and run this as a user who may read it') % e)
    # What is wrong is told once, by the command.
    logging.disable()
    objects.register_all()


def become(user):
    """Go on as another user, if this is root.

    :param user: name of the user
    :raises: Failure if there is none
    """
    if os.geteuid():
        return
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        raise Failure(_('There is no user %s; say with --user who runs '
                        'nova-compute') % user)
    os.initgroups(user, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


def run(command, arguments):
    """Run a command, and tell of what is wrong in one line.

    :param command: its module
    :param arguments: what its parser returned
    :returns: exit status
    """
    try:
        return command.run(arguments) or 0
    except (Failure, exception.NovaException, OSError) as e:
        if isinstance(e, BrokenPipeError):
            # Python shall not try to write the rest when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        else:
            print('nova-sheepdog: %s' % e, file=sys.stderr)
    except KeyboardInterrupt:
        print('nova-sheepdog: Interrupted.', file=sys.stderr)
        return 130
    return 1
