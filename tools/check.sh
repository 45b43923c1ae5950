#!/bin/sh
# Every check that `make test` stands for. All run, so that one look shows all that is wrong.
# Where the privileged tests cannot run, the 85 % that coverage must reach cannot either: it is printed only.
set -u
cd "$(dirname "$0")/.."
python=.venv/bin/python
everything='tests --doctest-modules --pyargs mapek'  # by package name: the rooms are behind symlinks
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

if $python -m tests.support.machine; then
    floor=85
else
    floor=0
    printf 'the tests that need root and BPF will skip; run make test as root for all of them\n'
fi
# shellcheck disable=SC2086
step $python -m pytest -rs --cov --cov-report=term --cov-fail-under=$floor ${PYTEST_ARGS:-$everything}

if [ -n "$failed" ]; then
    printf '\nFAILED:%s\n' "$failed"
    exit 1
fi
printf '\nall checks passed\n'
