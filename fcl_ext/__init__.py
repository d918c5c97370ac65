# SPDX-License-Identifier: Apache-2.0
"""Fused kernels of feature-compatible learning as torch operators (``torch.ops.fcl.*``).

Importing this package loads the CPU kernels, and the CUDA kernels where torch has CUDA, and
registers shape inference, autograd and autocast for them.
"""

from __future__ import annotations

from fcl_ext import _loader

_loader.load_libraries()

from fcl_ext import _registrations  # noqa: E402, F401  (needs the loaded schemas)
from fcl_ext._C import version as __version__  # noqa: E402
from fcl_ext._frozen import set_packing_cache  # noqa: E402
from fcl_ext._loader import cuda_error, has_cuda_kernels  # noqa: E402
from fcl_ext.knn import knn_graph, knn_graph_segments, knn_search  # noqa: E402
from fcl_ext.losses import (  # noqa: E402
    Teacher,
    compat_kl,
    compat_loss,
    compat_supcon,
    teacher_readout,
)
from fcl_ext.positive_sets import PositiveSets  # noqa: E402
from fcl_ext.readout import combine_readouts, softmax_readout, sparse_readout  # noqa: E402
from fcl_ext.walk import csr_transpose, random_walk  # noqa: E402

__all__ = [
    "PositiveSets",
    "Teacher",
    "__version__",
    "combine_readouts",
    "compat_kl",
    "compat_loss",
    "compat_supcon",
    "csr_transpose",
    "cuda_error",
    "has_cuda_kernels",
    "knn_graph",
    "knn_graph_segments",
    "knn_search",
    "random_walk",
    "set_packing_cache",
    "softmax_readout",
    "sparse_readout",
    "teacher_readout",
]
