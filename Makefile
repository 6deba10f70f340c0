# SPDX-License-Identifier: GPL-2.0-only
PYTHON ?= python3

# `make test PYTHON=python3.13` has an environment of its own, .venv-3.13.
VERSION = $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
VENV := .venv$(if $(filter command line,$(origin PYTHON)),-$(or $(VERSION),$(error $(PYTHON) does not run)))
BIN := $(VENV)/bin
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
VECTORS ?= $(wildcard data/vectors/*.parquet)
KERNEL ?= prebuilt
CPU ?= amd
RECORD ?= build/record
RECORDINGS ?= $(patsubst %/,%,$(wildcard data/recordings/*/))

# What the tests of the path, and these alone, run must be the whole path, line by line and branch by branch.
LOGIC := tests/path

# What `make test` runs, the longest first; each line of output says which it is from.  The half of `conformance` that
# replays recordings is in tests/test_replay.py, too.
CHECKS := unit browser traces nbval logic vectors types lint
WORKERS ?= 2
PYTEST = $(BIN)/pytest -q -n $(WORKERS) --dist loadfile
SAY = 2>&1 | sed -u 's/^/$@: /'
SHELL := bash
.SHELLFLAGS := -o pipefail -c

# Compiled modules are kept: every notebook and command starts a Python of its own.  These are left for later.
unexport PYTHONDONTWRITEBYTECODE
RARE := tests|debugpy|jedi|libcst|pip|setuptools|pkg_resources|mypy|mypyc|fontTools|pygments|textual

# uv installs several times as fast as pip; where it finds nothing, pip may, which reads settings of its own.
LOCKED := --no-deps --require-hashes --requirement

# matplotlib builds its font list on first use and says so in the notebook: keep one here, made with the environment.
export MPLCONFIGDIR := $(CURDIR)/$(VENV)/var/matplotlib

# JupyterLab would ask each newcomer about news.
LAB := $(VENV)/share/jupyter/lab/settings
QUIET := {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}

.DEFAULT_GOAL := help
.PHONY: help walkthrough test env unit traces browser nbval logic claims conformance vectors types lint mutants fuzz newest oldest bench record test-record html pocket notebooks lock clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

ifeq ($(HEADLESS),1)
walkthrough: env
	@$(BIN)/python tools/site.py --execute
else
walkthrough: env ## open the first page in JupyterLab (HEADLESS=1: execute all, write the site)
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/index.ipynb
endif

# Four targets at a time, each in one process but for the longest: the browser's waits more than it computes.
test: env ## everything that must hold
	@$(MAKE) --no-print-directory --jobs=4 WORKERS=0 $(CHECKS)

env: $(VENV)/ready ## make .venv from requirements.lock and install the project into it

$(VENV)/ready: $(VENV)/locked pyproject.toml
	@$(BIN)/python -m pip install -qq --no-index --no-deps --no-build-isolation --editable .
	@mkdir -p $(LAB) && echo '$(QUIET)' >$(LAB)/overrides.json
	@touch $@

$(VENV)/locked: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	@echo "making $(VENV) (once; half a minute, or a minute more without uv)"
	@$(PYTHON) -m venv --clear $(VENV)
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock >$(VENV)/uv.txt
	@$(BIN)/python -m pip install -qq $(LOCKED) $(VENV)/uv.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python $(LOCKED) requirements.lock \
	    || $(BIN)/python -m pip install -qq --no-compile $(LOCKED) requirements.lock
	@$(BIN)/python -W ignore -m compileall -qq -j 2 -x '/($(RARE))/' $(VENV)/lib
	@$(BIN)/python -c 'import matplotlib.font_manager'
	@touch $@

unit: override WORKERS = 2
unit: env ## unit and property tests of all but the logic and the traces
	@$(PYTEST) -m "not browser" $(wildcard tests/test_*.py) $(SAY)

traces: env ## unit and property tests of the readers of traces
	@$(PYTEST) tests/trace $(SAY)

logic: env ## tests of the logic; its line and branch coverage must be complete
	@$(PYTEST) $(LOGIC) --cov $(SAY)

browser: env ## the notebooks and widgets in JupyterLab, and alive in the site's pages, in a real Chromium
	@$(BIN)/pytest -q -m browser tests/test_browser.py tests/test_live.py $(SAY)

nbval: env ## the notebooks print and draw what they are committed with
	@$(PYTEST) --nbval notebooks $(SAY)

claims: env ## every claim about the patch, asked of a solver
	@$(BIN)/kvm-pf prove $(SAY)

conformance: vectors ## every kernel vector and recording, value by value (others: VECTORS=... RECORDINGS=...)
	@$(BIN)/kvm-pf replay $(RECORDINGS) $(SAY)

vectors: env ## the vectors alone
	@$(BIN)/kvm-pf check $(VECTORS) $(SAY)

types: env ## mypy --strict on the package
	@$(BIN)/mypy $(SAY)

lint: env ## ruff and vulture
	@($(BIN)/ruff check --quiet && $(BIN)/ruff format --quiet --check && $(BIN)/vulture) $(SAY)

mutants: env ## break the logic in every small way: do the curated cases notice? (some ten minutes)
	$(BIN)/python -m tools.mutate

fuzz: env ## damaged inputs and command lines for every reader (SECONDS=60, SEED=1; goes on where it ended)
	$(BIN)/python -m tools.fuzz --seconds $(or $(SECONDS),60) --seed $(or $(SEED),1)

newest: ## the tests with the newest versions that pyproject.toml allows, in .venv-newest: what would break?
oldest: ## the tests with the oldest versions that pyproject.toml allows, in .venv-oldest: is each floor true?
oldest: OLDEST := --resolution lowest-direct
newest oldest:
	$(PYTHON) -m venv --clear .venv-$@
	.venv-$@/bin/python -m pip install -qq uv
	.venv-$@/bin/uv pip install --quiet --python .venv-$@/bin/python $(OLDEST) --upgrade --editable . --group dev
	.venv-$@/bin/python -m pip list --format freeze >.venv-$@/versions.txt
	.venv-$@/bin/pytest -q -n 2 --dist loadfile -m "not browser" tests

bench: env ## speed against plain Python and C
	$(BIN)/python benchmarks/speed.py

record: env ## record a running KVM on a software CPU, then replay it (KERNEL=self, CPU=intel; see tools/recorder)
	@set -e; for kernel in $(if $(filter self,$(KERNEL)),self posted,$(KERNEL)); do \
	    out=$(RECORD)/$$kernel-$(CPU); \
	    $(BIN)/python tools/recorder/record.py --kernel $$kernel --cpu $(CPU) --work $(RECORD) --out $$out \
	        --boot-args "$(BOOT)" --debian "$(DEBIAN)" $(addprefix --scenario ,$(SCENARIOS)); \
	    $(BIN)/kvm-pf replay $$out; \
	done

test-record: env ## the recorder: record a prebuilt kernel anew, twice, and replay it (some two minutes)
	@$(BIN)/pytest -q -rs tests/record $(SAY)

html: env ## the notebooks as they are committed, as a site in build/html, its widgets alive
	@$(BIN)/python tools/site.py

pocket: env ## all widgets in one file that opens from disk, build/pocket/kvm_pf.html
	@$(BIN)/python tools/live/pocket.py

notebooks: env ## execute the notebooks and write them back in normal form
	$(BIN)/python tools/notebooks.py run

lock: ## work out requirements.lock from pyproject.toml (delete it first for the newest of everything)
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install -qq uv
	build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	    --generate-hashes --custom-compile-command "make lock" --group dev \
	    --output-file requirements.lock pyproject.toml

clean: ## remove what make made
	rm -rf .venv .venv-* build dist .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
