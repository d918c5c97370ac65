# SPDX-License-Identifier: Apache-2.0
"""Derivatives that are not offered raise: second ones, forward-mode ones, those to constants."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

import fcl_ext

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
