# SPDX-License-Identifier: Apache-2.0
"""The fused operator compat_loss against its definition (its users: test_compat_losses.py)."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

import fcl_ext
import reference
from fcl_ext import _compat_function, _logits
from support import DEVICES, DTYPES, error, error_budget

OP = torch.ops.fcl.compat_loss.default
BACKWARD = torch.ops.fcl.compat_loss_backward.default
GRADIENTS = torch.ops.fcl.compat_loss_gradients.default
IGNORED = -100

# (margin, arcface, label smoothing, normalize)
OPTIONS = [
    (0.0, False, 0.0, False),
    (0.0, False, 0.0, True),
    (0.2, False, 0.0, True),
    (0.4, True, 0.0, True),
    (0.1, False, 0.3, True),
    (0.0, False, 0.1, False),
]
# (rows, dim, classes)
SHAPES = [(1, 3, 2), (5, 7, 3), (66, 33, 130), (130, 20, 700)]


def _inputs(shape, dtype, device, seed=0):
    rows, dim, classes = shape
    generator = torch.Generator().manual_seed(seed)
    x = F.normalize(torch.randn(rows, dim, dtype=torch.float64, generator=generator), dim=1)
    w = F.normalize(torch.randn(classes, dim, dtype=torch.float64, generator=generator), dim=1)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    labels[1::5] = IGNORED
    return x.to(dtype).to(device), w.to(dtype).to(device), labels.to(device)


def _mean_prototype(w, normalize, label_smoothing):
    if not label_smoothing:
        return None
    exact = w.double()
    return (F.normalize(exact, dim=1) if normalize else exact).mean(0)


def _call(x, w, labels, options, reduction="none", *, scale=10.0, need=(True, True)):
    margin, arcface, smoothing, normalize = options
    mean = _mean_prototype(w, normalize, smoothing)
    return OP(
        *(x, w, labels, mean, scale, margin, arcface, smoothing, normalize, IGNORED),
        *(reduction, *need),
    )


def _expected(x, w, labels, options, reduction="none", *, scale=10.0):
    margin, arcface, smoothing, normalize = options
    leaves = [t.clone().requires_grad_() for t in (x, w)]
    losses = reference.compat_loss(
        *leaves,
        labels,
        scale=scale,
        margin=margin,
        margin_type="arcface" if arcface else "cosface",
        label_smoothing=smoothing,
        normalize=normalize,
        ignore_index=IGNORED,
        reduction=reduction,
    )
    return losses, leaves


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_and_gradients_match_definition(shape, options, dtype, device):
    x, w, labels = _inputs(shape, dtype, device)
    losses, grad, unit, state = _call(x, w, labels, options)
    expected, leaves = _expected(x.double(), w.double(), labels, options)
    naive, naive_leaves = _expected(x, w, labels, options)
    assert error(losses, expected.detach()) <= error_budget(
        naive.detach(), expected.detach(), dtype
    )
    exact_grads = torch.autograd.grad(expected.sum(), leaves)
    naive_grads = torch.autograd.grad(naive.sum(), naive_leaves)
    assert error(grad, exact_grads[0]) <= error_budget(naive_grads[0], exact_grads[0], dtype)
    _, _, smoothing, normalize = options
    grad_prototypes = BACKWARD(
        *(unit if normalize else x, w, labels, state, torch.ones_like(losses)),
        *(10.0, smoothing, normalize, IGNORED),
    )
    assert error(grad_prototypes, exact_grads[1]) <= error_budget(
        naive_grads[1], exact_grads[1], dtype
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("classes", [4, 3000])  # gradients of the forward call, and later ones
def test_ignored_rows_may_lie_on_prototypes(classes, reduction, dtype, device):
    """2^logit would overflow: nothing but its weight of 0 keeps such a row out of gradients."""
    scale = 800.0 if dtype == torch.float64 else 100.0
    w = torch.eye(classes, 4, dtype=dtype, device=device).add(0.01).requires_grad_()
    x = torch.eye(4, dtype=dtype, device=device)
    labels = torch.tensor([IGNORED, 0, 2, 3], device=device)
    options = {"scale": scale, "ignore_index": IGNORED, "reduction": reduction}
    fcl_ext.compat_loss(x, w, labels, **options).sum().backward()
    exact = w.detach().double().requires_grad_()
    reference.compat_loss(x.double(), exact, labels, **options).sum().backward()
    budget = {torch.float64: 1e-9, torch.float32: 1e-4}.get(dtype, 2e-2)
    assert error(w.grad, exact.grad) <= budget


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("trainable", [False, True])
def test_gradients_of_ignored_losses_do_not_matter(trainable, device):
    x, w, labels = _inputs((40, 9, 30), torch.float32, device)
    leaves = [x.requires_grad_(), w.requires_grad_(trainable)]
    given = torch.linspace(1, 2, 40, device=device)
    some = torch.where(labels == IGNORED, torch.nan, given)
    gradients = []
    for of_losses in (given, some):
        losses = fcl_ext.compat_loss(x, w, labels, scale=3.0, reduction="none")
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        gradients.append(torch.autograd.grad(losses, wanted, of_losses))
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("mode", ["fake", "symbolic"])
def test_gradients_can_be_traced(mode):
    def step(x, w):
        loss = fcl_ext.compat_loss(x, w, torch.arange(4), scale=3.0)
        return torch.autograd.grad(loss * 2, (x, w))

    inputs = torch.randn(4, 8, requires_grad=True), torch.randn(9, 8, requires_grad=True)
    traced = make_fx(step, tracing_mode=mode)(*inputs)
    for found, expected in zip(traced(*inputs), step(*inputs), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_reductions(options, reduction, device):
    x, w, labels = _inputs((66, 9, 40), torch.float64, device)
    loss, grad, unit, state = _call(x, w, labels, options, reduction)
    expected, leaves = _expected(x, w, labels, options, reduction)
    exact_grads = torch.autograd.grad(3 * expected, leaves)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(3 * grad, exact_grads[0], rtol=1e-9, atol=1e-12)
    _, _, smoothing, normalize = options
    grad_prototypes = BACKWARD(
        *(unit if normalize else x, w, labels, state, torch.full_like(loss, 3.0)),
        *(10.0, smoothing, normalize, IGNORED),
    )
    torch.testing.assert_close(grad_prototypes, exact_grads[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_all_in_one_call_is_the_same(options, reduction, dtype, device):
    x, w, labels = _inputs((66, 9, 40), dtype, device)
    margin, arcface, smoothing, normalize = options
    mean = _mean_prototype(w, normalize, smoothing)
    loss, grad, grad_prototypes = GRADIENTS(
        *(x, w, labels, mean, 10.0, margin, arcface, smoothing, normalize, IGNORED, reduction)
    )
    expected_loss, expected_grad, unit, state = _call(x, w, labels, options, reduction)
    expected = BACKWARD(
        *(unit if normalize else x, w, labels, state, torch.ones_like(loss)),
        *(10.0, smoothing, normalize, IGNORED),
    )
    assert torch.equal(loss, expected_loss)
    assert torch.equal(grad, expected_grad)
    # Logits that were kept are rounded once; those computed again are not.
    torch.testing.assert_close(grad_prototypes, expected, rtol=1e-5, atol=1e-6)


def test_all_in_one_call_needs_a_scalar_loss():
    x, w, labels = _inputs((3, 4, 5), torch.float32, "cpu")
    with pytest.raises(RuntimeError, match="expected reduction mean or sum, got none"):
        GRADIENTS(x, w, labels, None, 10.0, 0.0, False, 0.0, True, IGNORED, "none")


@pytest.mark.parametrize("small", [0, 2**18], ids=["two calls", "one call"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_small_and_large_problems_have_one_gradient(small, reduction, monkeypatch):
    monkeypatch.setattr(_compat_function, "_SMALL", small)
    x, w, labels = _inputs((66, 9, 40), torch.float64, "cpu")
    leaves = [t.requires_grad_() for t in (x, w)]
    loss = fcl_ext.compat_loss(*leaves, labels, scale=10.0, reduction=reduction)
    grads = torch.autograd.grad(3 * loss, leaves, retain_graph=True)
    expected, exact_leaves = _expected(x.detach(), w.detach(), labels, OPTIONS[1], reduction)
    exact = torch.autograd.grad(3 * expected, exact_leaves)
    again = torch.autograd.grad(3 * loss, leaves)
    for mine, truth, twice in zip(grads, exact, again, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-9, atol=1e-12)
        assert torch.equal(mine, twice)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [0, 3])
def test_no_row_counts(rows, device):
    x, w, labels = _inputs((rows, 4, 6), torch.float32, device)
    labels[:] = IGNORED
    loss, grad, *_ = _call(x, w, labels, OPTIONS[1], "mean")
    assert loss.isnan()
    assert not grad.any()
    assert _call(x, w, labels, OPTIONS[1], "sum")[0] == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_single_class_is_always_right(options, device):
    x, w, _ = _inputs((3, 4, 1), torch.float64, device)
    labels = torch.zeros(3, dtype=torch.int64, device=device)
    losses, grad, _, _ = _call(x, w, labels, options)
    assert losses.abs().max() < 1e-13
    assert grad.abs().max() < 1e-13


@pytest.mark.parametrize("scale", [30.0, 64.0])
@pytest.mark.parametrize("cosine", [None, 0.5, 0.8])
@pytest.mark.parametrize("normalize", [False, True])
def test_small_losses_keep_their_digits(normalize, cosine, scale):
    """A trained row's loss may be 1e-11: lse - z in float32 would be 0 or noise."""
    rows, dim, classes = 40, 64, 30_000
    generator = torch.Generator().manual_seed(0)
    w = F.normalize(torch.randn(classes, dim, generator=generator), dim=1)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    x = F.normalize(torch.randn(rows, dim, generator=generator), dim=1)
    if cosine is not None:
        x = x - (x * w[labels]).sum(1, keepdim=True) * w[labels]
        x = cosine * w[labels] + (1 - cosine**2) ** 0.5 * F.normalize(x, dim=1)
    options = (0.0, False, 0.0, normalize)
    losses, grad, _, _ = _call(x, w, labels, options, scale=scale, need=(True, False))
    # The reference too must leave the target out: a loss of 1e-12 has 4 of float64's digits left.
    exact_x, exact_w = x.double().requires_grad_(), w.double()
    unit_x = F.normalize(exact_x, dim=1) if normalize else exact_x
    unit_w = F.normalize(exact_w, dim=1) if normalize else exact_w
    logits = scale * unit_x @ unit_w.T
    target = logits.gather(1, labels[:, None])[:, 0]
    others = torch.logsumexp(logits.scatter(1, labels[:, None], -torch.inf), dim=1)
    expected = F.softplus(others - target)
    (exact_grad,) = torch.autograd.grad(expected.sum(), exact_x)
    assert error(losses, expected.detach()) <= 1e-6
    assert error(grad, exact_grad) <= 1e-6


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_opcheck(reduction, device):
    x, w, labels = _inputs((6, 5, 7), torch.float32, device)
    mean = _mean_prototype(w, True, 0.1)
    arguments = (x, w, labels, mean, 10.0, 0.1, False, 0.1, True, IGNORED, reduction, True, True)
    torch.library.opcheck(OP, arguments)
    loss, _, unit, state = OP(*arguments)
    torch.library.opcheck(
        BACKWARD, (unit, w, labels, state, torch.ones_like(loss), 10.0, 0.1, True, IGNORED)
    )


def test_does_not_depend_on_the_number_of_threads():
    x, w, labels = _inputs((300, 24, 900), torch.float32, "cpu")
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaves = [t.clone().requires_grad_() for t in (x, w)]
        loss = fcl_ext.compat_loss(*leaves, labels, label_smoothing=0.1)
        loss.backward()
        results.append((loss, *(leaf.grad for leaf in leaves)))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_kept_logits_change_nothing(options, monkeypatch):
    x, w, labels = _inputs((150, 21, 500), torch.float32, "cpu")
    margin, arcface, smoothing, normalize = options
    results = []
    for cap in (_logits.LOGITS_CAP, 0):
        monkeypatch.setattr(_logits, "LOGITS_CAP", cap)
        leaf = w.clone().requires_grad_()
        loss = fcl_ext.compat_loss(
            *(x, leaf, labels),
            scale=10.0,
            margin=margin,
            margin_type="arcface" if arcface else "cosface",
            label_smoothing=smoothing,
            normalize=normalize,
        )
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    for kept, again in zip(*results, strict=True):
        assert torch.equal(kept, again)


def test_room_for_logits_is_kept_between_steps_but_never_shared():
    x, w = torch.zeros(128, 4), torch.zeros(_logits._SMALLEST_KEPT // 512, 4)
    first = _logits.room_for_logits(x, w)
    again = _logits.room_for_logits(x, w)
    assert first.shape == (1, len(w), 128)
    assert first.data_ptr() != again.data_ptr()
    place, view = first.data_ptr(), first[0]
    del first
    assert _logits.room_for_logits(x, w).data_ptr() not in (place, again.data_ptr())
    del view, again
    gc.collect()
    assert _logits.room_for_logits(x, w[1:]) is not None  # below the size that is kept
    kept = _logits._kept._block
    reused = _logits.room_for_logits(x, w)
    assert reused.data_ptr() == kept.ctypes.data


def test_graphs_kept_for_a_second_backward_keep_their_logits():
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(128, 8, generator=generator), dim=1)
    labels = torch.arange(128)
    prototypes = [
        torch.randn(_logits._SMALLEST_KEPT // 512, 8, generator=generator).requires_grad_()
        for _ in range(3)
    ]
    losses = [fcl_ext.compat_loss(x, w, labels, scale=5.0) for w in prototypes]
    first = [
        torch.autograd.grad(loss, w, retain_graph=True)[0]
        for loss, w in zip(losses, prototypes, strict=True)
    ]
    for loss, w, expected in zip(losses, prototypes, first, strict=True):
        assert torch.equal(torch.autograd.grad(loss, w)[0], expected)
        alone = fcl_ext.compat_loss(x, w, labels, scale=5.0)
        assert torch.equal(torch.autograd.grad(alone, w)[0], expected)


def test_logits_of_another_shape_or_dtype_are_refused():
    x, w, labels = _inputs((3, 4, 5), torch.float32, "cpu")
    arguments = (None, 1.0, 0.0, False, 0.0, False, IGNORED, "mean", True, True)
    with pytest.raises(
        RuntimeError, match=r"logits of shape .* = \[1, 5, 128\], got \[1, 4, 128\]"
    ):
        OP(x, w, labels, *arguments, torch.empty(1, 4, 128))
    with pytest.raises(RuntimeError, match="float32 only"):
        OP(x.double(), w.double(), labels, *arguments, torch.empty(1, 5, 128))


BAD_CALLS = [
    (lambda x, w, y: (x[0], w, y, None, 1.0, 0.0), r"expected embeddings of shape \[N, D\]"),
    (lambda x, w, y: (x, w[:, :2], y, None, 1.0, 0.0), r"expected prototypes of shape \[C, D\]"),
    (lambda x, w, y: (x, w[:0], y, None, 1.0, 0.0), "at least one class"),
    (lambda x, w, y: (x, w, y[:2], None, 1.0, 0.0), r"labels of shape \[N\] = \[3\], got \[2\]"),
    (lambda x, w, y: (x, w, y.int(), None, 1.0, 0.0), "expected labels of dtype"),
    (lambda x, w, y: (x, w, y, None, 0.0, 0.0), "expected scale > 0"),
    (lambda x, w, y: (x, w, y, x[0], 1.0, 0.0), "mean_prototype"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS)
def test_bad_arguments_are_named(arguments, message):
    x, w, labels = torch.randn(3, 4), torch.randn(5, 4), torch.tensor([0, 1, 2])
    rest = (False, 0.0, True, IGNORED, "mean", True, False)
    with pytest.raises(RuntimeError, match=message):
        OP(*arguments(x, w, labels), *rest)


def test_unknown_reduction_is_named():
    x, w, labels = _inputs((3, 4, 5), torch.float32, "cpu")
    with pytest.raises(RuntimeError, match="expected reduction mean, sum or none, got max"):
        _call(x, w, labels, OPTIONS[0], "max")


def _other_calls(x, w, labels, scale=1.0, logits=None):
    """The two operators beside `OP`, each with the start of its messages."""
    smoothing, normalize = 0.0, True
    yield (
        "fcl::compat_loss_gradients: ",
        lambda: GRADIENTS(
            *(x, w, labels, None, scale, 0.0, False, smoothing, normalize, IGNORED, "mean")
        ),
    )
    state, grad_loss = torch.zeros(4, len(x)), torch.ones(())
    yield (
        "fcl::compat_loss_backward: ",
        lambda: BACKWARD(
            *(x, w, labels, state, grad_loss, scale, smoothing, normalize, IGNORED, logits)
        ),
    )


def test_messages_name_the_operator_that_was_called():
    x, w, labels = _inputs((3, 4, 5), torch.float32, "cpu")
    for name, call in _other_calls(x, w, labels, scale=0.0):
        with pytest.raises(RuntimeError, match=f"{name}expected scale > 0 and finite, got 0"):
            call()
    *_, (name, call) = _other_calls(x, w, labels, logits=torch.zeros(1, 4, 128))
    with pytest.raises(RuntimeError, match=f"{name}expected logits of shape"):
        call()


def test_label_out_of_range_names_the_row():
    x, w, _ = _inputs((3, 4, 5), torch.float32, "cpu")
    labels, message = torch.tensor([0, 4, -1]), r"expected labels in \[0, 5\), got -1 in row 2"
    with pytest.raises(RuntimeError, match=f"fcl::compat_loss: {message}"):
        _call(x, w, labels, OPTIONS[0])
    for name, call in _other_calls(x, w, labels):
        with pytest.raises(RuntimeError, match=name + message):
            call()


def test_smoothing_follows_prototypes_written_through_data():
    x, w, y = torch.randn(8, 16), torch.randn(50, 16) + 1, torch.arange(8)
    fcl_ext.compat_loss(x, w, y, label_smoothing=0.3)
    w.data.mul_(0.0).add_(torch.randn(50, 16) - 1)
    after = fcl_ext.compat_loss(x, w, y, label_smoothing=0.3)
    assert torch.equal(after, fcl_ext.compat_loss(x, w.clone(), y, label_smoothing=0.3))


@pytest.mark.parametrize("classes", [9, 3000])  # gradients of the forward call, and later ones
def test_gradients_add_up_over_backward_calls(classes):
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(rows, 96, generator=generator) for rows in (5, classes)]
    for leaf in leaves:
        leaf.requires_grad_()
    loss = fcl_ext.compat_loss(*leaves, torch.arange(5), scale=3.0)
    expected = [2 * grad for grad in torch.autograd.grad(loss, leaves, retain_graph=True)]
    loss.backward(retain_graph=True)
    loss.backward()
    for leaf, grad in zip(leaves, expected, strict=True):
        assert torch.equal(leaf.grad, grad)


def test_gradients_that_are_written_into_do_not_change_later_ones():
    x, w = torch.randn(4, 8, requires_grad=True), torch.randn(9, 8, requires_grad=True)
    loss = fcl_ext.compat_loss(x, w, torch.arange(4), scale=3.0)
    expected = [grad.clone() for grad in torch.autograd.grad(loss, (x, w), retain_graph=True)]
    loss.backward(retain_graph=True)
    for leaf in (x, w):
        leaf.grad.zero_()
    loss.backward(retain_graph=True)
    assert torch.equal(x.grad, expected[0])
    assert torch.equal(w.grad, expected[1])
    torch.autograd.grad(loss, x, retain_graph=True)[0].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, x)


def test_several_gradients_at_once():
    x, w = torch.randn(4, 8, requires_grad=True), torch.randn(9, 8)
    loss = fcl_ext.compat_loss(x, w, torch.arange(4), scale=3.0)
    (single,) = torch.autograd.grad(loss, x, retain_graph=True)
    (both,) = torch.autograd.grad(loss, x, torch.tensor([1.0, -2.0]), is_grads_batched=True)
    assert torch.equal(both, torch.stack([single, -2 * single]))
