# SPDX-License-Identifier: Apache-2.0
"""What was computed from frozen tensors, kept until they change or go away."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")


def can_watch(tensor: Tensor) -> bool:
    """Whether changes of a tensor can be noticed: frozen, its numbers in memory of the CPU.

    Those of inference mode count no versions. On a GPU, comparing numbers would wait for it. Fake
    tensors and others that handle torch's operations themselves may have no numbers, and inside
    ``torch.func`` and modes such as ``FakeTensorMode`` results may be no plain tensors to keep.

    Example:
        >>> import torch
        >>> from fcl_ext._versions import can_watch
        >>> can_watch(torch.ones(1)), can_watch(torch.ones(1, requires_grad=True))
        (True, False)
    """
    return not (
        tensor.requires_grad
        or not tensor.is_cpu
        or tensor.layout is not torch.strided
        or tensor.is_inference()
        or type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack()
    )


# Numbers of a tensor that are compared with what they were. More would cost more than what is kept
# saves on two hundred classes.
_WITNESSES = 64


@dataclass(frozen=True, slots=True)
class _State:
    """A tensor as it was: what torch knows of it, and some of its numbers."""

    facts: tuple[object, ...]
    places: Tensor
    numbers: Tensor

    @classmethod
    def of(cls, tensor: Tensor) -> _State:
        places = _spread(tensor)
        return cls(_facts(tensor), places, tensor.take(places))

    def is_of(self, tensor: Tensor) -> bool:
        if self.facts != _facts(tensor):
            return False
        now = tensor.take(self.places)
        # By their bits NaN is the same as itself; rarely needed, as each call of torch costs.
        return torch.equal(self.numbers, now) or torch.equal(
            self.numbers.view(torch.uint8), now.view(torch.uint8)
        )


def _facts(tensor: Tensor) -> tuple[object, ...]:
    # Torch counts no version where `.data` is set to another tensor: its memory tells.
    return tensor._version, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _spread(tensor: Tensor) -> Tensor:
    """Places of 64 numbers in as many rows and columns as may be, or of all where fewer are."""
    count = min(_WITNESSES, tensor.numel())
    columns = tensor.shape[-1] if tensor.dim() else 1
    rows = tensor.numel() // max(columns, 1)
    # Without a common factor all columns come before one comes again: if all witnesses stood in a
    # column of zeros, nothing could be told. By the golden ratio they lie far apart.
    step = max(1, round(0.618 * columns))
    while math.gcd(step, columns) > 1:
        step -= 1
    index = np.arange(count)
    return torch.from_numpy(index * rows // count * columns + index * step % columns)


class VersionedCache(Generic[T]):
    """Values per tensor object and key, as long as the tensor seems to be what it was.

    It is not where torch counts another version of it, or where its memory, dtype, shape, strides
    or one of 64 numbers spread over rows and columns are others. So writes that torch does not
    count (through ``.data`` or a shared numpy array, by optimizers with ``fused=True``) are noticed
    where they change one of these, as those to a whole tensor do.

    Several threads may use it. A tensor of which something is kept has a weak reference.

    Example:
        >>> import torch
        >>> from fcl_ext._versions import VersionedCache
        >>> cache, tensor = VersionedCache(), torch.ones(2)
        >>> cache.keep(tensor, "sum", lambda: tensor.sum().item())
        2.0
        >>> cache.find(tensor, "sum")
        2.0
        >>> cache.find(tensor.add_(1), "sum") is None
        True
    """

    def __init__(self) -> None:
        # By id of the tensor, which takes its values along when it goes away. Threads may come in
        # between any two calls, so none relies on what an earlier one found.
        self._kept: dict[int, tuple[weakref.ref[Tensor], dict[Hashable, tuple[_State, T]]]] = {}

    def find(self, tensor: Tensor, key: Hashable) -> T | None:
        """The value of the tensor as it is now; all of an earlier state are forgotten."""
        kept = self._kept.get(id(tensor))
        found = kept and kept[1].get(key)
        if not found:
            return None
        state, value = found
        if state.is_of(tensor):
            return value
        self.forget(tensor)
        return None

    def keep(self, tensor: Tensor, key: Hashable, compute: Callable[[], T]) -> T:
        """Compute and keep a value of a tensor that one `can_watch`, in place of an earlier one."""
        # First: what is written while the value is computed must show as a change.
        state = _State.of(tensor)
        value = compute()
        place = id(tensor)
        kept = self._kept.get(place)
        if kept is None:
            gone = weakref.ref(tensor, lambda _: self._forget(place))
            kept = self._kept.setdefault(place, (gone, {}))
        kept[1][key] = state, value
        return value

    def forget(self, tensor: Tensor) -> None:
        """Forget all values of a tensor."""
        self._forget(id(tensor))

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[T]:
        for _, values in list(self._kept.values()):
            for _, value in list(values.values()):
                yield value

    def _forget(self, place: int) -> None:
        self._kept.pop(place, None)
