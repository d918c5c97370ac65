# SPDX-License-Identifier: Apache-2.0
"""The state of a training by several processes: whole or absent, for any number of processes.

Tensors are written by `torch.distributed.checkpoint` as safetensors, each process its own part, and
everything else as JSON: nothing is ever unpickled. A checkpoint is a folder ``epoch-00003``, which
gets that name when it is whole.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from fclearn.distributed.world import World

_FACTS = "facts.json"
_NAME = re.compile(r"epoch-(\d{5,})")


def training_tensors(modules: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of modules and optimizer by name: what to save, and what to load into."""
    names = {parameter: name for name, parameter in modules.named_parameters()}
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in modules.state_dict(keep_vars=True).items():
        if id(value) not in seen:  # one that two modules share is saved once
            seen.add(id(value))
            tensors[f"modules.{name}"] = value.detach()
    held: Mapping[Any, Any] = optimizer.state
    for parameter, state in held.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{names[parameter]}.{key}"] = value
    return tensors


def fill_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Make the optimizer's tensors, which it does not have before its first step, for a load.

    That step has gradients of zero and a learning rate of zero: it changes no parameter.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def save_sharded(
    folder: Path, epoch: int, tensors: dict[str, Tensor], facts: Mapping[str, object], world: World
) -> None:
    """Write a checkpoint, each process its part, and then remove older ones.

    Args:
        folder: Of all checkpoints of the run, the same disk for all processes.
        epoch: Whole epochs done.
        tensors: As `training_tensors`.
        facts: Everything else; JSON values, those of the first process count.
        world: Processes.

    Raises:
        OSError: The folder cannot be written.
    """
    target = folder / f"epoch-{epoch:05d}"
    partial = target.with_suffix(".partial")
    if world.is_first:
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed here
        partial.mkdir(parents=True)
    world.barrier()
    try:
        save(
            # The format wants rows one after another, which those of channels-last images are not.
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            storage_writer=HuggingFaceStorageWriter(str(partial), save_distributed=True),
            process_group=world.group,
        )
    except CheckpointException as error:  # not an Exception
        raise OSError(f"{partial}: cannot be written ({_reason(error)})") from error
    if world.is_first:
        with (partial / _FACTS).open("w", encoding="utf-8") as file:
            json.dump(facts, file)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        for _, older in _finished(folder):
            if older != target:
                shutil.rmtree(older)
    world.barrier()


def load_sharded(folder: Path, world: World) -> tuple[Path, dict[str, Any]] | None:
    """Path and facts of the newest checkpoint, the same on every process; None: there is none.

    Raises:
        ValueError: A damaged one.
    """
    found = None
    if world.is_first:
        finished = _finished(folder)
        found = str(max(finished)[1]) if finished else None
    found = world.from_first(found)
    if found is None:
        return None
    path = Path(found)
    try:
        facts = json.loads((path / _FACTS).read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            raise TypeError(f"expected an object, got {type(facts).__name__}")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not a whole checkpoint ({error}); remove it") from error
    return path, facts


def load_tensors(path: Path, tensors: dict[str, Tensor], world: World) -> None:
    """Read the tensors of a checkpoint into those given, at any number of processes.

    Raises:
        ValueError: A damaged checkpoint, or one of other tensors.
    """
    # One that is contiguous is its own, and filled in place.
    read = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        load(
            read,
            storage_reader=HuggingFaceStorageReader(str(path)),
            process_group=world.group,
        )
    # A hostile file can fail in many ways inside torch.
    except (Exception, CheckpointException) as error:
        raise ValueError(
            f"{path}: damaged, or made with another encoder or other losses ({_reason(error)})"
        ) from error
    for name, tensor in tensors.items():
        if read[name] is not tensor:
            tensor.copy_(read[name])


def _reason(error: BaseException) -> str:
    """The end of a message, where torch puts what the process that failed said."""
    return " ".join(str(error).split())[-200:]


def _finished(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    named = [(path, _NAME.fullmatch(path.name)) for path in folder.iterdir()]
    return [(int(match[1]), path) for path, match in named if match]
