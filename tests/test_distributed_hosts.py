# SPDX-License-Identifier: Apache-2.0
"""Several hosts under torchrun: the result of one host, over a kill on another."""

from __future__ import annotations

import json

import pytest
from hosts import torchrun_on, two_hosts
from torchrun import TESTS, torchrun


@pytest.fixture(scope="module")
def hosts():
    with two_hosts() as both:
        yield both


def _assert_success(runs):
    for run in runs:
        assert run.returncode == 0, f"{run.stdout[-4000:]}\n{run.stderr[-8000:]}"


def test_training_over_hosts_and_a_kill_is_that_of_one_host(hosts, tmp_path):
    script = TESTS / "distributed_training.py"
    torchrun(2, script, tmp_path / "one")
    # The process that kills itself is on the second host.
    _assert_success(torchrun_on(hosts, 1, script, f"{tmp_path / 'two'},die=2", restarts=2))
    one, two = (json.loads((tmp_path / n / "result.json").read_text()) for n in ("one", "two"))
    assert one["weights"] == two["weights"]
    assert len(two["history"]) == 3


def test_jobs_over_hosts_are_those_of_one_process(hosts, tmp_path):
    runs = torchrun_on(hosts, 2, TESTS / "distributed_jobs.py", tmp_path)
    _assert_success(runs)
    checks = ["check_embed", "check_graph", "check_walk", "check_evaluation"]
    assert set(checks) <= set(runs[0].stdout.splitlines())


@pytest.mark.parametrize("script", ["distributed_training.py", "distributed_jobs.py"])
def test_hosts_with_disks_of_their_own_are_refused(hosts, tmp_path, script):
    for run in torchrun_on(hosts, 1, TESTS / script, tmp_path, own_disk=tmp_path):
        assert run.returncode != 0
        assert (
            "is not seen by [1]; all processes, on whichever host, must see the same" in run.stderr
        )
