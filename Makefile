# `make` lists the targets. Everything happens in .venv; nothing is written outside this folder.

PYTHON ?= python3
# What pip is given for torch. On Linux the default index's wheel brings several GB of CUDA; README says how to choose
# another.
TORCH ?= torch==2.13.0

BIN := .venv/bin
INSTALLED := .venv/.installed
SAMPLE := data/sample/truth.json

.DEFAULT_GOAL := help
.PHONY: help install demo test lint bench lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## make .venv and install recsys in it (the other targets do it when it is needed)

demo: $(SAMPLE)  ## write the sample shop, run the whole pipeline on it, say what to open
	@$(BIN)/recsys run -c pipelines/sample.toml

test: lint  ## lint and type-check, then run the tests
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: $(INSTALLED)  ## ruff and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(INSTALLED)  ## run every benchmark (the trained ones take an hour)
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

# One file for every platform and Python. torch, and what CUDA needs, is left to whoever installs.
lock:  ## choose the versions in constraints.txt anew (needs uv)
	@uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --no-emit-package torch \
	   --no-annotate --no-header --quiet --upgrade --output-file .constraints.all
	@{ sed -n '/^#/p' constraints.txt; grep -vE '^(cuda|nvidia|triton)' .constraints.all; } > .constraints.new
	@mv .constraints.new constraints.txt
	@rm .constraints.all

clean:  ## remove the sample shop, its run and all caches; .venv and other runs stay
	@rm -rf data/sample runs/sample build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find recsys tests benchmarks notebooks -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first: given later, pip would bring its newest version, and CUDA with it.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "installing into .venv (a few minutes the first time)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

# The same version of the generator writes the same bytes, so that a rewritten shop makes no stage run again.
$(SAMPLE): $(INSTALLED) $(wildcard recsys/sample/*.py)
	@$(BIN)/recsys sample data/sample
