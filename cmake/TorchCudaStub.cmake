# SPDX-License-Identifier: Apache-2.0
# Defines fcl_torch_cuda_stub: a stand-in for torch's CUDA library at link time, with its soname and
# only the symbols we use. So a CPU-only torch suffices to build the CUDA ops, and a CUDA torch
# builds the very same library. At run time torch's own library answers to the name; the stub is
# never installed.
set(fcl_torch_cuda_symbols aoti_torch_get_current_cuda_stream)

set(fcl_stub_source "// Link-time stand-in; see cmake/TorchCudaStub.cmake.\n")
foreach(symbol IN LISTS fcl_torch_cuda_symbols)
    string(
        APPEND fcl_stub_source
        "extern \"C\" __attribute__((visibility(\"default\"))) void ${symbol}() {}\n"
    )
endforeach()
file(CONFIGURE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/torch_cuda_stub.cpp CONTENT "${fcl_stub_source}")
add_library(fcl_torch_cuda_stub SHARED ${CMAKE_CURRENT_BINARY_DIR}/torch_cuda_stub.cpp)
set_target_properties(
    fcl_torch_cuda_stub
    PROPERTIES
        OUTPUT_NAME torch_cuda
        LIBRARY_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/torch_cuda_stub
)
