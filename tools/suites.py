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

"""Run one test suite and count what came of it.

tox calls this; it goes on as the Python of the environment whose Nova it
tests.  The counts, and what tests have measured, are left in
.cache/results/SUITE for run_tests.sh.
"""

import argparse
import ast
from concurrent import futures
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import environment
from testbed import network

ROOT = environment.ROOT
RESULTS = environment.CACHE / 'results'
# Seconds between two lines that say how far a suite is.
PROGRESS = 10
# Lines of each detail of a failure, such as the log, that are shown.
LAST_LINES = 60
# What Nova's own tox.ini sets for its tests, and UTF-8 as it has there.
STESTR_ENVIRONMENT = {
    'LANGUAGE': 'C',
    'LC_ALL': 'C.UTF-8',
    'OS_STDOUT_CAPTURE': '1',
    'OS_STDERR_CAPTURE': '1',
    'PYTHONPATH': str(ROOT / 'tools/libyaml'),
    'PYTHONWARNINGS': 'ignore',
}
HACKING_CONFIGURATION = """\
[flake8]
# As in Nova's own tox.ini.
enable-extensions = H106,H203,H904,H905
ignore = E121,E122,E123,E124,E125,E126,E127,E128,E129,E131,E251,H405,W504,\
E731,H238
max-complexity = 40

[hacking]
import_exceptions =
    collections.abc
    nova.i18n
    typing

[flake8:local-plugins]
extension =
    %(checks)s
paths = %(directory)s
"""


class Counts:
    """What came of the tests of one suite, told as they end."""

    def __init__(self, suite):
        self.suite = suite
        self.passed = 0
        self.failed = []
        self.skipped = 0
        self._told = time.monotonic()

    def __str__(self):
        return '%d passed, %d failed, %d skipped' % (
            self.passed, len(self.failed), self.skipped)

    def success(self):
        self.passed += 1
        self._tell_now_and_then()

    def skip(self):
        self.skipped += 1
        self._tell_now_and_then()

    def failure(self, test, words):
        self.failed.append(test)
        print('\nFAILED: %s\n%s\n' % (test, words), flush=True)

    def _tell_now_and_then(self):
        if time.monotonic() - self._told >= PROGRESS:
            self._told = time.monotonic()
            print('%s: %s so far' % (self.suite, self), flush=True)


class Suite:
    """A suite and the environment it runs in.

    :param name: as names() returns them
    :param release: release of Nova
    :ivar told: what tests have measured, a line each
    """

    def __init__(self, name, release):
        self.release = release
        self.venv = environment.CACHE / ('nova-' + release)
        self.packages = next(
            self.venv.glob('lib/python3*/site-packages'), None)
        self.counts = Counts(name)
        self.told = []

    @property
    def sheep(self):
        """The sheep of the real cluster that is to be used, if any.

        :returns: list of (address, port)
        """
        if 'SHEEPDOG_DOG' not in os.environ:
            return []
        gateway = network.parse('%s:%s' % (
            os.environ.get('SHEEPDOG_HOST', network.DEFAULT[0]),
            os.environ.get('SHEEPDOG_PORT', network.DEFAULT[1])))
        return network.find_sheep(os.environ['SHEEPDOG_DOG'], gateway)

    def command(self, title, *command, **kwargs):
        """Run a command as one test, which passes if it exits with 0."""
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, universal_newlines=True, **kwargs)
        if done.returncode:
            self.counts.failure(title, done.stdout)
        else:
            self.counts.success()

    def stestr(self, top, path, arguments=(), workers=1, time_limit=160,
               through=(), venv=None, counts=None, sheep=()):
        """Run tests by stestr, in a network of its own.

        A decoy listens there at the port that sheep have by default, and
        speaking to it is a failure.

        :param top: directory that the names of the tests start from
        :param path: directory in which the tests are
        :param arguments: further arguments of ``stestr run``
        :param workers: how many processes share the tests
        :param time_limit: seconds that one test may take
        :param through: command that runs stestr
        :param venv: environment to run them in, another than the suite's
        :param counts: Counts to use instead of the suite's
        :param sheep: list of (address, port) of those that tests may reach
        """
        import subunit
        import testtools

        counts = counts or self.counts
        said = []

        class Said(testtools.StreamResult):
            def status(self, test_id=None, file_bytes=None, **_kwargs):
                if test_id is None and file_bytes:
                    said.append(bytes(file_bytes).decode(errors='replace'))

        def ended(test):
            if test['id'] == 'output' or test['status'] == 'exists':
                # A worker's own standard output, and the list of tests.
                return
            if test['status'] in ('success', 'xfail'):
                if 'told' in test['details']:
                    self.told.append(test['details']['told'].as_text())
                counts.success()
            elif test['status'] == 'skip':
                counts.skip()
            else:
                counts.failure(test['id'], '\n'.join(
                    '%s:\n%s\n' % (name, '\n'.join(
                        detail.as_text().splitlines()[-LAST_LINES:]))
                    for name, detail in sorted(test['details'].items())
                    if detail.content_type.type == 'text'))

        before = str(counts)
        command = [
            *through, (venv or self.venv) / 'bin/stestr', '--test-path', path,
            '--top-dir', top, 'run', '--subunit', '--concurrency',
            str(workers), *arguments]
        variables = dict(os.environ, OS_TEST_TIMEOUT=str(time_limit),
                         **STESTR_ENVIRONMENT)
        # It would be taken for the interpreter to test with.
        variables.pop('PYTHON', None)
        failed = len(counts.failed)
        decoy = network.Decoy()
        with tempfile.TemporaryDirectory() as repository, network.start(
                command, sheep, decoy, cwd=repository, env=variables,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            result = testtools.CopyStreamResult(
                [testtools.StreamToDict(ended), Said()])
            result.startTestRun()
            subunit.ByteStreamToStreamResult(
                process.stdout, non_subunit_name='output').run(result)
            result.stopTestRun()
            process.wait()
        if process.returncode and len(counts.failed) == failed:
            # Such as tests that cannot be imported.
            counts.failure('stestr', 'It ended with status %d: %s\n%s' % (
                process.returncode, ' '.join(str(part) for part in command),
                ''.join(said)))
        elif str(counts) == before:
            counts.failure('stestr', 'No test was found in %s.' % path)
        if decoy.heard:
            counts.failure('decoy', (
                'A test spoke to a sheep that it was not given, at %s:%d: '
                '%s') % (*network.DEFAULT, decoy.heard))


def checks_of_nova(packages):
    """Return 'CODE = checks:NAME' for each of Nova's own hacking checks.

    Nova lists them in its tox.ini, which is not installed with it.  A check
    names its code in its words or messages, before the codes of others.
    """
    source = (packages / 'nova/hacking/checks.py').read_text()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            is_check = 'core.flake8ext' in map(ast.unparse,
                                               node.decorator_list)
        else:
            is_check = isinstance(node, ast.ClassDef) and (
                'BaseASTChecker' in map(ast.unparse, node.bases))
        if is_check:
            code = re.search(r'\bN\d{3}\b',
                             ast.get_source_segment(source, node)).group()
            yield '%s = checks:%s' % (code, node.name)


def added_files():
    """Return the files of the patch, as paths from the root of a Nova."""
    return sorted(str(path.relative_to(ROOT))
                  for path in (ROOT / 'nova').rglob('*.py'))


def pep8(suite):
    """ruff and the like here; Nova's own static checks over a patched Nova.

    That is the oldest and the newest of those that are tested.
    """
    suite.command('ruff', 'ruff', 'check', ROOT, cwd=ROOT)
    suite.command('reno', 'reno', 'lint', cwd=ROOT)
    suite.command('README.rst', 'docutils', '--strict',
                  ROOT / 'README.rst', os.devnull)
    scripts = ['run_demo.sh', 'run_tests.sh', '.ci/run', 'devstack/plugin.sh',
               'devstack/settings', 'packaging/completion']
    suite.command('shellcheck', 'shellcheck', '--shell', 'bash', *scripts,
                  cwd=ROOT)
    # What is sourced has no interpreter.
    suite.command('bashate', 'bashate', '--ignore', 'E005', *scripts,
                  cwd=ROOT)
    releases = environment.usable_releases()
    tested = releases[0], releases[-1]
    for release in tested:
        venv = prepare(release)
        packages = next(venv.glob('lib/python3*/site-packages'))
        with tempfile.TemporaryDirectory() as directory:
            # hacking reads its own section where it is run, in tox.ini alone.
            configuration = pathlib.Path(directory) / 'tox.ini'
            configuration.write_text(HACKING_CONFIGURATION % {
                'checks': '\n    '.join(checks_of_nova(packages)),
                'directory': packages / 'nova/hacking'})
            (configuration.parent / 'nova').symlink_to(packages / 'nova')
            flake8 = [venv / 'bin/python', '-m', 'flake8', '--config',
                      configuration]
            suite.command('hacking, patched Nova %s' % release, *flake8,
                          *added_files(), cwd=directory)
            # The others want an old mypy that their lock files do not name.
            if release == releases[-1] or (venv / 'bin/mypy').exists():
                mypy(suite, release, venv, directory)
            if release == tested[-1]:
                # What runs before anything is installed has only json, and
                # what reads a nova.conf without Nova has to say what is in it.
                suite.command('hacking, what is not in Nova', *flake8,
                              '--extend-ignore', 'N324,N342',
                              'tools', 'contract', 'doc', 'toxfile.py',
                              cwd=ROOT)


def mypy(suite, release, venv, directory):
    """mypy as Nova's gate runs it.

    :param release: release of Nova
    :param venv: environment with that release
    :param directory: one with its nova in it
    """
    source = prepare(release, '--source')
    configuration = next(
        path for path in (source / 'pyproject.toml', source / 'setup.cfg')
        if path.exists() and re.search(r'^\[(tool\.)?mypy]',
                                       path.read_text(), re.M))
    # Older releases list the files elsewhere, and have the mypy that they
    # want in their lock file.
    listed = source / 'mypy-files.txt'
    files = listed.read_text().split() if listed.exists() else []
    program = ([venv / 'bin/python', '-m', 'mypy']
               if (venv / 'bin/mypy').exists() else ['mypy'])
    suite.command('mypy, patched Nova %s' % release, *program,
                  '--config-file', configuration, *files, cwd=directory)


def docs(suite):
    """Build the documentation, ours and Nova's; each warning is a failure."""
    sphinx_build = ['sphinx-build', '-W', '--keep-going', '-qE']
    suite.command('sphinx-build', *sphinx_build,
                  ROOT / 'doc/source', ROOT / 'doc/build/html', cwd=ROOT)
    release = environment.releases()[-1]
    source, venv = prepare(release, '--source'), prepare(release)
    with tempfile.TemporaryDirectory() as directory:
        nova = pathlib.Path(shutil.copytree(source, directory + '/nova'))
        # A release note is of the branch that it was committed to, and here
        # is none of Nova's: the page for what is new has ours alone.
        shutil.rmtree(nova / 'releasenotes/notes')
        for page in (nova / 'releasenotes/source').glob('*.rst'):
            if page.stem != 'unreleased':
                page.unlink()
        suite.command('patch', venv / 'bin/nova-sheepdog', 'apply',
                      '--with-tests', '--nova', nova)
        git = ['git', '-c', 'user.name=tests', '-c', 'user.email=tests@tests']
        for arguments in (['init', '-q'], ['add', 'releasenotes'],
                          ['commit', '-qm', 'all']):
            subprocess.run([*git, *arguments], cwd=nova, check=True)
        # What Nova's documentation imports is in the environment of Nova.
        variables = dict(os.environ, PYTHONWARNINGS='ignore',
                         PYTHONPATH='%s:%s' % (nova, next(
                             venv.glob('lib/python3*/site-packages'))))
        suite.command(
            'documentation of Nova %s' % release, *sphinx_build, '-j', 'auto',
            'doc/source', 'doc/build', cwd=nova, env=variables)
        suite.command(
            'release notes of Nova %s' % release, *sphinx_build, '-D',
            'master_doc=unreleased', 'releasenotes/source',
            'releasenotes/build', cwd=nova, env=variables)


def graft(suite):
    """The tests of tools/graft, with an installed Nova and two sources."""
    tests = ROOT / 'tools/graft/tests'
    releases = environment.usable_releases()
    os.environ['NOVA_TREES'] = ':'.join(map(str, (
        suite.packages, prepare(releases[0], '--source'),
        prepare(releases[-1], '--source'))))
    suite.stestr(ROOT / 'tools', tests)


def contract(suite):
    """The contract suite; SHEEPDOG_DOG, _HOST and _PORT name a cluster."""
    suite.stestr(ROOT, ROOT / 'contract', sheep=suite.sheep)


def unit(suite, top=None, files=None):
    """The patch's own unit tests, in the patched Nova.

    :param top: directory that holds another nova than the suite's
    :param files: paths of the tests, with others among them; None for all
    """
    top = top or suite.packages
    for directory, workers in ('virt/libvirt', 2), ('compute', 1):
        tests = 'nova/tests/unit/' + directory
        names = [name[:-len('.py')].replace('/', '.')
                 for name in files or added_files()
                 if name.startswith(tests) and
                 os.path.basename(name).startswith('test_')]
        # Not every commit of the series has some.
        if names:
            suite.stestr(
                top, top / tests, [
                    r'^(%s)\.' % '|'.join(map(re.escape, names))],
                workers=workers)


def upstream(suite):
    """Nova's own tests of what is patched, unmodified.

    What fails counts if it passes in a pristine Nova of the release.
    """
    tests = 'nova/tests/unit'
    runs = [
        (tests + '/virt/libvirt', 2,
         [r'\.libvirt\.test_(imagebackend|utils|driver)\.']),
        (tests + '/conf', 1, []),
    ]
    releases = environment.usable_releases()
    if suite.release in (releases[0], releases[-1]):
        # As long as nova/compute/manager.py is patched; 1,100 tests that know
        # nothing of libvirt take too long for every release.
        runs.append((tests + '/compute', 2, []))
    for path, workers, arguments in runs:
        counts = Counts(suite.counts.suite)
        suite.stestr(suite.packages, suite.packages / path, arguments,
                     workers=workers, counts=counts)
        suite.counts.passed += counts.passed
        suite.counts.skipped += counts.skipped
        if counts.failed:
            again = Counts('pristine Nova %s' % suite.release)
            venv = prepare(suite.release, '--pristine')
            packages = next(venv.glob('lib/python3*/site-packages'))
            with tempfile.NamedTemporaryFile('w') as listed:
                listed.write('\n'.join(counts.failed) + '\n')
                listed.flush()
                suite.stestr(packages, packages / path,
                             ['--load-list', listed.name], venv=venv,
                             counts=again)
            both = set(counts.failed) & set(again.failed)
            print('%s: fail in the pristine Nova too: %s' % (
                suite.counts.suite, ', '.join(sorted(both)) or 'none'))
            suite.counts.skipped += len(both)
            suite.counts.failed += sorted(set(counts.failed) - both)


def series(suite):
    """Each commit of "diff --series" passes Nova's gate by itself.

    They are applied by "git am" to the source of the newest release, whose
    own configuration the checks use. Of the unit tests those run that the
    commit brings or changes; what becomes of all is for unit-RELEASE.
    """
    def run(*command):
        return subprocess.run(
            [str(part) for part in command], cwd=top, check=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            universal_newlines=True).stdout

    git = ['git', '-c', 'user.name=series', '-c', 'user.email=series@example']
    with tempfile.TemporaryDirectory() as directory:
        top = pathlib.Path(directory) / 'nova'
        patches = pathlib.Path(directory) / 'patches'
        shutil.copytree(prepare(suite.release, '--source'), top)
        run(suite.venv / 'bin/nova-sheepdog', 'diff', '--nova', top,
            '--series', patches)
        run(*git, 'init', '--quiet')
        run(*git, 'add', '--all', '--force')
        run(*git, 'commit', '--quiet', '--message', 'Nova ' + suite.release)
        for patch in sorted(patches.iterdir()):
            suite.command('git am ' + patch.name, *git, 'am',
                          '--whitespace=error', patch, cwd=top)
            changed = run(*git, 'diff', '--name-only', 'HEAD~').split()
            python = [name for name in changed if name.endswith('.py')]
            if python:
                suite.command('hacking at ' + patch.name,
                              suite.venv / 'bin/python', '-m', 'flake8',
                              *python, cwd=top)
                mypy(suite, suite.release, suite.venv, top)
                unit(suite, top, python)
            print('%s: %s at %s' % (
                suite.counts.suite, suite.counts, patch.name), flush=True)


def in_testbed(suite, daemon):
    """Return the words that run a command beside libvirtd, QEMU and tgtd.

    :param daemon: whether sudo allows rootwrap's daemon
    """
    options = ['--rootwrap-daemon'] if daemon else []
    sheep = suite.sheep
    if sheep:
        options += ['--sheepdog', '%s:%d' % sheep[0], '--dog',
                    os.environ['SHEEPDOG_DOG']]
    return [environment.PYTHON, ROOT / 'tools/testbed', '--venv', suite.venv,
            *options, '--']


def beside_testbed(suite, counts, daemon, *arguments):
    """Run functional tests beside a real libvirtd, QEMU and tgtd.

    :param daemon: as of in_testbed()
    """
    suite.stestr(
        suite.packages, suite.packages / 'nova/tests/functional/libvirt',
        arguments, time_limit=600, counts=counts, sheep=suite.sheep,
        through=in_testbed(suite, daemon))


def functional(suite):
    """The functional tests.

    What fails is run once more, in a test bed of its own, to tell what is
    broken from what fails now and then.  Both count as failed.
    """
    prepare(suite.release, '--guest')
    # Tests mostly wait, so these two take about the same time side by side.
    slow = r'\.test_sheepdog_(host_life|live_migration|moves)\.'
    beds = (
        [(True, [slow]),
         # Without the daemon each call of dog starts a Python, which takes a
         # second on a loaded machine. So only what it changes is tested.
         (False, [r'\.test_sheepdog_rootwrap\..*'
                  r'\.test_(daemon|program|runner)|'
                  r'\.test_sheepdog\..*\.test_boot_and_delete'])],
        [(True, [r'\.test_sheepdog', '--exclude-regex', slow])])

    def run(bed):
        counts = []
        for daemon, arguments in bed:
            counts.append((daemon, Counts(suite.counts.suite)))
            beside_testbed(suite, counts[-1][1], daemon, *arguments)
        return counts

    # On a cluster that they share, they would see each other's VDIs.
    with futures.ThreadPoolExecutor(1 if suite.sheep else len(beds)) as pool:
        ended = sum(pool.map(run, beds), [])
    for daemon, first in ended:
        suite.counts.passed += first.passed
        suite.counts.skipped += first.skipped
        suite.counts.failed += first.failed
        tests = [name for name in first.failed if '.' in name]
        if tests:
            again = Counts('%s, once more' % suite.counts.suite)
            with tempfile.NamedTemporaryFile('w') as listed:
                listed.write('\n'.join(tests) + '\n')
                listed.flush()
                # The user of the test bed reads it.
                os.chmod(listed.name, 0o644)
                beside_testbed(suite, again, daemon, '--load-list',
                               listed.name)
            suite.told += [
                'FLAKE, it failed and passed when run again: ' + name
                for name in sorted(set(tests) - set(again.failed))]


def run_cases(suite, *options):
    """Run nova.tests.faults, and count its cases."""
    with subprocess.Popen(
            [suite.venv / 'bin/python', '-m', 'nova.tests.faults', *options],
            cwd=suite.packages, env=dict(os.environ, **STESTR_ENVIRONMENT),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            universal_newlines=True) as process:
        for line in process.stdout:
            print(line, end='', flush=True)
            # 740 cases tried in 63 s, seed 3, 0 failed
            tried = re.fullmatch(r'(\d+) cases tried .* (\d+) failed\n', line)
            if tried:
                suite.told.append(line.strip())
                failed = int(tried.group(2))
                suite.counts.passed += int(tried.group(1)) - failed
                suite.counts.failed += ['a case'] * failed
    if process.returncode and not suite.counts.failed:
        suite.counts.failure('faults', 'It ended with status %d.' %
                             process.returncode)


def sample(suite):
    """A part of the cases of faults, in a random order."""
    run_cases(suite, '--seconds', '90')


def stop_sheep(ended):
    """Stop one of the sheep of SHEEPDOG_PIDS after the other for a while.

    :param ended: threading.Event, set when that is enough
    """
    pids = [int(pid) for pid in os.environ.get('SHEEPDOG_PIDS', '').split()]
    while pids and not ended.wait(random.uniform(2, 10)):
        pid = random.choice(pids)
        os.kill(pid, signal.SIGSTOP)
        try:
            # Longer than dog is waited for there
            ended.wait(random.uniform(1, 15))
        finally:
            os.kill(pid, signal.SIGCONT)


def chaos(suite, *options):
    """Many servers with real guests, while all goes wrong that can."""
    said = []
    ended = threading.Event()
    stopping = threading.Thread(target=stop_sheep, args=(ended,))
    with network.start(
            [*in_testbed(suite, True), suite.venv / 'bin/python', '-m',
             'nova.tests.functional.libvirt.sheepdog_chaos', *options],
            suite.sheep, cwd=suite.packages, stdin=subprocess.DEVNULL,
            env=dict(os.environ, PYTHONWARNINGS='ignore'),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            universal_newlines=True) as process:
        stopping.start()
        for line in process.stdout:
            if line.startswith('chaos: '):
                print(line, end='', flush=True)
                suite.told.append(line.strip())
            if line.startswith('chaos: nothing goes wrong'):
                ended.set()
            said.append(line)
        ended.set()
        stopping.join()
        process.wait()
    # Of each line that tells how far it is, the last one will do.
    del suite.told[1:-5]
    if process.returncode:
        suite.counts.failure('chaos', ''.join(said[-4 * LAST_LINES:]))
    else:
        suite.counts.success()


def faults(suite):
    """All cases of server actions while calls go wrong, and chaos."""
    run_cases(suite)
    chaos(suite)


SUITES = {function.__name__: function for function in (
    pep8, docs, graft, contract, unit, sample, chaos, faults, series, upstream,
    functional)}
OF_A_RELEASE = ('unit', 'upstream', 'functional')
WITHOUT_NOVA = ('docs',)
# Text is all that these look at, or the tests are Nova's own.
UNTIMED = ('pep8', 'docs', 'upstream')


def names():
    """Return the names of all suites.

    The tested releases of Nova are those that have a file under locks/.
    """
    return [name for kind in SUITES for name in (
        ['%s-%s' % (kind, release) for release in environment.releases()]
        if kind in OF_A_RELEASE else [kind])]


def default_names(timed=False):
    """Return the names of the suites that run unless others are asked for.

    :param timed: leave out those whose result does not depend on time
    """
    releases = environment.usable_releases()
    too_old = set(environment.releases()) - set(releases)
    # They take hours; the sample is a part of them.
    return [name for name in names() if
            name not in ('chaos', 'faults', 'series') and
            name.partition('-')[2] not in too_old and
            not (timed and name.partition('-')[0] in UNTIMED) and name not in (
                'functional-' + release for release in releases[1:-1])]


def prepare(release, *options):
    """Return the path of an environment with that release of Nova."""
    made = subprocess.run(
        [environment.PYTHON, ROOT / 'tools/environment.py', *options,
         release], stdout=subprocess.PIPE, universal_newlines=True)
    if made.returncode:
        sys.exit(made.returncode)
    return pathlib.Path(made.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(
        description='Run one test suite, print its failures and its counts.',
        epilog='Suites: %s. %s are given with a release of Nova, as in '
               'unit-%s.' % (', '.join(SUITES), ', '.join(OF_A_RELEASE),
                             environment.releases()[-1]))
    parser.add_argument('suite', metavar='SUITE[-RELEASE]', nargs='?')
    parser.add_argument('arguments', nargs=argparse.REMAINDER,
                        help='of chaos; "chaos --help" lists them')
    parser.add_argument('--list', action='store_true', help='print the names '
                        'of the suites that run_tests.sh runs')
    parser.add_argument('--timed', action='store_true', help='with --list, '
                        'leave out suites whose result does not depend on '
                        'how fast the machine is')
    options = parser.parse_args()
    if options.list:
        for release in (set(environment.releases()) -
                        set(environment.usable_releases())):
            print('Nova %s does not run on this Python, and is not tested.' %
                  release, file=sys.stderr)
        print(*default_names(options.timed), sep='\n')
        return 0
    name = options.suite or ''
    kind, _dash, release = name.partition('-')
    if kind not in SUITES or bool(release) != (kind in OF_A_RELEASE):
        parser.error('no such suite: %s' % name)
    release = release or environment.releases()[-1]

    suite = Suite(name, release)
    if kind not in WITHOUT_NOVA and pathlib.Path(sys.prefix) != suite.venv:
        venv = prepare(release)
        os.execv(venv / 'bin/python', [venv / 'bin/python', *sys.argv])
    SUITES[kind](suite, *options.arguments)
    print('%s: %s' % (name, suite.counts))
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / name).write_text('%d %d %d\n%s' % (
        suite.counts.passed, len(suite.counts.failed),
        suite.counts.skipped, ''.join(
            '%s: %s\n' % (name, words) for words in suite.told)))
    return 1 if suite.counts.failed else 0


if __name__ == '__main__':
    sys.exit(main())
