# `make ticket`: set up .venv, then the main job. `make test`: the whole test suite. Both install only what is missing.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: ticket test lint setup clean

ticket: setup
	mlflow run . --env-manager local -P target=late -P sparsity=0.5

# A file's tests stay together, on one of two processes; the longest files come first (tests/conftest.py).
# SLOW=1 also runs what is marked slow, as CI does.
test: setup
	$(if $(SLOW),LOTTERY_SLOW=$(SLOW)) python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: setup
	ruff format --check .
	ruff check .
	mypy
	lint-imports --no-cache

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: install it, or name it by make PYTHON=..."; exit 1; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): about 2 GB, some minutes"
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
