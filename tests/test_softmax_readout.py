# SPDX-License-Identifier: Apache-2.0
"""softmax_readout against its definition, in every dtype, shape and mode."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import fcl_ext
import reference
from support import DEVICES, DTYPES, error, error_budget, numbers_by_isa, run_with_isa

OP = torch.ops.fcl.softmax_readout.default

# (rows, dim, classes, value dim or None, scale): ragged against every block size of the kernels.
SAMPLES = [
    (1, 1, 1, None, 1.0),
    (5, 7, 3, None, 3.0),
    (3, 32, 15, 4, 64.0),
    (130, 65, 600, None, 30.0),
    (64, 33, 9001, 17, 20.0),
    (257, 16, 40, 16, 10.0),
]


def _inputs(sample, dtype, device, *, seed=0, values=True):
    rows, dim, classes, value_dim, scale = sample
    generator = torch.Generator().manual_seed(seed)
    x = F.normalize(torch.randn(rows, dim, dtype=torch.float64, generator=generator), dim=1)
    w = F.normalize(torch.randn(classes, dim, dtype=torch.float64, generator=generator), dim=1)
    v = None
    if value_dim is not None and values:
        v = torch.randn(classes, value_dim, dtype=torch.float64, generator=generator)
    tensors = [None if t is None else t.to(dtype).to(device) for t in (x, w, v)]
    return *tensors, scale


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_matches_definition(sample, dtype, device):
    x, w, v, scale = _inputs(sample, dtype, device)
    logsumexp, mean = OP(x, w, v, None, scale, True)
    exact = [None if t is None else t.double() for t in (x, w, v)]
    expected_lse, expected_mean = reference.softmax_readout(*exact, scale=scale)
    naive_lse, naive_mean = reference.softmax_readout(x, w, v, scale=scale)
    assert logsumexp.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert error(logsumexp, expected_lse) <= error_budget(naive_lse, expected_lse, dtype)
    assert error(mean, expected_mean) <= error_budget(naive_mean, expected_mean, dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_excluded_class_leaves_the_sum(sample, device):
    x, w, v, scale = _inputs(sample, torch.float64, device)
    exclude = torch.arange(len(x), device=device) % (len(w) + 1) - 1
    got = OP(x, w, v, exclude, scale, True)
    for ours, expected in zip(
        got, reference.softmax_readout(x, w, v, scale=scale, exclude=exclude), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("needs", range(1, 8))
@pytest.mark.parametrize("outputs", ["lse", "mean", "both"])
@pytest.mark.parametrize("separate_values", [False, True])
def test_gradients_match_definition(needs, outputs, separate_values, device):
    sample = (140, 9, 70, 5 if separate_values else None, 4.0)
    x, w, v, scale = _inputs(sample, torch.float64, device)
    exclude = torch.arange(len(x), device=device) % len(w)
    weights = torch.linspace(-1, 1, len(x), dtype=torch.float64, device=device)

    def gradients(function):
        tensors = [
            None if t is None else t.clone().requires_grad_(bool(needs >> i & 1))
            for i, t in enumerate((x, w, v))
        ]
        wanted = [t for t in tensors if t is not None and t.requires_grad]
        if not wanted:
            return []
        lse, mean = function(*tensors)
        total = (weights * lse).sum() if outputs != "mean" else 0
        if outputs != "lse":
            total = total + (weights[:, None] * mean).square().sum()
        if not total.requires_grad:
            return [None] * len(wanted)
        return torch.autograd.grad(total, wanted, allow_unused=True)

    ours = gradients(lambda a, b, c: OP(a, b, c, exclude, scale, True))
    expected = gradients(
        lambda a, b, c: reference.softmax_readout(a, b, c, scale=scale, exclude=exclude)
    )
    for mine, truth in zip(ours, expected, strict=True):
        if truth is None or mine is None:
            other = mine if truth is None else truth
            assert other is None or not other.any()
        else:
            torch.testing.assert_close(mine, truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("separate_values", [False, True])
def test_normalize_is_that_of_the_prototypes(separate_values, dtype, device):
    sample = (140, 40, 700, 5 if separate_values else None, 9.0)
    x, w, v, scale = _inputs(sample, dtype, device)
    w = w * torch.linspace(0.25, 4.0, len(w), device=device)[:, None].to(dtype)

    def run(dtype, function):
        leaves = [None if t is None else t.to(dtype).requires_grad_() for t in (x, w, v)]
        lse, mean = function(*leaves)
        weights = torch.linspace(-1, 1, len(x), device=device, dtype=lse.dtype)
        total = (weights * lse).sum() + (weights[:, None] * mean).square().sum()
        wanted = [t for t in leaves if t is not None]
        grads = torch.autograd.grad(total, wanted)
        return [t.detach() for t in (lse, mean, *grads)]

    def by_definition(a, b, c):
        unit = F.normalize(b, dim=1)
        return reference.softmax_readout(a, unit, unit if c is None else c, scale=scale)

    ours = run(dtype, lambda a, b, c: OP(a, b, c, None, scale, True, True))
    exact = run(torch.float64, by_definition)
    naive = run(dtype, by_definition)
    for mine, truth, plain in zip(ours, exact, naive, strict=True):
        assert error(mine, truth) <= error_budget(plain, truth, dtype)


@pytest.mark.parametrize("device", DEVICES)
def test_values_that_are_the_prototypes_get_their_own_gradient(device):
    x, w, _, scale = _inputs((9, 5, 12, None, 3.0), torch.float64, device)
    w.requires_grad_()
    given = OP(x, w, w, None, scale, True)[1].square().sum()
    shared = OP(x, w, None, None, scale, True)[1].square().sum()
    torch.testing.assert_close(torch.autograd.grad(given, w)[0], torch.autograd.grad(shared, w)[0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shards", [1, 2, 5])
def test_shards_of_the_classes_combine_to_the_whole(shards, device):
    x, w, v, scale = _inputs((40, 12, 103, 6, 20.0), torch.float64, device)
    exclude = torch.arange(len(x), device=device) % len(w)
    parts = []
    begin = 0
    for shard, values in zip(w.tensor_split(shards), v.tensor_split(shards), strict=True):
        inside = (exclude >= begin) & (exclude < begin + len(shard))
        local = torch.where(inside, exclude - begin, -1)
        parts.append(OP(x, shard, values, local, scale, True))
        begin += len(shard)
    lse, mean = fcl_ext.combine_readouts(*(torch.stack(part) for part in zip(*parts, strict=True)))
    whole = OP(x, w, v, exclude, scale, True)
    torch.testing.assert_close(lse, whole[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mean, whole[1], rtol=1e-12, atol=1e-12)


def test_combining_nothing_or_empty_shards():
    lse = torch.tensor([[-torch.inf, 1.0], [-torch.inf, -torch.inf]])
    combined, mean = fcl_ext.combine_readouts(lse, torch.ones(2, 2, 3))
    assert combined.tolist() == [-torch.inf, 1.0]
    assert mean.tolist() == [[0.0] * 3, [1.0] * 3]
    with pytest.raises(ValueError, match=r"logsumexps of shape \[S, N\]"):
        fcl_ext.combine_readouts(lse[0], torch.ones(2, 2, 3))


@pytest.mark.parametrize("device", DEVICES)
def test_gradcheck_and_gradgradcheck(device):
    x, w, v, scale = _inputs((4, 3, 5, 2, 2.0), torch.float64, device)
    x.requires_grad_()
    w.requires_grad_()
    v.requires_grad_()
    exclude = torch.tensor([0, -1, 4, 2], device=device)
    assert torch.autograd.gradcheck(lambda a, b, c: OP(a, b, c, exclude, scale, True), (x, w, v))
    # The gradient of lse to the embeddings is scale * mean, itself an output with a gradient.
    frozen = w.detach()
    assert torch.autograd.gradgradcheck(
        lambda a: OP(a, frozen, None, exclude, scale, True)[0], (x,)
    )


@pytest.mark.parametrize("device", DEVICES)
def test_double_backward_through_the_backward_op_raises(device):
    x, w, _, scale = _inputs((4, 3, 5, None, 2.0), torch.float64, device)
    w.requires_grad_()
    lse, _ = OP(x, w, None, None, scale, True)
    (grad,) = torch.autograd.grad(lse.sum(), w, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.sum().backward()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("value_dim", [None, 2])
def test_opcheck(value_dim, requires_grad, device):
    x, w, v, scale = _inputs((6, 5, 7, value_dim, 2.0), torch.float32, device)
    for tensor in (x, w, v):
        if tensor is not None:
            tensor.requires_grad_(requires_grad)
    exclude = torch.zeros(6, dtype=torch.int64, device=device)
    torch.library.opcheck(OP, (x, w, v, exclude, scale, True))
    torch.library.opcheck(OP, (x, w, v, None, scale, False), test_utils=("test_schema",))


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck_backward(device):
    x, w, _, scale = _inputs((6, 5, 7, None, 2.0), torch.float32, device)
    lse, mean = OP(x, w, None, None, scale, True)
    torch.library.opcheck(
        torch.ops.fcl.softmax_readout_backward.default,
        (x, w, None, None, lse, torch.ones_like(lse), mean, scale, True, True, False),
    )


@pytest.mark.parametrize("device", DEVICES)
def test_compiles_to_one_graph(device):
    x, w, _, scale = _inputs((6, 5, 7, None, 2.0), torch.float32, device)

    def loss(x, w):
        lse, mean = fcl_ext.softmax_readout(x, w, scale=scale)
        return lse.sum() + mean.square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ours = [t.clone().requires_grad_() for t in (x, w)]
    eager = [t.clone().requires_grad_() for t in (x, w)]
    compiled(*ours).backward()
    loss(*eager).backward()
    for a, b in zip(ours, eager, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_runs_in_float32(device):
    x, w, _, scale = _inputs((6, 5, 7, None, 2.0), torch.float32, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        lse, mean = fcl_ext.softmax_readout(x.bfloat16(), w, scale=scale)
    assert lse.dtype == mean.dtype == torch.float32


@pytest.mark.parametrize("device", DEVICES)
def test_empty_batch_and_layouts(device):
    w = torch.randn(9, 6, device=device)
    lse, mean = fcl_ext.softmax_readout(w[:0], w, scale=1.0)
    assert lse.shape == (0,)
    assert mean.shape == (0, 6)
    empty = w[:0].clone().requires_grad_()
    fcl_ext.softmax_readout(empty, w, scale=1.0)[0].sum().backward()
    assert empty.grad.shape == (0, 6)
    strided = torch.randn(6, 9, device=device).T
    a = fcl_ext.softmax_readout(strided[::2], strided, scale=2.0)
    b = fcl_ext.softmax_readout(strided[::2].contiguous(), strided.contiguous(), scale=2.0)
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])


def test_does_not_depend_on_the_number_of_threads():
    x, w, v, scale = _inputs((200, 24, 3000, 8, 10.0), torch.float32, "cpu")
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaves = [t.clone().requires_grad_() for t in (x, w, v)]
        lse, mean = fcl_ext.softmax_readout(*leaves, scale=scale)
        (lse.sum() + mean.sum()).backward()
        results.append((lse, mean, *(leaf.grad for leaf in leaves)))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_result_does_not_depend_on_padding_classes():
    """Classes that add nothing (logit far below the rest) change nothing beyond rounding."""
    x, w, _, _ = _inputs((20, 16, 500, None, 30.0), torch.float32, "cpu")
    far = -10 * x.mean(0, keepdim=True).expand(37, -1)
    lse, mean = fcl_ext.softmax_readout(x.abs(), w.abs(), scale=30.0)
    padded_lse, padded_mean = fcl_ext.softmax_readout(
        x.abs(), torch.cat([w.abs(), -10 * torch.ones_like(far)]), scale=30.0
    )
    torch.testing.assert_close(lse, padded_lse, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mean, padded_mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_large_logits_and_non_finite_inputs(device):
    x = torch.tensor([[1000.0, 0.0], [-1000.0, 0.0]], device=device)
    w = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], device=device)
    lse, mean = fcl_ext.softmax_readout(x, w, scale=50.0)
    torch.testing.assert_close(lse, torch.full((2,), 50000.0, device=device))
    torch.testing.assert_close(mean, w[:2])
    x[0, 0] = torch.nan
    lse, mean = fcl_ext.softmax_readout(x, w, scale=50.0)
    assert lse[0].isnan()
    assert mean[0].isnan().all()
    assert lse[1].isfinite()
    x[0, 0] = torch.inf
    many = torch.linspace(-1, 1, 100, device=device)[:, None]
    for classes in (w, w[:2, :1], many):  # with inf * 0 = NaN among the logits, and without
        # The second part of the factor that rows are multiplied by is 0, and of either sign.
        for dtype, scale in itertools.product(DTYPES, (1 / math.log2(math.e), 1.0, 10.0, 30.0)):
            some = x[:, : classes.shape[1]].to(dtype)
            lse, _ = fcl_ext.softmax_readout(some, classes.to(dtype), scale=scale)
            expected = torch.logsumexp(scale * some.double() @ classes.T.double(), 1)
            torch.testing.assert_close(lse.double(), expected, equal_nan=True, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 64.0, 90.0, 300.0])
def test_static_shift_and_running_maximum_agree(scale, dtype):
    """One huge class that matters to no row takes the blocks out of the proven range."""
    x, w, _, _ = _inputs((50, 33, 2000, None, 1.0), dtype, "cpu")
    far = torch.zeros(1, 33, dtype=dtype)
    far[0, 0] = -1e4
    towards = x.abs() + 0.1
    static = fcl_ext.softmax_readout(towards, w, scale=scale)
    online = fcl_ext.softmax_readout(towards, torch.cat([far, w]), scale=scale)
    for a, b in zip(static, online, strict=True):
        assert error(a, b) < (1e-4 if dtype == torch.float32 else 2e-2)
    exact = reference.softmax_readout(towards.double(), w.double(), scale=scale)
    naive = reference.softmax_readout(towards, w, scale=scale)
    for a, truth, plain in zip(online, exact, naive, strict=True):
        assert error(a, truth) <= error_budget(plain, truth, dtype)


@given(
    rows=st.integers(1, 6),
    dim=st.integers(1, 40),
    classes=st.integers(1, 60),
    shift=st.floats(-30, 30),
    seed=st.integers(0, 2**31),
)
def test_properties(rows, dim, classes, shift, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dim, dtype=torch.float64, generator=generator)
    w = torch.randn(classes, dim, dtype=torch.float64, generator=generator)
    lse, mean = fcl_ext.softmax_readout(x, w, scale=1.0)
    # Bounds of the log-sum-exp, and a mean inside the prototypes' bounding box.
    top = (x @ w.T).amax(1)
    assert (lse >= top - 1e-9).all()
    assert (lse <= top + torch.tensor(float(classes)).log() + 1e-9).all()
    assert (mean <= w.amax(0) + 1e-9).all()
    assert (mean >= w.amin(0) - 1e-9).all()
    # The order of the classes does not matter.
    order = torch.randperm(classes, generator=generator)
    again = fcl_ext.softmax_readout(x, w[order], scale=1.0)
    torch.testing.assert_close(again[0], lse)
    torch.testing.assert_close(again[1], mean)
    # Adding a constant to every logit shifts the log-sum-exp and leaves the softmax alone.
    ones = torch.ones(rows, 1, dtype=torch.float64)
    shifted = fcl_ext.softmax_readout(
        torch.cat([x, shift * ones], 1),
        torch.cat([w, torch.ones(classes, 1, dtype=torch.float64)], 1),
        scale=1.0,
    )
    torch.testing.assert_close(shifted[0], lse + shift)
    torch.testing.assert_close(shifted[1][:, :dim], mean)


BAD_CALLS = [
    (lambda x, w: (x[0], w, None, None, 1.0, True), r"expected embeddings of shape \[N, D\]"),
    (lambda x, w: (x, w[:, :3], None, None, 1.0, True), r"expected prototypes of shape \[C, D\]"),
    (lambda x, w: (x, w.double(), None, None, 1.0, True), "expected prototypes of dtype"),
    (lambda x, w: (x.int(), w.int(), None, None, 1.0, True), "expected embeddings of dtype"),
    (lambda x, w: (x, w[:0], None, None, 1.0, True), "at least one class"),
    (lambda x, w: (x, w, w[:2], None, 1.0, True), r"expected values of shape \[C, Dv\]"),
    (lambda x, w: (x, w, None, None, 0.0, True), "expected scale > 0"),
    (lambda x, w: (x, w, None, None, float("nan"), True), "expected scale > 0"),
    (lambda x, w: (x, w, None, None, 1e39, True), "expected scale <= 1e38"),
    (
        lambda x, w: (x, w, None, torch.zeros(2, dtype=torch.int64), 1.0, True),
        r"expected exclude of shape \[N\] = \[3\], got \[2\]",
    ),
    (
        lambda x, w: (x, w, None, torch.zeros(3), 1.0, True),
        "expected exclude of dtype",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        OP(*arguments(torch.randn(3, 4), torch.randn(5, 4)))


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS)
def test_fakes_refuse_what_kernels_refuse(arguments, message):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), pytest.raises(RuntimeError, match=message):
        OP(*arguments(torch.randn(3, 4), torch.randn(5, 4)))


def test_label_out_of_range_names_the_row():
    exclude = torch.tensor([0, 5, 1])
    with pytest.raises(RuntimeError, match="below 5 classes, got 5 in row 1"):
        OP(torch.randn(3, 4), torch.randn(5, 4), None, exclude, 1.0, True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, w: fcl_ext.softmax_readout(x, w, scale="16"), "scale to be a number, got '16'"),
        (lambda x, w: fcl_ext.softmax_readout(x, w, scale=None), "scale to be a number, got None"),
        (lambda x, w: fcl_ext.softmax_readout(x.numpy(), w, scale=1.0), "embeddings .* a numpy"),
        (lambda x, w: fcl_ext.softmax_readout(x, w.numpy(), scale=1.0), "prototypes .* a numpy"),
        (lambda x, w: fcl_ext.softmax_readout(x, w, [0.0], scale=1.0), "values .* got list"),
        (lambda x, w: fcl_ext.combine_readouts(x, w.numpy()), "means .* got a numpy"),
    ],
)
def test_arguments_of_another_type_are_named_in_one_line(call, message):
    with pytest.raises(TypeError, match=message) as caught:
        call(torch.randn(3, 4), torch.randn(5, 4))
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.needs_cuda
def test_mixed_devices_are_refused():
    with pytest.raises(RuntimeError, match="same device"):
        fcl_ext.softmax_readout(torch.randn(3, 4, device="cuda"), torch.randn(5, 4), scale=1.0)


_ISA_SCRIPT = """
import torch, fcl_ext
from fcl_ext import _C
torch.manual_seed(0)
x, w, v = torch.randn(70, 19), torch.randn(130, 19), torch.randn(130, 5)
leaves = [t.double().requires_grad_() for t in (x, w, v)]
lse, mean = fcl_ext.softmax_readout(*leaves, scale=0.7)
(lse.sum() + mean.square().sum()).backward()
single = fcl_ext.softmax_readout(x, w, v, scale=0.7)
assert torch.allclose(single[0].double(), lse, atol=1e-5)
assert torch.allclose(single[1].double(), mean, atol=1e-5)
print(_C.cpu_isa(), *(float(leaf.grad.sum()) for leaf in leaves))
"""


def test_every_isa_agrees():
    first, *others = numbers_by_isa(_ISA_SCRIPT)
    for other in others:
        assert other == pytest.approx(first, rel=1e-9)


# Tails of every kind of block, sums with and without a running maximum; a NaN stays in its row.
_BFLOAT16_ISA_SCRIPT = """
import math, torch, fcl_ext, fcl_ext.ops
from fcl_ext import _C
torch.manual_seed(0)
numbers = []
for rows, dim, classes in (1, 5, 1), (33, 33, 31), (17, 100, 33), (130, 64, 1001), (64, 32, 9001):
    x, w = torch.randn(rows, dim).bfloat16(), torch.randn(classes, dim).bfloat16()
    for scale in 0.02, 9.0:
        lse, mean = fcl_ext.softmax_readout(x, w, scale=scale)
        exact_lse, exact_mean = fcl_ext.softmax_readout(x.double(), w.double(), scale=scale)
        assert (lse - exact_lse).abs().max() <= 1e-5 * exact_lse.abs().max() + 1e-5
        # Weights are rounded by up to 2^-9, and their rows cancel in part.
        assert (mean - exact_mean).norm() <= 2**-8 * exact_mean.norm()
        numbers += [float(lse.sum()), float(mean.norm())]
    # Normalised prototypes' own norms go into the weights, which 2^logit alone does not overflow.
    for scale, norm in (80.0, 1e-4), (-80.0, 1e4), (80.0, 1.0), (-80.0, 1.0), (-69.0, 1.0):
        few = (norm * torch.nn.functional.normalize(torch.randn(9, dim))).bfloat16()
        near = (math.copysign(1, scale) * few[:rows]).float()
        near = torch.nn.functional.normalize(near).bfloat16()
        options = None, None, abs(scale), True, True
        lse, mean = fcl_ext.ops.softmax_readout(near, few, *options)
        exact_lse, exact_mean = fcl_ext.ops.softmax_readout(near.double(), few.double(), *options)
        assert (lse - exact_lse).abs().max() <= 1e-4
        assert (mean - exact_mean).norm() <= 2**-8 * exact_mean.norm()
    # Classes of which some are far longer than others, all far from the rows.
    near = torch.nn.functional.normalize(torch.randn(1, dim) + 0.01 * torch.randn(896, dim))
    long = torch.where(torch.arange(896) < 448, 1.0, 1e18)[:, None]
    options = None, None, 62.0, True, True
    pair = (-near[:rows]).bfloat16(), (near * long).bfloat16()
    mean = fcl_ext.ops.softmax_readout(*pair, *options)[1]
    exact_mean = fcl_ext.ops.softmax_readout(*(t.double() for t in pair), *options)[1]
    assert (mean - exact_mean).norm() <= 2**-8 * exact_mean.norm()
    x[0, 0] = torch.nan
    lse, mean = fcl_ext.softmax_readout(x, w, scale=0.02)
    assert lse[0].isnan() and lse[1:].isfinite().all() and mean[1:].isfinite().all()
print(_C.cpu_isa(), *numbers)
"""


def test_every_isa_agrees_in_bfloat16():
    first, *others = numbers_by_isa(_BFLOAT16_ISA_SCRIPT)
    for other in others:
        assert other == pytest.approx(first, rel=1e-3)


def test_unknown_isa_is_refused():
    run = run_with_isa(_ISA_SCRIPT, "sse9")
    assert run.returncode != 0
    assert "expected portable, avx2, avx512, avx512_bf16 or amx_bf16, got sse9" in run.stderr
