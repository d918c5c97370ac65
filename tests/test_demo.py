# SPDX-License-Identifier: Apache-2.0
"""The main job on a tiny part of the real data: every stage, resuming, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fclearn.demo import run_demo
from fclearn.features import FeatureStore


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, run_demo(folder, quick=True, progress=False)


def test_writes_the_report(finished):
    folder, result = finished
    written = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert written["matrix"].keys() == {
        "old/old",
        "new/old",
        "new/new",
        "independent/independent",
    }
    for entry in written["matrix"].values():
        assert {"map", "cmc@1", "cmc@5"} <= entry.keys()
        assert all(0 <= value <= 1 for value in entry.values())
    assert "update_gain" in written
    assert "self_test_tax" in written
    assert written["matrix"] == result["matrix"]
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in html


def test_the_old_model_is_forgotten(finished):
    folder, _ = finished
    assert not (folder / "old" / "checkpoint.pt").exists()
    assert (folder / "old" / "history.csv").exists()
    assert len(FeatureStore.open(folder / "features" / "old-train")) > 0


def test_new_embedding_is_wider_than_the_old_one(finished):
    folder, _ = finished
    old = FeatureStore.open(folder / "features" / "old-test")
    new = FeatureStore.open(folder / "features" / "ni-fcl-test")
    assert new.dim > old.dim
    assert new.ids == old.ids


def test_a_second_call_recomputes_nothing(finished):
    folder, result = finished
    stores = sorted((folder / "features").glob("*/features.npy"))
    before = {path: path.stat().st_mtime_ns for path in stores}
    again = run_demo(folder, quick=True, progress=False)
    assert again["matrix"] == result["matrix"]
    assert {path: path.stat().st_mtime_ns for path in stores} == before


def test_lost_stage_is_recomputed_to_the_same_features(finished, tmp_path):
    folder, _ = finished
    store = folder / "features" / "independent-test"
    before = np.array(FeatureStore.open(store).features)
    store.rename(tmp_path / "moved")
    run_demo(folder, quick=True, progress=False)
    assert np.array_equal(before, FeatureStore.open(store).features)


def test_folder_of_another_seed_is_refused(finished):
    folder, _ = finished
    with pytest.raises(ValueError, match="another configuration or seed"):
        run_demo(folder, seed=1, quick=True, progress=False)


def test_unwritable_output_folder(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("not a folder", encoding="utf-8")
    with pytest.raises(OSError, match=str(Path("file"))):
        run_demo(blocker / "demo", quick=True, progress=False)
