#!/bin/sh
# Every check that `make test` stands for. All run, so that one look shows all that is wrong.
# Where the privileged tests cannot run, the 85 % that coverage must reach cannot either: it is printed only.
set -u
cd "$(dirname "$0")/.."
python=.venv/bin/python
everything='tests --doctest-modules --pyargs mapek'  # by package name: the rooms are behind symlinks
# Some hundred tests start mapek as a process of its own: without byte code each would compile it anew.
unset PYTHONDONTWRITEBYTECODE
failed=
step() {
    printf '\n== %s\n' "$*"
    "$@" || failed="$failed
  $*"
}

step $python -m ruff check --output-format concise .
step $python -m ruff format --check --output-format concise .
step $python -m mypy -p mapek -p tools
step .venv/bin/lint-imports --no-cache

# systemd mounts these; a container or a bare init may not. They stay: others may have begun to use them.
mounted() { # TYPE PLACE
    [ "$(id -u)" != 0 ] || grep -q "^[^ ]* $2 $1 " /proc/mounts || mount -t "$1" "$1" "$2" ||
        printf '%s could not be mounted on %s\n' "$1" "$2"
}
mounted bpf /sys/fs/bpf
mounted tracefs /sys/kernel/tracing

if $python -m tests.support.machine; then
    floor=85
else
    floor=0
    printf 'the tests that need root and BPF will skip; run make test as root for all of them\n'
fi
# Tests on real packets share the machine with whatever its host does meanwhile. What failed runs once more, alone; what
# passes then is named in the output above it, and stays worth a look. So does what left something behind, unless no test
# was at work then. Too little coverage has no second run.
# shellcheck disable=SC2086
tests() {
    $python -m pytest -rs --cache-clear --cov --cov-report=term --cov-fail-under=$floor ${PYTEST_ARGS:-$everything}
    status=$?
    [ $status -eq 1 ] || return $status
    printf '\n== once more, what failed, alone\n'
    $python -m pytest -rs --last-failed --last-failed-no-failures=none ${PYTEST_ARGS:-$everything}
}
step tests

if [ -n "$failed" ]; then
    printf '\nFAILED:%s\n' "$failed"
    exit 1
fi
printf '\nall checks passed\n'
