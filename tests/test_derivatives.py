# SPDX-License-Identifier: Apache-2.0
"""Derivatives that are not offered raise: second ones, forward-mode ones, those to constants."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.autograd import forward_ad

import fcl_ext
from fcl_ext import ops

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


@pytest.mark.parametrize("name", ["scale", "margin", "label_smoothing"])
def test_numbers_of_compat_loss_that_require_a_gradient_are_refused(name):
    learned = torch.tensor(0.5, requires_grad=True)
    with pytest.raises(ValueError, match=rf"{name}: expected a constant.*float\(\)"):
        fcl_ext.compat_loss(X, W, Y, **{name: learned})
    fcl_ext.compat_loss(X, W, Y, **{name: learned.item()})
    with torch.no_grad():
        fcl_ext.compat_loss(X, W, Y, **{name: learned})


def test_constants_that_require_a_gradient_are_refused():
    learned = torch.tensor(5.0, requires_grad=True)
    for call in (
        lambda: fcl_ext.compat_loss(X, W, Y, scale=learned),
        lambda: fcl_ext.compat_kl(X, W, teacher_embeddings=X, scale=learned),
        lambda: fcl_ext.compat_supcon(X, Y, W, torch.arange(9), scale=learned),
        lambda: fcl_ext.softmax_readout(X, W, scale=learned),
    ):
        with pytest.raises(ValueError, match=r"scale: expected a constant.*float\(\)"):
            call()
    ones = torch.ones(6).double()
    with pytest.raises(ValueError, match="damping: expected a constant"):
        fcl_ext.random_walk(CROW, COL, ones, X, damping=torch.tensor(0.5, requires_grad=True))
    for name, options in (
        ("prototypes", {"prototypes": W.clone().requires_grad_(), "teacher_embeddings": X}),
        ("teacher_embeddings", {"prototypes": W, "teacher_embeddings": X.clone().requires_grad_()}),
    ):
        with pytest.raises(ValueError, match=rf"{name}: expected a constant.*detach\(\)"):
            fcl_ext.compat_kl(X, scale=5.0, **options)
        with torch.no_grad():
            assert fcl_ext.compat_kl(X, scale=5.0, **options) < 1e-12
