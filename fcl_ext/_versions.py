# SPDX-License-Identifier: Apache-2.0
"""What was computed from frozen tensors, kept until they change or go away."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def counts_versions(tensor: Tensor) -> bool:
    """Whether a tensor stays as it is until torch says otherwise; those of inference mode do not.

    Example:
        >>> import torch
        >>> from fcl_ext._versions import counts_versions
        >>> counts_versions(torch.ones(1)), counts_versions(torch.ones(1, requires_grad=True))
        (True, False)
    """
    return not (tensor.requires_grad or tensor.is_inference())


# Rows of a tensor on the CPU that are compared with what they were.
_WITNESSES = 64


class VersionedCache(Generic[T]):
    """One value per tensor object and key, while torch counts the same version of the tensor.

    Writes that torch does not count (through ``.data`` or a shared numpy array) are noticed on the
    CPU where they change one of 64 rows spread evenly, as those to a whole tensor do.

    Example:
        >>> import torch
        >>> from fcl_ext._versions import VersionedCache
        >>> cache, tensor = VersionedCache(), torch.ones(2)
        >>> cache.keep(tensor, "sum", 2.0)
        >>> cache.find(tensor, "sum")
        2.0
        >>> cache.find(tensor.add_(1), "sum") is None
        True
    """

    def __init__(self) -> None:
        # (id of the tensor, key) -> its version, some of its rows, value
        self._kept: dict[tuple[int, Hashable], tuple[int, Tensor | None, T]] = {}
        # Those whose tensor takes its value along when it goes away.
        self._watched: set[tuple[int, Hashable]] = set()

    def find(self, tensor: Tensor, key: Hashable) -> T | None:
        """The value of the tensor as it is now; that of an earlier version is forgotten."""
        place = id(tensor), key
        if place not in self._kept:
            return None
        version, rows, value = self._kept[place]
        if version == tensor._version and (rows is None or torch.equal(rows, _witnesses(tensor))):
            return value
        del self._kept[place]
        return None

    def keep(self, tensor: Tensor, key: Hashable, value: T) -> None:
        """Keep a value, of a tensor that `counts_versions`, in place of an earlier one."""
        place = id(tensor), key
        # On a GPU, comparing would wait for it.
        rows = _witnesses(tensor).clone() if tensor.device.type == "cpu" and tensor.dim() else None
        self._kept[place] = (tensor._version, rows, value)
        if place not in self._watched:
            self._watched.add(place)
            weakref.finalize(tensor, self._forget, place).atexit = False

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[T]:
        return (value for *_, value in self._kept.values())

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()

    def _forget(self, place: tuple[int, Hashable]) -> None:
        self._kept.pop(place, None)
        self._watched.discard(place)


def _witnesses(tensor: Tensor) -> Tensor:
    return tensor.detach()[:: max(1, len(tensor) // _WITNESSES)]
