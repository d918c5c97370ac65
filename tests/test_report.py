# SPDX-License-Identifier: Apache-2.0
"""The report: its files, its numbers, and that nothing on the page is taken for markup."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from fclearn.evaluation import compatibility_report, top_hits
from fclearn.report import (
    Hit,
    RetrievalExample,
    make_examples,
    pick_examples,
    rebuild_report,
    write_report,
)

EVIL = '<script>alert("1")</script> & \'$x$'
LABELS = np.arange(60) % 6


class Page(html.parser.HTMLParser):
    """Collects tags, attributes and text; refuses tags that do not nest."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.stack = [], [], []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack[-1:] != ["style"]:
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def rows(noise, seed, dim=8):
    centres = np.random.default_rng(9).standard_normal((6, dim))
    random = np.random.default_rng(seed).standard_normal((60, dim))
    return (centres[LABELS] + noise * random).astype(np.float32)


FEATURES = {"old_query": rows(2.0, 1), "old_gallery": rows(2.0, 2), "new_query": rows(1.0, 3)}


def make_report(**changes):
    arguments = {
        **FEATURES, "new_gallery": rows(1.0, 4), "independent_query": rows(0.9, 5),
        "independent_gallery": rows(0.9, 6), "query_labels": LABELS, "gallery_labels": LABELS,
        "num_bootstrap": 100, **changes,
    }  # fmt: skip
    return compatibility_report(**arguments)


def pictures(shape=(12, 10)):
    return np.random.default_rng(0).integers(0, 256, (60, *shape), dtype=np.uint8)


def examples(report, **changes):
    arguments = {
        **FEATURES, "query_images": pictures(), "gallery_images": pictures(),
        "query_labels": LABELS, "gallery_labels": LABELS, **changes,
    }  # fmt: skip
    return make_examples(report, **arguments)


HISTORY = [
    {"epoch": epoch, "loss_new": 2.0 / epoch, "loss_compat": 0.0, "accuracy": 0.1, "seconds": 1.5}
    for epoch in (1, 2, 3)
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "history.csv").write_text(
        "epoch,loss_new,loss_compat,accuracy,seconds\n1,3.0,2.0,0.2,5\n2,2.0,nan,0.4,5\n"
    )
    report = make_report()
    content = write_report(
        folder,
        report=report,
        histories={"old": HISTORY, "new": folder / "history.csv"},
        retrieval_examples=examples(report, class_names=[f"{EVIL} {i}" for i in range(6)]),
        facts={
            "title": EVIL, "data": f"data {EVIL}", "command": f"fcl demo {EVIL}", "seed": 3,
            "config": {"train": {"epochs": 3, "name": EVIL}}, "versions": {"torch": EVIL},
            "seconds": np.float64(12.5), "notes": ["one", "two"],
        },
    )  # fmt: skip
    return folder, report, content, Page((folder / "report.html").read_text(encoding="utf-8"))


def test_json_holds_the_report_and_the_facts(written):
    folder, report, content, _ = written

    def refuse(constant):
        raise AssertionError(constant)

    stored = json.loads((folder / "report.json").read_text(), parse_constant=refuse)
    assert stored == content
    for key, value in report.to_dict().items():
        assert stored[key] == value
    assert stored["seed"] == 3
    assert stored["seconds"] == 12.5
    assert stored["histories"]["new"]["loss_compat"] == [2.0, None]
    assert set(stored["matrix"]) == {"old/old", "new/old", "new/new", "independent/independent"}


def test_files_are_there_and_pictures_are_pictures(written):
    folder = written[0]
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "history.csv", "report.html", "report.json", "retrieval_examples.json",
        "retrieval_examples.png", "training_accuracy.png", "training_loss_compat.png",
        "training_loss_new.png", "update_gain.png",
    }  # fmt: skip
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            assert picture.width > 400


def test_page_needs_nothing_else(written):
    page = written[3]
    assert page.all("img")
    for image in page.all("img"):
        assert image["src"].startswith("data:image/png;base64,")
        assert image["alt"]
    assert not page.all("script")
    assert not page.all("link")
    text = (written[0] / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert not re.search(r"(?:src|href)=\"(?!data:)", text)


def test_page_says_the_numbers_and_the_verdict(written):
    _, report, _, page = written
    text = " ".join(" ".join(page.text).split())
    verdict = report.verdict
    for wanted in (verdict.headline, verdict.details, f"{100 * report.update_gain:.0f}"):
        assert wanted in text
    for entry in report.matrix.values():
        for value in entry.values():
            assert f"{100 * value:.1f}" in text
    assert "new: 2 epochs in 10 s" in text
    assert "[−" in text or "[+" in text


def test_page_is_accessible(written):
    page = written[3]
    assert page.all("html")[0]["lang"] == "en"
    assert {cell["scope"] for cell in page.all("th")} == {"row", "col"}
    assert page.all("caption")
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(headings))
    # Colour is not the only cue.
    marks = [image["alt"] for image in page.all("img") if re.search("right|wrong", image["alt"])]
    right = [item for item in page.all("li") if item.get("class") == "right"]
    assert len(right) == sum("right" in mark.split(", ")[-1] for mark in marks) > 0


def test_nothing_inserted_becomes_markup(written):
    text = (written[0] / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 8


def test_contrast_of_text_colours():
    """WCAG AA: 4.5 to 1 for every text colour of the style sheet on its backgrounds."""

    def luminance(colour):
        values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    for ink in ("#1c2430", "#57606f", "#5b6472", "#0b6e99"):
        for paper in ("#ffffff", "#f6f8fa", "#e9f3f8", "#eef8f1", "#fdf6e7", "#fdf0ef"):
            bright, dark = luminance(paper), luminance(ink)
            assert (bright + 0.05) / (dark + 0.05) >= 4.5, (ink, paper)
    for mark in ("#157347", "#8a5a00", "#a32920"):
        assert 1.05 / (luminance(mark) + 0.05) >= 4.5


def test_rebuilding_gives_the_same_page(written, tmp_path):
    folder = written[0]
    for name in ("report.json", "retrieval_examples.json"):
        shutil.copy(folder / name, tmp_path)
    assert rebuild_report(tmp_path) == written[2]
    assert (tmp_path / "report.html").read_bytes() == (folder / "report.html").read_bytes()


def test_smallest_report(tmp_path):
    """No independent model, no new gallery, no histories, no examples, no facts."""
    report = make_report(new_gallery=None, independent_query=None, independent_gallery=None)
    write_report(tmp_path / "a" / "b", report=report)
    text = (tmp_path / "a" / "b" / "report.html").read_text(encoding="utf-8")
    Page(text)
    assert "Training" not in text
    assert "Queries to look at" not in text
    assert "None" not in text
    rebuild_report(tmp_path / "a" / "b")


def test_undefined_gain_is_said(tmp_path):
    report = make_report(
        independent_query=FEATURES["old_query"], independent_gallery=FEATURES["old_gallery"]
    )
    content = write_report(tmp_path, report=report)
    assert content["update_gain"] is None
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "undefined" in text
    assert "independent is not better than old" in text


def test_names_in_other_scripts_and_long_names(tmp_path):
    report = make_report()
    names = ["日本語", "ไทย", "x" * 300, "😀", "العربية", ""]
    write_report(
        tmp_path, report=report, retrieval_examples=examples(report, class_names=names, k=3)
    )
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert any(name in text for name in names[:2])


def test_examples_follow_the_ranking_and_the_changes():
    report = make_report()
    found = examples(report, k=5, class_names=list("abcdef"))
    picks = pick_examples(report)
    assert [note for _, note in picks] == [
        "gained most", "gained most", "typical", "typical", "lost most", "lost most",
    ]  # fmt: skip
    change = report.per_query["new/old"]["map"] - report.per_query["old/old"]["map"]
    assert picks[0][0] == change.argmax()
    assert change[picks[-2][0]] == change.min()
    hits = top_hits(FEATURES["new_query"], FEATURES["old_gallery"], 5)
    images = pictures()
    for (row, _), example in zip(picks, found, strict=True):
        assert example.label == "abcdef"[LABELS[row]]
        assert np.array_equal(example.image, images[row])
        assert [hit.label for hit in example.new] == ["abcdef"[LABELS[at]] for at in hits[row]]
        assert [hit.correct for hit in example.new] == (LABELS[hits[row]] == LABELS[row]).tolist()
        assert all(
            np.array_equal(hit.image, images[at])
            for hit, at in zip(example.new, hits[row], strict=True)
        )


def test_examples_respect_groups():
    groups = np.arange(60) % 5
    report = make_report(query_groups=groups, gallery_groups=groups)
    found = examples(
        report, query_groups=groups, gallery_groups=groups, query_images=pictures(),
        gallery_images=np.broadcast_to(groups[:, None, None], (60, 12, 10)).astype(np.uint8),
    )  # fmt: skip
    for (row, _), example in zip(pick_examples(report), found, strict=True):
        assert all(hit.image[0, 0] != groups[row] for hit in (*example.old, *example.new))


def test_few_queries_are_not_shown_twice():
    labels = np.array([0, 1])
    report = make_report(
        old_query=rows(2.0, 1)[:2], new_query=rows(1.0, 3)[:2], query_labels=labels,
        new_gallery=None, independent_query=None, independent_gallery=None,
    )  # fmt: skip
    picked = [row for row, _ in pick_examples(report)]
    assert len(picked) == len(set(picked))


@pytest.mark.parametrize("shape", [(12, 10), (12, 10, 3), (300, 200, 3)])
def test_pictures_are_small_and_whole(tmp_path, shape):
    report = make_report()
    write_report(
        tmp_path, report=report,
        retrieval_examples=examples(
            report, query_images=pictures(shape), gallery_images=pictures(shape), num_each=1, k=2
        ),
    )  # fmt: skip
    stored = json.loads((tmp_path / "retrieval_examples.json").read_text())
    from fclearn.report._pictures import decode

    picture = decode(stored[0]["image"])
    assert max(picture.shape) <= 112
    if shape[0] < 112:
        row = pick_examples(report, 1)[0][0]
        assert np.array_equal(picture, pictures(shape)[row])


def test_a_history_that_a_spreadsheet_saved(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("epoch,loss\n1,0.5\n", encoding="utf-8-sig")
    write_report(tmp_path, report=make_report(), histories={"new": path})
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["histories"]["new"] == {"epoch": [1.0], "loss": [0.5]}


def test_bad_facts_and_histories(tmp_path):
    report = make_report()
    with pytest.raises(ValueError, match="facts: 'matrix' is a number of the report itself"):
        write_report(tmp_path, report=report, facts={"matrix": 1})
    with pytest.raises(TypeError, match=r"facts\.a\.b\[1\]: expected a JSON value, got object"):
        write_report(tmp_path, report=report, facts={"a": {"b": [1, object()]}})
    with pytest.raises(ValueError, match="histories: 'old' has no column 'epoch', only loss"):
        write_report(tmp_path, report=report, histories={"old": [{"loss": 1.0}]})
    bad = tmp_path / "bad.csv"
    bad.write_text("epoch,loss\n1,two\n")
    with pytest.raises(ValueError, match="histories: 'new', row 0: expected a number for loss"):
        write_report(tmp_path, report=report, histories={"new": bad})
    with pytest.raises(FileNotFoundError):
        write_report(tmp_path, report=report, histories={"new": tmp_path / "none.csv"})
    assert not (tmp_path / "report.html").exists()


def test_bad_images(tmp_path):
    report = make_report()
    with pytest.raises(ValueError, match="query_images: expected one image per label, 60, got 3"):
        examples(report, query_images=pictures()[:3])
    hit = Hit(np.zeros((4, 4)), "a", correct=True)
    example = RetrievalExample(np.zeros((4, 4), np.uint8), "a", "note", (hit,), (hit,))
    with pytest.raises(ValueError, match=r"image: expected uint8 .*got float64 of shape \[4, 4\]"):
        write_report(tmp_path, report=report, retrieval_examples=[example])


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_report(tmp_path / "file", report=make_report())


def test_rebuilding_from_what_is_not_a_report(tmp_path, written):
    with pytest.raises(FileNotFoundError, match=r"found no report\.json"):
        rebuild_report(tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(ValueError, match=r"report\.json: not JSON"):
        rebuild_report(tmp_path)
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(ValueError, match="is not that of a report: KeyError"):
        rebuild_report(tmp_path)
    content = {**written[2], "verdict": {"status": "compatible", "headline": "half"}}
    (tmp_path / "report.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is not that of a report: UndefinedError"):
        rebuild_report(tmp_path)
    shutil.copy(written[0] / "report.json", tmp_path)
    for image in (
        "http://example.com/a.png",
        "data:image/png;base64,!!",
        "data:image/png;base64,AAAA",
    ):
        hostile = {"image": image, "text": "", "label": "a", "note": "", "old": [], "new": []}
        (tmp_path / "retrieval_examples.json").write_text(json.dumps([hostile]))
        with pytest.raises(ValueError, match="image: "):
            rebuild_report(tmp_path)


def test_a_report_of_first_ranks_alone(tmp_path):
    """Through an index there is no ``map``: another metric decides, in every place of the page."""
    write_report(tmp_path, report=make_report())
    text = (tmp_path / "report.json").read_text().replace('"map"', '"map@100"')
    (tmp_path / "report.json").write_text(text)
    data = rebuild_report(tmp_path)
    assert data["primary"] == "map@100"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "mAP@100 of new/old" in page
    assert "Self-test tax" in page


def test_texts_beside_or_in_place_of_pictures(tmp_path):
    report = make_report()
    texts = [f"number {row} {EVIL}" for row in range(59)] + ["long " * 200]
    found = examples(
        report, query_images=None, gallery_images=None, query_texts=texts, gallery_texts=texts
    )
    assert all(example.image is None for example in found)
    write_report(tmp_path, report=report, retrieval_examples=found)
    assert not (tmp_path / "retrieval_examples.png").exists()
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "<script" not in text
    shown = " ".join(" ".join(page.text).split())
    for example in found:
        for hit in (*example.old, *example.new):
            assert " ".join(hit.text.split())[:200] in shown
    assert "✓" in shown
    before = (tmp_path / "report.html").read_bytes()
    rebuild_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before
    with pytest.raises(ValueError, match="query_texts: expected one text per label, 60, got 3"):
        examples(report, query_texts=texts[:3], gallery_texts=texts)
    with pytest.raises(ValueError, match="expected those of queries and of the gallery"):
        examples(report, query_texts=texts)
    with pytest.raises(ValueError, match="query_images, query_texts: expected one of them"):
        examples(report, query_images=None, gallery_images=None)


def test_examples_of_several_labels_and_of_names():
    sets = [{str(label), "even" if label % 2 == 0 else "odd"} for label in LABELS]
    names = np.array([f"class {label}" for label in LABELS])
    for labels in (sets, names):
        report = make_report(query_labels=labels, gallery_labels=labels)
        found = examples(report, query_labels=labels, gallery_labels=labels, k=4)
        hits = top_hits(FEATURES["old_query"], FEATURES["old_gallery"], 4)
        for (row, _), example in zip(pick_examples(report), found, strict=True):
            for at, hit in zip(hits[row], example.old, strict=True):
                if labels is sets:
                    assert hit.correct == bool(sets[row] & sets[at])
                else:
                    assert hit.correct == (names[row] == names[at])
                    assert hit.label == names[at]
