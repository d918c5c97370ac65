# SPDX-License-Identifier: Apache-2.0
"""Every operator on drawn shapes, strides, dtypes and options, against its definition in float64.

CI draws a few dozen of each; ``pytest tests/test_op_properties.py --hypothesis-profile long`` draws
thousands.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from graph_samples import random_csr
from hypothesis import assume, given
from hypothesis import strategies as st

import fcl_ext
import reference
from support import DTYPES, ROUNDING

pytestmark = pytest.mark.usefixtures("one_thread")

# Around the edges of vectors, tiles and blocks.
SIZES = st.one_of(
    st.integers(1, 20), st.sampled_from([31, 32, 33, 63, 64, 65, 95, 97, 127, 128, 129, 257])
)
CLASSES = st.one_of(SIZES, st.integers(1, 1500))
SEEDS = st.integers(0, 2**31)
INDEX = st.sampled_from([torch.int32, torch.int64])
REDUCTIONS = st.sampled_from(["mean", "sum", "none"])


def _rows(draw, shape, dtype, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(shape, dtype=torch.float64, generator=generator)
    return _laid_out(draw, (scale * rows).to(dtype))


def _laid_out(draw, x):
    """The same numbers, in memory in one of the ways that views have."""
    layout = draw(st.sampled_from(["contiguous", "columns", "slice", "step", "offset"]))
    if layout == "columns" and x.ndim == 2:
        return x.T.contiguous().T
    if layout == "slice" and x.ndim == 2:
        return torch.cat([x.new_zeros(len(x), 3), x, x.new_zeros(len(x), 2)], 1)[:, 3:-2]
    if layout == "step":
        return torch.stack([x, torch.zeros_like(x)], 1).flatten(0, 1)[::2]
    if layout == "offset":  # not aligned to a vector
        return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    return x


def _graph(draw, rows, columns, index, seed):
    edges = draw(st.integers(0, 6 * rows))
    padding = draw(st.sampled_from([0.0, 0.3]))
    crow, col = random_csr(rows, columns, edges, padding=padding, index=index, seed=seed)
    return _laid_out(draw, crow), _laid_out(draw, col)


def _leaf(x):
    return x.detach().clone().requires_grad_()


def _outputs(function, inputs):
    """What an operator returns."""
    return function(*inputs)


def _loss_and_gradients(function, inputs):
    """Value and gradients of a loss, by random weights of its values where there are several."""
    leaves = [_leaf(x) for x in inputs]
    value = function(*leaves)
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(value.shape, dtype=torch.float64, generator=generator)
    (value.double() * weights).sum().backward()
    # What a result does not depend on has no gradient by plain torch, and one of zeros by ops.
    grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
    return [value.detach(), *grads]


def _finite(got, exact):
    """Both in float64, where the exact one is finite; the other must be finite there alone."""
    finite = torch.isfinite(exact)
    assert got.shape == exact.shape
    assert torch.equal(torch.isfinite(got), finite)
    return got.double()[finite], exact.double()[finite]


def _distances(results, exact):
    pairs = [_finite(*pair) for pair in zip(results, exact, strict=True)]
    return [float((got - truth).norm()) for got, truth in pairs]


def _plain_distances(results, exact):
    """Of plain torch, which may overflow where an operator must not: then it allows nothing."""
    pairs = zip(results, exact, strict=True)
    return [float((a.double() - b).nan_to_num(0, 0, 0).norm()) for a, b in pairs]


def _typical_distances(evaluate, definition, inputs, dtype):
    """The largest error that plain torch makes at eight points near by.

    Of one point, above all of a single number, it may be nothing by luck. What float64 rounds is
    not to be seen in float64: float32 rounds 2^29 times as much.
    """
    kind, share = (torch.float32, 2.0**-29) if dtype == torch.float64 else (dtype, 1.0)
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(8):
        noise = [torch.randn(x.shape, dtype=torch.float64, generator=generator) for x in inputs]
        near = [
            (x.double() * (1 + 0.03 * n)).to(kind if x.dtype == dtype else x.dtype)
            for x, n in zip(inputs, noise, strict=True)
        ]
        exact = evaluate(definition, [x.double() for x in near])
        found.append(_plain_distances(evaluate(definition, near), exact))
    return [share * max(errors) for errors in zip(*found, strict=True)]


def _assert_precise(evaluate, ours, definition, inputs, dtype, sizes=None, narrow=()):
    """No further from float64 than twice what plain torch is, plus `ROUNDING`.

    Gradients are allowed twice that: a kernel rounds them once more, to the inputs' dtype.

    Args:
        sizes: Of the numbers whose difference a result is.
        narrow: Places of results that float32 is plain torch's dtype for, of half types, too: what
            is made of such inputs without rounding anything to their dtype.
    """
    exact = evaluate(definition, [x.double() for x in inputs])
    distances = _distances(evaluate(ours, inputs), exact)
    plain = _plain_distances(evaluate(definition, inputs), exact)
    wide = torch.float32 if dtype.itemsize == 2 else dtype
    if narrow and wide != dtype:
        raised = _plain_distances(evaluate(definition, [x.to(wide) for x in inputs]), exact)
        plain = [raised[i] if i in narrow else value for i, value in enumerate(plain)]
    sizes = sizes or [0.0] * len(exact)
    are_gradients = evaluate is _loss_and_gradients

    def too_far(plain):
        for place, truth in enumerate(exact):
            norm = float(truth.double()[torch.isfinite(truth)].norm())
            is_gradient = are_gradients and place > 0
            # What cancels has no relative error. (The definition loses digits of small losses.)
            if are_gradients and norm <= (1e-6 if is_gradient else 1e-8):
                continue
            bound = 2 * plain[place] + norm * ROUNDING[dtype]
            bound += sizes[place] * truth.numel() ** 0.5 * 4 * torch.finfo(wide).eps
            if is_gradient:
                bound = 2 * bound + 0.5 * torch.finfo(dtype).eps * norm * (wide != dtype)
            elif are_gradients:  # of unit rows, which half types round
                bound += 0.5 * torch.finfo(dtype).eps * norm * (wide != dtype)
            if not distances[place] <= bound:
                return f"result {place}: off by {distances[place]}, expected at most {bound}"
        return None

    if too_far(plain):
        near = _typical_distances(evaluate, definition, inputs, dtype)
        if narrow and wide != dtype:
            raised = [x.to(wide) for x in inputs]
            near_raised = _typical_distances(evaluate, definition, raised, wide)
            near = [near_raised[i] if i in narrow else value for i, value in enumerate(near)]
        plain = [max(pair) for pair in zip(plain, near, strict=True)]
        assert too_far(plain) is None


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.data(), SIZES, SIZES, CLASSES, SEEDS)
def test_softmax_readout(dtype, data, rows, dim, classes, seed):
    x = _rows(data.draw, (rows, dim), dtype, seed)
    w = _rows(data.draw, (classes, dim), dtype, seed + 1)
    value_dim = data.draw(st.one_of(st.none(), SIZES))
    v = None if value_dim is None else _rows(data.draw, (classes, value_dim), dtype, seed + 2)
    scale = data.draw(st.sampled_from([0.1, 1.0, 30.0])) / dim**0.5
    _assert_precise(
        _outputs,
        lambda *rows: fcl_ext.softmax_readout(*rows, scale=scale),
        lambda *rows: reference.softmax_readout(*rows, scale=scale),
        (x, w) if v is None else (x, w, v),
        dtype,
        # The logarithm of a sum near 1 carries the sum's rounding.
        sizes=[1.0, 0.0],
        narrow=(0,),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.data(), SIZES, SIZES, CLASSES, REDUCTIONS, SEEDS)
def test_compat_loss(dtype, data, rows, dim, classes, reduction, seed):
    x = _rows(data.draw, (rows, dim), dtype, seed)
    w = _rows(data.draw, (classes, dim), dtype, seed + 1)
    labels = torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(seed))
    if rows > 1 and data.draw(st.booleans()):
        labels[0] = -100
    labels = _laid_out(data.draw, labels)
    options = {
        "scale": data.draw(st.sampled_from([1.0, 16.0, 30.0])),
        "margin": data.draw(st.sampled_from([0.0, 0.2])),
        "label_smoothing": data.draw(st.sampled_from([0.0, 0.1])),
        "reduction": reduction,
    }
    _assert_precise(
        _loss_and_gradients,
        lambda x, w: fcl_ext.compat_loss(x, w, labels, **options),
        lambda x, w: reference.compat_loss(x, w, labels, **options),
        (x, w),
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.data(), SIZES, SIZES, CLASSES, REDUCTIONS, SEEDS)
def test_compat_kl(dtype, data, rows, dim, classes, reduction, seed):
    assume(classes > 1)  # of one class, it is 0 and all rounding
    x = _rows(data.draw, (rows, dim), dtype, seed)
    w = _rows(data.draw, (classes, dim), dtype, seed + 1)
    teacher = _rows(data.draw, (rows, dim), dtype, seed + 2)
    options = {"scale": data.draw(st.sampled_from([1.0, 16.0])), "reduction": reduction}
    _assert_precise(
        _loss_and_gradients,
        lambda x: fcl_ext.compat_kl(x, w, teacher_embeddings=teacher, **options),
        lambda x: reference.compat_kl(
            x, w.to(x.dtype), teacher_embeddings=teacher.to(x.dtype), **options
        ),
        (x,),
        dtype,
        # Of two log-sum-exps as large as the logits, and of two unit means: a rounding of each.
        sizes=[
            (options["scale"] + math.log(classes)) / 4 * (rows if reduction == "sum" else 1),
            options["scale"] / 4 / dim**0.5 / (rows if reduction == "mean" else 1),
        ],
    )


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.data(), SIZES, SIZES, SIZES, REDUCTIONS, SEEDS)
def test_compat_supcon(dtype, data, rows, dim, bank, reduction, seed):
    x = _rows(data.draw, (rows, dim), dtype, seed)
    features = _rows(data.draw, (bank, dim), dtype, seed + 1)
    generator = torch.Generator().manual_seed(seed)
    feature_labels = torch.randint(data.draw(st.integers(1, bank)), (bank,), generator=generator)
    own = torch.randint(bank, (rows,), generator=generator)
    labels = feature_labels[own]
    if data.draw(st.booleans()):  # beside a positive: losses are small
        x = (features[own] + 0.1 * x).to(dtype)
    options = {"scale": data.draw(st.sampled_from([1.0, 10.0, 30.0])), "reduction": reduction}
    _assert_precise(
        _loss_and_gradients,
        lambda x, f: fcl_ext.compat_supcon(x, labels, f, feature_labels, **options),
        lambda x, f: reference.compat_supcon(x, labels, f, feature_labels, **options),
        (x, features),
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.data(), SIZES, SIZES, SIZES, st.integers(1, 5), SEEDS)
def test_sparse_readout(dtype, data, queries, dim, rows, labels, seed):
    x = _rows(data.draw, (queries, dim), dtype, seed, dim**-0.5)
    bank = _rows(data.draw, (rows, dim), dtype, seed + 1)
    generator = torch.Generator().manual_seed(seed)
    member = torch.rand(labels, rows, generator=generator) < data.draw(st.floats(0, 1))
    crow = F.pad(member.sum(1).cumsum(0), (1, 0))
    col = _laid_out(data.draw, member.nonzero()[:, 1])
    y = torch.randint(-1, labels, (queries,), generator=generator)
    accumulated = torch.float64 if dtype == torch.float64 else torch.float32
    log_weights = None
    if data.draw(st.booleans()):
        log_weights = _rows(data.draw, (len(col),), accumulated, seed + 2)
    sets = (y, crow, col, log_weights)
    _assert_precise(
        _outputs,
        lambda x, bank: fcl_ext.sparse_readout(x, bank, *sets, scale=10.0),
        lambda x, bank: reference.sparse_readout(x, bank, *sets, scale=10.0),
        (x, bank),
        dtype,
        narrow=(0,),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.data(), SIZES, SIZES, INDEX, SEEDS)
def test_random_walk(dtype, data, nodes, dim, index, seed):
    crow, col = _graph(data.draw, nodes, nodes, index, seed)
    features = _rows(data.draw, (nodes, dim), dtype, seed + 1)
    accumulated = torch.float64 if dtype == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(len(col), dtype=torch.float64, generator=generator)
    degree = crow.diff().clamp(min=1).repeat_interleave(crow.diff().long())
    values = _laid_out(data.draw, (values / degree).to(accumulated))
    transpose = data.draw(st.booleans())
    damping, steps = data.draw(st.floats(0.05, 0.95)), data.draw(st.integers(0, 8))

    def definition(values, features):
        dense = reference.csr_to_dense(crow, col, values, nodes)
        matrix = dense.T if transpose else dense
        return reference.random_walk(
            matrix, features.to(matrix.dtype), damping=damping, num_steps=steps
        )

    _assert_precise(
        _loss_and_gradients,
        lambda values, features: fcl_ext.random_walk(
            crow, col, values, features, damping=damping, num_steps=steps, transpose=transpose
        ),
        lambda values, features: definition(values, features).to(features.dtype),
        (values, features),
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES[:2])
@given(st.data(), SIZES, SIZES, INDEX, SEEDS)
def test_random_walk_to_a_tolerance(dtype, data, nodes, dim, index, seed):
    crow, col = _graph(data.draw, nodes, nodes, index, seed)
    features = _rows(data.draw, (nodes, dim), dtype, seed + 1)
    degree = crow.diff().clamp(min=1).repeat_interleave(crow.diff().long())
    values = _laid_out(data.draw, (1 / degree).to(dtype))
    damping = data.draw(st.floats(0.05, 0.9))
    got = fcl_ext.random_walk(crow, col, values, features, damping=damping, tol=1e-4)
    dense = reference.csr_to_dense(crow, col, values.double(), nodes)
    exact = reference.random_walk_limit(dense, features.double(), damping=damping)
    bound = 1e-4 * features.double().abs().max() + 1e-6
    assert (got.double() - exact).abs().max() <= bound


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.data(), SIZES, SIZES, SIZES, INDEX, SEEDS)
def test_edge_dot(dtype, data, rows, columns, dim, index, seed):
    crow, col = _graph(data.draw, rows, columns, index, seed)
    left = _rows(data.draw, (rows, dim), dtype, seed + 1)
    right = _rows(data.draw, (columns, dim), dtype, seed + 2)
    row = torch.arange(rows).repeat_interleave(crow.diff().long())

    def definition(left, right):
        dots = (left[row] * right[col.long().clamp(min=0)]).sum(1)
        return [dots.masked_fill(col < 0, 0.0)]

    _assert_precise(
        _outputs,
        lambda left, right: [torch.ops.fcl.edge_dot(crow, col, left, right)],
        definition,
        (left, right),
        dtype,
        narrow=(0,),
    )


@given(st.data(), SIZES, SIZES, INDEX, SEEDS)
def test_csr_transpose(data, rows, columns, index, seed):
    crow, col = _graph(data.draw, rows, columns, index, seed)
    values = torch.arange(1, len(col) + 1, dtype=torch.float64)
    out_crow, out_col, edge = fcl_ext.csr_transpose(crow, col, columns)
    dense = reference.csr_to_dense(crow, col, values, columns)
    assert torch.equal(reference.csr_to_dense(out_crow, out_col, values[edge], rows), dense.T)
    assert sorted(edge.tolist()) == list(range(len(col)))


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.data(), st.integers(2, 130), SIZES, SEEDS)
def test_knn(dtype, data, rows, dim, seed):
    """Each rank has the similarity that a full sort has there, and names a row that has it."""
    features = _rows(data.draw, (rows, dim), dtype, seed)
    queries = _rows(data.draw, (data.draw(st.integers(1, 40)), dim), dtype, seed + 1)
    metric = data.draw(st.sampled_from(["cosine", "ip", "l2"]))
    k = data.draw(st.integers(1, rows - 1))
    split = data.draw(st.integers(0, rows))
    offsets = torch.tensor([0, split, rows])
    apart = torch.eye(rows, dtype=torch.bool)
    parted = (torch.arange(rows)[:, None] < split) != (torch.arange(rows)[None, :] < split)
    between = _scores(features, features, metric)
    for got, scores in (
        (fcl_ext.knn_graph(features, k, metric=metric), between.masked_fill(apart, -torch.inf)),
        (
            fcl_ext.knn_graph_segments(features, offsets, k, metric=metric),
            between.masked_fill(apart | parted, -torch.inf),
        ),
        (
            fcl_ext.knn_search(queries, features, k, metric=metric),
            _scores(queries, features, metric),
        ),
    ):
        indices, similarities = got
        expected, order = torch.sort(scores, dim=1, descending=True, stable=True)
        expected, order = expected[:, :k], order[:, :k]
        there = torch.isfinite(expected)
        assert torch.equal(indices >= 0, there)
        size = max(1.0, float(scores[torch.isfinite(scores)].abs().max()) if there.any() else 1.0)
        bound = size * (1e-12 if dtype == torch.float64 else 1e-5)
        assert ((similarities - expected)[there].abs() <= bound).all()
        # What is named has the similarity that is said of it, and no row is named twice.
        named = scores.gather(1, indices.long().clamp(min=0))
        assert ((named - expected)[there].abs() <= bound).all()
        for row, keep in zip(indices.tolist(), there.sum(1).tolist(), strict=True):
            assert len(set(row[:keep])) == keep


def _scores(queries, rows, metric):
    queries, rows = queries.double(), rows.double()
    if metric == "cosine":
        queries, rows = F.normalize(queries, dim=1), F.normalize(rows, dim=1)
    if metric == "l2":
        return -(queries[:, None] - rows[None]).square().sum(2)
    return queries @ rows.T
