# SPDX-License-Identifier: Apache-2.0
"""Many processes under torchrun: losses over sharded classes, training, and jobs in shards."""

from __future__ import annotations

from fclearn.distributed.collectives import gather_rows
from fclearn.distributed.losses import sharded_compat_loss
from fclearn.distributed.readout import (
    logsumexp_over_shards,
    positives_over_shards,
    rows_of_shards,
    sum_over_shards,
)
from fclearn.distributed.sharding import row_range, sharded, whole
from fclearn.distributed.terms import shard_terms
from fclearn.distributed.world import World, joined_world, leave_world, single_process

__all__ = [
    "World",
    "gather_rows",
    "joined_world",
    "leave_world",
    "logsumexp_over_shards",
    "positives_over_shards",
    "row_range",
    "rows_of_shards",
    "shard_terms",
    "sharded",
    "sharded_compat_loss",
    "single_process",
    "sum_over_shards",
    "whole",
]
