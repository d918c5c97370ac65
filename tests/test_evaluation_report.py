# SPDX-License-Identifier: Apache-2.0
"""The compatibility report: verdict, gains, intervals; and its bootstrap."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from fclearn.evaluation import compatibility_report, evaluate_retrieval, paired_test, render_table
from fclearn.evaluation.intervals import bootstrap_means


def models(noise, num_rows=240, dim=12, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(num_rows) % 24
    centres = np.random.default_rng(99).standard_normal((24, dim))
    return [
        (centres[labels] + noise * rng.standard_normal((num_rows, dim))).astype(np.float32)
        for _ in range(2)
    ]


LABELS = {"query_labels": np.arange(240) % 24, "gallery_labels": np.arange(240) % 24}


def make_report(cross=0.9, new=0.8, independent=0.8, **kwargs):
    old_query, old_gallery = models(1.5)
    new_query = models(cross, seed=1)[0]
    wide_query, wide_gallery = models(new, seed=2)
    return compatibility_report(
        old_query=old_query, old_gallery=old_gallery,
        new_query=np.concatenate([new_query, wide_query], axis=1),
        new_gallery=np.concatenate([0 * wide_gallery, wide_gallery], axis=1),
        independent_query=models(independent, dim=20, seed=3)[0],
        independent_gallery=models(independent, dim=20, seed=3)[1],
        **{"num_bootstrap": 200, **LABELS, **kwargs},
    )  # fmt: skip


def test_report_is_consistent_with_single_evaluations():
    report = make_report()
    old_query, old_gallery = models(1.5)
    single = evaluate_retrieval(old_query, old_gallery, **LABELS)
    assert report.matrix["old/old"] == dict(single)
    matrix = {key: row["map"] for key, row in report.matrix.items()}
    room = matrix["independent/independent"] - matrix["old/old"]
    assert report.update_gain == pytest.approx((matrix["new/old"] - matrix["old/old"]) / room)
    assert report.self_test_tax == pytest.approx(
        matrix["independent/independent"] - matrix["new/new"]
    )
    first = {key: values["cmc@1"] for key, values in report.per_query.items()}
    flips = np.mean((first["old/old"] == 1) & (first["new/old"] == 0))
    assert report.negative_flip_rate == flips
    assert report.metrics == ("map", "cmc@1", "cmc@5")
    for key, row in report.intervals.items():
        for name, (low, high) in row.items():
            value = {
                **report.matrix, **report.differences, "update_gain": report.update_gains,
                "self_test_tax": report.self_test_taxes, "negative_flip_rate": {"cmc@1": flips},
            }[key][name]  # fmt: skip
            assert low <= value <= high, (key, name)


def test_report_has_p_values():
    report = make_report()
    values = [report.per_query[entry]["map"] for entry in ("old/old", "new/old")]
    assert report.p_values["map"] == paired_test(*values, num_samples=200).p_value
    assert set(report.p_values) == set(report.metrics)
    assert make_report(cross=1.5).p_values["map"] > 0.01 > report.p_values["map"]


def test_report_is_strict_json_and_reproducible():
    text = json.dumps(make_report().to_dict(), allow_nan=False)
    assert text == json.dumps(make_report().to_dict(), allow_nan=False)
    assert make_report(seed=1).intervals != make_report().intervals
    assert json.loads(text)["matrix"]["new/old"].keys() == {"map", "cmc@1", "cmc@5"}


def test_metrics_always_hold_what_the_verdict_needs():
    assert make_report(metrics=("ndcg@10",)).metrics == ("map", "ndcg@10", "cmc@1")


@pytest.mark.parametrize(
    ("cross", "status", "start"),
    [
        (0.9, "compatible", "Upgrade without re-indexing is worthwhile: new queries"),
        (1.5, "unclear", "Not decided, no clear difference: new queries"),
        (4.0, "incompatible", "Not compatible, keep the old model for queries or re-index: new"),
    ],
)
def test_verdict_follows_the_interval(cross, status, start):
    report = make_report(cross=cross)
    assert report.verdict.status == status
    assert report.verdict.text.startswith(start)
    low, high = report.intervals["new/old - old/old"]["map"]
    assert {"compatible": low > 0, "unclear": low <= 0 <= high, "incompatible": high < 0}[status]


#: One wrong row, then all that are right; all that are right.
FIRST_LOST, FIRST_KEPT = [0.8, 0.7, 0.1, 0.9], [0.9, 0.8, 0.1, 0.2]


def report_of_hits(new_query):
    """Old queries find one of ten right rows first and the other nine last.

    Axes: the first right row, the others, ten wrong rows, and a wrong row of its own.

    Args:
        new_query: Of all 30 queries, or of each.
    """
    gallery = np.repeat(np.eye(4, dtype=np.float32), [1, 9, 10, 1], axis=0)
    return compatibility_report(
        old_query=np.array([[1.0, 0.1, 0.3, 0.2]] * 30, np.float32), old_gallery=gallery,
        new_query=np.array(np.broadcast_to(new_query, (30, 4)), np.float32),
        query_labels=[0] * 30, gallery_labels=[0] * 10 + [1] * 11, num_bootstrap=50,
    )  # fmt: skip


def test_headline_and_status_say_that_the_first_hit_gets_worse():
    report = report_of_hits(FIRST_LOST)
    assert report.differences["new/old - old/old"]["map"] > 0.1
    assert report.differences["new/old - old/old"]["cmc@1"] == -1
    verdict = report.verdict
    assert verdict.status == report.to_dict()["verdict"]["status"] == "mixed"
    assert verdict.headline == (
        "Finds more, but the first hit is worse (CMC@1 −100.0 points); look before you switch"
    )
    assert "CMC@1 falls from 100.0% to 0.0% (−100.0 points, 95% interval" in verdict.details


def test_a_first_hit_as_good_as_before_leaves_the_upgrade_worthwhile():
    verdict = report_of_hits(FIRST_KEPT).verdict
    assert verdict.status == "compatible"
    assert verdict.headline == "Upgrade without re-indexing is worthwhile"
    assert "first hit, however" not in verdict.details


def test_a_fall_of_the_first_hit_that_may_be_chance_is_said():
    report = report_of_hits([FIRST_LOST] * 2 + [FIRST_KEPT] * 28)
    row = "new/old - old/old"
    assert report.differences[row]["cmc@1"] == pytest.approx(-2 / 30)
    assert report.intervals[row]["cmc@1"][1] == 0
    verdict = report.verdict
    assert verdict.status == "compatible"
    assert verdict.headline == (
        "Upgrade without re-indexing is worthwhile, but the first hit may be worse "
        "(CMC@1 −6.7 points)"
    )
    said = "may get worse: CMC@1 falls from 100.0% to 93.3% (−6.7 points, 95% interval −"
    assert said in verdict.details


@pytest.mark.parametrize(("change", "is_said"), [(-0.011, True), (0.87 - 0.88, False)])
def test_a_fall_of_no_more_than_a_point_that_may_be_chance_is_not_said(change, is_said):
    report = report_of_hits(FIRST_KEPT)
    row = "new/old - old/old"
    verdict = replace(
        report,
        differences={**report.differences, row: {**report.differences[row], "cmc@1": change}},
        intervals={**report.intervals, row: {**report.intervals[row], "cmc@1": (-0.03, 0.01)}},
    ).verdict
    assert verdict.status == "compatible"
    assert ("may be worse" in verdict.headline) == is_said
    assert ("may get worse" in verdict.details) == is_said


def test_no_clear_difference_does_not_hide_a_worse_first_hit():
    report = report_of_hits(FIRST_LOST)
    row = "new/old - old/old"
    around_zero = {**report.intervals[row], "map": (-0.1, 0.1)}
    verdict = replace(report, intervals={**report.intervals, row: around_zero}).verdict
    assert verdict.status == "unclear"
    assert verdict.headline == "Not decided, but the first hit is worse (CMC@1 −100.0 points)"


def test_gain_is_undefined_without_room():
    old_query, old_gallery = models(1.5)
    report = compatibility_report(
        old_query=old_query, old_gallery=old_gallery, new_query=models(0.9, seed=1)[0],
        independent_query=old_query, independent_gallery=old_gallery, num_bootstrap=50, **LABELS,
    )  # fmt: skip
    assert report.update_gain is None
    assert report.intervals["update_gain"]["map"] is None
    assert report.self_test_tax is None
    json.dumps(report.to_dict(), allow_nan=False)
    table = io.StringIO()
    Console(file=table, width=120).print(render_table(report))
    assert "update gain" in table.getvalue()
    assert "self-test tax" not in table.getvalue()


def test_gain_has_no_interval_when_its_denominator_may_be_zero():
    report = make_report(independent=1.95)
    assert report.update_gain is None or report.intervals["update_gain"]["map"] is None


def test_self_exclusion_reaches_every_entry():
    rows, _ = models(1.5)
    new, _ = models(0.9, seed=1)
    report = compatibility_report(
        old_query=rows, old_gallery=rows, new_query=new, new_gallery=new, exclude_self=True,
        num_bootstrap=20, **LABELS,
    )  # fmt: skip
    single = evaluate_retrieval(
        new, rows, exclude_self=True, query_ids=range(240), gallery_ids=range(240), **LABELS
    )
    assert report.matrix["new/old"] == dict(single)
    assert report.matrix["old/old"]["cmc@1"] < 1


def test_report_table():
    table = io.StringIO()
    Console(file=table, width=120).print(render_table(make_report()))
    for text in ("old/old", "new/old", "mAP", "CMC@1", "update gain", "self-test tax", "95%"):
        assert text in table.getvalue()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_bootstrap": 0}, "num_bootstrap: expected at least 1, got 0"),
        ({"confidence": 1.0}, r"confidence: expected a number in \(0, 1\), got 1.0"),
        ({"independent_gallery": None}, "independent_query and independent_gallery: expected both"),
        (
            {"new_query": np.ones((240, 3), np.float32)},
            r"new/old \(query/gallery\): query: expected",
        ),
        ({"metrics": ("top1",)}, "unknown metric 'top1'"),
    ],
)
def test_bad_reports(changes, message):
    rows, gallery = models(1.5)
    arguments = {
        "old_query": rows, "old_gallery": gallery, "new_query": rows, "independent_query": rows,
        "independent_gallery": gallery, **LABELS, **changes,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        compatibility_report(**arguments)


def test_bootstrap_of_a_mean_matches_its_standard_error():
    values = np.random.default_rng(0).standard_normal((400, 2))
    means = bootstrap_means(values, 4000, seed=0)
    assert means.shape == (4000, 2)
    np.testing.assert_allclose(means.std(axis=0), values.std(axis=0) / 20, rtol=0.05)
    np.testing.assert_allclose(means.mean(axis=0), values.mean(axis=0), atol=0.005)


def test_bootstrap_does_not_depend_on_its_chunks(monkeypatch):
    values = np.random.default_rng(0).standard_normal((30, 2))
    whole = bootstrap_means(values, 100, seed=0)
    monkeypatch.setattr("fclearn.evaluation.intervals._CHUNK_ELEMENTS", 70)
    np.testing.assert_allclose(bootstrap_means(values, 100, seed=0), whole, rtol=1e-12)
