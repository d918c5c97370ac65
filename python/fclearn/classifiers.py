# SPDX-License-Identifier: Apache-2.0
"""A classifier in lieu of the old model, made from its features alone."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

import fcl_ext
from fclearn._frozen_rows import check_finite, class_numbers
from fclearn._tensor_files import reading, write_tensors
from fclearn.graph import KnnGraph


@dataclass(frozen=True)
class PseudoClassifier:
    """Prototypes of C classes in the space of the old features, of unit length.

    Make one with `from_means` or `fit`; `refine` needs the features it was made from, which it
    therefore keeps.

    Attributes:
        prototypes: Shape ``(C, D)``, float32, unit rows.
        features: The old features, unit rows, shape ``(N, D)``.
        labels: Their classes, shape ``(N,)``, int64.

    Example:
        >>> features = torch.tensor([[1.0, 0.1], [1.0, -0.1], [0.0, 1.0]])
        >>> pseudo = PseudoClassifier.from_means(features, torch.tensor([0, 0, 1]))
        >>> pseudo.prototypes.round(decimals=3).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    prototypes: Tensor
    features: Tensor
    labels: Tensor

    @classmethod
    def from_means(
        cls, features: Tensor | np.ndarray, labels: Tensor | np.ndarray
    ) -> PseudoClassifier:
        r"""Class means of the unit features, :math:`w_k \propto \sum_{y_i = k} f_i / \|f_i\|`.

        Args:
            features: Old features of the new training images, shape ``(N, D)``, floating.
            labels: Shape ``(N,)``, integers 0 .. C - 1, each at least once.

        Raises:
            ValueError: Wrong shapes, NaN or infinite features, a class without rows, a class whose
                mean is zero.
        """
        unit, classes = _check(features, labels)
        return cls(_unit_means(unit, classes), unit, classes)

    @classmethod
    def fit(
        cls,
        features: Tensor | np.ndarray,
        labels: Tensor | np.ndarray,
        *,
        scale: float = 20.0,
        epochs: int = 60,
        batch_size: int = 512,
        learning_rate: float = 1e-2,
        seed: int = 0,
    ) -> PseudoClassifier:
        """A learned cosine classifier: the class means, trained to classify the old features.

        Args:
            features: As in `from_means`.
            labels: As in `from_means`.
            scale: Inverse temperature of its training.
            epochs: Passes over the features.
            batch_size: Rows per step.
            learning_rate: Of Adam, decayed to zero along a cosine.
            seed: Order of the rows.

        Raises:
            ValueError: As `from_means`, or an option out of range.
        """
        if epochs < 0 or batch_size < 1 or not learning_rate > 0:
            raise ValueError(
                "fit: expected epochs >= 0, batch_size >= 1, learning_rate > 0, "
                f"got {epochs}, {batch_size}, {learning_rate}"
            )
        start = cls.from_means(features, labels)
        weights = start.prototypes.clone().requires_grad_()
        optimizer = torch.optim.Adam([weights], lr=learning_rate)
        steps = epochs * -(-len(start.labels) // batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
        generator = torch.Generator().manual_seed(seed)
        for _ in range(epochs):
            order = torch.randperm(len(start.labels), generator=generator)
            for batch in order.to(weights.device).split(batch_size):
                loss = fcl_ext.compat_loss(
                    start.features[batch], weights, start.labels[batch], scale=scale
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        return cls(F.normalize(weights.detach(), dim=1), start.features, start.labels)

    def refine(
        self,
        graph: KnnGraph,
        damping: float = 0.9,
        *,
        num_steps: int | None = None,
        tol: float | None = None,
    ) -> PseudoClassifier:
        r"""Class means of the walked features, :math:`(1-\lambda)(I-\lambda P)^{-1} F`.

        On a within-class graph this is the PageRank-weighted class mean: outliers, to which few
        neighbours lead, lose weight. On a global graph features also flow between classes. The
        rows of P must sum to 1: with columns that do, the class mean would not change at all.

        Args:
            graph: A normalised graph over the same rows, in the same order.
            damping: Probability of walking on, in (0, 1).
            num_steps: Exactly so many steps, or
            tol: to convergence within this error; the default.

        Raises:
            ValueError: A graph over another number of rows, or not normalised.

        References:
            Zhang et al., *Towards Universal Backward-Compatible Representation Learning*, IJCAI
            2022 (structural prototype refinement), with the axis put right.
        """
        walked = self._walk(graph, self.features, damping, num_steps, tol)
        return PseudoClassifier(_unit_means(walked, self.labels), self.features, self.labels)

    def soft_targets(
        self,
        graph: KnnGraph,
        damping: float = 0.5,
        *,
        num_steps: int | None = None,
        tol: float | None = None,
    ) -> Tensor:
        r"""One target vector per row, :math:`t_i = (R\,W[y])_i`: prototypes mixed by the walk.

        A row between two classes, or with a wrong label, gets a target between their prototypes.

        Args:
            graph: As in `refine`.
            damping: Probability of walking on, in (0, 1); small keeps the label.
            num_steps: As in `refine`.
            tol: As in `refine`.

        Returns:
            Shape ``(N, D)``.

        Raises:
            ValueError: As `refine`.
        """
        return self._walk(graph, self.prototypes[self.labels], damping, num_steps, tol)

    def _walk(
        self,
        graph: KnnGraph,
        start: Tensor,
        damping: float,
        num_steps: int | None,
        tol: float | None,
    ) -> Tensor:
        if graph.num_nodes != len(self.labels):
            raise ValueError(
                f"graph: expected one node per feature ({len(self.labels)}), got {graph.num_nodes}"
            )
        walked: Tensor = graph.walk(start, damping, num_steps=num_steps, tol=tol)
        return walked

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all.

        Raises:
            OSError: The folder cannot be made or written.
        """
        tensors = {
            "prototypes": self.prototypes.contiguous(),
            "features": self.features.contiguous(),
            "labels": self.labels.contiguous(),
        }
        write_tensors(path, tensors, {"format": "fclearn.PseudoClassifier"})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PseudoClassifier:
        """Read what `save` wrote; everything is checked, and nothing is unpickled.

        Raises:
            FileNotFoundError: No such file.
            ValueError: A file that is not a saved pseudo classifier.
        """
        with reading(path, "PseudoClassifier"):
            tensors = load_file(path)
            prototypes, features = tensors["prototypes"], tensors["features"]
            labels = tensors["labels"]
            _check(features, labels)
            shape = (int(labels.max()) + 1, features.shape[1])
            if prototypes.dtype != torch.float32 or prototypes.shape != shape:
                raise ValueError(
                    f"prototypes: expected float32 of shape {list(shape)}, "
                    f"got {prototypes.dtype} of {list(prototypes.shape)}"
                )
            if not bool(prototypes.isfinite().all()):
                raise ValueError("prototypes: expected finite numbers")
            return cls(prototypes, features, labels)


def _check(features: Tensor | np.ndarray, labels: Tensor | np.ndarray) -> tuple[Tensor, Tensor]:
    # Copies: read-only arrays, such as memory maps, cannot be shared with torch.
    rows = features.detach() if isinstance(features, Tensor) else torch.tensor(features)
    if rows.ndim != 2 or not rows.is_floating_point():
        raise ValueError(
            f"features: expected floating of shape (N, D), got {rows.dtype} of {list(rows.shape)}"
        )
    classes = class_numbers(labels, len(rows))
    if len(rows) == 0:
        raise ValueError("features: expected at least one row")
    check_finite("features", rows)
    if int(classes.min()) < 0:
        raise ValueError(f"labels: expected values >= 0, got {int(classes.min())}")
    # With a label of N or more some class is empty, and an array of as many classes may not fit in
    # memory. Below, counting takes a twentieth of the time of sorting.
    if int(classes.max()) >= len(classes) or not bool(torch.bincount(classes).all()):
        present = classes.unique()
        num_empty = int(present[-1]) + 1 - len(present)
        first = int((present != torch.arange(len(present), device=present.device)).nonzero()[0])
        raise ValueError(
            f"labels: class {first} has no rows ({num_empty} such classes); "
            "number the classes 0 .. C - 1"
        )
    return F.normalize(rows.to(torch.float32), dim=1), classes


def _unit_means(rows: Tensor, labels: Tensor) -> Tensor:
    counts = torch.bincount(labels)
    sums = rows.new_zeros((len(counts), rows.shape[1])).index_add_(0, labels, rows)
    means = sums / counts[:, None]
    norms = means.norm(dim=1)
    zero = (norms < 1e-12).nonzero()
    if len(zero):
        raise ValueError(f"features: the mean of class {int(zero[0])} is zero, it has no direction")
    unit: Tensor = means / norms[:, None]
    return unit
