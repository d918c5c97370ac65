# SPDX-License-Identifier: Apache-2.0
"""Decisions by a threshold on stores: same or not, who or nobody."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fclearn.cli.console import say
from fclearn.cli.eval_show import say_without_class
from fclearn.evaluation import OperatingPoint, evaluate_identification, evaluate_verification
from fclearn.evaluation.types import InOrder
from fclearn.features import FeatureStore
from fclearn.features.classes import has_class, row_classes
from fclearn.features.ids import row_of_id

if TYPE_CHECKING:
    from fclearn.evaluation.types import RankingOptions


def names_of(verify: Sequence[float], identify: Sequence[float]) -> list[str]:
    """Names of the rates of true answers, for gates: ``tar@0.001``, ``tpir@0.01``."""
    return [f"tar@{rate:g}" for rate in verify] + [f"tpir@{rate:g}" for rate in identify]


def decide(
    query: FeatureStore,
    gallery: FeatureStore,
    ranking: RankingOptions,
    verify: Sequence[float],
    identify: Sequence[float],
    *,
    num_bootstrap: int,
    seed: int,
) -> tuple[dict[str, object], dict[str, float]]:
    """Measure and say them; for JSON, and by the names for gates.

    Args:
        query: Of the queries.
        gallery: Of the gallery.
        ranking: As `ranking_of`, without groups.
        verify: Rates of false accepts.
        identify: Rates of strangers that get a name.
        num_bootstrap: Resamples behind the intervals.
        seed: Of the resamples.

    Raises:
        ValueError: Groups; as `row_classes`, `evaluate_verification` and
            `evaluate_identification`.
    """
    content: dict[str, object] = {}
    numbers: dict[str, float] = {}
    if not verify and not identify:
        return content, numbers
    if ranking.get("query_groups") is not None:
        raise ValueError("--verify, --identify: expected no --use-groups, they know ids alone")
    labels = row_classes(query, gallery, instead="no --verify and --identify")
    # Nobody knows whether a pair with a row without a class is genuine.
    known = [np.flatnonzero(has_class(classes)) for classes in labels]
    say_without_class(len(query) - len(known[0]), query)
    if gallery is not query:
        say_without_class(len(gallery) - len(known[1]), gallery)
    sides = [InOrder(one.features, rows) for one, rows in zip((query, gallery), known, strict=True)]
    options = {
        "query_labels": labels[0][known[0]],
        "gallery_labels": labels[1][known[1]],
        "exclude_self": ranking.get("exclude_self", False),
        "query_ids": np.asarray(query.ids)[known[0]],
        "gallery_ids": np.asarray(gallery.ids)[known[1]],
        "metric": ranking.get("metric", "cosine"),
        "num_bootstrap": num_bootstrap,
        "seed": seed,
    }
    if verify:
        pairs = evaluate_verification(*sides, false_accept_rates=verify, **options)  # type: ignore[arg-type]
        say(f"verification of {pairs.num_genuine:,} genuine, {pairs.num_impostor:,} impostor pairs")
        content["verification"] = pairs.to_dict()
        numbers |= _said("TAR", "FAR", pairs.points)
    if identify:
        found = evaluate_identification(*sides, false_positive_rates=identify, **options)  # type: ignore[arg-type]
        say(f"identification of {found.num_mated:,} queries among {found.num_unmated:,} strangers")
        content["identification"] = found.to_dict()
        numbers |= _said("TPIR", "FPIR", found.points)
    return content, numbers


def read_junk(path: Path, query: FeatureStore, gallery: FeatureStore) -> list[list[int]]:
    """Gallery rows that are neither right nor wrong, for each query.

    Args:
        path: UTF-8, with or without a byte order mark; ``query-id gallery-id`` a line.
        query: Of the queries.
        gallery: Of the gallery; ids that it lacks need no leaving out.

    Raises:
        ValueError: Not such a file; no query in common with it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a text file in UTF-8: {error}") from error
    queries, rows = row_of_id(query.ids, "query"), row_of_id(gallery.ids, "gallery")
    junk: list[list[int]] = [[] for _ in queries]
    known = False
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if fields and len(fields) != 2:
            raise ValueError(
                f"{path}, line {number}: expected 'query-id gallery-id', got {len(fields)} columns"
            )
        if fields and fields[0] in queries:
            known = True
            if fields[1] in rows:
                junk[queries[fields[0]]].append(rows[fields[1]])
    if not known:
        raise ValueError(f"{path}: expected ids of {query.path}, as {next(iter(queries))!r}")
    return junk


def _said(rate: str, of: str, points: Sequence[OperatingPoint]) -> dict[str, float]:
    for point in points:
        few = "" if point.is_resolved else "; too few impostors to tell such a rate"
        low, high = point.interval or (point.true_rate, point.true_rate)
        say(
            f"{rate} {100 * point.true_rate:.2f}% [{100 * low:.2f}, {100 * high:.2f}] at {of} "
            f"{point.wanted:g} (threshold {point.threshold:.4f}{few})"
        )
    return {f"{rate.lower()}@{point.wanted:g}": point.true_rate for point in points}
