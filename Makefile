# Needs GNU make, Python >= 3.11 and Node >= 16; everything else is installed into .venv.
# Another interpreter: make test PYTHON=/path/to/python3.12

.DELETE_ON_ERROR:
.NOTPARALLEL:
.SUFFIXES:

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PYTEST := $(BIN)/python -m pytest

# The first Python >= 3.11 on PATH, looked for only when the environment has to be made.
FIND_PYTHON = for name in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	  if $$name -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    echo $$name; break; fi; done
PYTHON ?= $(shell $(FIND_PYTHON))

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no Python >= 3.11 on PATH; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)

# The stamps live inside the environment, so removing it removes them too.
$(VENV)/.installed-cli: setup.cfg pyproject.toml | $(BIN)/python
	$(PIP) install -e '.[cli]'
	@touch $@

$(VENV)/.installed-dev: setup.cfg pyproject.toml | $(BIN)/python
	$(PIP) install -e '.[dev]'
	@touch $@ $(VENV)/.installed-cli

.PHONY: demo
demo: $(VENV)/.installed-cli ## Install into .venv and run the demo
	$(BIN)/snakepit demo

.PHONY: test
test: runtimes lint typecheck suites docs wheel-test ## Everything that has to pass

.PHONY: runtimes
runtimes: ## Install the language runtimes that the tests need
	sh tests/install_runtimes.sh

.PHONY: lint
lint: $(VENV)/.installed-dev ## ruff
	$(BIN)/ruff check .

.PHONY: typecheck
typecheck: $(VENV)/.installed-dev ## mypy --strict on snakepit/
	$(BIN)/mypy

.PHONY: suites
suites: $(VENV)/.installed-dev ## Architecture, unit, conformance, integration and documentation-code tests
	$(PYTEST) $(ARGS)

.PHONY: wheel-test
wheel-test: $(VENV)/.installed-dev ## Build the distributions, test them from fresh environments
	$(PYTEST) tests/wheel $(ARGS)

.PHONY: soak
soak: $(VENV)/.installed-dev ## The long chaos run
	$(PYTEST) -m soak --timeout=0 tests $(ARGS)

.PHONY: coverage
coverage: $(VENV)/.installed-dev ## Branch coverage; the pure modules must be covered completely
	$(PYTEST) --cov --cov-report= tests/unit
	$(BIN)/coverage report
	$(BIN)/coverage report --fail-under=100 \
	  --include='snakepit/_wire/messages.py,snakepit/_wire/values.py,snakepit/_core/scheduler.py,snakepit/sessions.py,snakepit/config.py'

.PHONY: docs
docs: $(VENV)/.installed-dev ## Build the documentation, warnings are errors
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

.PHONY: bench
bench: $(VENV)/.installed-dev ## Run each benchmark beside its peers
	@set -e; for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script; done

.PHONY: api-snapshot
api-snapshot: $(VENV)/.installed-dev ## Accept the public interface as it is now
	$(BIN)/python tests/architecture/api_snapshot.py --update

.PHONY: changelog
changelog: $(VENV)/.installed-dev ## Collect the fragments of docs/changelog.d into the changelog
	$(BIN)/towncrier build --yes --version "$$($(BIN)/python -c 'from importlib.metadata import version; print(version("snakepit-pool"))')"

.PHONY: clean
clean: ## Remove everything that was built, .venv included
	rm -rf $(VENV) build dist *.egg-info docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
	find snakepit bridges benchmarks tests docs -name __pycache__ -type d -prune -exec rm -rf {} +
