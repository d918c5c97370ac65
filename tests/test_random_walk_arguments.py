# SPDX-License-Identifier: Apache-2.0
"""random_walk: what it refuses, and how it says so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from graph_samples import random_csr, row_stochastic

import fcl_ext

OP = torch.ops.fcl.random_walk.default
TOL = torch.ops.fcl.random_walk_tol.default

BAD_CALLS = [
    (lambda c, e, v, f: (c, e, v, f[0], 0.9, 3), r"expected features of shape \[N, D\] = \[5, \*"),
    (
        lambda c, e, v, f: (c, e, v, f[1:], 0.9, 3),
        r"features of shape \[N, D\] = \[5, \*\], got \[",
    ),
    (lambda c, e, v, f: (c, e, v, f.int(), 0.9, 3), "expected features of dtype float32"),
    (lambda c, e, v, f: (c, e, v[1:], f, 0.9, 3), r"expected values of shape \[E\] = \[12\], got"),
    (lambda c, e, v, f: (c, e, v.double(), f, 0.9, 3), "expected values of dtype"),
    (lambda c, e, v, f: (c, e, v, f.double(), 0.9, 3), "expected values of dtype"),
    (lambda c, e, v, f: (c, e.float(), v, f, 0.9, 3), "expected col_indices of dtype int32 or"),
    (lambda c, e, v, f: (c[:, None], e, v, f, 0.9, 3), r"expected crow_indices of shape \[N \+ 1"),
    (lambda c, e, v, f: (c, e, v, f, 1.0, 3), r"damping in the open interval \(0, 1\), got 1"),
    (lambda c, e, v, f: (c, e, v, f, 0.0, 3), r"damping in the open interval \(0, 1\), got 0"),
    (lambda c, e, v, f: (c, e, v, f, float("nan"), 3), r"damping in the open interval \(0, 1\)"),
    (lambda c, e, v, f: (c, e, v, f, 0.9, -1), "expected num_steps >= 0, got -1"),
]


def _bad_inputs():
    crow, col = random_csr(5, 5, 12)
    return crow, col, torch.rand(12), torch.randn(5, 3)


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(RuntimeError, match=f"fcl::random_walk: .*{message}"):
        OP(*arguments(*_bad_inputs()))


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS)
def test_fakes_refuse_what_kernels_refuse(arguments, message):
    from torch._subclasses.fake_tensor import FakeTensorMode

    inputs = _bad_inputs()
    with FakeTensorMode() as mode, pytest.raises(RuntimeError, match=message):
        OP(*arguments(*(mode.from_tensor(t) for t in inputs)))


BAD_TOLERANCE = [
    ({"tol": 0.0}, r"expected tol in the open interval \(0, 1\), got 0"),
    ({"tol": float("nan")}, r"expected tol in the open interval \(0, 1\)"),
    ({"max_steps": 0}, "expected max_steps >= 1, got 0"),
    ({"norm": "l2"}, "expected norm max or sum, got l2"),
]


@pytest.mark.parametrize(("change", "message"), BAD_TOLERANCE)
def test_bad_tolerance_arguments_are_named(change, message):
    from torch._subclasses.fake_tensor import FakeTensorMode

    crow, col, values = row_stochastic(5, 12, dtype=torch.float32)
    inputs = (crow, col, values, torch.randn(5, 3))
    options = {"damping": 0.9, "tol": 1e-3, "max_steps": 100, "norm": "max", **change}
    with pytest.raises(RuntimeError, match=message):
        TOL(*inputs, *options.values())
    with FakeTensorMode() as mode, pytest.raises(RuntimeError, match=message):
        TOL(*(mode.from_tensor(t) for t in inputs), *options.values())


def test_bad_graphs_and_features_are_named():
    crow, col, values = row_stochastic(5, 12, dtype=torch.float32)
    features = torch.randn(5, 3)
    broken = col.clone()
    broken[4] = 5
    with pytest.raises(RuntimeError, match=r"col_indices in \[0, 5\) or -1 .*, got 5 at edge 4"):
        OP(crow, broken, values, features, 0.9, 1)
    broken = crow.clone()
    broken[1] = 13
    with pytest.raises(RuntimeError, match=r"never decrease, got 13 then .* at row 1"):
        OP(broken, col, values, features, 0.9, 1)
    with pytest.raises(RuntimeError, match=r"every row of the graph .* at most 1 .*, got 2"):
        TOL(crow, col, 2 * values, features, 0.9, 1e-3, 100, "max")
    with pytest.raises(RuntimeError, match=r"every column of the graph .* at most 1"):
        TOL(crow, col, values, features, 0.9, 1e-3, 100, "sum")
    with pytest.raises(RuntimeError, match=r"max_steps = 2, but the error bound is still"):
        TOL(crow, col, values, features, 0.9, 1e-6, 2, "max")
    features[2, 1] = torch.nan
    with pytest.raises(RuntimeError, match="expected finite features"):
        TOL(crow, col, values, features, 0.9, 1e-6, 100, "max")
    values[3] = torch.nan
    with pytest.raises(RuntimeError, match="got nan"):
        TOL(crow, col, values, torch.randn(5, 3), 0.9, 1e-6, 100, "max")


@pytest.mark.needs_cuda
def test_mixed_devices_are_refused():
    crow, col, values, features = _bad_inputs()
    with pytest.raises(RuntimeError, match="expected features on the same device"):
        OP(crow, col, values, features.cuda(), 0.9, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 2.5}, r"expected num_steps to be an integer, got 2\.5"),
        ({"num_steps": 2.5, "iterate_dtype": torch.bfloat16}, "num_steps to be an integer"),
        ({"max_steps": "9"}, "expected max_steps to be an integer, got '9'"),
        ({"tol": "small"}, "expected tol to be a number, got 'small'"),
        ({"damping": "0.9"}, "expected damping to be a number, got '0.9'"),
        ({"crow_indices": np.arange(6)}, "crow_indices to be a tensor, got a numpy array; torch"),
        ({"features": np.eye(5), "transpose": True}, "features to be a tensor, got a numpy"),
        ({"values": [1.0] * 12, "transpose": True}, "values to be a tensor, got list"),
    ],
)
def test_arguments_of_another_type_are_named_in_one_line(changes, message):
    names = ("crow_indices", "col_indices", "values", "features")
    with pytest.raises(TypeError, match=f"^random_walk: .*{message}") as caught:
        fcl_ext.random_walk(**{**dict(zip(names, _bad_inputs(), strict=True)), **changes})
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.arange(3), torch.tensor([1, 0])), "crow_indices to be a tensor, got a numpy"),
        ((torch.arange(3), [1, 0]), "col_indices to be a tensor, got list"),
        ((torch.arange(3), torch.tensor([1, 0]), 2.0), r"num_columns to be an integer, got 2\.0"),
    ],
)
def test_a_transpose_names_arguments_of_another_type_in_one_line(arguments, message):
    with pytest.raises(TypeError, match=f"^csr_transpose: expected {message}") as caught:
        fcl_ext.csr_transpose(*arguments)
    assert "\n" not in str(caught.value)
