# Four commands serve developers and CI alike. Everything goes into .venv; nothing is installed outside it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test check

# what fits, tests and studies; a line PC needs no extra: pip install .
.venv/train: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[train]"
	@touch $@

# and what developers need on top
.venv/dev: pyproject.toml | .venv/train
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

setup: .venv/dev

demo: .venv/train
	$(BIN)/pickglass demo

test: .venv/dev
	$(BIN)/python -m pytest

check: .venv/dev
	$(BIN)/ruff format --check src tests bench
	$(BIN)/ruff check src tests bench
	$(BIN)/mypy
