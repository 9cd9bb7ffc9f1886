# Two commands do all the set-up: `make reproduce` and `make test`. A second call repeats none of it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= $(shell command -v python3.13 || command -v python3.12 || command -v python3.11 || command -v python3)
VENV ?= .venv
OUT ?= results/default
ARGS ?=
BIN := $(VENV)/bin

.PHONY: help setup test reproduce lint bench clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## make .venv with exact versions, once

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v < (3, 11) and f"Python 3.11 or later is needed, found {v[0]}.{v[1]}; give make PYTHON=python3.11")'
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
	@if [ -n "$(MOVIE)" ]; then $(BIN)/python benchmarks/colonies.py --movie "$(MOVIE)" --save; \
	else echo "skipped colonies.py: give MOVIE=a folder with frames.tif and foreground.tif"; fi

clean: ## remove what the targets made, results and stores excepted
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
