# SPDX-License-Identifier: Apache-2.0
"""Values kept per version of a tensor (what the losses keep: test_pack_prototypes.py)."""

from __future__ import annotations

import gc
import weakref

import torch

from fcl_ext._versions import VersionedCache


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


def test_writes_that_torch_does_not_count_are_noticed_in_a_witness():
    cache, tensor = VersionedCache(), torch.zeros(1000, 3)
    cache.keep(tensor, "key", 1)
    version = tensor._version
    tensor.data.mul_(0.9).add_(1)
    assert tensor._version == version
    assert cache.find(tensor, "key") is None
