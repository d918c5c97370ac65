# SPDX-License-Identifier: Apache-2.0
"""Derivatives that are not offered raise: second ones, forward-mode ones, those to constants."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.autograd import forward_ad

import fcl_ext
from fcl_ext import ops
from fclearn import KnnGraph
from fclearn.distributed import logsumexp_over_shards, sharded_compat_loss, single_process

X = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
W = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.arange(6)
CROW, COL = torch.arange(7), torch.tensor([1, 2, 3, 4, 5, 0])
LOSSES = {
    "compat_loss": lambda x: fcl_ext.compat_loss(x, W, Y),
    "compat_loss of targets": lambda x: fcl_ext.compat_loss(x, W, targets=X, normalize=False),
    "compat_kl": lambda x: fcl_ext.compat_kl(x, W, teacher_embeddings=X, scale=5.0),
    "compat_supcon": lambda x: fcl_ext.compat_supcon(x, Y, W, torch.arange(9)),
    "softmax_readout": lambda x: fcl_ext.softmax_readout(x, W, scale=2.0)[1].sum(),
    "random_walk": lambda x: fcl_ext.random_walk(CROW, COL, torch.ones(6).double(), x).sum(),
    "random_walk of steps": lambda x: fcl_ext.random_walk(
        CROW, COL, torch.ones(6).double(), x, num_steps=2
    ).sum(),
}


FCL = torch.ops.fcl
OTHER = torch.ones(6).double()
# Called raw: each with a gradient of its own, or with one that raises.
OPERATORS = {
    "softmax_readout": lambda x: FCL.softmax_readout(x, W, None, None, 2.0, True),
    "softmax_readout of prototypes": lambda x: FCL.softmax_readout(X, x, None, None, 2.0, True),
    "softmax_readout_backward": lambda x: FCL.softmax_readout_backward(
        *(X, W, None, None, OTHER, x[:, 0], None, 2.0, True, True, False)
    ),
    "sparse_readout": lambda x: FCL.sparse_readout(x, X, Y, CROW, COL, None, 2.0, True),
    "random_walk": lambda x: FCL.random_walk(CROW, COL, OTHER, x, 0.5, 3),
    "random_walk of values": lambda x: FCL.random_walk(CROW, COL, x[:, 0], X, 0.5, 3),
    "random_walk_tol": lambda x: FCL.random_walk_tol(CROW, COL, OTHER, x, 0.5, 0.1, 9, "max"),
    "random_walk_resume": lambda x: ops.random_walk_resume(CROW, COL, OTHER, X, x, 0.5, 3),
    "edge_dot": lambda x: FCL.edge_dot(CROW, COL, x, X),
    "knn_graph": lambda x: FCL.knn_graph(x.float(), 2, "cosine"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("name", OPERATORS)
def test_forward_mode_is_refused_by_the_operators(name):
    refused = pytest.raises(
        RuntimeError, match=rf"fcl::{name.split()[0]}: forward-mode derivatives are not supported"
    )
    with refused:
        torch.func.jvp(OPERATORS[name], (X,), (X,))
    for rows in (X, X.clone().requires_grad_()):
        with forward_ad.dual_level():
            with refused:
                OPERATORS[name](forward_ad.make_dual(rows, X))
            OPERATORS[name](rows)
    OPERATORS[name](X)


def test_every_autograd_kernel_refuses_them():
    """Registered by the one function that looks for tangents, not by torch's own."""
    folder = Path(fcl_ext.__file__).parent / "_registrations"
    own = {
        path.name
        for path in folder.glob("*.py")
        if "torch.library.register_autograd(" in path.read_text("utf-8")
    }
    assert own == {"common.py"}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_forward_mode_is_refused_by_compiled_operators():
    compiled = torch.compile(OPERATORS["softmax_readout"], backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(X)[0], OPERATORS["softmax_readout"](X)[0])
    with (
        forward_ad.dual_level(),
        pytest.raises(RuntimeError, match="softmax_readout: forward-mode derivatives are not"),
    ):
        compiled(forward_ad.make_dual(X, X))


# torch compiles its own rules by it, the first time.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("name", LOSSES)
def test_forward_mode_is_refused(name):
    with pytest.raises(
        RuntimeError, match=r"forward-mode|does not support.*forward|jvp|setup_cont"
    ):
        torch.func.jvp(LOSSES[name], (X,), (X,))
    with forward_ad.dual_level():
        with pytest.raises(RuntimeError, match=r"forward-mode|jvp"):
            LOSSES[name](forward_ad.make_dual(X, torch.ones_like(X)))
        LOSSES[name](X)  # what has no tangent may be computed there


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("classes", [9, 60_000])  # both gradients in one call, or not
def test_double_backward_of_compat_loss_is_refused(classes, reduction):
    x = X.clone().requires_grad_()
    w = torch.randn(classes, 5, dtype=torch.float64).requires_grad_()
    loss = fcl_ext.compat_loss(x, w, Y, reduction=reduction).sum()
    for gradient in torch.autograd.grad(loss, (x, w), create_graph=True):
        assert gradient.requires_grad
        with pytest.raises(RuntimeError, match="compat_loss: double backward is not supported"):
            gradient.square().sum().backward()
    again = fcl_ext.compat_loss(x, w, Y, reduction=reduction).sum()
    for one, other in zip(
        torch.autograd.grad(again, (x, w)), torch.autograd.grad(loss, (x, w)), strict=True
    ):
        assert torch.equal(one, other)


# Of the losses, and whether they know their second derivatives by embeddings.
TWICE = {
    "compat_loss": (LOSSES["compat_loss"], False),
    "compat_loss smoothed": (lambda x: fcl_ext.compat_loss(x, W, Y, label_smoothing=0.1), False),
    "targets": (lambda x: fcl_ext.compat_loss(x, W, targets=TARGETS), True),
    "compat_kl": (lambda x: fcl_ext.compat_kl(x, W, teacher_embeddings=TARGETS, scale=2.0), True),
    "compat_supcon": (lambda x: fcl_ext.compat_supcon(x, Y % 3, W, torch.arange(9) % 3), False),
    "sharded": (lambda x: sharded(sharded_compat_loss, x, W, Y, num_classes=9), False),
    "logsumexp": (lambda x: sharded(logsumexp_over_shards, x, W, scale=2.0).sum(), False),
}


@pytest.mark.parametrize("name", TWICE)
def test_a_penalty_on_a_gradient_behind_a_layer(name):
    """torch asks only nodes on the way to `inputs`: a refusal has to lie there."""
    loss, is_known = TWICE[name]
    weight = torch.eye(5, dtype=torch.float64).requires_grad_()

    def penalty(weight):
        x = torch.tanh(X @ weight)
        (gradient,) = torch.autograd.grad(loss(x), x, create_graph=True)
        return gradient.square().sum()

    if not is_known:
        with pytest.raises(RuntimeError, match=r"not supported|has no gradient"):
            torch.autograd.grad(penalty(weight), weight)
        return
    (got,) = torch.autograd.grad(penalty(weight), weight)
    step = 1e-6 * torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    around = penalty(weight + step) - penalty(weight - step)
    torch.testing.assert_close((got * step).sum(), around.detach() / 2, rtol=1e-6, atol=0)


TARGETS = X.flip(0)
WEIGHTS = torch.full((6,), 0.5, dtype=torch.float64)
GRAPH = KnnGraph.build(X, k=2)
TEACHER = fcl_ext.teacher_readout(TARGETS, W, scale=2.0)


def sharded(function, *arguments, **options):
    with single_process() as group:
        return function(*arguments, first=0, group=group, **options)


# By a number that gets no derivative: its name, and what takes it.
NUMBERS = {
    "compat_loss": ("scale", lambda s: fcl_ext.compat_loss(X, W, Y, scale=s)),
    "compat_loss by margin": ("margin", lambda s: fcl_ext.compat_loss(X, W, Y, margin=s)),
    "compat_loss by smoothing": (
        "label_smoothing",
        lambda s: fcl_ext.compat_loss(X, W, Y, label_smoothing=s),
    ),
    "compat_loss of targets": (
        "scale",
        lambda s: fcl_ext.compat_loss(X, W, targets=TARGETS, scale=s),
    ),
    "compat_kl": ("scale", lambda s: fcl_ext.compat_kl(X, W, teacher_embeddings=TARGETS, scale=s)),
    "compat_kl of a teacher": (
        "scale",
        lambda s: fcl_ext.compat_kl(X, W, teacher=TEACHER, scale=s),
    ),
    "compat_supcon": ("scale", lambda s: fcl_ext.compat_supcon(X, Y, W, torch.arange(9), scale=s)),
    "teacher_readout": (
        "scale",
        lambda s: fcl_ext.teacher_readout(X, W, scale=s).negative_entropy.sum(),
    ),
    "softmax_readout": ("scale", lambda s: fcl_ext.softmax_readout(X, W, scale=s)[0].sum()),
    "sparse_readout": (
        "scale",
        lambda s: fcl_ext.sparse_readout(X, X, Y, CROW, COL, scale=s)[0].sum(),
    ),
    "random_walk": (
        "damping",
        lambda s: fcl_ext.random_walk(CROW, COL, WEIGHTS, X, damping=s).sum(),
    ),
    "random_walk of steps": (
        "damping",
        lambda s: fcl_ext.random_walk(CROW, COL, WEIGHTS, X, damping=s, num_steps=2).sum(),
    ),
    "walk": ("damping", lambda s: GRAPH.normalize().walk(X, s).sum()),
    "walk of steps": ("damping", lambda s: GRAPH.normalize().walk(X, s, num_steps=2).sum()),
    "solve": ("damping", lambda s: GRAPH.normalize(mode="symmetric").solve(X, s).features.sum()),
    "walk_labels": (
        "damping",
        lambda s: GRAPH.normalize().walk_labels(Y, damping=s, epsilon=0.1)[2].sum(),
    ),
    "logsumexp_over_shards": ("scale", lambda s: sharded(logsumexp_over_shards, X, W, scale=s)),
    "sharded_compat_loss": (
        "scale",
        lambda s: sharded(sharded_compat_loss, X, W, Y, num_classes=9, scale=s),
    ),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("case", NUMBERS)
def test_derivatives_by_numbers_are_refused(case):
    name, function = NUMBERS[case]
    number = torch.tensor(0.5, dtype=torch.float64)
    refused = pytest.raises(ValueError, match=rf"{name}: expected a constant.*float\(\)")
    with refused:
        torch.func.jvp(function, (number,), (torch.ones_like(number),))
    with refused:
        torch.func.jacfwd(function)(number)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(number, torch.ones_like(number))
        with refused:
            function(dual)
        with torch.no_grad(), refused:  # which stops no tangents
            function(dual)
        function(number)
        function(float(dual))
    if case != "teacher_readout":  # which has no gradient at all
        with refused:
            function(number.clone().requires_grad_())


def test_a_learnable_constant_is_refused_where_gradients_are_wanted():
    scale = torch.tensor(5.0, requires_grad=True)
    with torch.no_grad():
        fcl_ext.compat_loss(X, W, Y, scale=scale)
    fcl_ext.compat_loss(X, W, Y, scale=scale.item())
    for name, options in (
        ("prototypes", {"prototypes": W.clone().requires_grad_(), "teacher_embeddings": X}),
        ("teacher_embeddings", {"prototypes": W, "teacher_embeddings": X.clone().requires_grad_()}),
    ):
        with pytest.raises(ValueError, match=rf"{name}: expected a constant.*detach\(\)"):
            fcl_ext.compat_kl(X, scale=5.0, **options)
        with torch.no_grad():
            assert fcl_ext.compat_kl(X, scale=5.0, **options) < 1e-12
