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
OPENAI := .venv-openai
ZOO := .venv-zoo
REAL := .venv-real
LOAD := .venv-load
BENCH_PEERS := .venv-bench-peers
FUZZ := .venv-fuzz
WHEELS := .gpu-wheels
SITE := .gpu-site
NOTEBOOK := .venv-notebook
VIEWERS := .venv-viewers
NEWEST := .vllm-newest
PAGE_TOOLS := .page-tools
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TYPED := kernels pruners server clients
MAPPED := .typecheck
MAP := rm -rf $(MAPPED) && mkdir -p $(MAPPED)/covervlm && \
    for each in $(TYPED) library/*.py; do ln -s ../../$$each $(MAPPED)/covervlm/; done

.PHONY: serve dist test test-long test-attack test-attack-vllm test-browser page-pictures test-accessibility test-dashboards test-image test-vllm test-vllm-zoo vllm-contract test-oldest test-peers test-suites suites-model test-real test-fuzz test-notebook test-viewers test-exhaustive lint bench bench-peers load gpu gpu-wheels demo-model clean

serve: $(READY)
	$(BIN)/covervlm serve --port $(PORT)

# An sdist in dist/, and the wheel that is made from it.
DIST ?= dist
dist: $(READY)
	rm -rf $(DIST)
	$(BIN)/python -c 'from setuptools import build_meta; build_meta.build_sdist("$(DIST)")'
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir $(DIST) $(DIST)/*.tar.gz

# Two files at a time, each on a thread of its own.
test: $(READY) $(ZOO)/.ready
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

# Soak, fuzz, a fresh clone.
test-long: $(READY)
	$(BIN)/pytest -m long

# Coverage-guided, about a minute; FUZZ_SECONDS is each harness's. Finds go to results/fuzz, and once mended into tests/fuzz/corpus.
FUZZ_SECONDS ?= 8
test-fuzz: $(READY) $(FUZZ)/.ready
	PYTHONPATH=$(FUZZ) $(BIN)/python tests/fuzz/run.py --seconds $(FUZZ_SECONDS)

# Fuzz runs at their full size: 5,000 requests of the schema, 1,000 random JSON schemas, every huge value in every place; soaks
# of 10,000 requests, alone and beside a caller that attacks.
test-exhaustive: $(READY)
	$(BIN)/pytest -m exhaustive

# A server under every known attack, beside a well-behaved caller, on a machine that does nothing else. The figures go to
# results/attack.md.
# Without the right to mount and to make memory cgroups, the attacks that need them are left out.
# With ATTACKED=FOLDER it is the server of the checkout in that folder, and the file is named after it.
test-attack: $(READY)
	$(BIN)/pytest -m attack tests/e2e/attack

# Some of the attacks on a server with vLLM's engine.
test-attack-vllm: $(VLLM)/.ready
	PYTHONPATH=tests/vllm/torchvision_cure $(VLLM)/bin/pytest -c tests/vllm/pytest.ini -m attack tests/vllm/test_attacks.py

# The page in a real browser; installs Debian's chromium if there is none.
test-browser: $(READY)
	command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
	    { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver; }
	$(BIN)/pytest -m browser tests/e2e

# Pictures of the page at three widths, light and dark, in results/page; those in the README anew. On a quiet machine: they
# show times.
page-pictures: $(READY)
	COVERVLM_PAGE_PICTURES=1 $(BIN)/pytest -m browser tests/e2e/page/test_pictures.py

# The page under axe-core and Lighthouse, which npm brings into a folder of their own; they are no part of the page. Needs Node 20
# and npm, and the browser of `make test-browser`.
test-accessibility: $(READY) $(PAGE_TOOLS)/.ready
	COVERVLM_PAGE_TOOLS=$(CURDIR)/$(PAGE_TOOLS) $(BIN)/pytest -m accessibility -s tests/e2e/page

$(PAGE_TOOLS)/.ready:
	rm -rf $(PAGE_TOOLS)
	npm install --silent --no-audit --no-fund --prefix $(PAGE_TOOLS) axe-core@4.14.1 lighthouse@12.8.2
	touch $@

# Runs Prometheus against a live server: every query of the dashboard must have data. Installs Debian's packages if missing.
test-dashboards: $(READY)
	command -v prometheus >/dev/null && command -v promtool >/dev/null && \
	    { docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null; } || \
	    { apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus docker-compose; }
	$(BIN)/pytest -m dashboards tests/docker

# Builds the CPU image with buildah, runs it and asks it a question. Needs root on Debian, several minutes and 6 GB of disk.
test-image: $(READY)
	command -v buildah >/dev/null && command -v debootstrap >/dev/null || \
	    { apt-get update -qq && apt-get install -y -qq --no-install-recommends buildah debootstrap; }
	$(BIN)/pytest -m image --timeout 1800 tests/docker

# The oldest transformers release that is supported; the newest is in constraints.txt. Its own VipLLaVA, which one test compares
# with, fails to generate from several vision layers.
test-oldest: $(OLDEST)/.ready
	OMP_NUM_THREADS=1 $(OLDEST)/bin/pytest -n 2 --dist loadfile --ignore tests/server/models/test_new_architecture.py \
	    tests/server/models tests/server/selection tests/server/engines tests/server/clip

# vLLM's own CPU build, in an environment of its own that is rebuilt when the pins change.
test-vllm: $(VLLM)/.ready $(ZOO)/.ready
	PYTHONPATH=tests/vllm/torchvision_cure $(VLLM)/bin/pytest -c tests/vllm/pytest.ini --ignore tests/vllm/test_zoo.py tests/vllm

# The same on every checkpoint of tests/zoo, each with both engines of its own: half as long again.
test-vllm-zoo: $(VLLM)/.ready $(ZOO)/.ready
	PYTHONPATH=tests/vllm/torchvision_cure $(VLLM)/bin/pytest -c tests/vllm/pytest.ini tests/vllm/test_zoo.py

# What the newest vLLM on the index changed of all that we need of it (tests/vllm/contract.py), read from its sources alone. Prints,
# whatever it finds; the wheel has some 340 MB.
vllm-contract: $(READY)
	rm -rf $(NEWEST)
	$(BIN)/pip download --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps --only-binary :all: --dest $(NEWEST) vllm
	$(BIN)/python tests/vllm/contract_changes.py $(NEWEST)

# SmolLM2's real weights as a LLaVA's language model, against transformers. The weights come in a package of 98 MB.
test-real: $(READY) $(REAL)/.ready
	PYTHONPATH=$(REAL) $(BIN)/pytest -m real -s tests/zoo

# litellm, langchain-openai, instructor and llama-index against a server, in an environment of their own: they need a newer certifi
# than the pins, and llama-index an openai below 3. So the newest openai package and its Agents SDK have another environment.
test-peers: $(READY) $(PEERS)/.ready $(OPENAI)/.ready
	$(PEERS)/bin/pytest -c tests/peers/pytest.ini --ignore tests/peers/openai_3 tests/peers
	$(OPENAI)/bin/pytest -c tests/peers/pytest.ini tests/peers/openai_3

# A peer's own tests against a running server: PEER vllm, llama.cpp or sglang, CHECKOUT the folder to run in (vLLM's or SGLang's own,
# or llama.cpp's tools/server/tests), FILES in it, CONFTESTS the folder above which no conftest.py is read, SERVER a `covervlm serve` without
# keys, SUITES_MODEL the folder of its model.
SERVER ?= http://127.0.0.1:8000
CONFTESTS ?= .
test-suites: $(VLLM)/.ready
	cd $(CHECKOUT) && SUITES_PEER=$(PEER) SUITES_SERVER=$(SERVER) SUITES_MODEL=$(SUITES_MODEL) HF_HUB_OFFLINE=1 \
		PYTHONPATH=$(CURDIR)/tests/vllm/torchvision_cure:$(CURDIR)/tests/peers:. \
		$(CURDIR)/$(VLLM)/bin/python -m pytest -p suites.plugin -p no:cacheprovider -rf --timeout 180 --tb=native --confcutdir=$(CONFTESTS) $(FILES)

# The model that docs/compatibility.md was measured with, made in the folder SUITES_MODEL.
suites-model: $(READY) $(ZOO)/.ready
	$(BIN)/python tests/peers/suites/model.py $(SUITES_MODEL)

# Runs the notebook in docs/, by Jupyter's own kernel.
test-notebook: $(READY) $(NOTEBOOK)/.ready
	PYTHONPATH=$(CURDIR)/$(NOTEBOOK) $(BIN)/pytest -m notebook tests/docs

# Files of points by Embedding Atlas's own reader, which needs a few packages more than are pinned here.
test-viewers: $(READY) $(VIEWERS)/.ready
	PYTHONPATH=$(CURDIR)/$(VIEWERS) $(BIN)/pytest -m viewers tests/server/cli

# The vocabularies that packages ship, for tests/zoo: files to read, in a folder that nothing is imported from.
$(ZOO)/.ready: constraints-zoo.txt | $(READY)
	rm -rf $(ZOO)
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps --target $(ZOO) -r constraints-zoo.txt
	touch $@

$(VIEWERS)/.ready: constraints-viewers.txt | $(READY)
	rm -rf $(VIEWERS)
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps --target $(VIEWERS) -r constraints-viewers.txt
	touch $@

$(REAL)/.ready: constraints-real.txt | $(READY)
	rm -rf $(REAL)
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps --target $(REAL) -r constraints-real.txt
	touch $@

$(FUZZ)/.ready: constraints-fuzz.txt | $(READY)
	rm -rf $(FUZZ)
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps --target $(FUZZ) -r constraints-fuzz.txt
	touch $@

$(NOTEBOOK)/.ready: constraints-notebook.txt | $(READY)
	rm -rf $(NOTEBOOK)
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps --target $(NOTEBOOK) -r constraints-notebook.txt
	touch $@

$(PEERS)/.ready: constraints-peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps -r constraints-peers.txt
	touch $@

$(OPENAI)/.ready: constraints-openai.txt
	$(PYTHON) -m venv $(OPENAI)
	$(OPENAI)/bin/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps -r constraints-openai.txt
	touch $@

$(VLLM)/.ready: constraints-vllm.txt
	$(PYTHON) -m venv --clear $(VLLM)
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps -r constraints-vllm.txt
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAP)
	$(BIN)/mypy -p covervlm
	PYTHONPATH=$(MAPPED) $(BIN)/lint-imports

# The README's figures, except those under load; the quality table takes most of the time.
bench: $(READY) $(ZOO)/.ready
	$(BIN)/python benchmarks/latency.py
	$(BIN)/python benchmarks/batching.py
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/quality.py
	$(BIN)/python benchmarks/photographs.py

# The server under load, unpruned and pruned side by side: the demo model, then one whose language model dominates.
load: $(READY) $(LOAD)/.ready
	$(BIN)/python benchmarks/load.py
	$(BIN)/python benchmarks/load.py --model random --budgets 64 --concurrency 8 --tokens 8 --rounds 2 --requests-per-stream 2

# Our server, on both engines, beside OpenVINO GenAI, llama.cpp, `transformers serve` and plain vLLM on the same random weights: 15
# minutes at most on two cores that do nothing else, after environments and exports. The table goes to results/peers.md.
bench-peers: $(READY) $(ZOO)/.ready $(VLLM)/.ready $(LOAD)/.ready $(BENCH_PEERS)/.ready
	$(BIN)/python benchmarks/peers.py

# All that waits for a GPU, in under nine minutes. In .venv, or without one in the machine's own Python, which has torch with CUDA,
# transformers, triton, numba and pytest; what else is imported comes from the wheels that `make gpu-wheels` has brought along.
# Without a GPU the same runs on tiny sizes in Triton's interpreter.
ifeq ($(wildcard $(READY) $(WHEELS)),)
gpu: $(READY)
endif
gpu:
	if test -e $(READY); then $(BIN)/python benchmarks/gpu; else \
	    $(MAP) && rm -rf $(SITE) && \
	    $(PYTHON) -m pip install --quiet --disable-pip-version-check --no-index --find-links $(WHEELS) --no-deps --no-compile \
	        --target $(SITE) -r constraints-gpu.txt && \
	    PYTHONPATH=$(CURDIR)/$(MAPPED):$(CURDIR)/$(SITE) $(PYTHON) benchmarks/gpu; fi

# For a machine without network, on Linux and x86-64, with Python 3.11 or 3.12.
gpu-wheels: $(READY)
	rm -rf $(WHEELS)
	for version in 3.11 3.12; do $(BIN)/pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
	    --python-version $$version --implementation cp --platform manylinux_2_31_x86_64 --platform manylinux_2_17_x86_64 \
	    --dest $(WHEELS) -r constraints-gpu.txt || exit; done

# About 75 minutes on one core. Writes to OUT and leaves the shipped model as it is.
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

# guidellm, the load generator, which needs versions of its own, and `transformers serve` to compare with.
$(LOAD)/.ready: constraints-load.txt
	$(PYTHON) -m venv $(LOAD)
	$(LOAD)/bin/pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints-load.txt guidellm "transformers[serving]" pillow
	touch $@

# OpenVINO GenAI with its exporter, and llama.cpp with its file format.
$(BENCH_PEERS)/.ready: constraints-bench-peers.txt
	$(PYTHON) -m venv $(BENCH_PEERS)
	$(BENCH_PEERS)/bin/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps -r constraints-bench-peers.txt
	touch $@

clean:
	rm -rf .venv .venv-* $(NEWEST) $(PAGE_TOOLS) $(WHEELS) $(SITE) $(MAPPED) build *.egg-info
