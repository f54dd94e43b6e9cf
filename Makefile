# `make quickstart` and `make test` need git, make and Python 3.10 or newer; each makes .venv itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-all lint docs clean

quickstart: $(VENV)/installed
	$(BIN)/python tools/quickstart.py

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest

test-all: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m ''

lint: $(VENV)/installed-dev
	PATH="$(CURDIR)/$(BIN):$$PATH" pre-commit run --all-files

docs: $(VENV)/installed-dev
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html

$(VENV)/installed: setup.py
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'metaloss needs Python 3.10 or newer, not ' + sys.version.split()[0])"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --upgrade pip
	$(BIN)/python -m pip install -qq --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install -qq --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV)
