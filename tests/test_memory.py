# SPDX-License-Identifier: Apache-2.0
"""Operators give back what they take: bytes in use after thousands of calls are those of before."""

from __future__ import annotations

import ctypes
import gc

import pytest
import torch

import fcl_ext

_FIELDS = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


class _Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]


def _bytes_in_use():
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        pytest.skip("the C library cannot tell what is in use")
    library.mallinfo2.restype = _Mallinfo
    gc.collect()
    info = library.mallinfo2()
    return info.uordblks + info.hblkhd


X, W = torch.randn(64, 32), torch.randn(500, 32)
LABELS, CLASSES = torch.arange(64), torch.arange(500) % 64
LEAF, WEIGHT = X.clone().requires_grad_(), W.clone().requires_grad_()
LARGE = torch.randn(5000, 64).requires_grad_()
CROW, COL, VALUES = torch.arange(0, 129, 2), torch.arange(128) % 64, torch.full((128,), 0.5)


def _trained(weight):
    embeddings = torch.zeros(64, weight.shape[1]) + LEAF[:, :1]
    fcl_ext.compat_loss(embeddings, weight, LABELS).backward()
    LEAF.grad = weight.grad = None


@pytest.mark.parametrize(
    "call",
    [
        lambda: _trained(WEIGHT),
        lambda: _trained(LARGE),
        lambda: fcl_ext.compat_loss(X, W, LABELS, reduction="sum"),
        lambda: fcl_ext.compat_supcon(X, LABELS, W, CLASSES),
        lambda: fcl_ext.softmax_readout(X, W, scale=1.0),
        lambda: fcl_ext.knn_graph(X, 5, metric="l2"),
        lambda: fcl_ext.knn_graph_segments(X, torch.tensor([0, 30, 64]), 5),
        lambda: fcl_ext.knn_search(X, W, 5),
        lambda: fcl_ext.random_walk(CROW, COL, VALUES, X, num_steps=2),
        lambda: fcl_ext.random_walk(CROW, COL, VALUES, X, tol=1e-3),
    ],
    ids=[
        *("compat_loss both gradients", "compat_loss many prototypes", "compat_loss frozen"),
        *("compat_supcon", "softmax_readout", "knn_graph", "knn_graph_segments", "knn_search"),
        *("random_walk", "random_walk to a tolerance"),
    ],
)
def test_no_call_keeps_memory(call):
    for _ in range(50):  # scratch memory and whatever torch keeps
        call()
    before = _bytes_in_use()
    for _ in range(400):
        call()
    assert (_bytes_in_use() - before) / 400 < 20
