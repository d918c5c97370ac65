# SPDX-License-Identifier: Apache-2.0
"""What a probe measures, and what it came to."""

from __future__ import annotations

from dataclasses import dataclass

from fclearn.evaluation.types import Interval

OLD, NEW, ORACLE = "old/old", "new/new", "oracle/old"
#: What an adapter moves, and therefore what stays as it is.
NEW_TO_OLD, OLD_TO_NEW = "new query -> old space", "old gallery -> new space"
#: Ways that need a share of the gallery embedded anew, and queries by both models.
HALFWAY = "part of the gallery embedded anew"
RANK_MERGE, RANK_MERGE_CALIBRATED = "rank-merge", "rank-merge-calibrated"
RERANK = "two-stage-rerank"
#: What keeps the items measured on apart from those fitted on.
BY_CLASSES, BY_ITEMS = SPLITS = "classes", "items"


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
class JudgementCounts:
    """What of the judgements counts, and what does not.

    Attributes:
        queries_without_features: Queries judged that are not among the real queries.
        queries_without_relevant: Real queries without a relevant item; they count nowhere.
        queries_not_asked: Left out so that enough items nobody judges are there to fit on, or
            because there are more than the most to measure with.
        relevant_not_among_items: Pairs of a real query and a relevant item that is not there. Items
            are a sample, so these count nowhere, where `evaluate_retrieval` has them not found.
    """

    queries_without_features: int
    queries_without_relevant: int
    queries_not_asked: int
    relevant_not_among_items: int


@dataclass(frozen=True)
class ProbeResult:
    """All ways, old/old first, and what to do.

    Attributes:
        ways: Measured ways.
        verdict: ``"map"``: an adapter of new queries beats the old model on the gallery as it is;
            ``"train"``: none does, though the new model is better and the old space has room;
            ``"reindex"``: nor has the old space any room: only embedding the gallery anew helps;
            ``"stay"``: the new model is not better than the old one; ``"unclear"``: these queries
            cannot tell whether it is, or whether the old space has room.
        best: Name of the best adapter of new queries.
        map_suffices: Whether its interval excludes that the best adapter loses more than a point of
            mAP to the old model: new queries can take the place of old ones.
        text: The verdict in words.
        num_queries: Queries that counted.
        num_skipped: Queries with nothing right in the gallery; they count nowhere.
        num_gallery: Gallery rows they search.
        num_fit: Rows the adapters were fitted on.
        confidence: Of all intervals.
        left_out: Ways that were not measured, by name, each with the reason.
        split: ``"classes"``: what was measured on is of other classes than what was fitted on;
            ``"items"``: it is other items.
        split_text: The split in words, with the numbers of classes.
        pseudo_labels: Clusters that stood for classes in fitting; None: classes were known, or
            nothing asked for them.
        judgements: With judgements, what of them counts.
        num_fit_classes: Classes of the rows the adapters were fitted on; None with judgements.
        num_test_classes: Classes of the gallery rows; None with judgements.
        num_shared_classes: Classes of both; 0 if ``split`` is ``"classes"``, None with judgements.
    """

    ways: tuple[Way, ...]
    verdict: str
    best: str
    map_suffices: bool
    text: str
    num_queries: int
    num_skipped: int
    num_gallery: int
    num_fit: int
    confidence: float
    left_out: dict[str, str]
    split: str
    split_text: str
    pseudo_labels: int | None = None
    judgements: JudgementCounts | None = None
    num_fit_classes: int | None = None
    num_test_classes: int | None = None
    num_shared_classes: int | None = None

    def to_dict(self) -> dict[str, object]:
        """Everything, ready for strict JSON."""
        return {
            **vars(self),
            "ways": [vars(way) for way in self.ways],
            "judgements": None if self.judgements is None else vars(self.judgements),
        }
