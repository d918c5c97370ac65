# SPDX-License-Identifier: Apache-2.0
"""knn_graph_segments against one search per segment."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fcl_ext
import reference
from fcl_ext._registrations.knn_graph import _segments_on_cuda
from support import DEVICES, DTYPES

OP = torch.ops.fcl.knn_graph_segments.default

METRICS = ["cosine", "ip", "l2"]


def _features(rows, dim, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, dim, dtype=torch.float64, generator=generator).to(dtype)


def _offsets(sizes):
    return torch.tensor([0, *sizes]).cumsum(0)


def _one_by_one(features, sizes, k, metric):
    """A full sort within each segment, padded with -1 and 0."""
    indices = torch.full((len(features), k), -1, dtype=torch.int32)
    similarities = torch.zeros(len(features), k, dtype=features.dtype)
    begin = 0
    for size in sizes:
        rows = slice(begin, begin + size)
        if size > 1:
            found = min(k, size - 1)
            near, values = reference.knn_graph(features[rows], found, metric=metric)
            indices[rows, :found] = near + begin
            similarities[rows, :found] = values
        begin += size
    return indices, similarities


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("sizes", "k"),
    [
        ([5, 1, 0, 2, 30, 0], 4),
        ([0, 1, 1, 1], 3),
        ([700, 3, 225, 1, 448], 7),
        ([2] * 100, 1),
        ([12, 9], 50),
        ([40], 39),
    ],
)
def test_matches_definition(sizes, k, metric, device):
    features = _features(sum(sizes), 11)
    indices, similarities = OP(features.to(device), _offsets(sizes).to(device), k, metric)
    expected, expected_similarities = _one_by_one(features, sizes, k, metric)
    assert torch.equal(indices.cpu(), expected)
    torch.testing.assert_close(similarities.cpu(), expected_similarities, rtol=0, atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_segment_is_its_own_graph(dtype, metric):
    sizes = [3, 300, 17, 2]
    features = _features(sum(sizes), 20, dtype)
    indices, similarities = OP(features, _offsets(sizes), 5, metric)
    assert similarities.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    begin = 0
    for size in sizes:
        rows = slice(begin, begin + size)
        found = min(5, size - 1)
        # To the last bit: a similarity does not depend on the block its rows are in.
        alone, values = fcl_ext.knn_graph(features[rows], found, metric=metric)
        assert torch.equal(indices[rows, :found], alone + begin)
        assert torch.equal(similarities[rows, :found], values)
        assert (indices[rows, found:] == -1).all()
        assert (similarities[rows, found:] == 0).all()
        begin += size


def test_ties_go_to_the_lower_index():
    features = torch.ones(500, 3)
    indices, _ = OP(features, _offsets([100, 400]), 2, "l2")
    assert indices[0].tolist() == [1, 2]
    assert indices[99].tolist() == [0, 1]
    assert indices[100].tolist() == [101, 102]
    assert indices[499].tolist() == [100, 101]


@given(
    sizes=st.lists(st.integers(0, 12), min_size=0, max_size=8),
    dim=st.integers(1, 20),
    k=st.integers(1, 14),
    metric=st.sampled_from(METRICS),
    seed=st.integers(0, 2**31),
)
def test_any_sizes(sizes, dim, k, metric, seed):
    features = _features(sum(sizes), dim, seed=seed)
    indices, similarities = OP(features, _offsets(sizes), k, metric)
    expected, expected_similarities = _one_by_one(features, sizes, k, metric)
    torch.testing.assert_close(similarities, expected_similarities, rtol=0, atol=1e-12)
    # Equal but for rounding: two rows of one dim have cosine 1 or -1 to all others.
    if dim > 1:
        assert torch.equal(indices, expected)


def test_the_loop_for_other_devices_gives_the_same():
    sizes = [5, 1, 0, 2, 30]
    features = _features(sum(sizes), 11)
    arguments = (features, _offsets(sizes), 4, "cosine")
    for a, b in zip(_segments_on_cuda(*arguments), OP(*arguments), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck_and_no_gradient(device):
    features, offsets = _features(9, 5).to(device), _offsets([4, 1, 4]).to(device)
    torch.library.opcheck(OP, (features, offsets, 3, "cosine"))
    with pytest.raises(RuntimeError, match="similarities have no gradient"):
        OP(features.requires_grad_(), offsets, 3, "cosine")[1].sum().backward()
    assert not fcl_ext.knn_graph_segments(features, offsets, 3)[1].requires_grad


BAD_CALLS = [
    (lambda f, o: (f[0], o, 1, "ip"), r"expected features of shape \[N, D\]"),
    (lambda f, o: (f.int(), o, 1, "ip"), "expected features of dtype float32"),
    (lambda f, o: (f[:, :0], o, 1, "ip"), r"at least one dim, got shape \[6, 0\]"),
    (lambda f, o: (f, o, 0, "ip"), "expected k >= 1, got 0"),
    (lambda f, o: (f, o, 2, "dot"), "expected metric cosine, ip or l2, got dot"),
    (lambda f, o: (f, o.int(), 2, "ip"), "expected offsets of dtype .*, got .*[iI]nt"),
    (lambda f, o: (f, o[None], 2, "ip"), r"expected offsets of shape \[S \+ 1\]"),
    (lambda f, o: (f, o[:0], 2, "ip"), r"expected offsets of shape \[S \+ 1\], got \[0\]"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS)
def test_bad_arguments_are_named(arguments, message):
    from torch._subclasses.fake_tensor import FakeTensorMode

    features, offsets = torch.randn(6, 4), _offsets([2, 4])
    with pytest.raises(RuntimeError, match=f"fcl::knn_graph_segments: .*{message}"):
        OP(*arguments(features, offsets))
    with FakeTensorMode() as mode, pytest.raises(RuntimeError, match=message):
        OP(*arguments(mode.from_tensor(features), mode.from_tensor(offsets)))


@pytest.mark.parametrize("function", [OP, _segments_on_cuda])
def test_bad_offsets_and_features_are_named(function):
    features = torch.randn(6, 4)
    for offsets, message in [
        ([0, 5], "expected offsets from 0 to N = 6, got 0 to 5"),
        ([1, 6], "expected offsets from 0 to N = 6, got 1 to 6"),
        ([0, 4, 2, 6], "expected offsets that never decrease, got 2 after 4"),
    ]:
        with pytest.raises(RuntimeError, match=f"fcl::knn_graph_segments: {message}"):
            function(features, torch.tensor(offsets), 2, "ip")
    features[4, 1] = torch.nan
    with pytest.raises(RuntimeError, match="a NaN or an infinity in row"):
        function(features, torch.tensor([0, 3, 6]), 2, "ip")
