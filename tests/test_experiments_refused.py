# SPDX-License-Identifier: Apache-2.0
"""Comparisons refuse folders and records of other settings."""

from __future__ import annotations

from dataclasses import replace

import pytest
from experiment_samples import CONFIG, compare, copy, edit

from fclearn.experiments.benchmark import RunsFailedError
from fclearn.experiments.records import record_path
from fclearn.methods import METHODS


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"label_noise": 0.5}, "label_noise"),
        ({"train": replace(CONFIG.train, epochs=3)}, "train.epochs"),
        ({"classes": "open", "new_dim": 16}, "classes, new_dim"),
    ],
)
def test_folder_of_another_setting_is_refused(comparison, pattern_images, change, named):
    with pytest.raises(ValueError, match=rf"another configuration \({named} differ\)"):
        compare(comparison[0], pattern_images, config=replace(CONFIG, **change))


def test_record_of_another_default_or_image_is_refused(comparison, pattern_images, tmp_path):
    target = copy(comparison[0], tmp_path / "copy")
    edit(record_path(target, "bct", 0), lambda r: r["config"]["settings"].update(scale=5.0))
    with pytest.raises(ValueError, match=r"bct-seed0.json: .*\(settings.scale differ\)"):
        compare(target, pattern_images, methods=["bct"], seeds=[0])
    changed = replace(pattern_images, images=255 - pattern_images.images)
    with pytest.raises(ValueError, match=r"ni-fcl-seed0.json: .*\(the images differ\)"):
        compare(target, changed, methods=["ni-fcl"], seeds=[0])


def test_features_of_other_defaults_are_refused(comparison, pattern_images, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "bct", replace(METHODS["bct"], defaults={"scale": 5.0}))
    with pytest.raises(RunsFailedError, match=r"bct: .*holds a comparison of another"):
        compare(tmp_path, pattern_images, methods=["bct"], seeds=[0], work=comparison[0] / "work")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["bcd"]}, "unknown name 'bcd'"),
        ({"methods": ["ni-fcl-scores"]}, "needs an old service's scores .* n/o, .* is not defined"),
        ({"methods": ["bct", "bct"]}, "methods: expected at least one, each once"),
        ({"methods": []}, "methods: expected at least one, each once"),
        ({"seeds": [1, 1]}, "seeds: expected at least one, each once"),
    ],
)
def test_bad_lists(pattern_images, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        compare(tmp_path, pattern_images, **options)
    assert not list(tmp_path.iterdir())
