# make quickstart   a fresh machine -> .venv, everything installed, a BERT pretrained, a report
# make test         a fresh machine -> .venv, everything installed, lint, types, all tests
# make test-gpu     the tests that need a GPU; without one they say so
# make test-faults  runs that are killed, stopped, starved: a quarter of an hour
# make test-slurm   a real SLURM on this machine, its daemons started here (Debian: slurm-wlm munge)
# make test-docs    every command of the pages in docs/, on small texts: six minutes
# make test-slow    what make test has once, for more optimizers and stages
# make check        lint and types alone
# make bench        optimizers side by side on BERT-Large's parameters, 12 GB of memory
# make reproduce-cpu   the paper's comparisons, small: hours on two cores, goes on when started again
# make reproduce-gpu   the same on one large GPU; in pieces: make reproduce-gpu ARGS="--minutes 9"
# make clean        removes .venv and caches; runs/ stays
# Other sizes and devices: make bench ARGS="--device cuda --out runs/bench/cuda.json"
# What the paper does not compare: make reproduce-cpu ARGS=--beyond
# More settings for the quickstart: make quickstart ARGS="optimizer=adamw run.dir=runs/adamw"
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: quickstart test test-gpu test-faults test-slurm test-docs test-slow check format bench reproduce-cpu reproduce-gpu clean

quickstart: $(INSTALLED)
	$(BIN)/came-train experiment=quickstart $(ARGS)

# Two at a time: many tests start ranks of their own.
test: check
	$(BIN)/pytest -q -n 2 --dist worksteal

test-gpu: $(INSTALLED)
	$(BIN)/pytest -q tests/gpu -rs

test-faults: $(INSTALLED)
	$(BIN)/pytest -q tests/faults -m "" $(ARGS)

test-slurm: $(INSTALLED)
	$(BIN)/pytest -q tests/slurm -m "" -rs $(ARGS)

test-slow: $(INSTALLED)
	$(BIN)/pytest -q -m slow $(ARGS)

test-docs: $(INSTALLED)
	$(BIN)/pytest -q tests/docs -m "" --durations=0 $(ARGS)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)
	$(BIN)/python -m scripts.bench_optimizer --out runs/bench/optimizer.json $(ARGS)

reproduce-cpu reproduce-gpu: reproduce-%: $(INSTALLED)
	$(BIN)/python -m scripts.reproduce $* $(ARGS)

# Torch comes first and alone: DeepSpeed looks for it while it is installed.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("make: Python 3.10 or newer is needed, name one: make PYTHON=python3.12" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c constraints.txt torch
	$(BIN)/pip install -c constraints.txt -e '.[train,dev]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache *.egg-info build
