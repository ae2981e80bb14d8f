# `make parity` proves the implementation against the reference and trains for a few steps under the
# audit; `make test` runs the tests.
# Both make a virtual environment on first use. Needs Python >= 3.11 with pip, make and git.
PYTHON ?= python3
VENV ?= .venv
PY = $(VENV)/bin/python
QUICK = $(PY) -m sdpo mbpp bench --quick --configs grpo,sdpo-audit --seeds 1 --name quick

.PHONY: parity schema test test-processors test-processors-numeric check format docs benchmark benchmark-quick clean

parity: $(VENV)/.installed-train
	$(PY) -m sdpo audit reference sdpo
	rm -rf reports/runs/quick
	$(QUICK)

benchmark: $(VENV)/.installed-train
	$(PY) -m sdpo mbpp bench

benchmark-quick: $(VENV)/.installed-train
	$(QUICK)

test: $(VENV)/.installed-dev
	$(PY) -m pytest -n 2 --dist loadfile

test-processors: $(VENV)/.installed-dev
	$(PY) tests/on_processors.py

test-processors-numeric: $(VENV)/.installed-dev
	$(PY) tests/on_processors.py --numeric

check: $(VENV)/.installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/basedpyright --pythonpath $(PY)
	$(PY) tests/lint_imports.py

format: $(VENV)/.installed-dev
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

schema:
	$(PY) -m sdpo audit --schema > sdpo/parity/report/report.schema.json

docs: parity $(VENV)/.installed-peers
	$(PY) docs/generate.py
	$(PY) docs/reference_traps.py --write

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: pyproject.toml | $(VENV)/bin/python
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
