# Everything this repository can do, by name. `make help` lists it; continuous integration calls nothing else.
# Every target makes what it needs: `make test` or `make demo` on a fresh clone sets the whole environment up first.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
MINUTES := 20
TORCH := $(shell sed -n '/^torch==/p' requirements.lock)

# Three stamps, so that each part of the set-up runs again only when what it depends on has changed.
DEPENDENCIES := $(VENV)/.dependencies
INSTALLED := $(VENV)/.installed
GENERATED := protos/.generated
PROTOS := $(wildcard protos/*.proto)

# One thread per process: the suites run many trainers on few cores, and thread pools that fight are slower.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --durations=5 --durations-min=1.0
# Most tests keep one core busy at most, so that two run at a time (PROCESSES=0 after any target: one after the other).
PROCESSES := 2
BESIDE := --numprocesses $(PROCESSES) --dist worksteal
# Suites start some thousand processes of this program: without byte code each would compile its sources again.
unexport PYTHONDONTWRITEBYTECODE
SUITES := lint test-unit test-scenarios test-simulation test-integration test-chaos

.PHONY: help setup demo test $(SUITES) test-chaos-jobs test-chaos-drawn test-long sim chaos fmt protos lock bench crd wheels image e2e clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  PYTHON=python3.12 after any target picks the interpreter that $(VENV) is made with (3.11 or newer)"

setup: $(GENERATED) ## make .venv with the locked dependencies and the generated protobuf code

demo: $(GENERATED) ## train a small MoE on this machine, kill a node in mid-step, watch it go on
	$(BIN)/understudy run examples/stdlib-moe.yaml --fail 'step=60,kind=sigkill,node=node-2'

test: $(GENERATED) ## lint, then all suites, stopping at the first that fails; prints where the time went
	@table=""; for suite in $(SUITES); do \
	    began=$$(date +%s.%N); \
	    echo "== $$suite"; \
	    $(MAKE) --no-print-directory $$suite || { echo "== $$suite FAILED" >&2; exit 1; }; \
	    table+=$$(awk -v s="$$suite" -v a="$$began" -v b="$$(date +%s.%N)" \
	        'BEGIN { printf "  %-18s %8.1f s", s, b - a }')$$'\n'; \
	done; echo "== passed; where the time went:"; printf '%s' "$$table"

lint: $(GENERATED) ## ruff, formatting, mypy, import contracts, and the architecture tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy & types=$$!; \
	$(PYTEST) -q tests/architecture || { wait $$types || true; exit 1; }; \
	wait $$types

test-unit: $(GENERATED) ## rules and functions: no network, no processes, seconds
	$(PYTEST) $(BESIDE) tests/unit

test-scenarios: $(GENERATED) ## the decision core against its transcripts (rewrite: pytest tests/scenarios --rewrite)
	$(PYTEST) tests/scenarios

test-simulation: $(GENERATED) ## a hundred seeds of the simulation, and laws that are broken on purpose
	$(PYTEST) $(BESIDE) tests/simulation

test-integration: $(GENERATED) ## parts together: gRPC on localhost, SQL, process groups
	$(PYTEST) $(BESIDE) tests/integration -m "not long"

# Both wait most of the time, for leases to run out and processes to start: so they wait together.
test-chaos: $(GENERATED) ## whole jobs on this machine while processes are killed, stopped, cut off and starved
	$(MAKE) --no-print-directory --jobs=2 --keep-going test-chaos-jobs test-chaos-drawn

test-chaos-jobs: $(GENERATED)
	$(PYTEST) tests/chaos -m "not long"

test-chaos-drawn: $(GENERATED)
	OMP_NUM_THREADS=1 $(BIN)/understudy chaos --short

test-long: $(GENERATED) ## the whole jobs that `make test` leaves out for time
	$(PYTEST) tests/integration tests/chaos -m long

chaos: $(GENERATED) ## break jobs for MINUTES (20) with faults drawn from SEED, and judge every run
	OMP_NUM_THREADS=1 $(BIN)/understudy chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

sim: $(GENERATED) ## play SEEDS (1000) worlds full of trouble under virtual time; SEED=n tells one of them in full
	$(BIN)/python -m simulation $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),1000))

fmt: $(GENERATED) ## format the code and apply the safe fixes of the linter
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

protos: ## generate the protobuf and gRPC code again
	rm -f $(GENERATED)
	$(MAKE) --no-print-directory $(GENERATED)

bench: $(GENERATED) ## measure recovery times and the cost of fault tolerance
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.recovery
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.overhead

# Run it with the oldest Python that pyproject.toml admits, so that every pin exists for all newer ones too.
# What torch brings along for a GPU depends on the machine and stays out of the lock; so do local version labels.
lock: ## resolve the newest dependencies again and write requirements.lock
	@scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	$(PYTHON) -m venv "$$scratch/venv"; \
	pip="$$scratch/venv/bin/python -m pip --disable-pip-version-check"; \
	"$$scratch/venv/bin/python" -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
	    print(*project['dependencies'], *project['optional-dependencies']['dev'], sep='\n')" > "$$scratch/direct.txt"; \
	$$pip install --quiet $(TORCH); \
	$$pip install --quiet --upgrade --upgrade-strategy eager $(TORCH) -r "$$scratch/direct.txt"; \
	{ sed -n '/^#/p' requirements.lock; \
	  $$pip freeze --all | sed -E -e '/^(pip|wheel|triton|pytorch-triton.*|nvidia[-_].*|cuda[-_].*|intel[-_].*)[= ]/Id' \
	    -e 's/(==[^+ ]+)\+.*/\1/' | sort -f; } > "$$scratch/lock"; \
	if grep -nE ' @ |://' "$$scratch/lock"; then echo "a pin above is tied to this machine" >&2; exit 1; fi; \
	cp "$$scratch/lock" requirements.lock; wc -l requirements.lock

crd: $(GENERATED) ## write k8s/base/crd.yaml anew after a change of the job's fields
	$(BIN)/python -m orchestrator operator --print-crd > k8s/base/crd.yaml

wheels: $(GENERATED) ## collect in `wheels` what the image is built from: this program and all that it runs on
	$(PIP) wheel --quiet --wheel-dir wheels --no-build-isolation --constraint requirements.lock $(TORCH) .

image: wheels ## build the image understudy:latest without a network (BASE_IMAGE=python:3.11-slim-bookworm)
	docker build --network=none $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) -t understudy:latest .

e2e: $(GENERATED) ## the failure suite on a real cluster (docs/KUBERNETES.md); ONLY=worker_pod_killed picks tests
	$(PYTEST) -s --timeout=900 tests/e2e $(if $(ONLY),-k '$(ONLY)')

clean: ## remove .venv, caches and generated code
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -f protos/*_pb2.py protos/*_pb2.pyi protos/*_pb2_grpc.py $(GENERATED)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment. Where the system's Python has no ensurepip (Debian keeps it in python3-venv), its own pip serves.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "error: $(PYTHON) is missing or older than 3.11; name another one: make PYTHON=python3.12 setup" >&2; exit 1; }
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then $(PYTHON) -m venv $(VENV); \
	elif $(PYTHON) -m pip --version >/dev/null 2>&1; then \
	    { $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; } \
	        || { rm -rf $(VENV); echo "error: this pip cannot fill a virtual environment; upgrade pip (22.3 or newer)" \
	             "or install the python3-venv package" >&2; exit 1; }; \
	else \
	    echo "error: $(PYTHON) has neither ensurepip nor pip, so no virtual environment can be made." >&2; \
	    echo "remedy: sudo apt install python3-venv   (or name another interpreter: make PYTHON=/path/to/python3)" >&2; \
	    exit 1; \
	fi

# torch comes first and alone, as the package index gives it for this machine; the lock then settles everything else.
$(DEPENDENCIES): requirements.lock | $(BIN)/python
	$(PIP) install --quiet $(TORCH)
	$(PIP) install --quiet -r requirements.lock
	@touch $@

$(INSTALLED): pyproject.toml $(DEPENDENCIES)
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(GENERATED): $(PROTOS) $(INSTALLED)
	rm -f protos/*_pb2.py protos/*_pb2.pyi protos/*_pb2_grpc.py
	$(if $(PROTOS),$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS))
	@touch $@
