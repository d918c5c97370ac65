# SPDX-License-Identifier: Apache-2.0
"""Scores of pairs that do not match, and the calibrations they give."""

from __future__ import annotations

import numpy as np

from fclearn.backfill.calibration import ScoreCalibration
from fclearn.backfill.sample import (
    CROSS,
    MERGED,
    MIXED,
    NEW,
    OLD,
    MigrationSample,
    Scores,
    sample_rows,
)


def impostor_scores(
    sample: MigrationSample, which: str, *, num_queries: int = 256, seed: int = 0
) -> Scores:
    """Scores of pairs of different labels: some queries, each with all its gallery.

    Args:
        sample: Queries and gallery in both spaces.
        which: ``"old/old"``, ``"new/old"`` or ``"new/new"``.
        num_queries: Queries taken, at random.
        seed: Of that choice; equal seeds take the same pairs.

    Returns:
        Shape ``(n,)``, float32.

    Raises:
        ValueError: No such pair; what `MigrationSample` refuses.

    Example:
        >>> sample = MigrationSample.build(
        ...     new_query=np.eye(3), old_gallery=np.eye(3), new_gallery=np.eye(3),
        ...     query_labels=[0, 1, 1], gallery_labels=[0, 1, 1])
        >>> impostor_scores(sample, "new/new")
        array([0., 0., 0., 0.], dtype=float32)
    """
    score = {OLD: sample.old_scores, CROSS: sample.cross_scores, NEW: sample.new_scores}[which]
    found = []
    for row in sample_rows(sample.num_queries, num_queries, seed):
        part = slice(row, row + 1)
        found.append(score(part)[~(sample.positives(part) | sample.left_out(part))])
    scores = np.concatenate(found)
    if len(scores) == 0:
        raise ValueError(
            "gallery_labels: expected rows of other labels than the queries', got none"
        )
    return np.asarray(scores)


def fit_calibration(
    sample: MigrationSample,
    serving: str = MIXED,
    *,
    method: str = "quantile",
    num_queries: int = 256,
    seed: int = 0,
) -> ScoreCalibration:
    """Match the false-accept rates of scores to old rows with those of scores to new rows.

    Args:
        sample: Queries and gallery in both spaces; only pairs of different labels are looked at.
        serving: ``"mixed"``: new queries on old rows; ``"merged"``: old queries on old rows.
        method: As `ScoreCalibration.fit`.
        num_queries: Queries taken, at random; each with all its gallery.
        seed: Of that choice.

    Raises:
        ValueError: As `ScoreCalibration.fit`; spaces that cannot be mixed; no old queries.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> new, labels = rng.normal(size=(40, 5)), np.arange(40) % 4
        >>> sample = MigrationSample.build(
        ...     new_query=new, old_gallery=new + rng.normal(size=(40, 5)), new_gallery=new,
        ...     query_labels=labels, gallery_labels=labels)
        >>> fit_calibration(sample, "mixed").pair
        'new/old -> new/new'
    """
    if serving not in {MIXED, MERGED}:
        raise ValueError(f"serving: expected {MIXED!r} or {MERGED!r}, got {serving!r}")
    which = CROSS if serving == MIXED else OLD
    return ScoreCalibration.fit(
        source=impostor_scores(sample, which, num_queries=num_queries, seed=seed),
        target=impostor_scores(sample, NEW, num_queries=num_queries, seed=seed),
        method=method,
        pair=f"{which} -> {NEW}",
    )
