# `make quickstart` and `make test` do all the set-up they need, in .venv; nothing else is touched.

PYTHON  ?= python3
WORKDIR ?= runs/quickstart
WORKERS ?= 2
# On Linux the default index serves a large CUDA build of torch; any smaller build does as well:
# make test-oracles TORCH=/path/to/a/cpu/wheel
TORCH   ?= torch==2.13.0

VENV := .venv
RUN  := $(VENV)/bin/python
PIP  := $(RUN) -m pip install --quiet --disable-pip-version-check

.PHONY: help quickstart test test-oracles test-aot test-lab test-browser test-mutants lint clean

help:
	@echo "make quickstart    train a small sparse language model, write its report, print a sample"
	@echo "make test          run the test suite"
	@echo "make test-oracles  compare with Hugging Face transformers (installs torch)"
	@echo "make test-aot      compile for TPUs that are not here (installs libtpu)"
	@echo "make test-lab      whole sweeps and searches, killed and taken up again"
	@echo "make test-browser  look at reports in headless Chromium, which must be installed"
	@echo "make test-mutants  put faults into a copy, one at a time; the tests must catch each"
	@echo "make lint          ruff and mypy"
	@echo "make clean         remove the environment and the caches; runs/ and data/ stay"

quickstart: $(VENV)/core.stamp
	$(RUN) -m moe_jax.train --config=configs/quickstart.py --workdir=$(WORKDIR)
	$(RUN) -m moe_jax.report --workdir=$(WORKDIR)
	$(RUN) -m moe_jax.generate --workdir=$(WORKDIR) --prompt="def " --max_tokens=200

test: $(VENV)/test.stamp
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile

test-oracles: $(VENV)/hf.stamp
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile tests/oracles

test-aot: $(VENV)/aot.stamp
	$(RUN) -m pytest tests/aot

test-lab: $(VENV)/test.stamp
	$(RUN) -m pytest -m lab

test-browser: $(VENV)/test.stamp
	$(RUN) -m pytest -m browser

test-mutants: $(VENV)/test.stamp
	$(RUN) -m tests.mutants.run --workers=$(WORKERS)

lint: $(VENV)/dev.stamp
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

clean:
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp a stage: a stage is installed once, and again when setup.py changes.
$(VENV)/venv.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "moe_jax needs Python 3.11 or newer; $(PYTHON) is" \
	       "$$($(PYTHON) --version 2>/dev/null || echo missing)." \
	       "Name another: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/core.stamp: $(VENV)/venv.stamp setup.py
	@echo "Installing moe_jax and its dependencies into $(VENV) (a minute or two) ..."
	$(PIP) -e .
	@touch $@

$(VENV)/test.stamp: $(VENV)/core.stamp
	$(PIP) -e ".[test]"
	@touch $@

$(VENV)/hf.stamp: $(VENV)/test.stamp
	$(PIP) "$(TORCH)"
	$(PIP) -e ".[test,hf]"
	@touch $@

$(VENV)/aot.stamp: $(VENV)/test.stamp
	$(PIP) -e ".[test,tpu]"
	@touch $@

$(VENV)/dev.stamp: $(VENV)/test.stamp
	$(PIP) -e ".[dev]"
	@touch $@
