# SPDX-License-Identifier: Apache-2.0
"""Run by torchrun with 4 processes: losses over 1, 2, 3 and 4 of them against one process.

Each case is computed whole, in one process, on all rows and classes, and then in shards: loss,
gradient to embeddings (that of the mean over all rows) and to the classifier must agree.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

import fcl_ext
from fclearn.distributed import (
    gather_rows,
    leave_world,
    logsumexp_over_shards,
    positives_over_shards,
    row_range,
    shard_terms,
    sharded_compat_loss,
    whole,
)
from fclearn.distributed.losses import nearest_class
from fclearn.losses import (
    CosineClassifierLoss,
    DistillCompatLoss,
    InstanceCompatLoss,
    LossTerm,
    PseudoClassifierLoss,
)
from fclearn.methods.lce import AlignmentLoss

ROWS, DIM = 24, 7  # rows: a multiple of 1, 2, 3 and 4


def _random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def _close(got: Tensor, expected: Tensor, dtype: torch.dtype, what: str) -> None:
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}[dtype]
    error = float((got.double() - expected.double()).norm())
    limit = tolerance * max(1.0, float(expected.double().norm()))
    assert error <= limit, f"{what}: off by {error:.2e}, allowed {limit:.2e}"


def check_compat_loss(group: dist.ProcessGroup, rank: int, size: int) -> None:
    options = [
        {},
        {"margin": 0.3},
        {"margin": 0.5, "margin_type": "arcface", "label_smoothing": 0.1},
        {"normalize": False, "scale": 2.0, "label_smoothing": 0.2},
        {"ignore_index": 3, "scale": 50.0},
    ]
    # 1 and 5 classes: shards of one class, and without any.
    cases = [
        *itertools.product([torch.float64], [1, 5, 33], options),
        *itertools.product([torch.float32], [33], options),
        (torch.bfloat16, 33, {}),
    ]
    for dtype, num_classes, option in cases:
        x = _random(ROWS, DIM, seed=1, dtype=dtype)
        w = _random(num_classes, DIM, seed=2, dtype=dtype)
        y = torch.arange(ROWS) * 7 % num_classes
        whole_x, whole_w = x.clone().requires_grad_(), w.clone().requires_grad_()
        expected = fcl_ext.compat_loss(whole_x, whole_w, y, **option)
        if not torch.isfinite(expected):
            continue  # every row has the label that is ignored
        expected.backward()
        mine = slice(rank * ROWS // size, (rank + 1) * ROWS // size)
        begin, end = row_range(num_classes, rank, size)
        own_x = x[mine].clone().requires_grad_()
        shard = w[begin:end].clone().requires_grad_()
        loss = sharded_compat_loss(
            *(own_x, shard, y[mine]), first=begin, num_classes=num_classes, group=group, **option
        )
        (loss / size).backward()
        what = f"{size} processes, C={num_classes}, {dtype}, {option}"
        averaged = loss.detach() / size
        dist.all_reduce(averaged, group=group)
        _close(averaged, expected.detach(), dtype, f"loss, {what}")
        with torch.no_grad():
            begun = {"first": begin, "num_classes": num_classes, "group": group}
            again = sharded_compat_loss(x[mine], w[begin:end], y[mine], **begun, **option)
        _close(again, loss.detach(), dtype, f"loss without gradient, {what}")
        _close(own_x.grad, whole_x.grad[mine], dtype, f"gradient to embeddings, {what}")
        _close(shard.grad, whole_w.grad[begin:end], dtype, f"gradient to the shard, {what}")


def check_arcface_beside_its_class(group: dist.ProcessGroup, rank: int, size: int) -> None:
    """Cosines of 1 and -1, where the slope of the margin is infinite, and close to them.

    Not in float64: its sines there are those of rounding.
    """
    options = {"margin": 0.5, "margin_type": "arcface", "scale": 20.0}
    num_classes = 5
    w = F.normalize(_random(num_classes, DIM, seed=13), dim=1)
    y = torch.arange(ROWS) % num_classes
    away = torch.tensor([0.0, 1e-5, 1e-4, 1e-3, 1e-2, 0.0]).repeat(ROWS // 6)
    side = torch.where(torch.arange(ROWS) % 4 == 0, -1.0, 1.0)
    x = side[:, None] * w[y] + away[:, None] * _random(ROWS, DIM, seed=14)
    whole_x, whole_w = x.clone().requires_grad_(), w.clone().requires_grad_()
    expected = fcl_ext.compat_loss(whole_x, whole_w, y, reduction="none", **options)
    expected.sum().backward()
    mine = slice(rank * ROWS // size, (rank + 1) * ROWS // size)
    begin, end = row_range(num_classes, rank, size)
    own_x = x[mine].clone().requires_grad_()
    shard = w[begin:end].clone().requires_grad_()
    begun = {"first": begin, "num_classes": num_classes, "group": group}
    losses = sharded_compat_loss(own_x, shard, y[mine], reduction="none", **begun, **options)
    losses.sum().backward()
    _close(losses.detach(), expected.detach()[mine], x.dtype, f"losses on {size}")
    _close(own_x.grad, whole_x.grad[mine], x.dtype, f"gradient to embeddings on {size}")
    _close(shard.grad, whole_w.grad[begin:end], x.dtype, f"gradient to the shard on {size}")


def check_small_losses_keep_their_digits(group: dist.ProcessGroup, rank: int, size: int) -> None:
    w = torch.eye(8)[:5]
    y = torch.arange(ROWS) % 5
    x = w[y]
    exact = fcl_ext.compat_loss(x.double(), w.double(), y, scale=40.0, reduction="none")
    begin, end = row_range(5, rank, size)
    mine = slice(rank * ROWS // size, (rank + 1) * ROWS // size)
    options = {"first": begin, "num_classes": 5, "group": group, "scale": 40.0}
    loss = sharded_compat_loss(x[mine], w[begin:end], y[mine], reduction="none", **options)
    assert float(exact.max()) < 1e-15
    torch.testing.assert_close(loss.double(), exact[mine], rtol=1e-5, atol=0)


def check_small_instance_losses(group: dist.ProcessGroup, rank: int, size: int) -> None:
    """A loss far below the precision of a log-sum-exp, as one process has it."""
    bank, labels = torch.eye(ROWS), torch.arange(ROWS)
    term = InstanceCompatLoss(bank, labels, scale=40.0)
    (spread,) = shard_terms([LossTerm("compat", 1.0, term)], group)
    mine = slice(rank * ROWS // size, (rank + 1) * ROWS // size)
    loss = spread.module(bank[mine], labels[mine], labels[mine])
    expected = math.log1p((ROWS - 1) * math.exp(-40.0))
    assert 0 < expected < 1e-12
    assert abs(float(loss) / expected - 1) < 1e-5


def check_terms(group: dist.ProcessGroup, rank: int, size: int) -> None:
    num_rows, num_classes, old_dim = 40, 6, DIM - 2
    labels = torch.arange(num_rows) % num_classes
    features = _random(num_rows, old_dim, seed=3)
    centres = F.normalize(_random(num_classes, old_dim, seed=4), dim=1)
    soft = _random(num_rows, old_dim, seed=5)
    crow, col, _ = fcl_ext.PositiveSets.from_labels(labels)
    weighted = fcl_ext.PositiveSets(crow, col, torch.log_softmax(_random(num_rows, seed=6), 0))
    makers: list[Callable[[], torch.nn.Module]] = [
        lambda: CosineClassifierLoss(num_classes, DIM, margin=0.1, label_smoothing=0.1),
        lambda: PseudoClassifierLoss(centres, label_smoothing=0.05),
        lambda: PseudoClassifierLoss(centres, soft_targets=soft),
        lambda: InstanceCompatLoss(features, labels),
        lambda: InstanceCompatLoss(features, labels, positives=weighted),
        lambda: DistillCompatLoss(centres, features),
    ]
    rows = torch.randperm(num_rows, generator=torch.Generator().manual_seed(7))[:ROWS]
    x = _random(ROWS, DIM, seed=8)
    mine = slice(rank * ROWS // size, (rank + 1) * ROWS // size)
    for make in makers:
        torch.manual_seed(0)
        term = make()
        (spread,) = shard_terms([LossTerm("compat", 1.0, term)], group)
        assert type(spread.module).__name__ == f"Sharded{type(term).__name__}"
        whole_x, own_x = x.clone().requires_grad_(), x[mine].clone().requires_grad_()
        expected = term(whole_x, labels[rows], rows)
        expected.backward()
        loss = spread.module(own_x, labels[rows][mine], rows[mine])
        (loss / size).backward()
        averaged = loss.detach() / size
        dist.all_reduce(averaged, group=group)
        what = f"{term!r} on {size}"
        _close(averaged, expected.detach(), torch.float32, what)
        _close(own_x.grad, whole_x.grad[mine], torch.float32, f"gradient, {what}")
        for (name, full), part in zip(
            term.named_parameters(), spread.module.parameters(), strict=True
        ):
            _close(whole(part.grad), full.grad, torch.float32, f"gradient of {name}, {what}")


def check_a_shared_classifier_stays_whole(group: dist.ProcessGroup, rank: int, size: int) -> None:  # noqa: ARG001
    new = CosineClassifierLoss(4, DIM)
    terms = [
        LossTerm("new", 1.0, new),
        LossTerm("compat", 1.0, AlignmentLoss(new, torch.eye(4, DIM))),
    ]
    assert [term.module for term in shard_terms(terms, group)] == [t.module for t in terms]


def check_gathered_rows(group: dist.ProcessGroup, rank: int, size: int) -> None:
    x = _random(ROWS, DIM, seed=9, dtype=torch.float64)
    weight = _random(ROWS, ROWS, seed=10, dtype=torch.float64)
    full = x.clone().requires_grad_()
    (weight * (full @ full.T)).sum().backward()
    mine = slice(rank * ROWS // size, (rank + 1) * ROWS // size)
    own = x[mine].clone().requires_grad_()
    everyone = gather_rows(own, group)
    # Each process differentiates its own rows of the table: together, the whole.
    (weight[mine] * (own @ everyone.T)).sum().backward()
    _close(own.grad, full.grad[mine], torch.float64, f"gathered rows on {size}")


def check_nearest_class(group: dist.ProcessGroup, rank: int, size: int) -> None:
    w = _random(5, DIM, seed=11)
    w[1] = w[4] = torch.eye(DIM)[0]  # equal cosines, without rounding: the lower class
    x = torch.cat([_random(ROWS - 2, DIM, seed=12), w[[1, 4]]])
    expected = (x @ F.normalize(w, dim=1).T).argmax(1)
    assert expected[-1] == 1
    begin, end = row_range(5, rank, size)
    mine = slice(rank * ROWS // size, (rank + 1) * ROWS // size)
    found = nearest_class(x[mine], w[begin:end], first=begin, group=group)
    assert torch.equal(found, expected[mine])


def check_bad_input(group: dist.ProcessGroup, rank: int, size: int) -> None:
    begin, end = row_range(5, rank, size)
    shard = torch.eye(8)[begin:end]
    options = {"first": begin, "num_classes": 5, "group": group}
    labels = torch.zeros(2 + rank, dtype=torch.int64)
    if size > 1:
        with pytest.raises(ValueError, match="as many rows on every process"):
            sharded_compat_loss(torch.ones(2 + rank, 8), shard, labels, **options)
    rows, labels = torch.ones(2, 8), torch.full((2,), 5 if rank == size - 1 else 0)
    text = "got 5 in row 0" if rank == size - 1 else "another process"
    with pytest.raises(ValueError, match=text):
        sharded_compat_loss(rows, shard, labels, **options)
    options |= {"margin": 0.1, "margin_type": "arcface", "normalize": False}
    with pytest.raises(ValueError, match="needs normalize"):
        sharded_compat_loss(rows, shard, labels, **options)


def check_refused_derivatives(group: dist.ProcessGroup, rank: int, size: int) -> None:
    """Those that one process refuses, too: they would come out wrong."""
    begin, end = row_range(5, rank, size)
    x = _random(2, DIM, seed=15, dtype=torch.float64).requires_grad_()
    shard = _random(5, DIM, seed=16, dtype=torch.float64)[begin:end].requires_grad_()
    y = torch.arange(2)
    begun = {"first": begin, "group": group}
    sets = (torch.arange(6), torch.zeros(5, dtype=torch.int64), torch.zeros(5).double())
    bank = torch.ones(1, DIM).double()

    def loss(rows: Tensor, **options: object) -> Tensor:
        return sharded_compat_loss(rows, shard, y, num_classes=5, **begun, **options)

    def logsumexp(rows: Tensor, scale: object = 2.0) -> Tensor:
        return logsumexp_over_shards(rows, shard, scale=scale, **begun).sum()

    def positives(rows: Tensor, scale: object = 2.0) -> Tensor:
        return positives_over_shards(rows, bank, y, sets, group=group, scale=scale).sum()

    learned = torch.tensor(0.5, requires_grad=True)
    for function in (loss, logsumexp, positives):
        with pytest.raises(ValueError, match="scale: expected a constant"):
            function(x, scale=learned)
        with torch.no_grad():
            function(x, scale=learned)
        # Neither the rows nor what comes in is all that a gradient depends on.
        gradient = torch.autograd.grad(function(x), x, create_graph=True)[0]
        with pytest.raises(RuntimeError, match="_over_shards: double backward is not supported"):
            gradient.square().sum().backward()
        with pytest.raises((RuntimeError, NotImplementedError), match=r"jvp|setup_context"):
            torch.func.jvp(function, (x.detach(),), (x.detach(),))
    for function in (loss, logsumexp):
        gradient = torch.autograd.grad(function(x), shard, create_graph=True)[0]
        with pytest.raises(RuntimeError, match=r"double backward is not|once_differentiable"):
            gradient.square().sum().backward()
    for name in ("margin", "label_smoothing"):
        with pytest.raises(ValueError, match=f"{name}: expected a constant"):
            loss(x, **{name: learned})
    for name, constants in (
        ("rows", (x, y, sets)),
        ("log_weights", (bank, y, (*sets[:2], learned))),
    ):
        with pytest.raises(ValueError, match=rf"{name}: expected a constant.*detach\(\)"):
            positives_over_shards(x, *constants, group=group, scale=2.0)


def check_second_derivatives_of_what_is_linear(
    group: dist.ProcessGroup,
    rank: int,  # noqa: ARG001
    size: int,
) -> None:
    x = _random(2, DIM, seed=17, dtype=torch.float64).requires_grad_()
    factor = _random(2 * size, DIM, seed=18, dtype=torch.float64)
    # Constant, as the true one is: a penalty on it beside x has the gradient of x alone.
    gradient = torch.autograd.grad((factor * gather_rows(x, group)).sum(), x, create_graph=True)[0]
    (second,) = torch.autograd.grad((gradient * x).sum(), x)
    _close(second, gradient.detach(), torch.float64, f"of a linear function on {size}")
    gradient = torch.autograd.grad(gather_rows(x, group).square().sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for size in range(1, dist.get_world_size() + 1):
        group = dist.new_group(list(range(size)))
        if rank < size:
            for name, check in list(globals().items()):
                if name.startswith("check_"):
                    check(group, rank, size)
                    if rank == 0:
                        print(name, size, flush=True)
    dist.barrier()
    leave_world()


if __name__ == "__main__":
    sys.exit(main())
