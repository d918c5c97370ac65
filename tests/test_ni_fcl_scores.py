# SPDX-License-Identifier: Apache-2.0
"""NI-FCL from scores: the loss by definition in float64, its state, and what a training keeps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fclearn import KnnGraph
from fclearn.datasets import ImageDataset
from fclearn.encoders import SmallCnn
from fclearn.integrations import CompatTerms
from fclearn.losses import LossTerm
from fclearn.methods import Assets, build_method
from fclearn.methods.ni_fcl_scores import ScoreListLoss
from fclearn.training import TrainConfig, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES, DIM, BATCH = 14, 5, 6
LISTS = [[(row * 5 + step * step + 1) % IMAGES for step in range(2 + row % 3)]
         for row in range(IMAGES)]  # fmt: skip


def normal(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=draw)


def lists():
    """Per image, others and their scores: of several lengths, in no order."""
    values = (40 + 3 * normal(IMAGES, IMAGES, seed=1)).tolist()
    return [
        {other: values[row][other] for other in others if other != row}
        for row, others in enumerate(LISTS)
    ]


def graph_of(found):
    crow = torch.tensor([0, *np.cumsum([len(one) for one in found])])
    cols = torch.tensor([other for one in found for other in one])
    values = torch.tensor([x for one in found for x in one.values()], dtype=torch.float64)
    return KnnGraph.from_csr(crow, cols, values)


def softmax(logits):
    most = max(logits.values())
    total = sum(math.exp(x - most) for x in logits.values())
    return {key: math.exp(x - most) / total for key, x in logits.items()}


def old_side(found, *, old_scale, damping):
    """p of each image over its whole list."""
    means = [sum(one.values()) / len(one) for one in found]
    squares = [(x - mean) ** 2 for one, mean in zip(found, means, strict=True)
               for x in one.values()]  # fmt: skip
    spread = math.sqrt(sum(squares) / len(squares))
    old = [softmax({o: old_scale * x / spread for o, x in one.items()}) for one in found]
    if not damping:
        return old
    matrix = torch.zeros(IMAGES, IMAGES, dtype=torch.float64)
    for row, one in enumerate(old):
        for other, p in one.items():
            matrix[row, other] = p
    identity = torch.eye(IMAGES, dtype=torch.float64)
    walked = (1 - damping) * torch.linalg.inv(identity - damping * matrix) @ matrix
    kept = [{other: float(walked[row, other]) for other in one} for row, one in enumerate(old)]
    return [{o: p / sum(one.values()) for o, p in one.items()} for one in kept]


def by_definition(old, memory, embeddings, rows, scale):
    """Mean KL over the batch; memory holds the embeddings of the images seen."""
    total = embeddings.new_zeros(())
    for embedding, row in zip(embeddings, rows.tolist(), strict=True):
        seen = [other for other in old[row] if other in memory]
        if not seen:
            continue
        p = torch.tensor([old[row][other] for other in seen], dtype=torch.float64)
        p = p / p.sum()
        cosines = torch.stack([F.cosine_similarity(embedding, memory[o], dim=0) for o in seen])
        total = total + (p * (p.log() - torch.log_softmax(scale * cosines, 0))).sum()
    return total / len(embeddings)


@pytest.mark.parametrize("damping", [0.0, 0.6])
def test_loss_by_definition_with_members_not_yet_seen(damping):
    found = lists()
    term = ScoreListLoss(graph_of(found), DIM, scale=7.0, old_scale=1.5, damping=damping).double()
    old = old_side(found, old_scale=1.5, damping=damping)
    memory: dict[int, torch.Tensor] = {}
    # In float32 the old side is rounded; a walk lacks a thousandth of its mass at most.
    tolerance = 2e-3 if damping else 1e-6
    sizes = []
    for step in range(3):
        rows = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(step))[:BATCH]
        embeddings = (3 * normal(BATCH, DIM, seed=10 + step)).requires_grad_()
        memory |= {int(row): x.detach() for row, x in zip(rows, embeddings, strict=True)}
        sizes.append(len(memory))
        value = term(embeddings, torch.zeros(BATCH), rows)
        expected = by_definition(old, memory, embeddings, rows, 7.0)
        assert expected > 0.01
        torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)
        exact, got = (torch.autograd.grad(x, embeddings)[0] for x in (expected, value))
        torch.testing.assert_close(got, exact, rtol=tolerance, atol=tolerance)
    assert sizes[0] < sizes[-1] < IMAGES


def test_the_walk_changes_the_old_side():
    one, two = (ScoreListLoss(graph_of(lists()), DIM, damping=d).log_old for d in (0.0, 0.6))
    assert (one.softmax(1) - two.softmax(1)).abs().max() > 0.05


def test_an_image_none_of_whose_list_is_seen_has_no_loss_and_no_gradient():
    found = [{1: 3.0, 2: 1.0}, {0: 1.0}, {3: 1.0}, {2: 2.0}]
    term = ScoreListLoss(graph_of(found), DIM)
    embeddings = normal(2, DIM).float().requires_grad_()
    term(embeddings, torch.zeros(2), torch.tensor([0, 3])).backward()
    assert torch.equal(embeddings.grad, torch.zeros(2, DIM))
    term.eval()
    before = term.last_embeddings.clone()
    assert before[[0, 3]].any(1).all()
    assert not before[[1, 2]].any()
    term(embeddings.flip(0), torch.zeros(2), torch.tensor([1, 2]))
    assert torch.equal(term.last_embeddings, before)  # remembered in training alone


def test_unit_and_order_of_scores_and_own_entries_do_not_matter():
    found = lists()
    plain = ScoreListLoss(graph_of(found), DIM)
    moved = [{o: 1e-3 * x + 5 for o, x in reversed(one.items())} for one in found]
    moved[2] = {2: 99.0, **moved[2]}
    other = ScoreListLoss(graph_of(moved), DIM)
    assert torch.equal(plain.members, other.members)
    torch.testing.assert_close(plain.log_old, other.log_old, rtol=1e-5, atol=1e-5)


def test_k_keeps_the_highest_scores():
    found = [{1: 1.0, 2: 5.0, 3: 3.0}, {0: 1.0}, {0: 2.0, 1: 3.0}, {0: 1.0}]
    term = ScoreListLoss(graph_of(found), DIM, k=2)
    assert term.members.tolist() == [[2, 3], [0, -1], [1, 0], [0, -1]]
    assert term.log_old.isfinite().all()


@pytest.mark.parametrize("old_scale", [1e-3, 1e6, 1e300])
def test_scores_of_any_spread_give_a_finite_loss(old_scale):
    term = ScoreListLoss(graph_of(lists()), DIM, old_scale=old_scale)
    embeddings = normal(IMAGES, DIM).float().requires_grad_()
    loss = term(embeddings, torch.zeros(IMAGES), torch.arange(IMAGES))
    loss.backward()
    assert loss.isfinite()
    assert embeddings.grad.isfinite().all()


def test_state_is_what_was_seen():
    term = ScoreListLoss(graph_of(lists()), DIM)
    assert set(term.state_dict()) == {"last_embeddings"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.0}, r"^scale: expected a positive number, got 0\.0"),
        ({"old_scale": math.nan}, "^old_scale: expected a positive number, got nan"),
        ({"k": 0}, "k: expected at least 1 member of a list, got 0"),
        ({"damping": 1.0}, r"damping: expected a number in \[0, 1\), got 1\.0"),
        ({"damping": -0.1}, r"damping: expected a number in \[0, 1\), got -0\.1"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        ScoreListLoss(graph_of(lists()), DIM, **options)


def test_refused_lists_and_embeddings():
    with pytest.raises(ValueError, match=r"old_scores: image 1 has no list of .* \(2 such\)"):
        ScoreListLoss(graph_of([{1: 2.0, 2: 1.0}, {}, {2: 1.0}]), DIM)
    for equal in ([{1: 0.7, 2: 0.7}, {0: 9.0}, {0: 1e-3}], [{1: 0.0}, {0: 0.0}]):
        with pytest.raises(ValueError, match="old_scores: expected scores that differ within a"):
            ScoreListLoss(graph_of(equal), DIM)
    term = ScoreListLoss(graph_of(lists()), DIM)
    with pytest.raises(ValueError, match="embeddings: expected 5 dims, got 6"):
        term(torch.ones(1, 6), torch.zeros(1), torch.tensor([0]))


def test_in_another_training():
    labels = torch.arange(IMAGES) % 3
    with pytest.raises(ValueError, match=r"'ni-fcl-scores' needs the .*old_scores.*is missing"):
        CompatTerms.from_method("ni-fcl-scores", torch.randn(IMAGES, 3), labels, dim=DIM)
    scores = graph_of(lists())
    terms = CompatTerms.from_method("ni-fcl-scores", None, labels, dim=DIM, old_scores=scores)
    assert terms.names == ["ScoreListLoss"]
    assert terms(torch.randn(IMAGES, DIM), torch.arange(IMAGES)) > 0
    with pytest.raises(ValueError, match=r"15 rows, .* in the members of ScoreListLoss, got 14"):
        CompatTerms([LossTerm("compat", 1.0, terms.modules_of_terms[0])], torch.arange(15))


def _images():
    """Patterns of six classes with four variants each, in noise."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 16)
    patterns = random.integers(0, 200, (6, 16, 16))
    variants = random.integers(0, 120, (6, 4, 16, 16))
    pixels = 0.6 * patterns[labels] + variants[labels, np.arange(96) % 4]
    pixels += random.integers(0, 50, pixels.shape)
    return ImageDataset(
        pixels.clip(0, 255).astype(np.uint8),
        labels,
        [f"i{n}" for n in range(96)],
        class_names=list("abcdef"),
    )


def _embeddings(images, assets, name, *, seed, epochs, **settings):
    torch.manual_seed(seed)
    encoder = SmallCnn(16, width=4)
    terms = build_method(name, assets, 16, **settings)
    config = TrainConfig(epochs=epochs, batch_size=16, seed=seed, augment=False)
    Trainer(encoder, terms, images, config, progress=False).fit()
    encoder.eval()
    with torch.no_grad():
        return F.normalize(encoder(images.tensor(np.arange(len(images)))), dim=1)


def _kept_pairs(old, new, depth=10):
    """Share of the pairs among each image's first old results that keep their order."""
    top = (old @ old.T).fill_diagonal_(-2).topk(depth, 1).indices
    scores = (new @ new.T).gather(1, top)
    first, second = torch.triu_indices(depth, depth, 1)
    return (scores[:, first] > scores[:, second]).double().mean()


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_the_term_alone_brings_embeddings_into_the_old_order(damping):
    old = F.normalize(normal(40, 6), dim=1).float()
    term = ScoreListLoss(KnnGraph.build(old, 12), 8, damping=damping)
    embeddings = normal(40, 8, seed=3).float().requires_grad_()
    optimizer = torch.optim.Adam([embeddings], lr=0.05)
    before = _kept_pairs(old, F.normalize(embeddings.detach(), dim=1))
    for _ in range(200):
        optimizer.zero_grad()
        term(embeddings, torch.zeros(40), torch.arange(40)).backward()
        optimizer.step()
    kept = _kept_pairs(old, F.normalize(embeddings.detach(), dim=1))
    assert 0.4 < before < 0.6
    assert kept > 0.8


def test_a_training_keeps_more_of_the_old_order():
    images = _images()
    labels = torch.from_numpy(images.labels)
    old = _embeddings(images, Assets(labels), "independent", seed=7, epochs=2)
    assets = Assets(labels, old_scores=KnnGraph.build(old, 30))
    alone = _embeddings(images, assets, "independent", seed=0, epochs=8)
    kept = _embeddings(images, assets, "ni-fcl-scores", seed=0, epochs=8)
    assert _kept_pairs(old, kept) > _kept_pairs(old, alone) + 0.02
    same_first = [
        ((x @ x.T).fill_diagonal_(-2).argmax(1) == (old @ old.T).fill_diagonal_(-2).argmax(1))
        for x in (alone, kept)
    ]
    assert same_first[1].sum() > same_first[0].sum()
