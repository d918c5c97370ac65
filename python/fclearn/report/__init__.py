# SPDX-License-Identifier: Apache-2.0
"""The report of an upgrade as one self-contained page, pictures and JSON."""

from __future__ import annotations

from fclearn.report.examples import Hit, RetrievalExample, make_examples, pick_examples
from fclearn.report.writer import rebuild_report, write_report

__all__ = [
    "Hit",
    "RetrievalExample",
    "make_examples",
    "pick_examples",
    "rebuild_report",
    "write_report",
]
