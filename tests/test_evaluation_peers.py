# SPDX-License-Identifier: Apache-2.0
"""Equality with other people's implementations, to 1e-9, on data without ties."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from fclearn.evaluation import Qrels, evaluate_retrieval, evaluate_verification

NUM_QUERY, NUM_GALLERY, DIM, CLASSES = 30, 400, 12, 9


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(7)
    centres = rng.standard_normal((CLASSES, DIM))
    labels, gallery_labels = (
        rng.integers(0, CLASSES, NUM_QUERY),
        rng.integers(0, CLASSES, NUM_GALLERY),
    )
    query = centres[labels] + 2 * rng.standard_normal((NUM_QUERY, DIM))
    gallery = centres[gallery_labels] + 2 * rng.standard_normal((NUM_GALLERY, DIM))
    return query, gallery, labels, gallery_labels


def scores_of(query, gallery):
    query, gallery = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery))
    return query @ gallery.T


def ours(data, *metrics, **options):
    query, gallery, labels, gallery_labels = data
    options = options or {"query_labels": labels, "gallery_labels": gallery_labels}
    return evaluate_retrieval(query, gallery, metrics=metrics, return_per_query=True, **options)


def test_scikit_learn_average_precision(data):
    sklearn = pytest.importorskip("sklearn.metrics")
    scores = scores_of(*data[:2])
    relevant = data[2][:, None] == data[3]
    wanted = [sklearn.average_precision_score(*row) for row in zip(relevant, scores, strict=True)]
    np.testing.assert_allclose(ours(data, "map").per_query["map"], wanted, rtol=0, atol=1e-9)
    for k in (1, 10, NUM_GALLERY):
        wanted = [
            sklearn.ndcg_score(*(x[None] for x in row), k=k)
            for row in zip(relevant, scores, strict=True)
        ]
        got = ours(data, f"ndcg@{k}").per_query[f"ndcg@{k}"]
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-9)


def test_scikit_learn_roc(data):
    sklearn = pytest.importorskip("sklearn.metrics")
    query, gallery, labels, gallery_labels = data
    rates = [0.001, 0.01, 0.1, 0.5]
    result = evaluate_verification(
        query, gallery, query_labels=labels, gallery_labels=gallery_labels, false_accept_rates=rates
    )
    genuine = (labels[:, None] == gallery_labels).reshape(-1)
    far, tar, _ = sklearn.roc_curve(
        genuine, scores_of(query, gallery).reshape(-1), drop_intermediate=False
    )
    wanted = [tar[far <= rate].max() for rate in rates]
    got = [point.true_rate for point in result.points]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-9)


def test_torchmetrics_retrieval(data):
    functional = pytest.importorskip("torchmetrics.functional.retrieval")
    scores = torch.from_numpy(scores_of(*data[:2])) + 2  # what is not above 0 they call irrelevant
    relevant = torch.from_numpy(data[2][:, None] == data[3])
    peers = {
        "map": functional.retrieval_average_precision,
        "mrr": functional.retrieval_reciprocal_rank,
        "precision@r": functional.retrieval_r_precision,
        "precision@10": lambda s, t: functional.retrieval_precision(s, t, top_k=10),
        "recall@10": lambda s, t: functional.retrieval_recall(s, t, top_k=10),
        "cmc@3": lambda s, t: functional.retrieval_hit_rate(s, t, top_k=3),
        "ndcg": functional.retrieval_normalized_dcg,
        "ndcg@10": lambda s, t: functional.retrieval_normalized_dcg(s, t, top_k=10),
        "mrr@10": lambda s, t: functional.retrieval_reciprocal_rank(s, t, top_k=10),
    }
    result = ours(data, *peers)
    for name, peer in peers.items():
        wanted = [float(peer(*row)) for row in zip(scores, relevant, strict=True)]
        # It computes in float32.
        np.testing.assert_allclose(result.per_query[name], wanted, rtol=3e-6, err_msg=name)


@pytest.mark.filterwarnings("ignore")
def test_pytorch_metric_learning_accuracy_calculator(data):
    peer = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    inference = pytest.importorskip("pytorch_metric_learning.utils.inference")
    query, gallery, labels, gallery_labels = (torch.from_numpy(x) for x in data)
    names = {
        "map": "mean_average_precision",
        "map@r": "mean_average_precision_at_r",
        "precision@r": "r_precision",
        "mrr": "mean_reciprocal_rank",
        "cmc@1": "precision_at_1",
    }
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    make = functools.partial(
        peer.AccuracyCalculator,
        include=tuple(names.values()),
        device=torch.device("cpu"),
        knn_func=inference.CustomKNN(distances.CosineSimilarity()),
    )
    theirs = make(k=NUM_GALLERY).get_accuracy(query, labels, gallery, gallery_labels)
    for name, other in names.items():
        # Their reciprocal ranks are float32.
        error = 1e-6 if name == "mrr" else 1e-9
        assert ours(data, name)[name] == pytest.approx(theirs[other], rel=0, abs=error), name
    # The query among the gallery: they leave out the best hit, which is the query itself.
    own = make(k=NUM_GALLERY - 1).get_accuracy(gallery, gallery_labels, ref_includes_query=True)
    for name, other in names.items():
        result = evaluate_retrieval(
            gallery, gallery, query_labels=gallery_labels, gallery_labels=gallery_labels,
            exclude_self=True, metrics=[name],
        )  # fmt: skip
        error = 1e-6 if name == "mrr" else 1e-9
        assert result[name] == pytest.approx(own[other], rel=0, abs=error), name


def test_trec_eval(data):
    """Graded judgements, some of documents that are not in the gallery."""
    pytrec_eval = pytest.importorskip("pytrec_eval")
    query, gallery = data[:2]
    rng = np.random.default_rng(0)
    query_ids = [f"q{i}" for i in range(NUM_QUERY)]
    gallery_ids = [f"doc-{i}" for i in range(NUM_GALLERY)]
    grades = {
        name: {
            **{gallery_ids[row]: int(rng.integers(-1, 4)) for row in rng.choice(400, 40, False)},
            "absent": 2,
        }
        for name in query_ids[:-1]
    }
    scores = scores_of(query, gallery)
    run = {
        name: dict(zip(gallery_ids, row.tolist(), strict=True))
        for name, row in zip(query_ids, scores, strict=True)
    }
    peers = {
        "map": "map", "ndcg": "ndcg", "ndcg@10": "ndcg_cut_10", "ndcg@100": "ndcg_cut_100",
        "precision@5": "P_5", "recall@100": "recall_100", "mrr": "recip_rank",
        "precision@r": "Rprec", "cmc@5": "success_5", "recall@10": "recall_10",
    }  # fmt: skip
    measures = {"map", "ndcg", "ndcg_cut", "P", "recall", "recip_rank", "Rprec", "success"}
    theirs = pytrec_eval.RelevanceEvaluator(grades, measures).evaluate(run)
    options = {"qrels": Qrels(grades), "query_ids": query_ids, "gallery_ids": gallery_ids}
    shallow = [name for name in peers if "@" in name]
    for names in (list(peers), shallow):
        result = ours(data, *names, **options)
        assert result.num_missing == NUM_QUERY - 1
        assert result.num_skipped == 1
        for name in names:
            wanted = [theirs[one][peers[name]] for one in query_ids[:-1]]
            np.testing.assert_allclose(
                result.per_query[name][:-1], wanted, rtol=0, atol=1e-9, err_msg=name
            )


def test_scipy_permutation_test():
    stats = pytest.importorskip("scipy.stats")
    from fclearn.evaluation import paired_test

    rng = np.random.default_rng(0)
    for size in (9, 40):
        first, second = rng.random(size), rng.random(size) + 0.1
        wanted = stats.permutation_test(
            (first, second), lambda a, b: (b - a).mean(), permutation_type="samples",
            n_resamples=40_000, rng=0,
        ).pvalue  # fmt: skip
        got = paired_test(first, second, num_samples=40_000).p_value
        assert got == pytest.approx(wanted, abs=1e-12 if size == 9 else 0.01)
