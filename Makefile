# make venv | demo | test | test-slow | lint | docs | lock. The README's two commands are `make demo` and `make test`.
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: venv demo test test-slow lint docs lock oracles clean

venv: .venv/.done

.venv/.done: requirements.lock setup_system.sh
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "Python 3.11, 3.12 or 3.13 is needed; this is %d.%d. Name another: make venv PYTHON=python3.12" % v)'
	sh setup_system.sh
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet -r requirements.lock
	$(PY) -m pip install --quiet --no-deps --editable .
	@touch $@

demo: venv
	$(PY) -m experiments.run --config stage2.py --workdir runs/demo

test: venv
	$(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile

test-slow: venv
	$(PY) -m pytest -m slow

# torch is only an oracle for the tests; without it those tests are skipped, saying so.
oracles: venv
	$(PY) -m pip install --quiet 'torch==2.13.0'

lint: venv
	$(PY) -m ruff check .

# A warning is an error (with --quiet it would be none). The variable silences a note on the next mkdocs.
docs: venv
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

lock:
	uv pip compile --quiet --universal --no-annotate --no-header --no-emit-index-url --python-version 3.11 requirements.txt requirements-test.txt requirements-docs.txt -o requirements.lock
	sed -i '1i \# Exact versions this project was tested with (make lock rewrites it). Python 3.11 to 3.13.' requirements.lock

clean:
	rm -rf runs/demo cache site
