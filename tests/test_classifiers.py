# SPDX-License-Identifier: Apache-2.0
"""Pseudo classifiers: means, learned heads, walks by dense reference, bad input, hostile files."""

from __future__ import annotations

import json
import pickle
import struct

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from store_samples import unit

import reference
from fclearn import KnnGraph, PseudoClassifier


def _clusters(num=60, dim=6, classes=5, noise=1.0, seed=0):
    """Noisy clusters of uneven size, every class at least twice."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randint(0, classes, (num - 2 * classes,), generator=generator)
    labels = torch.cat([torch.arange(classes).repeat(2), spread.square() // classes])
    labels = labels[torch.randperm(num, generator=generator)]
    centres = torch.randn(classes, dim, generator=generator)
    features = 2 * centres[labels] + noise * torch.randn(num, dim, generator=generator)
    return features, labels


def _dense(graph):
    return reference.csr_to_dense(
        graph.crow_indices, graph.col_indices, graph.values.double(), graph.num_nodes
    )


def _accuracy(pseudo):
    return float(
        ((pseudo.features @ pseudo.prototypes.T).argmax(1) == pseudo.labels).double().mean()
    )


# --- means ---


def test_means_by_definition():
    features, labels = _clusters()
    pseudo = PseudoClassifier.from_means(features, labels)
    for label in range(5):
        mean = unit(features)[labels == label].mean(0)
        torch.testing.assert_close(
            pseudo.prototypes[label].double(), mean / mean.norm(), rtol=0, atol=1e-6
        )
    torch.testing.assert_close(pseudo.features.double(), unit(features), rtol=0, atol=1e-6)
    assert torch.equal(pseudo.labels, labels)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_means_of_arrays(dtype):
    features, labels = _clusters()
    array = features.numpy().astype(dtype)
    pseudo = PseudoClassifier.from_means(array, labels.numpy().astype(np.int32))
    exact = PseudoClassifier.from_means(torch.from_numpy(array), labels)
    assert torch.equal(pseudo.prototypes, exact.prototypes)
    assert pseudo.prototypes.dtype == torch.float32


def test_means_of_a_memory_map(tmp_path):
    features, labels = _clusters()
    np.save(tmp_path / "features.npy", features.numpy())
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    pseudo = PseudoClassifier.from_means(mapped, labels)
    assert torch.equal(pseudo.prototypes, PseudoClassifier.from_means(features, labels).prototypes)


def test_arguments_are_not_changed():
    features, labels = _clusters()
    before = features.clone(), labels.clone()
    PseudoClassifier.fit(features, labels, epochs=2)
    assert torch.equal(features, before[0])
    assert torch.equal(labels, before[1])


@given(seed=st.integers(0, 10_000))
def test_means_do_not_depend_on_order_or_length(seed):
    features, labels = _clusters(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    lengths = torch.rand(len(labels), 1, generator=generator) + 0.1
    one = PseudoClassifier.from_means(features, labels)
    two = PseudoClassifier.from_means((features * lengths)[order], labels[order])
    torch.testing.assert_close(one.prototypes, two.prototypes, rtol=0, atol=1e-5)


# --- learned ---


def test_fit_classifies_the_old_features_better():
    features, labels = _clusters(400, 8, 12, noise=1.5)
    means = PseudoClassifier.from_means(features, labels)
    learned = PseudoClassifier.fit(features, labels)
    assert _accuracy(learned) > _accuracy(means) + 0.02
    torch.testing.assert_close(learned.prototypes.norm(dim=1), torch.ones(12))
    assert not learned.prototypes.requires_grad


def test_fit_is_deterministic_by_seed():
    features, labels = _clusters()

    def fit(seed):
        state = torch.get_rng_state()
        learned = PseudoClassifier.fit(features, labels, seed=seed, epochs=5, batch_size=16)
        assert torch.equal(torch.get_rng_state(), state)
        return learned.prototypes

    assert torch.equal(fit(0), fit(0))
    assert not torch.equal(fit(0), fit(1))


def test_fit_of_no_epochs_is_the_means():
    features, labels = _clusters()
    torch.testing.assert_close(
        PseudoClassifier.fit(features, labels, epochs=0).prototypes,
        PseudoClassifier.from_means(features, labels).prototypes,
    )


@pytest.mark.parametrize(
    "options", [{"epochs": -1}, {"batch_size": 0}, {"learning_rate": 0.0}, {"scale": -1.0}]
)
def test_fit_refuses_options(options):
    with pytest.raises(ValueError, match=r"fit: expected epochs >= 0|scale: expected"):
        PseudoClassifier.fit(*_clusters(), **options)


# --- refined by walks ---


def _pagerank(matrix, damping):
    """The fixed point of ``pi = damping P^T pi + (1 - damping) / n``."""
    size = len(matrix)
    start = torch.full((size,), 1 / size, dtype=torch.float64)
    return reference.random_walk_limit(matrix.T, start[:, None], damping=damping)[:, 0]


@pytest.mark.parametrize("damping", [0.3, 0.9])
@pytest.mark.parametrize("k", [1, 4, 100])
def test_within_class_refinement_is_the_pagerank_weighted_mean(k, damping):
    features, labels = _clusters()
    graph = KnnGraph.build(features, k, labels=labels).normalize(0.1)
    plain = PseudoClassifier.from_means(features, labels)
    refined = plain.refine(graph, damping, tol=1e-7)
    matrix = _dense(graph)
    differences = []
    for label in range(5):
        members = (labels == label).nonzero()[:, 0]
        rank = _pagerank(matrix[members][:, members], damping)
        assert abs(rank.sum() - 1) < 1e-6
        mean = rank @ unit(features)[members]
        torch.testing.assert_close(
            refined.prototypes[label].double(), mean / mean.norm(), rtol=0, atol=2e-5
        )
        differences.append((refined.prototypes[label] - plain.prototypes[label]).norm())
    # With columns that sum to 1 every difference would be zero.
    assert max(differences) > 1e-3


def test_outliers_lose_weight():
    generator = torch.Generator().manual_seed(0)
    features = torch.tensor([1.0, 0, 0, 0]) + 0.05 * torch.randn(12, 4, generator=generator)
    features[0] = torch.tensor([0.0, 1, 0, 0])
    labels = torch.zeros(12, dtype=torch.int64)
    plain = PseudoClassifier.from_means(features, labels)
    graph = KnnGraph.build(features, 3, labels=labels).normalize(0.1)
    refined = plain.refine(graph, 0.9)
    outlier = F.normalize(features[:1], dim=1)
    assert (refined.prototypes @ outlier.T).item() < 0.5 * (plain.prototypes @ outlier.T).item()


@pytest.mark.parametrize("within", [False, True])
def test_refine_by_dense_reference(within):
    features, labels = _clusters()
    graph = KnnGraph.build(features, 4, labels=labels if within else None).normalize(0.1)
    pseudo = PseudoClassifier.from_means(features, labels)
    matrix = _dense(graph)
    for walked, options in [
        (reference.random_walk_limit(matrix, unit(features), damping=0.8), {"tol": 1e-7}),
        (
            reference.random_walk(matrix, unit(features), damping=0.8, num_steps=3),
            {"num_steps": 3},
        ),
    ]:
        refined = pseudo.refine(graph, 0.8, **options)
        sums = torch.zeros(5, 6, dtype=torch.float64).index_add(0, labels, walked)
        torch.testing.assert_close(
            refined.prototypes.double(), F.normalize(sums, dim=1), rtol=0, atol=2e-5
        )
        assert torch.equal(refined.features, pseudo.features)


def test_global_walk_moves_prototypes_towards_each_other():
    features, labels = _clusters(noise=1.5)
    pseudo = PseudoClassifier.from_means(features, labels)
    refined = pseudo.refine(KnnGraph.build(features, 8).normalize(1.0), 0.95)
    before, after = (
        pseudo.prototypes @ pseudo.prototypes.T,
        refined.prototypes @ refined.prototypes.T,
    )
    assert after.mean() > before.mean() + 0.05


def test_limits_of_damping():
    features, labels = _clusters()
    pseudo = PseudoClassifier.fit(features, labels, epochs=3)
    graph = KnnGraph.build(features, 4, labels=labels).normalize(0.1)
    plain = PseudoClassifier.from_means(features, labels).prototypes
    torch.testing.assert_close(pseudo.refine(graph, 1e-6).prototypes, plain, rtol=0, atol=1e-5)
    assert torch.equal(pseudo.refine(graph, 0.9, num_steps=0).prototypes, plain)
    own = pseudo.prototypes[labels]
    torch.testing.assert_close(pseudo.soft_targets(graph, 1e-6), own, rtol=0, atol=1e-5)


def test_soft_targets_by_dense_reference():
    features, labels = _clusters()
    graph = KnnGraph.build(features, 5).normalize(0.1)
    pseudo = PseudoClassifier.fit(features, labels, epochs=3)
    matrix = _dense(graph)
    prototypes = pseudo.prototypes.double()[labels]
    torch.testing.assert_close(
        pseudo.soft_targets(graph, 0.6, tol=1e-7).double(),
        reference.random_walk_limit(matrix, prototypes, damping=0.6),
        rtol=0,
        atol=2e-6,
    )
    torch.testing.assert_close(
        pseudo.soft_targets(graph, 0.6, num_steps=2).double(),
        reference.random_walk(matrix, prototypes, damping=0.6, num_steps=2),
        rtol=0,
        atol=2e-6,
    )


def test_soft_targets_within_a_class_are_its_prototype():
    features, labels = _clusters()
    pseudo = PseudoClassifier.from_means(features, labels)
    graph = KnnGraph.build(features, 4, labels=labels).normalize(0.1)
    torch.testing.assert_close(
        pseudo.soft_targets(graph, 0.7), pseudo.prototypes[labels], rtol=0, atol=1e-5
    )


def test_a_wrong_label_is_drawn_towards_its_neighbours():
    features, labels = _clusters(noise=0.1)
    stray = int((labels == 0).nonzero()[0])
    wrong = labels.clone()
    wrong[stray] = 1
    pseudo = PseudoClassifier.from_means(features, wrong)
    target = pseudo.soft_targets(KnnGraph.build(features, 4).normalize(0.05), 0.9)[stray]
    cosines = F.normalize(target, dim=0) @ pseudo.prototypes.T
    assert int(cosines.argmax()) == 0


# --- bad input ---


def _changed(position, value):
    features, labels = _clusters()
    features[position] = value
    return features, labels


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (
            torch.zeros(4),
            torch.zeros(4, dtype=torch.int64),
            r"features: expected floating .* \[4\]",
        ),
        (torch.zeros(4, 2, dtype=torch.int64), torch.zeros(4), "features: expected floating of"),
        (torch.zeros(4, 2), torch.zeros(4), r"labels: expected integers of shape \(4,\), got .*32"),
        (torch.zeros(4, 2), torch.zeros(3, dtype=torch.int64), r"labels: expected .* \[3\]"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), "expected at least one row"),
        (torch.ones(2, 2), torch.tensor([0, -1]), "labels: expected values >= 0, got -1"),
        (
            torch.ones(3, 2),
            torch.tensor([0, 3, 3]),
            r"labels: class 1 has no rows \(2 such classes\); number the classes 0 \.\. C - 1",
        ),
        (torch.ones(2, 2), ["a", "b"], r"labels: expected integers of shape \(2,\), got list"),
        (torch.ones(2, 2), np.array(["a", "b"]), r"labels: expected integers .*, got <U1 of \[2\]"),
        (torch.ones(2, 2), torch.tensor([False, True]), r"expected integers .*, got torch\.bool"),
        (torch.ones(2, 2), torch.tensor([0j, 1]), r"expected integers .*, got torch\.complex64"),
        (
            torch.ones(2, 2),
            np.array([0, 2**63], dtype=np.uint64),
            r"labels: expected numbers below 2\^63",
        ),
        (torch.ones(3, 2), torch.tensor([0, 2, 2]), r"labels: class 1 has no rows \(1 such"),
        (torch.ones(2, 2), torch.tensor([0, 2**62]), "labels: class 1 has no rows"),
        (*_changed((7, 2), torch.nan), "features: row 7 has a NaN or an infinity"),
        (*_changed((9, 0), -torch.inf), "features: row 9 has a NaN or an infinity"),
        (
            torch.tensor([[1.0, 0], [0, 1], [2, 0], [-3, 0]]),
            torch.tensor([0, 0, 1, 1]),
            "features: the mean of class 1 is zero, it has no direction",
        ),
        (
            torch.tensor([[1.0, 0], [0, 0], [0, 0]]),
            torch.tensor([0, 1, 1]),
            "features: the mean of class 1 is zero",
        ),
    ],
)
@pytest.mark.parametrize("make", [PseudoClassifier.from_means, PseudoClassifier.fit])
def test_refuses(make, features, labels, message):
    with pytest.raises(ValueError, match=message):
        make(features, labels)


def test_zero_rows_among_others_have_no_say():
    features, labels = _clusters()
    padded = torch.cat([features, torch.zeros(1, 6)])
    pseudo = PseudoClassifier.from_means(padded, torch.cat([labels, torch.tensor([2])]))
    torch.testing.assert_close(
        pseudo.prototypes, PseudoClassifier.from_means(features, labels).prototypes
    )


@pytest.mark.parametrize("method", ["refine", "soft_targets"])
def test_wrong_graphs_are_refused(method):
    features, labels = _clusters()
    walk = getattr(PseudoClassifier.from_means(features, labels), method)
    with pytest.raises(ValueError, match=r"graph: expected one node per feature \(60\), got 50"):
        walk(KnnGraph.build(features[:50], 4).normalize())
    graph = KnnGraph.build(features, 4)
    with pytest.raises(ValueError, match="normalize"):
        walk(graph)
    for damping in (0.0, 1.0, -0.5, float("nan")):
        with pytest.raises(ValueError, match=r"damping: expected a number in \(0, 1\)"):
            walk(graph.normalize(), damping)
    with pytest.raises(ValueError, match="num_steps: expected at least 0, got -1"):
        walk(graph.normalize(), num_steps=-1)


# --- files ---


def test_save_and_load(tmp_path):
    pseudo = PseudoClassifier.fit(*_clusters(), epochs=2)
    path = tmp_path / "not yet" / "classifier.safetensors"
    pseudo.save(path)
    loaded = PseudoClassifier.load(path)
    for name in ("prototypes", "features", "labels"):
        assert torch.equal(getattr(loaded, name), getattr(pseudo, name))
    pseudo.save(path)
    assert [file.name for file in path.parent.iterdir()] == ["classifier.safetensors"]


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        PseudoClassifier.from_means(*_clusters()).save(tmp_path / "file" / "classifier")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        PseudoClassifier.load(tmp_path / "gone")


class _Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def _hostile(path, pseudo):
    """Contents of files that are no pseudo classifier."""
    pseudo.save(path)
    whole = path.read_bytes()
    yield b""
    yield b"hello"
    yield whole[: len(whole) // 2]
    yield whole[:-1]
    yield struct.pack("<Q", 2**62) + whole[8:]
    yield pickle.dumps(_Bomb())
    torch.save({"prototypes": _Bomb()}, path)
    yield path.read_bytes()
    np.save(path.with_suffix(".npy"), np.array([_Bomb()]), allow_pickle=True)
    yield path.with_suffix(".npy").read_bytes()
    header = json.dumps(
        {"prototypes": {"dtype": "F32", "shape": [10, 10], "data_offsets": [0, 4]}}
    ).encode()
    yield struct.pack("<Q", len(header)) + header + b"\0\0\0\0"
    good = {name: getattr(pseudo, name) for name in ("prototypes", "features", "labels")}
    for change in (
        {"labels": None},
        {"labels": good["labels"].float()},
        {"labels": good["labels"] + 1},
        {"labels": good["labels"] - 1},
        {"labels": good["labels"][:-1]},
        {"features": good["features"][:, :-1].contiguous()},
        {"features": good["features"] * torch.nan},
        {"prototypes": good["prototypes"][0].contiguous()},
        {"prototypes": good["prototypes"].long()},
        {"prototypes": good["prototypes"] * torch.inf},
    ):
        tensors = {name: value for name, value in (good | change).items() if value is not None}
        save_file(tensors, path, metadata={"format": "fclearn.PseudoClassifier"})
        yield path.read_bytes()


def test_hostile_files_are_refused_in_one_line(tmp_path):
    path = tmp_path / "classifier"
    pseudo = PseudoClassifier.from_means(*_clusters())
    for number, content in enumerate(_hostile(path, pseudo)):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match="classifier: not a valid PseudoClassifier file: "
        ) as caught:
            PseudoClassifier.load(path)
        assert "\n" not in str(caught.value), number
