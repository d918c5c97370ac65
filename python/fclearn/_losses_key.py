# SPDX-License-Identifier: Apache-2.0
"""What tells one list of loss terms from another: weights, settings, and what is frozen in them."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fclearn.losses import LossTerm

LossesKey = dict[str, str | list[float]]

# Frozen floating tensors count as the same up to this distance, relative to their norm. Old
# features that another machine or number of threads computes differ by some 1e-7, and what is
# fitted to them (heads, refined prototypes) by 1.4 times as much; one setting of a method by 1e-4
# and up. Integers are compared exactly: they say which images or classes, not how much.
_TOLERANCE = 1e-5
# Of the random patterns a tensor is multiplied with: the mean square of so many differences is the
# squared distance of two tensors, within a factor of two or three.
_NUM_PATTERNS = 8
_ROW, _BLOCK_ROWS = 512, 512


def losses_key(terms: Sequence[LossTerm]) -> LossesKey:
    """Tells one list of loss terms from another.

    Frozen tensors are either overwritten by those of a checkpoint, such as prototypes, or not in
    it, such as old features. Were they not compared, a run would go on with mixed ones unnoticed.

    Returns:
        By name: the class of every module; the text of every setting, that is of every public
        attribute of a module that is a plain value, NumPy's too, or a tuple of such; the shape of
        every parameter; of every buffer the shape and a few numbers, or if it is not floating a
        checksum. What an ``extra_repr`` says is not in it.

    Example:
        >>> from fclearn.losses import PseudoClassifierLoss
        >>> one, two = (
        ...     losses_key([LossTerm("compat", 1.0, PseudoClassifierLoss(torch.eye(3), scale=s))])
        ...     for s in (10.0, 1.0)
        ... )
        >>> one["losses[0].module.scale"]
        '10.0'
        >>> changed_losses(one, one), changed_losses(one, two)
        ([], ['losses[0].module.scale'])
    """
    key: LossesKey = {"losses": str(len(terms))}
    for number, term in enumerate(terms):
        path = f"losses[{number}]"
        key[f"{path}.name"] = term.name
        key[f"{path}.weight"] = json.dumps(float(term.weight))
        for place, module in term.module.named_modules(prefix=f"{path}.module"):
            key[place] = f"{type(module).__module__}.{type(module).__qualname__}"
            key.update({f"{place}.{name}": text for name, text in _settings(module)})
        for name, parameter in term.module.named_parameters(prefix=f"{path}.module"):
            key[name] = str(list(parameter.shape))
        for name, buffer in term.module.named_buffers(prefix=f"{path}.module"):
            key[name] = _sketch(buffer) if buffer.is_floating_point() else _checksum(buffer)
    return key


def changed_losses(before: Mapping[str, object], now: LossesKey) -> list[str]:
    """Names of what differs between two results of `losses_key`, the first from anywhere."""
    changed = {
        name
        for name in {*before, *now}
        if name not in before or name not in now or not _same(before[name], now[name])
    }
    if "losses" in changed:
        return ["losses"]
    # Of a module of another class, what is in it differs anyway.
    return sorted(
        name for name in changed if not any(name.startswith(f"{module}.") for module in changed)
    )


def _settings(module: nn.Module) -> Iterator[tuple[str, str]]:
    for name, value in vars(module).items():
        if name.startswith("_") or name == "training":
            continue
        if _is_plain(value):
            yield name, json.dumps(value, default=_python_number)


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(one) for one in value)
    plain = bool | int | float | str | np.bool_ | np.integer | np.floating
    return value is None or isinstance(value, plain)


def _python_number(value: np.bool_ | np.integer | np.floating) -> bool | int | float:
    if isinstance(value, np.bool_):
        return bool(value)
    return int(value) if isinstance(value, np.integer) else float(value)


def _same(before: object, now: str | list[float]) -> bool:
    if isinstance(now, str) or not isinstance(before, list):
        return before == now
    if len(before) != len(now) or not all(isinstance(value, float) for value in before):
        return False
    shape = 1 + _NUM_PATTERNS
    norm, *shares = np.subtract(before[:shape], now[:shape]).tolist()
    distance = math.sqrt(sum(share * share for share in shares) / len(shares))
    near = bool(max(abs(norm), distance) <= _TOLERANCE * max(before[0], now[0]))
    return near and before[shape:] == now[shape:]


def _checksum(buffer: Tensor) -> str:
    numbers = buffer.detach().cpu().contiguous().numpy()
    return f"{numbers.dtype} {list(numbers.shape)} {zlib.crc32(numbers.data):08x}"


def _sketch(buffer: Tensor) -> list[float]:
    """Norm, sums over the numbers times random signs, and shape.

    The signs are products of one by row and one by column of the numbers in rows of equal length:
    as good as signs of their own, and quickly drawn.
    """
    squared, sums = 0.0, torch.zeros(_NUM_PATTERNS, dtype=torch.float64)
    random = np.random.default_rng(0)  # the same everywhere, whatever torch was seeded with
    by_column = _signs(random, _ROW)
    for block in buffer.detach().flatten().split(_BLOCK_ROWS * _ROW):
        numbers = block.to("cpu", torch.float64)
        if not torch.isfinite(numbers @ numbers):
            # Of infinities no sum would be finite: they count as nothing.
            numbers = numbers.where(numbers.isfinite(), 0.0)
        squared += float(numbers @ numbers)
        rows = F.pad(numbers, (0, -len(numbers) % _ROW)).view(-1, _ROW)
        sums += (_signs(random, len(rows)) * (rows @ by_column)).sum(0)
    return [math.sqrt(squared), *sums.tolist(), *map(float, buffer.shape)]


def _signs(random: np.random.Generator, count: int) -> Tensor:
    drawn = random.integers(0, 2, (count, _NUM_PATTERNS), dtype=np.int8)
    return torch.from_numpy(2.0 * drawn - 1.0)
