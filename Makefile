# Two commands: `make demo` and `make test`. Both set up what they need, once; the stamps say that it was done.
# Nothing here needs a compiler but `make bpf` and `make check-bpf`.
PYTHON ?=
PY := .venv/bin/python
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help demo test test-kernels bench bpf check-bpf check-wheel format clean distclean

help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

.venv/.run-stamp: pyproject.toml
	@tools/setup.sh replay,plot $@

.venv/.dev-stamp: pyproject.toml
	@tools/setup.sh dev $@
	@touch .venv/.run-stamp

demo: .venv/.run-stamp ## heal real links (root), or replay a recording of it
	@$(PY) -m mapek demo

test: .venv/.dev-stamp ## lint, types, layers and every test that this machine can run
	@tools/check.sh

test-kernels: .venv/.dev-stamp ## the tests of the kernel side on Debian's kernels in QEMU (KERNELS="5.10 6.12": fewer)
	@$(PY) -m tools.vm test $(KERNELS)

bench: .venv/.dev-stamp ## the full measurements, up to 60 minutes, as root
	@$(PY) -m mapek.simulations.bench

bpf: .venv/.run-stamp ## rebuild the BPF objects (clang 14)
	@$(PY) -m mapek.bpf.build

check-bpf: .venv/.run-stamp ## rebuild the BPF objects aside and compare the bytes
	@$(PY) -m mapek.bpf.build --check

check-wheel: .venv/.dev-stamp ## sdist, wheel from it, empty environment, import everything
	@$(PY) tools/check_wheel.py --keep dist

format: .venv/.dev-stamp ## fix what ruff can fix
	@$(PY) -m ruff check --fix-only --quiet . ; $(PY) -m ruff format .

clean: ## remove what was built, not .venv
	rm -rf build dist .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean ## also remove .venv
	rm -rf .venv
