# SPDX-License-Identifier: Apache-2.0
"""What the numbers of a compatibility report mean, in plain words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    from fclearn.evaluation.matrix import CompatibilityReport
    from fclearn.evaluation.types import Interval

#: Names of metrics as people write them.
TITLES = {
    "map": "mAP",
    "map@r": "mAP@R",
    "map_trapezoid": "mAP (trapezoid)",
    "precision@r": "R-precision",
    "ndcg": "NDCG",
    "mrr": "MRR",
}

#: The first hit, of which a user sees more than of a mean over all ranks.
FIRST_HIT = "cmc@1"
#: A fall of it by more than this fraction is said where the queries are too few to be sure of it.
FIRST_HIT_LOSS = 0.01


@dataclass(frozen=True)
class Verdict:
    """Whether to upgrade without re-indexing.

    Attributes:
        status: ``"compatible"``: the interval of M(new/old) - M(old/old) on the primary metric lies
            above zero, and that of ``cmc@1`` not below; ``"mixed"``: so does the primary metric's,
            but that of ``cmc@1`` lies below zero; ``"incompatible"``: the primary metric's lies
            below zero; ``"unclear"``: it includes zero.
        headline: One line. Of ``"compatible"`` it says where ``cmc@1`` falls by more than a point,
            though its interval includes zero.
        details: The numbers behind it, a few sentences.
    """

    status: Literal["compatible", "mixed", "unclear", "incompatible"]
    headline: str
    details: str

    @property
    def text(self) -> str:
        """Headline and details in one."""
        return f"{self.headline}: {self.details[:1].lower()}{self.details[1:]}"


def metric_title(name: str) -> str:
    """A metric's name for people.

    Example:
        >>> metric_title("map@10"), metric_title("cmc@1")
        ('mAP@10', 'CMC@1')
    """
    if name in TITLES:
        return TITLES[name]
    stem, _, k = name.partition("@")
    titles = {"map": "mAP", "cmc": "CMC", "ndcg": "NDCG", "mrr": "MRR", "recall": "Recall"}
    return f"{titles.get(stem, stem.capitalize())}@{k}"


def judge(report: CompatibilityReport) -> Verdict:
    """Judge a report by its intervals."""
    primary, title = report.primary, metric_title(report.primary)
    old, cross = report.matrix["old/old"][primary], report.matrix["new/old"][primary]
    change = _bounds_of_change(report, primary)
    measured = (
        f"New queries on the old gallery reach {title} {percent(cross)} where the old model "
        f"reaches {percent(old)} ({points(cross - old)} points, "
        f"{percent(report.confidence, 0)} interval {points(change[0])} to {points(change[1])})."
    )
    worse = _first_hit_is_worse(report)
    if change[0] > 0:
        details = " ".join([measured, *_remarks(report)])
        if worse:
            headline = f"Finds more, but {_lost(report)}; look before you switch"
            return Verdict("mixed", headline, details)
        headline = "Upgrade without re-indexing is worthwhile"
        if _first_hit_may_be_worse(report):
            headline += f", but {_lost(report, 'may be')}"
        return Verdict("compatible", headline, details)
    if change[1] < 0:
        headline = "Not compatible, keep the old model for queries or re-index"
        return Verdict("incompatible", headline, measured)
    doubt = (
        f"The interval includes zero, so these {report.num_queries:,} queries cannot tell whether "
        "the upgrade pays without re-indexing."
    )
    headline = "no clear difference" if not worse else f"but {_lost(report)}"
    return Verdict("unclear", f"Not decided, {headline}", f"{measured} {doubt}")


def percent(value: float, digits: int = 1) -> str:
    """A fraction in percent."""
    return f"{100 * value:.{digits}f}%"


def points(value: float) -> str:
    """A difference of fractions in signed percentage points, with a true minus sign."""
    rounded = round(100 * value, 1)
    return f"{'+' if rounded >= 0 else '−'}{abs(rounded):.1f}"


def _first_hit_is_worse(report: CompatibilityReport) -> bool:
    return _bounds_of_change(report, FIRST_HIT)[1] < 0


def _first_hit_may_be_worse(report: CompatibilityReport) -> bool:
    change = report.differences["new/old - old/old"][FIRST_HIT]
    # A fall by just that much, 0.87 - 0.88, is a rounding error more.
    return change < -FIRST_HIT_LOSS - 1e-9 and not _first_hit_is_worse(report)


def _bounds_of_change(report: CompatibilityReport, metric: str) -> Interval:
    # Of all intervals those of the update gain alone may be None.
    return cast("Interval", report.intervals["new/old - old/old"][metric])


def _lost(report: CompatibilityReport, how_sure: str = "is") -> str:
    change = report.differences["new/old - old/old"][FIRST_HIT]
    return f"the first hit {how_sure} worse ({metric_title(FIRST_HIT)} {points(change)} points)"


def _remarks(report: CompatibilityReport) -> list[str]:
    remarks = []
    if report.update_gain is not None:
        remarks.append(
            f"That is {percent(report.update_gain, 0)} of what re-indexing everything with the "
            "independent model would bring."
        )
    is_worse = _first_hit_is_worse(report)
    if is_worse or _first_hit_may_be_worse(report):
        old, cross = (report.matrix[entry][FIRST_HIT] for entry in ("old/old", "new/old"))
        low, high = _bounds_of_change(report, FIRST_HIT)
        remarks.append(
            f"The first hit, however, {'gets' if is_worse else 'may get'} worse: "
            f"{metric_title(FIRST_HIT)} falls from {percent(old)} to {percent(cross)} "
            f"({points(cross - old)} points, {percent(report.confidence, 0)} interval "
            f"{points(low)} to {points(high)})."
        )
    tax = report.intervals.get("self_test_tax", {}).get(report.primary)
    if tax is not None:
        title = metric_title(report.primary)
        if tax[0] > 0:
            lost = points(report.self_test_tax or 0.0)[1:]
            cost = f"costs the new model {lost} points of {title}"
        elif tax[1] < 0:
            cost = f"even adds {points(-(report.self_test_tax or 0.0))[1:]} points to its {title}"
        else:
            cost = "costs it nothing measurable"
        remarks.append(f"On a gallery of its own, compatibility {cost}.")
    remarks.append(
        f"{percent(report.negative_flip_rate)} of the queries had a right first hit and lose it."
    )
    return remarks
