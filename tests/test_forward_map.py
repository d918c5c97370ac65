# SPDX-License-Identifier: Apache-2.0
"""Forward maps: they find the map, use side information and the classifier, know their errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from fclearn.adapters import ForwardMap, forward

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS, OLD, NEW = 300, 6, 8
FAST = {"epochs": 60, "batch_size": 64, "width": 32, "learning_rate": 5e-3}


class Pairs:
    """New features are a smooth function of old features and of what these have lost."""

    def __init__(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        whole = F.normalize(torch.randn(ROWS, OLD + 2, generator=generator), dim=1)
        self.old, self.side = 3 * whole[:, :OLD], whole[:, OLD:]
        first = torch.randn(OLD + 2, NEW, generator=torch.Generator().manual_seed(7))
        self.new = F.normalize(torch.tanh(2 * whole @ first), dim=1)


def _agreement(mapped, new):
    return float((mapped * new).sum(1).mean())


def test_it_maps_rows_it_has_not_seen():
    known, fresh = Pairs(), Pairs(1)
    fitted = ForwardMap.fit(old=known.old, new=known.new, **FAST)
    mapped = fitted.transform(fresh.old)
    assert mapped.shape == (ROWS, NEW)
    torch.testing.assert_close(mapped.norm(dim=1), torch.ones(ROWS))
    # Much is lost in the old features; a constant answer would reach this much.
    constant = F.normalize(known.new.mean(0), dim=0)
    assert _agreement(mapped, fresh.new) > 0.7
    assert _agreement(constant, fresh.new) < 0.3
    # Only directions count, and not the form they come in.
    again = fitted.transform(np.asarray(fresh.old * 5, dtype=np.float64))
    torch.testing.assert_close(again, mapped, rtol=0, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in fitted.parameters())


def test_side_information_helps():
    known, fresh = Pairs(), Pairs(1)
    alone = ForwardMap.fit(old=known.old, new=known.new, **FAST).transform(fresh.old)
    fitted = ForwardMap.fit(old=known.old, new=known.new, side=known.side, **FAST)
    both = fitted.transform(fresh.old, fresh.side)
    assert _agreement(both, fresh.new) > 0.9
    assert _agreement(alone, fresh.new) < 0.8


def test_the_classifier_draws_mapped_rows_to_their_class():
    known = Pairs()
    classifier = torch.eye(NEW)
    labels = known.new.argmax(1)
    options = {**FAST, "epochs": 10}
    plain = ForwardMap.fit(old=known.old, new=known.new, **options).transform(known.old)
    fitted = ForwardMap.fit(
        old=known.old, new=known.new, labels=labels, classifier=classifier, **options
    )
    drawn = fitted.transform(known.old)
    right = [(rows.argmax(1) == labels).double().mean() for rows in (plain, drawn)]
    assert right[1] > right[0]


def test_uncertainty_finds_the_rows_that_are_far_off_and_leaves_the_map_alone():
    """Half of the space has noise in the new features: its rows should come first."""
    pairs = Pairs()
    noisy = pairs.old[:, 0] > 0
    noise = torch.randn(ROWS, NEW, generator=torch.Generator().manual_seed(2))
    new = F.normalize(pairs.new + noisy[:, None] * noise, dim=1)
    fitted = ForwardMap.fit(old=pairs.old, new=new, uncertainty=True, **FAST)
    errors = (fitted(F.normalize(pairs.old, dim=1))[0] - new).square().sum(1)
    expected = fitted.uncertainty(Pairs(1).old)
    noisy_fresh = Pairs(1).old[:, 0] > 0
    first = expected.argsort(descending=True)[: int(noisy_fresh.sum())]
    assert noisy_fresh[first].double().mean() > 0.85
    seen = fitted.uncertainty(pairs.old)
    assert 0.5 < float(seen.sum() / errors.sum()) < 2
    plain = ForwardMap.fit(old=pairs.old, new=new, **FAST)
    assert torch.equal(plain.transform(pairs.old), fitted.transform(pairs.old))
    with pytest.raises(ValueError, match="uncertainty: expected a map fitted with uncertainty"):
        plain.uncertainty(pairs.old)


def test_blocks_and_seeds(monkeypatch):
    pairs = Pairs()
    options = {**FAST, "epochs": 2}
    state = torch.get_rng_state()
    fitted = ForwardMap.fit(old=pairs.old, new=pairs.new, **options)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    again = ForwardMap.fit(old=pairs.old, new=pairs.new, **options)
    whole = fitted.transform(pairs.old)
    assert torch.equal(again.transform(pairs.old), whole)
    other = ForwardMap.fit(old=pairs.old, new=pairs.new, seed=1, **options)
    assert not torch.equal(other.transform(pairs.old), whole)
    monkeypatch.setattr(forward, "_BLOCK_ROWS", 128)
    torch.testing.assert_close(fitted.transform(pairs.old), whole)
    assert fitted.transform(torch.zeros(0, OLD)).shape == (0, NEW)


def test_files(tmp_path):
    pairs = Pairs()
    path = tmp_path / "map.safetensors"
    options = {**FAST, "epochs": 1}
    fitted = ForwardMap.fit(
        old=pairs.old, new=pairs.new, side=pairs.side, uncertainty=True, **options
    )
    fitted.save(path)
    loaded = ForwardMap.load(path)
    for method in ("transform", "uncertainty"):
        one, two = (getattr(m, method)(pairs.old, pairs.side) for m in (fitted, loaded))
        assert torch.equal(one, two)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    whole = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["fclearn.ForwardMap"])
    turned = {**header, "direction": "new_to_old"}
    save_file(
        fitted.state_dict(),
        tmp_path / "turned",
        metadata={"fclearn.ForwardMap": json.dumps(turned)},
    )
    with pytest.raises(ValueError, match="not a valid ForwardMap file: direction 'new_to_ol"):
        ForwardMap.load(tmp_path / "turned")
    for content in (b"", whole[:-4], whole[:200]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"map\.safetensors: not a valid ForwardMap") as caught:
            ForwardMap.load(path)
        assert "\n" not in str(caught.value)
    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="not a valid ForwardMap"):
        ForwardMap.load(path)
    with pytest.raises(FileNotFoundError):
        ForwardMap.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"new": torch.ones(ROWS - 1, NEW)}, r"new: expected one row per old .*\(300\), got 299"),
        ({"side": torch.ones(3, 2)}, r"side: expected one row per old feature \(300\), got 3"),
        ({"old": torch.zeros(ROWS, OLD)}, "old: expected rows with a direction, row 0 is zero or"),
        ({"new": torch.full((ROWS, NEW), torch.nan)}, "new: expected rows with a direction, row 0"),
        ({"labels": torch.zeros(ROWS)}, "labels and classifier: expected both or neither"),
        ({"classifier": torch.eye(NEW)}, "labels and classifier: expected both or neither"),
        (
            {"labels": torch.zeros(3), "classifier": torch.eye(NEW)},
            r"labels: expected one per old feature \(300\), got \[3\]",
        ),
        ({"epochs": 0}, "fit: expected epochs >= 1"),
        ({"learning_rate": float("nan")}, "fit: expected epochs >= 1, .* got .* nan"),
        ({"width": 0}, "width: expected at least 1, got 0"),
    ],
)
def test_fit_refuses(options, message):
    pairs = Pairs()
    with pytest.raises(ValueError, match=message):
        ForwardMap.fit(**{"old": pairs.old, "new": pairs.new, **FAST, **options})


def test_transform_refuses_other_features():
    pairs = Pairs()
    options = {**FAST, "epochs": 1}
    fitted = ForwardMap.fit(old=pairs.old, new=pairs.new, **options)
    with pytest.raises(ValueError, match="old: this map is from features of 6 dims, got 8"):
        fitted.transform(pairs.new)
    with pytest.raises(ValueError, match="side: this map is from features of 0 dims, got 2"):
        fitted.transform(pairs.old, pairs.side)
    fitted = ForwardMap.fit(old=pairs.old, new=pairs.new, side=pairs.side, **options)
    with pytest.raises(ValueError, match="side: this map is from features of 2 dims, got 0"):
        fitted.transform(pairs.old)
    with pytest.raises(ValueError, match="side: expected one row per old feature"):
        fitted.transform(pairs.old, pairs.side[:-1])
