# SPDX-License-Identifier: Apache-2.0
"""Forward maps: stored old features into the new space, without the old images (FCT, FastFill).

The new model is trained freely; a small network then maps what is stored of each gallery item, its
old feature and perhaps side information kept for this purpose, to where the new model would put
it. The gallery has to be rewritten, but no image is needed. FastFill adds that the mapped feature
must be classified rightly by the new model's classifier, and learns how far off each one may be:
items with the largest such error are the first to be embedded anew.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fcl_ext
from fclearn._tensor_files import load_tensors, reading, save_tensors
from fclearn.features import FeatureSource, as_features, as_tensor

_FORMAT, _VERSION, _DIRECTION = "fclearn.ForwardMap", 1, "old_to_new"
_BLOCK_ROWS = 65536


class ForwardMap(nn.Module):
    r"""A multi-layer perceptron from old features, and side information, to new features.

    Make one with `fit`. Rows of all features are scaled to unit length first, and so are results.

    Args:
        old_dim: Dim of the old features.
        new_dim: Dim of the new ones.
        side_dim: Dim of the side information; 0: none.
        width: Of the two hidden layers.
        uncertainty: Whether it also predicts its squared error.

    Example:
        >>> old = torch.randn(200, 6)
        >>> turned = old @ torch.linalg.qr(torch.randn(6, 6)).Q
        >>> fitted = ForwardMap.fit(old=old[:150], new=turned[:150], width=16, epochs=2)
        >>> mapped = fitted.transform(old[150:])
        >>> mapped.shape
        torch.Size([50, 6])
    """

    def __init__(
        self,
        old_dim: int,
        new_dim: int,
        *,
        side_dim: int = 0,
        width: int = 512,
        uncertainty: bool = False,
    ) -> None:
        super().__init__()
        self.sizes = {
            "old_dim": old_dim,
            "new_dim": new_dim,
            "side_dim": side_dim,
            "width": width,
        }
        for name, value in self.sizes.items():
            if value < (name != "side_dim"):
                raise ValueError(
                    f"{name}: expected at least {int(name != 'side_dim')}, got {value}"
                )
        self.has_uncertainty = uncertainty
        self.body = nn.Sequential(
            nn.Linear(old_dim + side_dim, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.head = nn.Linear(width, new_dim)
        self.log_error = nn.Linear(width, 1) if uncertainty else None

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mapped rows ``(B, D_new)``, not normalised, and the log of their squared error ``(B,)``.

        Args:
            inputs: Unit old features beside unit side information, shape ``(B, D_old + D_side)``.
        """
        hidden = self.body(inputs)
        # Detached: how an error is predicted must not change the map.
        log_error = None if self.log_error is None else self.log_error(hidden.detach())[:, 0]
        return self.head(hidden), log_error

    @classmethod
    def fit(
        cls,
        *,
        old: FeatureSource,
        new: FeatureSource,
        side: FeatureSource | None = None,
        labels: Tensor | None = None,
        classifier: Tensor | None = None,
        classifier_weight: float = 1.0,
        classifier_scale: float = 16.0,
        label_smoothing: float = 0.1,
        uncertainty: bool = False,
        width: int = 512,
        epochs: int = 80,
        batch_size: int = 512,
        learning_rate: float = 5e-4,
        seed: int = 0,
    ) -> ForwardMap:
        r"""Learn the map from rows of which both features are known.

        The loss is :math:`\|h(x) - f_{new}\|^2` (FCT), plus ``classifier_weight`` times the
        cross-entropy of h(x) under the new model's frozen classifier if one is given, plus, with
        ``uncertainty``, the Gaussian :math:`\frac12 (e / \sigma^2 + \log \sigma^2)` of the squared
        error e, whose gradient reaches the predicted :math:`\sigma^2` and not the map.

        Args:
            old: Old features, shape ``(N, D_old)``.
            new: New features of the same items, shape ``(N, D_new)``.
            side: Side information stored with the old features, shape ``(N, D_side)``.
            labels: Classes of the items, shape ``(N,)``, int64, and
            classifier: the new model's classifier, shape ``(C, D_new)``: both or neither.
            classifier_weight: Weight of that cross-entropy.
            classifier_scale: Its inverse temperature: the one the new model was trained with.
            label_smoothing: Its smoothing, in [0, 1].
            uncertainty: Also learn how large the error is.
            width: Of the hidden layers.
            epochs: Passes over the rows.
            batch_size: Rows per step.
            learning_rate: Of Adam, decayed to zero along a cosine.
            seed: Of initial weights and order.

        Raises:
            ValueError: Features that are not aligned or not finite, rows of zeros, one of labels
                and classifier without the other, an option out of range.

        Note:
            FastFill learns map and variance in one Gaussian loss; here the map is the same with
            and without ``uncertainty``.

        References:
            Ramanujan et al., *Forward Compatible Training for Large-Scale Embedding Retrieval
            Systems*, CVPR 2022. Jaeckle et al., *FastFill*, ICLR 2023.
        """
        if epochs < 1 or batch_size < 1 or not 0 < learning_rate < math.inf:
            raise ValueError(
                "fit: expected epochs >= 1, batch_size >= 1, learning_rate > 0, "
                f"got {epochs}, {batch_size}, {learning_rate}"
            )
        inputs, targets = _inputs(old, side), _unit(as_tensor(new), "new")
        if len(targets) != len(inputs):
            raise ValueError(
                f"new: expected one row per old feature ({len(inputs)}), got {len(targets)}"
            )
        if (labels is None) != (classifier is None):
            raise ValueError("labels and classifier: expected both or neither")
        if labels is not None and labels.shape != (len(inputs),):
            raise ValueError(
                f"labels: expected one per old feature ({len(inputs)}), got {list(labels.shape)}"
            )
        rows = None if classifier is None else F.normalize(classifier.detach().float(), dim=1)
        old_dim = as_features(old).shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fitted = cls(
                old_dim,
                targets.shape[1],
                side_dim=inputs.shape[1] - old_dim,
                width=width,
                uncertainty=uncertainty,
            )
            optimizer = torch.optim.Adam(fitted.parameters(), lr=learning_rate)
            steps = epochs * -(-len(inputs) // batch_size)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            generator = torch.Generator().manual_seed(seed)
            for _ in range(epochs):
                for batch in torch.randperm(len(inputs), generator=generator).split(batch_size):
                    mapped, log_error = fitted(inputs[batch])
                    error = (mapped - targets[batch]).square().sum(1)
                    loss = error.mean()
                    if rows is not None and labels is not None:
                        loss = loss + classifier_weight * fcl_ext.compat_loss(
                            mapped,
                            rows,
                            labels[batch],
                            scale=classifier_scale,
                            label_smoothing=label_smoothing,
                        )
                    if log_error is not None:
                        known = error.detach()
                        loss = loss + 0.5 * (known * (-log_error).exp() + log_error).mean()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
        return fitted.eval().requires_grad_(False)

    def transform(self, old: FeatureSource, side: FeatureSource | None = None) -> Tensor:
        """Map old features, block by block, into the new space.

        Args:
            old: Old features, shape ``(N, D_old)``; a file may be larger than memory.
            side: Side information of the same rows, if the map was fitted with some.

        Returns:
            Unit rows, shape ``(N, D_new)``, float32.

        Raises:
            ValueError: Features of other dims than those fitted on, side information missing or
                superfluous, rows that are not finite or zero.
        """
        return torch.cat([F.normalize(mapped, dim=1) for mapped, _ in self._blocks(old, side)])

    def uncertainty(self, old: FeatureSource, side: FeatureSource | None = None) -> Tensor:
        """The squared error expected of each mapped row; embed those with the largest anew first.

        Args:
            old: As in `transform`.
            side: As in `transform`.

        Returns:
            Shape ``(N,)``, float32, squared distance.

        Raises:
            ValueError: As `transform`; a map fitted without uncertainty.
        """
        if not self.has_uncertainty:
            raise ValueError("uncertainty: expected a map fitted with uncertainty=True")
        return torch.cat([log.exp() for _, log in self._blocks(old, side) if log is not None])

    @torch.no_grad()
    def _blocks(
        self, old: FeatureSource, side: FeatureSource | None
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        for name, given in (("old", old), ("side", side)):
            dim = 0 if given is None else as_features(given, name).shape[1]
            if dim != self.sizes[f"{name}_dim"]:
                raise ValueError(
                    f"{name}: this map is from features of {self.sizes[f'{name}_dim']} dims, "
                    f"got {dim}"
                )
        for start in range(0, max(len(as_features(old)), 1), _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            yield self(_inputs(old, side, part))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all.

        Raises:
            OSError: The folder cannot be made or written.
        """
        header = {
            "direction": _DIRECTION,
            "sizes": self.sizes,
            "uncertainty": self.has_uncertainty,
        }
        save_tensors(path, _FORMAT, _VERSION, header, self.state_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ForwardMap:
        """Read what `save` wrote; nothing is unpickled.

        Raises:
            FileNotFoundError: No such file.
            ValueError: Not a whole file of a forward map.
        """
        with reading(path, "ForwardMap"):
            header, tensors = load_tensors(path, _FORMAT, _VERSION)
            if header["direction"] != _DIRECTION:
                raise ValueError(f"direction {header['direction']!r}")
            # On no device: a header may name sizes that no memory holds.
            with torch.device("meta"):
                loaded = cls(**header["sizes"], uncertainty=bool(header["uncertainty"]))
            loaded.load_state_dict(tensors, assign=True)
            loaded.float()
        return loaded.eval().requires_grad_(False)


def _inputs(old: FeatureSource, side: FeatureSource | None, part: slice = slice(None)) -> Tensor:
    rows = _unit(as_tensor(old, part), "old")
    if side is None:
        return rows
    beside = _unit(as_tensor(side, part), "side")
    if len(beside) != len(rows):
        raise ValueError(f"side: expected one row per old feature ({len(rows)}), got {len(beside)}")
    return torch.cat([rows, beside], dim=1)


def _unit(rows: Tensor, name: str) -> Tensor:
    norms = rows.norm(dim=1)
    bad = (~norms.isfinite() | (norms == 0)).nonzero()
    if len(bad):
        raise ValueError(
            f"{name}: expected rows with a direction, row {int(bad[0])} is zero or not finite"
        )
    unit: Tensor = rows / norms[:, None]
    return unit
