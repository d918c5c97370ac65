# SPDX-License-Identifier: Apache-2.0
"""What made a set of features, so that features of two models are never mixed by accident."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from fclearn.wording import some

#: How rows are compared; larger is nearer. Every reader and writer of features uses these names.
METRICS = ("cosine", "ip", "l2")


@dataclass(frozen=True)
class Fingerprint:
    """Model, width and treatment of stored features.

    Attributes:
        model: Name of the model that made the features, with its version.
        dim: Numbers per row, at least 1.
        norm: ``"l2"`` if rows have unit length, else ``"none"``; stores check it when they are
            written.
        metric: How rows are compared: ``"cosine"``, ``"ip"`` (inner product) or ``"l2"`` (minus the
            squared distance).
        preprocessing: What was done to the inputs, in words or as a hash.

    Raises:
        TypeError: A field of another type.
        ValueError: A width below 1, a norm that is neither ``"l2"`` nor ``"none"``, a metric of
            another name.

    Example:
        >>> old = Fingerprint("resnet18-v1", 128, norm="l2")
        >>> old.check_same(Fingerprint("resnet18-v2", 128, norm="l2"), "the gallery")
        Traceback (most recent call last):
        ...
        ValueError: the gallery: refusing to mix features: model 'resnet18-v1' and 'resnet18-v2'
    """

    model: str
    dim: int
    norm: str = "l2"
    metric: str = "cosine"
    preprocessing: str = ""

    def __post_init__(self) -> None:
        """Check types and ranges."""
        for field in ("model", "norm", "metric", "preprocessing"):
            value = getattr(self, field)
            if not isinstance(value, str):
                raise TypeError(f"fingerprint {field}: expected text, got {value!r}")
        if not isinstance(self.dim, int) or isinstance(self.dim, bool):
            raise TypeError(f"fingerprint dim: expected an integer, got {self.dim!r}")
        if self.dim < 1:
            raise ValueError(f"fingerprint dim: expected at least 1, got {self.dim}")
        if self.norm not in {"l2", "none"}:
            raise ValueError(f"fingerprint norm: expected 'l2' or 'none', got {self.norm!r}")
        if self.metric not in METRICS:
            raise ValueError(
                f"fingerprint metric: expected one of {', '.join(METRICS)}, got {self.metric!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Fingerprint:
        """The fingerprint that `to_dict` described.

        Args:
            values: Every field, and nothing else.

        Raises:
            TypeError: Not a mapping, or a field of another type.
            ValueError: Missing or unknown fields, or values out of range.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"fingerprint: expected a mapping, got {type(values).__name__}")
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in values]
        unknown = sorted(str(key) for key in values if key not in names)
        if missing or unknown:
            wrong = [f"missing {', '.join(missing)}"] if missing else []
            wrong += [f"unknown {some(unknown)}"] if unknown else []
            raise ValueError(f"fingerprint: expected {', '.join(names)}; {'; '.join(wrong)}")
        return cls(**values)

    def check_same(self, other: Fingerprint, context: str) -> None:
        """Refuse features that another model, or another treatment, made.

        Args:
            other: The fingerprint to compare with.
            context: What is being done, to start the message.

        Raises:
            ValueError: The fingerprints differ; the message names each field that does.
        """
        mine, theirs = self.to_dict(), other.to_dict()
        different = [
            f"{key} {mine[key]!r} and {theirs[key]!r}" for key in mine if mine[key] != theirs[key]
        ]
        if different:
            raise ValueError(f"{context}: refusing to mix features: {', '.join(different)}")
