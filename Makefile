# Everything installs itself into .venv from the lock; nothing else is needed than Python 3.11 or newer, make and git.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

# What is locked, by its hash and in wheels only: each file of locks/ says so itself (docs/installation.md).
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --progress-bar off --no-deps
TOOLS := .venv-tools/bin

.PHONY: demo test test-slow test-faults test-statistics quarter bench ui lock audit sbom clean

demo: $(STAMP)
	$(BIN)/vae-anomaly demo

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not faults and not statistics"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

test-faults: $(STAMP)
	$(BIN)/python -m pytest -s -m faults

test-statistics: $(STAMP)
	$(BIN)/python -m pytest tests/contracts/test_thresholds.py tests/contracts/test_segments.py tests/unit/test_watch.py tests/statistics

quarter: $(STAMP)
	$(BIN)/python -m benchmarks.quarter

bench: $(STAMP)
	$(INSTALL) -r locks/bench.txt
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.job

ui: $(STAMP)
	$(BIN)/mlflow ui --backend-store-uri sqlite:///demo/state/mlflow.db

lock audit sbom: .venv-tools/installed
	PATH=$(CURDIR)/$(TOOLS):$$PATH $(TOOLS)/python -m locks $@ $(OPTIONS)

$(STAMP): pyproject.toml locks/run.txt locks/dev.txt locks/torch.txt locks/torch-cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python must be 3.11 or newer. Got $$($(PYTHON) --version 2>&1). Set PYTHON=python3.12, say." >&2; exit 2; }
	@echo "Installing into .venv from the lock; this takes two to four minutes, once ..."
	$(PYTHON) -m venv .venv
	@# the small build for the CPU where pip is told of an index that has it; else the default one, with CUDA on Linux
	@$(INSTALL) -r locks/torch-cpu.txt 2>/dev/null || $(INSTALL) -r locks/torch.txt
	$(INSTALL) -r locks/run.txt -r locks/dev.txt
	$(INSTALL) --no-build-isolation -e .
	@$(BIN)/pip check
	@touch $@

.venv-tools/installed: locks/tools.txt
	$(PYTHON) -m venv .venv-tools
	.venv-tools/bin/pip install --quiet --disable-pip-version-check --no-deps -r locks/tools.txt
	@touch $@

clean:
	rm -rf .venv .venv-tools demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
