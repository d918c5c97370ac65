# SPDX-License-Identifier: Apache-2.0
"""What a probe measures, and what it came to."""

from __future__ import annotations

from dataclasses import dataclass

from fclearn.evaluation._bootstrap import Interval

OLD, NEW, ORACLE = "old/old", "new/new", "oracle/old"
#: What an adapter moves, and therefore what stays as it is.
NEW_TO_OLD, OLD_TO_NEW = "new query -> old space", "old gallery -> new space"
#: Ways that need a share of the gallery embedded anew, and queries by both models.
HALFWAY = "part of the gallery embedded anew"
RANK_MERGE, RANK_MERGE_CALIBRATED = "rank-merge", "rank-merge-calibrated"
RERANK = "two-stage-rerank"


@dataclass(frozen=True)
class Way:
    """One way to serve queries, measured.

    Attributes:
        name: ``"old/old"``, ``"new/new"``, ``"oracle/old"``, ``"rank-merge"``,
            ``"rank-merge-calibrated"``, ``"two-stage-rerank"`` or that of an adapter.
        direction: `NEW_TO_OLD` or `OLD_TO_NEW` of an adapter, `HALFWAY`, or ``""``.
        embedded: Share of the gallery that the new model has to embed for it.
        queries_by: Models that see a query: ``"old"``, ``"new"`` or ``"both"``; ``""`` for the
            oracle, which is none.
        metrics: As fractions.
        intervals: Bootstrap intervals of the metrics.
        gain: Difference to old/old, by metric.
        gain_intervals: Paired bootstrap intervals of the differences.
        update_gain: Share of what re-indexing would bring, on mAP; None where the new model is no
            better than the old one.
        seconds: What fitting and mapping took.
    """

    name: str
    direction: str
    embedded: float
    queries_by: str
    metrics: dict[str, float]
    intervals: dict[str, Interval]
    gain: dict[str, float]
    gain_intervals: dict[str, Interval]
    update_gain: float | None
    seconds: float


@dataclass(frozen=True)
class ProbeResult:
    """All ways, old/old first, and what to do.

    Attributes:
        ways: Measured ways.
        verdict: ``"map"``: an adapter of new queries beats the old model on the gallery as it is;
            ``"train"``: none does, though the new model is better and the old space has room;
            ``"reindex"``: nor has the old space any room: only embedding the gallery anew helps;
            ``"stay"``: the new model is not better than the old one.
        best: Name of the best adapter of new queries.
        text: The verdict in words.
        num_queries: Queries that counted.
        num_skipped: Queries with nothing right in the gallery; they count nowhere.
        num_gallery: Gallery rows they search.
        num_fit: Rows the adapters were fitted on.
    """

    ways: tuple[Way, ...]
    verdict: str
    best: str
    text: str
    num_queries: int
    num_skipped: int
    num_gallery: int
    num_fit: int

    def to_dict(self) -> dict[str, object]:
        """Everything, ready for strict JSON."""
        return {**vars(self), "ways": [vars(way) for way in self.ways]}
