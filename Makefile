# make demo: install and show the main job on embedded data. make test: lint, types, tests. make acceptance: what is too
# long for every run: full recipes, a million rows, ten thousand inputs for each parser, studies on Ray (360 MB to install).
PYTHON ?= python3
VENV ?= .venv
# Another package index for torch, such as the CUDA or CPU builds of PyTorch's own: make TORCH_INDEX=URL demo
TORCH_INDEX ?=
# Processes of make test, each with one thread; 0: none of their own, as a debugger wants it.
TEST_PROCESSES ?= 2
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo test acceptance lint results clean

demo: $(VENV)/.installed
	$(BIN)/diffmix demo --output demo

test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest --numprocesses=$(TEST_PROCESSES) --dist=loadfile --cov --cov-report=term-missing:skip-covered --cov-fail-under=90

acceptance: $(VENV)/.installed-dev
	$(PIP) --editable '.[ray]'
	$(BIN)/python -m pytest -m acceptance
	$(BIN)/python -m pytest tests/experiments/test_study_ray.py
	$(BIN)/python -m pytest --hypothesis-profile=acceptance --timeout=3600 tests/tasks/test_table_files.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/pyright --pythonpath $(BIN)/python

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "diffmix needs Python 3.11 or newer: make PYTHON=python3.11 $@")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: constraints.txt | $(VENV)/bin/python
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.torch
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	touch $@

# The tables of README and docs, from results/*.json.
results: $(VENV)/.installed
	$(BIN)/python -m diffmix.experiments.tables

clean:
	rm -rf $(VENV) demo .coverage* .pytest_cache .ruff_cache .hypothesis
