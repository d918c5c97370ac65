# SPDX-License-Identifier: Apache-2.0
"""random_walk: the result against its definition, tolerances, gradients, properties."""

from __future__ import annotations

import pytest
import torch
from graph_samples import row_stochastic
from hypothesis import given
from hypothesis import strategies as st

import fcl_ext
import reference
from support import DEVICES, DTYPES, error, error_budget, numbers_by_isa

OP = torch.ops.fcl.random_walk.default
TOL = torch.ops.fcl.random_walk_tol.default

BACKWARD = torch.ops.fcl.random_walk_backward.default


# (nodes, edges, dim, share of padding, steps): dims around every vector and panel width.
SAMPLES = [
    (0, 0, 3, 0.0, 2),
    (1, 0, 1, 0.0, 3),
    (1, 1, 1, 0.0, 1),
    (4, 9, 0, 0.0, 2),
    (6, 14, 3, 0.2, 1),
    (30, 90, 15, 0.1, 4),
    (30, 90, 16, 1.0, 2),
    (50, 400, 17, 0.0, 10),
    (40, 10, 100, 0.0, 3),
    (60, 500, 129, 0.2, 3),
    (25, 9000, 200, 0.0, 2),
    (20, 60, 300, 0.0, 0),
]


def _inputs(sample, dtype, device, index=torch.int64):
    nodes, edges, dim, padding, steps = sample
    crow, col, values = row_stochastic(
        nodes, edges, padding=padding, index=index, dtype=dtype, device=device
    )
    generator = torch.Generator().manual_seed(7)
    features = torch.randn(nodes, dim, dtype=torch.float64, generator=generator)
    return crow, col, values, features.to(dtype).to(device), steps


def _dense(crow, col, values):
    return reference.csr_to_dense(crow, col, values, len(crow) - 1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_matches_definition(sample, index, dtype, device):
    crow, col, values, features, steps = _inputs(sample, dtype, device, index)
    got = OP(crow, col, values, features, 0.85, steps)
    expected = reference.random_walk(
        _dense(crow, col, values.double()), features.double(), damping=0.85, num_steps=steps
    )
    naive = reference.random_walk(
        _dense(crow, col, values), features, damping=0.85, num_steps=steps
    )
    assert got.dtype == dtype
    rounding = error(expected.to(dtype), expected)
    assert error(got, expected) <= error_budget(naive, expected, dtype) + rounding


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_features_take_float_values(dtype, device):
    crow, col, values, features, _ = _inputs((50, 400, 17, 0.0, 10), torch.float32, device)
    got = OP(crow, col, values, features.to(dtype), 0.9, 10)
    assert got.dtype == dtype
    # Iterates are float32: only the input and the output are rounded.
    expected = OP(crow, col, values, features.to(dtype).float(), 0.9, 10)
    assert torch.equal(got, expected.to(dtype))


@pytest.mark.parametrize("device", DEVICES)
def test_isolated_node_keeps_the_restart_only(device):
    crow = torch.tensor([0, 1, 1], device=device)
    col = torch.tensor([1], device=device)
    features = torch.tensor([[1.0], [3.0]], device=device)
    got = OP(crow, col, torch.ones(1, device=device), features, 0.75, 1)
    assert got.tolist() == [[0.75 * 3 + 0.25], [0.25 * 3]]


@pytest.mark.parametrize("device", DEVICES)
def test_hub_row_sums_without_losing_digits(device):
    edges = 200_000
    crow = torch.tensor([0, edges, edges], device=device)
    col = torch.ones(edges, dtype=torch.int32, device=device)
    values = torch.full((edges,), 1 / edges, device=device)
    features = torch.tensor([[0.0] * 40, [1.1] * 40], device=device)
    got = OP(crow, col, values, features, 0.5, 1)[0]
    exact = 0.5 * float(values[0].double()) * edges * float(features[1, 0].double())
    torch.testing.assert_close(
        got.double(), torch.full_like(got, exact).double(), rtol=2e-5, atol=0
    )


@pytest.mark.parametrize("device", DEVICES)
def test_layouts_and_aliasing(device):
    crow, col, values, features, _ = _inputs((30, 90, 15, 0.1, 4), torch.float32, device)
    expected = OP(crow, col, values, features, 0.9, 4)
    assert torch.equal(OP(crow, col, values, features.T.contiguous().T, 0.9, 4), expected)
    pairs = torch.stack([values, values], 1)
    assert torch.equal(OP(crow, col, pairs[:, 0], features, 0.9, 4), expected)
    unchanged = OP(crow, col, values, features, 0.9, 0)
    assert torch.equal(unchanged, features)
    assert unchanged.data_ptr() != features.data_ptr()


def _dense_with_gradient(crow, col, values):
    row = torch.repeat_interleave(torch.arange(len(crow) - 1, device=col.device), crow.diff())
    keep = col >= 0
    zeros = values.new_zeros(len(crow) - 1, len(crow) - 1)
    return zeros.index_put((row[keep], col[keep].long()), values[keep], accumulate=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 4, 7, 9, 10, 16])
@pytest.mark.parametrize("needs", ["values", "features", "both"])
def test_gradients_match_definition(needs, num_steps, device):
    crow, col, values, features, _ = _inputs((20, 90, 7, 0.1, 0), torch.float64, device)
    weight = torch.linspace(-1, 1, 20 * 7, dtype=torch.float64, device=device).reshape(20, 7)

    def gradients(walk):
        leaves = [values.clone(), features.clone()]
        leaves[0].requires_grad_(needs != "features")
        leaves[1].requires_grad_(needs != "values")
        state = walk(*leaves)
        # Without a step the result does not depend on the values at all.
        total = (weight * state.square()).sum() + 0 * leaves[0].nan_to_num().sum()
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        return torch.autograd.grad(total, wanted)

    ours = gradients(lambda v, f: OP(crow, col, v, f, 0.8, num_steps))
    expected = gradients(
        lambda v, f: reference.random_walk(
            _dense_with_gradient(crow, col, v), f, damping=0.8, num_steps=num_steps
        )
    )
    for mine, truth in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_in_low_precision_have_the_inputs_dtypes(dtype, device):
    crow, col, values, features, _ = _inputs((50, 400, 17, 0.1, 0), torch.float32, device)
    values = values.nan_to_num()
    leaves = [values.requires_grad_(), features.to(dtype).requires_grad_()]
    OP(crow, col, *leaves, 0.8, 6).float().square().sum().backward()
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    reference.random_walk(
        _dense_with_gradient(crow, col, exact[0]), exact[1], damping=0.8, num_steps=6
    ).square().sum().backward()
    for leaf, truth in zip(leaves, exact, strict=True):
        assert leaf.grad.dtype == leaf.dtype
        assert error(leaf.grad, truth.grad) < (1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("device", DEVICES)
def test_gradcheck(device):
    crow, col, values, features, _ = _inputs((6, 20, 3, 0.0, 0), torch.float64, device)
    inputs = (0.99 * values).requires_grad_(), features.requires_grad_()
    options = [{"num_steps": 5}, {"tol": 1e-13}, {"tol": 1e-13, "transpose": True}]
    for option in options:
        walk = lambda v, f, o=option: fcl_ext.random_walk(crow, col, v, f, damping=0.7, **o)  # noqa: E731
        assert torch.autograd.gradcheck(walk, inputs)
    # The implicit gradient to the features is itself a walk, so it has a gradient too.
    frozen = inputs[0].detach()
    assert torch.autograd.gradgradcheck(
        lambda f: fcl_ext.random_walk(crow, col, frozen, f, damping=0.7, tol=1e-13), inputs[1:]
    )


@pytest.mark.parametrize("device", DEVICES)
def test_double_backward_through_the_backward_op_raises(device):
    crow, col, values, features, _ = _inputs((6, 20, 3, 0.0, 0), torch.float64, device)
    values.requires_grad_()
    features.requires_grad_()
    (grad,) = torch.autograd.grad(
        OP(crow, col, values, features, 0.7, 3).square().sum(), features, create_graph=True
    )
    with pytest.raises(RuntimeError, match="random_walk_backward: double backward is not supp"):
        grad.sum().backward()
    (grad,) = torch.autograd.grad(
        TOL(crow, col, values, features, 0.7, 1e-9, 500, "max")[0].square().sum(),
        values,
        create_graph=True,
    )
    with pytest.raises(RuntimeError, match="fcl::edge_dot: it has no gradient"):
        grad.sum().backward()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("damping", [0.3, 0.9, 0.98])
@pytest.mark.parametrize("tol", [1e-2, 1e-5, 1e-9])
@pytest.mark.parametrize("transpose", [False, True])
def test_tolerance_is_kept(transpose, tol, damping, device):
    crow, col, values, features, _ = _inputs((60, 300, 5, 0.1, 0), torch.float64, device)
    got = fcl_ext.random_walk(
        crow, col, values, features, damping=damping, tol=tol, transpose=transpose
    )
    matrix = _dense(crow, col, values)
    limit = reference.random_walk_limit(
        matrix.T if transpose else matrix, features, damping=damping
    )
    difference = (got - limit).abs()
    if transpose:
        assert difference.sum(0).amax() <= tol * features.abs().sum(0).amax()
    else:
        assert difference.amax() <= tol * features.abs().amax()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_tolerance_form_reaches_the_limit_in_every_dtype(sample, dtype, device):
    crow, col, values, features, _ = _inputs(sample, dtype, device)
    # Half weights do not sum to 1; float ones are allowed with half features.
    _, _, values, _, _ = _inputs(
        sample, torch.float64 if dtype == torch.float64 else torch.float32, device
    )
    got, steps = TOL(crow, col, values, features, 0.9, 1e-7, 1000, "max")
    limit = reference.random_walk_limit(
        _dense(crow, col, values.double()), features.double(), damping=0.9
    )
    assert got.dtype == dtype
    assert steps.dtype == torch.int64
    assert steps.device.type == "cpu"
    assert error(got, limit) <= 2e-6 + error(limit.to(dtype), limit)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("damping", [0.5, 0.9, 0.99, 0.999])
def test_unreachable_tolerance_stops_at_the_rounding_noise(damping, device):
    crow, col, values, features, _ = _inputs((300, 3000, 20, 0.0, 0), torch.float32, device)
    got, steps = TOL(crow, col, values, features, damping, 1e-12, 100_000, "max")
    limit = reference.random_walk_limit(
        _dense(crow, col, values.double()), features.double(), damping=damping
    )
    assert steps < fcl_ext.walk.steps_for(damping, 1e-8)
    assert error(got, limit) < 4e-7 / (1 - damping)


def test_default_step_bound_suffices():
    # The slowest case there is: a permutation, whose differences shrink by the damping alone.
    crow, col = torch.arange(6), torch.tensor([1, 2, 3, 4, 0])
    features = torch.tensor([[1.0], [-1.0], [1.0], [-1.0], [1.0]], dtype=torch.float64)
    values = torch.ones(5, dtype=torch.float64)
    for damping in (0.01, 0.5, 0.9, 0.99):
        for tol in (0.5, 1e-3, 1e-10):
            fcl_ext.random_walk(crow, col, values, features, damping=damping, tol=tol)


@pytest.mark.parametrize("device", DEVICES)
def test_public_function_modes(device):
    crow, col, values, features, _ = _inputs((30, 90, 15, 0.1, 4), torch.float64, device)
    matrix = _dense(crow, col, values)
    limit = reference.random_walk_limit(matrix, features, damping=0.9)
    torch.testing.assert_close(
        fcl_ext.random_walk(crow, col, values, features), limit, rtol=0, atol=1e-5
    )
    torch.testing.assert_close(
        fcl_ext.random_walk(crow, col, values, features, num_steps=4, transpose=True),
        reference.random_walk(matrix.T, features, damping=0.9, num_steps=4),
    )
    with pytest.raises(ValueError, match="num_steps or tol, not both; got num_steps=3 and tol"):
        fcl_ext.random_walk(crow, col, values, features, num_steps=3, tol=1e-3)
    with pytest.raises(ValueError, match="max_steps bounds tol"):
        fcl_ext.random_walk(crow, col, values, features, num_steps=3, max_steps=3)


def test_does_not_depend_on_the_number_of_threads():
    crow, col, values = row_stochastic(4000, 90_000, dtype=torch.float32, index=torch.int32)
    features = torch.randn(4000, 33, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaves = [values.clone().requires_grad_(), features.clone().requires_grad_()]
        state = OP(crow, col, *leaves, 0.9, 5)
        state.square().sum().backward()
        limits = [TOL(crow, col, values, features, 0.9, 1e-4, 500, "max")]
        limits.append((fcl_ext.random_walk(crow, col, values, features, tol=1e-4, transpose=True),))
        results.append((state, *(leaf.grad for leaf in leaves), *limits[0], *limits[1]))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad, device):
    crow, col, values, features, _ = _inputs((6, 20, 3, 0.0, 0), torch.float32, device)
    values.requires_grad_(requires_grad)
    features.requires_grad_(requires_grad)
    torch.library.opcheck(OP, (crow, col, values, features, 0.7, 3))
    torch.library.opcheck(TOL, (crow, col, values, features, 0.7, 1e-3, 500, "max"))
    detached = (crow, col.int(), values.detach(), features.detach(), features.detach().clone())
    torch.library.opcheck(BACKWARD, (*detached, 0.7, 3, True, False))
    torch.library.opcheck(BACKWARD, (*detached, 0.7, 3, True, True))


@pytest.mark.parametrize("device", DEVICES)
def test_compiles_to_one_graph(device):
    crow, col, values, features, _ = _inputs((20, 90, 7, 0.0, 0), torch.float32, device)

    def total(values, features):
        exact = fcl_ext.random_walk(crow, col, values, features, num_steps=3, damping=0.7)
        limit = fcl_ext.random_walk(crow, col, values, exact, damping=0.7, transpose=True)
        return limit.square().sum()

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    ours = [t.clone().requires_grad_() for t in (values, features)]
    eager = [t.clone().requires_grad_() for t in (values, features)]
    compiled(*ours).backward()
    total(*eager).backward()
    for a, b in zip(ours, eager, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_runs_in_float32(device):
    crow, col, values, features, _ = _inputs((20, 90, 7, 0.0, 0), torch.float32, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        exact = fcl_ext.random_walk(crow, col, values, features.bfloat16(), num_steps=3)
        limit = fcl_ext.random_walk(crow, col, values.bfloat16() * 0.99, features)
    assert exact.dtype == limit.dtype == torch.float32


@given(
    nodes=st.integers(1, 30),
    degree=st.integers(1, 8),
    dim=st.integers(1, 40),
    damping=st.floats(0.05, 0.95),
    steps=st.integers(0, 12),
    seed=st.integers(0, 2**31),
)
def test_properties(nodes, degree, dim, damping, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    crow = torch.arange(nodes + 1) * degree
    col = torch.randint(0, nodes, (nodes * degree,), generator=generator)
    weights = torch.rand(nodes, degree, dtype=torch.float64, generator=generator) + 0.01
    values = (weights / weights.sum(1, keepdim=True)).reshape(-1)
    f, g = torch.randn(2, nodes, dim, dtype=torch.float64, generator=generator)

    def walk(features, **options):
        return fcl_ext.random_walk(
            crow, col, values, features, damping=damping, num_steps=steps, **options
        )

    state = walk(f)
    # Linear; constants stay; every entry stays within the range of its column.
    torch.testing.assert_close(walk(2 * f - 3 * g), 2 * state - 3 * walk(g))
    torch.testing.assert_close(walk(torch.ones_like(f)), torch.ones_like(f))
    assert (state <= f.amax(0) + 1e-9).all()
    assert (state >= f.amin(0) - 1e-9).all()
    # On the transpose the mass of every column is conserved, and it is the adjoint.
    against = walk(g, transpose=True)
    torch.testing.assert_close(against.sum(0), g.sum(0))
    torch.testing.assert_close((state * g).sum(), (f * against).sum())
    # Renaming the nodes renames the result.
    order = torch.randperm(nodes, generator=generator)
    name = torch.argsort(order)
    renamed = fcl_ext.random_walk(
        crow,
        name[col.reshape(nodes, degree)[order].reshape(-1)],
        values.reshape(nodes, degree)[order].reshape(-1),
        f[order],
        damping=damping,
        num_steps=steps,
    )
    torch.testing.assert_close(renamed, state[order])


def test_limits_of_the_damping():
    crow, col, values = row_stochastic(12, 80)
    features = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    almost_none = fcl_ext.random_walk(crow, col, values, features, damping=1e-9)
    torch.testing.assert_close(almost_none, features, rtol=0, atol=1e-7)
    # Towards 1 every node forgets where it started: all rows become the stationary mean.
    matrix = _dense(crow, col, values)
    assert (matrix.sum(1) - 1).abs().max() < 1e-12
    stationary = torch.linalg.matrix_power(matrix, 200)[0]
    almost_all = fcl_ext.random_walk(crow, col, values, features, damping=1 - 1e-5, tol=1e-6)
    expected = (stationary @ features).expand(12, 3)
    torch.testing.assert_close(almost_all, expected, rtol=0, atol=1e-3)


_ISA_SCRIPT = """
import torch, fcl_ext
torch.manual_seed(0)
crow, col = torch.arange(0, 61, 3), torch.randint(-1, 20, (60,))
sums = []
for dim in (3, 5, 37, 150):
    leaves = [torch.rand(60).div(3).double().requires_grad_()]
    leaves.append(torch.randn(20, dim).double().requires_grad_())
    state = fcl_ext.random_walk(crow, col, *leaves, damping=0.9, num_steps=5)
    limit = fcl_ext.random_walk(crow, col, *leaves, damping=0.9)
    (state + limit).square().sum().backward()
    single = [leaf.detach().float() for leaf in leaves]
    float_state = fcl_ext.random_walk(crow, col, *single, damping=0.9, num_steps=5)
    assert torch.allclose(float_state.double(), state, atol=1e-5)
    sums += [float(leaf.grad.sum()) for leaf in leaves]
print(fcl_ext._C.cpu_isa(), *sums)
"""


def test_every_isa_agrees():
    first, *others = numbers_by_isa(_ISA_SCRIPT)
    for other in others:
        assert other == pytest.approx(first, rel=1e-9)
