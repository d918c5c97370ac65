# SPDX-License-Identifier: Apache-2.0
"""Values kept per version of a tensor (what the losses keep: test_pack_prototypes.py)."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fcl_ext._versions import VersionedCache, _spread


def test_a_value_lives_as_long_as_the_version_of_its_tensor():
    cache, tensor, other = VersionedCache(), torch.ones(2), torch.ones(2)
    for version in range(3):
        assert cache.find(tensor, "key") is None
        cache.keep(tensor, "key", version)
        assert cache.find(tensor, "key") == version
        assert cache.find(tensor, "another") is None
        assert cache.find(other, "key") is None
        tensor.add_(1)
    assert weakref.getweakrefcount(tensor) == 1  # however often it changes
    cache.keep(tensor, "key", 3)
    cache.keep(other, "key", 4)
    del tensor
    gc.collect()
    assert list(cache) == [4]
    cache.clear()
    assert len(cache) == 0
    assert cache.find(other, "key") is None


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
    return torch.nn.Parameter(tensor, requires_grad=False) if layout == "parameter" else tensor


LAYOUTS = [
    *("rows first", "columns first", "every other column", "with a column of zeros"),
    *("bfloat16", "parameter"),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("rows", "columns"), [(1000, 64), (64, 2048), (3, 2), (1, 500)])
def test_writes_to_the_whole_that_torch_does_not_count_are_noticed(layout, rows, columns):
    cache, tensor = VersionedCache(), frozen(layout, rows, columns)
    cache.keep(tensor, "key", 1)
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
    cache.keep(tensor, "key", 1)
    tensor.data = torch.ones(shape, dtype=getattr(torch, dtype))
    assert cache.find(tensor, "key") is None


def test_nan_is_the_same_as_itself():
    cache, tensor = VersionedCache(), torch.randn(1000, 3)
    tensor[::2] = float("nan")
    cache.keep(tensor, "key", 1)
    assert cache.find(tensor, "key") == 1
    tensor.data.neg_()
    assert cache.find(tensor, "key") is None


@pytest.mark.parametrize("shape", [(), (0, 5), (1,), (63, 1), (127, 2048), (200, 512), (64, 64)])
def test_few_numbers_are_compared(shape):
    places = _spread(torch.empty(shape))
    numel = math.prod(shape)
    assert min(64, numel) <= len(places) <= 127
    assert not len(places) or 0 <= int(places.min()) <= int(places.max()) < numel
    assert len(places.unique()) == len(places)


@pytest.mark.parametrize(("rows", "columns"), [(64, 2048), (4096, 4096), (127, 2048), (50, 6400)])
def test_numbers_of_many_columns_and_rows_are_compared(rows, columns):
    places = _spread(torch.empty(rows, columns))
    assert len((places % columns).unique()) >= 64
    assert len((places // columns).unique()) >= min(rows, 60)


def test_fake_tensors_have_no_numbers_to_compare():
    cache = VersionedCache()
    with FakeTensorMode():
        tensor = torch.randn(30, 8)
        cache.keep(tensor, "key", 1)
        assert cache.find(tensor, "key") == 1
        assert cache.find(tensor.add_(1), "key") is None
