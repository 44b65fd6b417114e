# `make` alone lists the targets. Everything runs in $(VENV), which `make env` builds from requirements.lock.
VENV   ?= .venv
# The first interpreter from 3.11 up that can make a virtual environment; `make env PYTHON=...` names another.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$p -c '$(CHECK)' 2>/dev/null && command -v $$p && break; done)
CHECK  := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
ARGS   ?=

PY        := $(VENV)/bin/python
STAMP     := $(VENV)/.made-from-lock
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
RUN       := $(PY) notebooks/reproduce.py
# JupyterLab adds these to a notebook that it saves; they change with the Python version.
LAB_KEYS   = $(addprefix metadata.language_info.,codemirror_mode file_extension mimetype nbconvert_exporter \
	pygments_lexer version)
STRIP      = $(PY) -m nbstripout --keep-id --extra-keys "$(strip $(LAB_KEYS))"
STUDIES    = ablation dncnn rivals uncertainty attention
BENCHMARKS = phase_field inference training
# glibc then asks for large pages, which spares a training step its page faults; elsewhere nobody reads it.
LARGE      = GLIBC_TUNABLES=glibc.malloc.hugetlb=1
# What a browser may send at once: Tornado closes the connection above 10 MB, and an upload would be lost in silence.
UPLOADS    = '--ServerApp.tornado_settings={"websocket_max_message_size": 200000000}'

# Same seed, same bytes: sets and dicts of strings keep their order from run to run.
export PYTHONHASHSEED := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env reproduce paper smoke figures lab weights bench studies test test-slow lint strip lock clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-17s %s\n", $$1, $$2}'

env: $(STAMP)  ## the environment, in .venv, from requirements.lock

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(CHECK)' || { \
	  echo "make env needs Python 3.11 or newer with its venv module ($$(python3 -V 2>&1) is the default here)."; \
	  echo "Install one (Debian: apt install python3-venv), or name it: make env PYTHON=/path/to/python3.12"; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) -V) from requirements.lock: a minute or two."
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet -r requirements.lock
	@$(PY) -m pip install --quiet --no-deps -e .
	@$(PY) -m ipykernel install --sys-prefix --name mdn --display-name "Python (mdn)" >/dev/null
	@touch $@

reproduce: env  ## the six notebooks on the quick preset -> runs/quick/index.html
	@$(RUN) quick $(ARGS)

paper: env  ## the same at the paper's size: 3,000 images, hours
	@$(RUN) paper $(ARGS)

smoke: env  ## the same in three minutes, to see that everything runs
	@$(RUN) smoke $(ARGS)

figures: env  ## regenerate figures/, always from stand-in micrographs
	@$(RUN) quick --stand-ins --figures figures $(ARGS)

lab: env  ## open JupyterLab on the notebooks
	@$(PY) -m jupyterlab --LabApp.default_url=/lab/tree/notebooks $(UPLOADS) $(ARGS)

weights: env  ## train the recipe of the shipped weights from nothing, or go on: hours, needs the real micrographs
	@$(LARGE) MPLBACKEND=Agg $(PY) benchmarks/shipped_weights.py $(ARGS)

bench: env  ## the side-by-side tables of benchmarks/
	@set -e; for name in $(BENCHMARKS); do echo "== $$name"; MPLBACKEND=Agg $(PY) -m benchmarks.$$name $(ARGS); done

studies: env  ## ablation, DnCNN, rivals, uncertainty, attention, on the pairs of `make weights`: hours
	@set -e; for study in $(STUDIES); do echo "== $$study"; $(LARGE) MPLBACKEND=Agg $(PY) -m benchmarks.$$study; done
	@MPLBACKEND=Agg $(PY) -m benchmarks.rivals seconds

test: lint  ## lint, then the tests
	@MPLBACKEND=Agg $(PY) -m pytest $(ARGS)

test-slow: env  ## the long draws that `make test` leaves out
	@MPLBACKEND=Agg $(PY) -m pytest -m slow $(ARGS)

lint: env  ## ruff over modules and notebooks; notebooks hold no outputs
	@$(PY) -m ruff check .
	@$(if $(NOTEBOOKS),$(STRIP) --verify $(NOTEBOOKS))

strip: env  ## take outputs, and what JupyterLab writes beside them, out of the notebooks
	@$(STRIP) $(NOTEBOOKS)

lock:  ## pin anew what pyproject.toml asks for -> requirements.lock
	@set -e; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	$(PYTHON) -m venv "$$tmp/venv"; python="$$tmp/venv/bin/python"; \
	"$$python" -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(*project["dependencies"], *project["optional-dependencies"]["test"], sep="\n")' > "$$tmp/wanted"; \
	"$$python" -m pip install --quiet -r "$$tmp/wanted"; \
	{ echo '# The whole environment, pinned. Written by `make lock` in a fresh environment of Python 3.11 or newer'; \
	  echo '# from what pyproject.toml asks for (its test extra too); do not edit by hand.'; \
	  "$$python" -m pip --isolated freeze | sed 's/^uvloop==.*/& ; sys_platform != "win32"/'; \
	} > requirements.lock.part; mv requirements.lock.part requirements.lock; wc -l requirements.lock

clean:  ## remove runs and caches; .venv and downloads stay
	rm -rf runs .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	find notebooks -name .ipynb_checkpoints -prune -exec rm -rf {} +
