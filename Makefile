# Each target needs Python 3.10-3.13 and a package index, and sets up the rest. See CONTRIBUTING.md.
PYTHON ?= python3
OLDEST_PYTHON ?= python3.10
VENV ?= .venv
OLDEST_VENV ?= .venv-oldest
BIN := $(VENV)/bin
TRAIN := $(BIN)/igam-train --flagfile=flags/demo.flags
DEMO := runs/demo

.PHONY: test slow lint demo audit-zoo docs tutorials package test-oldest
test: lint
	$(BIN)/python -m pytest

slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow --timeout=1800

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Standard training, then IGAM with a teacher trained on the spot, all on synthetic images.
demo: $(VENV)/installed
	$(TRAIN) --method=standard --workdir=$(DEMO)-standard
	$(TRAIN) --workdir=$(DEMO)-igam
	rm -rf $(DEMO)-figures
	$(BIN)/igam-figures --runs=$(DEMO)-standard,$(DEMO)-igam --figures=gradients --output=$(DEMO)-figures
	$(BIN)/igam-report $(DEMO)-standard $(DEMO)-igam
	@echo "\nInput gradients of both: $(DEMO)-figures/gradients.png"

# Audits every network of the zoo beside its true figure, and writes the page; killed, it goes on.
audit-zoo: $(VENV)/installed
	$(BIN)/python bench/zoo.py --output=docs/zoo.md

# Wheel and source distribution; the wheel works outside this folder, in a venv of its own.
package: $(VENV)/installed
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	.ci/package $(PYTHON) dist/*.whl

test-oldest: $(OLDEST_VENV)/installed
	$(OLDEST_VENV)/bin/python -m pytest

# The site, into site/; a broken link is an error.
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Runs both notebooks whole, on built-in images, and writes what they show.
tutorials: $(VENV)/docs
	$(BIN)/jupytext --to ipynb --update --quiet docs/tutorials/*.py
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --log-level=ERROR \
	    --ExecutePreprocessor.record_timing=False docs/tutorials/*.ipynb

$(VENV)/docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .[docs]
	touch $@

$(VENV)/installed: setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .[dev]
	touch $@

# pip first: the one that Python 3.10 brings looks for versions that fit for hours.
$(OLDEST_VENV)/installed: setup.py pyproject.toml tests/oldest.txt
	$(OLDEST_PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(OLDEST_VENV)/bin/python -m pip install --quiet --constraint tests/oldest.txt --editable .[dev]
	touch $@
