# SPDX-License-Identifier: Apache-2.0
"""Frozen prototypes kept packed between calls, where the user has given memory for it.

A pass over C prototypes first copies each block of them into the order the products read. For the
price of a second copy of the prototypes, that can be done once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fcl_ext import ops
from fcl_ext._versions import VersionedCache, counts_versions

Packed = tuple[Tensor, Tensor] | tuple[None, None]

_NONE: Packed = (None, None)


@dataclass
class _Cache:
    max_bytes: int = 0
    kept: VersionedCache[tuple[Tensor, Tensor]] = field(default_factory=VersionedCache)


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

    What is kept belongs to a tensor object and to torch's count of its versions: operations in
    place, optimizers' included, are noticed, and its memory is released when the tensor goes away.
    Writes torch does not count (through ``.data`` or a shared numpy array) are noticed only where
    they change one of some 64 numbers spread evenly, as those to all prototypes do: call this
    function again after writing some of them that way, which forgets everything kept.

    Args:
        max_bytes: For all prototypes together; 0, as at the start, keeps none.

    Raises:
        ValueError: A negative size.

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
    _cache.kept.clear()


def packed_prototypes(prototypes: Tensor, normalize: bool) -> Packed:
    """``ops.pack_prototypes`` of them, kept; or ``(None, None)`` where they are not to be kept."""
    if not _cache.max_bytes or torch.compiler.is_compiling():
        return _NONE
    is_packable = (
        prototypes.dtype in (torch.float32, torch.float64)
        and prototypes.device.type == "cpu"
        and prototypes.dim() == 2
        and prototypes.numel() > 0
    )
    frozen = counts_versions(prototypes)
    if not (frozen and is_packable) or torch.is_autocast_enabled("cpu"):
        return _NONE
    found = _cache.kept.find(prototypes, normalize)
    if found is not None:
        return found
    kept_bytes = sum(part.numel() * part.element_size() for both in _cache.kept for part in both)
    if kept_bytes + prototypes.numel() * prototypes.element_size() > _cache.max_bytes:
        return _NONE
    packed = ops.pack_prototypes(prototypes, normalize)
    _cache.kept.keep(prototypes, normalize, packed)
    return packed
