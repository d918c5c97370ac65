# SPDX-License-Identifier: Apache-2.0
"""Joining and parting: nothing of a group is left to do when its processes end."""

from __future__ import annotations

import weakref

import pytest
import torch
import torch.distributed as dist

from fclearn.distributed import gather_rows, joined_world, leave_world, single_process


def test_no_thread_holds_a_tensor_after_parting():
    """One that did would take the interpreter's lock at any time, and abort while it shuts down."""
    with single_process() as group:
        rows = torch.ones(2_000_000)
        alive = weakref.ref(rows)
        outs = [torch.empty_like(rows)]
        # Not waited for: as a thread that is behind with what was waited for.
        dist.all_gather(outs, rows, group=group, async_op=True)
        del rows, outs
    # The group, like its threads, is held on to here, as DTensor's caches hold one.
    assert alive() is None


def test_groups_are_parted_from_after_an_error_too():
    with pytest.raises(IndexError), single_process() as group:
        gather_rows(torch.ones(()), group)
    assert not dist.is_initialized()


def test_a_second_group_is_refused():
    with (
        single_process(),
        pytest.raises(ValueError, match="has joined others already"),
        single_process(),
    ):
        pass


def test_joining_needs_torchrun(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="expected to be started by torchrun"), joined_world():
        pass


def test_leaving_needs_a_group():
    with pytest.raises(ValueError, match="has joined no others"):
        leave_world()
