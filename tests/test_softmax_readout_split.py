# SPDX-License-Identifier: Apache-2.0
"""float32 where the CPU's kernels may multiply it in parts: many rows, any norm, any number.

On a processor with tile products (``FCL_CPU_ISA=amx_bf16``) these shapes take that way; elsewhere
the same numbers must come from vectors.
"""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F

import fcl_ext
from fcl_ext import _logits
from support import error, numbers_by_isa

# Rows around the blocks of rows and of tiles, dims and classes around those of tiles.
ROWS = [80, 97, 128, 129, 200, 256, 257, 300, 520]
DIMS = [1, 31, 32, 33, 100, 129, 257]
CLASSES = [1, 2, 31, 33, 127, 129, 300, 1000]
SHAPES = [
    (rows, DIMS[i % len(DIMS)], CLASSES[(3 * i + j) % len(CLASSES)])
    for i, rows in enumerate(ROWS)
    for j in range(3)
] + [(130, 40, 20_000)]  # more than one flush


def _draw(rows, dim, classes, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeddings = F.normalize(torch.randn(rows, dim, generator=generator), dim=1)
    prototypes = torch.randn(classes, dim, generator=generator)
    labels = torch.randint(classes, (rows,), generator=generator)
    return embeddings, prototypes, labels


def _exact(embeddings, prototypes, scale):
    logits = scale * embeddings.double() @ prototypes.double().T
    return logits.logsumexp(1), logits.softmax(1) @ prototypes.double()


def _gradients(loss, embeddings, prototypes):
    leaves = embeddings.clone().requires_grad_(), prototypes.clone().requires_grad_()
    value = loss(*leaves)
    return value.detach(), *torch.autograd.grad(value, leaves)


def _exact_loss(embeddings, prototypes, labels, scale):
    cosines = F.normalize(embeddings, dim=1) @ F.normalize(prototypes, dim=1).T
    return F.cross_entropy(scale * cosines, labels)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_readout_matches_definition(shape):
    embeddings, prototypes, _ = _draw(*shape)
    got = fcl_ext.softmax_readout(embeddings, prototypes, scale=7.0)
    for one, exact in zip(got, _exact(embeddings, prototypes, 7.0), strict=True):
        assert error(one, exact) <= 1e-6


# In one dim every gradient through a norm is 0.
@pytest.mark.parametrize("keeps_logits", [False, True])
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[1] > 1], ids=str)
def test_loss_and_gradients_match_definition(shape, keeps_logits, monkeypatch):
    monkeypatch.setattr(_logits, "LOGITS_CAP", 1 << 40 if keeps_logits else 0)
    embeddings, prototypes, labels = _draw(*shape)
    loss = functools.partial(_exact_loss, labels=labels, scale=20.0)
    got = _gradients(
        lambda x, w: fcl_ext.compat_loss(x, w, labels, scale=20.0), embeddings, prototypes
    )
    exact = _gradients(loss, embeddings.double(), prototypes.double())
    plain = _gradients(loss, embeddings, prototypes)
    for one, right, naive in zip(got, exact, plain, strict=True):
        assert error(one, right) <= 2 * error(naive, right) + 1e-6


def test_no_less_accurate_than_plain_float32():
    for seed in range(3):
        embeddings, prototypes, labels = _draw(300, 256, 5000, seed=seed)
        exact = _gradients(
            functools.partial(_exact_loss, labels=labels, scale=30.0),
            embeddings.double(),
            prototypes.double(),
        )
        plain = _gradients(
            functools.partial(_exact_loss, labels=labels, scale=30.0), embeddings, prototypes
        )
        got = _gradients(
            lambda x, w, y=labels: fcl_ext.compat_loss(x, w, y, scale=30.0), embeddings, prototypes
        )
        for one, right, naive in zip(got, exact, plain, strict=True):
            assert error(one, right) <= max(error(naive, right), 6e-8)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-10, 1e10, 1e18])
def test_prototypes_of_any_norm(size):
    embeddings, prototypes, _ = _draw(140, 48, 700)
    got = fcl_ext.softmax_readout(embeddings / size, size * prototypes, scale=3.0)
    lse, mean = _exact((embeddings / size).double(), (size * prototypes).double(), 3.0)
    assert error(got[0], lse) <= 2e-6
    assert error(got[1] / size, mean / size) <= 2e-6


@pytest.mark.parametrize("size", [1e-36, 1e-30, 1e30, 1e36])
def test_prototypes_near_the_ends_of_the_range(size):
    """Logits near 0, so that the mean is all there is to lose."""
    embeddings, prototypes, _ = _draw(140, 48, 700)
    embeddings *= min(1.0, 1 / size)
    mean = fcl_ext.softmax_readout(embeddings, size * prototypes, scale=1.0)[1]
    exact = _exact(embeddings, size * prototypes, 1.0)[1]
    assert error(mean / size, exact / size) <= 2e-6


@pytest.mark.parametrize("size", [1.0, 1e-15])
@pytest.mark.parametrize("bits", [55, 90, 110])
def test_weights_that_are_all_small(bits, size):
    """All logits of a row far below what norms allow: with no shift its weights are 2^-bits."""
    noise, _, _ = _draw(140, 48, 1)
    around = torch.zeros(48)
    around[0] = 1
    embeddings = -around + 0.01 * noise
    prototypes = around + 0.01 * F.normalize(_draw(1, 48, 900)[1], dim=1)
    embeddings, prototypes, scale = embeddings / size, prototypes * size, bits * 0.6931
    lse, mean = fcl_ext.softmax_readout(embeddings, prototypes, scale=scale)
    exact_lse, exact_mean = _exact(embeddings, prototypes, scale)
    assert error(lse, exact_lse) <= 1e-6
    assert error(mean / size, exact_mean / size) <= 1e-6


def test_norms_that_differ_from_block_to_block():
    """Some blocks of classes cannot be split, those beside them can: both add to one sum."""
    embeddings, prototypes, _ = _draw(140, 48, 1200)
    prototypes[300:420] *= 1e-25
    prototypes[700:] *= 1e20
    embeddings = embeddings.abs()
    prototypes[700:] = -prototypes[700:].abs()  # weighs nothing, if its logits are right
    got = fcl_ext.softmax_readout(embeddings, prototypes, scale=3.0)
    for one, exact in zip(got, _exact(embeddings, prototypes, 3.0), strict=True):
        assert error(one, exact) <= 1e-6


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e25])
def test_one_row_does_not_spoil_the_others(value):
    embeddings, prototypes, _ = _draw(270, 40, 600)
    embeddings[133, 7] = value
    lse, mean = fcl_ext.softmax_readout(embeddings, prototypes, scale=5.0)
    others = torch.arange(270) != 133
    exact = _exact(embeddings[others], prototypes, 5.0)
    assert error(lse[others], exact[0]) <= 1e-6
    assert error(mean[others], exact[1]) <= 1e-6
    if value != 1e25:
        assert torch.equal(lse[133].isnan(), torch.tensor(value != float("inf")))


@pytest.mark.parametrize("scale", [1e-30, 1e10, 1e30])
def test_scales_near_the_ends_of_the_range(scale):
    """Where float logits are off by more than exponents hold, nothing becomes a NaN.

    Which class has all the probability is then rounding's choice, and with it the gradient to W.
    """
    embeddings, prototypes, labels = _draw(140, 48, 700)
    got = _gradients(
        lambda x, w: fcl_ext.compat_loss(x, w, labels, scale=scale), embeddings, prototypes
    )
    exact = _gradients(
        functools.partial(_exact_loss, labels=labels, scale=scale),
        embeddings.double(),
        prototypes.double(),
    )
    told = 3 if scale < 1 else 2
    for one, right in zip(got[:told], exact[:told], strict=True):
        assert error(one.double() / scale, right / scale) <= 2e-6
    assert got[2].isfinite().all()


@pytest.mark.parametrize("weight", [1e-33, 1e-12, 1e12, 1e36])
def test_gradients_of_any_size(weight):
    embeddings, prototypes, _ = _draw(200, 64, 500)
    leaves = embeddings.clone().requires_grad_(), prototypes.clone().requires_grad_()
    lse = fcl_ext.softmax_readout(*leaves, scale=2.0)[0]
    got = torch.autograd.grad(lse, leaves, torch.full_like(lse, weight))
    exact = _gradients(
        lambda x, w: (2.0 * x @ w.T).logsumexp(1).sum(), embeddings.double(), prototypes.double()
    )
    for one, right in zip(got, exact[1:], strict=True):
        assert error(one.double() / weight, right) <= 2e-6


def test_packed_prototypes_give_the_same_bits():
    embeddings, prototypes, labels = _draw(260, 100, 900)
    loss = functools.partial(fcl_ext.compat_loss, embeddings, prototypes, labels, reduction="none")
    plain = loss()
    fcl_ext.set_packing_cache(1 << 30)
    try:
        kept = [loss() for _ in range(3)]
    finally:
        fcl_ext.set_packing_cache(0)
    assert all(torch.equal(plain, one) for one in kept)


def test_rows_with_positives_left_out():
    embeddings, _, _ = _draw(300, 32, 1)
    bank, _, _ = _draw(900, 32, 1, seed=1)
    labels, bank_labels = torch.arange(300) % 7, torch.arange(900) % 7
    got = fcl_ext.compat_supcon(embeddings, labels, bank, bank_labels, scale=10.0)
    logits = 10.0 * embeddings.double() @ F.normalize(bank.double(), dim=1).T
    is_positive = labels[:, None] == bank_labels
    inside = logits.masked_fill(~is_positive, -torch.inf).logsumexp(1)
    exact = (logits.logsumexp(1) - inside + is_positive.sum(1).log()).mean()
    assert error(got, exact) <= 1e-6


def test_does_not_depend_on_the_number_of_threads():
    embeddings, prototypes, labels = _draw(400, 96, 3000)
    loss = functools.partial(fcl_ext.compat_loss, labels=labels, scale=20.0)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(_gradients(loss, embeddings, prototypes))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


_ISA_SCRIPT = """
import torch, fcl_ext
torch.manual_seed(0)
x, w = torch.randn(300, 70), torch.randn(2000, 70)
y = torch.arange(300)
numbers = []
for scale in (1.0, 10.0, 64.0, 200.0):
    leaves = x.clone().requires_grad_(), w.clone().requires_grad_()
    loss = fcl_ext.compat_loss(*leaves, y, scale=scale)
    loss.backward()
    numbers += [loss, *(leaf.grad.double().norm() for leaf in leaves)]
print(fcl_ext._C.cpu_isa(), *(float(number) for number in numbers))
"""


def test_every_isa_agrees():
    first, *others = numbers_by_isa(_ISA_SCRIPT)
    for other in others:
        assert other == pytest.approx(first, rel=1e-6)
