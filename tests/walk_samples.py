# SPDX-License-Identifier: Apache-2.0
"""A graph to walk over, its features, and where walks end by the definition."""

from __future__ import annotations

import torch
from graph_samples import random_csr

import reference
from fclearn import KnnGraph


def normalized_graph(nodes=300, edges=3000, mode="symmetric"):
    crow, col = random_csr(nodes, nodes, edges, padding=0.1)
    similarities = torch.rand(
        edges, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    return KnnGraph.from_csr(crow, col, similarities).normalize(0.3, mode)


def float_features(nodes=300, dim=5, dtype=torch.float64):
    return torch.randn(nodes, dim, dtype=dtype, generator=torch.Generator().manual_seed(1))


def walk_limit(graph, features, damping, *, transpose=False):
    dense = reference.csr_to_dense(
        graph.crow_indices, graph.col_indices, graph.values.double(), graph.num_nodes
    )
    dense = dense.T if transpose else dense
    return reference.random_walk_limit(dense, features.double(), damping=damping)
