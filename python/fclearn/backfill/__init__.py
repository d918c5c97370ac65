# SPDX-License-Identifier: Apache-2.0
"""Embedding a gallery anew in part: what first, what it gains, and how to serve it meanwhile."""

from __future__ import annotations

from fclearn.backfill.calibration import ScoreCalibration
from fclearn.backfill.curve import BackfillCurve, OrderCurve, backfill_curve
from fclearn.backfill.impostors import fit_calibration, impostor_scores
from fclearn.backfill.merging import merge_rankings
from fclearn.backfill.orders import BackfillOrder, backfill_order
from fclearn.backfill.priorities import ORDERS, OrderSpec
from fclearn.backfill.rerank import rerank_shortlist, two_stage_rerank
from fclearn.backfill.sample import MERGED, MIXED, MigrationSample
from fclearn.backfill.serving import (
    HALFWAY,
    ServedWay,
    ServingTable,
    compare_serving,
)
from fclearn.backfill.threshold import transfer_threshold_by_scores

__all__ = [
    "HALFWAY",
    "MERGED",
    "MIXED",
    "ORDERS",
    "BackfillCurve",
    "BackfillOrder",
    "MigrationSample",
    "OrderCurve",
    "OrderSpec",
    "ScoreCalibration",
    "ServedWay",
    "ServingTable",
    "backfill_curve",
    "backfill_order",
    "compare_serving",
    "fit_calibration",
    "impostor_scores",
    "merge_rankings",
    "rerank_shortlist",
    "transfer_threshold_by_scores",
    "two_stage_rerank",
]
