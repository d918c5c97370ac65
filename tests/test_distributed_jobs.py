# SPDX-License-Identifier: Apache-2.0
"""Embedding, graphs, walks and evaluation by several processes: what one process makes."""

from __future__ import annotations

import pytest
from torchrun import TESTS, torchrun


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    return torchrun(3, TESTS / "distributed_jobs.py", folder).stdout.splitlines()


@pytest.mark.parametrize(
    "check", ["shard_files", "embed", "graph", "walk", "evaluation", "evaluation_goes_on"]
)
def test_equal_to_one_process(checked, check):
    assert f"check_{check}" in checked
