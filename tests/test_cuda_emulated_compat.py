# SPDX-License-Identifier: Apache-2.0
"""Unit prototypes and compat_loss by the CUDA kernels on the host (see test_cuda_emulation.py)."""

from __future__ import annotations

import pytest
import test_compat_loss
import test_softmax_readout
import torch

from support import DTYPES, error


@pytest.fixture(autouse=True, params=["ascending", "descending"])
def operators(request, emulation, monkeypatch):
    """Threads run in ascending or descending order between barriers."""
    emulation.emulation_reverse(int(request.param == "descending"))
    operators = torch.ops.fcl_emulated
    monkeypatch.setattr(test_compat_loss, "OP", operators.compat_loss.default)
    monkeypatch.setattr(test_compat_loss, "BACKWARD", operators.compat_loss_backward.default)
    monkeypatch.setattr(test_compat_loss, "GRADIENTS", operators.compat_loss_gradients.default)
    return operators


@pytest.fixture(params=["simt", "mma"])
def path(request, monkeypatch):
    """Which kernels the readout in the middle takes."""
    monkeypatch.setenv("FCL_CUDA_PATH", request.param)


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


OPTIONS = test_compat_loss.OPTIONS
# Several tiles and splits, more rows of a label than a warp, several panels of columns.
SHAPES = [*test_compat_loss.SHAPES[:3], (150, 5, 2), (40, 150, 90)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("path")
def test_compat_loss_and_gradients(shape, options, dtype):
    test_compat_loss.test_loss_and_gradients_match_definition(shape, options, dtype, "cpu")


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_compat_loss_reductions(options, reduction):
    test_compat_loss.test_reductions(options, reduction, "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS[-2:], ids=str)
def test_compat_loss_all_in_one_call(options, dtype):
    test_compat_loss.test_all_in_one_call_is_the_same(options, "mean", dtype, "cpu")


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.usefixtures("path")
def test_compat_loss_of_a_single_class(options):
    test_compat_loss.test_a_single_class_is_always_right(options, "cpu")


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.usefixtures("path")
def test_compat_loss_where_no_row_counts(options, reduction, rows, operators):
    x, w, labels = test_compat_loss._inputs((rows, 4, 6), torch.float32, "cpu")
    labels[:] = test_compat_loss.IGNORED
    loss, grad, unit, state = test_compat_loss._call(x, w, labels, options, reduction)
    assert loss.isnan() if reduction == "mean" else not loss.any()
    assert not grad.any()
    assert not state[1:].any()  # of weights; the first row is their logsumexp
    assert state[0].isfinite().all()
    *_, smoothing, normalize = options
    terms = (unit if normalize else x, w, labels, state, torch.full_like(loss, torch.inf))
    grads = operators.compat_loss_backward(
        *terms, 10.0, smoothing, normalize, test_compat_loss.IGNORED
    )
    assert not grads.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("needs", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compat_loss_outputs_are_those_of_the_cpu(reduction, needs, dtype, monkeypatch):
    """Shapes, and what is asked for does not change with what else is."""
    x, w, labels = test_compat_loss._inputs((37, 9, 50), dtype, "cpu")
    x = (x * torch.linspace(0.5, 2, 37, dtype=torch.float64)[:, None]).to(dtype)
    ours = test_compat_loss._call(x, w, labels, OPTIONS[4], reduction, need=needs)
    both = test_compat_loss._call(x, w, labels, OPTIONS[4], reduction)
    monkeypatch.setattr(test_compat_loss, "OP", torch.ops.fcl.compat_loss.default)
    expected = test_compat_loss._call(x, w, labels, OPTIONS[4], reduction, need=needs)
    for mine, full, theirs in zip(ours, both, expected, strict=True):
        assert mine.shape == theirs.shape
        assert mine.dtype == theirs.dtype
        assert not mine.numel() or torch.equal(mine, full)
        # With half types the CPU rounds the weights of classes.
        assert error(mine, theirs) < {torch.float64: 1e-13, torch.float32: 2e-6}.get(dtype, 2e-3)
    if dtype != torch.float64:
        assert torch.equal(ours[2], expected[2])  # unit rows are rounded once, everywhere


def test_compat_loss_messages_name_the_operator_that_was_called():
    test_compat_loss.test_messages_name_the_operator_that_was_called()


@pytest.mark.parametrize("label", [-1, 5])
def test_compat_loss_label_out_of_range(label, operators):
    x, w, labels = test_compat_loss._inputs((3, 4, 5), torch.float32, "cpu")
    labels[2] = label
    with pytest.raises(RuntimeError, match=r"device-side assert.*label is not in \[0, C\)"):
        test_compat_loss._call(x, w, labels, OPTIONS[0])
    state, grad = torch.zeros(4, 3), torch.ones(())
    with pytest.raises(RuntimeError, match=r"device-side assert.*label is not in \[0, C\)"):
        operators.compat_loss_backward(x, w, labels, state, grad, 1.0, 0.0, False, -100)
