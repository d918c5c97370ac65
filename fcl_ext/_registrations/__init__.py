# SPDX-License-Identifier: Apache-2.0
"""What torch needs beside the kernels: shape inference, autograd and autocast, one file per op."""

from __future__ import annotations

from fcl_ext._registrations import (  # noqa: F401
    class_walk,
    compat_loss,
    csr_transpose,
    edge_dot,
    graph_prepare,
    knn_graph,
    knn_search,
    pack_prototypes,
    random_walk,
    softmax_readout,
    sparse_readout,
    walk_windows,
)
