# SPDX-License-Identifier: Apache-2.0
"""Loss modules: values by definition, wider embeddings, what is frozen, files, representation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from store_samples import unit
from torch._subclasses.fake_tensor import FakeTensorMode

import fcl_ext
import reference
from fclearn.losses import (
    CosineClassifierLoss,
    DistillCompatLoss,
    InstanceCompatLoss,
    L2CompatLoss,
    PseudoClassifierLoss,
    compatible_part,
    compatible_unit,
)
from support import error, error_budget

BATCH, CLASSES, IMAGES, DIM = 9, 7, 30, 5


class Batch:
    """Old features of all images, and a batch of new embeddings, ``extra`` dims wider."""

    def __init__(self, dtype=torch.float64, extra=0, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)

        self.embeddings = (3 * normal(BATCH, DIM + extra)).requires_grad_()
        self.prototypes = 2 * normal(CLASSES, DIM)
        self.features = 2 * normal(IMAGES, DIM)
        self.soft_targets = normal(IMAGES, DIM)
        order = torch.randperm(IMAGES, generator=generator)
        self.feature_labels = (torch.arange(IMAGES) % CLASSES)[order]
        self.rows = torch.randperm(IMAGES, generator=generator)[:BATCH]
        self.labels = self.feature_labels[self.rows]

    @property
    def part(self):
        """What is compared with the old features: the first dims."""
        return self.embeddings.double()[:, :DIM]


def _weighted_sets(labels, dtype=torch.float64):
    positives = fcl_ext.PositiveSets.from_labels(labels)
    weights = torch.rand(IMAGES, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    counts = positives.crow_indices.diff()
    owner = torch.repeat_interleave(torch.arange(CLASSES), counts)
    sums = torch.zeros(CLASSES, dtype=torch.float64).index_add(0, owner, weights)
    return positives._replace(log_weights=(weights / sums[owner]).log().to(dtype))


def _weighted_supcon(batch, scale):
    sets = _weighted_sets(batch.feature_labels)
    lse, _ = reference.softmax_readout(unit(batch.part), unit(batch.features), scale=scale)
    positive, _ = reference.sparse_readout(
        unit(batch.part), unit(batch.features), batch.labels, *sets, scale=scale
    )
    return (lse - positive).mean()


# Name: the module over a batch, and its value by definition in float64.
TERMS = {
    "pseudo": (
        lambda b: PseudoClassifierLoss(b.prototypes, scale=8.0),
        lambda b: reference.compat_loss(b.part, b.prototypes.double(), b.labels, scale=8.0),
    ),
    "pseudo, smoothed": (
        lambda b: PseudoClassifierLoss(b.prototypes, scale=8.0, label_smoothing=0.2),
        lambda b: reference.compat_loss(
            b.part, b.prototypes.double(), b.labels, scale=8.0, label_smoothing=0.2
        ),
    ),
    "pseudo, soft targets": (
        lambda b: PseudoClassifierLoss(
            b.prototypes, scale=8.0, label_smoothing=0.0, soft_targets=b.soft_targets
        ),
        lambda b: reference.compat_loss(
            b.part, b.prototypes.double(), targets=b.soft_targets.double()[b.rows], scale=8.0
        ),
    ),
    "instance": (
        lambda b: InstanceCompatLoss(b.features, b.feature_labels, scale=6.0),
        lambda b: reference.compat_supcon(
            b.part, b.labels, b.features.double(), b.feature_labels, scale=6.0
        ),
    ),
    "instance, weighted": (
        lambda b: InstanceCompatLoss(
            b.features,
            b.feature_labels,
            scale=6.0,
            positives=_weighted_sets(b.feature_labels, b.features.dtype),
        ),
        lambda b: _weighted_supcon(b, 6.0),
    ),
    "l2": (
        lambda b: L2CompatLoss(b.features),
        lambda b: (unit(b.part) - unit(b.features)[b.rows]).square().sum(1).mean(),
    ),
    "distill": (
        lambda b: DistillCompatLoss(b.prototypes, b.features, scale=4.0),
        lambda b: reference.compat_kl(
            b.part,
            b.prototypes.double(),
            teacher_embeddings=b.features.double()[b.rows],
            scale=4.0,
        ),
    ),
}


@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", TERMS)
def test_compat_terms_by_definition(name, dtype, extra):
    module, by_definition = TERMS[name]
    batch = Batch(dtype, extra)
    expected = by_definition(batch)
    (exact,) = torch.autograd.grad(expected, batch.embeddings)
    value = module(batch)(batch.embeddings, batch.labels, batch.rows)
    (gradient,) = torch.autograd.grad(value, batch.embeddings)
    assert value.dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 3e-6
    assert error(value.detach(), expected.detach()) < tolerance
    assert error(gradient, exact) < 10 * tolerance
    assert not gradient[:, DIM:].any()


@pytest.mark.parametrize("name", TERMS)
def test_lengths_do_not_matter(name):
    """Old features and embeddings of any length give the loss of their directions."""
    batch, longer = Batch(), Batch()
    longer.features *= 7
    longer.prototypes *= 5
    longer.embeddings = longer.embeddings.detach() * 3
    module = TERMS[name][0]
    torch.testing.assert_close(
        module(batch)(batch.embeddings, batch.labels, batch.rows),
        module(longer)(longer.embeddings, longer.labels, longer.rows),
    )


@pytest.mark.parametrize("name", TERMS)
def test_narrower_embeddings_are_refused(name):
    batch = Batch()
    with pytest.raises(
        ValueError, match="embeddings: expected at least the 5 dims of the old features, got 4"
    ):
        TERMS[name][0](batch)(batch.embeddings[:, :4], batch.labels, batch.rows)


@pytest.mark.parametrize("name", TERMS)
def test_everything_old_is_frozen_and_copied(name):
    batch = Batch()
    batch.prototypes.requires_grad_()
    batch.features.requires_grad_()
    module = TERMS[name][0](batch)
    assert list(module.parameters()) == []
    assert not any(buffer.requires_grad for buffer in module.buffers())
    value = module(batch.embeddings, batch.labels, batch.rows)
    value.backward()
    assert batch.prototypes.grad is None
    assert batch.features.grad is None
    with torch.no_grad():
        for tensor in (batch.prototypes, batch.features, batch.soft_targets):
            tensor.zero_()
    again = module(batch.embeddings, batch.labels, batch.rows)
    assert torch.equal(value.detach(), again.detach())


@pytest.mark.parametrize("name", TERMS)
def test_state_dict_round_trips(name):
    """What was computed is in it; old features, as large as the training set, are not."""
    batch, other = Batch(), Batch(seed=1)
    other.feature_labels, other.labels = batch.feature_labels, batch.labels
    other.features = batch.features
    module = TERMS[name][0](batch)
    loaded = TERMS[name][0](other)
    loaded.load_state_dict(module.state_dict())
    assert not {"features", "col_indices"} & set(module.state_dict())
    arguments = (batch.embeddings, batch.labels, batch.rows)
    assert torch.equal(loaded(*arguments), module(*arguments))
    assert {b.dtype for b in module.float().buffers()} <= {torch.float32, torch.int64}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pseudo", "num_classes=7, dim=5, scale=8.0, label_smoothing=0.0, soft_targets=False"),
        (
            "pseudo, soft targets",
            "num_classes=7, dim=5, scale=8.0, label_smoothing=0.0, soft_targets=True",
        ),
        ("instance", "num_features=30, dim=5, scale=6.0"),
        ("l2", "num_features=30, dim=5"),
        ("distill", "num_classes=7, dim=5, scale=4.0"),
    ],
)
def test_representation(name, text):
    module = TERMS[name][0](Batch())
    assert repr(module) == f"{type(module).__name__}({text})"


def test_a_sharper_teacher_by_definition():
    batch = Batch(extra=3)
    term = DistillCompatLoss(batch.features, batch.features, scale=4.0, teacher_scale=9.0)
    rows = unit(batch.features)
    old = torch.log_softmax(9.0 * rows[batch.rows] @ rows.T, 1)
    new = torch.log_softmax(4.0 * unit(batch.part) @ rows.T, 1)
    expected = (old.exp() * (old - new)).sum(1).mean()
    value = term(batch.embeddings, batch.labels, batch.rows)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    gradients = (torch.autograd.grad(v, batch.embeddings)[0] for v in (value, expected))
    assert error(*gradients) < 1e-12


def test_soft_targets_need_rows():
    batch = Batch()
    module = TERMS["pseudo, soft targets"][0](batch)
    with pytest.raises(ValueError, match="rows: soft targets are looked up by training row"):
        module(batch.embeddings, batch.labels)


def test_options_that_would_be_ignored_are_refused():
    batch = Batch()
    with pytest.raises(ValueError, match="label_smoothing: soft targets are used as given"):
        PseudoClassifierLoss(batch.prototypes, soft_targets=batch.soft_targets, label_smoothing=0.1)


@pytest.mark.parametrize("name", ["l2", "distill"])
def test_rows_of_another_length_are_refused(name):
    batch = Batch()
    module = TERMS[name][0](batch)
    with pytest.raises((ValueError, RuntimeError), match="expected"):
        module(batch.embeddings, batch.labels, batch.rows[:1])


def test_misaligned_old_data_is_refused():
    batch = Batch()
    with pytest.raises(ValueError, match=r"labels: expected one per feature \(30\), got 29"):
        InstanceCompatLoss(batch.features, batch.feature_labels[:-1])
    with pytest.raises(ValueError, match="soft_targets: expected 5 dims as the prototypes, got 4"):
        PseudoClassifierLoss(batch.prototypes, soft_targets=batch.soft_targets[:, :4])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_smoothing": 0.1},
        {"margin": 0.2},
        {"margin": 0.3, "margin_type": "arcface", "scale": 12.0},
    ],
)
def test_cosine_classifier_by_definition(options, dtype):
    batch = Batch(dtype)
    torch.manual_seed(0)
    module = CosineClassifierLoss(CLASSES, DIM, **options).to(dtype)
    value = module(batch.embeddings, batch.labels)
    value.backward()

    def naive(kind):
        embeddings = batch.embeddings.detach().to(kind).requires_grad_()
        prototypes = module.prototypes.detach().to(kind).requires_grad_()
        loss = reference.compat_loss(
            embeddings, prototypes, batch.labels, **{"scale": 16.0, **options}
        )
        loss.backward()
        return loss.detach(), embeddings.grad, prototypes.grad

    got = (value.detach(), batch.embeddings.grad, module.prototypes.grad)
    for mine, plain, exact in zip(got, naive(dtype), naive(torch.float64), strict=True):
        assert error(mine, exact) <= error_budget(plain, exact, dtype)


def test_cosine_classifier_is_trainable_and_says_what_it_is():
    module = CosineClassifierLoss(CLASSES, DIM, margin=0.2)
    assert [name for name, _ in module.named_parameters()] == ["prototypes"]
    assert repr(module) == (
        "CosineClassifierLoss(num_classes=7, dim=5, scale=16.0, margin=0.2, "
        "margin_type='cosface', label_smoothing=0.0)"
    )
    # Each row about of unit length, so that no class starts with an advantage.
    wide = CosineClassifierLoss(50, 400).prototypes.norm(dim=1)
    assert 0.8 < wide.min() < wide.max() < 1.2


@pytest.mark.parametrize("name", TERMS)
def test_a_row_that_is_not_finite_is_named(name):
    for tensor in ("prototypes", "features", "soft_targets"):
        batch = Batch()
        getattr(batch, tensor)[3, 1] = torch.nan
        getattr(batch, tensor)[5, 0] = torch.inf
        held = tensor in TERMS_HOLD[name]
        if held:
            with pytest.raises(ValueError, match=f"{tensor}: row 3 has a NaN or an infinity"):
                TERMS[name][0](batch)
        else:
            TERMS[name][0](batch)


TERMS_HOLD = {
    "pseudo": {"prototypes"},
    "pseudo, smoothed": {"prototypes"},
    "pseudo, soft targets": {"prototypes", "soft_targets"},
    "instance": {"features"},
    "instance, weighted": {"features"},
    "l2": {"features"},
    "distill": {"prototypes", "features"},
}


@pytest.mark.parametrize("name", ["pseudo", "pseudo, soft targets", "instance", "l2", "distill"])
def test_memory_maps_are_what_their_tensors_are(name, tmp_path):
    plain, mapped = Batch(torch.float32), Batch(torch.float32)
    for tensor in ("prototypes", "features", "soft_targets", "feature_labels"):
        np.save(tmp_path / f"{tensor}.npy", getattr(mapped, tensor).numpy())
        setattr(mapped, tensor, np.load(tmp_path / f"{tensor}.npy", mmap_mode="r"))
    arguments = (plain.embeddings, plain.labels, plain.rows)
    values = [TERMS[name][0](batch)(*arguments) for batch in (plain, mapped)]
    assert torch.equal(*values)


def test_without_values_nothing_is_looked_at():
    with FakeTensorMode():
        assert L2CompatLoss(torch.randn(4, 3)).features.shape == (4, 3)


@pytest.mark.parametrize("name", ["l2", "distill", "pseudo, soft targets"])
def test_rows_out_of_range_are_refused(name):
    batch = Batch()
    module = TERMS[name][0](batch)
    for row in (-3, IMAGES):
        rows = batch.rows.clone()
        rows[4] = row
        message = rf"rows: expected numbers of training rows in \[0, 30\), got {row}"
        with pytest.raises(ValueError, match=message):
            module(batch.embeddings, batch.labels, rows)
    with pytest.raises(ValueError, match=r"rows: .* got None"):
        module(batch.embeddings, batch.labels, None)
    with pytest.raises(ValueError, match=r"rows: expected integers, got torch\.float32"):
        module(batch.embeddings, batch.labels, batch.rows.float())


def test_rows_are_looked_up_within_one_graph():
    batch = Batch(torch.float32)
    module = L2CompatLoss(batch.features)
    arguments = (batch.embeddings, batch.labels, batch.rows)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), module(*arguments))


def test_labels_of_features_that_are_no_classes_are_refused():
    features = Batch().features
    with pytest.raises(ValueError, match=r"labels: expected integers of shape \(30,\), got list"):
        InstanceCompatLoss(features, ["a"] * IMAGES)
    with pytest.raises(ValueError, match="expected numbers below 16777216 for 30 rows"):
        InstanceCompatLoss(features, torch.arange(IMAGES) + 3_000_000_000)


def test_wrong_labels_are_refused_by_every_term_that_reads_them():
    batch = Batch()
    labels = torch.full_like(batch.labels, CLASSES)
    for name in ("pseudo", "instance"):
        message = r"expected labels in \[0, 7\), got 7 in row 0"
        with pytest.raises((ValueError, RuntimeError), match=message):
            TERMS[name][0](batch)(batch.embeddings, labels, batch.rows)


def test_compatible_part_is_a_view_of_the_first_dims():
    embeddings = torch.arange(12.0).reshape(3, 4)
    part = compatible_part(embeddings, 2)
    assert part.tolist() == [[0, 1], [4, 5], [8, 9]]
    assert part.data_ptr() == embeddings.data_ptr()


def test_compatible_unit_is_of_unit_length_in_the_first_dims():
    embeddings = Batch(extra=2).embeddings.detach()
    embeddings[1, :DIM] = 0
    expected = embeddings[:, :DIM].numpy() / np.maximum(
        np.linalg.norm(embeddings[:, :DIM].numpy(), axis=1, keepdims=True), 1e-12
    )
    np.testing.assert_allclose(compatible_unit(embeddings, DIM).numpy(), expected, rtol=1e-12)
    with pytest.raises(ValueError, match="at least the 8 dims of the old features, got 7"):
        compatible_unit(embeddings, 8)
