# Hansa. For GNU make 3.81 and later; `make help` lists the targets.
# pip keeps its own configuration: no index and no mirror is set here.

VENV ?= .venv
# PYTHON=python3.12 chooses the interpreter; tools/venv.sh finds one otherwise.
PYTHON ?=
# A file's tests stay together, in as many programs at once as there are processors, and no more than eight.
SPREAD ?= -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder
# More words for the command, as in: make demo ARGS=--keep
ARGS ?=

BIN := $(VENV)/bin
# What is never imported need not be compiled: that saves a third of the time.
PIP := $(BIN)/python -m pip install --quiet --no-compile
CORE := $(VENV)/.installed-core
DEV := $(VENV)/.installed-dev
DECLARED := pyproject.toml constraints.txt
# One environment for each interpreter that is asked for.
BARE := .venv-core$(if $(PYTHON),-$(notdir $(PYTHON)))

.DEFAULT_GOAL := help
.PHONY: help demo test attack simulate-faults chaos fuzz check format test-core test-lowest bench docs clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

demo: $(CORE) ## Three hospitals learn one model on this machine
	@$(BIN)/hansa demo $(ARGS)

test: $(DEV) ## Run the tests, with branch coverage of at least 90%
	$(BIN)/python -m pytest $(SPREAD) --cov $(ARGS)

attack: $(DEV) ## Attack what is promised about privacy, the long attacks included
	HANSA_LONG=1 $(BIN)/python -m pytest tests/attacks $(ARGS)

simulate-faults: $(DEV) ## Crashes, lost messages and cheats from 20,000 seeds (ARGS="--seed 4711 --verbose")
	$(BIN)/python -m tests.faults $(ARGS)

chaos: $(DEV) ## Kill, cut, fill up and confuse real processes, the long way
	HANSA_LONG=1 $(BIN)/python -m pytest tests/chaos $(ARGS)

fuzz: $(DEV) ## Feed malformed bytes to whatever reads what strangers send (ARGS="tensors --runs 1000000")
	@$(PIP) 'atheris>=2.3'
	$(BIN)/python tools/fuzz.py $(ARGS)

check: $(DEV) ## Check format, style, types and floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV) ## Format the code, and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test-core: ## Run the tests without any extra, in .venv-core (also with PYTHON=python3.13)
	@PYTHON="$(PYTHON)" sh tools/venv.sh $(BARE)
	$(BARE)/bin/python -m pip install --quiet -c constraints.txt -e '.[test]'
	$(BARE)/bin/python -m pytest $(SPREAD) $(ARGS)

# The oldest versions warn about what newer ones mended; here only failures count.
test-lowest: ## Run the tests with the oldest versions that are allowed, in .venv-lowest
	@PYTHON="$(or $(PYTHON),python3.11)" sh tools/venv.sh .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet -c constraints-lowest.txt -e '.[test,pandas,polars,arrow,postgres]'
	.venv-lowest/bin/python -m pytest $(SPREAD) -o filterwarnings=default $(ARGS)

bench: $(DEV) ## Measure, and write docs/benchmarks.md
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(DEV) ## Build the documentation into site/
	$(BIN)/zensical build --clean

clean: ## Remove environments, caches and what was built
	rm -rf $(VENV) .venv-* site dist build .coverage .coverage.* htmlcov
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .cache
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(BIN)/python:
	@PYTHON="$(PYTHON)" sh tools/venv.sh $(VENV)

$(CORE): $(DECLARED) | $(BIN)/python
	@echo "Installing Hansa into $(VENV) ..."
	@$(PIP) -c constraints.txt -e .
	@touch $@

$(DEV): $(DECLARED) | $(BIN)/python
	@echo "Installing Hansa and its developers' tools into $(VENV) ..."
	@$(PIP) -c constraints.txt -e '.[dev]'
	@touch $(CORE) $@
