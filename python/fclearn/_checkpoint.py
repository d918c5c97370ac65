# SPDX-License-Identifier: Apache-2.0
"""The state of a training on disk: whole or absent, checked when read, never unpickled."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict, cast

import torch
from torch import Tensor

from fclearn._files import replacing
from fclearn.datasets import LabelledSet
from fclearn.losses import LossTerm

# Frozen rows count as the same up to this: a head learned on another machine differs in its last
# bits, other features differ by about 0.5.
_SKETCH_TOLERANCE = 1e-3


class Checkpoint(TypedDict):
    """All that a training needs to go on as if it had never stopped.

    Attributes:
        config: Hyper-parameters by name.
        data: Fingerprint of the training images.
        losses: Fingerprint of the loss terms: a sketch of what is frozen in each, by its text.
        modules: State of encoder and loss terms.
        optimizer: State of the optimizer.
        schedule: State of the learning rate's schedule.
        generator: State of the random source of order and augmentation.
        epoch: Whole epochs done.
        history: One row per epoch.
    """

    config: dict[str, object]
    data: str
    losses: dict[str, list[float]]
    modules: dict[str, Tensor]
    optimizer: dict[str, object]
    schedule: dict[str, object]
    generator: Tensor
    epoch: int
    history: list[dict[str, float]]


_TYPES = {
    "config": dict,
    "data": str,
    "losses": dict,
    "modules": dict,
    "optimizer": dict,
    "schedule": dict,
    "generator": Tensor,
    "epoch": int,
    "history": list,
}


def save_checkpoint(path: Path, state: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all.

    Raises:
        OSError: The folder cannot be made or written.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # What torch says of a full disk is that the position in the file is not the expected.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_checkpoint(path: Path, device: torch.device) -> Checkpoint:
    """Read what `save_checkpoint` wrote.

    Raises:
        ValueError: A file that is not a whole checkpoint, or holds anything but plain data.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a hostile file can fail in many ways inside torch
        raise ValueError(
            f"{path}: not a whole checkpoint of plain data ({type(error).__name__}); "
            "remove it to start afresh"
        ) from error
    wrong = [
        name
        for name, kind in _TYPES.items()
        if not isinstance(state, dict) or not isinstance(state.get(name), kind)
    ]
    if wrong:
        raise ValueError(
            f"{path}: not a checkpoint of this version of fclearn (no valid {wrong[0]!r}); "
            "remove it to start afresh"
        )
    return cast(Checkpoint, state)


class RunKey(NamedTuple):
    """What must be the same for a training to go on.

    Attributes:
        config: Hyper-parameters by name.
        data: Result of `data_key`.
        losses: Result of `losses_key`.
    """

    config: dict[str, object]
    data: str
    losses: dict[str, list[float]]


def refuse_other_run(path: Path, before: RunKey, now: RunKey) -> None:
    """Refuse the checkpoint of another run.

    Raises:
        ValueError: Says what differs.
    """
    was = {**before.config, "images": before.data}
    config = {**now.config, "images": now.data}
    changed = sorted(
        key for key in {*was, *config} if was.get(key, "absent") != config.get(key, "absent")
    )
    if not same_losses(before.losses, now.losses):
        changed.append("losses")
    if changed:
        raise ValueError(
            f"{path}: made with another configuration ({', '.join(changed)} differ); "
            "use another output folder or remove it"
        )


def data_key(dataset: LabelledSet) -> str:
    """Tells one set of training images from another, by ids and labels.

    Example:
        >>> import numpy as np
        >>> from fclearn.datasets import ImageDataset
        >>> images = np.zeros((2, 8, 8), np.uint8)
        >>> data = ImageDataset(images, np.array([0, 1]), ids=["a", "b"], class_names=["x", "y"])
        >>> data_key(data) == data_key(data.subset([1, 0]))
        False
    """
    checksum = zlib.crc32("\n".join(dataset.ids).encode())
    return f"{len(dataset)} images, {zlib.crc32(dataset.labels.tobytes(), checksum):08x}"


def losses_key(terms: Sequence[LossTerm]) -> dict[str, list[float]]:
    """Tells one list of loss terms from another, by weights, settings and what is frozen in them.

    Frozen rows are either overwritten by those of a checkpoint, such as prototypes, or not in it,
    such as old features. Were they not compared, a run would go on with mixed ones unnoticed.

    Returns:
        Number, weight and text of each term, to two numbers per buffer: its norm, and the cosine
        between it and a fixed pattern.

    Example:
        >>> from fclearn.losses import L2CompatLoss
        >>> one = losses_key([LossTerm("compat", 1.0, L2CompatLoss(torch.eye(3)))])
        >>> two = losses_key([LossTerm("compat", 1.0, L2CompatLoss(torch.eye(3).flip(0)))])
        >>> same_losses(one, one), same_losses(one, two)
        (True, False)
    """
    return {
        f"{number}: {term.name} {term.weight:g} {term.module!r}": [
            value for buffer in term.module.buffers() for value in _sketch(buffer)
        ]
        for number, term in enumerate(terms)
    }


def same_losses(before: dict[str, list[float]], now: dict[str, list[float]]) -> bool:
    """Whether two results of `losses_key` are of the same terms."""
    return before.keys() == now.keys() and all(
        len(before[key]) == len(now[key])
        and all(
            math.isclose(left, right, rel_tol=_SKETCH_TOLERANCE, abs_tol=_SKETCH_TOLERANCE)
            for left, right in zip(before[key], now[key], strict=True)
        )
        for key in now
    )


def _sketch(buffer: Tensor) -> tuple[float, float]:
    if buffer.numel() == 0:
        return 0.0, 0.0
    rows = buffer.detach().reshape(len(buffer) if buffer.ndim else 1, -1).to(torch.float32)
    down, across = (torch.arange(1, n + 1, device=rows.device).cos() for n in rows.shape)
    norm = float(rows.norm())
    # No sum over a pattern of the buffer's own size: that would be as large as the buffer.
    return norm, float(down @ (rows @ across)) / norm if norm else 0.0
