# SPDX-License-Identifier: Apache-2.0
"""Scores of two sources on one scale, so that one ranking can hold both."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from fclearn._tensor_files import load_tensors, reading, save_tensors
from fclearn.backfill._samples import Floats, sorted_scores

_FORMAT, _VERSION = "fclearn.ScoreCalibration", 1
METHODS = ("quantile", "affine")
# Steps of the knots in the logit of the rank: even in the middle, and fine in both tails, where the
# hits are.
_LOGIT_STEP = 0.05


@dataclass(frozen=True, eq=False)
class ScoreCalibration:
    r"""An increasing map from the scores of one source to the scale of another.

    In a gallery re-embedded in part, a new query meets new rows and old ones. Cosines to old rows
    are lower and spread differently, whatever the rows show, so a ranking by the raw score sorts by
    age first. The map gives an old row the score that is *as rare* among the scores to new rows.

    Attributes:
        source: Knots on the scale to calibrate, ascending, float64 ``(K,)``.
        target: What they become, ascending, float64 ``(K,)``.
        method: ``"quantile"`` or ``"affine"``.
        pair: Which scores become which, for people and for checks, as ``"new/old -> new/new"``.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> new = rng.normal(size=10_000)
        >>> calibration = ScoreCalibration.fit(source=0.3 * new - 0.1, target=new)
        >>> calibration.transform(np.array([0.2, 0.5])).round(2).tolist()
        [1.0, 2.0]
    """

    source: Floats
    target: Floats
    method: str
    pair: str = ""

    @classmethod
    def fit(
        cls,
        *,
        source: ArrayLike,
        target: ArrayLike,
        method: str = "quantile",
        pair: str = "",
    ) -> ScoreCalibration:
        r"""Learn the map from a sample of scores of each source.

        ``"quantile"``: :math:`m(s) = F_{target}^{-1}(F_{source}(s))`, linear between knots that
        lie close together in both tails, and beyond them with the slope of ``"affine"``. Given
        impostor scores this is matching false-accept rates; given all pairs of some queries,
        matching ranks. ``"affine"``: :math:`m(s) = \mu_t + (\sigma_t / \sigma_s)(s - \mu_s)`, for
        small samples (z-normalisation).

        Args:
            source: Scores to be calibrated, any shape. Pairs of the same kind as
            target: scores on the scale to keep: the same pairs, or as many matches among them.
            method: ``"quantile"`` or ``"affine"``.
            pair: Kept in files.

        Raises:
            TypeError: Scores that are not real numbers.
            ValueError: Fewer than 2 distinct scores on a side, NaN or infinite ones, an unknown
                method.

        References:
            Jain, Nandakumar & Ross, *Score normalization in multimodal biometric systems*, Pattern
            Recognition 2005 (z-score); Kolen & Brennan, *Test Equating, Scaling, and Linking*,
            Springer 2014, ch. 2 (equipercentile equating).
        """
        if method not in METHODS:
            raise ValueError(f"method: expected 'quantile' or 'affine', got {method!r}")
        samples = sorted_scores(source, "source"), sorted_scores(target, "target")
        for name, sample in zip(("source", "target"), samples, strict=True):
            if sample[0] == sample[-1]:
                raise ValueError(
                    f"{name}: expected at least 2 distinct scores, got {len(sample)} of {sample[0]}"
                )
        ours, theirs = samples
        slope = theirs.std() / ours.std()
        if method == "affine":
            knots = ours.mean() + ours.std() * np.array([-1.0, 1.0])
            return cls(knots, theirs.mean() + slope * (knots - ours.mean()), method, pair)
        share = _shares(min(len(ours), len(theirs)))
        knots, image = np.quantile(ours, share), np.quantile(theirs, share)
        # Ties make several shares one knot; it stands for all of them.
        knots, group = np.unique(knots, return_inverse=True)
        image = np.bincount(group, weights=image) / np.bincount(group)
        # Two more knots carry the slope beyond the sample.
        reach = knots[-1] - knots[0]
        knots = np.concatenate([[knots[0] - reach], knots, [knots[-1] + reach]])
        image = np.concatenate([[image[0] - slope * reach], image, [image[-1] + slope * reach]])
        return cls(knots, image, method, pair)

    def transform(self, scores: ArrayLike) -> Floats:
        """Calibrate scores; their order never changes.

        Args:
            scores: Of the source, any shape; NaN stays NaN, infinities stay infinite.

        Returns:
            Shape of ``scores``, float64.

        Raises:
            TypeError: Scores that are not real numbers.
        """
        given = np.asarray(scores)
        if given.dtype.kind not in "fiu":
            raise TypeError(f"scores: expected real numbers, got {given.dtype}")
        given = given.astype(np.float64)
        inside = np.interp(given, self.source, self.target)
        for knot, side in ((0, given < self.source[0]), (-1, given > self.source[-1])):
            first = 0 if knot == 0 else len(self.source) - 2
            slope = (self.target[first + 1] - self.target[first]) / (
                self.source[first + 1] - self.source[first]
            )
            inside = np.where(side, self.target[knot] + slope * (given - self.source[knot]), inside)
        return np.asarray(inside, dtype=np.float64)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, whole or not at all.

        Raises:
            OSError: The folder cannot be made or written.
        """
        header = {"method": self.method, "pair": self.pair}
        tensors = {
            "source": torch.from_numpy(self.source.copy()),
            "target": torch.from_numpy(self.target.copy()),
        }
        save_tensors(path, _FORMAT, _VERSION, header, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, pair: str | None = None) -> ScoreCalibration:
        """Read what `save` wrote; nothing is unpickled.

        Args:
            path: The file.
            pair: What its ``pair`` must be; None: anything.

        Raises:
            FileNotFoundError: No such file.
            ValueError: Not a whole file of a calibration, or one of other scores.
        """
        with reading(path, "ScoreCalibration"):
            header, tensors = load_tensors(path, _FORMAT, _VERSION)
            knots, image = (tensors[name].numpy() for name in ("source", "target"))
            if header["method"] not in METHODS:
                raise ValueError(f"method {header['method']!r}")
            if knots.dtype != np.float64 or image.dtype != np.float64 or knots.ndim != 1:
                raise ValueError("expected two float64 vectors")
            if len(knots) < 2 or knots.shape != image.shape:
                raise ValueError("expected as many knots as images, at least 2")
            if not (np.isfinite(image).all() and (np.diff(knots) > 0).all()):
                raise ValueError("expected finite, ascending knots")
            if not np.isfinite(knots).all() or (np.diff(image) < 0).any():
                raise ValueError("expected finite, ascending knots")
            found = str(header["pair"])
        if pair is not None and found != pair:
            raise ValueError(f"{path}: expected a calibration {pair!r}, got {found!r}")
        return cls(knots, image, header["method"], found)


def _shares(size: int) -> Floats:
    """Shares of a sample at which to place knots: its ends, and steps in the logit between."""
    most = np.log(max(size, 2))
    count = max(2, int(np.ceil(2 * most / _LOGIT_STEP)) + 1)
    inner = 1 / (1 + np.exp(-np.linspace(-most, most, count)))
    return np.concatenate([[0.0], inner, [1.0]])
