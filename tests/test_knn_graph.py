# SPDX-License-Identifier: Apache-2.0
"""knn_graph against a full sort of all similarities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fcl_ext
import reference
from support import DEVICES, DTYPES, numbers_by_isa

OP = torch.ops.fcl.knn_graph.default

METRICS = ["cosine", "ip", "l2"]

# (rows, dim, k): around one block of 224 rows and every vector width; then odd and even numbers of
# blocks, which pair up differently, and lists long enough to hold every row.
SAMPLES = [
    (2, 1, 1),
    (3, 5, 2),
    (17, 16, 16),
    (128, 33, 1),
    (129, 64, 7),
    (224, 9, 5),
    (225, 130, 224),
    (448, 6, 3),
    (700, 20, 32),
    (1000, 5, 499),
]


def _features(rows, dim, dtype, device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, dim, dtype=torch.float64, generator=generator)
    return features.to(dtype).to(device)


def _all_similarities(features, metric):
    """Every pair, without the diagonal taken out."""
    if metric == "cosine":
        features = torch.nn.functional.normalize(features, dim=1)
    if metric == "l2":
        return -(features[:, None] - features[None]).square().sum(2)
    return features @ features.T


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_matches_definition(sample, metric, dtype, device):
    rows, dim, k = sample
    features = _features(rows, dim, dtype, device)
    indices, similarities = OP(features, k, metric)
    assert indices.dtype == torch.int32
    assert similarities.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = features.double()
    _, expected = reference.knn_graph(exact, k, metric=metric)
    # Rounding of a sum of `dim` products of this size; half inputs accumulate in float32.
    epsilon = 2e-16 if dtype == torch.float64 else 1.2e-7
    size = 1.0 if metric == "cosine" else float(exact.square().sum(1).max())
    bound = 2 * (2 + dim**0.5) * epsilon * size
    assert (similarities - expected).abs().max() <= bound
    # The pairs named have the similarities given, so the neighbours are right up to rounding.
    pairs = _all_similarities(exact, metric).gather(1, indices.long())
    assert (similarities - pairs).abs().max() <= bound
    assert (similarities[:, 1:] <= similarities[:, :-1]).all()
    own = torch.arange(rows, device=device)[:, None]
    assert (indices != own).all()
    ordered = indices.sort(1).values
    assert (ordered[:, 1:] > ordered[:, :-1]).all()
    if dtype == torch.float64:
        assert torch.equal(indices, reference.knn_graph(exact, k, metric=metric)[0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("rows", "k"), [(400, 1), (700, 37), (700, 399)])
def test_ties_go_to_the_lower_index(rows, k, metric, device):
    # Small integers: every similarity is exact, and many are equal, within blocks and across.
    generator = torch.Generator().manual_seed(3)
    features = torch.randint(-1, 2, (rows, 4), generator=generator).float().to(device)
    if metric == "cosine":
        features[:, :] = torch.eye(4, device=device)[torch.arange(rows) % 4]
    indices, similarities = OP(features, k, metric)
    expected_indices, expected = reference.knn_graph(features.double(), k, metric=metric)
    torch.testing.assert_close(similarities.double(), expected, rtol=0, atol=1e-9)
    assert torch.equal(indices, expected_indices)


@pytest.mark.parametrize("device", DEVICES)
def test_equal_rows_and_zero_rows(device):
    features = torch.zeros(300, 9, device=device)
    features[150:] = torch.linspace(-1, 1, 9)
    indices, similarities = OP(features, 3, "cosine")
    # Zero rows are like nothing: similarity 0 to all, lowest indices first.
    assert similarities[:150].eq(0).all()
    assert indices[5].tolist() == [0, 1, 2]
    assert indices[1].tolist() == [0, 2, 3]
    torch.testing.assert_close(similarities[150:], torch.ones(150, 3, device=device))
    assert indices[200].tolist() == [150, 151, 152]
    indices, similarities = OP(features, 3, "l2")
    assert similarities.eq(0).all()
    assert indices[200].tolist() == [150, 151, 152]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exponent", [-37, 37])
def test_cosine_of_tiny_and_huge_rows(exponent, dtype, device):
    features = _features(50, 8, dtype, device)
    scaled = features * 10.0 ** (exponent if dtype == torch.float32 else 8 * exponent)
    expected, expected_similarities = OP(features, 5, "cosine")
    indices, similarities = OP(scaled, 5, "cosine")
    torch.testing.assert_close(similarities, expected_similarities, rtol=1e-5, atol=1e-6)
    assert (indices != expected).float().mean() < 0.01


@pytest.mark.parametrize("device", DEVICES)
def test_layouts_and_public_function(device):
    features = _features(60, 12, torch.float32, device)
    expected = OP(features, 4, "cosine")
    for view in (features.T.contiguous().T, torch.cat([features, features], 1)[:, :12]):
        got = fcl_ext.knn_graph(view, 4)
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])


def test_ever_better_and_ever_worse_candidates():
    # Rows on an arc: in one order every row met improves the list, in the other none does.
    angles = torch.linspace(0, 1, 1000, dtype=torch.float64).square()
    features = torch.stack([angles.cos(), angles.sin()], 1)
    for rows in (features, features.flip(0)):
        expected = reference.knn_graph(rows, 40, metric="ip")
        indices, similarities = OP(rows, 40, "ip")
        torch.testing.assert_close(similarities, expected[1], rtol=0, atol=1e-14)
        assert (indices == expected[0]).float().mean() > 0.99


@pytest.mark.parametrize("rows", [1000, 900])
def test_does_not_depend_on_the_number_of_threads_or_the_place_of_rows(rows):
    features = _features(rows, 24, torch.float32, "cpu")
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        results.append(OP(features, 10, "cosine"))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    # Moving rows to other blocks changes no similarity, not even its last bit.
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    moved_indices, moved = OP(features[order], 10, "cosine")
    assert torch.equal(moved, results[0][1][order])
    assert torch.equal(order[moved_indices.long()], results[0][0][order].long())


@given(
    rows=st.integers(2, 40),
    dim=st.integers(1, 40),
    metric=st.sampled_from(METRICS),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_more_neighbours_extend_fewer(rows, dim, metric, seed, data):
    features = _features(rows, dim, torch.float32, "cpu", seed)
    k = data.draw(st.integers(1, rows - 1))
    all_indices, all_similarities = OP(features, rows - 1, metric)
    indices, similarities = OP(features, k, metric)
    assert torch.equal(indices, all_indices[:, :k])
    assert torch.equal(similarities, all_similarities[:, :k])
    # With every other row named, similarity is symmetric to the last bit.
    table = torch.zeros(rows, rows).scatter_(1, all_indices.long(), all_similarities)
    assert torch.equal(table, table.T)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", METRICS)
def test_opcheck_and_no_gradient(metric, device):
    features = _features(9, 5, torch.float32, device)
    torch.library.opcheck(OP, (features, 3, metric))
    features.requires_grad_()
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(OP, (features, 3, metric), test_utils=tests)
    with pytest.raises(RuntimeError, match="fcl::knn_graph: similarities have no gradient"):
        OP(features, 3, metric)[1].sum().backward()
    assert not fcl_ext.knn_graph(features, 3)[1].requires_grad


@pytest.mark.parametrize("device", DEVICES)
def test_compiles_and_autocasts(device):
    features = _features(9, 5, torch.float32, device)
    compiled = torch.compile(lambda f: fcl_ext.knn_graph(f, 3), fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(features), fcl_ext.knn_graph(features, 3), strict=True):
        assert torch.equal(a, b)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert fcl_ext.knn_graph(features.bfloat16(), 3)[1].dtype == torch.float32


BAD_CALLS = [
    (lambda f: (f[0], 1, "ip"), r"expected features of shape \[N, D\]"),
    (lambda f: (f.int(), 1, "ip"), "expected features of dtype float32"),
    (lambda f: (f[:, :0], 1, "ip"), r"at least one dim, got shape \[6, 0\]"),
    (lambda f: (f, 0, "ip"), "expected 1 <= k <= N - 1 .*, got k = 0 for N = 6"),
    (lambda f: (f, 6, "ip"), "got k = 6 for N = 6"),
    (lambda f: (f[:1], 1, "ip"), "got k = 1 for N = 1"),
    (lambda f: (f[:0], 1, "ip"), "got k = 1 for N = 0"),
    (lambda f: (f, 2, "dot"), "expected metric cosine, ip or l2, got dot"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS)
def test_bad_arguments_are_named(arguments, message):
    from torch._subclasses.fake_tensor import FakeTensorMode

    features = torch.randn(6, 4)
    with pytest.raises(RuntimeError, match=f"fcl::knn_graph: .*{message}"):
        OP(*arguments(features))
    with FakeTensorMode() as mode, pytest.raises(RuntimeError, match=message):
        OP(*arguments(mode.from_tensor(features)))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_non_finite_features_are_named(dtype, bad, metric):
    features = _features(600, 4, dtype, "cpu")
    features[500, 2] = bad
    features[599, 0] = bad
    with pytest.raises(RuntimeError, match="a NaN or an infinity in row 500"):
        OP(features, 3, metric)


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_overflowing_norms_are_named(metric):
    features = torch.ones(10, 4)
    features[7] = 1e19
    with pytest.raises(RuntimeError, match=r"squared norms do not overflow .*, got row 7"):
        OP(features, 3, metric)
    OP(features.double(), 3, metric)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: fcl_ext.knn_graph(x.numpy(), 2), "knn_graph: expected features to be a tensor"),
        (lambda x: fcl_ext.knn_graph(x, 3.0), r"expected k to be an integer, got 3\.0"),
        (lambda x: fcl_ext.knn_graph(x, 2, metric=None), "expected metric to be a str, got None"),
        (
            lambda x: fcl_ext.knn_graph_segments(x, [0, 5], 2),
            "knn_graph_segments: expected offsets to be a tensor, got list",
        ),
        (
            lambda x: fcl_ext.knn_search(x, x.numpy(), 2),
            "knn_search: expected gallery to be a tensor, got a numpy array",
        ),
    ],
)
def test_arguments_of_another_type_are_named_in_one_line(call, message):
    with pytest.raises(TypeError, match=message) as caught:
        call(torch.randn(5, 3))
    assert "\n" not in str(caught.value)


_ISA_SCRIPT = """
import torch, fcl_ext
torch.manual_seed(0)
features = torch.randn(500, 37).double()
total = 0
for metric in ("cosine", "ip", "l2"):
    indices, similarities = fcl_ext.knn_graph(features, 5, metric=metric)
    single = fcl_ext.knn_graph(features.float(), 5, metric=metric)
    assert torch.allclose(single[1].double(), similarities, atol=2e-4)
    total += float(similarities.sum()) + float(indices.sum())
print(fcl_ext._C.cpu_isa(), total)
"""


def test_every_isa_agrees():
    first, *others = numbers_by_isa(_ISA_SCRIPT)
    for other in others:
        assert other == pytest.approx(first, rel=1e-12)
