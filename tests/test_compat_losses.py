# SPDX-License-Identifier: Apache-2.0
"""compat_loss, compat_kl, and what all losses share, against dense losses from the formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from loss_samples import batch

import fcl_ext
import reference
from fcl_ext import ops
from support import DEVICES, DTYPES, error, error_budget

OPTIONS = [
    {},
    {"scale": 64.0},
    {"label_smoothing": 0.1},
    {"margin": 0.35},
    {"margin": 0.5, "margin_type": "arcface"},
    {"margin": 0.35, "label_smoothing": 0.2},
    {"normalize": False, "scale": 2.0},
    {"normalize": False, "scale": 2.0, "margin": 0.3},
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_compat_loss_value_and_gradients(options, reduction, device):
    x, w, y = batch(33, 13, 50, torch.float64, device)
    y[4] = y[20] = -100

    def run(function):
        leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]
        loss = function(*leaves, y, reduction=reduction, **options)
        weights = torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype, device=device)
        grads = torch.autograd.grad((loss.reshape(-1) * weights).sum(), leaves)
        return loss, *grads

    for ours, expected in zip(run(fcl_ext.compat_loss), run(reference.compat_loss), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_compat_loss_within_error_budget(options, dtype, device):
    x, w, y = batch(65, 40, 700, dtype, device)

    def run(function, x, w):
        leaf = x.clone().requires_grad_()
        losses = function(leaf, w, y, reduction="none", **options)
        return losses.detach(), torch.autograd.grad(losses.sum(), leaf)[0]

    exact = run(reference.compat_loss, x.double(), w.double())
    naive = run(reference.compat_loss, x, w)
    for ours, truth, plain in zip(run(fcl_ext.compat_loss, x, w), exact, naive, strict=True):
        assert error(ours, truth) <= error_budget(plain, truth, dtype)


@pytest.mark.parametrize("device", DEVICES)
def test_compat_loss_with_soft_targets(device):
    x, w, y = batch(9, 6, 5, torch.float64, device)
    soft = torch.softmax(torch.randn(9, 5, dtype=torch.float64, device=device), 1)
    x, w = F.normalize(x, dim=1), F.normalize(w, dim=1)
    ours = fcl_ext.compat_loss(x, w, targets=soft @ w, scale=7.0, reduction="none")
    dense = F.cross_entropy(7.0 * x @ w.T, soft, reduction="none")
    torch.testing.assert_close(ours, dense)
    hard = fcl_ext.compat_loss(x, w, targets=w[y], scale=7.0)
    torch.testing.assert_close(hard, fcl_ext.compat_loss(x, w, y, scale=7.0))


@pytest.mark.parametrize("options", [{}, {"margin": 0.4, "margin_type": "arcface"}], ids=str)
def test_compat_loss_gradcheck(options):
    x, w, y = batch(4, 3, 5, torch.float64, "cpu")
    x.requires_grad_()
    w.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: fcl_ext.compat_loss(a, b, y, scale=3.0, **options), (x, w)
    )


@pytest.mark.parametrize("needs_x", [False, True])
@pytest.mark.parametrize("needs_w", [False, True])
def test_compat_loss_partial_gradients(needs_x, needs_w):
    x, w, y = batch(8, 5, 6, torch.float64, "cpu")
    ours = [x.clone().requires_grad_(needs_x), w.clone().requires_grad_(needs_w)]
    truth = [x.clone().requires_grad_(needs_x), w.clone().requires_grad_(needs_w)]
    a = fcl_ext.compat_loss(*ours, y)
    b = reference.compat_loss(*truth, y)
    torch.testing.assert_close(a, b)
    if needs_x or needs_w:
        a.backward()
        b.backward()
    for mine, expected in zip(ours, truth, strict=True):
        assert (mine.grad is None) == (expected.grad is None)
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, expected.grad)


def test_compat_loss_of_one_class_is_zero():
    x, w, _ = batch(3, 4, 1, torch.float32, "cpu")
    y = torch.zeros(3, dtype=torch.int64)
    for options in ({}, {"margin": 0.3}):
        assert fcl_ext.compat_loss(x, w, y, **options).abs() < 1e-5


def test_all_rows_ignored_gives_nan_as_torch_does():
    x, w, y = batch(3, 4, 5, torch.float32, "cpu")
    y[:] = -100
    assert fcl_ext.compat_loss(x, w, y).isnan()
    assert fcl_ext.compat_loss(x, w, y, reduction="sum") == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("normalize", [True, False])
def test_compat_kl(normalize, device):
    x, w, _ = batch(21, 9, 40, torch.float64, device)
    old, _, _ = batch(21, 9, 40, torch.float64, device, seed=1)

    def run(function, **teacher):
        leaf = x.clone().requires_grad_()
        loss = function(leaf, w, scale=1.5, normalize=normalize, **teacher)
        return loss, torch.autograd.grad(loss, leaf)[0]

    expected = run(reference.compat_kl, teacher_embeddings=old)
    cached = fcl_ext.teacher_readout(old, w, scale=1.5, normalize=normalize)
    for ours in (
        run(fcl_ext.compat_kl, teacher_embeddings=old),
        run(fcl_ext.compat_kl, teacher=cached),
    ):
        for got, truth in zip(ours, expected, strict=True):
            torch.testing.assert_close(got, truth, rtol=1e-9, atol=1e-11)
    assert fcl_ext.compat_kl(old, w, teacher_embeddings=old, scale=5.0) < 1e-12


def test_gradients_of_float16_are_rounded_once():
    """A student beside its teacher: of two terms rounded apart little would be left."""
    dtype = torch.float16
    w, x = batch(60, 24, 40, dtype, "cpu")[:2][::-1]
    x = F.normalize(x, dim=1)
    teacher = (x.double() + 1e-2 * torch.linspace(-1, 1, 24, dtype=torch.float64)).to(dtype)
    leaf = x.clone().requires_grad_()
    loss = fcl_ext.compat_kl(
        leaf, w, teacher_embeddings=teacher, scale=0.2, normalize=False, reduction="sum"
    )
    (got,) = torch.autograd.grad(loss, leaf)
    exact = x.double().requires_grad_()
    expected = reference.compat_kl(
        *(exact, w.double()), teacher_embeddings=teacher.double(), scale=0.2, normalize=False
    )
    (truth,) = torch.autograd.grad(expected * len(x), exact)
    assert error(got, truth) <= torch.finfo(dtype).eps


def test_losses_without_gradients_read_out_no_mean(monkeypatch):
    x, w, y = batch(10, 6, 9, torch.float32, "cpu")
    x.requires_grad_()
    w.requires_grad_()
    asked = []
    for name in ("softmax_readout", "compat_loss", "sparse_readout"):
        op = getattr(ops, name)

        def noting(*arguments, op=op, name=name):
            asked.append((name, arguments[{"softmax_readout": 5, "compat_loss": 11}.get(name, 7)]))
            return op(*arguments)

        monkeypatch.setattr(ops, name, noting)
    with torch.no_grad():
        fcl_ext.compat_loss(x, w, y)
        fcl_ext.compat_loss(x, w, targets=x)
        fcl_ext.compat_supcon(x, y, w, torch.arange(9))
    assert asked == [
        *(("compat_loss", False), ("softmax_readout", False)),
        *(("sparse_readout", False), ("softmax_readout", False)),
    ]


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, w, y: fcl_ext.compat_loss(x, w, y),
        lambda x, w, y: fcl_ext.compat_loss(x, w, y, margin=0.2, label_smoothing=0.1),
        lambda x, w, y: fcl_ext.compat_kl(x, w.detach(), teacher_embeddings=x.detach(), scale=3.0),
        lambda x, w, y: fcl_ext.compat_supcon(x, y % 3, w, torch.arange(len(w)) % 3),
    ],
)
def test_losses_compile_to_one_graph(loss):
    x, w, y = batch(10, 6, 9, torch.float32, "cpu")
    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]
        value = function(*leaves, y)
        value.backward()
        results.append([value.detach(), *(x.grad for x in leaves if x.grad is not None)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_losses_under_autocast_accept_mixed_dtypes():
    x, w, y = batch(10, 6, 9, torch.float32, "cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = fcl_ext.compat_loss(x.bfloat16(), w, y)
    assert loss.dtype == torch.float32


def test_float64_stays_under_autocast():
    x, w, y = batch(10, 6, 9, torch.float64, "cpu")
    calls = [
        lambda: fcl_ext.compat_loss(x, w, y),
        lambda: fcl_ext.compat_loss(x, w, targets=x),
        lambda: fcl_ext.compat_kl(x, w, teacher_embeddings=x.flip(0), scale=3.0),
        lambda: fcl_ext.compat_supcon(x, y % 3, w, torch.arange(9) % 3),
    ]
    for call in calls:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = call()
        assert torch.equal(got, call())


def test_a_student_that_is_its_teacher_has_no_gradient_under_autocast():
    x, w, _ = batch(64, 24, 300, torch.bfloat16, "cpu")
    student = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = fcl_ext.compat_kl(student, w, teacher_embeddings=x, scale=30.0)
    (grad,) = torch.autograd.grad(loss, student)
    assert abs(loss.item()) < 1e-5
    assert not grad.any()


# torch compiles its own rules by it, the first time.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_losses_without_gradients_go_through_transforms_and_meta_tensors():
    x, w, y = batch(10, 6, 9, torch.float64, "cpu")
    calls = [
        lambda x, w, y: fcl_ext.compat_loss(x, w, targets=x),
        lambda x, w, y: fcl_ext.compat_kl(x, w, teacher_embeddings=x.flip(0), scale=3.0),
        lambda x, w, y: fcl_ext.compat_supcon(
            x, y % 3, w, torch.arange(9, device=y.device) % 3, reduction="none"
        ).sum(),
    ]
    ones = torch.ones((), dtype=torch.float64)
    for call in calls:
        value, slope = torch.func.jvp(lambda s, call=call: s * call(x, w, y), (ones,), (ones,))
        assert value == slope == call(x, w, y)
    for call in calls[:2]:
        assert call(x.to("meta"), w.to("meta"), y.to("meta")).shape == ()


BAD_CALLS = [
    (lambda x, w, y: fcl_ext.compat_loss(x, w), "either labels or targets"),
    (lambda x, w, y: fcl_ext.compat_loss(x, w, y, targets=x), "either labels or targets"),
    (lambda x, w, y: fcl_ext.compat_loss(x, w, targets=x, margin=0.1), "need labels"),
    (lambda x, w, y: fcl_ext.compat_loss(x, w, targets=x[:1]), r"targets of shape \[N, D\]"),
    (lambda x, w, y: fcl_ext.compat_loss(x, w, y[:1]), r"labels of shape \[N\] = \[3\]"),
    (lambda x, w, y: fcl_ext.compat_loss(x, w, y.float()), "expected labels of dtype"),
    (lambda x, w, y: fcl_ext.compat_loss(x, w, y + 9), r"labels in \[0, 5\), got 9 in row 0"),
    (lambda x, w, y: fcl_ext.compat_loss(x, w, y - 1), r"got -1 in row 0"),
    (lambda x, w, y: fcl_ext.compat_loss(x, w, y, scale=0), "scale: expected"),
    (lambda x, w, y: fcl_ext.compat_loss(x, w, y, margin=-0.1), "margin: expected"),
    (lambda x, w, y: fcl_ext.compat_loss(x, w, y, margin_type="sphere"), "margin_type: expected"),
    (lambda x, w, y: fcl_ext.compat_loss(x, w, y, label_smoothing=2), "label_smoothing: expected"),
    (lambda x, w, y: fcl_ext.compat_loss(x, w, y, reduction="max"), "reduction: expected"),
    (
        lambda x, w, y: fcl_ext.compat_loss(
            x, w, y, margin=0.1, margin_type="arcface", normalize=False
        ),
        "needs normalize=True",
    ),
    (
        lambda x, w, y: fcl_ext.compat_loss(x, w, y, class_weights=torch.ones(2)),
        r"class_weights of shape \[C\] = \[5\], got \[2\]",
    ),
    (
        lambda x, w, y: fcl_ext.compat_loss(x, w, y, sample_weights=torch.ones(2)),
        r"sample_weights of shape \[N\] = \[3\], got \[2\]",
    ),
    (
        lambda x, w, y: fcl_ext.compat_loss(x, w, targets=x, class_weights=torch.ones(5)),
        "class_weights need labels",
    ),
    (lambda x, w, y: fcl_ext.compat_kl(x, w, scale=1.0), "either teacher_embeddings or teacher"),
    (
        lambda x, w, y: fcl_ext.compat_kl(x, w, teacher=(x[:1], y), scale=1.0),
        "expected a teacher of shape",
    ),
    (lambda x, w, y: fcl_ext.compat_supcon(x, y, w), "either feature_labels or positives"),
    (lambda x, w, y: fcl_ext.compat_supcon(x, y, w, y), r"feature_labels of shape \[R\] = \[5\]"),
    (
        lambda x, w, y: fcl_ext.compat_supcon(x, y, w, torch.tensor([0, 2, 2, 2, 2])),
        "label 1 of row 1 has no row among the features",
    ),
    (
        lambda x, w, y: fcl_ext.compat_supcon(x, y + 7, w, torch.arange(5)),
        r"expected labels in \[0, 5\), got 7 in row 0",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD_CALLS)
def test_bad_arguments_are_named(call, message):
    # ValueError from options, RuntimeError from what the operators check.
    with pytest.raises((ValueError, RuntimeError), match=message):
        call(torch.randn(3, 4), torch.randn(5, 4), torch.tensor([0, 1, 2]))


OTHER_TYPES = [
    (
        lambda x, w, y: fcl_ext.compat_loss(x.numpy(), w, y),
        "embeddings .* got a numpy array; torch",
    ),
    (
        lambda x, w, y: fcl_ext.compat_loss(x, w.numpy(), y),
        "prototypes to be a tensor, got a numpy",
    ),
    (
        lambda x, w, y: fcl_ext.compat_loss(x, w.numpy(), y, label_smoothing=0.1),
        "prototypes to be a tensor, got a numpy",
    ),
    (lambda x, w, y: fcl_ext.compat_loss(x, w, y.numpy()), "labels to be a tensor, got a numpy"),
    (lambda x, w, y: fcl_ext.compat_loss(x, w, y.tolist()), "labels to be a tensor, got list"),
    (lambda x, w, y: fcl_ext.compat_loss(x, w, "abc"), "labels to be a tensor, got str"),
    (lambda x, w, y: fcl_ext.compat_loss(x, w, targets=[0.0]), "targets to be a tensor, got list"),
    (
        lambda x, w, y: fcl_ext.compat_loss(x, w, targets=x.numpy()),
        "targets to be a tensor, got a numpy",
    ),
    (
        lambda x, w, y: fcl_ext.compat_loss(x, w, y, class_weights=[1.0] * 5),
        "class_weights to be a tensor, got list",
    ),
    (
        lambda x, w, y: fcl_ext.compat_kl(x, w, teacher_embeddings=x.numpy(), scale=1.0),
        "teacher_embeddings to be a tensor, got a numpy",
    ),
    (
        lambda x, w, y: fcl_ext.compat_kl(x.tolist(), w, teacher_embeddings=x, scale=1.0),
        "compat_kl: expected embeddings to be a tensor, got list",
    ),
    (
        lambda x, w, y: fcl_ext.compat_supcon(x, y, w, ["a"] * 5),
        "feature_labels to be a tensor, got list",
    ),
    (
        lambda x, w, y: fcl_ext.compat_supcon(x, y.numpy(), w, torch.arange(5)),
        "labels to be a tensor, got a numpy",
    ),
    (
        lambda x, w, y: fcl_ext.compat_supcon(x, y, w.numpy(), torch.arange(5)),
        "features to be a tensor, got a numpy",
    ),
    (lambda x, w, y: fcl_ext.compat_loss(x, w, y, scale="16"), "scale: .* a number, got '16'"),
    (lambda x, w, y: fcl_ext.compat_loss(x, w, y, scale=None), "scale: .* a number, got None"),
    (lambda x, w, y: fcl_ext.compat_loss(x, w, y, margin="a"), "margin: .* a number, got 'a'"),
    (
        lambda x, w, y: fcl_ext.compat_loss(x, w, y, label_smoothing=1j),
        "label_smoothing: expected a number, got 1j",
    ),
    (
        lambda x, w, y: fcl_ext.compat_loss(x, w, y, ignore_index=2.5),
        r"expected ignore_index to be an integer, got 2\.5",
    ),
    (
        lambda x, w, y: fcl_ext.compat_kl(x, w, teacher_embeddings=x, scale="16"),
        "scale: expected a number, got '16'",
    ),
    (
        lambda x, w, y: fcl_ext.compat_supcon(x, y, w, torch.arange(5), scale="16"),
        "scale: expected a number, got '16'",
    ),
    (
        lambda x, w, y: fcl_ext.teacher_readout(x, w, scale="16"),
        "teacher_readout: expected scale to be a number, got '16'",
    ),
]


@pytest.mark.parametrize(("call", "message"), OTHER_TYPES)
def test_what_is_no_tensor_or_number_is_named_in_one_line(call, message):
    with pytest.raises(TypeError, match=message) as caught:
        call(torch.randn(3, 4), torch.randn(5, 4), torch.tensor([0, 1, 2]))
    assert "\n" not in str(caught.value)
    # torch's own text, of many lines, is not shown beside it.
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_weights_are_those_of_torch_cross_entropy(reduction, device):
    x, w, y = batch(20, 6, 9, torch.float64, device)
    y = torch.where(torch.arange(20, device=device) == 3, -100, y)
    class_weights = torch.linspace(0.1, 2.0, 9, dtype=torch.float64, device=device)
    leaves = [t.clone().requires_grad_() for t in (x, w)]
    ours = fcl_ext.compat_loss(
        *leaves, y, scale=5.0, normalize=False, class_weights=class_weights, reduction=reduction
    )
    theirs = [t.clone().requires_grad_() for t in (x, w)]
    expected = F.cross_entropy(
        5.0 * theirs[0] @ theirs[1].T, y, weight=class_weights, reduction=reduction
    )
    torch.testing.assert_close(ours, expected)
    for mine, other in zip(
        torch.autograd.grad(ours.sum(), leaves),
        torch.autograd.grad(expected.sum(), theirs),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)
    # A sample's weight does what repeating the sample would do.
    twice = torch.ones(20, dtype=torch.float64, device=device)
    twice[5] = 2.0
    repeated = torch.cat([torch.arange(20, device=device), torch.tensor([5], device=device)])
    torch.testing.assert_close(
        fcl_ext.compat_loss(x, w, y, sample_weights=twice),
        fcl_ext.compat_loss(x[repeated], w, y[repeated]),
    )


def test_nan_embeddings_give_a_nan_loss():
    x, w, y = batch(3, 4, 5, torch.float32, "cpu")
    x[1, 2] = math.nan
    losses = fcl_ext.compat_loss(x, w, y, reduction="none")
    assert losses.isnan().tolist() == [False, True, False]


def test_zero_norm_rows_have_finite_losses_and_gradients():
    x, w, y = batch(3, 4, 5, torch.float32, "cpu")
    x[0] = 0
    w[1] = 0
    x.requires_grad_()
    loss = fcl_ext.compat_loss(x, w, y)
    loss.backward()
    assert loss.isfinite()
    assert x.grad.isfinite().all()


def test_prototype_gradient_repeats_itself():
    """Rows of one class add up to one gradient row: in the same order every time."""
    torch.manual_seed(0)
    embeddings, labels = torch.randn(128, 256), torch.randint(0, 40, (128,))
    prototypes = torch.randn(40, 256, requires_grad=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(max(2, threads))
    try:
        gradients = [
            torch.autograd.grad(
                fcl_ext.compat_loss(embeddings, prototypes, labels, scale=16.0), prototypes
            )[0]
            for _ in range(200)
        ]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
