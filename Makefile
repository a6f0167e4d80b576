# make run: a default session.  make test: the test suite.  make docs: the documentation as a site.  All make .venv first.
PYTHON ?= python3
BIN := .venv/bin
SESSION ?=
WORKERS ?= 4

.PHONY: run test bench lint docs format psychopy clean

run: .venv/installed
	$(BIN)/python -m rtevo.run $(SESSION)

test: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/mypy & types=$$!; $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --durations=10; tests=$$?; wait $$types && exit $$tests

bench: .venv/installed-test
	$(BIN)/python -m pip install -q -e ".[bench]"
	$(BIN)/python -m pytest bench --benchmark-enable --benchmark-only -p no:xdist

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/python -m pytest -q -p no:xdist tests/test_docs.py
	$(BIN)/mypy

docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html is written; with its search: $(BIN)/python -m http.server --directory site"

format: .venv/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# an interpreter with PsychoPy for the tests in a real window (they also need Xvfb and xdotool)
psychopy: .venv/psychopy/installed

clean:
	rm -rf .venv .build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "rtevo needs Python 3.11 or later; this is $$($(PYTHON) --version). Set PYTHON=python3.11, say."; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml setup.py
	$(BIN)/python -m pip install -q -e .
	@touch $@

.venv/installed-test: .venv/bin/python pyproject.toml setup.py
	$(BIN)/python -m pip install -q -e ".[test]"
	@touch .venv/installed $@

.venv/installed-docs: .venv/installed pyproject.toml
	$(BIN)/python -m pip install -q -e ".[docs]"
	@touch $@

.venv/psychopy/installed: .venv/bin/python presenter/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || { echo "PsychoPy needs Python 3.10 to 3.12; this is $$($(PYTHON) --version). Set PYTHON=python3.12, say."; exit 1; }
	$(PYTHON) -m venv .venv/psychopy
	.venv/psychopy/bin/python -m pip install -q psychopy-lib==2026.2.5
	@touch $@
