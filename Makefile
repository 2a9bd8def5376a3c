# What developers do here. Nothing but Python 3.11+, make and git is needed; everything else comes from PyPI.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?= data
PYTEST_ARGS ?=
SEEDS ?= 1000:1050

.PHONY: help setup run test test-interop simulate mutations nightly abuse lint format demo bench migration lock clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# -- environments: made when missing, made anew when what they are made from changed -----------------------------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.lock pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

$(VENV)/.develop: requirements-dev.lock pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@ $(VENV)/.run

.venv-synapse/.installed: requirements-interop.lock
	$(PYTHON) -m venv .venv-synapse
	.venv-synapse/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-interop.lock
	@touch $@

setup: $(VENV)/.develop ## Make the virtual environment for development

# -- running -----------------------------------------------------------------------------------------------------------

$(DATA)/homeserver.toml: | $(VENV)/.run
	$(BIN)/homeserver init --server-name localhost --data-dir $(DATA) --keys-dir keys --development

run: $(VENV)/.run $(DATA)/homeserver.toml ## Serve a homeserver for development at http://localhost:8008
	$(BIN)/homeserver serve --config $(DATA)/homeserver.toml

demo: $(VENV)/.develop ## Two servers with TLS, a direct message between them, told line by line
	$(BIN)/python scripts/demo.py

bench: $(VENV)/.develop ## Measure the paths that matter (ARGS="--base-url ..." for a running server)
	$(BIN)/python -m benchmarks $(ARGS)

# -- checking ----------------------------------------------------------------------------------------------------------

test: $(VENV)/.develop ## Run the tests, on SQLite and PostgreSQL (PYTEST_ARGS="-k name" for some of them)
	$(BIN)/python -m pytest -n auto -m "not interop" $(PYTEST_ARGS)

test-interop: $(VENV)/.develop .venv-synapse/.installed ## Run the tests against a real Synapse
	$(BIN)/python -m pytest -m interop tests/interop $(PYTEST_ARGS)

simulate: $(VENV)/.develop ## Simulate servers that crash and lose each other (SEEDS=1000:1050 VERSION=11); see tests/simulation/README.md
	$(BIN)/python -m tests.simulation $(SEEDS) $(if $(VERSION),--version $(VERSION)) $(if $(MUTATION),--mutation $(MUTATION)) $(ARGS)

mutations: $(VENV)/.develop ## Put faults back one at a time, and see that the simulator finds each
	PYTHONHASHSEED=0 $(BIN)/python -m tests.simulation.mutations

nightly: $(VENV)/.develop ## Simulate a thousand seeds, each room version in turn, and attack a real server
	$(BIN)/python -m tests.simulation 1:1001 --brief
	$(BIN)/python -m tests.abuse

abuse: $(VENV)/.develop ## Attack a real server, and measure what an innocent user notices (ATTACK=name CHECKOUT=folder); see tests/abuse/README.md
	$(BIN)/python -m tests.abuse $(ATTACK) $(if $(CHECKOUT),--checkout $(CHECKOUT)) $(ARGS)

lint: $(VENV)/.develop ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.develop ## Put the code into its form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# -- now and then ------------------------------------------------------------------------------------------------------

migration: $(VENV)/.develop ## Write a migration for what changed in storage/tables.py (m="what changes")
	$(BIN)/python scripts/migration.py $(if $(m),"$(m)")
	$(BIN)/ruff check --quiet --fix alembic
	$(BIN)/ruff format --quiet alembic

lock: ## Choose new versions of everything within the bounds of pyproject.toml
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	.venv-lock/bin/python scripts/lock.py

clean: ## Remove what can be made again; the data of the development server stays
	rm -rf $(VENV) .venv-synapse .venv-lock .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
