# make quickstart   a fresh machine -> .venv, everything installed, a BERT pretrained, a report
# make test         a fresh machine -> .venv, everything installed, lint, types, all tests
# make check        lint and types alone
# make clean        removes .venv and caches; runs/ stays
# More settings for the quickstart: make quickstart ARGS="optimizer=adamw run.dir=runs/adamw"
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: quickstart test check format clean

quickstart: $(INSTALLED)
	$(BIN)/came-train experiment=quickstart $(ARGS)

test: check
	$(BIN)/pytest -q

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Torch comes first and alone: DeepSpeed looks for it while it is installed.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("make: Python 3.10 or newer is needed, name one: make PYTHON=python3.12" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c constraints.txt torch
	$(BIN)/pip install -c constraints.txt -e '.[train,dev]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache *.egg-info build
