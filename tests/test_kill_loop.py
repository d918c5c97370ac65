# SPDX-License-Identifier: Apache-2.0
"""A few kills of each resumable job (``tools/kill_loop.py`` does a hundred)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "kill_loop.py"


@pytest.mark.parametrize("name", ["train", "embed", "walk", "backfill"])
def test_killed_jobs_end_as_if_nothing_had_happened(name, tmp_path):
    # In a process of its own, for it forks; this one has threads.
    run = subprocess.run(
        [sys.executable, str(TOOL), "--kills", "5", "--only", name],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
            "TMPDIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert '"kills": 5' in run.stdout
