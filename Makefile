# `make quickstart` and `make test` do all the set-up they need, in .venv; nothing else is touched.
#
# They install the exact versions that the tests were run with, of launch/locks for this Python.
# make ... LATEST=1 takes the newest versions instead, in .venv-latest.

PYTHON  ?= python3
WORKDIR ?= runs/quickstart
WORKERS ?= 2
# On Linux the default index serves a large CUDA build of torch; any smaller build does as well:
# make test-oracles TORCH=/path/to/a/cpu/wheel
TORCH   ?= torch==2.13.0
# What `make test` runs: all of it, or these files.
TESTS   ?=
# A part of a target's tests, drawn by a word: DRAWN=--drawn=4:word (tests/drawn.py).
DRAWN   ?=
# Of `make test-fuzz`: how many cases of each test. The suite draws 25.
EXAMPLES ?= 2000
FUZZED  := tests/commands/test_fuzz_files.py tests/data/test_fuzz_corpora.py
# The pythons of `make test-oldest` and `make test-latest`.
OLDEST  ?= python3.11
NEWEST  ?= python3.13

VENV    ?= $(if $(LATEST),.venv-latest,.venv)
RUN     := $(VENV)/bin/python
# Of the environment that is there; else of the one that will be.
VERSION := $(shell $(or $(wildcard $(RUN)),$(PYTHON)) -c \
           'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
LOCK    ?= $(if $(LATEST),,$(wildcard launch/locks/py$(VERSION).txt))
# pip's own name for the first of these has changed: each release reads the one that it knows.
LOCKED  := $(if $(LOCK),PIP_CONSTRAINT=$(LOCK) PIP_BUILD_CONSTRAINT=$(LOCK))
PIP     := $(LOCKED) $(RUN) -m pip install --quiet --disable-pip-version-check \
           $(if $(LATEST),--upgrade --upgrade-strategy eager)

# Applications, by the config of their name, or another one.
TEXTS   := sentiment topics
IMAGES  := vision fashion segmentation detection
TABLES  := census flights swissmetro movielens ratings
CONFIG_ratings := configs/movielens.py:rating

.PHONY: help quickstart translation $(TEXTS) $(IMAGES) $(TABLES) test test-oldest test-latest \
        test-oracles test-aot test-extras test-grid test-lab test-browser test-fuzz test-mutants \
        lint locks clean

help:
	@echo "make quickstart    train a small sparse language model, write its report, print a sample"
	@echo "make sentiment     train a small sparse encoder on rated sentences, write its report"
	@echo "make vision        train a small V-MoE on handwritten digits, write its report"
	@echo "make fashion       train a small V-MoE on Fashion-MNIST, write its report"
	@echo "make segmentation  the climate of every pixel of a satellite picture, write its report"
	@echo "make translation   descriptions of software packages from Danish into English"
	@echo "make census        two targets of a census by a multi-gate mixture, write its report"
	@echo "make flights       three targets of a flight before it leaves, write its report"
	@echo "make swissmetro    train, Swissmetro or car, as people choose, write its report"
	@echo "make detection     clothes found on satellite pictures and photographs, write its report"
	@echo "make movielens     the next film by what somebody has watched, write its report"
	@echo "make ratings       the stars that somebody gives a film, write its report"
	@echo "make topics        what software packages are about, by their descriptions"
	@echo "make test          run the test suite"
	@echo "make test-oldest   the suite on the lowest versions that setup.py allows ($(OLDEST))"
	@echo "make test-latest   the suite on the newest versions that there are ($(NEWEST))"
	@echo "make test-oracles  compare with Hugging Face transformers (installs torch)"
	@echo "make test-aot      compile for TPUs that are not here (installs libtpu)"
	@echo "make test-extras   the real Weights & Biases, gcsfs, s3fs, matplotlib (installs them)"
	@echo "make test-grid     all of the grids of which the suite compares a few"
	@echo "make test-lab      whole sweeps and searches, killed and taken up again; the documents' commands"
	@echo "make test-browser  look at reports in headless Chromium, which must be installed"
	@echo "make test-fuzz     drawn damage of files, flags and corpora: $(EXAMPLES) cases of each test"
	@echo "make test-mutants  put faults into a copy, one at a time; the tests must catch each"
	@echo "make lint          ruff and mypy"
	@echo "make locks         write the exact versions of launch/locks anew"
	@echo "make clean         remove the environment and the caches; runs/ and data/ stay"

quickstart: $(VENV)/core.stamp
	$(RUN) -m moe_jax.train --config=configs/quickstart.py --workdir=$(WORKDIR)
	$(RUN) -m moe_jax.report --workdir=$(WORKDIR)
	$(RUN) -m moe_jax.generate --workdir=$(WORKDIR) --prompt="def " --max_tokens=200

# Each is trained by its config and gets a report; the prerequisite brings what its data needs.
$(TEXTS): $(VENV)/text.stamp
$(IMAGES): $(VENV)/vision.stamp
$(TABLES): $(VENV)/core.stamp
$(TEXTS) $(IMAGES) $(TABLES):
	$(RUN) -m moe_jax.train --config=$(or $(CONFIG_$@),configs/$@.py) --workdir=runs/$@
	$(RUN) -m moe_jax.report --workdir=runs/$@ --routing

translation: $(VENV)/translation.stamp
	$(RUN) -m moe_jax.train --config=configs/translation.py:danish --workdir=runs/translation
	$(RUN) -m moe_jax.report --workdir=runs/translation --routing
	$(RUN) -m moe_jax.generate --workdir=runs/translation --into=en --prompt="en lille teksteditor"

test: $(VENV)/test.stamp
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile $(DRAWN) $(TESTS)

test-oldest:
	$(MAKE) test PYTHON=$(OLDEST) LOCK=launch/locks/oldest.txt VENV=.venv-oldest

test-latest:
	$(MAKE) test PYTHON=$(NEWEST) LATEST=1

test-oracles: $(VENV)/hf.stamp
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile tests/oracles

test-extras: $(VENV)/extras.stamp
	$(RUN) -m pytest tests/extras

test-aot: $(VENV)/aot.stamp
	$(RUN) -m pytest tests/aot

test-lab: $(VENV)/test.stamp
	$(RUN) -m pytest -m lab $(DRAWN)

test-grid: $(VENV)/test.stamp
	$(RUN) -m pytest -n $(WORKERS) -m grid $(DRAWN)

test-browser: $(VENV)/test.stamp
	$(RUN) -m pytest -m browser

test-fuzz: $(VENV)/test.stamp
	MOE_JAX_FUZZ_EXAMPLES=$(EXAMPLES) $(RUN) -m pytest -n $(WORKERS) $(FUZZED)

test-mutants: $(VENV)/test.stamp
	$(RUN) -m tests.mutants.run --workers=$(WORKERS) $(DRAWN)

lint: $(VENV)/dev.stamp
	$(RUN) -m ruff check --no-cache .
	$(RUN) -m ruff format --no-cache --check .
	$(RUN) -m mypy

# The newest versions of today for each Python, and the lowest that setup.py allows. torch is left
# out: which build of it fits depends on the machine.
COMPILE := uv pip compile --quiet --no-annotate --no-header \
           --no-emit-package torch --constraint launch/locks/torch.in setup.py launch/locks/build.in
locks: $(VENV)/dev.stamp
	echo "$(TORCH)" > launch/locks/torch.in
	for version in 3.11 3.12 3.13 3.14; do \
	  $(VENV)/bin/$(COMPILE) --upgrade --all-extras --python-version $$version \
	    --output-file launch/locks/py$$version.txt || exit 1; \
	done
	$(VENV)/bin/$(COMPILE) --upgrade --extra test --python-version 3.11 \
	  --resolution lowest-direct --output-file launch/locks/oldest.txt
	rm launch/locks/torch.in

clean:
	rm -rf .venv .venv-latest .venv-oldest .cache .pytest_cache .mypy_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp a stage: a stage is installed once, and again when setup.py changes.
$(VENV)/venv.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "moe_jax needs Python 3.11 or newer; $(PYTHON) is" \
	       "$$($(PYTHON) --version 2>/dev/null || echo missing)." \
	       "Name another: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/core.stamp: $(VENV)/venv.stamp setup.py $(LOCK)
	@echo "Installing moe_jax and its dependencies into $(VENV) (a minute or two;" \
	  "versions: $(if $(LOCK),$(LOCK),the newest)) ..."
	$(PIP) -e .
	@touch $@

$(VENV)/test.stamp: $(VENV)/core.stamp
	$(PIP) -e ".[test]"
	@touch $@

$(VENV)/text.stamp: $(VENV)/core.stamp
	$(PIP) -e ".[text]"
	@touch $@

$(VENV)/translation.stamp: $(VENV)/core.stamp
	$(PIP) -e ".[text,translation]"
	@touch $@

$(VENV)/vision.stamp: $(VENV)/core.stamp
	$(PIP) -e ".[vision]"
	@touch $@

$(VENV)/hf.stamp: $(VENV)/test.stamp
	$(PIP) "$(TORCH)"
	$(PIP) -e ".[test,oracles]"
	@touch $@

$(VENV)/extras.stamp: $(VENV)/test.stamp
	$(PIP) -e ".[test-extras]"
	@touch $@

$(VENV)/aot.stamp: $(VENV)/test.stamp
	$(PIP) -e ".[test,tpu]"
	@touch $@

$(VENV)/dev.stamp: $(VENV)/test.stamp
	$(PIP) -e ".[dev]"
	@touch $@
