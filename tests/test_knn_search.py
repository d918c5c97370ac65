# SPDX-License-Identifier: Apache-2.0
"""knn_search against a full sort of all similarities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fcl_ext
from fcl_ext._registrations import knn_search as registration
from support import DEVICES, DTYPES

OP = torch.ops.fcl.knn_search.default
METRICS = ["cosine", "ip", "l2"]

# (queries, gallery rows, dim, k): around one block of 224 rows and every vector width, and lists
# long enough to hold the whole gallery.
SAMPLES = [
    (1, 1, 1, 1),
    (3, 5, 5, 2),
    (1, 700, 16, 9),
    (33, 224, 33, 224),
    (225, 300, 64, 7),
    (500, 40, 130, 40),
    (40, 1000, 20, 500),
]


def _features(rows, dim, dtype, device, seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, dim, dtype=torch.float64, generator=generator)
    return features.to(dtype).to(device)


def _all_similarities(query, gallery, metric):
    if metric == "cosine":
        query, gallery = (torch.nn.functional.normalize(x, dim=1) for x in (query, gallery))
    if metric == "l2":
        return -(query[:, None] - gallery[None]).square().sum(2)
    return query @ gallery.T


def _reference(query, gallery, k, metric):
    """A stable sort: equal similarities keep the order of the gallery."""
    best, order = _all_similarities(query, gallery, metric).sort(
        dim=1, descending=True, stable=True
    )
    return order[:, :k], best[:, :k]


def check_matches_definition(op, sample, metric, dtype, device):
    num_queries, num_gallery, dim, k = sample
    query = _features(num_queries, dim, dtype, device, 0)
    gallery = _features(num_gallery, dim, dtype, device, 1)
    indices, similarities = op(query, gallery, k, metric)
    assert indices.dtype == torch.int32
    assert similarities.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = query.double(), gallery.double()
    expected_indices, expected = _reference(*exact, k, metric)
    # Rounding of a sum of `dim` products of this size; half inputs accumulate in float32.
    epsilon = 2e-16 if dtype == torch.float64 else 1.2e-7
    size = 1.0 if metric == "cosine" else max(float(x.square().sum(1).max()) for x in exact)
    bound = 2 * (2 + dim**0.5) * epsilon * size
    assert (similarities - expected).abs().max() <= bound
    pairs = _all_similarities(*exact, metric).gather(1, indices.long())
    assert (similarities - pairs).abs().max() <= bound
    ordered = indices.sort(1).values
    assert (ordered[:, 1:] > ordered[:, :-1]).all()
    if dtype == torch.float64:
        assert torch.equal(indices.long(), expected_indices)


def check_ties(op, metric, device):
    # Small integers: every similarity is exact, and many are equal, within blocks and across.
    generator = torch.Generator().manual_seed(3)
    query = torch.randint(-1, 2, (250, 4), generator=generator).float().to(device)
    gallery = torch.randint(-1, 2, (700, 4), generator=generator).float().to(device)
    if metric == "cosine":
        query, gallery = (
            torch.eye(4, device=device)[torch.arange(len(x)) % 4] for x in (query, gallery)
        )
    for k in (1, 37, 700):
        indices, similarities = op(query, gallery, k, metric)
        expected_indices, expected = _reference(query, gallery, k, metric)
        torch.testing.assert_close(similarities, expected, rtol=0, atol=1e-6)
        assert torch.equal(indices.long(), expected_indices)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_matches_definition(sample, metric, dtype, device):
    check_matches_definition(OP, sample, metric, dtype, device)


# Rows so wide that the CPU packs the gallery in several chunks, the last of them in part: 672 rows
# (224 of float64) each.
CHUNKS = (5, 1500, 2560, 40)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
def test_a_gallery_of_several_chunks(metric, dtype):
    check_matches_definition(OP, CHUNKS, metric, dtype, "cpu")


@pytest.mark.parametrize("metric", METRICS)
def test_ties_across_chunks(metric):
    query = torch.eye(2560)[:70]
    gallery = torch.eye(2560)[torch.arange(1500) % 70]
    indices, similarities = OP(query, gallery, 30, metric)
    expected_indices, expected = _reference(query, gallery, 30, metric)
    assert torch.equal(similarities, expected)
    assert torch.equal(indices.long(), expected_indices)


def test_more_queries_than_a_task_has():
    check_matches_definition(OP, (2500, 500, 8, 20), "l2", torch.float32, "cpu")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", METRICS)
def test_ties_go_to_the_lower_index(metric, device):
    check_ties(OP, metric, device)


@pytest.mark.parametrize("metric", METRICS)
def test_what_runs_on_cuda_matches_too(metric, monkeypatch):
    """It is made of torch's own operators, so it runs here as it does there."""
    monkeypatch.setattr(registration, "_BLOCK_ELEMENTS", 4096)
    for sample in SAMPLES:
        for dtype in DTYPES:
            check_matches_definition(registration._by_torch, sample, metric, dtype, "cpu")
    check_ties(registration._by_torch, metric, "cpu")
    with pytest.raises(RuntimeError, match="fcl::knn_search: expected finite gallery, got a NaN"):
        registration._by_torch(torch.ones(2, 2), torch.full((2, 2), torch.nan), 1, metric)


def test_zero_rows_are_like_nothing():
    gallery = torch.zeros(300, 9)
    gallery[150:] = torch.linspace(-1, 1, 9)
    for op in (OP, registration._by_torch):
        indices, similarities = op(torch.cat([gallery[:1], gallery[-1:]]), gallery, 2, "cosine")
        assert indices.tolist() == [[0, 1], [150, 151]]
        torch.testing.assert_close(similarities, torch.tensor([[0.0, 0.0], [1.0, 1.0]]))


@pytest.mark.parametrize("num_queries", [1, 31, 500])
def test_does_not_depend_on_threads_or_on_the_other_queries(num_queries):
    query = _features(num_queries, 24, torch.float32, "cpu", 0)
    gallery = _features(900, 24, torch.float32, "cpu", 1)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        results.append(OP(query, gallery, 10, "cosine"))
    torch.set_num_threads(before)
    results.append(tuple(torch.cat(parts) for parts in zip(
        *(OP(row, gallery, 10, "cosine") for row in query.split(1)), strict=True)))  # fmt: skip
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@given(
    num_gallery=st.integers(2, 60),
    cut=st.floats(0, 1),
    metric=st.sampled_from(METRICS),
    seed=st.integers(0, 2**31),
)
def test_blocks_of_the_gallery_merge_to_the_whole(num_gallery, cut, metric, seed):
    query = _features(7, 5, torch.float32, "cpu", seed)
    gallery = _features(num_gallery, 5, torch.float32, "cpu", seed + 1)
    at = min(max(1, int(cut * num_gallery)), num_gallery - 1)
    whole = OP(query, gallery, num_gallery, metric)
    left, right = (
        OP(query, gallery[:at], at, metric),
        OP(query, gallery[at:], num_gallery - at, metric),
    )
    similarities = torch.cat([left[1], right[1]], 1)
    indices = torch.cat([left[0], right[0] + at], 1)
    order = similarities.sort(dim=1, descending=True, stable=True).indices
    assert torch.equal(similarities.gather(1, order), whole[1])
    assert torch.equal(indices.gather(1, order), whole[0])


def test_graph_of_a_set_is_its_search_without_itself():
    features = _features(400, 12, torch.float64, "cpu", 0)
    found = fcl_ext.knn_search(features, features, 6)
    graph = fcl_ext.knn_graph(features, 5)
    assert torch.equal(found[0][:, 0], torch.arange(400).int())
    assert torch.equal(found[0][:, 1:], graph[0])


@pytest.mark.parametrize("device", DEVICES)
def test_layouts(device):
    query, gallery = (_features(n, 12, torch.float32, device, n) for n in (9, 60))
    expected = OP(query, gallery, 4, "cosine")
    got = fcl_ext.knn_search(query.T.contiguous().T, torch.cat([gallery, gallery], 1)[:, :12], 4)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert OP(query[:0], gallery, 4, "ip")[0].shape == (0, 4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", METRICS)
def test_opcheck_and_no_gradient(metric, device):
    query, gallery = (_features(n, 5, torch.float32, device, n) for n in (4, 9))
    torch.library.opcheck(OP, (query, gallery, 3, metric))
    query.requires_grad_()
    with pytest.raises(RuntimeError, match="fcl::knn_search: similarities have no gradient"):
        OP(query, gallery, 3, metric)[1].sum().backward()
    assert not fcl_ext.knn_search(query, gallery, 3)[1].requires_grad


@pytest.mark.parametrize("device", DEVICES)
def test_compiles_and_autocasts(device):
    query, gallery = (_features(n, 5, torch.float32, device, n) for n in (4, 9))
    compiled = torch.compile(
        lambda q, g: fcl_ext.knn_search(q, g, 3), fullgraph=True, backend="aot_eager"
    )
    expected = fcl_ext.knn_search(query, gallery, 3)
    assert all(torch.equal(a, b) for a, b in zip(compiled(query, gallery), expected, strict=True))
    with torch.autocast(device, dtype=torch.bfloat16):
        assert fcl_ext.knn_search(query.bfloat16(), gallery, 3)[1].dtype == torch.float32


BAD_CALLS = [
    (lambda q, g: (q[0], g, 1, "ip"), r"expected query of shape \[Q, D\]"),
    (lambda q, g: (q.int(), g, 1, "ip"), "expected query of dtype float32"),
    (lambda q, g: (q, g.double(), 1, "ip"), "expected gallery of dtype .*, got"),
    (lambda q, g: (q, g[:, :3], 1, "ip"), r"expected gallery of shape \[G, D\] = .*, got \[6, 3\]"),
    (
        lambda q, g: (q[:, :0], g[:, :0], 1, "ip"),
        r"query with at least one dim, got shape \[3, 0\]",
    ),
    (lambda q, g: (q, g, 0, "ip"), "expected 1 <= k <= G, got k = 0 for G = 6"),
    (lambda q, g: (q, g, 7, "ip"), "got k = 7 for G = 6"),
    (lambda q, g: (q, g[:0], 1, "ip"), "got k = 1 for G = 0"),
    (lambda q, g: (q, g, 2, "dot"), "expected metric cosine, ip or l2, got dot"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS)
def test_bad_arguments_are_named(arguments, message):
    from torch._subclasses.fake_tensor import FakeTensorMode

    query, gallery = torch.randn(3, 4), torch.randn(6, 4)
    with pytest.raises(RuntimeError, match=f"fcl::knn_search: .*{message}"):
        OP(*arguments(query, gallery))
    with FakeTensorMode() as mode, pytest.raises(RuntimeError, match=message):
        OP(*arguments(mode.from_tensor(query), mode.from_tensor(gallery)))


@pytest.mark.parametrize("name", ["query", "gallery"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_values_that_cannot_be_searched_are_named(name, bad):
    rows = {"query": torch.ones(600, 4), "gallery": torch.ones(600, 4)}
    rows[name][500, 2] = bad
    with pytest.raises(RuntimeError, match=f"expected finite {name}, .* in row 500"):
        OP(rows["query"], rows["gallery"], 3, "cosine")
    rows[name][500, 2] = 1e19
    with pytest.raises(RuntimeError, match=f"expected {name} whose squared norms .*, got row 500"):
        OP(rows["query"], rows["gallery"], 3, "ip")


def test_rows_of_later_chunks_are_named_by_their_number():
    gallery = torch.ones(1500, 2560)
    gallery[1400, 3] = torch.inf
    with pytest.raises(RuntimeError, match=r"expected finite gallery, .* in row 1400"):
        OP(gallery[:1], gallery, 3, "cosine")
    gallery[1400, 3] = 1e19
    with pytest.raises(RuntimeError, match=r"squared norms .*, got row 1400"):
        OP(gallery[:1], gallery, 3, "ip")
