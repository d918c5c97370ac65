# SPDX-License-Identifier: Apache-2.0
"""Unit prototypes and compat_loss by the CUDA kernels on the host (see test_cuda_emulation.py)."""

from __future__ import annotations

import pytest
import test_softmax_readout
import torch

from support import DTYPES, error


@pytest.fixture(autouse=True, params=["ascending", "descending"])
def operators(request, emulation):
    """Threads run in ascending or descending order between barriers."""
    emulation.emulation_reverse(int(request.param == "descending"))
    return torch.ops.fcl_emulated


def _exact(tensors):
    return [None if t is None else t.double() for t in tensors]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", ["none", "prototypes", "own"])
@pytest.mark.parametrize("shape", [(5, 7, 3), (70, 24, 300)], ids=str)
def test_normalize(shape, values, dtype, operators):
    """Against the CPU operator in float64, which its own tests hold to the definition."""
    x, w, v, scale = test_softmax_readout._inputs((*shape, 5, 9.0), dtype, "cpu")
    w = (w * torch.linspace(0.25, 4.0, len(w), dtype=torch.float64)[:, None]).to(dtype)
    w[1] = 0
    v = {"none": None, "prototypes": w, "own": v}[values]
    exclude = torch.arange(len(x)) % (len(w) + 1) - 1
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    tolerance = 1e-13 if dtype == torch.float64 else 5e-6
    exact = _exact((x, w, v))
    if values == "prototypes":
        exact[2] = exact[1].clone()
    truth = torch.ops.fcl.softmax_readout(*exact, exclude, scale, True, True)
    ours = operators.softmax_readout(x, w, v, exclude, scale, True, True)
    for mine, expected in zip(ours, truth, strict=True):
        assert error(mine, expected) < tolerance

    coefficient = torch.linspace(-1, 1, len(x), dtype=torch.float64)
    terms = (truth[0], coefficient, truth[1].sin())

    def backward(namespace, tensors, dtype):
        return namespace.softmax_readout_backward(
            *tensors, exclude, *(t.to(dtype) for t in terms), scale, True, True, True, True
        )

    grads = backward(operators, (x, w, v), accumulate)
    expected_grads = backward(torch.ops.fcl, exact, torch.float64)
    # A zero row is not scaled to unit length but by 1e12, and so is its gradient.
    others = torch.arange(len(w)) != 1
    for mine, expected in zip(grads, expected_grads, strict=True):
        if len(mine) == len(w):
            assert error(mine[others], expected[others]) < 3 * tolerance
            assert error(mine[1], expected[1]) < 3 * tolerance
        else:
            assert error(mine, expected) < 3 * tolerance
