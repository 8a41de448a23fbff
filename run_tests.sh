#!/usr/bin/env bash
# Run the tests; ./run_tests.sh --help says more.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"

tox=.cache/tox/bin/tox
results=.cache/results

usage() {
    cat <<'USAGE'
Usage: ./run_tests.sh [--no-system] [SUITE...]

Runs the test suites, by tox, and ends with a count of all tests. Without a
SUITE it runs them all, quick ones first:

  pep8                ruff, and Nova's own hacking checks on the patched Nova
  docs                the documentation, which is left in doc/build/html;
                      warnings count, and so do tests it names that are not
  graft               the tool that patches a Nova
  contract            the simulated cluster does as the real one did; with
                      SHEEPDOG_DOG=/path/to/dog SHEEPDOG_HOST= SHEEPDOG_PORT=
                      a real one is asked instead
  unit-RELEASE        our unit tests, in the patched Nova
  functional-RELEASE  servers through Nova's API, with a real libvirtd, QEMU
                      and tgtd; needs root
  upstream-RELEASE    Nova's own tests of what is patched

RELEASE is 26.2.2 or 34.0.0. All that is made is in .cache and .tox, but for
Debian packages.

  --no-system  do not install the Debian packages of bindep.txt that are
               missing (left out anyway when this is not root)
  -h, --help   print this

Exits with 0 if no test failed, 1 if one did, 2 for a wrong call.
USAGE
}

system=yes
while [ $# -gt 0 ]; do
    case $1 in
        -h|--help) usage; exit 0;;
        --no-system) system=; shift;;
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
    mapfile -t suites < <("$tox" list -d --no-desc -q)
fi
rm -rf "$results"
started=$SECONDS
status=0
alone=() together=()
for suite in "${suites[@]}"; do
    # Each has a libvirtd and a tgtd of its own, and mostly waits for them.
    case $suite in
        functional-*) together+=("$suite");;
        *) alone+=("$suite");;
    esac
done
run_tox() {
    local how=$1
    shift
    [ $# -eq 0 ] || "$tox" $how -e "$(IFS=,; echo "$*")" || status=1
}
run_tox run "${alone[@]}"
run_tox 'run-parallel --parallel 2 --parallel-live' "${together[@]}"

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
    # What tests have measured is after the counts.
    [ ! -f "$results/$suite" ] || tail -n +2 "$results/$suite"
done
echo "in $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s"
echo "$passed passed, $failed failed, $skipped skipped"
if [ "$failed" -gt 0 ]; then
    status=1
fi
exit "$status"
