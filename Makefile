# Seven commands serve developers and CI alike. Everything goes into .venv; nothing is installed outside it.
#   make test PYTHON=python3.13   another Python: .venv is made anew where it has another version
#   make test JOBS=8              tests in eight processes of one thread each
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo   torch without CUDA, which saves 5 GB
PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin

# The tests start dozens of processes; without compiled files each of them would compile pickglass anew.
export PYTHONDONTWRITEBYTECODE :=

# A file in .venv names the version that it was made with. Where PYTHON is not named, any version will do.
ifeq ($(origin PYTHON)-$(words $(wildcard .venv/python-*)),file-1)
VENV := $(wildcard .venv/python-*)
else
VENV := .venv/python-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
endif

.PHONY: setup demo test long quick check docs audit

$(VENV):
	$(PYTHON) -m venv --clear .venv
	@touch $@

# what fits, tests and studies; a line PC needs no extra: pip install .
.venv/train: pyproject.toml $(VENV)
	@echo "installing torch and what belongs to it into .venv: minutes, and 6 GB where pip takes torch with CUDA"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[train]"
	@touch $@

# and what developers need on top
.venv/dev: pyproject.toml .venv/train
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

# the site of the documentation; it reads the sources and needs no torch
.venv/docs: pyproject.toml $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[docs]"
	@touch $@

setup: .venv/dev

demo: .venv/train
	$(BIN)/pickglass demo

test: .venv/dev
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not long"

# what tries all combinations, of which the tests above have one of each kind, and what is killed or goes on for long
long: .venv/dev
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m long

# between edits: under a minute, without the tests that are marked slow, long, gpu or cluster
quick: .venv/dev
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m "not slow and not long and not gpu and not cluster"

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo build/site/index.html

check: .venv/dev
	$(BIN)/ruff format --check src tests bench docs/site
	$(BIN)/ruff check src tests bench docs/site
	$(BIN)/mypy

# known weaknesses of what .venv holds, as the advisory database of PyPI has them; needs the network
audit: .venv/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "pip-audit>=2.7"
	$(BIN)/pip-audit --skip-editable
