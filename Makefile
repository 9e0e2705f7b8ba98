# Set-up, tests and demo. `make setup PYTHON=python3.12` chooses the interpreter; `make help` lists the rest.

PYTHON ?= python3
VENV ?= .venv
DATA ?=
# Tests at a time; each takes a core, and up to 3 GiB of memory.
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 4 ? n : 4)))
# What test-gpus compiles for: NVIDIA's compute capabilities, AMD's architectures.
GPUS ?= 7.5 8.0 8.6 8.9 9.0 10.0 12.0 gfx942 gfx1100
BIN := $(VENV)/bin
READY := $(VENV)/.zipnerf-ns-ready

HAS_HEADERS := import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))

# ns-* programs, and ffmpeg where it came with pip, are found by name.
export PATH := $(abspath $(BIN)):$(PATH)

# Threads that wait for each other sleep: where they spin, a training on a CPU that shares its cores with another program
# took 10 s a step instead of 0.6 s.
test demo: export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup test test-gpus check-ranges lint demo check clean

help: ## this list
	@echo "make TARGET [PYTHON=python3.11] [VENV=.venv]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 15

setup: $(READY) ## virtual environment with zipnerf-ns, nerfstudio and the test tools

$(READY): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not here; name another: make setup PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' || { \
		echo "$$($(PYTHON) --version) will not do, it takes 3.10 to 3.12: make setup PYTHON=python3.11"; exit 1; }
	@command -v cc >/dev/null && $(PYTHON) -c '$(HAS_HEADERS)' || { \
		echo "Two of nerfstudio's dependencies are built from C, for which something is missing here:"; \
		echo "  apt-get install build-essential python3-dev"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
		echo "No virtual environment could be made: apt-get install python3-venv"; rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -e '.[dev,ffmpeg,photos]'
	$(BIN)/python -m zipnerf_ns.tools.system_check --link-ffmpeg
	$(BIN)/python -m zipnerf_ns.tools.system_check
	@touch $@

test: setup lint ## lint, then all tests
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

# With another Triton than torch's own: pip install --target DIR --no-deps triton==3.4.0, then PYTHONPATH=DIR make test-gpus
test-gpus: setup ## compile every kernel with every option for GPUs that are not here; takes an hour
	$(BIN)/python -W ignore -m zipnerf_ns.tools.check_gpu --all --capability $(GPUS) --jobs $(JOBS)

check-ranges: ## the wheel in clean environments, with the oldest and the newest dependencies; takes most of an hour
	@command -v $(PYTHON) >/dev/null && $(PYTHON) .ci/ranges

lint: setup ## style check
	$(BIN)/ruff check .

demo: setup ## train, evaluate and render the built-in scene, one that moves (SCENE=moving), or your own (DATA=folder)
	$(BIN)/python -m zipnerf_ns.tools.demo $(if $(DATA),--data "$(DATA)") $(if $(SCENE),--scene "$(SCENE)")

check: setup ## what this machine offers and what is missing
	$(BIN)/python -m zipnerf_ns.tools.system_check

clean: ## remove the virtual environment and caches, not your results
	rm -rf $(VENV) build .pytest_cache .ruff_cache *.egg-info
