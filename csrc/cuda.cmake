# SPDX-License-Identifier: Apache-2.0
# CUDA op library. A second library, because it needs libtorch_cuda, which CPU torch lacks.
include(CheckLanguage)
if(NOT FCL_CUDA STREQUAL "OFF")
    check_language(CUDA)
endif()
if(FCL_CUDA STREQUAL "ON" AND NOT CMAKE_CUDA_COMPILER)
    message(FATAL_ERROR "FCL_CUDA=ON, but no CUDA compiler: put nvcc on PATH or set CUDACXX")
endif()
