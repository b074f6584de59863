# Each target does all the set-up it needs: Python >= 3.11 with its headers, a C++ compiler and make suffice.
# The first run installs the locked dependencies into .venv; later runs start at once.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

VENV ?= .venv
JOBS ?= 2# pytest workers
KILLS ?= 100# kill -9 per store under `make soak`
SCHEDULES ?= 200000# simulated worlds under `make soak`
ENGINE ?=# of `make e2e`: kind, host (as root) or context; kind where it is installed, else host
ARGS ?=# more arguments for pytest, the demo or the benchmark

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet
LOCKS := .ci/requirements/build.lock .ci/requirements/native.lock .ci/requirements/all.lock
NATIVE := $(wildcard dataplane/lakehouse/index/*.cpp dataplane/lakehouse/index/*.h)
UV_VERSION := 0.13.9
# What only the data plane uses, left out of the operator's image.
NOT_IN_OPERATOR := duckdb hnswlib httptools pyarrow python-multipart sqlglot uvicorn uvloop

.PHONY: help setup minio demo test soak e2e e2e-soak bench lint format lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup ## Declare datasets and indexes of 5,000 packages, search, SQL, drain, kill -9, restore; nothing is lost
	@$(BIN)/python examples/demo.py $(ARGS)

test: setup minio ## Run every test but the soak (about 20 minutes on 2 cores); says what it skipped and why
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -rsfE --durations=10 $(ARGS)

soak: setup minio ## Run the long tests: KILLS=100 kills per store, SCHEDULES=200000 simulated worlds, whole data
	@LAKEHOUSE_KILLS=$(KILLS) $(BIN)/python -m pytest -m "soak or kill" --soak -rsfE --durations=10 -s $(ARGS)
	@LAKEHOUSE_SCHEDULES=$(SCHEDULES) $(BIN)/python -m pytest tests/simulation/test_random_schedules.py \
	  -n $(JOBS) --timeout 7200 $(ARGS)

e2e: setup ## Run the end-to-end tests on a Kubernetes cluster: made for them (ENGINE=kind|host), or yours (context)
	@PYTHONPATH=tests $(BIN)/python -m e2e.run --engine "$(ENGINE)" $(ARGS)

e2e-soak: setup ## Run the long end-to-end tests: kills by the dozen under load, hundreds of resources
	@PYTHONPATH=tests $(BIN)/python -m e2e.run --engine "$(ENGINE)" --soak $(ARGS)

bench: setup ## Measure the server beside in-process hnswlib, or with ARGS=lake SQL beside DuckDB alone
	@$(BIN)/lakehouse bench $(ARGS)

lint: setup ## Check style, types and who imports whom
	@failed=0; \
	  $(BIN)/ruff check . || failed=1; \
	  $(BIN)/ruff format --check . || failed=1; \
	  $(BIN)/mypy || failed=1; \
	  $(BIN)/lint-imports --no-logo || failed=1; \
	  exit $$failed

format: setup ## Rewrite the sources in the project's style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

setup: $(VENV)/.project ## Make .venv (the other targets do this by themselves)

$(VENV)/.project: $(VENV)/.dependencies pyproject.toml hatch_build.py $(NATIVE)
	@echo "installing lakehouse into $(VENV)" >&2
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

# Three steps, because hnswlib comes as source and its build must not fetch what no hash covers:
# first what builds need, then hnswlib with exactly that, then the wheels.  hnswlib compiles for the CPU at hand
# (-march=native), so its wheel stays out of pip's cache: home directories travel between CPUs.
$(VENV)/.dependencies: $(LOCKS)
	@.ci/venv $(VENV)
	@echo "installing the locked dependencies into $(VENV) (about a minute)" >&2
	@$(PIP) install --require-hashes --only-binary :all: -r .ci/requirements/build.lock
	@$(PIP) install --require-hashes --no-cache-dir --no-deps --no-build-isolation -r .ci/requirements/native.lock
	@$(PIP) install --require-hashes --only-binary :all: -r .ci/requirements/all.lock
	@touch $@

# Part of the installation, so that no test waits for it; without Go the tests that need it are skipped.
minio: setup ## Build the MinIO server that tests use (5 minutes once; it is kept in ~/.cache/lakehouse)
	@$(BIN)/python tests/minio_server.py >/dev/null || true

lock: ## Resolve the dependencies again, for all supported Pythons and machines, into .ci/requirements/
	@test -x build/uv/bin/uv || { python3 -m venv build/uv && build/uv/bin/pip install --quiet uv==$(UV_VERSION); }
	@lock() { build/uv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --fork-strategy fewest \
	    --generate-hashes --no-emit-index-url --no-header --no-annotate "$$@"; }; \
	  lock --group pyproject.toml:build --output-file .ci/requirements/build.lock; \
	  lock --constraint .ci/requirements/build.lock --extra bench --extra operator --group pyproject.toml:dev \
	    --output-file .ci/requirements/all.lock pyproject.toml; \
	  grep '^hnswlib==' .ci/requirements/all.lock | cut -d' ' -f1 \
	    | lock --no-deps --output-file .ci/requirements/native.lock -; \
	  lock --constraint .ci/requirements/all.lock --output-file .ci/requirements/dataplane.lock pyproject.toml; \
	  lock --constraint .ci/requirements/all.lock --extra operator $(addprefix --no-emit-package ,$(NOT_IN_OPERATOR)) \
	    --output-file .ci/requirements/operator.lock pyproject.toml

clean: ## Remove .venv, caches and builds; data directories stay
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find dataplane operator tests examples -name __pycache__ -prune -exec rm -rf {} +
	@rm -f dataplane/lakehouse/index/*.so
