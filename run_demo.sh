#!/usr/bin/env bash
# Show a server living on Sheepdog; ./run_demo.sh --help says more.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"

release=34.0.0
dog=
sheepdog=
prepare=(--system)
what=("$PWD/tools/demo")

usage() {
    cat <<'USAGE'
Usage: ./run_demo.sh [--full] [--release RELEASE]
                     [--sheepdog HOST:PORT [--dog PATH]]

Boots a server from an image onto a Sheepdog cluster, reboots it and deletes
it, in a real Nova with a real libvirtd, QEMU and tgtd, and ends in a table of
what passed. Nothing of it goes on when it has ended, and nothing but .cache
and Debian packages stays. It needs root, python3 and git on Debian 12 or 13.

  --full                show every server action of the administrator's guide
                        instead, by the functional tests that it names for
                        them, each on a real guest; takes a quarter of an
                        hour. A test that proves several actions is run once,
                        and its time is shown with each
  --release RELEASE     the Nova to use: one that has a file under locks/
                        (default: 34.0.0)
  --sheepdog HOST:PORT  a gateway of a real, formatted cluster to use instead
                        of the simulated one; an IPv4 address or localhost.
                        Nothing but the sheep daemons that this cluster has
                        when the demo starts is reached from within. With
                        --full, what wants a cluster that can be killed is
                        skipped there
  --dog PATH            the dog of that cluster (default: the one in PATH)
  -h, --help            print this

Exits with 0 if all passed, 1 if not, 2 for a wrong call.
USAGE
}

wrong() {
    echo "run_demo.sh: $1; see --help" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case $1 in
        -h|--help) usage; exit 0;;
        --full) what+=(--full) prepare+=(--guest); shift;;
        --release|--sheepdog|--dog)
            [ $# -gt 1 ] || wrong "$1 wants a value"
            printf -v "${1#--}" '%s' "$2"
            shift 2;;
        *) wrong "no such option: $1";;
    esac
done
[ -f "locks/nova-$release.txt" ] ||
    wrong "there is no lock file for Nova $release under locks/"
bed=()
if [ "$sheepdog" ]; then
    [[ $sheepdog =~ ^([0-9.]+|localhost):[0-9]+$ ]] ||
        wrong "--sheepdog: $sheepdog is not HOST:PORT"
    dog=${dog:-$(command -v dog || true)}
    [ -x "$dog" ] || wrong "--dog: there is no dog at '$dog'"
    dog=$(readlink -f "$dog")
    export SHEEPDOG_HOST=${sheepdog%:*} SHEEPDOG_PORT=${sheepdog##*:}
    export SHEEPDOG_DOG=$dog
    bed+=(--sheepdog "$sheepdog" --dog "$dog")
elif [ "$dog" ]; then
    wrong "--dog goes with --sheepdog"
fi
[ "$(id -u)" = 0 ] || wrong "it needs root, to install and to isolate"

echo "Preparing Nova $release with the patch ..."
venv=$(/usr/bin/python3 tools/environment.py "${prepare[@]}" "$release" |
    tail -n 1)
echo "Showing a server on ${sheepdog:-a simulated Sheepdog cluster} ..."
exec /usr/bin/python3 tools/testbed --venv "$venv" --rootwrap-daemon \
    "${bed[@]}" -- \
    python -W ignore "${what[@]}"
