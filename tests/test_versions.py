# SPDX-License-Identifier: Apache-2.0
"""Values kept per version of a tensor (what the losses keep: test_pack_prototypes.py)."""

from __future__ import annotations

import gc
import math
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fcl_ext._versions import VersionedCache, _spread, _State, can_watch


def test_a_value_lives_as_long_as_the_version_of_its_tensor():
    cache, tensor, other = VersionedCache(), torch.ones(2), torch.ones(2)
    for version in range(3):
        assert cache.find(tensor, "key") is None
        assert cache.keep(tensor, "key", lambda version=version: version) == version
        assert cache.find(tensor, "key") == version
        assert cache.find(tensor, "another") is None
        assert cache.find(other, "key") is None
        tensor.add_(1)
    assert weakref.getweakrefcount(tensor) == 1  # however often it changes
    cache.keep(tensor, "key", lambda: 3)
    cache.keep(other, "key", lambda: 4)
    del tensor
    gc.collect()
    assert list(cache) == [4]
    cache.clear()
    assert len(cache) == 0
    assert cache.find(other, "key") is None
    assert weakref.getweakrefcount(other) == 0


def frozen(layout, rows=1000, columns=64):
    tensor = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    if layout == "columns first":
        return tensor.t().contiguous().t()
    if layout == "every other column":
        return tensor[:, ::2]
    if layout == "with a column of zeros":
        tensor[:, 0] = 0
    if layout == "bfloat16":
        return tensor.bfloat16()
    if layout == "own class of tensor":
        return tensor.as_subclass(OwnTensor)
    if layout == "own class of parameter":
        return OwnParameter(tensor, requires_grad=False)
    return torch.nn.Parameter(tensor, requires_grad=False) if layout == "parameter" else tensor


class OwnTensor(torch.Tensor):
    pass


class OwnParameter(torch.nn.Parameter):
    pass


LAYOUTS = [
    *("rows first", "columns first", "every other column", "with a column of zeros"),
    *("bfloat16", "parameter", "own class of tensor", "own class of parameter"),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("rows", "columns"), [(1000, 64), (64, 2048), (3, 2), (1, 500)])
def test_writes_to_the_whole_that_torch_does_not_count_are_noticed(layout, rows, columns):
    cache, tensor = VersionedCache(), frozen(layout, rows, columns)
    assert can_watch(tensor)
    cache.keep(tensor, "key", lambda: 1)
    version = tensor._version
    assert cache.find(tensor, "key") == 1
    tensor.data.mul_(0.9)
    assert tensor._version == version
    assert cache.find(tensor, "key") is None


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2, 3), "float32"), ((6000, 3), "float32"), ((3000,), "float32"), ((1000, 3), "float64")],
)
def test_data_of_another_shape_or_dtype_are_noticed(shape, dtype):
    cache, tensor = VersionedCache(), torch.ones(1000, 3)
    cache.keep(tensor, "key", lambda: 1)
    tensor.data = torch.ones(shape, dtype=getattr(torch, dtype))
    assert cache.find(tensor, "key") is None


def test_other_memory_is_noticed():
    cache, tensor = VersionedCache(), torch.zeros(300, 300)
    for other in (tensor.clone(), tensor.t()):
        cache.keep(tensor, "key", lambda: 1)
        version, tensor.data = tensor._version, other
        assert tensor._version == version
        assert cache.find(tensor, "key") is None


def test_nan_is_the_same_as_itself():
    cache, tensor = VersionedCache(), torch.randn(1000, 3)
    tensor[::2] = float("nan")
    cache.keep(tensor, "key", lambda: 1)
    assert cache.find(tensor, "key") == 1
    tensor.data.neg_()
    assert cache.find(tensor, "key") is None


SHAPES = [
    *((), (0, 5), (5, 0), (1,), (63, 1), (127, 2048), (200, 512), (64, 64), (3000,), (2, 30, 40)),
    # No even step gives some 64 of these and all columns.
    *((10, 16), (13, 30), (3, 120), (3, 210), (1, 210), (5, 30)),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_as_many_numbers_are_compared(shape):
    places = _spread(torch.empty(shape))
    numel = math.prod(shape)
    assert len(places) == min(64, numel)
    assert not len(places) or 0 <= int(places.min()) <= int(places.max()) < numel
    assert len(places.unique()) == len(places)
    columns = shape[-1] if shape else 1
    if numel:
        assert len((places % columns).unique()) == min(64, columns)
        assert len((places // columns).unique()) == min(64, numel // columns)


def test_numbers_far_apart_are_compared():
    places = _spread(torch.empty(4096, 4096))
    for indices in (places % 4096, places // 4096):
        assert int(indices.sort().values.diff().max()) < 4096 // 16


def test_a_default_device_changes_nothing():
    cache, tensor = VersionedCache(), torch.randn(30, 8)
    with torch.device("meta"):
        cache.keep(tensor, "key", lambda: 1)
        assert cache.find(tensor, "key") == 1
    assert cache.find(tensor, "key") == 1


def test_what_cannot_be_watched():
    frozen = torch.randn(30, 8)
    assert can_watch(frozen)
    seen = []
    torch.func.vmap(lambda row: seen.append(can_watch(row)) or row)(frozen)
    torch.func.grad(lambda x: seen.append(can_watch(frozen)) or x.sum())(frozen)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = torch.randn(30, 8)
        seen += [can_watch(frozen), can_watch(mode.from_tensor(frozen))]
    with torch.inference_mode():
        seen.append(can_watch(torch.ones(2)))
    for other in (fake, frozen.to("meta"), frozen.to_sparse(), frozen.requires_grad_()):
        seen.append(can_watch(other))
    assert seen == [False] * 9


def test_two_threads_may_find_one_value_of_before(monkeypatch):
    cache, tensor = VersionedCache(), torch.ones(2)
    cache.keep(tensor, "key", lambda: 1)
    tensor.add_(1)
    both = threading.Barrier(2, timeout=30)
    is_of = _State.is_of

    def at_once(state, now):
        answer = is_of(state, now)
        both.wait()
        return answer

    monkeypatch.setattr(_State, "is_of", at_once)
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(cache.find, [tensor] * 2, ["key"] * 2)) == [None, None]


def test_values_may_come_while_others_are_counted():
    cache, tensors = VersionedCache(), torch.ones(3).unbind()
    cache.keep(tensors[0], "key", lambda: 1)
    for value in cache:
        for tensor in tensors:
            cache.keep(tensor, "another", lambda: 2)
        assert value in (1, 2)
    assert len(cache) == 4


def test_a_write_while_the_value_is_computed_is_a_change():
    cache, tensor = VersionedCache(), torch.ones(2)
    assert cache.keep(tensor, "key", lambda: (tensor.sum().item(), tensor.add_(1))[0]) == 2
    assert cache.find(tensor, "key") is None
