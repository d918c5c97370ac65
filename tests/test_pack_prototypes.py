# SPDX-License-Identifier: Apache-2.0
"""Frozen prototypes kept packed: the same bits as without, and never those of an older version."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import fcl_ext
from fcl_ext import _frozen, ops

ROOM = 1 << 30


@pytest.fixture(autouse=True)
def cache() -> Iterator[None]:
    fcl_ext.set_packing_cache(ROOM)
    yield
    fcl_ext.set_packing_cache(0)


def problem(rows, dim, classes, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(rows, dim, generator=generator, dtype=dtype, requires_grad=True)
    prototypes = torch.randn(classes, dim, generator=generator, dtype=dtype)
    return embeddings, prototypes, torch.randint(classes, (rows,), generator=generator)


def loss_and_gradient(function, embeddings):
    embeddings.grad = None
    loss = function()
    loss.sum().backward()
    assert embeddings.grad is not None
    return loss.detach().clone(), embeddings.grad.clone()


def assert_same_bits(function, embeddings, *, kept):
    with_cache = loss_and_gradient(function, embeddings)
    assert bool(_frozen._cache.packed) == kept
    again = loss_and_gradient(function, embeddings)
    fcl_ext.set_packing_cache(0)
    without = loss_and_gradient(function, embeddings)
    for results in (with_cache, again):
        for one, other in zip(results, without, strict=True):
            assert torch.equal(one, other)


# Below a panel, above it, over several blocks, splits and flushes of classes.
@pytest.mark.parametrize(
    ("rows", "dim", "classes"),
    [(1, 1, 1), (3, 5, 7), (130, 33, 1000), (64, 64, 20_000), (17, 100, 8193), (300, 32, 448)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("normalize", [True, False])
def test_compat_loss_has_the_same_bits(rows, dim, classes, dtype, normalize):
    embeddings, prototypes, labels = problem(rows, dim, classes, dtype)

    def loss():
        return fcl_ext.compat_loss(
            embeddings, prototypes, labels, scale=9.0, normalize=normalize, reduction="none"
        )

    assert_same_bits(loss, embeddings, kept=True)


def test_other_losses_have_the_same_bits():
    embeddings, prototypes, labels = problem(40, 48, 3000, torch.float32)
    teacher = torch.randn(40, 48, generator=torch.Generator().manual_seed(1))
    bank_labels = torch.arange(3000) % 50

    losses = [
        lambda: fcl_ext.compat_kl(embeddings, prototypes, teacher_embeddings=teacher, scale=8.0),
        lambda: fcl_ext.compat_supcon(embeddings, labels % 50, prototypes, bank_labels, scale=10.0),
        lambda: fcl_ext.compat_loss(embeddings, prototypes, targets=teacher, scale=8.0),
    ]
    for loss in losses:
        fcl_ext.set_packing_cache(ROOM)
        assert_same_bits(loss, embeddings, kept=True)


def test_values_beside_kept_prototypes():
    embeddings, prototypes, _ = problem(20, 40, 900, torch.float32)
    values = torch.randn(900, 24, generator=torch.Generator().manual_seed(2))
    kept = fcl_ext.softmax_readout(embeddings.detach(), prototypes, values, scale=3.0)
    assert _frozen._cache.packed
    fcl_ext.set_packing_cache(0)
    plain = fcl_ext.softmax_readout(embeddings.detach(), prototypes, values, scale=3.0)
    assert torch.equal(kept[0], plain[0])
    assert torch.equal(kept[1], plain[1])


def test_a_change_in_place_is_seen():
    embeddings, prototypes, labels = problem(8, 16, 50, torch.float32)
    fcl_ext.compat_loss(embeddings, prototypes, labels)
    prototypes.mul_(-1).add_(0.5)
    expected = F.cross_entropy(
        30 * F.normalize(embeddings.double()) @ F.normalize(prototypes.double()).T, labels
    )
    torch.testing.assert_close(
        fcl_ext.compat_loss(embeddings, prototypes, labels).double(), expected, rtol=1e-6, atol=0
    )


def test_normalised_and_not_are_kept_apart():
    embeddings, prototypes, labels = problem(8, 16, 50, torch.float32)
    unit = fcl_ext.compat_loss(embeddings, prototypes, labels, scale=2.0)
    raw = fcl_ext.compat_loss(embeddings, prototypes, labels, scale=2.0, normalize=False)
    assert len(_frozen._cache.packed) == 2
    fcl_ext.set_packing_cache(0)
    assert torch.equal(unit, fcl_ext.compat_loss(embeddings, prototypes, labels, scale=2.0))
    assert torch.equal(
        raw, fcl_ext.compat_loss(embeddings, prototypes, labels, scale=2.0, normalize=False)
    )


def test_memory_goes_with_the_tensor():
    embeddings, prototypes, labels = problem(8, 16, 50, torch.float32)
    fcl_ext.compat_loss(embeddings, prototypes, labels).backward()
    assert len(_frozen._cache.packed) == 1
    del prototypes
    gc.collect()
    assert not _frozen._cache.packed


def test_no_more_is_kept_than_there_is_room_for():
    embeddings, first, labels = problem(8, 32, 64, torch.float32)
    second = first.clone()
    fcl_ext.set_packing_cache(64 * 32 * 4 + 64 * 4)
    for prototypes in (first, second, first):
        fcl_ext.compat_loss(embeddings, prototypes, labels)
    assert len(_frozen._cache.packed) == 1
    assert _frozen._cache.packed.find(first, True) is not None


@pytest.mark.parametrize("why", ["trainable", "bfloat16", "off"])
def test_what_is_not_kept(why):
    embeddings, prototypes, labels = problem(8, 16, 50, torch.float32)
    if why == "trainable":
        prototypes.requires_grad_()
    elif why == "bfloat16":
        embeddings, prototypes = embeddings.bfloat16(), prototypes.bfloat16()
    else:
        fcl_ext.set_packing_cache(0)
    fcl_ext.compat_loss(embeddings, prototypes, labels).backward()
    assert not _frozen._cache.packed


def test_non_finite_prototypes_propagate():
    embeddings, prototypes, labels = problem(4, 16, 50, torch.float32)
    prototypes[7, 3] = float("nan")
    assert fcl_ext.compat_loss(embeddings, prototypes, labels % 7).isnan()
    assert _frozen._cache.packed


def test_what_does_not_fit_is_refused():
    embeddings, prototypes, _ = problem(4, 40, 50, torch.float32)
    packed, squared_norms = ops.pack_prototypes(prototypes, False)
    assert packed.shape == (50 * 64,)
    assert packed.data_ptr() % 128 == 0
    torch.testing.assert_close(squared_norms, prototypes.square().sum(1))
    arguments = (embeddings.detach(), prototypes, None, None, 1.0, True, False)
    with pytest.raises(RuntimeError, match=r"packed.*C \* D rounded"):
        ops.softmax_readout(*arguments, packed[:1600], squared_norms)
    with pytest.raises(RuntimeError, match="packed and squared_norms together"):
        ops.softmax_readout(*arguments, packed, None)
    with pytest.raises(RuntimeError, match="float32 and float64 only"):
        ops.pack_prototypes(prototypes.bfloat16(), False)
    with pytest.raises(ValueError, match="max_bytes >= 0, got -1"):
        fcl_ext.set_packing_cache(-1)


def test_shape_inference():
    """Not by opcheck: where the result begins in its memory is for its address to decide."""
    _, prototypes, _ = problem(4, 40, 50, torch.float64)
    real = ops.pack_prototypes(prototypes, True)
    with FakeTensorMode() as mode:
        fake = ops.pack_prototypes(mode.from_tensor(prototypes), True)
    for one, other in zip(real, fake, strict=True):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
