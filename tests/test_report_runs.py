# SPDX-License-Identifier: Apache-2.0
"""Reports side by side: their tables and differences, and what may not stand side by side."""

from __future__ import annotations

import json
import re
import shutil
from itertools import pairwise
from typing import get_args, get_type_hints

import numpy as np
import pytest
from PIL import Image
from test_report import Page

from fclearn.cli import main
from fclearn.evaluation import Verdict, chain_report, compatibility_report, paired_test
from fclearn.features import FeatureStore, Fingerprint
from fclearn.probe import probe
from fclearn.report import (
    describe_items,
    rebuild,
    write_chain_report,
    write_comparison,
    write_probe_report,
    write_report,
)
from fclearn.report._pictures import decode
from fclearn.report._template import SIGNS
from fclearn.report.items import read_per_query

LABELS = np.arange(60) % 6
IDS = [f"item-{row}" for row in range(60)]
EVIL = "<script>alert(1)</script>"


def rows(noise, seed):
    centres = np.random.default_rng(9).standard_normal((6, 8))
    random = np.random.default_rng(seed).standard_normal((60, 8))
    return (centres[LABELS] + noise * random).astype(np.float32)


def write_upgrade(folder, noise, *, order=None, labels=LABELS, ids=IDS, **facts):
    """A report of an upgrade; in another order of rows, the same report."""
    order = np.arange(60) if order is None else order
    old, new = rows(2.0, 1)[order], rows(noise, 3)[order]
    labels, ids = labels[order], [ids[at] for at in order]
    ranking = {"exclude_self": True, "query_ids": ids, "gallery_ids": ids}
    report = compatibility_report(
        old_query=old, old_gallery=old, new_query=new, new_gallery=new,
        query_labels=labels, gallery_labels=labels, num_bootstrap=50, **ranking,
    )  # fmt: skip
    items = describe_items(labels, labels, **ranking)
    write_report(folder, report=report, items=items, facts={"command": f"make {EVIL}", **facts})
    return report


def write_chain(folder, seeds=(1, 3, 5)):
    models = [rows(noise, seed) for noise, seed in zip((2.0, 1.4, 0.8), seeds, strict=True)]
    ranking = {"exclude_self": True, "query_ids": IDS, "gallery_ids": IDS}
    report = chain_report(
        models, models, query_labels=LABELS, gallery_labels=LABELS, num_bootstrap=50, **ranking
    )
    items = describe_items(LABELS, LABELS, **ranking)
    write_chain_report(folder, report=report, items=items)
    return report


def write_probe(folder):
    result = probe(
        old=rows(1.6, 1), new=rows(1.0, 3), labels=LABELS, adapters=["ridge", "mean-shift"],
        num_bootstrap=50,
    )  # fmt: skip
    write_probe_report(folder, result=result, notes=[EVIL], facts={"command": f"probe {EVIL}"})
    return result


def page(folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text
    return text


def test_a_probe_says_its_verdict_and_every_way(tmp_path):
    result = write_probe(tmp_path / "p")
    text = page(tmp_path / "p")
    shown = Page(text)
    assert result.text.replace("'", "&#39;") in text
    (picture,) = shown.all("img")
    for way in result.ways:
        assert f"{100 * way.metrics['map']:.1f}" in picture["alt"]
        assert way.name in picture["alt"]
    assert EVIL not in text
    data = json.loads((tmp_path / "p" / "report.json").read_text())
    assert data["notes"] == [EVIL]
    # Counts have their places, and are not listed by name.
    assert not [key for key in data if key.startswith("num_") and key.replace("_", " ") in text]
    rebuild(tmp_path / "p")
    assert page(tmp_path / "p") == text
    write_upgrade(tmp_path / "a", 0.8)
    data = write_comparison([tmp_path / "a", tmp_path / "p"], tmp_path / "both")
    assert [run["kind"] for run in data["runs"]] == ["upgrade", "probe"]
    assert "Probe p" in page(tmp_path / "both")


def test_upgrades_side_by_side_are_paired_by_id(tmp_path):
    order = np.random.default_rng(4).permutation(60)
    first = write_upgrade(tmp_path / "a", 1.5)
    second = write_upgrade(tmp_path / "b", 0.8, order=order)
    data = write_comparison([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    assert json.loads((tmp_path / "both" / "comparison.json").read_text()) == data
    back = np.argsort(order)
    for entry in ("new/old", "new/new"):
        for metric in first.metrics:
            (found,) = (
                one
                for one in data["differences"]
                if (one["entry"], one["metric"]) == (entry, metric)
            )
            expected = paired_test(
                first.per_query[entry][metric], second.per_query[entry][metric][back]
            )
            assert (found["run"], found["baseline"]) == ("b", "a")
            assert found["test"]["difference"] == pytest.approx(expected.difference)
            assert found["test"]["p_value"] == expected.p_value
    text = page(tmp_path / "both")
    for report in (first, second):
        for metric in report.metrics:
            assert f"{100 * report.matrix['new/old'][metric]:.1f}" in text
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize("status", get_args(get_type_hints(Verdict)["status"]))
def test_every_status_has_a_sign_and_a_colour(tmp_path, status):
    for name in ("a", "b"):
        write_upgrade(tmp_path / name, 0.8)
    path = tmp_path / "a" / "report.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["verdict"] |= {"status": status, "headline": "This it is"}
    path.write_text(json.dumps(data), encoding="utf-8")
    rebuild(tmp_path / "a")
    text = page(tmp_path / "a")
    box = text[text.index(f'<section class="verdict {status}"') :]
    assert f">{SIGNS[status]}</span>" in box
    assert re.search(rf"\.{status}\b[^{{]*{{ background", text)
    write_comparison([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    assert f"{SIGNS[status]} This it is" in page(tmp_path / "both")


def test_chains_and_a_single_upgrade_on_one_page(tmp_path):
    chain = write_chain(tmp_path / "chain")
    write_chain(tmp_path / "other", seeds=(1, 4, 6))
    write_upgrade(tmp_path / "up", 0.8)
    folders = [tmp_path / name for name in ("up", "chain", "other")]
    write_comparison(folders, tmp_path / "all")
    text = page(tmp_path / "all")
    for title in ("Upgrades side by side", "Chains side by side", "Chain chain", "Chain other"):
        assert f"<h2>{title}</h2>" in text
    for value in chain.numbers().values():
        assert f"{100 * value:.1f}".replace("-", "−") in text


def test_a_chain_has_a_page_of_its_own(tmp_path):
    chain = write_chain(tmp_path)
    before = page(tmp_path)
    (tmp_path / "report.html").unlink()
    assert rebuild(tmp_path)["models"] == ["1", "2", "3"]
    assert page(tmp_path) == before
    for i in range(3):
        for j in range(i + 1):
            assert f"<td>{100 * chain.matrix[i, j]:.1f}<span>[" in before
    gain = 100 * (chain.matrix[2, 0] - chain.matrix[0, 0])
    assert f"{gain:+.1f}".replace("-", "−") in before
    ids, values = read_per_query(tmp_path)
    assert ids == IDS
    np.testing.assert_array_equal(values["3/1"]["map"], chain.per_query["3/1"])


@pytest.mark.parametrize("noise", [0.2, 2.0, 12.0])
def test_the_verdict_of_a_chain_follows_its_paired_intervals(tmp_path, noise):
    models = [rows(2.0, 1), rows(noise, 3)]
    report = chain_report(
        models, models, query_labels=LABELS, gallery_labels=LABELS, exclude_self=True,
        num_bootstrap=200,
    )  # fmt: skip
    low, high = report.gain_intervals["2/1"]
    assert low <= report.matrix[1, 0] - report.matrix[0, 0] <= high
    write_chain_report(tmp_path, report=report)
    status = "compatible" if low > 0 else "incompatible" if high < 0 else "unclear"
    assert f'<section class="verdict {status}"' in page(tmp_path)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"labels": LABELS[::-1].copy()}, "queries (60 each, other ids, labels or groups)"),
        ({"ids": [f"other-{row}" for row in range(60)]}, "gallery rows (60 each, other ids"),
    ],
)
def test_other_queries_are_named(tmp_path, change, part):
    write_upgrade(tmp_path / "a", 1.0)
    write_upgrade(tmp_path / "b", 1.0, **change)
    with pytest.raises(ValueError, match="expected the same queries and gallery") as caught:
        write_comparison([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    for wanted in (str(tmp_path / "a"), str(tmp_path / "b"), part):
        assert wanted in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_another_protocol_is_named(tmp_path):
    write_upgrade(tmp_path / "a", 1.0)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    data = json.loads((tmp_path / "b" / "report.json").read_text())
    data["items"]["protocol"]["metric"] = "l2"
    (tmp_path / "b" / "report.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"differ in metric \(cosine and l2\)"):
        write_comparison([tmp_path / "a", tmp_path / "b"], tmp_path / "out")


def test_folders_that_cannot_stand_side_by_side(tmp_path):
    report = write_upgrade(tmp_path / "a", 1.0)
    write_report(tmp_path / "unsaid", report=report)
    with pytest.raises(ValueError, match="does not say which queries"):
        write_comparison([tmp_path / "a", tmp_path / "unsaid"], tmp_path / "out")
    with pytest.raises(ValueError, match="two or more folders, each once"):
        write_comparison([tmp_path / "a", tmp_path / "a"], tmp_path / "out")
    with pytest.raises(ValueError, match="a folder other than the runs'"):
        write_comparison([tmp_path / "a", tmp_path / "unsaid"], tmp_path / "a")
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match=r"found no report\.json"):
        write_comparison([tmp_path / "a", tmp_path / "none"], tmp_path / "out")
    for content in ("[]", '{"kind": "other"}'):
        (tmp_path / "none" / "report.json").write_text(content)
        with pytest.raises(ValueError, match="is not that of a report"):
            rebuild(tmp_path / "none")
    (tmp_path / "none" / "report.json").write_text('{"kind": "chain"}')
    with pytest.raises(ValueError, match="is not that of a chain"):
        rebuild(tmp_path / "none")


def test_values_per_query_are_optional_but_never_wrong(tmp_path):
    for name in ("a", "b", "c"):
        write_upgrade(tmp_path / name, 1.0)
    folders = [tmp_path / name for name in ("a", "b", "c")]
    (tmp_path / "b" / "per_query.npz").unlink()
    data = write_comparison(folders, tmp_path / "out")
    assert {one["run"] for one in data["differences"]} == {"c"}
    assert "without paired differences: b" in page(tmp_path / "out")
    np.savez(tmp_path / "c" / "per_query.npz", ids=np.array(["x"]), **{"new/old map": np.ones(1)})
    with pytest.raises(ValueError, match=r"per_query\.npz is not of the queries"):
        write_comparison(folders, tmp_path / "out")
    # A later report that does not say its items does not keep the values of the one before.
    write_report(tmp_path / "a", report=write_upgrade(tmp_path / "d", 1.0))
    assert read_per_query(tmp_path / "a") is None


class Evil:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize("kind", ["pickle", "objects", "cut", "shape"])
def test_hostile_values_per_query(tmp_path, capsys, kind):
    path = tmp_path / "per_query.npz"
    if kind == "pickle":
        np.save(tmp_path / "x.npy", np.array([Evil()], dtype=object), allow_pickle=True)
        path.write_bytes((tmp_path / "x.npy").read_bytes())
    elif kind == "objects":
        np.savez(path, ids=np.array([Evil()], dtype=object))
    elif kind == "shape":
        np.savez(path, ids=np.array(["a", "b"]), **{"new/old map": np.ones(3)})
    else:
        np.savez(path, ids=np.array(["a", "b"]))
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"per_query\.npz: not the values per query"):
        read_per_query(tmp_path)
    assert "run" not in capsys.readouterr().out


@pytest.fixture
def stores(tmp_path):
    """An old and a new store with texts."""
    for name, noise, seed in (("old", 2.0, 1), ("new", 0.8, 3)):
        FeatureStore.write(
            tmp_path / name,
            rows(noise, seed),
            {"id": IDS, "label": LABELS, "text": [f"says {EVIL} {row}" for row in range(60)]},
            Fingerprint(name, 8, norm="none"),
        )
    return tmp_path


def test_commands_from_stores_to_one_page(stores, capsys):
    old, new = f"{stores}/old", f"{stores}/new"
    few = ["--num-bootstrap", "20"]
    pair = ["eval", "--old-query", old, "--new-query", new, *few]
    assert main([*pair, "--report", f"{stores}/a"]) == 0
    assert main([*pair, "--seed", "1", "--report", f"{stores}/b"]) == 0
    chain = ["eval", "--model", old, "--model", new, *few, "--report", f"{stores}/chain"]
    assert main(chain) == 0
    plan = ["plan", "--old-features", old, "--new-features", new, "--out", f"{stores}/plan", *few]
    assert main(plan) == 0
    assert main([*plan, "--replace", "--json"]) == 0
    capsys.readouterr()
    runs = [f"{stores}/{name}" for name in ("a", "b", "chain", "plan")]
    assert main(["report", *runs, "--out", f"{stores}/all", "--json"]) == 0
    out = capsys.readouterr()
    assert [run["kind"] for run in json.loads(out.out)["runs"]] == [
        "upgrade", "upgrade", "chain", "plan",
    ]  # fmt: skip
    text = page(stores / "all")
    for command in (pair, chain, plan):
        assert " ".join(["fcl", *command[:5]]) in text
    assert "Backfill plan" in text
    # The old model's texts as queries to look at, and the command to repeat it.
    text = page(stores / "a")
    assert "Queries to look at" in text
    assert "says &lt;script&gt;" in text
    assert "--report" in text
    for name in ("a", "chain", "plan"):
        before = page(stores / name)
        (stores / name / "report.html").unlink()
        assert main(["report", f"{stores}/{name}"]) == 0
        assert page(stores / name) == before


def test_refused_commands(stores, capsys):
    old, new = f"{stores}/old", f"{stores}/new"
    refused = {
        "--out: expected several runs": ["report", old, "--out", new],
        "--out: expected a folder": ["report", old, new],
        "found no report.json": ["report", old],
        "--report: expected two models or a chain": ["eval", "--query", old, "--report", new],
    }
    for part, command in refused.items():
        assert main(command) == 2
        error = capsys.readouterr().err
        assert part in error
        assert error.count("\n") == 1


def test_a_report_takes_the_place_of_none_of_another_kind(stores, capsys):
    old, new, out = f"{stores}/old", f"{stores}/new", stores / "out"
    few = ["--num-bootstrap", "20"]
    commands = {
        "upgrade": ["eval", "--old-query", old, "--new-query", new, *few, "--report", f"{out}"],
        "chain": ["eval", "--model", old, "--model", new, *few, "--report", f"{out}"],
        "probe": ["probe", "--old", old, "--new", new, *few, "--report", f"{out}"],
        "plan": ["plan", "--old-features", old, "--new-features", new, *few, "--out", f"{out}"],
    }
    for kind in ("upgrade", "plan"):
        shutil.rmtree(out, ignore_errors=True)
        assert main(commands[kind]) == 0
        # Its own is written again.
        assert main([*commands[kind], *(["--replace"] if kind == "plan" else [])]) == 0
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        for other in commands.keys() - {kind}:
            capsys.readouterr()
            assert main(commands[other]) == 2
            error = capsys.readouterr().err
            assert f"{out}: expected a folder without another report" in error
            assert f"found one of kind {kind!r}, wanted {other!r}" in error
            assert error.count("\n") == 1  # before there were any numbers to print
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert main([*commands["upgrade"][:-1], f"{stores}/a"]) == 0
    assert main(["report", f"{stores}/a", f"{out}", "--out", f"{stores}/all"]) == 0
    assert main(["report", f"{stores}/a", f"{out}", "--out", f"{stores}/all"]) == 0
    shutil.copytree(stores / "a", stores / "b")
    capsys.readouterr()
    assert main(["report", f"{stores}/a", f"{out}", "--out", f"{stores}/b"]) == 2
    assert "found one of kind 'upgrade', wanted 'comparison'" in capsys.readouterr().err
    # Nobody's page, and a file.
    shutil.rmtree(out)
    out.mkdir()
    (out / "report.html").write_text("mine")
    assert main(commands["upgrade"]) == 2
    assert "found one of kind 'unknown'" in capsys.readouterr().err
    shutil.rmtree(out)
    out.write_text("mine")
    assert main(commands["probe"]) == 2
    assert "expected a folder for the report, found a file" in capsys.readouterr().err


def test_a_report_goes_into_no_feature_store(stores, capsys):
    old, new = f"{stores}/old", f"{stores}/new"
    before = sorted(path.name for path in (stores / "old").iterdir())
    for command in (
        ["eval", "--old-query", old, "--new-query", new, "--report", old],
        ["eval", "--model", old, "--model", new, "--report", old],
        ["probe", "--old", old, "--new", new, "--report", old],
    ):
        assert main(command) == 2
        assert f"{old}: expected a folder for the report, found a feature store" in (
            capsys.readouterr().err
        )
    assert sorted(path.name for path in (stores / "old").iterdir()) == before


def test_a_plan_of_another_release_is_refused(tmp_path):
    (tmp_path / "curve.json").write_text(json.dumps({"curve": {}, "counts": {}, "budget": 1}))
    with pytest.raises(ValueError, match=r"curve\.json: not the numbers of a plan"):
        rebuild(tmp_path)


def test_common_pages_are_accessible_and_need_nothing_else(tmp_path):
    write_upgrade(tmp_path / "a", 1.5)
    write_upgrade(tmp_path / "b", 0.8)
    write_chain(tmp_path / "chain")
    write_comparison([tmp_path / name for name in ("a", "b", "chain")], tmp_path / "all")
    for name in ("chain", "all"):
        text = page(tmp_path / name)
        assert "default-src 'none'" in text
        assert not re.search(r"(?:src|href)=\"(?!data:)", text)
        shown = Page(text)
        assert shown.all("html")[0]["lang"] == "en"
        assert len(shown.all("caption")) == len(shown.all("table")) > 0
        assert {cell["scope"] for cell in shown.all("th")} == {"row", "col"}
        assert all(picture["alt"] for picture in shown.all("img"))
        headings = [int(tag[1]) for tag, _ in shown.tags if re.fullmatch("h[1-6]", tag)]
        assert headings[0] == 1
        assert headings.count(1) == 1
        assert all(after - before <= 1 for before, after in pairwise(headings))
        regions = [one for one in shown.all("div") if one.get("role") == "region"]
        assert regions
        assert all(one["aria-label"] and one["tabindex"] == "0" for one in regions)


def test_pictures_of_a_manifest(tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 9, 9, 3), dtype=np.uint8)
    paths = [f"pictures/{row}.png" for row in range(60)]
    for name, noise, seed in (("old", 2.0, 1), ("new", 0.8, 3)):
        FeatureStore.write(
            tmp_path / name,
            rows(noise, seed),
            {"id": IDS, "label": LABELS, "path": paths},
            Fingerprint(name, 8, norm="none"),
        )
    folder = tmp_path / "old" / "pictures"
    folder.mkdir()
    for row, path in enumerate(paths):
        Image.fromarray(pixels[row]).save(tmp_path / "old" / path)
    command = ["eval", "--old-query", f"{tmp_path}/old", "--new-query", f"{tmp_path}/new"]
    command += ["--num-bootstrap", "20", "--report", f"{tmp_path}/run"]
    assert main(command) == 0
    stored = json.loads((tmp_path / "run" / "retrieval_examples.json").read_text())
    shown = [decode(example["image"]).tolist() for example in stored]
    assert all(image in pixels.tolist() for image in shown)
    assert "Queries to look at" in page(tmp_path / "run")
    # Numbers do not depend on pictures.
    for path in folder.iterdir():
        path.write_bytes(b"not a picture")
    capsys.readouterr()
    assert main(command) == 0
    assert "no queries to look at: " in capsys.readouterr().err
    assert "Queries to look at" not in page(tmp_path / "run")
