# Needs GNU make, Python >= 3.11 and Node >= 16.  What is needed of Python is installed into .venv.  `make test` (by
# `make runtimes`) also installs the languages and programs that are missing, system-wide: with apt-get, as root or by
# `sudo -n`, or with brew; and with npm and pip what the examples use, below build/.
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

$(VENV)/.installed-bench: setup.cfg pyproject.toml | $(BIN)/python
	$(PIP) install -e '.[bench]'
	@touch $@

.PHONY: demo
demo: $(VENV)/.installed-cli ## Install into .venv and run the demo
	$(BIN)/snakepit demo

.PHONY: test
test: runtimes lint typecheck suites docs wheel-test ## Everything that has to pass

.PHONY: runtimes
runtimes: | $(BIN)/python ## Install the language runtimes that the tests need, and what the examples use
	sh tests/install_runtimes.sh

.PHONY: lint
lint: $(VENV)/.installed-dev ## ruff
	$(BIN)/ruff check .

.PHONY: typecheck
typecheck: $(VENV)/.installed-dev ## mypy --strict on snakepit/
	$(BIN)/mypy

# Side by side, each process in the suites' own order; JOBS=0 for one process.
JOBS ?= 2
.PHONY: suites
suites: $(VENV)/.installed-dev ## Architecture, unit, conformance, integration and documentation-code tests
	$(PYTEST) -n $(JOBS) $(ARGS)

.PHONY: wheel-test
wheel-test: $(VENV)/.installed-dev ## Build the distributions, test them from fresh environments
	$(PYTEST) tests/wheel $(ARGS)

# SECONDS and SEED say how long and what; the seed is printed, the results are written to build/reliability.
LONG_RUN = PYTHONPATH=tests $(BIN)/python -m chaos
LONG_RUN_OPTIONS = $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) $(ARGS)

.PHONY: chaos
chaos: $(VENV)/.installed-dev ## Pools under fire for 10 minutes: make chaos SECONDS=60 SEED=1
	$(LONG_RUN) chaos $(LONG_RUN_OPTIONS)

.PHONY: soak
soak: $(VENV)/.installed-dev ## Pools at full speed for 30 minutes, watched for what grows: make soak SECONDS=300
	$(LONG_RUN) soak $(LONG_RUN_OPTIONS)

.PHONY: orphans
orphans: $(VENV)/.installed-dev ## Every end of a host in every phase, and how fast nothing is left of it
	$(PYTEST) -m "" tests/orphans $(ARGS)

.PHONY: random
random: $(VENV)/.installed-dev ## The suites in a random order; its seed is printed
	$(PYTEST) -p randomly $(ARGS)

.PHONY: fuzz
fuzz: $(VENV)/.installed-dev ## The scheduler's state machine for STEPS (200000); again: SNAKEPIT_SEED=...
	SNAKEPIT_LONG=1 SNAKEPIT_STEPS=$(STEPS) $(PYTEST) --timeout=0 -o faulthandler_timeout=0 -s tests/unit/test_scheduler_machine.py $(ARGS)

.PHONY: fuzz-wire
fuzz-wire: $(VENV)/.installed-dev ## Coverage-guided fuzzing of the codec for SECONDS (60)
	$(BIN)/python tests/fuzz/fuzz_wire.py $(or $(SECONDS),60) $(ARGS)

ROUNDS ?= 10
STRESS := $(addprefix tests/unit/test_,inbox.py ledger.py watchdog.py) $(wildcard tests/unit/test_races*.py tests/integration/test_races*.py) \
  $(addprefix tests/integration/test_,queue.py crash.py shutdown.py timeouts.py)
.PHONY: stress
stress: $(VENV)/.installed-dev ## The concurrency tests ROUNDS (10) times, four at once, beside a busy processor
	@$(BIN)/python tests/burner.py & burner=$$!; trap 'kill $$burner' EXIT; failed=; \
	for round in $$(seq $(ROUNDS)); do \
	  echo "== round $$round of $(ROUNDS)"; \
	  $(PYTEST) -p randomly -n 4 $(STRESS) $(ARGS) || failed="$$failed $$round"; \
	done; \
	if [ -n "$$failed" ]; then echo "failed in round$$failed"; exit 1; fi

.PHONY: coverage
coverage: $(VENV)/.installed-dev ## Branch coverage; the pure modules must be covered completely
	$(PYTEST) --cov --cov-report= tests/unit
	$(BIN)/coverage report
	$(BIN)/coverage report --fail-under=100 \
	  --include='snakepit/_wire/messages.py,snakepit/_wire/values.py,snakepit/_core/scheduler.py,snakepit/sessions.py,snakepit/config.py'

.PHONY: languages-table
languages-table: $(VENV)/.installed-dev ## Run the conformance kit on every bridge, write the table of docs/languages.md
	$(BIN)/python tests/conformance/table.py $(ARGS)

.PHONY: docs
docs: $(VENV)/.installed-dev ## Build the documentation, warnings are errors
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

# The environment of the tests has none of the peers: they are large.
.PHONY: bench
bench: $(VENV)/.installed-bench ## Run every benchmark beside its peers (10 minutes), write docs/performance.md and its plots
	$(BIN)/python benchmarks/run.py $(ARGS)
	$(BIN)/python benchmarks/report.py

.PHONY: bench-check
bench-check: $(VENV)/.installed-bench ## Fail when a ratio is 20 % worse than the recorded one; ARGS="maps store" for some scripts
	$(BIN)/python benchmarks/run.py --check $(ARGS)

.PHONY: bench-record
bench-record: $(VENV)/.installed-bench ## Record the ratios of three quick runs, which bench-check compares with
	for number in 1 2 3; do $(BIN)/python benchmarks/run.py --quick --folder build/bench-record/$$number || exit 1; done
	$(BIN)/python benchmarks/report.py --record --folder build/bench-record/[123]

.PHONY: repeat
repeat: $(VENV)/.installed-dev ## The suites 20 times in their own order and 5 times in a random one
	$(BIN)/python tests/repeat.py $(ARGS)

.PHONY: audit
audit: $(VENV)/.installed-dev ## Ask for known vulnerabilities of the dependencies; needs the network
	$(BIN)/python -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip --disable-pip-version-check --quiet install pip-audit
	$(VENV)/audit/bin/pip-audit --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

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
