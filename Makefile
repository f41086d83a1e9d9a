# `make test` and `make demo` need Python 3.11-3.13 and a package index, and set up the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := $(BIN)/python -m igam_tf.train --flagfile=flags/demo.flags

.PHONY: test slow lint demo docs tutorials
test: lint
	$(BIN)/python -m pytest

slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow --timeout=1800

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Standard training, then IGAM with a teacher trained on the spot, all on synthetic images.
demo: $(VENV)/installed
	$(DEMO) --method=standard --workdir=runs/demo-standard
	$(DEMO) --workdir=runs/demo-igam
	$(BIN)/python -m igam_tf.report runs/demo-standard runs/demo-igam

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
