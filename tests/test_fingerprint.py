# SPDX-License-Identifier: Apache-2.0
"""Fingerprints: fields, JSON, and what differs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from store_samples import FINGERPRINT

from fclearn.features import (
    Fingerprint,
)


def test_fingerprint_survives_json():
    assert Fingerprint.from_dict(json.loads(json.dumps(FINGERPRINT.to_dict()))) == FINGERPRINT


def test_fingerprint_names_missing_and_unknown_keys():
    values = {**FINGERPRINT.to_dict(), "size": 3}
    del values["metric"]
    with pytest.raises(ValueError, match="missing metric; unknown 'size'"):
        Fingerprint.from_dict(values)
    with pytest.raises(TypeError, match="expected a mapping, got list"):
        Fingerprint.from_dict([])


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"dim": 0}, ValueError, "dim: expected at least 1, got 0"),
        ({"dim": "4"}, TypeError, "dim: expected an integer, got '4'"),
        ({"dim": True}, TypeError, "dim: expected an integer"),
        ({"norm": "l1"}, ValueError, "norm: expected 'l2' or 'none', got 'l1'"),
        ({"metric": "dot"}, ValueError, "metric: expected one of cosine, ip, l2, got 'dot'"),
        ({"model": None}, TypeError, "model: expected text, got None"),
    ],
)
def test_fingerprint_checks_its_fields(changes, error, match):
    with pytest.raises(error, match=match):
        Fingerprint.from_dict({**FINGERPRINT.to_dict(), **changes})


def test_fingerprints_that_differ_are_never_mixed():
    FINGERPRINT.check_same(Fingerprint.from_dict(FINGERPRINT.to_dict()), "merge")
    other = replace(FINGERPRINT, model="new", dim=8)
    with pytest.raises(
        ValueError,
        match=r"^merge: refusing to mix features: model 'old-api' and 'new', dim 4 and 8$",
    ):
        FINGERPRINT.check_same(other, "merge")
