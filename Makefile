# radglint: `make` lists what can be done. Everything runs in .venv, which `make setup` makes once.

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.setup-done
TORCH  := $(shell sed -n 's/^\(torch==.*\)/\1/p' constraints.txt)
# The first interpreter of 3.11 or newer; override with `make setup PYTHON=/path/to/python`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

# Test processes at a time; `make test JOBS=0` runs all in one.
JOBS   ?= 3

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo programs viewer test lint format bench clean distclean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

setup: $(STAMP) ## make .venv with the tested versions (once; a second run is instant)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "radglint needs Python 3.11 or newer, and none was found: install one, or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) -m venv failed: install its venv module (on Debian: python3-venv), then run make again" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup ## ask a real CT and a radiograph made from it; make demo IMAGE=file asks your own
	@$(BIN)/radglint demo $(if $(IMAGE),"$$IMAGE") --out $(if $(OUT),"$$OUT",demo_out)

programs: ## find Debian's programs for the tests (Orthanc, dcmtk, Chromium ...); install what is missing
	@sh scripts/system_packages.sh

viewer: setup ## NiiVue for the page of `radglint serve`, from npm, once
	@$(BIN)/python scripts/vendor_niivue.py

test: programs setup viewer ## all tests, offline, with coverage of src (at least 90 %)
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --cov --cov-report=term $(ARGS)

lint: setup ## ruff, pyright, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

format: setup ## let ruff rewrite the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## every benchmark, one after another
	@for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

clean: ## remove what tests and builds leave
	rm -rf build dist demo_out .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage coverage.xml
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv
	rm -rf $(VENV) src/*.egg-info
