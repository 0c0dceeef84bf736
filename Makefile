# `make ticket`: set up .venv, then the main job. `make test`: the whole test suite. Both install only what is missing.
SHELL := /bin/bash
PYTHONS := python3.14 python3.13 python3.12 python3.11 python3 # the lock installs on these; the newest is taken
VENV := .venv
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

# Sets $python to the newest Python that works and that can make a virtual environment, and says which; PYTHON= names one.
define pick_python
for python in $(or $(PYTHON),$(PYTHONS)); do \
	python=$$(command -v "$$python") && "$$python" -c 'import ensurepip, sys, venv; \
	sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null && break; python=; \
done; \
if [ -z "$$python" ]; then \
	echo "$(if $(PYTHON),PYTHON=$(PYTHON): )Python 3.11 to 3.14 with its module venv is needed: install it (Debian: python3-venv), or name it by make PYTHON=..." >&2; exit 1; \
fi; \
echo "Python: $$python ($$("$$python" --version))"
endef

.PHONY: ticket test lint gpu-check python setup clean

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

# Ten minutes on a GPU, without network and without MLflow: figures as tables, and in gpu-check.json.
gpu-check:
	$(if $(wildcard $(READY)),python,$(or $(PYTHON),python3)) analysis/gpu_check.py

python:
	@$(pick_python)

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@test -x $(VENV)/bin/python || { $(pick_python); "$$python" -m venv $(VENV); }
	@echo "installing into $(VENV): 2 GB (6 GB where pip takes PyTorch for CUDA), some minutes"
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
