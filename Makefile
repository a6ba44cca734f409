# Ryorin's task file. `make demo` and `make test` set everything up first (into .venv) and need nothing by hand.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
SOURCES := core index train serve demo tests bench scripts
# Files are dealt to processes whole, and so are those of tests/live that share the one engine (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest -q -n auto --maxprocesses 4

.PHONY: help setup demo test fast live bench fix lint types docs lock clean

help: ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: ## check the machine and install into .venv; done once
	@if [ -z "$(PYTHON)" ]; then echo "error: no python3 found; install Python 3.11" >&2; exit 2; fi
	@$(PYTHON) scripts/setup.py

demo: setup ## the main job, end to end; DEMO_ARGS="--keep-running" leaves the server up
	@$(BIN)/ryorin demo $(DEMO_ARGS)

test: setup lint types ## style, types and all tests, those of tests/live too
	@$(PYTEST) tests

fast: setup ## the tests without tests/live and without PostgreSQL, in two minutes on two cores
	@$(BIN)/python -m pytest -q -n 4 -m "not postgresql" tests --ignore tests/live

live: setup ## only tests/live: the real engine, whole training runs, killed processes
	@$(PYTEST) tests/live

bench: setup ## every bench, quick; BENCH_ARGS= runs them in full
	@for file in bench/*.py; do case $$file in bench/common.py) ;; *) echo "== $$file"; $(BIN)/python $$file $(or $(BENCH_ARGS),--quick) || exit 1;; esac; done

fix: setup ## format and repair what can be repaired
	@$(BIN)/ruff format $(SOURCES) && $(BIN)/ruff check --fix $(SOURCES)

lint: setup ## style and the direction of imports
	@$(BIN)/ruff format --check $(SOURCES) && $(BIN)/ruff check $(SOURCES) && $(BIN)/lint-imports

types: setup ## the type checker, strict
	@$(BIN)/mypy

docs: setup ## make docs/cli.md anew from the commands' help
	@$(BIN)/python scripts/cli_docs.py

lock: ## make the hashed locks anew (needs uv)
	@scripts/lock.sh

clean: ## remove .venv and .ryorin
	@rm -rf .venv .ryorin
