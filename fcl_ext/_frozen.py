# SPDX-License-Identifier: Apache-2.0
"""What is kept of frozen prototypes between calls: means, and packed copies.

The mean that label smoothing needs reads all prototypes, which every step of a training would
repeat. A pass over C prototypes first copies each block of them into the order the products read;
for the price of a second copy of the prototypes, that can be done once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from fcl_ext import ops
from fcl_ext._versions import VersionedCache, can_watch

Packed = tuple[Tensor, Tensor] | tuple[None, None]

_NONE: Packed = (None, None)


@dataclass
class _Cache:
    max_bytes: int = 0
    packed: VersionedCache[tuple[Tensor, Tensor]] = field(default_factory=VersionedCache)
    means: VersionedCache[Tensor] = field(default_factory=VersionedCache)


_cache = _Cache()


def set_packing_cache(max_bytes: int) -> None:
    """Keep frozen prototypes packed between calls of the losses, in up to so much memory.

    On a CPU, each call of :func:`compat_loss`, :func:`compat_kl`, :func:`compat_supcon` or
    :func:`softmax_readout` packs the prototypes anew. With memory for a second copy of them it is
    done once; results are the same. That takes some 10 % off batches below 32 rows over thousands
    of classes; for larger ones it is worth next to nothing, and over a few hundred classes to see
    that they are the same costs what it saves. Prototypes that require a gradient, have another
    dtype than float32 or float64, are on another device, or do not fit beside those already kept,
    are packed as ever.

    Whatever the size, every call forgets all that was kept, also the means of frozen prototypes on
    the CPU that :func:`compat_loss` keeps for label smoothing.

    Args:
        max_bytes: For all packed prototypes together; 0, as at the start, keeps none.

    Raises:
        ValueError: A negative size.

    Note:
        What is kept belongs to a tensor object, and is released with it. It is not used again once
        torch counts another version of the tensor, as operations in place make, once its memory,
        dtype, shape or strides are others, or once a call has seen it require a gradient. Torch
        counts no writes through ``.data`` or a shared numpy array, nor those of optimizers with
        ``fused=True``: they are noticed where they change one of 64 numbers spread over rows and
        columns, as those to all prototypes do. After writing some prototypes in such a way, call
        this function again.

        Of a tensor with a weak reference, as each has of which something is kept,
        ``torch.utils.swap_tensors`` takes no contents (nor do conversions of modules under
        ``torch.__future__.set_swap_module_params_on_conversion``): call this function first.

    Example:
        >>> import torch, fcl_ext
        >>> fcl_ext.set_packing_cache(1 << 30)
        >>> x, w = torch.randn(4, 8), torch.randn(100, 8)
        >>> fcl_ext.compat_loss(x, w, torch.arange(4)).shape
        torch.Size([])
        >>> fcl_ext.set_packing_cache(0)
    """
    if max_bytes < 0:
        raise ValueError(f"set_packing_cache: expected max_bytes >= 0, got {max_bytes}")
    _cache.max_bytes = max_bytes
    _cache.packed.clear()
    _cache.means.clear()


def packed_prototypes(prototypes: Tensor, normalize: bool) -> Packed:
    """``ops.pack_prototypes`` of them, kept; or ``(None, None)`` where they are not to be kept."""
    # In training, they are looked at in any case: what was kept while they were frozen must go.
    if not (_cache.max_bytes or prototypes.requires_grad) or torch.compiler.is_compiling():
        return _NONE
    is_packable = (
        _watches(prototypes)
        and prototypes.dtype in (torch.float32, torch.float64)
        and prototypes.dim() == 2
        and prototypes.numel() > 0
    )
    if not is_packable or torch.is_autocast_enabled("cpu"):
        return _NONE
    found = _cache.packed.find(prototypes, normalize)
    if found is not None:
        return found
    kept_bytes = sum(part.numel() * part.element_size() for both in _cache.packed for part in both)
    if kept_bytes + prototypes.numel() * prototypes.element_size() > _cache.max_bytes:
        return _NONE
    return _cache.packed.keep(
        prototypes, normalize, lambda: ops.pack_prototypes(prototypes, normalize)
    )


def mean_prototype(prototypes: Tensor, normalize: bool) -> Tensor:
    """Mean of all (unit) prototypes in float64, shape (D,); kept, of frozen ones on the CPU."""
    if torch.compiler.is_compiling() or not _watches(prototypes):
        return _compute_mean(prototypes, normalize)
    found = _cache.means.find(prototypes, normalize)
    if found is not None:
        return found
    return _cache.means.keep(prototypes, normalize, lambda: _compute_mean(prototypes, normalize))


def _watches(prototypes: Tensor) -> bool:
    """Whether something may be kept of them; if not, what was kept goes."""
    if can_watch(prototypes):
        return True
    # An optimizer with fused=True, whose steps torch does not count, may change them from now on.
    _cache.means.forget(prototypes)
    _cache.packed.forget(prototypes)
    return False


@torch.no_grad()
def _compute_mean(prototypes: Tensor, normalize: bool) -> Tensor:
    total = prototypes.new_zeros(prototypes.shape[1], dtype=torch.float64)
    for part in prototypes.split(1 << 16):
        exact = part.double()
        total += (F.normalize(exact, dim=1) if normalize else exact).sum(0)
    return total / len(prototypes)
