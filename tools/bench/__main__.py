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

"""Measure how fast the backend is, each thing against another.

tox calls this. It measures one figure after the other, each in a test bed of
its own (see measure.py for what happens there), and makes a table.
"""

import argparse
import ipaddress
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time

import figures
import report

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / '.cache/bench'
# The interpreter that another user, sudo and rootwrap can reach too
PYTHON = '/usr/bin/python3'
RELEASES = sorted(
    (path.stem[len('nova-'):] for path in (ROOT / 'locks').glob('nova-*')),
    key=lambda name: [int(number) for number in name.split('.')])
# Seconds that a figure may take; 10,000 VDIs are slow to make on a real
# cluster
LIMIT = 3600


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog='tox -e bench --', formatter_class=argparse.
        RawDescriptionHelpFormatter,
        description='Measure how fast the Sheepdog backend is. Each figure '
                    'compares two things that\nare measured in turn, so that '
                    'the machine matters little. It needs root, for a\n'
                    'private libvirtd and tgtd. While it runs it says how '
                    'far it is; at its end come a\ntable and, in .cache/bench'
                    ', bench.json with all that was measured and a plot\n'
                    '(SVG) of each series.',
        epilog='figures, all of which are measured unless some are named:\n'
               '%s\n\nIt exits with 0 if all was measured, 1 if something '
               'could not be, 2 for a wrong\ncall.' % '\n'.join(
                   '  %-10s %s' % (name, words)
                   for name, (words, _rows) in figures.FIGURES.items()))
    parser.add_argument(
        '--figure', action='append', choices=figures.FIGURES, metavar='NAME',
        help='measure this one; may be given again')
    parser.add_argument(
        '--release', default=RELEASES[-1], choices=RELEASES,
        help='the Nova to use: one that has a file under locks/ (default: '
             '%(default)s)')
    parser.add_argument(
        '--sheepdog', metavar='HOST:PORT',
        help='a gateway of a real, formatted cluster to use instead of '
             'simulated ones; an IPv4 address or localhost. Make it one for '
             'tests: it gets 10,000 VDIs for a while. What is made is '
             'deleted again; only the figure growth, if it is killed, leaves '
             'VDIs, whose names begin with "bench-"')
    parser.add_argument(
        '--small', metavar='HOST:PORT',
        help='a gateway of another real cluster, which keeps 10 VDIs while '
             'the first one gets more, so that both can be measured in turn '
             'and not one after the other')
    parser.add_argument(
        '--dog', type=pathlib.Path, metavar='PATH',
        help='the dog of that cluster (default: the one in PATH)')
    parser.add_argument(
        '--vdis', type=int, default=figures.SIZES[-1], metavar='N',
        help='fill a cluster with N VDIs at most: a real one takes some '
             'minutes for 10,000 (default: %(default)s)')
    parser.add_argument(
        '--qemu', type=pathlib.Path, metavar='PATH',
        help='a qemu-img that has the Sheepdog driver, from a QEMU before '
             '6.1, to compare the transports')
    parser.add_argument(
        '--check', action='store_true',
        help='exit with 1 as well if a figure is not what is wanted')
    options = parser.parse_args(arguments)

    for name in 'sheepdog', 'small':
        gateway = getattr(options, name)
        if gateway:
            host, _colon, port = gateway.rpartition(':')
            try:
                ipaddress.IPv4Address('127.0.0.1' if host == 'localhost'
                                      else host)
                int(port)
            except ValueError:
                parser.error('--%s: %s is not HOST:PORT' % (name, gateway))
    if options.sheepdog:
        options.dog = options.dog or shutil.which('dog')
        if not (options.dog and os.access(options.dog, os.X_OK)):
            parser.error('--dog: there is no dog at %s' % options.dog)
    elif options.dog or options.small:
        parser.error('--dog and --small go with --sheepdog')
    if options.qemu:
        if options.qemu.name != 'qemu-img' or not (
                os.access(options.qemu, os.X_OK)):
            parser.error('--qemu: %s is not the path of a qemu-img' %
                         options.qemu)
        options.qemu = options.qemu.resolve()
    if options.vdis < figures.SIZES[0]:
        parser.error('--vdis: give %d or more' % figures.SIZES[0])
    if os.geteuid():
        parser.error('it needs root, for a private libvirtd and tgtd')
    return options


def prepare(release):
    """Return the path of an environment with that release of Nova."""
    made = subprocess.run(
        [PYTHON, ROOT / 'tools/environment.py', '--system', release],
        stdout=subprocess.PIPE, universal_newlines=True)
    if made.returncode:
        sys.exit(made.returncode)
    return made.stdout.splitlines()[-1]


def measure(name, venv, options):
    """Measure a figure.

    :param name: of the figure
    :param venv: path of the environment
    :returns: dict of the name of a row to what was told of it
    """
    command = [PYTHON, ROOT / 'tools/testbed', '--venv', venv,
               '--rootwrap-daemon']
    environment = dict(os.environ, BENCH_VDIS=str(options.vdis))
    for prefix, gateway in (('SHEEPDOG', options.sheepdog),
                            ('BENCH_SMALL', options.small)):
        if gateway:
            host, _colon, port = gateway.rpartition(':')
            environment.update({prefix + '_HOST': host,
                                prefix + '_PORT': port})
            command += ['--sheepdog', gateway]
    if options.sheepdog:
        command += ['--dog', options.dog]
        environment['SHEEPDOG_DOG'] = str(options.dog)
    if options.qemu:
        environment['BENCH_QEMU'] = str(options.qemu.parent)
    command += ['--', 'python', '-W', 'ignore',
                ROOT / 'tools/bench/measure.py', name]
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, universal_newlines=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        print('  given up after %d s' % LIMIT, flush=True)
        return {}
    if done.returncode:
        print('  FAILED with status %d' % done.returncode, flush=True)
    results = {}
    for line in done.stdout.splitlines():
        try:
            result = json.loads(line)
            results[result.pop('row')] = result
        except ValueError:
            print('  | ' + line, flush=True)
    return results


def get_machine():
    """:returns: what the figures were measured on, in words"""
    with open('/proc/cpuinfo') as file:
        models = {line.partition(':')[2].strip() for line in file
                  if line.startswith('model name')}
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return '%d x %s, %d GiB, %s' % (
        os.cpu_count(), ' and '.join(models) or platform.machine(),
        memory >> 30, platform.platform())


def main():
    options = parse(sys.argv[1:])
    venv = prepare(options.release)
    names = [name for name in figures.FIGURES
             if name in (options.figure or figures.FIGURES)]
    results = {}
    for number, name in enumerate(names, 1):
        print('%d of %d, %s: %s ...' % (
            number, len(names), name, figures.FIGURES[name][0]), flush=True)
        started = time.monotonic()
        results.update(measure(name, venv, options))
        print('  in %d s' % (time.monotonic() - started), flush=True)

    lines = figures.fill(names, results)
    about = {
        'time': time.strftime('%Y-%m-%dT%H:%M:%S%z'),
        'nova': options.release,
        'cluster': options.sheepdog or 'simulated',
        'machine': get_machine(),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    report.write_json(RESULTS / 'bench.json', about, lines, results)
    for path in RESULTS.glob('*.svg'):
        path.unlink()
    plots = report.plot(RESULTS, lines, results)
    print('\nNova %(nova)s, cluster: %(cluster)s, %(machine)s\n' % about)
    print('\n'.join(report.make_table(lines.values())))
    print('\n.cache/bench: bench.json %s' % ' '.join(
        path.name for path in plots))

    failed = [name for name in lines if name not in results]
    missed = [name for name, line in lines.items()
              if line.value is not None and
              line.row.is_met(line.value) is False]
    if missed:
        print('not what is wanted: %s' % ', '.join(missed))
    if failed:
        print('could not be measured: %s' % ', '.join(failed))
    return 1 if failed or (missed and options.check) else 0


if __name__ == '__main__':
    sys.exit(main())
