# SPDX-License-Identifier: Apache-2.0
"""Features and graphs that several tests of KnnGraph take."""

from __future__ import annotations

import torch

import reference


def random_rows(rows, dim, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, dim, dtype=torch.float64, generator=generator).to(dtype)


def dense_matrix(graph):
    return reference.csr_to_dense(
        graph.crow_indices, graph.col_indices, graph.values.double(), graph.num_nodes
    )
