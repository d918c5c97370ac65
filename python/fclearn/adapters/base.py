# SPDX-License-Identifier: Apache-2.0
"""What every adapter is: a map between the spaces of two models, fitted on pairs of features."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fclearn._tensor_files import load_tensors, reading, save_tensors
from fclearn.features import FeatureSource, Fingerprint, as_tensor

_FORMAT = "fclearn.Adapter"
_VERSION = 1
_REGISTRY: dict[str, type[Adapter]] = {}
_Self = TypeVar("_Self", bound="Adapter")


class Adapter(ABC):
    """Maps features of one model (*source*) to where another (*target*) would have put them.

    ``new`` queries into the ``old`` space serve an index as it stands; ``old`` rows into the
    ``new`` space migrate it without the images. Both are one class: what was fitted as source and
    target decides, and fingerprints, where given, refuse the wrong use.

    Attributes:
        name: As in tables and files.
        source: Fingerprint of the features it takes, or None.
        target: Fingerprint of the space it maps into, or None.
        direction: ``"new-to-old"`` or ``"old-to-new"``, where whoever fitted it has said so; in
            files.
    """

    name: ClassVar[str] = ""
    needs_labels: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        """Register a class that has a name of its own, so that files can name it."""
        super().__init_subclass__()
        if cls.__dict__.get("name"):
            _REGISTRY[cls.name] = cls

    def __init__(self) -> None:
        """Start without fingerprints, not fitted."""
        self.source: Fingerprint | None = None
        self.target: Fingerprint | None = None
        self.direction = ""
        self._state: dict[str, Tensor] = {}

    def fit(
        self: _Self,
        *,
        source: FeatureSource,
        target: FeatureSource,
        labels: Tensor | None = None,
        source_fingerprint: Fingerprint | None = None,
        target_fingerprint: Fingerprint | None = None,
    ) -> _Self:
        """Learn the map from pairs: row i of both sides is of one item.

        Args:
            source: Features to map, shape ``(N, D_source)``, floating, in any form that
                `fclearn.features.as_features` takes. Rows are scaled to unit length.
            target: What they should become, shape ``(N, D_target)``.
            labels: Class per row, shape ``(N,)``, int64; needed where ``needs_labels``.
            source_fingerprint: Of ``source``; checked by `transform` and kept in files.
            target_fingerprint: Of ``target``.

        Returns:
            The adapter itself.

        Raises:
            TypeError: Features that are not floating.
            ValueError: Another number of rows on either side, none at all, NaN or infinite
                features, labels that are missing or misaligned.
        """
        pairs = _unit(source, "source"), _unit(target, "target")
        if len(pairs[0]) != len(pairs[1]):
            raise ValueError(
                "source, target: expected one row each per item, "
                f"got {len(pairs[0])} and {len(pairs[1])} rows"
            )
        if len(pairs[0]) < 2:
            raise ValueError(f"source: expected at least 2 rows, got {len(pairs[0])}")
        if self.needs_labels and labels is None:
            raise ValueError(f"labels: adapter {self.name!r} needs the class of each row, got None")
        if labels is not None and labels.shape != (len(pairs[0]),):
            raise ValueError(f"labels: expected shape [{len(pairs[0])}], got {list(labels.shape)}")
        self._state = self._fit(*pairs, labels)
        self.source, self.target = source_fingerprint, target_fingerprint
        return self

    def transform(
        self, features: FeatureSource, *, fingerprint: Fingerprint | None = None
    ) -> Tensor:
        """Map features.

        Args:
            features: Shape ``(M, D_source)``, floating.
            fingerprint: Of the features; must be the one fitted on, if both are known.

        Returns:
            Shape ``(M, D_target)``, float32, rows of unit length (zero where the map gives zero).

        Raises:
            RuntimeError: The adapter is not fitted.
            TypeError: Features that are not floating.
            ValueError: Another dim or fingerprint than fitted on, NaN or infinite features.
        """
        if not self._state:
            raise RuntimeError(f"adapter {self.name!r}: call fit() before transform()")
        if fingerprint is not None and self.source is not None:
            self.source.check_same(fingerprint, f"adapter {self.name!r}")
        rows = _unit(features, "features")
        if rows.shape[1] != self.source_dim:
            raise ValueError(
                f"features: expected {self.source_dim} dims as fitted, got {rows.shape[1]}"
            )
        with torch.no_grad():
            return F.normalize(self._transform(rows), dim=1)

    @abstractmethod
    def _fit(self, source: Tensor, target: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """Tensors that `_transform` needs, from unit rows."""

    @abstractmethod
    def _transform(self, rows: Tensor) -> Tensor:
        """Map unit rows; the result need not have unit length."""

    @property
    @abstractmethod
    def source_dim(self) -> int:
        """D_source of a fitted adapter."""

    def affine(self) -> tuple[Tensor, Tensor] | None:
        """Weight ``(D_source, D_target)`` and offset ``(D_target,)`` between the scalings of rows.

        None where the map is not affine.
        """
        return None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, whole or not at all.

        Raises:
            RuntimeError: The adapter is not fitted.
            OSError: The folder cannot be made or written.
        """
        if not self._state:
            raise RuntimeError(f"adapter {self.name!r}: call fit() before save()")
        header: dict[str, object] = {"adapter": self.name, "direction": self.direction}
        for side in ("source", "target"):
            fingerprint: Fingerprint | None = getattr(self, side)
            header[side] = None if fingerprint is None else fingerprint.to_dict()
        save_tensors(path, _FORMAT, _VERSION, header, self._state)


def load_adapter(path: str | os.PathLike[str]) -> Adapter:
    """Read an adapter of any kind that `Adapter.save` wrote; nothing is unpickled.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a whole and valid adapter file.
    """
    with reading(path, "adapter"):
        header, tensors = load_tensors(path, _FORMAT, _VERSION)
        adapter = _REGISTRY[header["adapter"]]()
        adapter._state = tensors
        adapter.direction = str(header.get("direction", ""))
        for side in ("source", "target"):
            if header[side] is not None:
                setattr(adapter, side, Fingerprint.from_dict(header[side]))
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise ValueError("a number that is NaN or infinite")
        adapter._transform(torch.zeros(1, adapter.source_dim))  # shapes fit together
    return adapter


def _unit(features: FeatureSource, name: str) -> Tensor:
    rows = as_tensor(features)
    bad = (~rows.isfinite().all(1)).nonzero()
    if len(bad):
        raise ValueError(f"{name}: row {int(bad[0])} holds a NaN or infinite value")
    return F.normalize(rows, dim=1)
