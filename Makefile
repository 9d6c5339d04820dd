# A target first installs its packages into .venv, in the versions of constraints.txt; the environment grows.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PIP_VERSION := 26.3
PYTEST := $(BIN)/pytest --verbose

.PHONY: help demo test test-all test-lanes test-rest test-compile coverage test-cuda test-hosts test-sanitized test-site test-toolkit faults soak gpu-check lint types docs wheels release docs-serve lock clean build-cpu

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

demo: .venv/.demo  ## train on handwritten digits with empty ranks, in each statistics mode
	$(BIN)/sbnref demo

test: build-cpu  ## run the quick tests: the suite over the reference and the CPU kernels, and the unit tests
	$(PYTEST) -n 2 -m "not slow"

# The longest first: `make -j2` starts the next target when one of two ends.
IN_TWO_LANES := test-rest test-cuda test-sanitized test-compile docs test-hosts types lint
test-lanes: $(IN_TWO_LANES)

test-all: test $(IN_TWO_LANES) test-site  ## run all checks that need no GPU

test-rest: .venv/.dev build-cpu  ## run the slow tests of the Python side: compiled models, other libraries, graders
	$(PYTEST) -m slow $(APART)

APART := --ignore=tests/cuda --ignore=tests/site --ignore=tests/hosts  # these have targets of their own

build-cpu: .venv/.test
	$(BIN)/sbnref build cpu

test-compile: .venv/.dev build-cpu  ## run compiled training steps in the combinations of three options that test-rest leaves out
	$(PYTEST) --ways 3 tests/test_compile_matrix.py

coverage: .venv/.dev build-cpu  ## run all tests except test-site and test-hosts, and show the coverage
	$(BIN)/pytest --cov --ignore=tests/site --ignore=tests/hosts

test-hosts: .venv/.dev build-cpu  ## train on several hosts (network namespaces), and lose some of them (root, Linux)
	$(PYTEST) tests/hosts

faults: .venv/.dev build-cpu  ## lose ranks, links and hosts, and record the errors for the site (root, Linux)
	$(PYTEST) --record docs/howto/faults.json tests/test_faults.py tests/hosts

SOAK_MINUTES ?= 10
soak: .venv/.dev build-cpu  ## train random models on random ranks for ten minutes (or SOAK_MINUTES)
	$(PYTEST) --random-minutes $(SOAK_MINUTES) tests/test_random_training.py

test-cuda: .venv/.dev  ## run the suite over the simulated kernels; compile them for GPUs if nvcc is installed
	$(PYTEST) tests/cuda

SANITIZE := -O1 -g1 -fsanitize=address,undefined -fno-sanitize=null,object-size,vptr -fno-sanitize-recover=undefined
SANITIZED := LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0
test-sanitized: .venv/.dev  ## run the CPU kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer
	$(SANITIZED) SBNREF_CPU_FLAGS="$(SANITIZE)" $(PYTEST) tests/cpu/test_cpu_stages.py tests/cpu/test_cpu_operators.py
	$(PYTEST) tests/cpu/race_check.py

test-toolkit:  ## build the CUDA kernels with nvcc from pip in a fresh environment; downloads gigabytes (Linux)
	PYTHON=$(PYTHON) tests/toolkit.sh

gpu-check:  ## check and measure the kernels on a CUDA GPU in half an hour, with python3; installs nothing
	$(PYTHON) benchmarks/gpu_check.py

lint: .venv/.dev  ## check style and imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

types: .venv/.dev  ## check types
	$(BIN)/mypy

docs: .venv/.dev build-cpu  ## build the site into docs/_build/html, running the tutorials
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

test-site: docs  ## test the built site in a headless Chromium
	$(PYTEST) -n 2 tests/site

wheels: .venv/.wheels  ## build the wheels of all platforms into dist, and check them (Linux on x86-64)
	rm -rf dist
	$(BIN)/python .ci/wheels.py
	for wheel in dist/*linux*.whl; do \
		$(BIN)/auditwheel show $$wheel >build/audit && ! grep -E "GLIBC_2\.(29|[3-9][0-9])" build/audit || exit 1; done
	$(BIN)/twine check --strict dist/*

release: .venv/.wheels  ## make the release VERSION: set it, build and test the wheels, commit and tag (Linux on x86-64)
	$(BIN)/python .ci/release.py $(VERSION)

docs-serve: docs  ## show the site on http://localhost:8000
	$(BIN)/python -m http.server --directory docs/_build/html 8000

lock: .venv/.dev  ## update constraints.txt; pyproject.toml sets the versions of torch and torchvision
	$(BIN)/uv pip compile --universal --python-version 3.10 --upgrade --no-annotate --all-extras \
		--custom-compile-command "make lock" --output-file constraints.txt pyproject.toml

clean:  ## remove the files of the other targets
	rm -rf .venv build dist *.egg-info .coverage* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache demo-output docs/_build docs/learn

.venv/.demo: CONTENT := PyTorch and the packages of the demo: 40 packages, 0.2 to 0.3 GB to download \
	(57 and 2.8 GB on Linux unless PIP_EXTRA_INDEX_URL names an index with CPU builds, see README.md)
.venv/.test: CONTENT := the packages of the quick tests: up to 10 more than those of the demo, 2 MB
.venv/.dev: CONTENT := the packages of all tests, the linters and the site: about 100 more, 0.2 GB
.venv/.wheels: CONTENT := PyTorch, the compilers zig and nvcc, and the checkers of wheels, 0.5 GB to download
.venv/.demo .venv/.test .venv/.dev .venv/.wheels: .venv/.%: constraints.txt pyproject.toml | .venv/bin/python
	@echo "Installing into .venv, once: $(CONTENT)"
	$(PIP) install --constraint constraints.txt --editable '.[$*]'
	touch $@

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet pip==$(PIP_VERSION)  # older versions lack editable installs and progress
