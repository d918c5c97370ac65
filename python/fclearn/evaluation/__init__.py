# SPDX-License-Identifier: Apache-2.0
"""How good a model is, and how compatible: exact streaming metrics and what follows from them."""

from __future__ import annotations

from fclearn.evaluation._points import OperatingPoint
from fclearn.evaluation._verdict import Verdict, metric_title
from fclearn.evaluation.ceiling import OracleGain, ceiling_means, judged_oracle_gain, oracle_gain
from fclearn.evaluation.chain import ChainReport, chain_report
from fclearn.evaluation.compatibility import compatibility_report
from fclearn.evaluation.hits import top_hits
from fclearn.evaluation.identification import IdentificationResult, evaluate_identification
from fclearn.evaluation.indexed import IndexedGallery
from fclearn.evaluation.matrix import CompatibilityReport
from fclearn.evaluation.metrics import METRIC_NAMES
from fclearn.evaluation.paired import PairedTest, paired_test
from fclearn.evaluation.protocols import revisited_protocol
from fclearn.evaluation.qrels import Qrels
from fclearn.evaluation.retrieval import RetrievalResult, evaluate_retrieval
from fclearn.evaluation.slices import Slice, worst_slices
from fclearn.evaluation.table import render_table
from fclearn.evaluation.transfer import (
    ThresholdRates,
    ThresholdTransfer,
    transfer_threshold_by_labels,
)
from fclearn.evaluation.verification import VerificationResult, evaluate_verification

__all__ = [
    "METRIC_NAMES",
    "ChainReport",
    "CompatibilityReport",
    "IdentificationResult",
    "IndexedGallery",
    "OperatingPoint",
    "OracleGain",
    "PairedTest",
    "Qrels",
    "RetrievalResult",
    "Slice",
    "ThresholdRates",
    "ThresholdTransfer",
    "Verdict",
    "VerificationResult",
    "ceiling_means",
    "chain_report",
    "compatibility_report",
    "evaluate_identification",
    "evaluate_retrieval",
    "evaluate_verification",
    "judged_oracle_gain",
    "metric_title",
    "oracle_gain",
    "paired_test",
    "render_table",
    "revisited_protocol",
    "top_hits",
    "transfer_threshold_by_labels",
    "worst_slices",
]
