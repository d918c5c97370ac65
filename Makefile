# SPDX-License-Identifier: Apache-2.0
PYTHON ?= python3

# In-place build of the compiled parts, for working on the C++.
dev:
	cmake -S . -B build/dev -G Ninja -DFCL_WERROR=ON -DPython_EXECUTABLE=$(CURDIR)/.venv/bin/python \
	  -Dpybind11_DIR=$$($(CURDIR)/.venv/bin/python -m pybind11 --cmakedir) -DSKBUILD_PROJECT_VERSION=0.1.0 >/dev/null
	cmake --build build/dev
	cmake --install build/dev --prefix . >/dev/null
.PHONY: dev
