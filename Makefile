# Every target sets up .venv when it is missing. PYTHON picks the interpreter it is made with (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := CMakeLists.txt pyproject.toml $(wildcard */native/* runtime/kernels/cpu/*)
DEMO := build/demo
MINUTES ?= 60

.DEFAULT_GOAL := help
.PHONY: help demo test lint type check bench calls emulated corpus crash fuzz matrix mutants pipelines scale soak wide quality serving timeline trust clean

help: ## Say what each target does
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/ready ## Pack the shipped demo model to 2 bits, verify it, and let it answer with a tool call
	@rm -rf $(DEMO) $(DEMO).partial
	$(BIN)/moe-pack demo $(DEMO)
	$(BIN)/moe-pack verify $(DEMO)
	$(BIN)/moe-run generate $(DEMO) --messages convert/demo/question.json --temp 0

test: $(VENV)/ready-dev ## Run all tests
	$(BIN)/pytest

lint: $(VENV)/ready-dev ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(VENV)/ready-dev ## Check types
	$(BIN)/mypy

check: lint type test ## Everything CI checks

bench: $(VENV)/ready-dev ## Decode and prefill side by side with peers, write docs/performance.md (PARTS=..., LLAMA_CPP=, IK_LLAMA_CPP=)
	PYTHONPATH=tests $(BIN)/python tests/extended/performance/run.py

calls: $(VENV)/ready-dev ## Tool calls of 2-bit packs, free and held to a grammar: 200 cases each, and how many parse and fit
	PYTHONPATH=tests $(BIN)/python tests/extended/quality/calls.py

emulated: ## Compare the arm64 kernels, under emulation, with this machine's, bit for bit
	python3 tests/extended/emulated/run.py

corpus: $(VENV)/ready-dev ## Run MLX's own Metal kernels under our stand-in for a GPU, and compare with MLX (fetches 45 MB)
	PYTHONPATH=tests $(BIN)/python tests/extended/metal_corpus.py

crash: $(VENV)/ready-dev ## Every fault at every system call of builds, calibrations, repairs, locks, signatures; losses of power, real disks (PARTS=names)
	PYTHONPATH=tests $(BIN)/python tests/extended/crash.py

matrix: $(VENV)/ready-dev ## Build the golden packs by other compilers, libraries and (emulated) processors, write docs/reproducibility.md
	$(BIN)/python tests/extended/matrix/run.py

mutants: $(VENV)/ready-dev ## Would the tests of the Metal backend notice faults? Some 330 are tried (MUTANTS=names, JOBS=2)
	PYTHONPATH=tests $(BIN)/python tests/extended/mutants/run.py

pipelines: $(VENV)/ready-dev ## Build every Metal pipeline for every format and shape: under the stand-in, on a Mac by Apple's compiler
	PYTHONPATH=tests $(BIN)/python tests/extended/metal_pipelines.py

scale: $(VENV)/ready-dev ## Pack and verify one layer of the 397B model's full width (3.6 GB; needs 12 GB of disk)
	PYTHONPATH=tests $(BIN)/python tests/extended/scale.py

soak: $(VENV)/ready-dev ## Load a server with all sorts of requests, good and bad, on loopback (MINUTES=60): nothing fails, sticks or leaks
	PYTHONPATH=tests $(BIN)/python tests/extended/soak.py $(MINUTES)

serving: $(VENV)/ready-dev ## Time a continued conversation and eight streams over HTTP, and print the tables of docs/server.md (PARTS=names)
	PYTHONPATH=tests:tests/runtime $(BIN)/python tests/extended/serving.py $(PARTS)

wide: $(VENV)/ready-dev ## Run two layers of the 397B model's full width on the Metal backend, under its stand-in (5 GB of disk, 4 GB of memory)
	PYTHONPATH=tests $(BIN)/python tests/extended/metal_wide.py

quality: $(VENV)/ready-dev ## Measure what packs lose by every recipe and write docs/quality.md (LLAMA_CPP=build: beside it)
	PYTHONPATH=tests $(BIN)/python tests/extended/quality/figures.py

timeline: $(VENV)/ready-dev ## Predict a token's time on Apple devices from counted bytes, write docs/timeline.md (runs nothing there)
	PYTHONPATH=tests $(BIN)/python tests/extended/timeline.py

fuzz: $(VENV)/ready-dev ## Fuzz every parser (atheris), and the native kernels under sanitizers (clang), SECONDS=60 of each (NAMES=...)
	$(BIN)/pip install --quiet atheris==3.0.0
	$(BIN)/python tests/extended/fuzz/run.py $(or $(SECONDS),60) $(NAMES)

trust: $(VENV)/ready-dev ## Rerun what docs/trust.md rests on, as far as 30 minutes allow, and print the counts
	$(BIN)/pip install --quiet atheris==3.0.0
	PYTHONPATH=tests $(BIN)/python tests/extended/trust.py

clean: ## Remove the virtual environment and everything built
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "moepack needs Python 3.11 or newer; run make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/ready: $(NATIVE) | $(VENV)/bin/python
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt --editable .
	@touch $@

# torch first, by its exact version, so that nothing else decides which build of it is fetched.
$(VENV)/ready-dev: $(NATIVE) | $(VENV)/bin/python
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt --editable '.[dev]'
	@touch $(VENV)/ready $@
