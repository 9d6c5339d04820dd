# Every target sets up what it needs: a virtual environment in .venv with pinned versions, made once.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
TEST := --ignore=tests/cuda --ignore=tests/site --ignore=tests/hosts  # these have targets of their own

.PHONY: help demo test coverage test-compile test-cuda test-hosts faults soak test-sanitized test-toolkit gpu-check lint types docs test-site docs-serve clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

demo: $(READY)  ## train on handwritten digits with empty ranks, in each statistics mode
	-$(BIN)/sbnref build cpu
	$(BIN)/sbnref demo

test: $(READY)  ## run the tests, all but those of the kernels and of the site
	$(BIN)/sbnref build cpu
	$(BIN)/pytest $(TEST)

coverage: $(READY)  ## the same and those of the kernels, and which lines they reach
	$(BIN)/sbnref build cpu
	$(BIN)/pytest --cov --ignore=tests/site --ignore=tests/hosts

test-hosts: $(READY)  ## train on several hosts, network namespaces of this machine, and lose some of them (root, Linux)
	$(BIN)/pytest tests/hosts

faults: $(READY)  ## lose ranks, links and hosts under every implementation, and keep what is seen for the site (root, Linux)
	$(BIN)/sbnref build cpu
	$(BIN)/pytest --every-impl --record docs/howto/faults.json tests/test_faults.py tests/hosts

SOAK_MINUTES ?= 10
soak: $(READY)  ## train random models on random ranks, and let some fail, for ten minutes (or SOAK_MINUTES)
	$(BIN)/sbnref build cpu
	cd tests && ../$(BIN)/python -m soak --minutes $(SOAK_MINUTES)

test-compile: $(READY)  ## run compiled training steps in the combinations of three choices that are not in the tests
	$(BIN)/sbnref build cpu
	$(BIN)/pytest --ways 3 tests/test_compile_matrix.py

test-cuda: $(READY)  ## run the suite over the simulated kernels; compile them for GPUs where nvcc is there
	$(BIN)/pytest tests/cuda

SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined -g
SANITIZED := LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0
test-sanitized: $(READY)  ## run the kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer
	$(SANITIZED) SBNREF_CUDASIM_FLAGS="$(SANITIZE)" $(BIN)/pytest tests/cuda/test_stages.py tests/cuda/test_simulation.py
	$(SANITIZED) SBNREF_CPU_FLAGS="$(SANITIZE)" $(BIN)/pytest tests/cpu/test_cpu_stages.py tests/cpu/test_cpu_operators.py
	$(BIN)/pytest tests/cpu/race_check.py

test-toolkit:  ## build the CUDA kernels where pip alone brought nvcc, in a fresh environment; downloads gigabytes (Linux)
	PYTHON=$(PYTHON) tests/toolkit.sh

gpu-check:  ## check and measure the kernels on a CUDA GPU, with the python that is there; installs nothing
	$(PYTHON) benchmarks/gpu_check.py

lint: $(READY)  ## check style, and who imports whom
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

types: $(READY)  ## check types
	$(BIN)/mypy

docs: $(READY)  ## build the site into docs/_build/html, running the tutorials
	$(BIN)/sbnref build cpu
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

test-site: docs  ## test the built site in a headless Chromium, and the solutions to the exercises
	$(BIN)/pytest tests/site

docs-serve: docs  ## show the site on http://localhost:8000
	$(BIN)/python -m http.server --directory docs/_build/html 8000

clean:  ## remove what the other targets made
	rm -rf .venv build dist *.egg-info .coverage* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache demo-output docs/_build docs/learn

$(READY): pyproject.toml constraints.txt
	@echo "Installing PyTorch and the tools for tests and documentation in .venv, once. This takes a few minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
