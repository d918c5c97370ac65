# SPDX-License-Identifier: Apache-2.0
"""Tables that loss modules look up by row of the training set: which rows, and whose."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_samples import make_trainer

from fclearn.distributed import shard_terms, single_process
from fclearn.distributed.terms import ShardedDistillCompatLoss, ShardedPseudoClassifierLoss
from fclearn.graph import KnnGraph
from fclearn.integrations import CompatTerms
from fclearn.losses import (
    DistillCompatLoss,
    L2CompatLoss,
    LossModule,
    LossTerm,
    PseudoClassifierLoss,
)
from fclearn.methods.adv_bct import OldOrNewLoss
from fclearn.methods.aml import AsymmetricMetricLoss
from fclearn.methods.bt2 import RotatedCosineLoss
from fclearn.methods.hot_refresh import RegressionAlleviatingLoss
from fclearn.methods.mix_bct import MixedClassifierLoss
from fclearn.methods.nccl import NeighbourContrastLoss
from fclearn.methods.ni_fcl_scores import ScoreListLoss
from fclearn.methods.uni_bct import RefreshedPrototypeLoss

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS, CLASSES, DIM = 30, 5, 6
LABELS = torch.arange(ROWS) % CLASSES
OLD = F.normalize(torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(0)), dim=1)
HEAD = OLD[:CLASSES]
MODULES = {
    L2CompatLoss: lambda: L2CompatLoss(OLD),
    PseudoClassifierLoss: lambda: PseudoClassifierLoss(HEAD, soft_targets=OLD),
    DistillCompatLoss: lambda: DistillCompatLoss(HEAD, OLD),
    OldOrNewLoss: lambda: OldOrNewLoss(OLD, width=4),
    AsymmetricMetricLoss: lambda: AsymmetricMetricLoss(OLD, LABELS),
    RotatedCosineLoss: lambda: RotatedCosineLoss(OLD, DIM),
    RegressionAlleviatingLoss: lambda: RegressionAlleviatingLoss(OLD),
    MixedClassifierLoss: lambda: MixedClassifierLoss(OLD, LABELS),
    NeighbourContrastLoss: lambda: NeighbourContrastLoss(OLD, LABELS, LABELS >= 0),
    RefreshedPrototypeLoss: lambda: RefreshedPrototypeLoss(OLD, LABELS, k=3),
    ScoreListLoss: lambda: ScoreListLoss(KnnGraph.build(OLD, 4), DIM),
}
SHARDED = {
    ShardedPseudoClassifierLoss: MODULES[PseudoClassifierLoss],
    ShardedDistillCompatLoss: MODULES[DistillCompatLoss],
}


def of_the_library(base):
    for kind in base.__subclasses__():
        if kind.__module__.startswith("fclearn."):
            yield kind
        yield from of_the_library(kind)


def test_no_module_that_looks_up_rows_is_missing_here():
    assert {kind for kind in of_the_library(LossModule) if kind.by_row} == {*MODULES, *SHARDED}


def refuses_other_rows(module):
    embeddings, rows = torch.randn(ROWS, DIM), torch.arange(ROWS)
    module(embeddings, LABELS, rows)  # some remember what they have seen
    for of in (module.train(), module.eval()):
        before = {name: buffer.clone() for name, buffer in of.named_buffers()}
        for some, found in ((3, 1), (1, 3), (3, 2)):
            with pytest.raises(
                ValueError, match=rf"^rows: expected shape \[{some}\], one per em.*got \[{found}\]$"
            ):
                of(embeddings[:some], LABELS[:some], rows[:found])
        for name, buffer in of.named_buffers():
            assert torch.equal(buffer, before[name]), name


@pytest.mark.parametrize("kind", MODULES)
def test_other_rows_than_embeddings_are_refused(kind):
    refuses_other_rows(MODULES[kind]())


@pytest.mark.parametrize("kind", SHARDED)
def test_other_rows_than_embeddings_are_refused_in_shards(kind):
    with single_process() as group:
        (term,) = shard_terms([LossTerm("compat", 1.0, SHARDED[kind]())], group)
        assert type(term.module) is kind
        refuses_other_rows(term.module)


class Own(nn.Module):
    """Of somebody who knows nothing of ours, and says wrongly what it looks up."""

    def __init__(self, by_row):
        super().__init__()
        self.register_buffer("features", torch.zeros(ROWS, 2))
        self.scale, self.nothing, self.by_row = torch.tensor(2.0), None, by_row
        self.listed, self.array = [[0.0, 0.0]] * ROWS, np.zeros((ROWS, 2))


@pytest.mark.parametrize(
    ("by_row", "message"),
    [
        ("features", r"to be a tuple of names of its tensors, got 'features'$"),
        (None, r"to be a tuple of names of its tensors, got None$"),
        (("features", "feature"), r"to name tensors or arrays of its own, got 'feature'$"),
        (("scale",), r"to name .*, with a row per image, got 'scale', a Tensor of shape \[\]$"),
        (["forward"], r"to name .*, with a row per image, got 'forward', a method$"),
        (("array", "listed"), r"to name .*, with a row per image, got 'listed', a list$"),
        ((None,), r"to name tensors or arrays of its own, got None$"),
    ],
)
def test_what_names_no_tables_is_refused_by_name(by_row, message):
    # Also where it is a part of the term's module.
    for module in (Own(by_row), nn.Sequential(Own(()), Own(by_row))):
        with pytest.raises(ValueError, match=rf"^terms\[0\]: expected by_row of Own {message}"):
            CompatTerms([LossTerm("own", 1.0, module)], LABELS)


def test_the_trainer_says_so_too(bars):
    with pytest.raises(ValueError, match=r"^losses\[0\]: expected by_row of Own to be a tuple"):
        make_trainer(bars, losses=[LossTerm("own", 1.0, Own("features"))])


def test_tables_may_be_arrays(tmp_path):
    own = Own(("features", "array", "mapped"))
    for rows in (ROWS, ROWS + 1):
        np.save(tmp_path / "old.npy", np.zeros((rows, 2)))
        own.mapped = np.load(tmp_path / "old.npy", mmap_mode="r")
        terms = [LossTerm("own", 1.0, own)]
        if rows == ROWS:
            CompatTerms(terms, LABELS)
            continue
        message = rf"expected {ROWS} rows, as in labels, in the mapped of Own, got {rows}$"
        with pytest.raises(ValueError, match=message):
            CompatTerms(terms, LABELS)


def test_tables_may_be_absent():
    CompatTerms([LossTerm("own", 1.0, Own(("features", "nothing")))], LABELS)
