# SPDX-License-Identifier: Apache-2.0
"""The summary of a comparison's files: statistics by definition, the table."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from experiment_samples import METHODS_RUN, copy

from fclearn.experiments.records import load_records, per_query, record_path, save_record
from fclearn.experiments.summary import over_seeds, student_t, summarise
from fclearn.experiments.table import BEGIN, END, TABLE, write_summary
from fclearn.methods.base import Need


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (30, 2.0423)]
)
def test_student_t(degrees, quantile):
    assert student_t(degrees, 0.95) == pytest.approx(quantile, abs=1e-3)


def test_over_seeds_without_a_value():
    estimate = over_seeds([(0.5, None), (None, None)])
    assert (estimate.value, estimate.interval) == (None, None)


def test_summary_of_the_records(comparison):
    _, records = comparison
    summary = summarise(records)
    assert summary.seeds == (0, 1)
    assert {method.name for method in summary.methods} == set(METHODS_RUN)
    by_name = {method.name: method for method in summary.methods}
    assert by_name["ni-fcl"].gains == {}
    values = {
        (r["config"]["method"], r["config"]["train"]["seed"]): r["report"]["matrix"]["new/old"]
        for r in records
    }
    for metric in ("map", "cmc@1"):
        estimate = by_name["bct"].estimates["new/old", metric]
        own = [values["bct", seed][metric] for seed in (0, 1)]
        theirs = [values["ni-fcl", seed][metric] for seed in (0, 1)]
        assert estimate.value == pytest.approx(np.mean(own))
        gain = by_name["bct"].gains["new/old", metric]
        assert gain.value == pytest.approx(np.mean(own) - np.mean(theirs), abs=1e-4)
        assert gain.values == pytest.approx(np.subtract(own, theirs), abs=1e-4)
        low, high = gain.interval
        assert low < gain.value < high
    assert by_name["map-ridge"].gains["new/new", "map"].value is None


def test_paired_interval_is_that_of_the_differences(comparison):
    records = [r for r in comparison[1] if r["config"]["train"]["seed"] == 0]
    by_name = {method.name: method for method in summarise(records).methods}
    one, other = (per_query(r, "new/old", "map") for r in records[:2])
    assert [r["config"]["method"] for r in records[:2]] == ["ni-fcl", "bct"]
    low, high = by_name["bct"].gains["new/old", "map"].interval
    error = (other - one).std() / math.sqrt(len(one))
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.15)


def test_per_query_values_survive_the_file(comparison):
    for record in comparison[1]:
        for row in ("new/old", "new/new"):
            if row in record["report"]["matrix"]:
                for metric in ("map", "cmc@1"):
                    values = per_query(record, row, metric)
                    assert values.shape == (record["report"]["num_queries"],)
                    mean = record["report"]["matrix"][row][metric]
                    assert values.mean() == pytest.approx(mean, abs=1e-5)


def test_methods_are_ranked_by_update_gain(comparison):
    records = json.loads(json.dumps(comparison[1]))
    for record in records:
        place = METHODS_RUN.index(record["config"]["method"])
        record["report"]["update_gain"] = [0.1, 0.4, None, 0.2, 0.0][place]
    names = [method.name for method in summarise(records).methods]
    assert names == ["bct", "independent", "ni-fcl", "map-ridge", "bt2"]


def test_table_from_the_files(comparison, tmp_path):
    target = copy(comparison[0], tmp_path / "bench")
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    page.write_text(f"before\n{BEGIN}\nold text\n{END}\nafter\n", encoding="utf-8")
    write_summary(target, page)
    table = (target / TABLE).read_text(encoding="utf-8")
    assert "| `bct` | old features, old classifier |" in table
    assert "| `bt2` | old features, independent model's features |" in table
    assert "| `independent` | nothing |" in table
    assert "8 (96 images)" in table
    mean = np.mean([r["report"]["matrix"]["old/old"]["map"] for r in comparison[1]])
    assert f"| *old model, old gallery* | – | {100 * mean:.1f} [" in table
    for name in ("update_gain.png", "cross_self.png"):
        assert (target / name).read_bytes().startswith(b"\x89PNG")
        assert f"]({name})" in table
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{BEGIN}\nData: icons")
    assert text.endswith(f"(../bench/cross_self.png)\n{END}\nafter\n")
    assert "old text" not in text


def test_single_seed_has_its_interval_over_queries(comparison, tmp_path):
    target = copy(comparison[0], tmp_path / "one")
    for path in target.glob("*-seed1.json"):
        path.unlink()
    write_summary(target)
    report = load_records(target)[0]["report"]
    low, high = report["intervals"]["old/old"]["map"]
    value = report["matrix"]["old/old"]["map"]
    cell = f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    assert cell in (target / TABLE).read_text(encoding="utf-8")


def test_table_says_all_that_a_method_was_given(comparison, tmp_path):
    target = copy(comparison[0], tmp_path / "given")
    for record in load_records(target):
        if record["config"]["method"] == "bct":
            record["given"] = [need.name.lower() for need in Need]
            save_record(record_path(target, "bct", record["config"]["train"]["seed"]), record)
    write_summary(target)
    (row,) = (
        line
        for line in (target / TABLE).read_text(encoding="utf-8").splitlines()
        if line.startswith("| `bct` | old")
    )
    given = row.split(" | ")[1].split(", ")
    assert len(given) == len(Need) - 1  # all have labels
    assert "old model to ask" in given


def test_table_refuses(comparison, tmp_path):
    with pytest.raises(ValueError, match="expected results of fcl bench-methods"):
        write_summary(tmp_path)
    target = copy(comparison[0], tmp_path / "mixed")
    record = load_records(target)[0]
    record["config"]["label_noise"] = 0.25
    save_record(record_path(target, "l2", 0), record)
    with pytest.raises(ValueError, match=r"of another setting than .*\(label_noise differ\)"):
        write_summary(target)
    page = tmp_path / "page.md"
    page.write_text("no markers", encoding="utf-8")
    with pytest.raises(ValueError, match="expected the lines <!-- bench-methods: begin"):
        write_summary(copy(comparison[0], tmp_path / "whole"), page)
