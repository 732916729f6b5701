# make demo | test | check | lint | docs | test-all | format | clean
# Everything runs in a virtual environment of its own: VENV, made with PYTHON (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet
# A file's tests stay together: they share what it sets up.
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile
METADATA := pyproject.toml setup.py

.DEFAULT_GOAL := help
.PHONY: help demo test check lint docs test-all format clean

help:
	@echo "make demo      train, sample and export a tiny Stable Diffusion; report in runs/demo"
	@echo "make test      the tests that need neither a GPU nor much time"
	@echo "make check     what a change must pass: format, lint, import rules, tests"
	@echo "make lint      the same without the tests"
	@echo "make docs      the documentation, built into site/; a broken link fails"
	@echo "make test-all  all tests, full-size parity included (20 GB and twenty minutes)"
	@echo "make format    format the code and mend what ruff can mend"
	@echo "make clean     remove caches and build products; VENV and runs/ stay"
	@echo "PYTHON=python3.12 picks the interpreter, ARGS='-k ddim' goes to pytest, WORKERS=8 is for many cores."

demo: $(VENV)/.stamp-run
	$(BIN)/python -m medsd_jax demo --output runs/demo

test: $(VENV)/.stamp-test
	$(PYTEST) $(ARGS)

# The empty marker expression lifts the default selection; what the machine lacks is skipped.
test-all: $(VENV)/.stamp-test
	$(PYTEST) -m "" --timeout 3600 $(ARGS)

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo

check: lint test

# The theme announces its successor on every build. With --quiet --strict would see no warnings.
docs: $(VENV)/.stamp-docs
	NO_MKDOCS_2_WARNING=1 JAX_PLATFORMS=cpu $(BIN)/python -m mkdocs build --strict
	@echo "site/index.html is built; $(BIN)/python -m http.server -d site shows it, with its search"

format: $(VENV)/.stamp-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .import_linter_cache .jax_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# A stamp is older than the metadata after a change of the requirements: then pip runs again.
$(VENV)/.stamp-run: $(METADATA) | $(VENV)/pyvenv.cfg
	$(PIP) --editable .
	@touch $@

$(VENV)/.stamp-test: $(METADATA) | $(VENV)/pyvenv.cfg
	$(PIP) --editable '.[test]'
	@touch $@ $(VENV)/.stamp-run

$(VENV)/.stamp-dev: $(METADATA) | $(VENV)/pyvenv.cfg
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.stamp-run

$(VENV)/.stamp-docs: $(METADATA) | $(VENV)/pyvenv.cfg
	$(PIP) --editable '.[docs]'
	@touch $@ $(VENV)/.stamp-run

$(VENV)/pyvenv.cfg:
	@command -v $(PYTHON) >/dev/null || \
	  { echo "medsd_jax: no '$(PYTHON)' here; name a Python 3.11 or newer: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "medsd_jax: needs Python 3.11 or newer, '$(PYTHON)' is $$($(PYTHON) -V 2>&1); name another: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -f $@; echo "medsd_jax: '$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
