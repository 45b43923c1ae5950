#!/bin/sh
# Set up .venv with the extras named, or do nothing when that was done: tools/setup.sh EXTRAS STAMP
# As root it installs the few Debian packages that are missing; without root it names them and goes on.
set -eu
extras=$1 stamp=$2
cd "$(dirname "$0")/.."
say() { printf 'setup: %s\n' "$*" >&2; }

install() { # PACKAGE WHY
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing $1 ($2)"
        export DEBIAN_FRONTEND=noninteractive
        apt-get install -qq -y --no-install-recommends "$1" >/dev/null 2>&1 ||
            { apt-get update -qq && apt-get install -qq -y --no-install-recommends "$1" >/dev/null; }
    else
        say "$1 is missing ($2); as root: apt-get install $1"
        return 1
    fi
}

new_enough() { command -v "$1" >/dev/null && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; }
find_python() {
    for python in "${PYTHON:-python3.11}" python3 python3.12 python3.13 python3.14; do
        if new_enough "$python" 2>/dev/null; then return 0; fi
    done
    return 1
}

if ! find_python; then
    install python3 "Python 3.11 or newer runs mapek" && find_python || {
        say "no Python 3.11 or newer was found; install one, or name it: make PYTHON=/path/to/python3 ..."
        exit 1
    }
fi
if [ ! -x .venv/bin/python ] || ! .venv/bin/python -c 'import pip' 2>/dev/null; then
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
        install python3-venv "makes .venv" || exit 1
        "$python" -c 'import ensurepip' 2>/dev/null || install "$version-venv" "makes .venv" || exit 1
    fi
    say "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
fi
# Asked of the loader itself: a library in LD_LIBRARY_PATH counts, too.
if ! "$python" -c 'import ctypes; ctypes.CDLL("libbpf.so.1")' 2>/dev/null; then
    install libbpf1 "loads the BPF programs" || say "without it mapek replays, but senses and heals nothing"
fi

pip() { PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip --quiet --quiet install "$@"; }
say "installing mapek[$extras] into .venv (once; from the network or pip's cache)"
# Not isolated, so that setting up again after an edit of pyproject.toml downloads nothing.
backend='hatchling>=1.27 editables>=0.5'
# shellcheck disable=SC2086
if ! { pip $backend && pip --no-build-isolation --editable ".[$extras]"; }; then
    say "pip failed; it needs the network (or a mirror set in pip's configuration) the first time"
    exit 1
fi
touch "$stamp"
