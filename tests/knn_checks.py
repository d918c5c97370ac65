# SPDX-License-Identifier: Apache-2.0
"""Checks of knn_graph's CUDA kernels: on the host by emulation, on a GPU.

``ops`` is where the operators are (``torch.ops.fcl`` or the emulated ones), ``device`` where their
tensors live. Paths must agree to the last bit; what is true is computed on the CPU in float64.
"""

from __future__ import annotations

import os
from itertools import product
from unittest import mock

import torch
import torch.nn.functional as F

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
METRICS = ["cosine", "ip", "l2"]
ROWS = [2, 63, 64, 65, 129, 300]
DIMS = [1, 7, 64, 100, 128, 257]
NEIGHBOURS = [1, 8, 31, None]  # None: all others
KINDS = ["random", "clustered", "ties", "equal", "zeros", "scales", "rounded"]


def _cases():
    """(rows, dim, k, metric, dtype, kind): every pair of sizes, and everything else in turns."""
    cases = []
    for i, (rows, dim) in enumerate(product(ROWS, DIMS)):
        # Longer lists are slow to emulate.
        k = NEIGHBOURS[(i + i // 6) % 4] or min(rows - 1, 64)
        metric, dtype = METRICS[i % 3], DTYPES[(i + i // 6) % 3]
        cases.append((rows, dim, min(k, rows - 1), metric, dtype, KINDS[i % 7]))
    return cases


CASES = _cases()


def case_name(case):
    return "-".join(str(part).removeprefix("torch.") for part in case)


def features_of(kind, rows, dim, dtype, seed=5):
    """Rows that a filter by rounded products finds easy, and rows that it does not."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    features = normal(rows, dim)
    if kind == "clustered":  # rounding is about as large as what tells a cluster's rows apart
        features = features[torch.arange(rows) % 5] + 3e-4 * normal(rows, dim)
    elif kind == "ties":
        features = features.sign() * (features.abs() > 0.7)
    elif kind == "equal":
        features = features[:1].repeat(rows, 1)
    elif kind == "zeros":
        features[torch.arange(rows) % 3 != 1] = 0
    elif kind == "scales":
        features *= 10.0 ** (4 * torch.rand(rows, 1, dtype=torch.float64, generator=generator) - 2)
    elif kind == "rounded":  # to 16 bits, all of a row's entries are rounded to the same side
        step = torch.rand(rows, 1, dtype=torch.float64, generator=generator) * 2**-8
        features = features[:1].sign() * (1 + step) + 1e-4 * normal(rows, dim)
    return features.to(dtype)


def asked(path):
    return mock.patch.dict(os.environ, {"FCL_CUDA_PATH": path})


def search(ops, path, features, k, metric, device="cpu"):
    with asked(path):
        return tuple(t.cpu() for t in ops.knn_graph(features.to(device), k, metric))


def assert_same_bits(got, expected):
    """Signs of zeros included."""
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a.view(torch.int32), b.view(torch.int32))


def check_definition(features, k, metric, indices, similarities):
    """Neighbours are the right ones up to rounding, and in order."""
    exact = features.double()
    size = 1.0 if metric == "cosine" else float(exact.square().sum(1).max())
    if metric == "cosine":
        exact = F.normalize(exact, dim=1)
    table = exact @ exact.T
    if metric == "l2":
        squares = exact.square().sum(1)
        table = (2 * table - (squares[:, None] + squares)).clamp(max=0)
    table.fill_diagonal_(-torch.inf)
    bound = 4 * (2 + features.shape[1] ** 0.5) * 1.2e-7 * size
    expected = table.sort(1, descending=True).values[:, :k]
    assert (similarities - expected).abs().max() <= bound
    assert (similarities - table.gather(1, indices.long())).abs().max() <= bound
    falls = similarities[:, 1:] < similarities[:, :-1]
    stays = similarities[:, 1:] == similarities[:, :-1]
    assert (falls | stays & (indices[:, 1:] > indices[:, :-1])).all()
    ordered = indices.sort(1).values
    assert (ordered[:, 1:] > ordered[:, :-1]).all()


def check_case(ops, case, device="cpu"):
    rows, dim, k, metric, dtype, kind = case
    features = features_of(kind, rows, dim, dtype)
    got = search(ops, "mma", features, k, metric, device)
    check_definition(features, k, metric, *got)
    assert_same_bits(got, search(ops, "simt", features, k, metric, device))


def check_extremes(ops, dim, device="cpu", rows=60):
    """Rows whose products underflow (to zeros of either sign), or that are nearly too long."""
    for metric, exponent in product(METRICS, (-45, -38, -23, -19, 17.9)):
        features = features_of("random", rows, dim, torch.float64) * 10.0**exponent
        features = features.float()
        got = search(ops, "mma", features, 5, metric, device)
        assert_same_bits(got, search(ops, "simt", features, 5, metric, device))


def check_signed_zeros(ops, dim, metric, device="cpu", first=16):
    """Products of late rows round to zeros of both signs, and beat those with the first rows."""
    features = torch.zeros(5 * first, dim)
    features[:first, 0] = -1
    features[first:, 0] = 1e-23
    features[first:, -1] = 1e-23 * (-1.0) ** torch.arange(4 * first)
    expected = search(ops, "simt", features, 9, metric, device)
    signs = expected[1][first:].signbit()
    # Where zeros are added up to a multiple of 16 terms, all signs are plus.
    assert signs.any() == (dim % 16 == 0)
    assert not signs.all()
    assert_same_bits(search(ops, "mma", features, 9, metric, device), expected)


def check_ascending(ops, metric, device="cpu", rows=160):
    """Rows on an arc: in one order every row met improves the list, in the other none does."""
    angles = torch.linspace(0, 1, rows, dtype=torch.float64).square()
    features = torch.stack([angles.cos(), angles.sin()], 1).float()
    for ordered in (features, features.flip(0)):
        got = search(ops, "mma", ordered, 9, metric, device)
        assert_same_bits(got, search(ops, "simt", ordered, 9, metric, device))
