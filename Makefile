# Two commands matter: `make demo` and `make test`. Each installs what it needs into .venv and can be repeated.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3,11) <= sys.version_info < (3,14))' 2>/dev/null && echo $$p && break; done)
PIP := $(BIN)/python -m pip install --constraint constraints.txt --retries 3
# The packaged models need no hub; a library that looks for one anyway fails at once instead of waiting.
export HF_HUB_OFFLINE ?= 1
BENCHES := bench-ingest bench-reference bench-unchanged bench-memory bench-scaling bench-faults bench-capacity \
	bench-search bench-lexical bench-filtered bench-tenants

.PHONY: install demo test lint serve bench clean $(BENCHES)
.DEFAULT_GOAL := install

install: $(VENV)/.installed  ## the package, in .venv

demo: install  ## ingest the API docs of `ray`, ask, print a cited answer
	@$(BIN)/rag demo

test: $(VENV)/.installed-dev  ## all tests
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

serve: install  ## answer over HTTP on port 8000 from the demo's collection
	@$(BIN)/rag serve --collection ray-docs

bench: $(VENV)/.installed-dev  ## what the promises rest on, about an hour on 2 cores: speed, second runs, memory, faults
	$(BIN)/python benchmarks/ingest.py
	$(BIN)/python benchmarks/reference.py --chunks 1500 --rounds 2
	$(BIN)/python benchmarks/unchanged.py
	$(BIN)/python benchmarks/memory.py --rounds 1
	$(BIN)/python benchmarks/faults.py --runs 20

# One at a time; bench-scaling takes about 15 minutes. ARGS="--runs 3" goes to the script.
$(BENCHES): bench-%: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/$*.py $(ARGS)

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 to 3.13 expected, found $$(python3 --version 2>&1 || echo none);" \
		"install one, or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "error: $(PYTHON) cannot make a virtual environment;" \
		"on Debian or Ubuntu: apt-get install python3-venv python3-dev"; exit 1; }

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	@command -v cc >/dev/null || command -v gcc >/dev/null || { echo "error: no C compiler (llama.cpp is built here);" \
		"on Debian or Ubuntu: apt-get install build-essential"; exit 1; }
	@echo "installing into $(VENV) (a few minutes the first time; llama.cpp is compiled)"
	@$(PIP) --editable . || { echo "error: installation failed; pip's last lines say why" \
		"(no network? set PIP_INDEX_URL to an index that this machine reaches)"; exit 1; }
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(PIP) --editable ".[dev]" || { echo "error: the test tools could not be installed; pip's last lines say why"; exit 1; }
	@touch $@
