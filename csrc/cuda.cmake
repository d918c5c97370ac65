# SPDX-License-Identifier: Apache-2.0
# CUDA op library. A second library, because it needs libtorch_cuda, which CPU torch lacks.
include(CheckLanguage)
if(NOT FCL_CUDA STREQUAL "OFF")
    # Set before the language is enabled, which would choose an architecture of its own.
    set(CMAKE_CUDA_ARCHITECTURES ${FCL_CUDA_ARCHITECTURES})
    check_language(CUDA)
endif()
if(FCL_CUDA STREQUAL "ON" AND NOT CMAKE_CUDA_COMPILER)
    message(FATAL_ERROR "FCL_CUDA=ON, but no CUDA compiler: put nvcc on PATH or set CUDACXX")
endif()
if(FCL_CUDA STREQUAL "OFF" OR NOT CMAKE_CUDA_COMPILER)
    message(STATUS "CUDA kernels: not built (FCL_CUDA=${FCL_CUDA})")
    return()
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
include(${PROJECT_SOURCE_DIR}/cmake/TorchCudaStub.cmake)
message(
    STATUS
    "CUDA kernels: nvcc ${CMAKE_CUDA_COMPILER_VERSION}, architectures ${FCL_CUDA_ARCHITECTURES}"
)

# Torch-free kernels (.cu) by nvcc; thin bindings (.cpp) by the C++ compiler, which alone see torch's
# headers.
add_library(
    fcl_ops_cuda
    MODULE
    common/cuda_tma.cpp
    ops/cuda/compat_loss.cu
    ops/cuda/compat_loss_backward.cu
    ops/cuda/compat_loss_cuda.cpp
    ops/cuda/csr_transpose.cu
    ops/cuda/csr_transpose_cuda.cpp
    ops/cuda/cuda_paths.cpp
    ops/cuda/edge_dot.cu
    ops/cuda/edge_dot_cuda.cpp
    ops/cuda/inverse_norms.cu
    ops/cuda/knn_filter.cu
    ops/cuda/knn_graph.cu
    ops/cuda/knn_graph_cuda.cpp
    ops/cuda/knn_path.cpp
    ops/cuda/random_walk.cu
    ops/cuda/random_walk_cuda.cpp
    ops/cuda/random_walk_union_cuda.cpp
    ops/cuda/readout_path.cpp
    ops/cuda/readout_unscale.cu
    ops/cuda/softmax_readout.cu
    ops/cuda/softmax_readout_backward.cu
    ops/cuda/softmax_readout_backward_mma.cu
    ops/cuda/softmax_readout_backward_sm90.cu
    ops/cuda/softmax_readout_cuda.cpp
    ops/cuda/softmax_readout_mma.cu
    ops/cuda/softmax_readout_sm90.cu
    ops/cuda/softmax_readout_sm90_stored.cu
    ops/cuda/sparse_readout.cu
    ops/cuda/sparse_readout_cuda.cpp
    ops/cuda/walk_gather.cu
    ops/cuda/walk_path.cpp
    ops/cuda/walk_union.cu
)
set_target_properties(
    fcl_ops_cuda
    PROPERTIES
        CUDA_STANDARD 20
        CUDA_STANDARD_REQUIRED ON
        CUDA_RUNTIME_LIBRARY Static
        CUDA_VISIBILITY_PRESET hidden
)
if(FCL_CUDA_ARCHITECTURES MATCHES "90a")
    set_source_files_properties(
        ops/cuda/softmax_readout_backward_sm90.cu
        ops/cuda/softmax_readout_sm90.cu
        ops/cuda/softmax_readout_sm90_stored.cu
        PROPERTIES COMPILE_DEFINITIONS FCL_CUDA_SM90
    )
endif()
# torch's CUDA part of the stable ABI is declared only under USE_CUDA.
target_compile_definitions(fcl_ops_cuda PRIVATE $<$<COMPILE_LANGUAGE:CXX>:USE_CUDA>)
target_include_directories(fcl_ops_cuda SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
# A symbol that nobody has is an error of the link, not of the import on some machine with a GPU.
target_link_options(fcl_ops_cuda PRIVATE LINKER:-z,defs)
target_link_libraries(fcl_ops_cuda PRIVATE fcl_flags fcl_torch fcl_torch_cuda_stub)
install(TARGETS fcl_ops_cuda DESTINATION fcl_ext)
