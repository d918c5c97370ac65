# SPDX-License-Identifier: Apache-2.0
"""What is kept of frozen prototypes, packed copies and means: not used where they have changed."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fcl_ext
from fcl_ext import _frozen
from fcl_ext._versions import _spread

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(4)


@pytest.fixture(autouse=True)
def cache() -> Iterator[None]:
    fcl_ext.set_packing_cache(1 << 30)
    yield
    fcl_ext.set_packing_cache(0)


def frozen(rows=1000):
    numbers = torch.randn(rows, 8, generator=torch.Generator().manual_seed(1))
    return torch.nn.Parameter(numbers, requires_grad=False)


def unseen(tensor):
    """Row and column of the last number that is no witness."""
    place = max(set(range(tensor.numel())) - set(_spread(tensor).tolist()))
    return divmod(place, tensor.shape[1])


def smoothed(prototypes):
    return fcl_ext.compat_loss(X, prototypes, Y, label_smoothing=0.5, normalize=False)


def plain(prototypes):
    return fcl_ext.compat_loss(X, prototypes, Y, normalize=False)


def of_targets(prototypes):
    return fcl_ext.compat_loss(X, prototypes, targets=X, normalize=False)


def assert_as_of_a_copy(loss, prototypes):
    assert torch.equal(loss(prototypes), loss(prototypes.detach().clone()))


def test_means_follow_versions_and_are_released():
    w = torch.eye(4)
    first = _frozen.mean_prototype(w, True)
    assert _frozen.mean_prototype(w, True) is first
    w.mul_(torch.tensor([2.0, 1.0, 1.0, 1.0])[:, None])
    again = _frozen.mean_prototype(w, True)
    assert again is not first
    assert torch.equal(again, first)  # of unit rows
    assert _frozen.mean_prototype(w, False).tolist() == [0.5, 0.25, 0.25, 0.25]
    assert len(_frozen._cache.means) == 2
    del w
    gc.collect()
    assert not _frozen._cache.means


@pytest.mark.parametrize("loss", [smoothed, plain, of_targets])
def test_a_moving_average_through_data_is_seen(loss):
    w = frozen()
    for _ in range(3):
        assert_as_of_a_copy(loss, w)
        w.data.mul_(0.9).add_(0.1)


@pytest.mark.parametrize("loss", [smoothed, plain, of_targets])
def test_a_few_numbers_written_through_data_need_a_call(loss):
    w = frozen()
    row, column = unseen(w)
    before = loss(w)
    w.data[row, column] = 500.0
    assert torch.equal(loss(w), before)  # as documented
    fcl_ext.set_packing_cache(1 << 30)
    assert_as_of_a_copy(loss, w)


@pytest.mark.parametrize("trained_by", [smoothed, plain, of_targets])
@pytest.mark.parametrize("loss", [smoothed, plain, of_targets])
@pytest.mark.parametrize("rows", [200, 40_000])  # gradients in one call, or not
def test_what_is_trained_in_between_is_forgotten(loss, trained_by, rows):
    w = frozen(rows)
    loss(w)
    w.requires_grad_()
    trained_by(w).backward()
    assert w.grad is not None
    w.grad.zero_()[unseen(w)] = 500.0
    version = w._version
    torch.optim.SGD([w], lr=1.0, fused=True).step()
    assert w._version == version  # why it must be seen by other means
    w.requires_grad_(False)
    assert_as_of_a_copy(loss, w)


def test_means_are_kept_on_the_cpu_alone():
    mean = _frozen.mean_prototype(frozen().to("meta"), True)
    assert mean.device.type == "meta"
    assert not _frozen._cache.means


# torch compiles its own rules by it, the first time.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_nothing_is_kept_of_what_transforms_and_modes_compute():
    w = frozen()

    def scaled(factor):
        readout = fcl_ext.softmax_readout(X, w, scale=1.0)[0]
        return factor * readout.sum() * _frozen.mean_prototype(w, False).sum()

    torch.func.jvp(scaled, (X[0, 0],), (X[0, 0],))
    with FakeTensorMode(allow_non_fake_inputs=True):
        smoothed(w)
    assert not _frozen._cache.means
    assert not _frozen._cache.packed
    for loss in (smoothed, of_targets):
        assert_as_of_a_copy(loss, w)


def test_contents_can_be_swapped_once_all_is_forgotten():
    head = torch.nn.Linear(8, 100, bias=False).requires_grad_(False)
    smoothed(head.weight)
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        fcl_ext.set_packing_cache(0)
        assert head.double().weight.dtype == torch.float64
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


@pytest.mark.parametrize("loss", [smoothed, plain])
def test_threads_share_what_is_kept(loss):
    w = frozen(50)
    expected = loss(w.detach().clone())

    def call(thread: int) -> list[Tensor]:
        results = []
        for _ in range(50):
            if thread == 0:
                w.mul_(1.0)  # another version, the same numbers
            results += [loss(w), loss(w.detach())]
        return results

    with ThreadPoolExecutor(4) as threads:
        for results in threads.map(call, range(4)):
            assert all(torch.equal(result, expected) for result in results)
