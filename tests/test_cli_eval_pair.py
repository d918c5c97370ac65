# SPDX-License-Identifier: Apache-2.0
"""``fcl eval`` of an old and a new model: table, gates, groups, reports."""

from __future__ import annotations

import numpy as np
import pytest
from cli_samples import refused, write_store


def evaluate(work, *more):
    return ["eval", "--old-query", work / "old-store", "--new-query", work / "new-store", *more]


def test_eval_prints_a_table_and_a_verdict(work, fcl):
    code, result, error = fcl(*evaluate(work))
    assert code == 0
    assert result is None
    assert "new/old" in error
    assert "mAP" in error


def test_eval_json_and_gates(work, fcl):
    passing = ["--gate", "new/new.map>=0", "--gate", "negative_flip_rate <= 1"]
    code, result, error = fcl(*evaluate(work, "--json", "--num-bootstrap", 20, *passing))
    assert code == 0
    assert result["passed"] is True
    assert [gate["passed"] for gate in result["gates"]] == [True, True]
    assert set(result["matrix"]) == {"old/old", "new/old", "new/new"}
    assert result["update_gain"] is None
    assert "gate passed: new/new.map>=0" in error

    code, result, error = fcl(*evaluate(work, "--json", "--gate", "new/old.map>1", *passing))
    assert code == 1
    assert result["passed"] is False
    assert [gate["passed"] for gate in result["gates"]] == [False, True, True]
    assert result["gates"][0]["value"] == result["matrix"]["new/old"]["map"]
    assert "gate FAILED: new/old.map>1" in error


def test_gates_compare_entries(work, fcl):
    _, result, _ = fcl(*evaluate(work, "--json"))
    better = result["matrix"]["new/old"]["map"] > result["matrix"]["old/old"]["map"]
    code, _, _ = fcl(*evaluate(work, "--gate", "new/old.map>old/old.map"))
    assert code == (0 if better else 1)


def test_an_own_gallery_leaves_out_the_query_itself(work, fcl):
    _, alone, _ = fcl(*evaluate(work, "--json", "--num-bootstrap", 5))
    both = ["--old-gallery", work / "old-store", "--new-gallery", work / "new-store"]
    _, named, _ = fcl(*evaluate(work, *both, "--json", "--num-bootstrap", 5))
    assert alone == named
    assert alone["matrix"]["old/old"]["map"] < 1


def synthetic(tmp_path):
    """Old features that confuse two classes, new ones that do not, the latter in another order."""
    generator = np.random.default_rng(0)
    labels = np.arange(40) % 4
    clean = np.eye(4)[labels] + 0.1 * generator.normal(size=(40, 4))
    noisy = clean + 0.6 * generator.normal(size=(40, 4))
    order = generator.permutation(40)
    ids = [f"i{row}" for row in order]
    return {
        "old": write_store(tmp_path / "old", noisy, labels, "old"),
        "new": write_store(tmp_path / "new", clean[order], labels[order], "new", ids),
        "independent": write_store(tmp_path / "ind", clean, labels, "ind"),
    }


def test_eval_with_an_independent_model_matches_rows_by_id(fcl, tmp_path):
    stores = synthetic(tmp_path)
    code, result, _ = fcl(
        *("eval", "--old-query", stores["old"], "--new-query", stores["new"]),
        *("--independent-query", stores["independent"], "--json"),
        *("--gate", "update_gain>=0.2", "--gate", "self_test_tax<=0"),
    )
    assert code == 0
    # The new and the independent features are the same rows in another order.
    assert result["matrix"]["new/new"] == pytest.approx(result["matrix"]["independent/independent"])
    assert result["self_test_tax"] == pytest.approx(0)


def test_a_verdict_of_few_queries_says_so(fcl, work, tmp_path):
    assert "decide little" not in fcl(*evaluate(work))[2]
    rows = np.eye(4)[np.arange(40) % 4] + 0.1
    gallery = ["--old-gallery", write_store(tmp_path / "g", rows, np.arange(40) % 4)]
    for count, text in (
        (19, "note: 19 queries decide little"),
        (1, "note: 1 query decides"),
        (20, ""),
    ):
        asked = write_store(tmp_path / f"q{count}", rows[:count], np.arange(count) % 4)
        pair = ["eval", "--old-query", asked, "--new-query", asked]
        code, _, error = fcl(*pair, *gallery, "--num-bootstrap", 10)
        assert code == 0, error
        assert ("little" in error) == bool(text)
        assert text in error


@pytest.mark.parametrize("form", ["single", "chain"])
def test_numbers_of_few_queries_without_a_verdict_say_so_too(form, fcl, tmp_path):
    rows = np.eye(4)[np.arange(40) % 4] + 0.1
    gallery = write_store(tmp_path / "g", rows, np.arange(40) % 4)
    for count in (19, 20):
        asked = write_store(tmp_path / f"q{count}", rows[:count], np.arange(count) % 4)
        options = {
            "single": ["--query", asked, "--gallery", gallery],
            "chain": ["--model", asked, "--model-gallery", gallery] * 2,
        }
        code, _, error = fcl("eval", *options[form], "--num-bootstrap", 10)
        assert code == 0, error
        assert ("note: 19 queries decide little" in error) == (count == 19)
        assert ("little" in error) == (count == 19)


def test_an_update_gain_without_a_value_fails_its_gate(fcl, tmp_path):
    stores = synthetic(tmp_path)
    code, result, error = fcl(
        *("eval", "--old-query", stores["independent"], "--new-query", stores["new"]),
        *("--independent-query", stores["independent"], "--json", "--gate", "update_gain>=0"),
    )
    assert code == 1
    assert result["gates"] == [{"gate": "update_gain>=0", "value": None, "passed": False}]
    assert "update_gain is undefined" in error


def test_eval_with_groups(fcl, tmp_path):
    """Twins of one group are all that old features match: without them nothing is right."""
    rows = np.repeat(np.eye(4), 2, axis=0)
    store = write_store(
        tmp_path / "s", rows, [0, 0, 1, 1, 0, 0, 1, 1], group=[0, 0, 1, 1, 2, 2, 3, 3]
    )
    first_hits = []
    for more in ([], ["--use-groups"]):
        _, result, _ = fcl("eval", "--old-query", store, "--new-query", store, "--json", *more)
        first_hits.append(result["matrix"]["old/old"]["cmc@1"])
    assert first_hits[0] == 1
    assert first_hits[1] < 1


@pytest.mark.parametrize(
    ("gate", "part"),
    [
        ("new/old.map", "--gate: expected NAME>=NUMBER (or <=, >, <), as in update_gain>=0.2"),
        ("new/old.mapp>0", "unknown name 'new/old.mapp'; did you mean 'new/old.map'?"),
        ("new/old.map>nan", "unknown name 'nan'"),
        ("update_gain>0", "update_gain needs --independent-query"),
        ("negative_flip_rate<=5", "always in [0, 1], got 5; gates are on fractions: 5 % is 0.05"),
        ("new/old.map>=-0.1", "new/old.map is always in [0, 1], got -0.1"),
    ],
)
def test_refused_gates(work, fcl, gate, part):
    assert refused(fcl(*evaluate(work, "--gate", gate)), part)


def test_eval_refuses_stores_that_do_not_agree(fcl, work, tmp_path):
    old, new = work / "old-store", work / "new-store"
    assert refused(
        fcl("eval", "--old-query", old, "--old-gallery", new, "--new-query", new),
        "--old-query and --old-gallery: refusing to mix features: model 'small-cnn independent",
    )
    few = write_store(tmp_path / "few", np.ones((2, 8)), [0, 1])
    assert refused(
        fcl("eval", "--old-query", old, "--new-query", few), f"{few}: no features for", " ids of "
    )
    assert refused(
        fcl("eval", "--old-query", old, "--new-query", tmp_path / "none"),
        "expected the folder of a feature store, found nothing",
    )
    assert refused(fcl(*evaluate(work, "--use-groups")), "--use-groups needs a column 'group'")
    assert refused(fcl(*evaluate(work, "--new-gallery", new)), "--old-gallery: expected one")
    assert refused(
        fcl(*evaluate(work, "--old-gallery", old, "--independent-query", new)),
        "--independent-query and --independent-gallery: expected both or neither",
    )
    assert refused(fcl(*evaluate(work, "--metrics", "map,nap")), "nap")


def test_reports_are_written_and_rebuilt(work, fcl, tmp_path):
    folder = tmp_path / "report"
    code, measured, _ = fcl(*evaluate(work, "--report", folder, "--json", "--num-bootstrap", 9))
    assert code == 0
    (folder / "report.html").unlink()
    code, rebuilt, error = fcl("report", folder, "--json")
    assert code == 0
    assert rebuilt["matrix"] == measured["matrix"]
    assert rebuilt["stores"][0] == str(work / "old-store")
    assert (folder / "report.html").stat().st_size > 10_000
    assert str(folder / "report.html") in error

    assert refused(fcl("report", tmp_path), "expected the folder of a report, found no report.json")
    (folder / "report.json").write_text("{", encoding="utf-8")
    assert refused(fcl("report", folder), "report.json: not JSON")
    (folder / "report.json").write_text("{}", encoding="utf-8")
    assert refused(fcl("report", folder), "is not that of a report")
