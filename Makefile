# SPDX-License-Identifier: GPL-2.0-only
PYTHON ?= python3
SHARED ?= ../shared

BIN := .venv/bin
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
VECTORS := $(wildcard data/vectors/*.parquet $(SHARED)/vectors/*.csv.gz)
RECORDINGS := $(patsubst %/,%,$(wildcard data/recordings/*/ $(SHARED)/recordings/*/))

# What is tested by these, and by these alone, must be covered wholly.
LOGIC := $(addprefix tests/test_,$(addsuffix .py,attributes bits corpus faultin link machine memslots mmio path \
    permission prove revisions sources v6_1))

# Compiled modules are kept: every notebook and command starts a Python of its own.
unexport PYTHONDONTWRITEBYTECODE

# matplotlib builds its font list on first use and says so in the notebook: keep one here, made with the environment.
export MPLCONFIGDIR := $(CURDIR)/.venv/var/matplotlib

.DEFAULT_GOAL := help
.PHONY: help walkthrough test env lint types unit browser coverage nbval conformance bench html notebooks lock clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

ifeq ($(HEADLESS),1)
walkthrough: env
	@$(BIN)/python tools/site.py --execute
else
walkthrough: env ## open the first notebook in JupyterLab (HEADLESS=1: execute all, write the site)
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/00_one_real_fault.ipynb
endif

test: env ## everything that must hold: lint, types, conformance, tests, notebooks
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint types conformance
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory nbval

env: .venv/ready ## make .venv from requirements.lock and install the project into it

.venv/ready: .venv/locked pyproject.toml
	@$(BIN)/python -m pip install -qq --no-index --no-deps --no-build-isolation --editable .
	@touch $@

.venv/locked: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	@echo "making .venv (once, a minute or two)"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install -qq --no-compile --require-hashes --requirement requirements.lock
	@$(BIN)/python -m compileall -qq -j 2 -x /tests/ .venv/lib
	@$(BIN)/python -c 'import matplotlib.font_manager'
	@touch $@

lint: env ## ruff and vulture
	@echo "== lint"
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --quiet --check
	@$(BIN)/vulture

types: env ## mypy --strict on the package
	@echo "== types"
	@$(BIN)/mypy

unit: env ## unit and property tests
	@echo "== unit and property tests"
	@$(BIN)/pytest -q -n 2 -m "not browser"

browser: env ## the notebooks and widgets in JupyterLab and a real Chromium
	@echo "== browser"
	@$(BIN)/pytest -q -m browser

coverage: env ## line and branch coverage of the logic, which must be complete
	@echo "== coverage of the logic"
	@$(BIN)/pytest -q -n 2 --cov $(LOGIC)

nbval: env ## the notebooks print what they are committed with
	@echo "== notebooks"
	@$(if $(NOTEBOOKS),$(BIN)/pytest -q -n 2 --dist loadscope --nbval notebooks,echo "no notebooks yet: skipped")

conformance: env ## every kernel vector and recording at hand, value by value
	@echo "== conformance"
	@$(BIN)/kvm-pf check $(VECTORS)
	@$(BIN)/kvm-pf replay $(RECORDINGS)

bench: env ## speed against plain Python and C
	$(BIN)/python benchmarks/speed.py

html: env ## the notebooks as they are committed, as a site in build/html
	@$(BIN)/python tools/site.py

notebooks: env ## execute the notebooks and write them back in normal form
	$(BIN)/python tools/notebooks.py run

lock: ## work out requirements.lock from pyproject.toml (delete it first for the newest of everything)
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install -qq uv
	build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	    --generate-hashes --custom-compile-command "make lock" --group dev \
	    --output-file requirements.lock pyproject.toml

clean: ## remove what make made
	rm -rf .venv build dist .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
