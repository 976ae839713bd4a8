# make demo   the main job, from nothing    |  make test   lint, types and every test
# make check  the fast part of the tests    |  make bench  the benchmarks that need no outside data
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check lint bench clean

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

demo: .venv/installed
	$(BIN)/secateur demo

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint
	$(BIN)/pytest -n 2 -m 'not slow'

test: lint
	$(BIN)/pytest -n 2

bench: .venv/installed-test
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/trace_speed.py

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
