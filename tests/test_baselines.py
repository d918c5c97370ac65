# SPDX-License-Identifier: Apache-2.0
"""The losses of the baselines: by definition in float64, their state, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import reference
from fclearn import PseudoClassifier
from fclearn.losses import CosineClassifierLoss, DistillCompatLoss
from fclearn.methods import Assets, build_method
from fclearn.methods.adv_bct import ElasticBoundaryLoss, OldOrNewLoss
from fclearn.methods.bt2 import RotatedCosineLoss
from fclearn.methods.hot_refresh import RegressionAlleviatingLoss
from fclearn.methods.lce import AlignmentLoss, BoundaryLoss
from fclearn.methods.mix_bct import MixedClassifierLoss
from fclearn.methods.nccl import NeighbourContrastLoss, _credible
from fclearn.methods.uni_bct import RefreshedPrototypeLoss
from reference import random_walk_limit

IMAGES, CLASSES, DIM, EXTRA, BATCH = 30, 4, 5, 2, 9


class Batch:
    """Old features of all images, unit and float64, and a batch of embeddings two dims wider."""

    def __init__(self, seed=0):
        self.generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(IMAGES, generator=self.generator)
        self.feature_labels = (torch.arange(IMAGES) % CLASSES)[order]
        self.features = F.normalize(
            self.normal(CLASSES, DIM)[self.feature_labels] + 0.7 * self.normal(IMAGES, DIM), dim=1
        )
        self.rows = torch.randperm(IMAGES, generator=self.generator)[:BATCH]
        self.labels = self.feature_labels[self.rows]
        self.embeddings = (3 * self.normal(BATCH, DIM + EXTRA)).requires_grad_()

    def normal(self, *shape):
        return torch.randn(*shape, dtype=torch.float64, generator=self.generator)

    @property
    def arguments(self):
        return self.embeddings, self.labels, self.rows

    @property
    def part(self):
        return F.normalize(self.embeddings[:, :DIM], dim=1)

    @property
    def assets(self):
        return Assets(self.feature_labels, old_features=self.features.float())

    def centres(self):
        sums = torch.zeros(CLASSES, DIM, dtype=torch.float64)
        return F.normalize(sums.index_add(0, self.feature_labels, self.features), dim=1)


def _same(value, expected, embeddings, tolerance=1e-10):
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)
    (exact,) = torch.autograd.grad(expected, embeddings, retain_graph=True)
    (gradient,) = torch.autograd.grad(value, embeddings, retain_graph=True)
    torch.testing.assert_close(gradient, exact, rtol=10 * tolerance, atol=10 * tolerance)


# --- LwF ---


def test_lwf_distils_through_the_learned_or_the_old_head():
    batch = Batch()
    rows, classes = batch.normal(2, DIM).float(), torch.tensor([3, 0])
    owned = Assets(batch.feature_labels, batch.assets.old_features, rows, classes)
    learned = PseudoClassifier.fit(batch.features, batch.feature_labels).prototypes
    for assets, head, expected in ((batch.assets, "learned", learned), (owned, "old", rows)):
        term = build_method("lwf", assets, DIM + EXTRA, head=head)[1]
        assert isinstance(term.module, DistillCompatLoss)
        torch.testing.assert_close(term.module.prototypes, F.normalize(expected, dim=1))
        value = term.module(batch.embeddings.float(), batch.labels, batch.rows)
        exact = reference.compat_kl(
            batch.part,
            expected.double(),
            teacher_embeddings=batch.features[batch.rows],
            scale=10.0,
        )
        torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)


def test_lwf_refuses():
    with pytest.raises(ValueError, match="head='old' needs the old classifier"):
        build_method("lwf", Batch().assets, DIM, head="old")
    with pytest.raises(ValueError, match="head: expected 'learned' or 'old', got 'mean'"):
        build_method("lwf", Batch().assets, DIM, head="mean")


# --- LCE ---


def test_alignment_moves_the_new_classifier_to_the_old_centres():
    batch = Batch()
    classifier = CosineClassifierLoss(CLASSES, DIM + EXTRA).double()
    term = AlignmentLoss(classifier, batch.centres())
    rows = classifier.prototypes[:, :DIM]
    total = sum(
        (row / row.norm() - centre).square().sum()
        for row, centre in zip(rows, batch.centres(), strict=True)
    )
    _same(term(*batch.arguments), total / (CLASSES * DIM), classifier.prototypes)
    with torch.no_grad():
        classifier.prototypes[:, :DIM] = 3 * batch.centres()
    assert term(*batch.arguments) < 1e-30
    with pytest.raises(ValueError, match=r"centres: expected one per class \(4\), got 3"):
        AlignmentLoss(classifier, batch.centres()[:3])


def test_boundary_is_that_of_the_farthest_old_feature():
    batch = Batch()
    centres = batch.centres()
    term = BoundaryLoss(batch.features, batch.feature_labels, centres)
    losses = []
    for z, label in zip(batch.part, batch.labels.tolist(), strict=True):
        members = batch.features[batch.feature_labels == label]
        farthest = min(float(member @ centres[label]) for member in members)
        losses.append(F.relu(farthest - z @ centres[label]))
    _same(term(*batch.arguments), torch.stack(losses).mean(), batch.embeddings)
    everything = torch.arange(IMAGES)
    assert term(batch.features, batch.feature_labels, everything) < 1e-15


def test_lce_shares_the_new_classifier():
    new, alignment, _ = build_method("lce", Batch().assets, DIM + EXTRA)
    assert alignment.module.classifier is new.module
    terms = torch.nn.ModuleList([new.module, alignment.module])
    assert len(list(terms.parameters())) == 1


# --- NCCL ---


def _contrast(query, rows, batch, credible, scale):
    """Positive by positive."""
    logs = torch.log_softmax(scale * query @ rows[credible].T, dim=1)
    places = credible.nonzero()[:, 0].tolist()
    losses = []
    for i, (row, label) in enumerate(zip(batch.rows.tolist(), batch.labels.tolist(), strict=True)):
        terms = [
            -0.5 * (1 + batch.features[row] @ batch.features[other]) * logs[i, at]
            for at, other in enumerate(places)
            if int(batch.feature_labels[other]) == label
        ]
        losses.append(sum(terms) / len(terms) if terms else query.new_zeros(()))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("lacking", [None, 2])
def test_neighbour_contrast(lacking):
    """Also with a class that has no credible feature: its images have no loss."""
    batch = Batch()
    credible = (torch.arange(IMAGES) % 3 > 0) & (batch.feature_labels != lacking)
    term = NeighbourContrastLoss(batch.features, batch.feature_labels, credible, scale=6.0)
    expected = _contrast(batch.part, batch.features, batch, credible, 6.0)
    _same(term(*batch.arguments), expected, batch.embeddings)
    assert term.state_dict() == {}


def test_neighbour_contrast_of_outputs():
    """Through D x D products, the cosines of the C outputs of both classifiers."""
    batch = Batch()
    classifier = CosineClassifierLoss(CLASSES, DIM + EXTRA).double()
    head = F.normalize(batch.normal(CLASSES, DIM), dim=1)
    credible = torch.arange(IMAGES) % 3 > 0
    term = NeighbourContrastLoss(
        *(batch.features, batch.feature_labels, credible),
        scale=6.0,
        head=head,
        classifier=classifier,
    )
    new_outputs = F.normalize(batch.embeddings @ F.normalize(classifier.prototypes, dim=1).T, dim=1)
    old_outputs = F.normalize(batch.features @ head.T, dim=1)
    expected = _contrast(new_outputs, old_outputs, batch, credible, 6.0)
    _same(term(*batch.arguments), expected, batch.embeddings)
    _same(term(*batch.arguments), expected, classifier.prototypes)


def test_credible_features_are_those_of_low_entropy():
    batch = Batch()
    head = F.normalize(batch.normal(CLASSES, DIM), dim=1)
    probabilities = torch.softmax(20 * batch.features @ head.T, dim=1)
    entropy = -(probabilities * probabilities.log()).sum(1)
    credible = _credible(batch.features, head, 0.2)
    assert 0 < int(credible.sum()) < IMAGES
    assert torch.equal(credible, entropy <= 0.2 * math.log(CLASSES))
    assert _credible(batch.features, head, 1.0).all()
    with pytest.raises(ValueError, match=r"max_entropy: at -1\.0 no old feature is credible"):
        build_method("nccl", batch.assets, DIM, max_entropy=-1.0)


# --- hot-refresh ---


@pytest.mark.parametrize("num_negatives", [2, 0, 100])
def test_hot_refresh_has_new_and_old_negatives(num_negatives):
    batch = Batch()
    term = RegressionAlleviatingLoss(batch.features, scale=7.0, num_negatives=num_negatives)
    new, old = batch.part, batch.features[batch.rows]
    losses = []
    for i, label in enumerate(batch.labels.tolist()):
        logits = [7 * new[i] @ old[i]]
        for rows in (old, new):
            others = [7 * new[i] @ rows[j] for j in range(BATCH) if int(batch.labels[j]) != label]
            others.sort(key=lambda logit: -logit.item())
            logits += others[: num_negatives or None]
        losses.append(torch.logsumexp(torch.stack(logits), 0) - logits[0])
    _same(term(*batch.arguments), torch.stack(losses).mean(), batch.embeddings)


def test_hot_refresh_without_negatives_is_zero_and_refuses_options():
    term = RegressionAlleviatingLoss(torch.eye(2))
    embeddings = torch.randn(2, 2, requires_grad=True)
    value = term(embeddings, torch.zeros(2, dtype=torch.int64), torch.arange(2))
    value.backward()
    assert float(value.detach()) == 0
    assert embeddings.grad.isfinite().all()
    with pytest.raises(ValueError, match="scale: expected a finite number > 0, got 0"):
        RegressionAlleviatingLoss(torch.eye(2), scale=0)
    with pytest.raises(ValueError, match="num_negatives: expected at least 0, got -1"):
        RegressionAlleviatingLoss(torch.eye(2), num_negatives=-1)


# --- UniBCT ---


def _refined(batch, edges, k, temperature, damping):
    """Dense, class by class: rows of P sum to 1."""
    prototypes = []
    for label in range(CLASSES):
        members = (batch.feature_labels == label).nonzero()[:, 0]
        cosines = (edges[members] @ edges[members].T).fill_diagonal_(-math.inf)
        worst = cosines.topk(min(k, len(members) - 1)).values[:, -1:]
        matrix = torch.softmax(
            (cosines / temperature).masked_fill(cosines < worst, -math.inf), dim=1
        )
        torch.testing.assert_close(matrix.sum(1), torch.ones(len(members), dtype=torch.float64))
        walked = random_walk_limit(matrix, batch.features[members], damping=damping)
        prototypes.append(F.normalize(walked.mean(0), dim=0))
    return torch.stack(prototypes)


def test_uni_bct_refreshes_its_prototypes_from_new_embeddings():
    batch = Batch()
    options = {"k": 3, "temperature": 0.2, "damping": 0.8}
    term = RefreshedPrototypeLoss(
        batch.features, batch.feature_labels, scale=6.0, refresh_epochs=2, **options
    )
    first = _refined(batch, batch.features, **options)
    torch.testing.assert_close(term.prototypes.double(), first, rtol=0, atol=1e-5)
    assert (first - batch.centres()).norm() > 1e-2  # which a column-stochastic P cannot do
    everything = F.normalize(batch.normal(IMAGES, DIM + EXTRA), dim=1)
    for epoch in (1, 2):
        term.on_epoch(epoch, 4)
        torch.testing.assert_close(term.prototypes.double(), first, rtol=0, atol=1e-5)
        value = term(*batch.arguments)
        exact = reference.compat_loss(batch.part, term.prototypes.double(), batch.labels, scale=6.0)
        _same(value, exact, batch.embeddings, 1e-6)
        term(everything.float(), batch.feature_labels, torch.arange(IMAGES))
    term.eval()
    term(*batch.arguments)
    term.on_epoch(3, 4)
    second = _refined(batch, F.normalize(everything[:, :DIM], dim=1), **options)
    torch.testing.assert_close(term.prototypes.double(), second, rtol=0, atol=1e-5)
    assert (first - second).norm() > 1e-2


def test_uni_bct_state_is_what_changes():
    batch = Batch()
    term = RefreshedPrototypeLoss(batch.features, batch.feature_labels, refresh_epochs=1)
    assert set(term.state_dict()) == {"last_embeddings", "prototypes"}
    term.on_epoch(1, 3)
    term(batch.embeddings.float(), batch.labels, batch.rows)
    resumed = RefreshedPrototypeLoss(batch.features, batch.feature_labels, refresh_epochs=1)
    resumed.load_state_dict(term.state_dict())
    for module in (term, resumed):
        module.on_epoch(2, 3)
    assert torch.equal(term.prototypes, resumed.prototypes)


def test_uni_bct_warms_up_without_a_loss():
    batch = Batch()
    term = RefreshedPrototypeLoss(batch.features, batch.feature_labels, warmup_epochs=2)
    values = []
    for epoch in (1, 2, 3):
        term.on_epoch(epoch, 3)
        values.append(float(term(*batch.arguments).detach()))
    assert values[:2] == [0, 0] < values[2:]
    before = term.last_embeddings.clone()
    term(batch.embeddings.flip(0), batch.labels, batch.rows)
    assert not torch.equal(term.last_embeddings, before)
    for name in ("warmup_epochs", "refresh_epochs"):
        with pytest.raises(ValueError, match=f"{name}: expected at least 0, got -1"):
            RefreshedPrototypeLoss(batch.features, batch.feature_labels, **{name: -1})


# --- AdvBCT ---


def test_elastic_boundary():
    batch = Batch()
    term = ElasticBoundaryLoss(batch.features, batch.feature_labels)
    centres = batch.centres()
    largest = torch.stack(
        [
            (batch.features[batch.feature_labels == c] - centres[c]).norm(dim=1).max()
            for c in range(CLASSES)
        ]
    )
    with torch.no_grad():
        term.elasticity.copy_(batch.normal(CLASSES))
    share = 1 / (1 + torch.exp(-term.elasticity))
    radius = largest + share * (largest.mean() - largest)
    distances = (batch.part - centres[batch.labels]).norm(dim=1)
    expected = F.relu(distances - radius[batch.labels]).mean()
    # Class means are made in float32.
    _same(term(*batch.arguments), expected, batch.embeddings, 1e-6)
    _same(term(*batch.arguments), expected, term.elasticity, 1e-6)
    assert set(term.state_dict()) == {"elasticity"}


def test_the_discriminator_learns_and_the_encoder_gets_its_gradient_reversed():
    batch = Batch()
    torch.manual_seed(0)
    term = OldOrNewLoss(batch.features, width=8).double()
    term.on_epoch(2, 4)
    assert term.decay == 0.75
    assert term.reversal == pytest.approx(math.tanh(5 * 1.5 / 4))
    both = torch.cat([batch.part, batch.features[batch.rows]])
    targets = torch.cat([torch.zeros(BATCH), torch.ones(BATCH)]).double()
    # Mean over both halves: half of the sum of their means.
    plain = F.binary_cross_entropy_with_logits(term.discriminator(both)[:, 0], targets)
    value = term(*batch.arguments)
    torch.testing.assert_close(value, 2 * 0.75 * plain)
    parameters = list(term.parameters())
    got = torch.autograd.grad(value, [batch.embeddings, *parameters], retain_graph=True)
    exact = torch.autograd.grad(2 * 0.75 * plain, [batch.embeddings, *parameters])
    torch.testing.assert_close(got[0], -term.reversal * exact[0])
    torch.testing.assert_close(got[1:], exact[1:])
    assert all(key.startswith("discriminator.") for key in term.state_dict())


def test_adversarial_weight_falls_to_its_last_share():
    term = OldOrNewLoss(torch.eye(3))
    shares = []
    for epoch in range(1, 6):
        term.on_epoch(epoch, 5)
        shares.append((term.decay, term.reversal))
    assert [decay for decay, _ in shares] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    assert [reversal for _, reversal in shares] == sorted(r for _, r in shares)
    assert 0 < shares[0][1] < shares[-1][1] < 1


# --- MixBCT ---


def test_mix_bct_replaces_a_share_by_credible_old_features(monkeypatch):
    batch = Batch()
    term = MixedClassifierLoss(
        batch.features, batch.feature_labels, mix=0.5, keep=0.6, scale=5.0, margin=0.2
    )
    cosines = (batch.features * batch.centres()[batch.feature_labels]).sum(1)
    best = set(cosines.argsort(descending=True)[:18].tolist())
    assert set(term.credible.nonzero()[:, 0].tolist()) == best

    term.double()
    seen = []
    forward = term.classifier.forward
    monkeypatch.setattr(
        term.classifier, "forward", lambda x, y: seen.append(x.detach()) or forward(x, y)
    )
    torch.manual_seed(0)
    sets = set()
    rows = torch.arange(IMAGES)
    new = batch.normal(IMAGES, DIM)
    for _ in range(20):
        embeddings = new.clone().requires_grad_()
        value = term(embeddings, batch.feature_labels, rows)
        value.backward()
        replaced = {
            row for row in range(IMAGES) if torch.allclose(seen[-1][row], batch.features[row])
        }
        assert len(replaced) == 15
        assert replaced <= best
        sets.add(frozenset(replaced))
        mixed = F.normalize(new, dim=1)
        for row in replaced:
            mixed[row] = batch.features[row]
        exact = reference.compat_loss(
            mixed,
            term.classifier.prototypes.detach(),
            batch.feature_labels,
            scale=5.0,
            margin=0.2,
            margin_type="arcface",
        )
        torch.testing.assert_close(value.detach(), exact)
        still = {row for row in range(IMAGES) if not embeddings.grad[row].any()}
        assert still == replaced
    assert len(sets) > 10


def test_mix_bct_never_mixes_in_what_is_not_credible():
    batch = Batch()
    term = MixedClassifierLoss(batch.features, batch.feature_labels, mix=0.9, keep=0.1)
    doubtful = (~term.credible).nonzero()[:, 0]
    embeddings = batch.normal(len(doubtful), DIM).float().requires_grad_()
    term.float()(embeddings, batch.feature_labels[doubtful], doubtful).backward()
    assert embeddings.grad.any(1).all()


def test_mix_bct_starts_at_the_class_means_or_at_random():
    batch = Batch()
    owned = batch.features, batch.feature_labels
    rows = MixedClassifierLoss(*owned).classifier.prototypes
    torch.testing.assert_close(rows.detach(), batch.centres().float())
    assert rows.requires_grad
    torch.manual_seed(0)
    term = MixedClassifierLoss(*owned, start="random")
    torch.manual_seed(0)
    assert torch.equal(term.classifier.prototypes, CosineClassifierLoss(CLASSES, DIM).prototypes)
    with pytest.raises(ValueError, match="start: expected 'means' or 'random', got 'zero'"):
        MixedClassifierLoss(*owned, start="zero")


def test_mix_bct_refuses_shares_out_of_range():
    batch = Batch()
    for name, value, message in (
        ("mix", 1.0, r"mix: expected a share in \[0, 1\), got 1\.0"),
        ("mix", -0.1, r"mix: expected a share in \[0, 1\), got -0\.1"),
        ("keep", 0.0, r"keep: expected a share in \(0, 1\], got 0\.0"),
        ("keep", math.nan, r"keep: expected a share in \(0, 1\], got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            MixedClassifierLoss(batch.features, batch.feature_labels, **{name: value})


# --- BT2 ---


def test_bt2_compares_in_a_learned_basis_that_keeps_all_distances():
    batch = Batch()
    independent = F.normalize(batch.normal(IMAGES, DIM), dim=1)
    term = RotatedCosineLoss(independent, DIM + EXTRA)
    optimizer = torch.optim.Adam(term.parameters(), lr=0.05)
    values = []
    for _ in range(40):
        value = term(*batch.arguments)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.7 * values[0]
    basis = term.basis.weight.detach()
    identity = torch.eye(DIM + EXTRA, dtype=torch.float64)
    torch.testing.assert_close(basis @ basis.T, identity, rtol=0, atol=1e-12)
    assert (basis - identity).norm() > 0.1
    losses = [
        1 - F.cosine_similarity((basis @ z)[:DIM], independent[row], dim=0)
        for z, row in zip(batch.embeddings, batch.rows, strict=True)
    ]
    _same(term(*batch.arguments), torch.stack(losses).mean(), batch.embeddings)


def test_bt2_starts_where_the_embedding_is_and_refuses_narrow_ones():
    features = torch.eye(4)
    one, two = (RotatedCosineLoss(features, 6) for _ in range(2))
    torch.testing.assert_close(one.basis.weight, torch.eye(6))
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])
        assert "features" not in name
    with pytest.raises(ValueError, match="dim: expected at least the 4 dims of the independent"):
        RotatedCosineLoss(features, 3)
