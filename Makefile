# Two commands are enough: `make reproduce` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SCALE ?= quick
OUT ?= results/$(SCALE)
ISA_TESTS := $(patsubst %,tests/test_%.py,model_contract models vision_models)

.DEFAULT_GOAL := help
.PHONY: help dev reproduce test test-browser test-cluster test-isa test-slow test-faults test-wheel check bench gpu docs clean

help:  ## print this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/lab: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[lab]'
	@touch $@

$(VENV)/dev: $(VENV)/lab
	$(PIP) --editable '.[dev]'
	@touch $@

dev: $(VENV)/dev  ## create .venv with the development requirements

reproduce: $(VENV)/lab  ## make every figure from embedded data and check its claims (SCALE=quick, OUT=results/quick)
	$(BIN)/heavytail reproduce --scale $(SCALE) --out $(OUT)

test: $(VENV)/dev  ## run the tests (real data: set HEAVYTAIL_DATA)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not slow and not gpu and not network and not browser and not cluster"

test-isa: $(VENV)/dev  ## run the model tests with the kernels of processors with AVX2 only, then with SSE4.1 only
	for isa in AVX2 SSE41; do ONEDNN_MAX_CPU_ISA=$$isa OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto \
		-m "not slow and not gpu and not network and not browser and not cluster" $(ISA_TESTS) || exit 1; done

$(VENV)/browser: $(VENV)/dev
	$(PIP) --editable '.[browser]'
	@touch $@

test-browser: $(VENV)/browser  ## test the pages in a headless Chromium (installs Debian's if there is none)
	@command -v chromium >/dev/null || timeout 120 sh -c 'apt-get update -q && apt-get install -q -y --no-install-recommends chromium' \
		>/dev/null 2>&1 || echo "test-browser: no chromium, and apt cannot install it; the tests are skipped"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m browser tests/browser

$(VENV)/cluster: $(VENV)/dev
	$(PIP) --editable '.[ray,slurm]'
	@touch $@

test-cluster: $(VENV)/cluster  ## test sweeps on Ray and Slurm, which are started here (installs Debian's Slurm if there is none)
	@command -v slurmctld >/dev/null || timeout 180 sh -c 'apt-get update -q && apt-get install -q -y --no-install-recommends \
		slurmctld slurmd slurm-client munge' >/dev/null 2>&1 \
		|| echo "test-cluster: no Slurm, and apt cannot install it; its tests are skipped"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cluster --durations 5 tests/test_cluster_*.py

test-slow: $(VENV)/dev  ## run the slow tests: paper-sized shapes
	$(BIN)/python -m pytest -m "slow and not gpu and not network"

test-faults: $(VENV)/dev  ## kill workers and process groups 100 times, ranks 20 times, damage 2 000 bytes of a store
	HEAVYTAIL_FAULTS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s tests/test_faults.py

test-wheel: $(VENV)/dev  ## build the wheel, install it in an empty environment, reproduce figure 4 with it
	set -e; place=$$(mktemp -d); trap 'rm -rf "$$place"' EXIT; \
	$(BIN)/python -m build --wheel --outdir "$$place" .; \
	$(PYTHON) -m venv "$$place/venv"; \
	"$$place/venv/bin/python" -m pip install --quiet --constraint constraints.txt "$$(echo "$$place"/*.whl)[lab]"; \
	cd "$$place"; venv/bin/heavytail reproduce fig04 --scale quick --root store --strict

check: $(VENV)/dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/dev  ## measure speed and memory against named baselines (results/bench.json)
	$(BIN)/python -m benchmarks --json results/bench.json

gpu: $(VENV)/dev  ## with a GPU: its tests, the benchmarks, and figures at paper scale (results/bench-cuda.json, results/paper)
	$(BIN)/python -m pytest -m gpu tests/test_gpu.py
	$(BIN)/python -m benchmarks head step curvature monitor --device cuda --json results/bench-cuda.json
	$(BIN)/heavytail reproduce fig04 fig05 fig07 fig08 fig18 fig19 fig23 fig27 fig28 --scale paper --device cuda

$(VENV)/docs: $(VENV)/lab
	$(PIP) --editable '.[docs]'
	@touch $@

docs: $(VENV)/docs  ## build the documentation site (docs/_build/index.html); a warning is an error
	$(BIN)/python -m sphinx -b html -W --keep-going -q docs docs/_build

clean:  ## remove .venv and results
	rm -rf $(VENV) results
