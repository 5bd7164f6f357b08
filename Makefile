# Two commands do everything on a fresh machine with Python 3.11 and make:
#   make serve   environment, then the server on the built-in model, in the foreground
#   make test    environment, then the tests
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_ARGS ?=
PORT ?= 8000

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TYPED := kernels pruners server

.PHONY: serve test lint demo-model quality bench clean

serve: $(READY)
	$(BIN)/covervlm serve --port $(PORT)

test: $(READY)
	$(BIN)/pytest

lint: $(READY)
	$(BIN)/ruff check .
	mkdir -p .typecheck/covervlm && for d in $(TYPED); do ln -sfn ../../$$d .typecheck/covervlm/$$d; done
	$(BIN)/mypy -p covervlm.kernels -p covervlm.pruners -p covervlm.server

# Exact versions come from constraints.txt. Pass PIP_ARGS to choose another torch build, e.g. one for your CUDA release.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .typecheck build *.egg-info
