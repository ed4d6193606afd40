# make setup | demo | frontier | test | test-slow | test-slurm | fuzz | bench | bench-peers | bench-growth | bench-stages | lint | clean
# PYTHON=python3.12 picks another Python
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup demo frontier test test-slow test-slurm fuzz bench bench-peers bench-growth bench-stages lint clean

setup: $(VENV)/.dev  ## the package, and what its tests need

demo: $(VENV)/.package  ## the whole experiment, small: no network, no GPU
	$(BIN)/python train.py algo=dpo beta=0.1

frontier: $(VENV)/.package  ## a first frontier: DPO, PPO, Preferred-FT, best-of-N; no network, no GPU
	$(BIN)/python train.py -m sweep=demo

test: lint  ## two workers with a thread each; a file's tests stay together, as they share what they set up
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow and not gpu and not slurm"

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m "slow and not gpu and not slurm"

test-slurm: $(VENV)/.dev  ## sweeps on a SLURM of this machine alone, as root: apt-get install slurm-wlm munge
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs -m slurm

# 20 tests with 500 new cases each.
fuzz: $(VENV)/.dev  ## 10,000 random configurations, files, models and texts: right, or refused in one line
	FUZZ_CASES=500 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 tests/fuzz

bench: $(VENV)/.package bench-peers  ## us and the peers, one table; hours on two cores
	$(BIN)/python -m benchmarks

bench-peers: .bench/trl/.made .bench/trl_ppo/.made  ## the peers' environments, with the torch of ours; some minutes

# Later datasets and pandas still work with TRL 0.11.4; the torch of its own year would be another kernel library.
.bench/trl/.made: PEER = "trl==1.16.*" "transformers>=5,<6"
.bench/trl_ppo/.made: PEER = trl==0.11.4 transformers==4.45.2 rich
.bench/%/.made: | $(VENV)/.package
	rm -rf $(@D)
	$(BIN)/python -m venv $(@D)
	$(@D)/bin/python -m pip install -q $(PEER) torch==$$($(BIN)/python -c 'import torch; print(torch.__version__.split("+")[0])')
	touch $@

bench-growth: $(VENV)/.package  ## times over batch, length, vocabulary and model, beside the work: tables, a picture
	$(BIN)/python -m benchmarks growth

bench-stages: $(VENV)/.package  ## the cold default run and the sweep, stage by stage
	$(BIN)/python -m benchmarks stages --sweep

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:  ## caches and build folders; never outputs/ or the environment
	rm -rf build *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path "./$(VENV)/*" -not -path "./.bench/*" -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "error: Python 3.11, 3.12 or 3.13 is needed and $(PYTHON) is not: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.package: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e .
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q -e ".[dev]"
	touch $(VENV)/.package $@
