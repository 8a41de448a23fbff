#!/usr/bin/env bash
# Run the tests; ./run_tests.sh --help says more.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"

tox=.cache/tox/bin/tox
results=.cache/results
# What the suites of one machine of two cores are fastest with, as the
# functional ones mostly wait.
at_once=3

usage() {
    cat <<'USAGE'
Usage: ./run_tests.sh [--no-system] [--under-load] [SUITE...]

Runs the test suites, by tox, and ends with a count of all tests. Without a
SUITE it runs all but chaos, faults, series, and functional-RELEASE of the
releases between the oldest and the newest:

  pep8                ruff, and on the patched Nova its own hacking checks and
                      mypy as its gate runs it
  docs                the documentation, which is left in doc/build/html;
                      warnings count, and so do tests it names that are not
  graft               the tool that patches a Nova
  contract            the simulated cluster does as the real one did; with
                      SHEEPDOG_DOG=/path/to/dog SHEEPDOG_HOST= SHEEPDOG_PORT=
                      a real one is asked instead
  unit-RELEASE        our unit tests, in the patched Nova
  sample              server actions while calls of dog and tgtadm fail: some
                      cases, for 90 seconds
  chaos               50 servers and 8 users for ten minutes, on two hosts,
                      while processes are killed and calls fail; needs root.
                      On a real cluster the sheep whose process ids
                      SHEEPDOG_PIDS lists are stopped and continued. Fewer:
                      "tox -e chaos -- --servers 8 --users 4 --seconds 60"
  faults              all cases of sample, for two hours or so, and chaos
  functional-RELEASE  servers through Nova's API, with a real libvirtd, QEMU
                      and tgtd; needs root. A test that fails is run again:
                      if it passes then, it is reported as a flake, and the
                      suite fails all the same
  upstream-RELEASE    Nova's own tests of what is patched
  series              each commit of "nova-sheepdog diff --series" as Nova's
                      gate would see it: an hour of what other suites run once

RELEASE is one that has a file under locks/. All that is made is in .cache and
.tox, but for Debian packages. Each suite runs in a network namespace of its
own: it reaches no Sheepdog cluster but the simulated one, or the one that the
variables SHEEPDOG_* name, and fails if a test tries to.

  --no-system   do not install the Debian packages of bindep.txt that are
                missing (left out anyway when this is not root)
  --under-load  run the suites beside four busy processes for each core, as
                proof that no test depends on how fast a machine is. Without
                a SUITE it leaves out pep8 and docs, which look at text, and
                upstream-RELEASE, as those tests are Nova's own
  -h, --help    print this

Exits with 0 if no test failed, 1 if one did, 2 for a wrong call.
USAGE
}

system=yes load=
while [ $# -gt 0 ]; do
    case $1 in
        -h|--help) usage; exit 0;;
        --no-system) system=; shift;;
        --under-load) load=yes; shift;;
        -*) echo "run_tests.sh: no such option: $1; see --help" >&2; exit 2;;
        *) break;;
    esac
done

if [ "$system" ] && [ "$(id -u)" = 0 ]; then
    /usr/bin/python3 tools/environment.py --system
fi
if [ ! -x "$tox" ]; then
    echo 'Installing tox ...'
    /usr/bin/python3 -m venv --clear .cache/tox
    .cache/tox/bin/pip install --quiet --disable-pip-version-check 'tox>=4'
fi

if [ $# -gt 0 ]; then
    suites=("$@")
else
    mapfile -t suites < <(
        /usr/bin/python3 tools/suites.py --list ${load:+--timed})
fi
rm -rf "$results"
# They wait in one queue, so those that take longest begin.
long='functional-|docs|upstream-|unit-|sample'
mapfile -t queue < <(
    for kind in ${long//|/ }; do
        printf '%s\n' "${suites[@]}" | grep "^$kind" || true
    done
    printf '%s\n' "${suites[@]}" | grep -Ev "^($long)" || true)
busy=()
if [ "$load" ]; then
    for _ in $(seq $((4 * $(nproc)))); do
        /usr/bin/python3 -c 'while True: pass' &
        busy+=($!)
    done
    trap 'kill "${busy[@]}"' EXIT
    echo "Beside ${#busy[@]} busy processes"
fi
started=$SECONDS
status=0
"$tox" run-parallel --parallel "$at_once" --parallel-live \
    --parallel-no-spinner -e "$(IFS=,; echo "${queue[*]}")" || status=1

printf '\n%-20s %8s %8s %8s\n' suite passed failed skipped
passed=0 failed=0 skipped=0
for suite in "${suites[@]}"; do
    # A suite that left no counts did not come to its end.
    counts='0 1 0'
    if [ -f "$results/$suite" ]; then
        counts=$(<"$results/$suite")
    fi
    read -r p f s <<<"$counts"
    printf '%-20s %8d %8d %8d\n' "$suite" "$p" "$f" "$s"
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
done
for suite in "${suites[@]}"; do
    # What tests have measured, and flakes, are after the counts.
    [ ! -f "$results/$suite" ] || tail -n +2 "$results/$suite"
done
took="$(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s"
echo "in $took${load:+, beside ${#busy[@]} busy processes}"
echo "$passed passed, $failed failed, $skipped skipped"
if [ "$failed" -gt 0 ]; then
    status=1
fi
exit "$status"
