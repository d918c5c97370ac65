# SPDX-License-Identifier: Apache-2.0
"""What a loss module is called with, what it says of itself, and its place in a training's loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn


class LossModule(nn.Module, ABC):
    """Base of the modules in loss terms.

    Yours need not inherit from it: any module that is called in the same way will do, and may have
    any of these attributes. Public attributes of a module that are numbers, texts, None or tuples
    of them are its settings: a training is not resumed with others, nor with other buffers or
    parameters that are not trained than it had at the start.

    Attributes:
        by_row: Names of tensors or arrays that are looked up by row: as many rows as there are
            training images, which is checked before a training.
        whole_batch: The term compares, picks among or remembers the images of a batch: several
            processes give it the images of all of them, where others get those of their own.
        sees_images: The term is called with the images, as the encoder got them, as a fourth
            argument ``images``, shape ``(B, channels, H, W)``.

    Example:
        >>> class Norm(LossModule):
        ...     def forward(self, embeddings, labels, rows):
        ...         return embeddings.square().sum(1).mean()
        >>> term = LossTerm("compat", 0.1, Norm())
        >>> term.whole_batch, term.sees_images
        (False, False)
    """

    by_row: ClassVar[tuple[str, ...]] = ()
    whole_batch: ClassVar[bool] = False
    sees_images: ClassVar[bool] = False

    @abstractmethod
    def forward(self, embeddings: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            embeddings: Shape ``(B, D)``, floating, not normalised.
            labels: Class of each, shape ``(B,)``, int64.
            rows: Numbers of the images in the training set, shape ``(B,)``, int64. A module that
                looks nothing up by them may have None as its default.
        """


@dataclass(frozen=True)
class LossTerm:
    """One summand of the training loss.

    Attributes:
        name: ``"new"`` for the new model's own classifier, ``"compat"`` for compatibility terms:
            the history adds up terms by this name.
        weight: Factor.
        module: A `LossModule`, or any module that is called as ``module(embeddings, labels,
            rows)``. Its parameters are trained too, and it may be an `EpochHook`.
        labels: Classes of the training images it was made for, shape ``(N,)``, int64: a training on
            others is refused. None: not known. `fclearn.methods.build_method` sets it.

    Raises:
        ValueError: A module that sees images and wants the whole batch.
    """

    name: str
    weight: float
    module: nn.Module
    labels: Tensor | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.sees_images and self.whole_batch:
            raise ValueError(
                f"module: {type(self.module).__name__} sees images and wants the whole batch; "
                "images of other processes cannot be had"
            )

    @property
    def whole_batch(self) -> bool:
        """As `LossModule` has it; False for a module that does not say."""
        return bool(getattr(self.module, "whole_batch", False))

    @property
    def sees_images(self) -> bool:
        """As `LossModule` has it; False for a module that does not say."""
        return bool(getattr(self.module, "sees_images", False))

    def value(self, embeddings: Tensor, labels: Tensor, rows: Tensor, images: Tensor) -> Tensor:
        """The weighted value for a batch, a scalar.

        Args:
            embeddings: Shape ``(B, D)``, not normalised.
            labels: Shape ``(B,)``, int64.
            rows: Numbers of the images in the training set, shape ``(B,)``, int64.
            images: What the embeddings were made of, shape ``(B, C, H, W)``.
        """
        more = [images] if self.sees_images else []
        value: Tensor = self.weight * self.module(embeddings, labels, rows, *more)
        return value


@runtime_checkable
class EpochHook(Protocol):
    """A loss module that changes between epochs: weights that fall, prototypes that follow.

    What such a module remembers belongs into persistent buffers or parameters, for checkpoints to
    carry it; whatever follows from the two numbers alone may be plain attributes whose names begin
    with an underscore (public ones are settings, see `LossModule`).
    """

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Called before each epoch, ``epoch`` from 1 to ``epochs``; again if it is repeated."""
