# `make demo` and `make test` need only Python 3.10 to 3.13 and make: each makes
# the virtual environment first when it is missing or out of date.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow bench lint format clean

demo: .venv/installed
	$(BIN)/python tools/demo.py

# Two processes: most of the time goes into tracing, on one core each.
test: .venv/installed
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not slow"

# Kills, several workers, a browser, fuzzing, large networks, whole chains:
# what .ci/run runs besides.
test-slow: .venv/installed
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m slow

bench: .venv/installed
	$(BIN)/python tools/benchmark.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Written last, so that an installation that was cut off is done again, as is
# one whose dependencies have changed since.
.venv/installed: setup.py constraints.txt
	@command -v $(PYTHON) > /dev/null || { \
	  echo "Expected Python as the command $(PYTHON). Received: no such" \
	    "command. Install Python, or name it: make PYTHON=/path/to/python"; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	  sys.exit(not (3, 10) <= v < (3, 14))' || { \
	  echo "Expected Python 3.10 to 3.13. Received:" \
	    "$$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.11"; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
	  echo "Expected Python's module venv. Received: $(PYTHON) without it." \
	    "On Debian and Ubuntu: apt-get install python3-venv"; \
	  exit 1; }
	@echo "installing into .venv (once, about a minute and 2.7 GB)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[test]'
	@touch $@

clean:
	rm -rf .venv kinv.egg-info .pytest_cache .ruff_cache
