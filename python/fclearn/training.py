# SPDX-License-Identifier: Apache-2.0
"""Training any encoder on any list of loss terms: resumable, deterministic, stoppable."""

from __future__ import annotations

import csv
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from fclearn._checkpoint import (
    Checkpoint,
    RunKey,
    data_key,
    load_checkpoint,
    refuse_other_run,
    save_checkpoint,
)
from fclearn._files import replacing
from fclearn._interaction import ProgressLines, epoch_bar, interruptible
from fclearn._losses_key import losses_key
from fclearn._nearest import nearest_prototype
from fclearn._optimization import TrainConfig, make_optimizer, make_schedule
from fclearn._row_tables import check_terms
from fclearn.augmentation import augment_drawings
from fclearn.datasets import LabelledSet
from fclearn.losses import EpochHook, LossTerm

__all__ = ["HISTORY_COLUMNS", "DivergenceError", "TrainConfig", "Trainer"]

HISTORY_COLUMNS = (
    "epoch",
    "step",
    "loss",
    "loss_new",
    "loss_compat",
    "lr",
    "accuracy",
    "images_per_second",
    "seconds",
)

_CHECKPOINT = "checkpoint.pt"
#: Folder with the checkpoints of a training by several processes.
SHARDED_CHECKPOINTS = "checkpoints"


class DivergenceError(RuntimeError):
    """The loss became NaN or infinite; the last good checkpoint is kept."""


class Trainer:
    """Trains an encoder on loss terms; one call of `fit` runs, or resumes, the whole training.

    Args:
        encoder: Any module from images ``(B, C, H, W)`` to embeddings ``(B, D)``.
        losses: Summands of the loss.
        dataset: Training images, or features in their place; labels 0 .. C - 1.
        config: Hyper-parameters.
        output_dir: Folder of ``checkpoint.pt`` and ``history.csv``; None: nothing is written.
        device: Where to train.
        augment: Batch of images and a generator to a batch of images; the default suits drawings.
            One that changes the size of images needs ``clean_share=0``.
        progress: Show a progress bar on stderr, if it is a terminal.
        log: Gets a line with step, loss and time left after the first epoch, then at most every
            30 seconds: for where no terminal shows a bar. None: nothing does.

    Raises:
        TypeError: A dataset of another kind.
        ValueError: No losses, losses made for other images than those of the dataset or with a
            tensor that cannot be read (a lazy parameter), fewer images than a batch has.

    Example:
        >>> import numpy as np
        >>> from fclearn.datasets import ImageDataset
        >>> from fclearn.encoders import SmallCnn
        >>> from fclearn.losses import CosineClassifierLoss, LossTerm
        >>> images = np.random.default_rng(0).integers(0, 255, (8, 16, 16), dtype=np.uint8)
        >>> data = ImageDataset(images, np.arange(8) % 2, ids=list("abcdefgh"),
        ...                     class_names=["x", "y"])
        >>> trainer = Trainer(SmallCnn(4, width=4),
        ...     [LossTerm("new", 1.0, CosineClassifierLoss(2, 4))], data,
        ...     TrainConfig(epochs=2, batch_size=4))
        >>> history = trainer.fit()
        >>> [row["epoch"] for row in history]
        [1, 2]
    """

    def __init__(
        self,
        encoder: nn.Module,
        losses: Sequence[LossTerm],
        dataset: LabelledSet,
        config: TrainConfig,
        *,
        output_dir: str | os.PathLike[str] | None = None,
        device: str | torch.device = "cpu",
        augment: Callable[[Tensor, torch.Generator], Tensor] = augment_drawings,
        progress: bool = True,
        log: Callable[[str], None] | None = None,
    ) -> None:
        if not losses:
            raise ValueError("losses: expected at least one term")
        if not isinstance(dataset, LabelledSet):
            raise TypeError(
                f"dataset: expected a fclearn.datasets.LabelledSet, got {type(dataset).__name__}; "
                "of arrays make an ImageDataset(images, labels, ids, class_names=...), or a "
                "VectorDataset of features"
            )
        if len(dataset) < config.batch_size:
            raise ValueError(
                f"batch_size: expected at most the number of images ({len(dataset)}), "
                f"got {config.batch_size}"
            )
        check_terms(losses, torch.from_numpy(dataset.labels))
        self.device = torch.device(device)
        self.encoder = encoder.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        # As they are before training, which may change buffers and attributes of yours.
        self._losses_key = losses_key(losses)
        self.losses = self._placed(losses)
        self.dataset = dataset
        self.config = config
        self.output_dir = None if output_dir is None else Path(output_dir)
        self._augment = augment
        self._progress = progress
        self._log = log
        self._lines: ProgressLines | None = None
        self._modules = nn.ModuleDict({"encoder": self.encoder})
        for number, term in enumerate(self.losses):
            self._modules[f"loss{number}"] = term.module.to(self.device)
        self._steps_per_epoch = len(dataset) // config.batch_size
        self._optimizer = self._make_optimizer()
        self._schedule = make_schedule(self._optimizer, config, self._steps_per_epoch)
        self._generator = self._drawing = torch.Generator().manual_seed(config.seed)
        self._epoch = 0
        self._within_epoch = False
        self.history: list[dict[str, float]] = []

    def fit(self) -> list[dict[str, float]]:
        """Train until the last epoch, from the checkpoint in ``output_dir`` if there is one.

        Returns:
            One row per epoch with `HISTORY_COLUMNS`.

        Raises:
            DivergenceError: A loss or a gradient that is not finite.
            KeyboardInterrupt: Ctrl-C: the step is finished and the state as of the last whole epoch
                is in the checkpoint; call `fit` again to go on.
            ValueError: A checkpoint of another configuration, other images or other losses (other
                old features, too, or the losses of a training before, whose buffers it wrote), or a
                damaged one.
            OSError: The output folder cannot be written.
            RuntimeError: A second call after one that was stopped and left no checkpoint.
        """
        if self.output_dir is not None:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            # Tells now, not after an epoch, whether the folder can be written.
            with tempfile.TemporaryFile(dir=self.output_dir):
                pass
            self._resume(self.output_dir)
        if self._within_epoch:
            raise RuntimeError(
                f"fit: was stopped within epoch {self._epoch + 1}, and there is no checkpoint to "
                "go back to: make a new Trainer"
            )
        if self._log is not None:
            steps = self._steps_per_epoch
            self._lines = ProgressLines(
                self._log, epochs=self.config.epochs, steps=steps, done=self._epoch * steps
            )
        with (
            epoch_bar(self.config.epochs, wanted=self._progress) as advance,
            self._interruptible() as interrupted,
        ):
            advance(self._epoch, None)
            while self._epoch < self.config.epochs:
                with self._own_randomness():
                    self._run_epoch(interrupted)
                if self.output_dir is not None:
                    self._save(self.output_dir)
                advance(self._epoch, self.history[-1])
                if interrupted():
                    raise KeyboardInterrupt
        return self.history

    def classifier(self) -> Tensor | None:
        """Rows of the new model's own classifier, shape ``(C, D)``; None without one.

        Of a training by several processes, all must ask.
        """
        return self._own_rows()

    def _run_epoch(self, interrupted: Callable[[], bool]) -> None:
        self._within_epoch = True
        self._modules.train()
        for term in self.losses:
            if isinstance(term.module, EpochHook):
                term.module.on_epoch(self._epoch + 1, self.config.epochs)
        self.dataset.start_epoch(self._epoch)
        order = torch.randperm(len(self.dataset), generator=self._generator)
        labels = torch.from_numpy(self.dataset.labels)
        sums = {"loss": 0.0, "new": 0.0, "compat": 0.0, "correct": 0.0}
        count = 0
        start = time.perf_counter()
        batches = order[: self._steps_per_epoch * self.config.batch_size].view(
            self._steps_per_epoch, -1
        )
        for step, rows in enumerate(batches):
            if step + 1 < self._steps_per_epoch:
                self.dataset.prefetch(self._own_part(batches[step + 1]).numpy())
            own = self._own_part(rows)
            self._step(own.to(self.device), labels[own].to(self.device), sums)
            count += len(rows)
            if self._lines is not None:
                done = self._epoch * self._steps_per_epoch + step + 1
                self._lines.step(done, sums["loss"] / (step + 1))
            if interrupted() and step + 1 < self._steps_per_epoch:
                # A partial epoch is not kept: resuming repeats it from the checkpoint, and so
                # ends where an undisturbed run would.
                raise KeyboardInterrupt
        sums = self._total(sums)
        seconds = time.perf_counter() - start
        self._within_epoch = False
        self._epoch += 1
        steps = self._steps_per_epoch
        self.history.append(
            {
                "epoch": self._epoch,
                "step": self._epoch * steps,
                "loss": sums["loss"] / steps,
                "loss_new": sums["new"] / steps,
                "loss_compat": sums["compat"] / steps,
                "lr": float(self._schedule.get_last_lr()[0]),
                "accuracy": sums["correct"] / count,
                "images_per_second": count / seconds,
                "seconds": seconds,
            }
        )

    def _step(self, rows: Tensor, labels: Tensor, sums: dict[str, float]) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        parts = self.config.accumulate
        if len(rows) % parts:
            raise ValueError(
                f"accumulate: expected a divisor of the {len(rows)} images of a step, got {parts}"
            )
        seen: list[tuple[Tensor, Tensor]] = []
        for part, (some, classes) in enumerate(
            zip(rows.chunk(parts), labels.chunk(parts), strict=True)
        ):
            with self._gradients_wait(part + 1 < parts):
                embeddings, values = self._values(self._images(some), classes, some)
                loss = torch.stack(values).sum()
                self._check_loss(loss)
                (loss if parts == 1 else loss / parts).backward()
            sums["loss"] += float(loss.detach()) / parts
            for term, value in zip(self.losses, values, strict=True):
                name = "new" if term.name == "new" else "compat"
                sums[name] += float(value.detach()) / parts
            seen.append((embeddings.detach(), classes))
        # Such a step would spoil the weights, and the next checkpoint with them.
        self._check_finite("norm of the gradient", self._clip())
        self._optimizer.step()
        self._schedule.step()
        sums["correct"] += sum(self._num_correct(*some) for some in seen)

    def _images(self, rows: Tensor) -> Tensor:
        images = self.dataset.tensor(rows.cpu().numpy())
        if self.config.augment:
            images = self._augmented(images)
        return images.to(self.device, memory_format=torch.channels_last)

    def _embed(self, images: Tensor) -> Tensor:
        """Embeddings in float32."""
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"
        ):
            embeddings = self.encoder(images)
        out: Tensor = embeddings.float()
        return out

    # --- what is done otherwise by one process among several ---

    def _placed(self, losses: Sequence[LossTerm]) -> list[LossTerm]:
        """The terms as this process holds them."""
        return list(losses)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        return make_optimizer(self._modules.parameters(), self.config)

    def _values(self, images: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Embeddings, and each term's weighted value."""
        embeddings = self._embed(images)
        return embeddings, [term.value(embeddings, labels, rows, images) for term in self.losses]

    def _clip(self) -> Tensor:
        """Clip the gradients, and return their norm before."""
        return nn.utils.clip_grad_norm_(
            self._modules.parameters(), self.config.max_grad_norm or math.inf
        )

    def _check_loss(self, loss: Tensor) -> None:
        self._check_finite("loss", loss)

    def _own_part(self, batch: Tensor) -> Tensor:
        """Which images of a batch this process trains on."""
        return batch

    def _total(self, sums: dict[str, float]) -> dict[str, float]:
        """The sums of an epoch, over all images."""
        return sums

    def _gradients_wait(self, wait: bool) -> AbstractContextManager[None]:  # noqa: ARG002
        """While it lasts, with ``wait``, gradients add up and go nowhere."""
        return nullcontext()

    def _interruptible(self) -> AbstractContextManager[Callable[[], bool]]:
        return interruptible()

    def _augmented(self, images: Tensor) -> Tensor:
        changed = self._augment(images, self._drawing)
        if self.config.clean_share == 0:
            return changed
        if changed.shape != images.shape:
            raise ValueError(
                f"augment: makes {list(changed.shape)} of images {list(images.shape)}, which "
                "cannot be mixed with those left as they are; set clean_share=0"
            )
        clean = torch.rand(len(images), generator=self._drawing) < self.config.clean_share
        return torch.where(clean[:, None, None, None], images, changed)

    #: Where in the output folder checkpoints are.
    _kept = _CHECKPOINT

    def _check_finite(self, what: str, value: Tensor) -> None:
        if not torch.isfinite(value):
            kept = ""
            if self.output_dir is not None and self._epoch > 0:
                kept = f"epoch {self._epoch} is kept in {self.output_dir / self._kept}. "
            raise DivergenceError(
                f"the {what} is {float(value.detach())} in epoch {self._epoch + 1}, step "
                f"{self._schedule.last_epoch + 1}; {kept}Try a lower learning_rate, a longer "
                "warm-up, or precision float32"
            )

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        """Dropout and the like draw the same numbers in epoch n, resumed or not."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(1_000_003 * self.config.seed + self._epoch)
            yield

    def _num_correct(self, embeddings: Tensor, labels: Tensor) -> float:
        # Of the new model's own classifier, on the augmented images it has just seen.
        rows = self._own_rows()
        if rows is None:
            return math.nan
        return float((nearest_prototype(embeddings, rows).row == labels).sum())

    def _own_rows(self) -> Tensor | None:
        """Rows of the new model's own classifier, as this process holds them."""
        for term in self.losses:
            prototypes = getattr(term.module, "prototypes", None)
            if term.name == "new" and isinstance(prototypes, Tensor):
                return prototypes.detach()
        return None

    def _save(self, folder: Path) -> None:
        # The history goes first: a run killed between the two repeats the epoch and writes both
        # again, while one that has its last checkpoint writes nothing any more.
        self._write_history(folder)
        state = Checkpoint(
            config=asdict(self.config),
            data=data_key(self.dataset),
            terms=self._losses_key,
            modules=self._modules.state_dict(),
            optimizer=self._optimizer.state_dict(),
            schedule=self._schedule.state_dict(),
            generator=self._generator.get_state(),
            epoch=self._epoch,
            history=self.history,
        )
        save_checkpoint(folder / _CHECKPOINT, state)

    def _write_history(self, folder: Path) -> None:
        with (
            replacing(folder / "history.csv") as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, HISTORY_COLUMNS)
            writer.writeheader()
            writer.writerows(self.history)

    def _resume(self, folder: Path) -> None:
        path = folder / _CHECKPOINT
        if (folder / SHARDED_CHECKPOINTS).exists():
            raise ValueError(
                f"{folder}: holds a training by several processes; resume it under torchrun, or "
                "use another output folder"
            )
        if not path.is_file():
            return
        state = load_checkpoint(path, self.device)
        self._refuse_other_run(path, RunKey(state["config"], state["data"], state["terms"]))
        try:
            self._modules.load_state_dict(state["modules"])
            self._optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{path}: made with another encoder or other losses") from error
        self._schedule.load_state_dict(state["schedule"])
        self._generator.set_state(state["generator"].cpu())
        self._epoch = state["epoch"]
        self._within_epoch = False
        self.history = state["history"]

    def _refuse_other_run(self, path: Path, before: RunKey) -> None:
        now = RunKey(asdict(self.config), data_key(self.dataset), self._losses_key)
        refuse_other_run(path, before, now)
