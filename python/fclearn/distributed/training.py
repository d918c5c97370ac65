# SPDX-License-Identifier: Apache-2.0
"""The trainer of one process, by several: DistributedDataParallel and sharded classifiers."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from fclearn._checkpoint import RunKey, data_key
from fclearn._optimization import make_optimizer
from fclearn.augmentation import augment_drawings
from fclearn.datasets import LabelledSet
from fclearn.distributed.checkpoint import (
    fill_optimizer,
    load_sharded,
    load_tensors,
    save_sharded,
    training_tensors,
)
from fclearn.distributed.collectives import total
from fclearn.distributed.objective import Objective
from fclearn.distributed.sharding import local
from fclearn.distributed.terms import ShardedCosineClassifierLoss, ShardedTerm, shard_terms
from fclearn.distributed.world import World
from fclearn.losses import LossTerm
from fclearn.training import SHARDED_CHECKPOINTS, TrainConfig, Trainer

# Old features are buffers, too: as large as the training set, and the same everywhere. torch 2.13
# renamed the option, and warns of the name that 2.10 has.
_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


class DistributedTrainer(Trainer):
    """`fclearn.Trainer` by all processes of a torchrun, each on its part of every batch.

    Batches, their order and the learning rate are those of one process, so that the result is, to
    rounding, as far as nothing is random or looks at a part of a batch alone: augmentation and
    dropout draw other numbers, and batch norm sees the images of its own process (on GPUs it is
    converted to see all; on the CPU its running statistics are averaged after each epoch).
    Classifiers of the terms in `fclearn.distributed.terms` are spread by class over the processes.

    A run killed at any instant goes on from the last whole epoch when the same command is given, or
    torchrun starts it again (``--max-restarts``), and ends as if it had not been killed. The number
    of processes may change in between; numbers that are drawn change with it.

    Args:
        encoder: As `Trainer`, also the following; the same on every process.
        losses: Those of one process, the same on every process.
        dataset: The same on every process.
        config: ``batch_size`` is that of all processes together.
        world: Processes.
        output_dir: As `Trainer`, on a disk that all processes see.
        augment: As `Trainer`.
        progress: As `Trainer`; the first process shows it.
        log: As `Trainer`; the first process calls it, with the loss of its own images.

    Raises:
        ValueError: As `Trainer`; a batch that does not divide by the processes and ``accumulate``.
    """

    def __init__(
        self,
        encoder: nn.Module,
        losses: Sequence[LossTerm],
        dataset: LabelledSet,
        config: TrainConfig,
        *,
        world: World,
        output_dir: str | os.PathLike[str] | None = None,
        augment: Callable[[Tensor, torch.Generator], Tensor] = augment_drawings,
        progress: bool = True,
        log: Callable[[str], None] | None = None,
    ) -> None:
        parts = world.size * config.accumulate
        if config.batch_size % parts:
            raise ValueError(
                f"batch_size: expected a multiple of the {world.size} processes times accumulate="
                f"{config.accumulate}, got {config.batch_size}"
            )
        self._world = world
        if world.device.type == "cuda" and world.size > 1:
            encoder = nn.SyncBatchNorm.convert_sync_batchnorm(encoder, world.group)
        super().__init__(
            encoder,
            losses,
            dataset,
            config,
            output_dir=output_dir,
            device=world.device,
            augment=augment,
            progress=progress and world.is_first,
            log=log if world.is_first else None,
        )
        whole = {
            number: term
            for number, term in enumerate(self.losses)
            if not isinstance(term.module, ShardedTerm)
        }
        self._objective = Objective(self.encoder, whole, self._embed, world.group, config.seed)
        buffers: dict[str, Any] = {_SYNC_BUFFERS: False}
        self._parallel = DistributedDataParallel(
            self._objective,
            device_ids=[world.device] if world.device.type == "cuda" else None,
            process_group=world.group,
            **buffers,
        )

    def _placed(self, losses: Sequence[LossTerm]) -> list[LossTerm]:
        return shard_terms(losses, self._world.group, self._world.device)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        parameters = [p for p in self._modules.parameters() if p.requires_grad]
        optimizer = make_optimizer((p for p in parameters if not _is_sharded(p)), self.config)
        spread = [p for p in parameters if _is_sharded(p)]
        if spread:
            # Apart: torch updates the parameters of a group together, which must be of one kind.
            optimizer.add_param_group({"params": spread})
        return optimizer

    def _own_part(self, batch: Tensor) -> Tensor:
        return batch.chunk(self._world.size)[self._world.rank]

    def _values(self, images: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        embeddings, whole = self._parallel(images, labels, rows)
        return embeddings, [
            whole[number] if number in whole else term.value(embeddings, labels, rows, images)
            for number, term in enumerate(self.losses)
        ]

    def _gradients_wait(self, wait: bool) -> AbstractContextManager[None]:
        if not wait:
            return nullcontext()
        return cast("AbstractContextManager[None]", self._parallel.no_sync())

    def _check_loss(self, loss: Tensor) -> None:
        """Left to the norm of the gradient: that is the same on every process, so all raise."""

    @torch.no_grad()
    def _clip(self) -> Tensor:
        parameters = [p for p in self._modules.parameters() if p.grad is not None]
        whole = [p for p in parameters if not _is_sharded(p)]
        spread = [p for p in parameters if _is_sharded(p)]
        own = [local(cast("Tensor", p.grad)) for p in spread]
        for grad in own:
            # Of the sum over processes so far; that of whole parameters is averaged by DDP.
            grad.div_(self._world.size)
        squared = _squared_norm([cast("Tensor", p.grad) for p in whole], self.device)
        squared = squared + total(_squared_norm(own, self.device), self._world.group)
        norm = squared.sqrt().to(torch.float32)
        most = self.config.max_grad_norm or math.inf
        for group in (whole, spread):
            nn.utils.clip_grads_with_norm_(group, most, norm)
        return norm

    def classifier(self) -> Tensor | None:
        """As `Trainer.classifier`, gathered from all processes."""
        rows = super().classifier()
        return rows.full_tensor() if isinstance(rows, DTensor) else rows

    def _num_correct(self, embeddings: Tensor, labels: Tensor) -> float:
        for term in self.losses:
            if term.name == "new" and isinstance(term.module, ShardedCosineClassifierLoss):
                return term.module.num_correct(embeddings, labels)
        return super()._num_correct(embeddings, labels)

    def _total(self, sums: dict[str, float]) -> dict[str, float]:
        values = torch.tensor(list(sums.values()), dtype=torch.float64, device=self.device)
        summed = dict(zip(sums, total(values, self._world.group).tolist(), strict=True))
        share = self._world.size
        # Losses are means over the images of a process, correct answers are counted.
        return {key: x if key == "correct" else x / share for key, x in summed.items()}

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        self._objective.on_epoch(self._epoch)
        with super()._own_randomness():
            if self._world.size > 1:
                # Dropout and augmentation of other images are other draws. They depend on the
                # epoch alone, so that a repeated epoch repeats them.
                own = self._world.rank + self._world.size * (self.config.seed + self._epoch * 7919)
                torch.manual_seed(own)
                self._drawing = torch.Generator().manual_seed(own)
            yield
        self._average_statistics()

    def _average_statistics(self) -> None:
        """Running statistics of batch norm, which each process has of its own images."""
        for buffer in self.encoder.buffers():
            if buffer.is_floating_point():
                buffer.copy_(total(buffer, self._world.group) / self._world.size)

    _kept = SHARDED_CHECKPOINTS

    def _interruptible(self) -> AbstractContextManager[Callable[[], bool]]:
        # torchrun passes Ctrl-C on to all: a process that finished its step would wait for others.
        return nullcontext(lambda: False)

    def _save(self, folder: Path) -> None:
        if self._world.is_first:
            self._write_history(folder)
        save_sharded(
            folder / SHARDED_CHECKPOINTS,
            self._epoch,
            training_tensors(self._modules, self._optimizer),
            {
                "config": asdict(self.config),
                "data": data_key(self.dataset),
                "terms": self._losses_key,
                "schedule": self._schedule.state_dict(),
                "generator": bytes(self._generator.get_state().tolist()).hex(),
                "epoch": self._epoch,
                "history": self.history,
            },
            self._world,
        )

    def _resume(self, folder: Path) -> None:
        if (folder / "checkpoint.pt").exists():
            raise ValueError(
                f"{folder}: holds a training by one process; resume it without torchrun, or use "
                "another output folder"
            )
        self._world.check_shared(folder)
        found = load_sharded(folder / SHARDED_CHECKPOINTS, self._world)
        if found is None:
            return
        path, facts = found
        try:
            before = RunKey(facts["config"], facts["data"], facts["terms"])
            generator = torch.tensor(list(bytes.fromhex(facts["generator"])), dtype=torch.uint8)
            schedule, epoch, history = facts["schedule"], int(facts["epoch"]), facts["history"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a checkpoint of this version ({error!r})") from error
        self._refuse_other_run(path, before)
        fill_optimizer(self._optimizer)
        load_tensors(path, training_tensors(self._modules, self._optimizer), self._world)
        self._schedule.load_state_dict(schedule)
        for group, rate in zip(
            self._optimizer.param_groups, self._schedule.get_last_lr(), strict=True
        ):
            group["lr"] = float(rate)
        self._generator.set_state(generator)
        self._epoch = epoch
        self._within_epoch = False
        self.history = history


def _is_sharded(parameter: Tensor) -> bool:
    return isinstance(parameter, DTensor)


def _squared_norm(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    squares = [tensor.double().square().sum() for tensor in tensors]
    nothing = torch.zeros((), dtype=torch.float64, device=device)
    return torch.stack([nothing, *squares]).sum()
