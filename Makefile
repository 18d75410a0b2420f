# `make` alone prints the list of targets; each says what it does after its `##`.
.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench data app screenshots

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
WORKERS ?= auto
MEASURE := capture

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## an environment in .venv with everything that is needed, versions pinned

demo: $(INSTALLED) ## the main job on the bundled models, end to end, without a network
	$(BIN)/headscope demo

test: $(INSTALLED) ## the tests that need no network or GPU, in a few minutes; those in a browser where Chromium is installed
	$(BIN)/python -m pytest -q -n $(WORKERS) --maxprocesses=4 -m "not slow and not gpu and not timm"

check: $(INSTALLED) ## format, lint, types, layers
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(INSTALLED) ## time and memory of capture against the plain forward pass; MEASURE=importance, edits, atlas, coders, hallucination: of those
	$(BIN)/python benchmarks/$(MEASURE).py

data: $(INSTALLED) ## remake the bundled models and input sets by their recipes (hours on two cores)
	$(BIN)/python data/recipes/remake.py

app: $(INSTALLED) ## the dashboard over the runs in runs/
	$(BIN)/headscope app

screenshots: $(INSTALLED) ## pictures of every page of the app for docs/screenshots (needs Chromium; minutes)
	$(BIN)/python docs/screenshots/make.py

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "headscope needs Python 3.11 or newer, got %d.%d. Name one with: make PYTHON=python3.11 setup" % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@
