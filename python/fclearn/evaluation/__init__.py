# SPDX-License-Identifier: Apache-2.0
"""How good a model is, and how compatible: exact streaming metrics and the 2x2 report."""

from __future__ import annotations

from fclearn.evaluation._metrics import METRIC_NAMES
from fclearn.evaluation._verdict import Verdict, metric_title
from fclearn.evaluation.ceiling import oracle_gain
from fclearn.evaluation.compatibility import CompatibilityReport, compatibility_report
from fclearn.evaluation.hits import top_hits
from fclearn.evaluation.retrieval import RetrievalResult, evaluate_retrieval
from fclearn.evaluation.table import render_table

__all__ = [
    "METRIC_NAMES",
    "CompatibilityReport",
    "RetrievalResult",
    "Verdict",
    "compatibility_report",
    "evaluate_retrieval",
    "metric_title",
    "oracle_gain",
    "render_table",
    "top_hits",
]
