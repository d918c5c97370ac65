# SPDX-License-Identifier: Apache-2.0
"""What was computed from frozen tensors, kept until they change or go away."""

from __future__ import annotations

import math
import weakref
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

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


# Numbers of a tensor on the CPU that are compared with what they were: at least so many. More
# would cost more than what is kept saves on two hundred classes.
_WITNESSES = 64


@dataclass(frozen=True, slots=True)
class _State:
    """A tensor as it was: what torch counts, and some of its numbers."""

    version: int
    shape: torch.Size
    dtype: torch.dtype
    places: Tensor | None
    numbers: Tensor | None

    @classmethod
    def of(cls, tensor: Tensor) -> _State:
        places = numbers = None
        # On a GPU, comparing would wait for it; fake tensors have no numbers.
        if tensor.device.type == "cpu" and type(tensor) in (Tensor, Parameter):
            places = _spread(tensor)
            numbers = tensor.detach().take(places)
        return cls(tensor._version, tensor.shape, tensor.dtype, places, numbers)

    def is_of(self, tensor: Tensor) -> bool:
        if self.version != tensor._version:
            return False
        if self.places is None or self.numbers is None:
            return True
        if self.shape != tensor.shape or self.dtype != tensor.dtype:  # of another `.data`
            return False
        now = tensor.take(self.places)
        # By their bits NaN is the same as itself; rarely needed, as each call of torch costs.
        return torch.equal(self.numbers, now) or torch.equal(
            self.numbers.view(torch.uint8), now.view(torch.uint8)
        )


class VersionedCache(Generic[T]):
    """One value per tensor object and key, while torch counts the same version of the tensor.

    Writes that torch does not count (through ``.data`` or a shared numpy array) are noticed on the
    CPU where they change one of some 64 numbers spread evenly over rows and columns, as those to a
    whole tensor do.

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
        # By id of the tensor and key.
        self._kept: dict[tuple[int, Hashable], tuple[_State, T]] = {}
        # Those whose tensor takes its value along when it goes away.
        self._watched: set[tuple[int, Hashable]] = set()

    def find(self, tensor: Tensor, key: Hashable) -> T | None:
        """The value of the tensor as it is now; that of an earlier version is forgotten."""
        place = id(tensor), key
        if place not in self._kept:
            return None
        state, value = self._kept[place]
        if state.is_of(tensor):
            return value
        del self._kept[place]
        return None

    def keep(self, tensor: Tensor, key: Hashable, value: T) -> None:
        """Keep a value, of a tensor that `counts_versions`, in place of an earlier one."""
        place = id(tensor), key
        self._kept[place] = _State.of(tensor), value
        if place not in self._watched:
            self._watched.add(place)
            weakref.finalize(tensor, self._forget, place).atexit = False

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[T]:
        return (value for _, value in self._kept.values())

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()

    def _forget(self, place: tuple[int, Hashable]) -> None:
        self._kept.pop(place, None)
        self._watched.discard(place)


def _spread(tensor: Tensor) -> Tensor:
    """Places of 64 to 127 numbers, or of all where there are fewer, in row-major order."""
    step = max(1, tensor.numel() // _WITNESSES)
    # A step that shares a factor with the number of columns would miss some of them, or all but
    # one: of a column of zeros nothing can be told.
    while tensor.dim() and math.gcd(step, tensor.shape[-1]) > 1:
        step -= 1
    return torch.arange(0, tensor.numel(), step)
