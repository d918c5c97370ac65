# SPDX-License-Identifier: Apache-2.0
"""Settings of a comparison: how images are split, and what they refuse."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from experiment_samples import CONFIG, PER_CLASS

from fclearn.experiments.splits import data_fingerprint, make_setting, shared_classes
from fclearn.experiments.upgrade import split_images


def test_setting_splits_as_the_demo_does(pattern_images):
    data, plain = make_setting(pattern_images, CONFIG), split_images(pattern_images, CONFIG)
    assert data_fingerprint(data) == data_fingerprint(plain)
    assert not {*data.test.class_names} & {*data.new.class_names, *data.old.class_names}
    assert data.new.class_names[:3] == data.old.class_names


def test_open_classes(pattern_images):
    data = make_setting(pattern_images, replace(CONFIG, classes="open"))
    assert data.new.num_classes == 5
    assert not {*data.new.class_names} & {*data.old.class_names}
    assert [len(part) for part in shared_classes(data)] == [0, 0]
    extended = make_setting(pattern_images, CONFIG)
    assert data.test.ids == extended.test.ids
    mine, its = shared_classes(extended)
    assert [extended.old.class_names[c] for c in mine] == [extended.new.class_names[c] for c in its]


def test_label_noise_keeps_class_sizes(pattern_images):
    clean = make_setting(pattern_images, CONFIG)
    noisy = make_setting(pattern_images, replace(CONFIG, label_noise=0.25))
    assert noisy.new.ids == clean.new.ids
    assert np.array_equal(np.bincount(noisy.new.labels), np.bincount(clean.new.labels))
    assert 0.1 < (noisy.new.labels != clean.new.labels).mean() <= 0.25
    assert np.array_equal(noisy.old.labels, clean.old.labels)
    assert np.array_equal(noisy.test.labels, clean.test.labels)


def test_images_per_class(pattern_images):
    data = make_setting(pattern_images, replace(CONFIG, images_per_class=5))
    assert np.bincount(data.new.labels).tolist() == [5] * 8
    assert len(data.old) == 3 * PER_CLASS
    assert set(data.new.ids) <= set(make_setting(pattern_images, CONFIG).new.ids)
    other = replace(CONFIG, images_per_class=5, train=replace(CONFIG.train, seed=1))
    assert make_setting(pattern_images, other).new.ids != data.new.ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_noise": 1.5}, "label_noise: expected a number in"),
        ({"label_noise": math.nan}, "label_noise: expected a number in"),
        ({"images_per_class": 0}, "images_per_class: expected at least 1, got 0"),
        ({"classes": "closed"}, "classes: expected one of .*'closed'"),
        ({"dataset": "mnist"}, "dataset: expected one of .*'mnist'"),
        ({"num_old_classes": 8}, "num_old_classes: expected 1 to 7"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)
