# SPDX-License-Identifier: Apache-2.0
"""The walk with bfloat16 iterates, and walks that go on from a given state."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from graph_samples import random_csr, row_stochastic

import fcl_ext
import reference
from support import error

RESUME = torch.ops.fcl.random_walk_resume.default

# (nodes, edges, dim, share of padding): dims around every vector and panel width.
SAMPLES = [
    (0, 0, 3, 0.0),
    (1, 0, 1, 0.0),
    (4, 9, 0, 0.0),
    (30, 90, 7, 0.1),
    (30, 90, 31, 1.0),
    (50, 400, 32, 0.0),
    (50, 400, 33, 0.2),
    (40, 300, 64, 0.0),
    (60, 500, 129, 0.2),
    (25, 9000, 200, 0.0),
    (20, 60, 300, 0.0),
]


def _inputs(sample, dtype=torch.float32, index=torch.int64):
    nodes, edges, dim, padding = sample
    crow, col, values = row_stochastic(nodes, edges, padding=padding, index=index, dtype=dtype)
    generator = torch.Generator().manual_seed(7)
    return crow, col, values, torch.randn(nodes, dim, dtype=dtype, generator=generator)


def _step(crow, col, values, state, features, damping):
    dense = reference.csr_to_dense(crow, col, values.double(), len(crow) - 1)
    return damping * dense @ state.double() + (1 - damping) * features.double()


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_one_step_is_a_float_sum_of_bfloat16_rows(sample, index):
    crow, col, values, features = _inputs(sample, index=index)
    state = torch.randn(features.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = _step(crow, col, values, state, features, 0.9)
    to_float = RESUME(crow, col, values, state, features, 0.9, 1, 0)
    assert to_float.dtype == torch.float32
    torch.testing.assert_close(to_float.double(), exact, rtol=1e-5, atol=1e-6)
    # Stored as bfloat16 it is the same number, rounded to nearest even as torch rounds.
    to_half = RESUME(crow, col, values, state, features, 0.9, 1, 1)
    assert to_half.dtype == torch.bfloat16
    assert torch.equal(to_half, to_float.bfloat16())


@pytest.mark.parametrize("damping", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 10, 30])
@pytest.mark.parametrize("sample", [(60, 500, 129, 0.2), (400, 9000, 40, 0.0), (30, 90, 7, 0.1)])
def test_error_against_float64(sample, num_steps, damping):
    crow, col, values, features = _inputs(sample)
    dense = reference.csr_to_dense(crow, col, values.double(), len(crow) - 1)
    expected = reference.random_walk(dense, features.double(), damping=damping, num_steps=num_steps)
    options = {"damping": damping, "num_steps": num_steps, "iterate_dtype": torch.bfloat16}
    got = fcl_ext.random_walk(crow, col, values, features, **options)
    assert got.dtype == torch.float32
    # Close to 1 the walk averages features away, but not the rounding of the first ones.
    share = 1.0 if damping <= 0.9 else float(expected.norm() / features.double().norm())
    assert share * error(got, expected) <= 2e-3
    against = fcl_ext.random_walk(crow, col, values, features, transpose=True, **options)
    expected = reference.random_walk(
        dense.T, features.double(), damping=damping, num_steps=num_steps
    )
    share = 1.0 if damping <= 0.9 else float(expected.norm() / features.double().norm())
    assert share * error(against, expected) <= 2e-3
    half = fcl_ext.random_walk(crow, col, values, features.bfloat16(), **options)
    assert half.dtype == torch.bfloat16


def test_bfloat16_is_what_is_stored():
    """A walk that ignored the option would keep digits that bfloat16 lacks."""
    crow, col = torch.arange(3), torch.tensor([1, 0])
    features = torch.tensor([[1.0], [1.0 + 2**-12]]).expand(2, 40).contiguous()
    full = fcl_ext.random_walk(crow, col, torch.ones(2), features, damping=0.5, num_steps=3)
    half = fcl_ext.random_walk(
        crow, col, torch.ones(2), features, damping=0.5, num_steps=3, iterate_dtype=torch.bfloat16
    )
    assert not torch.equal(full, half)
    torch.testing.assert_close(half, full, rtol=4e-3, atol=0)


def test_nan_and_infinity_stay_what_they_are():
    # Rounding adds to the bits of a number: an all-ones NaN would run over into the sign.
    bits = torch.tensor([0x7FFFFFFF, -1, 0x7F800000, 0x7F800001], dtype=torch.int64)
    special = bits.to(torch.int32).view(torch.float32)
    features = special[:, None].expand(4, 40).contiguous()
    got = RESUME(
        torch.zeros(5, dtype=torch.int64), bits[:0], features[0, :0], features, features, 0.5, 2, 2
    )
    assert got[[0, 1, 3]].isnan().all()
    assert (got[2] == torch.inf).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_resumed_walk_is_the_whole_walk(dtype):
    crow, col, values, features = _inputs((60, 500, 129, 0.2), dtype)
    whole = fcl_ext.random_walk(crow, col, values, features, damping=0.8, num_steps=7)
    state = features
    for steps in (3, 0, 4):
        state = RESUME(crow, col, values, state, features, 0.8, steps, 0)
    assert torch.equal(state, whole)
    assert RESUME(crow, col, values, features, features, 0.8, 0, 0).data_ptr() != (
        features.data_ptr()
    )


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_every_instruction_set(isa):
    """In a process of its own: the choice is made once."""
    code = (
        "import torch, fcl_ext; from graph_samples import row_stochastic\n"
        "g = row_stochastic(60, 500, dtype=torch.float32)\n"
        "for d in (7, 33, 129):\n"
        "    f = torch.randn(60, d, generator=torch.Generator().manual_seed(0))\n"
        "    o = dict(damping=0.9, num_steps=10)\n"
        "    half = fcl_ext.random_walk(*g, f, iterate_dtype=torch.bfloat16, **o)\n"
        "    full = fcl_ext.random_walk(*g, f, **o)\n"
        "    assert 0 < (half - full).norm() < 2e-3 * full.norm(), d\n"
    )
    paths = [os.path.dirname(__file__), *sys.path]  # noqa: PTH120
    env = {**os.environ, "FCL_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join(paths)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    if "this CPU and system allow only" in run.stderr:
        pytest.skip(f"this CPU has no {isa}")
    assert run.returncode == 0, run.stderr


def test_does_not_depend_on_the_number_of_threads():
    crow, col, values, features = _inputs((4000, 90_000, 33, 0.0))
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(RESUME(crow, col, values, features, features, 0.9, 5, 5))
    torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_opcheck():
    crow, col, values, features = _inputs((6, 20, 3, 0.0))
    for steps, bf16_steps in ((0, 0), (3, 0), (3, 1), (3, 3)):
        arguments = (crow, col, values, features, features.clone(), 0.7, steps, bf16_steps)
        torch.library.opcheck(RESUME, arguments)
    torch.library.opcheck(
        RESUME, (crow, col.int(), values, features.bfloat16(), features, 0.7, 2, 0)
    )


def test_gradients_are_refused():
    crow, col, values, features = _inputs((6, 20, 3, 0.0))
    leaf = features.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="random_walk_resume: it has no gradient"):
        RESUME(crow, col, values, leaf, features, 0.7, 2, 0).sum().backward()
    with pytest.raises(ValueError, match="iterate_dtype has no gradient"):
        fcl_ext.random_walk(crow, col, values, leaf, num_steps=2, iterate_dtype=torch.bfloat16)


BAD_CALLS = [
    (lambda f: (f[1:], f, 0.9, 3, 0), r"expected state of shape \[N, D\] = \[5, 3\], got \[4, 3\]"),
    (lambda f: (f.half(), f, 0.9, 3, 0), "expected state of dtype .*, got"),
    (lambda f: (f.half(), f.half(), 0.9, 3, 0), "features of dtype float32 or float64, got"),
    (lambda f: (f, f, 0.9, -1, 0), "expected num_steps >= 0, got -1"),
    (lambda f: (f, f, 0.9, 3, 4), r"num_bf16_steps in \[0, num_steps = 3\], got 4"),
    (lambda f: (f, f, 1.0, 3, 0), r"damping in the open interval \(0, 1\), got 1"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS)
def test_bad_arguments_are_named(arguments, message):
    from torch._subclasses.fake_tensor import FakeTensorMode

    crow, col = random_csr(5, 5, 12)
    values, features = torch.rand(12), torch.randn(5, 3)
    with pytest.raises(RuntimeError, match=f"fcl::random_walk_resume: .*{message}"):
        RESUME(crow, col, values, *arguments(features))
    with FakeTensorMode() as mode:
        *graph, rows = (mode.from_tensor(t) for t in (crow, col, values, features))
        with pytest.raises(RuntimeError, match=message):
            RESUME(*graph, *arguments(rows))


def test_options_it_is_not_offered_with_are_named():
    crow, col, values, features = _inputs((6, 20, 3, 0.0))
    walk = fcl_ext.random_walk
    with pytest.raises(ValueError, match=r"None or torch\.bfloat16, got torch\.float16"):
        walk(crow, col, values, features, num_steps=2, iterate_dtype=torch.float16)
    with pytest.raises(ValueError, match="iterate_dtype goes with num_steps"):
        walk(crow, col, values, features, iterate_dtype=torch.bfloat16)
    double = features.double()
    with pytest.raises(ValueError, match="float64"):
        walk(crow, col, values.double(), double, num_steps=2, iterate_dtype=torch.bfloat16)
