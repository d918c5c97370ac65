# SPDX-License-Identifier: Apache-2.0
"""Stores written block by block: resuming, kills, bad blocks."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from store_samples import FINGERPRINT, IDS, MANIFEST, sample_rows, truncate

from fclearn.features import FeatureStore, FeatureWriter
from fclearn.features.folder import read_source


def _writer(tmp_path, **changes):
    settings = {"num_rows": 5, "dim": 4, "dtype": "float32", "fingerprint": FINGERPRINT}
    return FeatureWriter(tmp_path / "s", **{**settings, **changes})


def test_writer_fills_in_any_order(tmp_path):
    writer = _writer(tmp_path)
    assert writer.missing() == [(0, 5)]
    writer.write(3, sample_rows()[3:4])
    writer.write(0, torch.from_numpy(sample_rows()[:1]).double())
    assert writer.missing() == [(1, 3), (4, 5)]
    writer.write(0, sample_rows()[:2])
    writer.write(2, sample_rows()[2:5])
    assert writer.missing() == []
    store = writer.finish(MANIFEST, "parquet")
    np.testing.assert_array_equal(store.features, sample_rows())
    assert store.ids == IDS
    assert sorted(path.name for path in store.path.iterdir()) == [
        "features.npy",
        "fingerprint.json",
        "manifest.parquet",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_writer_resumes(tmp_path):
    first = _writer(tmp_path)
    first.write(1, sample_rows()[1:3])
    del first
    (tmp_path / "s.partial" / ".progress.json.killed.tmp").write_text("{")
    second = _writer(tmp_path)
    assert second.missing() == [(0, 1), (3, 5)]
    second.write(0, sample_rows()[:1])
    second.write(3, sample_rows()[3:])
    np.testing.assert_array_equal(second.finish(MANIFEST).features, sample_rows())


def test_a_finished_store_keeps_its_source(tmp_path):
    writer = _writer(tmp_path, source="weights 1f, größer")
    writer.write(0, sample_rows())
    store = writer.finish(MANIFEST)
    assert read_source(store.path) == "weights 1f, größer"
    # Another one in its place is of another source, or does not say.
    FeatureStore.write(store.path, sample_rows(), MANIFEST, FINGERPRINT)
    assert read_source(store.path) is None


def test_an_unfinished_store_does_not_open_or_finish(tmp_path):
    writer = _writer(tmp_path)
    writer.write(0, sample_rows()[:2])
    with pytest.raises(ValueError, match="3 of 5 are missing, the first is 2"):
        writer.finish(MANIFEST)
    with pytest.raises(ValueError, match="found nothing"):
        FeatureStore.open(tmp_path / "s")
    with pytest.raises(ValueError, match=r"fingerprint.json: expected .* found nothing"):
        FeatureStore.open(tmp_path / "s.partial")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_rows": 6}, "num_rows 5 before, 6 now"),
        ({"dtype": "float16"}, "dtype 'float32' before, 'float16' now"),
        (
            {"fingerprint": replace(FINGERPRINT, model="new")},
            "fingerprint model 'old-api' before, 'new' now",
        ),
        ({"dim": 8, "fingerprint": replace(FINGERPRINT, dim=8)}, "dim 4 before, 8 now"),
        ({"source": "weights 2"}, "source '' before, 'weights 2' now"),
    ],
)
def test_writer_refuses_the_partial_store_of_another_run(tmp_path, changes, match):
    _writer(tmp_path).write(0, sample_rows()[:2])
    with pytest.raises(ValueError, match=f"refusing to continue.*{match}.*to start over"):
        _writer(tmp_path, **changes)
    assert _writer(tmp_path).missing() == [(2, 5)]


@pytest.mark.parametrize(
    ("file", "break_it", "match"),
    [
        ("progress.json", lambda path: path.write_text("{"), "not a record of progress"),
        ("progress.json", lambda path: path.write_text("[]"), "not a record of progress"),
        (
            "progress.json",
            lambda path: path.write_text(path.read_text().replace("[0, 2]", "[0, 9]")),
            r"rows in \[0, 5\), found \[\(0, 9\)\]",
        ),
        ("features.npy", truncate, "cannot be mapped"),
        (
            "features.npy",
            lambda path: np.save(path, sample_rows(4)),
            r"shape \[5, 4\], found .* \[4, 4\]",
        ),
        ("notes.txt", lambda path: path.write_text("mine"), "a folder with 'notes.txt' in it"),
    ],
)
def test_writer_refuses_a_broken_partial_store(tmp_path, file, break_it, match):
    _writer(tmp_path).write(0, sample_rows()[:2])
    break_it(tmp_path / "s.partial" / file)
    with pytest.raises(ValueError, match=match):
        _writer(tmp_path)


def test_writer_killed_before_its_first_record_starts_over(tmp_path):
    _writer(tmp_path)
    (tmp_path / "s.partial" / "progress.json").unlink()
    assert _writer(tmp_path).missing() == [(0, 5)]


def test_writer_killed_inside_finish_loses_nothing(tmp_path, monkeypatch):
    writer = _writer(tmp_path)
    writer.write(0, sample_rows())

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fclearn.features.writer.install", killed)
        with pytest.raises(KeyboardInterrupt):
            writer.finish(MANIFEST)
    assert not (tmp_path / "s").exists()
    again = _writer(tmp_path)
    assert again.missing() == []
    np.testing.assert_array_equal(again.finish(MANIFEST, "parquet").features, sample_rows())


def test_writer_survives_sigkill(tmp_path):
    script = f"""
import os, signal
from store_samples import FINGERPRINT, sample_rows
from fclearn.features import FeatureWriter
writer = FeatureWriter({str(tmp_path / "s")!r}, 5, 4, "float32", FINGERPRINT)
writer.write(0, sample_rows()[:3])
os.kill(os.getpid(), signal.SIGKILL)
"""
    path = [str(Path(__file__).parent), *sys.path]
    code = f"import sys; sys.path[:0] = {path!r}\n{script}"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    writer = _writer(tmp_path)
    assert writer.missing() == [(3, 5)]
    writer.write(3, sample_rows()[3:])
    np.testing.assert_array_equal(writer.finish(MANIFEST).features, sample_rows())


@pytest.mark.parametrize(
    ("begin", "block", "error", "match"),
    [
        (0, sample_rows(2, 3), ValueError, r"expected shape \[B, 4\], got \[2, 3\]"),
        (4, sample_rows(2), ValueError, r"expected rows in \[0, 5\), got 4 to 5"),
        (-1, sample_rows(2), ValueError, r"expected rows in \[0, 5\), got -1 to 0"),
        (0, sample_rows(2).astype(int), TypeError, "block: expected floating numbers, got int64"),
        (2, sample_rows(2) + 1e6, ValueError, "that fit float16, got larger in row 2"),
        (2, sample_rows(2) * np.nan, ValueError, "finite numbers, got a NaN or infinity in row 2"),
    ],
)
def test_writer_refuses_blocks_that_do_not_fit(tmp_path, begin, block, error, match):
    writer = _writer(tmp_path, dtype="float16")
    with pytest.raises(error, match=match):
        writer.write(begin, block)
    assert writer.missing() == [(0, 5)]


def test_a_block_of_other_lengths_leaves_rows_that_are_done(tmp_path):
    writer = _writer(tmp_path, fingerprint=replace(FINGERPRINT, norm="l2"))
    writer.write(0, np.eye(4))
    with pytest.raises(ValueError, match=r"block: expected rows of unit length.* 2 in row 3: norm"):
        writer.write(2, np.diag([1.0, 2, 3, 4])[:3])
    writer.write(4, np.zeros((1, 4)))
    np.testing.assert_array_equal(writer.finish(MANIFEST).features[:4], np.eye(4))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"dtype": "float64"}, "expected float32 or float16, got float64"),
        ({"num_rows": -1}, "num_rows: expected at least 0, got -1"),
        ({"dim": 5}, "dim: expected 4, the fingerprint's, got 5"),
    ],
)
def test_writer_checks_its_arguments(tmp_path, changes, match):
    with pytest.raises(ValueError, match=match):
        _writer(tmp_path, **changes)
    assert not list(tmp_path.iterdir())
