#!/usr/bin/python3
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

"""Make a virtual environment that holds a Nova with the patch in it.

The path of the environment is the last line of standard output; all else
goes to standard error.  Only the standard library is used, because this
runs before anything is installed.
"""

import argparse
import fcntl
import hashlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import guest

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = ROOT / '.cache'
GUEST = CACHE / 'guest'
# The interpreter that an ordinary user, sudo and rootwrap can reach too.
PYTHON = '/usr/bin/python3'
POLICY = pathlib.Path('/usr/sbin/policy-rc.d')


class EnvironmentFailure(Exception):
    """A step failed; the message says which and what to do."""


def releases():
    """Return the releases of Nova that have a lock file, oldest first."""
    names = [path.stem[len('nova-'):]
             for path in (ROOT / 'locks').glob('nova-*.txt')]
    return sorted(names, key=lambda name: [int(n) for n in name.split('.')])


def get_python_limit(release):
    """Return the first Python 3 that the packages of a release do not run on.

    :returns: its minor version, None if none is known
    """
    text = (ROOT / 'locks' / ('nova-%s.txt' % release)).read_text()
    found = re.search(r'^# requires-python: <3\.(\d+)$', text, re.M)
    return found and int(found.group(1))


def usable_releases():
    """Return the releases that run on this Python, oldest first."""
    return [release for release in releases() if sys.version_info[1] < (
        get_python_limit(release) or sys.maxsize)]


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(title, command, **kwargs):
    """Run a command, telling every ten seconds what it is at.

    :raises EnvironmentFailure: when it exits with anything but 0; its last
        words are in the message
    """
    say('%s ...' % title)
    started = reported = time.monotonic()
    with tempfile.TemporaryFile('w+', errors='replace') as output:
        def last_lines(count):
            output.seek(0)
            return [line.rstrip() for line in output if line.strip()][-count:]

        with subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, **kwargs) as process:
            try:
                while process.poll() is None:
                    try:
                        process.wait(1)
                    except subprocess.TimeoutExpired:
                        pass
                    if time.monotonic() - reported >= 10:
                        reported = time.monotonic()
                        say('  %3d s: %s' % (
                            reported - started,
                            ' '.join(last_lines(1))[:90] or 'working'))
            except BaseException:
                process.terminate()
                raise
        if process.returncode:
            raise EnvironmentFailure(
                '%s failed with status %d: %s\n%s' % (
                    title, process.returncode,
                    ' '.join(str(part) for part in command),
                    '\n'.join('  | ' + line for line in last_lines(25))))
    say('  done in %d s' % (time.monotonic() - started))


def apt_get(*arguments, **kwargs):
    environment = dict(os.environ, DEBIAN_FRONTEND='noninteractive',
                       LC_ALL='C.UTF-8')
    run('apt-get ' + ' '.join(arguments),
        ['apt-get', '-qq', '--yes', '-o', 'Dpkg::Use-Pty=0',
         '-o', 'DPkg::Lock::Timeout=120', *arguments], env=environment,
        **kwargs)


def install_packages(packages):
    """Install Debian packages, and let none of them start a service."""
    apt_get('update')
    # Ours are private ones, and an iSCSI target listening on every address
    # is not what somebody who runs a demo asked for.  The file holds only
    # as long as this process lives, should it ever be left behind.
    policy = '#!/bin/sh\n[ -d /proc/%d ] && exit 101\nexit 0\n' % os.getpid()
    ours = not POLICY.exists()
    try:
        if ours:
            POLICY.write_text(policy)
            POLICY.chmod(0o755)
        apt_get('install', '--no-install-recommends', *packages)
    finally:
        if ours:
            POLICY.unlink(missing_ok=True)


def system():
    """Install the Debian packages of bindep.txt that are missing.

    :raises EnvironmentFailure: without root's rights, and as run() does
    """
    if os.geteuid():
        raise EnvironmentFailure(
            'Installing Debian packages needs root: run this as root, or '
            'install what bindep.txt lists and leave --system out.')
    if not shutil.which('apt-get'):
        raise EnvironmentFailure(
            'apt-get is not here: install what bindep.txt lists by hand and '
            'leave --system out.')
    if subprocess.run([PYTHON, '-c', 'import ensurepip, venv'],
                      stderr=subprocess.DEVNULL).returncode:
        install_packages(['python3-venv'])
    listed = subprocess.run(
        [bootstrap() / 'bin/bindep', '--brief', '--file',
         ROOT / 'bindep.txt'], stdout=subprocess.PIPE,
        universal_newlines=True)
    missing = listed.stdout.split()
    if listed.returncode and not missing:
        raise EnvironmentFailure('bindep could not read bindep.txt.')
    if missing:
        install_packages(missing)
    say('Debian packages: %s' % (
        'installed ' + ' '.join(missing) if missing else 'nothing missing'))


def make_guest():
    """Make the Linux that guests of functional tests run, see guest.py.

    :raises EnvironmentFailure: if it cannot be made
    """
    checksum = hashlib.sha256(
        pathlib.Path(guest.__file__).read_bytes()).hexdigest()
    complete = GUEST / 'complete'
    if complete.exists() and complete.read_text() == checksum:
        return

    def make():
        shutil.rmtree(GUEST, ignore_errors=True)
        guest.make(GUEST, apt_get)

    failures = (EnvironmentFailure, OSError, guest.Failure,
                subprocess.CalledProcessError)
    try:
        try:
            make()
        except failures:
            # What apt-get has listed may have been replaced.
            apt_get('update')
            make()
    except failures as failure:
        raise EnvironmentFailure(
            'The Linux for guests could not be made: %s' % failure)
    complete.write_text(checksum)


def make_venv(path):
    """Make an empty virtual environment in place of what is at path."""
    shutil.rmtree(path, ignore_errors=True)
    run('Making %s' % path, [PYTHON, '-m', 'venv', path])


def bootstrap():
    """Return the path of the environment that holds uv and bindep."""
    path = CACHE / 'bootstrap'
    if not (path / 'complete').exists():
        make_venv(path)
        run('Installing uv and bindep',
            [path / 'bin/python', '-m', 'pip', 'install', 'uv', 'bindep'])
        (path / 'complete').touch()
    return path


def install(venv, *arguments):
    """Install packages into venv with uv, and if that fails with pip.

    uv takes a fifth of the time, but does not read pip's configuration, so
    on a host whose package index is known to pip alone only pip works.
    """
    environment = dict(
        os.environ, PIP_DISABLE_PIP_VERSION_CHECK='1',
        # pbr asks git for the version, and git refuses a work tree that
        # belongs to another user than root.
        GIT_CONFIG_COUNT='1', GIT_CONFIG_KEY_0='safe.directory',
        GIT_CONFIG_VALUE_0=str(ROOT))
    what = ' '.join(os.path.relpath(part, ROOT)
                    if isinstance(part, os.PathLike) else part
                    for part in arguments)
    try:
        run('uv pip install ' + what,
            # As pip does: those who run it may not write there.
            [bootstrap() / 'bin/uv', 'pip', 'install', '--compile-bytecode',
             '--python', venv / 'bin/python', *arguments], env=environment)
    except EnvironmentFailure as failure:
        say('%s\nTrying again with pip.' % failure)
        run('pip install ' + what,
            [venv / 'bin/python', '-m', 'pip', 'install', *arguments],
            env=environment)


def unpack_source(release):
    """Return the path of the source of that release of Nova.

    It has what is not installed: the documentation, and how Nova checks
    itself.

    :raises EnvironmentFailure: as prepare() does
    """
    path = CACHE / ('source-' + release)
    if not path.exists():
        # It has what the source needs to tell its name.
        venv = prepare(release)
        with tempfile.TemporaryDirectory(dir=CACHE) as directory:
            run('Downloading the source of Nova ' + release,
                [venv / 'bin/python', '-m', 'pip', 'download', '--no-deps',
                 '--no-binary', 'nova', '--no-build-isolation', '--dest',
                 directory, 'nova==' + release])
            archive, = pathlib.Path(directory).glob('nova-*.tar.gz')
            shutil.unpack_archive(archive, directory)
            (pathlib.Path(directory) / ('nova-' + release)).rename(path)
    return path


def prepare(release, pristine=False):
    """Return the path of an environment with that release of Nova.

    It is made when it is missing or its lock file has changed since, and
    the patch of this work tree is applied to its Nova unless pristine.

    :raises EnvironmentFailure: when the release has no lock file, and as
        run() does
    """
    lock = ROOT / 'locks' / ('nova-%s.txt' % release)
    if not lock.exists():
        raise EnvironmentFailure(
            'There is no lock file for Nova %s: give one of %s.' % (
                release, ', '.join(releases())))
    if release not in usable_releases():
        raise EnvironmentFailure(
            'Nova %s needs a Python before 3.%d, and this is 3.%d; give one '
            'of %s.' % (release, get_python_limit(release),
                        sys.version_info[1], ', '.join(usable_releases())))
    path = CACHE / ('nova-%s%s' % (release, '-pristine' if pristine else ''))
    complete = path / 'complete'
    checksum = hashlib.sha256(lock.read_bytes()).hexdigest()
    if not complete.exists() or complete.read_text() != checksum:
        make_venv(path)
        # The lock is complete, so nothing has to be resolved.
        install(path, '--no-deps', '-r', lock)
        if not pristine:
            install(path, '-c', lock, '-e', ROOT)
        # By which an old setuptools has whoever imports distutils import all
        # of setuptools: each nova-rootwrap of 26.2.2 twice as long.
        for hook in path.glob('lib/python3*/site-packages/'
                              'distutils-precedence.pth'):
            hook.unlink()
        complete.write_text(checksum)
    if not pristine:
        # Beside the other filters of this Nova, and not in those of a Nova
        # that the host itself may have.
        configuration = path / 'etc/rootwrap.conf'
        text = '[DEFAULT]\nfilters_path=%s\n' % (path / 'etc/nova/rootwrap.d')
        # A suite may run there already.
        if not configuration.exists() or configuration.read_text() != text:
            configuration.write_text(text)
        run('Patching Nova %s' % release,
            [path / 'bin/nova-sheepdog', 'apply', '--with-tests',
             '--rootwrap-conf', configuration])
    return path


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description='Make a virtual environment under .cache/ with a patched '
                    'Nova and all that it needs, or use the one that is '
                    'there, and print its path.')
    parser.add_argument(
        'release', nargs='?', choices=releases(),
        help='release of Nova; none: make no environment')
    parser.add_argument(
        '--pristine', action='store_true',
        help='leave Nova as its release is, in an environment of its own')
    parser.add_argument(
        '--source', action='store_true',
        help='unpack the source of that release, and print the path of this '
             'instead')
    parser.add_argument(
        '--system', action='store_true',
        help='first install the Debian packages of bindep.txt that are '
             'missing (needs root)')
    parser.add_argument(
        '--guest', action='store_true',
        help='make the Linux that guests of functional tests run, of '
             'packages of Debian that are not installed')
    options = parser.parse_args(arguments)
    if options.source and not options.release:
        parser.error('give a release with --source')
    if not (options.release or options.system or options.guest):
        parser.error('give a release, --system or --guest, or several')

    # So that clean-ups run and the child ends when this is ended.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    # What is made here is used by a user who is not its owner.
    os.umask(0o022)
    try:
        CACHE.mkdir(exist_ok=True)
        with open(CACHE / 'lock', 'w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if options.system:
                system()
            if options.guest:
                make_guest()
            if options.source:
                print(unpack_source(options.release))
            elif options.release:
                print(prepare(options.release, options.pristine))
    except EnvironmentFailure as failure:
        say(str(failure))
        return 1
    except KeyboardInterrupt:
        say('Interrupted.')
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
