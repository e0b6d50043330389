# medloop: `make help` lists what can be done.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
options = $(foreach name,$(1),$(if $($(name)),--$(subst _,-,$(shell echo $(name) | tr A-Z a-z)) $($(name))))
pip = $(BIN)/python -m pip install -qq --disable-pip-version-check
PYTEST = env -u PYTHONDONTWRITEBYTECODE OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder
HASHES ?= yes
SCANS ?= $(or $(MEDLOOP_HOME),.medloop)/scans

.DEFAULT_GOAL := help
.PHONY: help install run check test lint bench images push sboms clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP)  ## a virtual environment in .venv, from pinned versions

$(STAMP): pyproject.toml constraints.txt hashes.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11) and f"medloop needs Python 3.11 or newer, and this is {sys.version.split()[0]}. Name another with: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(pip) --upgrade 'pip>=25.1' -c constraints.txt
	@pins=$$($(BIN)/python images/choose_constraints.py $(HASHES)); $(pip) -c $$pins --group dev || { \
	  test $$pins = hashes.txt -a "$(HASHES)" != required && \
	  echo "Not installed by hash (see above). Installing by version; HASHES=required refuses that." >&2 && \
	  $(pip) -c constraints.txt --group dev; }
	@$(pip) --no-deps -e .
	@touch $@

run: install  ## synthetic scans, then the whole loop, to a model in service
	@test -e $(SCANS)/patients.csv || $(BIN)/medloop synth $(SCANS)
	@$(BIN)/medloop run --source $(SCANS)

check: install  ## unit tests, in a minute or two: no whole commands, containers or browsers
	$(PYTEST) -m "not slow"

test: install  ## every test that this machine can run, several at a time
	$(PYTEST)

lint: install  ## ruff and mypy over everything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install  ## measure what the docs state, each against a peer in the same run
	$(BIN)/python -m bench

images:  ## an image for each stage and for the service (arguments: docs/images.md)
	@$(PYTHON) -m images.build $(call options,TAG REGISTRY BASE TRAIN_BASE SOURCE HASHES)

push:  ## push what `make images` built to REGISTRY
	@$(PYTHON) -m images.build --push $(call options,TAG REGISTRY)

sboms: install  ## a bill of materials of each image, into build/sbom
	@$(BIN)/python -m images.sbom $(call options,TAG REGISTRY)

clean:  ## remove the environment, caches and build leftovers; .medloop (your data and models) stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
