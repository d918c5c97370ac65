# SPDX-License-Identifier: Apache-2.0
"""Shape inference refuses what the operators refuse, in the same words.

A graph that torch.compile has traced would otherwise fail only when it runs, far from the call.
What depends on values (a label, a column) is for the kernels alone: tests of each operator.
"""

from __future__ import annotations

import pytest
import torch
from refused_calls import REFUSED, TOGETHER, Arguments, Change, arguments_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import fcl_ext  # noqa: F401  (loads the operators)

CASES = [(op, [change]) for op, changes in REFUSED.items() for change in changes] + TOGETHER


def _refusal(op: str, arguments: Arguments) -> str:
    with pytest.raises(RuntimeError) as caught:
        getattr(torch.ops.fcl, op)(**arguments)
    return str(caught.value)


def _faked(mode: FakeTensorMode, arguments: Arguments) -> Arguments:
    return {
        name: mode.from_tensor(value) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }


def _named(case: tuple[str, list[Change]]) -> str:
    op, changes = case
    return f"{op}-{'-'.join(name for name, _ in changes)}"


@pytest.mark.parametrize(("op", "changes"), CASES, ids=map(_named, CASES))
def test_refusals_are_those_of_the_operator(op, changes):
    arguments = arguments_of(op)
    for name, change in changes:
        arguments[name] = change(arguments[name])
    expected = _refusal(op, arguments)
    assert expected.startswith(f"fcl::{op}: ")
    with FakeTensorMode() as mode:
        assert _refusal(op, _faked(mode, arguments)) == expected


@pytest.mark.parametrize("op", REFUSED)
def test_the_unchanged_call_is_not_refused(op):
    arguments = arguments_of(op)
    getattr(torch.ops.fcl, op)(**arguments)
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        getattr(torch.ops.fcl, op)(**_faked(mode, arguments))


@pytest.mark.parametrize("op", REFUSED)
def test_tensors_of_another_device_are_refused(op):
    """By shape inference, which needs no such device; check_same_device does it for the kernels."""
    arguments = arguments_of(op)
    if op == "softmax_readout":
        arguments["values"] = arguments["prototypes"].clone()
    _, *others = [name for name, value in arguments.items() if isinstance(value, Tensor)]
    for name in others:
        with FakeTensorMode(shape_env=ShapeEnv()) as mode:
            faked = _faked(mode, arguments)
            if name == "prototypes" and "packed" in faked:  # which a GPU's kernels refuse first
                faked |= {"packed": None, "squared_norms": None}
            faked[name] = torch.empty_like(faked[name], device="cuda")
            assert _refusal(op, faked) == (
                f"fcl::{op}: expected {name} on the same device as the other tensors"
            )


def test_packed_prototypes_logits_and_sets_are_for_the_cpu():
    with FakeTensorMode():
        for op in ("compat_loss", "softmax_readout"):
            with torch.device("cuda"):
                arguments = arguments_of(op)
            text = f"fcl::{op}: prototypes are packed on the CPU only"
            assert _refusal(op, arguments) == text
        for op in ("compat_loss", "compat_loss_backward"):
            with torch.device("cuda"):
                arguments = arguments_of(op)
            arguments |= {"packed": None, "squared_norms": None} if op == "compat_loss" else {}
            text = f"fcl::{op}: logits are kept on the CPU and in float32 only"
            assert _refusal(op, arguments) == text
        for op in ("softmax_readout", "softmax_readout_backward"):
            with torch.device("cuda"):
                arguments = arguments_of(op)
            arguments |= {"packed": None, "squared_norms": None} if "packed" in arguments else {}
            text = f"fcl::{op}: sets of classes are left out on the CPU only"
            assert _refusal(op, arguments) == text
