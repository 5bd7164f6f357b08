# Two commands do everything on a fresh machine with Python 3.11 and make:
#   make serve   environment, then the server on the built-in model, in the foreground
#   make test    environment, then the tests
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_ARGS ?=
PORT ?= 8000

OUT ?= results/demo-model

VENV := .venv
OLDEST := .venv-oldest
VLLM := .venv-vllm
PEERS := .venv-peers
LOAD := .venv-load
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TYPED := kernels pruners server clients

.PHONY: serve test test-long test-browser test-dashboards test-image test-vllm test-oldest test-peers lint bench load demo-model clean

serve: $(READY)
	$(BIN)/covervlm serve --port $(PORT)

test: $(READY)
	$(BIN)/pytest

# Soak, fuzz and full-size runs.
test-long: $(READY)
	$(BIN)/pytest -m long

# The page in a real browser; installs Debian's chromium where there is none.
test-browser: $(READY)
	command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
	    { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver; }
	$(BIN)/pytest -m browser tests/e2e

# Prometheus against a live server: every query of the dashboard has data. Installs Debian's packages where they are missing.
test-dashboards: $(READY)
	command -v prometheus >/dev/null && command -v promtool >/dev/null && \
	    { docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null; } || \
	    { apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus docker-compose; }
	$(BIN)/pytest -m dashboards tests/docker

# The CPU image built with buildah, run and asked. Needs root on Debian; takes minutes and 6 GB of disk while it runs.
test-image: $(READY)
	command -v buildah >/dev/null && command -v debootstrap >/dev/null || \
	    { apt-get update -qq && apt-get install -y -qq --no-install-recommends buildah debootstrap; }
	$(BIN)/pytest -m image --timeout 1800 tests/docker

# The oldest transformers release that is supported; the newest is in constraints.txt.
test-oldest: $(OLDEST)/.ready
	$(OLDEST)/bin/pytest tests/server/models tests/server/engines tests/server/clip

# The real vLLM on its CPU build, in an environment of its own that lasts until the pins change.
test-vllm: $(VLLM)/.ready
	PYTHONPATH=tests/vllm/torchvision_cure $(VLLM)/bin/pytest -c tests/vllm/pytest.ini tests/vllm

# litellm and langchain-openai against a server, in an environment of their own: both want a newer certifi than the pins.
test-peers: $(READY) $(PEERS)/.ready
	$(PEERS)/bin/pytest -c tests/peers/pytest.ini tests/peers

$(PEERS)/.ready: constraints-peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps -r constraints-peers.txt
	touch $@

$(VLLM)/.ready: constraints-vllm.txt
	$(PYTHON) -m venv --clear $(VLLM)
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps -r constraints-vllm.txt
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p .typecheck/covervlm && for d in $(TYPED); do ln -sfn ../../$$d .typecheck/covervlm/$$d; done
	$(BIN)/mypy $(TYPED:%=-p covervlm.%)

# Every figure of the README; the quality table takes most of the time.
bench: $(READY)
	$(BIN)/python benchmarks/latency.py
	$(BIN)/python benchmarks/batching.py
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/quality.py

# The server under load, unpruned and pruned side by side: the demo model, then one whose language model dominates.
load: $(READY) $(LOAD)/.ready
	$(BIN)/python benchmarks/load.py
	$(BIN)/python benchmarks/load.py --model random --budgets 64 --concurrency 8 --tokens 8 --rounds 2 --requests-per-stream 2

# About 75 minutes on one core. The result goes to OUT and replaces nothing.
demo-model: $(READY)
	$(BIN)/python benchmarks/demo_model/train.py --out $(OUT)

# Exact versions come from constraints.txt. Pass PIP_ARGS to choose another torch build, e.g. one for your CUDA release.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	touch $@

$(OLDEST)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(OLDEST)
	grep -vE '^(transformers|huggingface_hub|hf-xet)==' constraints.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c $(OLDEST)/constraints.txt \
	    -e ".[dev]" transformers==5.16.1
	touch $@

# guidellm, the load generator, whose pins are not ours, and `transformers serve` to compare with.
$(LOAD)/.ready: constraints-load.txt
	$(PYTHON) -m venv $(LOAD)
	$(LOAD)/bin/pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints-load.txt guidellm "transformers[serving]"
	touch $@

clean:
	rm -rf .venv .venv-* .typecheck build *.egg-info
