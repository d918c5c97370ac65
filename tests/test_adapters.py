# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fclearn.adapters import (
    CompatHead,
    LowRank,
    MeanShift,
    MlpMap,
    Procrustes,
    Ridge,
    load_adapter,
)
from fclearn.evaluation import evaluate_retrieval
from fclearn.features import Fingerprint

QUICK = {"hidden": 8, "epochs": 2}
ADAPTERS = [
    Procrustes,
    Ridge,
    LowRank,
    MeanShift,
    lambda: MlpMap(**QUICK),
    lambda: CompatHead(**QUICK),
    lambda: CompatHead(**QUICK, head="linear"),
    lambda: CompatHead(**QUICK, head="low-rank"),
    lambda: CompatHead(**QUICK, orthogonal=True),
]


def _pairs(rows=120, source_dim=12, target_dim=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % 10
    centres = torch.randn(10, source_dim, generator=generator)
    source = centres[labels] + 0.5 * torch.randn(rows, source_dim, generator=generator)
    turn = torch.linalg.qr(torch.randn(source_dim, source_dim, generator=generator))[0]
    target = source @ turn[:, :target_dim] + 0.2 * torch.randn(
        rows, target_dim, generator=generator
    )
    return F.normalize(source, dim=1), F.normalize(target, dim=1), labels


@pytest.mark.parametrize("make", ADAPTERS)
def test_maps_pairs_closer_and_to_unit_rows(make):
    source, target, labels = _pairs()
    adapter = make().fit(source=source, target=target, labels=labels)
    mapped = adapter.transform(source)
    assert mapped.dtype == torch.float32
    torch.testing.assert_close(mapped.norm(dim=1), torch.ones(len(source)))
    before, after = ((a * target).sum(1).mean() for a in (source, mapped))
    assert after > before
    assert adapter.source_dim == 12


@pytest.mark.parametrize("make", [m for m in ADAPTERS if m is not MeanShift])
@pytest.mark.parametrize("target_dim", [5, 12])
def test_saved_adapters_are_the_same(make, target_dim, tmp_path):
    source, target, labels = _pairs(target_dim=target_dim)
    old, new = Fingerprint("old", target_dim), Fingerprint("new", 12)
    adapter = make().fit(
        source=source,
        target=target,
        labels=labels,
        source_fingerprint=new,
        target_fingerprint=old,
    )
    adapter.save(tmp_path / "adapter.safetensors")
    again = load_adapter(tmp_path / "adapter.safetensors")
    assert type(again) is type(adapter)
    assert (again.source, again.target) == (new, old)
    assert torch.equal(again.transform(source), adapter.transform(source))
    with pytest.raises(ValueError, match="refusing to mix features: model 'new' and 'old'"):
        again.transform(source, fingerprint=Fingerprint("old", 12))


def test_procrustes_finds_a_rotation_and_an_offset():
    source, _, _ = _pairs()
    turn = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    adapter = Procrustes().fit(source=source, target=source.double() @ turn)
    torch.testing.assert_close(adapter._state["weight"].double(), turn, atol=1e-5, rtol=0)
    narrow = Procrustes().fit(source=source, target=source[:, :5])
    weight = narrow._state["weight"]
    torch.testing.assert_close(weight.T @ weight, torch.eye(5), atol=1e-5, rtol=0)


def test_ridge_is_the_minimum_at_its_penalty_and_its_penalty_generalises():
    source, target, _ = _pairs(rows=30)
    weight = Ridge().fit(source=source, target=target)._state["weight"].double()
    x = source.double() - source.double().mean(0)
    y = target.double() - target.double().mean(0)
    # Normal equations hold for one penalty: X'(Y - XW) = penalty W.
    residual = x.T @ (y - x @ weight)
    penalty = float((residual * weight).sum() / weight.square().sum())
    torch.testing.assert_close(residual, penalty * weight, atol=1e-4, rtol=0)
    assert penalty > 0
    fresh_source, fresh_target, _ = _pairs(rows=400)
    errors = []
    for a in (penalty, 1e-9):
        fit = torch.linalg.solve(x.T @ x + a * torch.eye(12), x.T @ y)
        mapped = (fresh_source.double() - source.double().mean(0)) @ fit + target.double().mean(0)
        errors.append(float((mapped - fresh_target).square().sum()))
    assert errors[0] < errors[1]


def test_low_rank_has_that_rank_and_is_ridge_at_full_rank():
    source, target, _ = _pairs()
    full = Ridge().fit(source=source, target=target).transform(source)
    torch.testing.assert_close(
        LowRank(rank=12).fit(source=source, target=target).transform(source),
        full,
        atol=1e-5,
        rtol=0,
    )
    narrow = LowRank(rank=3).fit(source=source, target=target)
    weight = narrow._state["down"] @ narrow._state["up"]
    assert torch.linalg.matrix_rank(weight) == 3


def test_mean_shift_undoes_a_drift():
    source, _, _ = _pairs()
    drift = 0.1 * torch.randn(12)
    target = source - drift
    adapter = MeanShift().fit(source=source, target=target)
    assert (adapter.transform(source) * F.normalize(target, dim=1)).sum(1).mean() > 0.995


def test_compat_head_tells_classes_apart_better_than_regression():
    source, target, labels = _pairs(rows=400, target_dim=6)
    scores = {}
    for adapter in (Ridge(), CompatHead(epochs=5, own_weight=0.3)):
        mapped = adapter.fit(source=source, target=target, labels=labels).transform(source)
        products = mapped @ target.T
        same = labels[:, None] == labels[None]
        scores[adapter.name] = float(products[same].mean() - products[~same].mean())
    assert scores["compat-head"] > scores["ridge"]


@pytest.mark.parametrize("dims", [(12, 5), (12, 12), (7, 12)])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_an_orthogonal_head_stays_a_rotation_and_learns(head, dims):
    source, target, labels = _pairs(source_dim=max(dims), target_dim=dims[1])
    source = F.normalize(source[:, : dims[0]], dim=1)
    options = {"hidden": 8, "epochs": 6, "learning_rate": 0.03, "head": head, "orthogonal": True}
    adapter = CompatHead(**options).fit(source=source, target=target, labels=labels)
    weight = adapter._state["linear.weight"]
    short = weight @ weight.T if dims[1] <= dims[0] else weight.T @ weight
    torch.testing.assert_close(short, torch.eye(min(dims)), atol=1e-6, rtol=0)
    start = Procrustes().fit(source=source, target=target)
    assert not torch.allclose(start.affine()[0].T, weight, atol=1e-3)
    free = CompatHead(**{**options, "orthogonal": False})
    free.fit(source=source, target=target, labels=labels)
    assert not torch.allclose(free._state["linear.weight"], weight, atol=1e-3)


def test_affine_heads_are_what_they_say():
    source, target, labels = _pairs(target_dim=9)
    given = {"source": source, "target": target, "labels": labels}
    start = CompatHead(epochs=1, head="linear", share=0.0).fit(**given)
    for head in ("linear", "low-rank"):
        adapter = CompatHead(hidden=3, epochs=4, head=head).fit(**given)
        weight, bias = adapter.affine()
        expected = F.normalize(source @ weight + bias, dim=1)
        torch.testing.assert_close(adapter.transform(source), expected)
        change = torch.linalg.svdvals(weight - start.affine()[0])
        assert change[0] > 1e-3
        if head == "low-rank":
            assert change[3] < 1e-5
    assert CompatHead(hidden=3, epochs=1).fit(**given).affine() is None
    with pytest.raises(ValueError, match="head: expected one of"):
        CompatHead(head="cubic")
    for option in ("centring", "whitening", "share"):
        with pytest.raises(ValueError, match=rf"{option}: expected a number in \[0, 1\], got 1.5"):
            CompatHead(**{option: 1.5})


def test_a_head_starts_at_a_rotation_behind_whitened_rows():
    source, target, labels = _pairs(rows=200, source_dim=12, target_dim=5)
    given = {"source": source, "target": target, "labels": labels}
    options = {"epochs": 1, "head": "linear", "share": 0.0}
    plain = CompatHead(**options, centring=0.0, whitening=0.0).fit(**given)
    torch.testing.assert_close(
        plain.affine()[0] / plain.affine()[0].norm() * 5**0.5,
        Procrustes().fit(source=source, target=target).affine()[0],
        atol=1e-5,
        rtol=1e-4,
    )
    # By definition, but for what is added to the variances: all directions are equal.
    x, y = source.double() - source.double().mean(0), target.double() - target.double().mean(0)
    cov = x.T @ x / len(x)
    values, directions = torch.linalg.eigh(cov + 0.1 * cov.trace() / 12 * torch.eye(12).double())
    root = directions @ torch.diag(values**-0.5) @ directions.T
    left, _, right = torch.linalg.svd(root @ x.T @ y, full_matrices=False)
    expected = root @ left @ right
    whitened = CompatHead(**options, centring=0.0, whitening=0.5).fit(**given).affine()[0].double()
    expected *= y.norm() / (x @ expected).norm()
    torch.testing.assert_close(whitened, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("head", ["linear", "low-rank", "mlp"])
def test_a_head_is_on_the_way_from_its_start_to_the_trained_one(head):
    source, target, labels = _pairs(target_dim=9)
    options = {"hidden": 3, "epochs": 3, "learning_rate": 0.01, "head": head}
    start, half, whole = (
        CompatHead(**options, share=share).fit(source=source, target=target, labels=labels)._state
        for share in (0.0, 0.5, 1.0)
    )
    assert half.keys() == whole.keys()
    for name in ("linear.weight", "linear.bias"):
        torch.testing.assert_close(half[name], (start[name] + whole[name]) / 2)
    if head != "linear":
        assert not start["up.weight"].any()
        assert whole["up.weight"].any()
        torch.testing.assert_close(half["up.weight"], whole["up.weight"] / 2)
    if head != "low-rank":
        assert not torch.allclose(start["linear.weight"], whole["linear.weight"], atol=1e-4)


def test_a_head_does_without_what_target_features_have_in_common():
    """Rows that all lean one way: queries that lean there, too, find those that lean most."""
    torch.manual_seed(0)
    labels = torch.arange(600) % 40
    centres = F.normalize(torch.randn(40, 16), dim=1)
    rows = centres[labels] + 0.3 * torch.randn(600, 16)
    lean = torch.zeros(16)
    lean[0] = 4.0
    target = F.normalize(rows + lean * torch.rand(600, 1), dim=1)
    source = F.normalize(centres[labels] + 0.2 * torch.randn(600, 16), dim=1)
    fit, held = labels < 24, labels >= 24
    found = {}
    for centring in (0.0, 0.6):
        head = CompatHead(epochs=2, centring=centring).fit(
            source=source[fit], target=target[fit], labels=labels[fit]
        )
        result = evaluate_retrieval(
            head.transform(source[held]),
            target[held],
            query_labels=labels[held],
            gallery_labels=labels[held],
            metrics=("map",),
        )
        found[centring] = result["map"]
    assert found[0.6] > found[0.0] + 0.02


def test_training_is_repeatable_and_leaves_the_generator_alone():
    source, target, labels = _pairs()
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    results = [
        CompatHead(**QUICK).fit(source=source, target=target, labels=labels).transform(source)
        for _ in range(2)
    ]
    assert torch.equal(*results)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_takes_files_and_class_numbers_with_gaps(tmp_path):
    source, target, labels = _pairs()
    np.save(tmp_path / "source.npy", source.numpy())
    adapter = CompatHead(**QUICK).fit(
        source=tmp_path / "source.npy", target=target.numpy(), labels=7 * labels + 3
    )
    expected = CompatHead(**QUICK).fit(source=source, target=target, labels=labels)
    assert torch.equal(adapter.transform(tmp_path / "source.npy"), expected.transform(source))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": torch.ones(3, 2)}, "one row each per item, got 120 and 3"),
        ({"source": torch.ones(1, 2), "target": torch.ones(1, 2)}, "at least 2 rows, got 1"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels: expected shape \[120\]"),
        ({"labels": None}, "needs the class of each row"),
        ({"source": torch.full((120, 12), float("nan"))}, "source: row 0 holds a NaN"),
    ],
)
def test_bad_pairs_are_refused(change, message):
    source, target, labels = _pairs()
    with pytest.raises(ValueError, match=message):
        CompatHead(**QUICK).fit(**{"source": source, "target": target, "labels": labels, **change})


def test_wrong_use_is_refused(tmp_path):
    source, target, _ = _pairs()
    with pytest.raises(RuntimeError, match=r"call fit\(\) before transform"):
        Ridge().transform(source)
    with pytest.raises(RuntimeError, match=r"call fit\(\) before save"):
        Ridge().save(tmp_path / "x")
    with pytest.raises(ValueError, match="expected 12 dims as fitted, got 5"):
        Ridge().fit(source=source, target=target).transform(source[:, :5])
    with pytest.raises(ValueError, match="one dim, got 12 and 5"):
        MeanShift().fit(source=source, target=target[:, :5])
    with pytest.raises(ValueError, match="rank: expected at least 1"):
        LowRank(rank=0)
    with pytest.raises(ValueError, match="epochs: expected at least 1"):
        MlpMap(epochs=0)


def test_damaged_files_are_refused(tmp_path):
    source, target, _ = _pairs()
    path = tmp_path / "adapter.safetensors"
    adapter = Ridge().fit(source=source, target=target)
    adapter.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match="not a valid adapter file"):
        load_adapter(path)
    adapter._state["bias"] = torch.zeros(3)
    adapter.save(path)
    with pytest.raises(ValueError, match="not a valid adapter file"):
        load_adapter(path)
    with pytest.raises(FileNotFoundError):
        load_adapter(tmp_path / "absent")
