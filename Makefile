# Two commands do all the set-up: `make reproduce` and `make test`. A second call repeats none of it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
# The first that runs and is new enough; 3.11 first, since constraints.txt was made with it.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
VENV ?= .venv
OUT ?= results/default
ARGS ?=
BIN := $(VENV)/bin

.PHONY: help setup test reproduce lint bench docs-figures clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## make .venv with exact versions, once

$(VENV)/.ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed and was not found; give make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,slurm]'
	@touch $@

test: setup ## run the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

reproduce: setup ## the main job on the embedded default: table and report.html
	$(BIN)/stemcell-lit reproduce out=$(OUT) $(ARGS)

lint: setup ## format check, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup ## run the benchmarks and keep their figures
	$(BIN)/python benchmarks/big_movie.py --save
	$(BIN)/python benchmarks/dense_prediction.py --save
	$(BIN)/python benchmarks/gan_kernels.py --size 64 --save
	$(BIN)/python benchmarks/gan_step.py --save
	$(BIN)/python benchmarks/stage_step.py --save
	$(BIN)/python benchmarks/step_memory.py --size 64 --save
	$(BIN)/python benchmarks/simulation.py --save
	$(BIN)/python benchmarks/power.py --save
	$(BIN)/python benchmarks/sweep_kill.py --save
	$(BIN)/python benchmarks/store.py --save
	$(BIN)/python benchmarks/faults.py --save
	$(BIN)/python benchmarks/warm_start.py --save
	@if [ -n "$(MOVIE)" ]; then $(BIN)/python benchmarks/colonies.py --movie "$(MOVIE)" --save; \
	else echo "skipped colonies.py: give MOVIE=a folder with frames.tif and foreground.tif"; fi

docs-figures: setup ## write the measured tables of README and docs; ARGS=--check compares
	$(BIN)/python benchmarks/figures.py $(ARGS)

clean: ## remove what the targets made, results and stores excepted
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
