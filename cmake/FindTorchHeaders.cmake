# SPDX-License-Identifier: Apache-2.0
# Defines fcl_torch: the headers of the installed torch and its CPU library, stable ABI only.
# find_package(Torch) is avoided: it drags in CUDA toolkit checks and non-stable flags.
set(FCL_TORCH_PYTHON
    ""
    CACHE FILEPATH
    "Interpreter that has the torch to build against; empty: the one that is built for"
)
set(fcl_torch_python ${Python_EXECUTABLE})
if(FCL_TORCH_PYTHON)
    # The op libraries know nothing of Python, so wheels for several share them (tools/wheels.py).
    # -I: pip's isolated build hides installed packages from every Python, by PYTHONPATH.
    set(fcl_torch_python ${FCL_TORCH_PYTHON} -I)
endif()
execute_process(
    COMMAND
        ${fcl_torch_python} -c
        "import torch.utils.cpp_extension as e, torch; print(';'.join(e.include_paths())); print(e.TORCH_LIB_PATH); print(torch.__version__)"
    RESULT_VARIABLE fcl_torch_failed
    OUTPUT_VARIABLE fcl_torch_output
    ERROR_QUIET
)
if(fcl_torch_failed)
    message(
        FATAL_ERROR
        "fcl-ext needs torch >= 2.10 in the environment it is built in, and pip's isolated build hides it.\n"
        "Install torch first, then build without isolation:\n"
        "  pip install 'torch>=2.10' 'scikit-build-core>=1.0' 'pybind11>=3.0' ninja\n"
        "  pip install --no-build-isolation ."
    )
endif()
string(REPLACE "\n" "|" fcl_torch_lines "${fcl_torch_output}")
string(REGEX REPLACE "^([^|]*)\\|([^|]*)\\|([^|]*).*" "\\1" fcl_torch_includes "${fcl_torch_lines}")
string(REGEX REPLACE "^([^|]*)\\|([^|]*)\\|([^|]*).*" "\\2" fcl_torch_lib_dir "${fcl_torch_lines}")
string(REGEX REPLACE "^([^|]*)\\|([^|]*)\\|([^|]*).*" "\\3" fcl_torch_version "${fcl_torch_lines}")
if(fcl_torch_version VERSION_LESS "2.10")
    message(FATAL_ERROR "fcl-ext needs torch >= 2.10 to build, found ${fcl_torch_version}")
endif()
message(STATUS "Building against the stable ABI of torch ${fcl_torch_version} (runs on >= 2.10)")

add_library(fcl_torch INTERFACE)
target_include_directories(fcl_torch SYSTEM INTERFACE ${fcl_torch_includes})
# Nothing newer than 2.10's stable ABI is visible, so one build serves every later torch.
target_compile_definitions(fcl_torch INTERFACE TORCH_TARGET_VERSION=0x020a000000000000)
target_link_libraries(fcl_torch INTERFACE ${fcl_torch_lib_dir}/libtorch_cpu.so)
