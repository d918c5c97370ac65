# SPDX-License-Identifier: Apache-2.0
"""The state of a training on disk: whole or absent, checked when read, never unpickled."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypedDict, cast

import torch
from torch import Tensor

from fclearn._files import replacing
from fclearn._losses_key import LossesKey, changed_losses
from fclearn.datasets import LabelledSet
from fclearn.wording import some

_ZIP = b"PK\x03\x04"


class Checkpoint(TypedDict):
    """All that a training needs to go on as if it had never stopped.

    Attributes:
        config: Hyper-parameters by name.
        data: Fingerprint of the training images.
        terms: Result of `losses_key`.
        modules: State of encoder and loss terms.
        optimizer: State of the optimizer.
        schedule: State of the learning rate's schedule.
        generator: State of the random source of order and augmentation.
        epoch: Whole epochs done.
        history: One row per epoch.
    """

    config: dict[str, object]
    data: str
    terms: LossesKey
    modules: dict[str, Tensor]
    optimizer: dict[str, object]
    schedule: dict[str, object]
    generator: Tensor
    epoch: int
    history: list[dict[str, float]]


_TYPES = {
    "config": dict,
    "data": str,
    "terms": dict,
    "modules": dict,
    "optimizer": dict,
    "schedule": dict,
    "generator": Tensor,
    "epoch": int,
    "history": list,
}


_LONGEST_VALUE = 60  # in characters


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
        with path.open("rb") as file:
            # What does not begin so, torch reads as its older format, in which a damaged length
            # takes as much memory as it says.
            if file.read(len(_ZIP)) != _ZIP:
                raise ValueError("not a zip file")
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
        terms: Result of `losses_key`.
    """

    config: dict[str, object]
    data: str
    terms: LossesKey


def refuse_other_run(path: Path, before: RunKey, now: RunKey) -> None:
    """Refuse the checkpoint of another run.

    Raises:
        ValueError: Says what differs, and how where both values are short.
    """
    was: dict[str, object] = {**before.config, "images": before.data}
    given: dict[str, object] = {**now.config, "images": now.data}
    changed = sorted(
        name for name in {*was, *given} if was.get(name, "absent") != given.get(name, "absent")
    )
    losses = changed_losses(before.terms, now.terms)
    texts = [_difference(name, was, given) for name in changed]
    if losses:
        # Every tensor of another old model is another.
        texts.append(some(losses, lambda name: _difference(name, before.terms, now.terms)))
    if texts:
        again = " (losses that were trained on are to be made anew)" if losses else ""
        raise ValueError(
            f"{path}: made with another configuration: {', '.join(texts)} differ; "
            f"use another output folder or remove it{again}"
        )


def _difference(name: str, before: Mapping[str, object], now: Mapping[str, object]) -> str:
    values = before.get(name, "absent"), now.get(name, "absent")
    # Of a tensor there are a few numbers, which tell nobody anything.
    short = all(not isinstance(one, list) and len(str(one)) <= _LONGEST_VALUE for one in values)
    return f"{name} ({values[0]}, now {values[1]})" if short else name


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
