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

from fclearn._files import reason
from fclearn.losses import LossTerm

LossesKey = dict[str, str | list[float]]

# Frozen floating tensors count as the same up to this distance, relative to their norm. Old
# features that another machine or number of threads computes differ by some 1e-7, and what is
# fitted to them (heads, refined prototypes) by 1.4 times as much; one setting of a method by 1e-4
# and up. Integers are compared exactly: they say which images or classes, not how much.
_TOLERANCE = 1e-5
# Infinities, and the most negative number of a dtype, are marks (a mask) more than amounts, and
# beside them no other number would count: what is as large as this is compared exactly, by itself.
_MARK = 1e30
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
        every parameter that is trained; of one that is not, of every buffer and of what a method
        ``frozen_tensors`` of a module returns by name, the shape and a few numbers, or if it is not
        floating a checksum. What an ``extra_repr`` says is not in it.

    Raises:
        ValueError: A tensor without numbers, such as a lazy parameter, or of a kind that cannot be
            read; it is named.

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
            # Without its module: that is __main__ where a script is run, another where it is
            # imported.
            key[place] = type(module).__qualname__
            key.update({f"{place}.{name}": text for name, text in _settings(module)})
            for name, tensor in getattr(module, "frozen_tensors", dict)().items():
                key.update(_facts(f"{place}.{name}", tensor))
        for name, parameter in term.module.named_parameters(prefix=f"{path}.module"):
            key.update(_facts(name, parameter))
        for name, buffer in term.module.named_buffers(prefix=f"{path}.module"):
            key.update(_facts(name, buffer))
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
    exact = 1 + _NUM_PATTERNS  # from here on: marks and shape
    norm, *shares = np.subtract(before[:exact], now[:exact]).tolist()
    distance = math.sqrt(sum(share * share for share in shares) / len(shares))
    near = bool(max(abs(norm), distance) <= _TOLERANCE * max(before[0], now[0]))
    return near and before[exact:] == now[exact:]


def _facts(name: str, tensor: Tensor) -> LossesKey:
    """What is compared of a tensor; of a sparse one, of its indices and values."""
    try:
        if isinstance(tensor, nn.Parameter) and tensor.requires_grad:
            return {name: str(list(tensor.shape))}
        if tensor.layout is torch.strided:
            return {name: _numbers(tensor)}
        entries = tensor.detach().to_sparse_coo().coalesce()
        return {
            name: str(list(tensor.shape)),
            f"{name}.indices": _numbers(entries.indices()),
            f"{name}.values": _numbers(entries.values()),
        }
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{name}: expected a tensor with numbers to compare when a training is resumed, got a "
            f"{type(tensor).__name__} of {tensor.dtype}: {reason(error)}"
        ) from error


def _numbers(tensor: Tensor) -> str | list[float]:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return _sketch(tensor) if tensor.is_floating_point() else _checksum(tensor)


def _checksum(buffer: Tensor) -> str:
    numbers = buffer.detach().cpu().contiguous().numpy()
    return f"{numbers.dtype} {list(numbers.shape)} {zlib.crc32(numbers.data):08x}"


def _sketch(buffer: Tensor) -> list[float]:
    """Norm, sums over the numbers times random signs, checksum of marks, and shape.

    The signs are products of one by row and one by column of the numbers in rows of equal length:
    as good as signs of their own, and quickly drawn.
    """
    squared, marks, sums = 0.0, 0, torch.zeros(_NUM_PATTERNS, dtype=torch.float64)
    random = np.random.default_rng(0)  # the same everywhere, whatever torch was seeded with
    by_column = _signs(random, _ROW)
    for number, block in enumerate(buffer.detach().flatten().split(_BLOCK_ROWS * _ROW)):
        numbers = block.to("cpu", torch.float64)
        amounts = numbers.abs() < _MARK  # false of NaN
        if not amounts.all():
            # One NaN for all, as their bits differ.
            found = numbers.masked_fill(amounts, 0.0).nan_to_num(1.0, math.inf, -math.inf)
            marks = zlib.crc32(found.numpy().data, marks + number)
            numbers = numbers.where(amounts, 0.0)
        squared += float(numbers @ numbers)
        rows = F.pad(numbers, (0, -len(numbers) % _ROW)).view(-1, _ROW)
        sums += (_signs(random, len(rows)) * (rows @ by_column)).sum(0)
    return [math.sqrt(squared), *sums.tolist(), float(marks), *map(float, buffer.shape)]


def _signs(random: np.random.Generator, count: int) -> Tensor:
    drawn = random.integers(0, 2, (count, _NUM_PATTERNS), dtype=np.int8)
    return torch.from_numpy(2.0 * drawn - 1.0)
