# SPDX-License-Identifier: Apache-2.0
"""A trained model as a folder: what ``fcl train`` writes and ``fcl embed`` reads.

``model.safetensors`` holds the weights, ``model.json`` what must be known to use them. Beside them
may stand the model's own classifier: ``classifier.npy`` and ``classes.txt``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from fclearn._files import reason, replacing
from fclearn._lines import is_line
from fclearn._schema import build
from fclearn.encoders import build_encoder
from fclearn.features import Fingerprint

__all__ = [
    "CARD",
    "CLASSES",
    "CLASSIFIER",
    "ModelCard",
    "check_encoder",
    "load_model",
    "read_card",
    "save_classifier",
    "save_model",
]

_WEIGHTS = "model.safetensors"
#: What must be known to use the weights; written last.
CARD = "model.json"
#: Rows of the model's own classifier, and the class name of each: what some methods want of an old
#: model.
CLASSIFIER, CLASSES = "classifier.npy", "classes.txt"
_VERSION = 1


@dataclass(frozen=True)
class ModelCard:
    """What must be known to use a model's weights.

    Attributes:
        encoder: Name for `fclearn.build_encoder`.
        dim: Embedding dim.
        channels: Of the images.
        size: Side of the images in pixels.
        grey: Whether the images are grey.
        fingerprint: Of the features it makes: for `fclearn.embed`.
        weights: Hash of ``model.safetensors``.
        version: Of this format.
        short_side: What the short side of image files is scaled to before a square of ``size`` is
            cut out; None: to ``size``.
    """

    encoder: str
    dim: int
    channels: int
    size: int
    grey: bool
    fingerprint: Fingerprint
    weights: str
    version: int = _VERSION
    short_side: int | None = None


def save_model(
    folder: str | os.PathLike[str],
    encoder: nn.Module,
    *,
    name: str,
    dim: int,
    channels: int,
    size: int,
    method: str,
    short_side: int | None = None,
) -> ModelCard:
    """Write weights and card, each whole or not at all; the card, written last, names its weights.

    Args:
        folder: Made if needed.
        encoder: From `fclearn.build_encoder`, or with the same weights by name and shape, as
            `load_model` makes the one of this name and fills it. Takes images
            ``(B, channels, size, size)``, float32 in [0, 1], to embeddings ``(B, dim)``.
        name: The encoder's name there.
        dim: Embedding dim.
        channels: Of its images: 1 (grey) or 3 (RGB).
        size: Side of its images in pixels.
        method: How it was trained, for the fingerprint.
        short_side: What the short side of image files is scaled to before that; None: to ``size``.

    Returns:
        The card, as written.

    Raises:
        OSError: The folder cannot be written.
        ValueError: An encoder that `load_model` could not read: its weights are not those of the
            named one. Nothing is written.
        ModuleNotFoundError: A ``timm:`` encoder without timm.

    Example:
        >>> encoder = build_encoder("tiny-cnn", dim=8)
        >>> card = save_model("runs/mine", encoder, name="tiny-cnn", dim=8, channels=1, size=32,
        ...                   method="my training")
        >>> card.fingerprint.preprocessing
        'grey 32 px in [0, 1]'
    """
    check_encoder(encoder, name=name, dim=dim, channels=channels)
    content = save(
        {key: value.detach().cpu().contiguous() for key, value in encoder.state_dict().items()}
    )
    weights = _hash(content)
    grey = channels == 1
    scaled = "" if short_side is None else f" of a short side of {short_side}"
    fingerprint = Fingerprint(
        model=f"{name} {method} {weights[:12]}",
        dim=dim,
        preprocessing=f"{'grey' if grey else 'rgb'} {size} px{scaled} in [0, 1]",
    )
    card = ModelCard(name, dim, channels, size, grey, fingerprint, weights, short_side=short_side)
    with replacing(Path(folder) / _WEIGHTS) as temporary:
        temporary.write_bytes(content)
    with replacing(Path(folder) / CARD) as temporary:
        temporary.write_text(json.dumps(asdict(card), indent=2) + "\n", encoding="utf-8")
    return card


def save_classifier(
    folder: str | os.PathLike[str], rows: Tensor, class_names: Sequence[str]
) -> None:
    """Write the model's own classifier as ``classifier.npy`` and ``classes.txt``.

    Nothing is written where a class name cannot be a line of its own.

    Args:
        folder: Made if needed.
        rows: Shape ``(C, D)``, floating.
        class_names: One per row.

    Raises:
        OSError: The folder cannot be written.

    Example:
        >>> import torch
        >>> save_classifier("runs/mine", torch.eye(2), ["cat", "dog"])
        >>> np.load("runs/mine/classifier.npy").shape
        (2, 2)
    """
    if not all(map(is_line, class_names)):
        return
    with replacing(Path(folder) / CLASSIFIER) as temporary, temporary.open("wb") as file:
        np.save(file, rows.detach().cpu().numpy())
    with replacing(Path(folder) / CLASSES) as temporary:
        temporary.write_text("\n".join(class_names) + "\n", encoding="utf-8")


def check_encoder(encoder: nn.Module, *, name: str, dim: int, channels: int) -> None:
    """Refuse an encoder that `load_model` could not read, as `save_model` does: before a training.

    Args:
        encoder: To be saved.
        name: For `fclearn.build_encoder`.
        dim: Embedding dim.
        channels: Of its images.

    Raises:
        ValueError: Its weights are not those of the named one, by name and shape.
        ModuleNotFoundError: A ``timm:`` encoder without timm.

    Example:
        >>> check_encoder(build_encoder("tiny-cnn", dim=8), name="tiny-cnn", dim=8, channels=1)
    """
    found, wanted = _shapes(encoder), _named_shapes(name, dim, channels)
    if found == wanted:
        return
    first = min(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
    raise ValueError(
        f"encoder: expected the weights of build_encoder({name!r}, dim={dim}, "
        f"channels={channels}), which load_model makes of the folder, got {first!r} of "
        f"{found.get(first, 'nothing')} where that has {wanted.get(first, 'nothing')}; keep an "
        "encoder of your own with torch.save, and what it embeds in a FeatureStore"
    )


def load_model(folder: str | os.PathLike[str]) -> tuple[nn.Module, ModelCard]:
    """Read a model that ``fcl train`` or `save_model` wrote; nothing is unpickled.

    Args:
        folder: Of the model.

    Returns:
        The encoder, on the CPU and in evaluation mode, from images ``(B, channels, size, size)``,
        float32 in [0, 1], to embeddings ``(B, dim)``, not normalised; and its card, which says
        these numbers and the fingerprint of its features.

    Raises:
        ValueError: A file missing or damaged, or files of two models.
        ModuleNotFoundError: A ``timm:`` encoder without timm.

    Example:
        >>> import torch
        >>> trained = build_encoder("tiny-cnn", dim=8)
        >>> _ = save_model("runs/mine", trained, name="tiny-cnn", dim=8, channels=1, size=32,
        ...                method="my training")
        >>> encoder, card = load_model("runs/mine")
        >>> images = torch.zeros(2, card.channels, card.size, card.size)
        >>> torch.equal(encoder(images), trained.eval()(images))
        True
    """
    card = read_card(folder)
    weights_path = Path(folder) / _WEIGHTS
    _expect(weights_path)
    content = weights_path.read_bytes()
    if _hash(content) != card.weights:
        raise ValueError(f"{weights_path}: damaged, or not the weights that {CARD} was written for")
    try:
        tensors = load(content)
        # Before an encoder is made of it: a card may name a dim that no memory holds.
        if card.dim not in {tensor.shape[0] for tensor in tensors.values() if tensor.ndim}:
            raise ValueError(f"no layer of {card.dim} outputs, the dim in {CARD}")
        if card.channels not in {tensor.shape[1] for tensor in tensors.values() if tensor.ndim > 1}:
            raise ValueError(f"no layer of {card.channels} inputs, the channels in {CARD}")
        encoder = build_encoder(card.encoder, dim=card.dim, channels=card.channels)
        encoder.load_state_dict(tensors)
    except (SafetensorError, ValueError, RuntimeError) as error:
        text = f"{weights_path}: not weights of {card.encoder}: {reason(error)}"
        raise ValueError(text) from error
    return encoder.eval(), card


def read_card(folder: str | os.PathLike[str]) -> ModelCard:
    """Read ``model.json`` alone.

    Args:
        folder: Of the model.

    Raises:
        ValueError: It is missing or damaged.

    Example:
        >>> _ = save_model("runs/mine", build_encoder("tiny-cnn", dim=8), name="tiny-cnn", dim=8,
        ...                channels=1, size=32, method="my training")
        >>> read_card("runs/mine").dim
        8
    """
    path = Path(folder) / CARD
    _expect(path)
    try:
        card = build(ModelCard, json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error
    if card.version != _VERSION:
        raise ValueError(f"{path}: format version {card.version}, expected {_VERSION}")
    return card


def _named_shapes(name: str, dim: int, channels: int) -> dict[str, list[int]]:
    """Of the weights of the encoder of this name; the random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        try:
            # Its numbers are not looked at: a large one costs no memory.
            with torch.device("meta"):
                return _shapes(build_encoder(name, dim=dim, channels=channels))
        except (RuntimeError, TypeError):
            # A constructor that asks a tensor for its values, as some of timm do: Tensor.item, or
            # as an array of NumPy, which is a TypeError.
            return _shapes(build_encoder(name, dim=dim, channels=channels))


def _shapes(encoder: nn.Module) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in encoder.state_dict().items()}


def _expect(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path}: expected a model written by fcl train, found nothing")


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
