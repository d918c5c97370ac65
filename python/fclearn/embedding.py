# SPDX-License-Identifier: Apache-2.0
"""Embed a set of images into a feature store, resuming where a killed run stopped."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from torch import Tensor, nn

from fclearn.features import FeatureStore, FeatureWriter, Fingerprint


class Images(Protocol):
    """What `embed` needs of a set of images; `fclearn.datasets.ImageDataset` is one."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class per image, shape ``(N,)``, int64."""

    @property
    def ids(self) -> list[str]:
        """One distinct text per image."""

    @property
    def groups(self) -> NDArray[np.int64] | None:
        """Near-copies share one, shape ``(N,)``, int64."""

    @property
    def class_names(self) -> Sequence[str]:
        """Name of each label; may be empty."""

    def tensor(self, index: NDArray[np.int64], /) -> Tensor:
        """Images ``index``, shape ``(B, channels, H, W)``, float32 in [0, 1]."""


def embed(
    encoder: nn.Module,
    dataset: Images,
    store_path: str | os.PathLike[str],
    *,
    fingerprint: Fingerprint,
    batch_size: int = 256,
    normalize: bool = True,
    device: str | torch.device = "cpu",
    dtype: DTypeLike = "float32",
    progress: bool = True,
) -> FeatureStore:
    """Run an encoder over a dataset and store what it outputs.

    The encoder is moved to ``device``, runs in evaluation mode without gradients, and gets its
    training flags back. Finished batches are kept in ``<store_path>.partial``: after a kill, the
    same call goes on there, and ends with the same bytes as an uninterrupted run. A partial store
    of other weights, ids or settings is refused.

    Args:
        encoder: Maps float32 images ``(B, channels, H, W)`` in [0, 1] to ``(B, D)``, floating.
        dataset: An `ImageDataset`, or anything with its labels, ids, groups, class names and
            ``tensor(index)``; if it has ``prefetch(index)``, that is called a batch ahead, and if
            it has ``files``, a path per image or None, the store notes them.
        store_path: Folder of the store; a store already there is replaced at the end.
        fingerprint: What to record; ``dim`` is ``D``, ``norm`` is ``"l2"`` if ``normalize``.
        batch_size: Images per forward pass, at least 1.
        normalize: Scale rows to unit length; rows of zeros stay zero.
        device: Where the encoder runs.
        dtype: Of the stored features, ``float32`` or ``float16``.
        progress: Show a bar with rate and remaining time on stderr, if that is a terminal.

    Returns:
        The finished store, with columns ``id``, ``label``, and where the dataset has them
        ``group``, ``class_name`` and ``path``: absolute, so that reports find the pictures wherever
        the store is.

    Raises:
        OSError: The store cannot be written.
        TypeError: The encoder returns something other than a floating tensor.
        ValueError: The encoder returns another shape or a non-finite number, arguments that do
            not agree, or a partial store begun with others.

    Example:
        >>> from types import SimpleNamespace
        >>> data = SimpleNamespace(ids=["a", "b", "c"], labels=np.array([0, 1, 1]), groups=None,
        ...                        class_names=["cat", "dog"],
        ...                        tensor=lambda rows: torch.ones(len(rows), 1, 2, 2))
        >>> store = embed(nn.Flatten(), data, "new", fingerprint=Fingerprint("pixels", 4))
        >>> store.features[0].tolist(), store.ids
        ([0.5, 0.5, 0.5, 0.5], ['a', 'b', 'c'])
    """
    check_embedding(batch_size, fingerprint, normalize=normalize)
    num_images = len(dataset.ids)
    source = embedding_source(encoder, dataset, normalize)
    writer = FeatureWriter(store_path, num_images, fingerprint.dim, dtype, fingerprint, source)
    missing = writer.missing()
    done = num_images - sum(end - begin for begin, end in missing)
    batches = list(_batches(missing, batch_size))
    running = embed_batches(
        encoder, dataset, batches, fingerprint.dim, normalize=normalize, device=device
    )
    # Closed also where writing fails: that gives the encoder its training flags back.
    with _bar(progress) as bar, closing(running):
        task = bar.add_task("embed", total=num_images, completed=done)
        for begin, end, rows in running:
            writer.write(begin, rows)
            bar.advance(task, end - begin)
    return writer.finish(manifest_of(dataset))


def check_embedding(batch_size: int, fingerprint: Fingerprint, *, normalize: bool) -> None:
    """Refuse what does not go together.

    Raises:
        ValueError: A batch without images, or a fingerprint of other rows.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    if normalize and fingerprint.norm != "l2":
        raise ValueError(
            f"fingerprint: expected norm 'l2' as normalize is set, got {fingerprint.norm!r}"
        )


def embed_batches(
    encoder: nn.Module,
    dataset: Images,
    batches: Sequence[tuple[int, int]],
    dim: int,
    *,
    normalize: bool,
    device: str | torch.device,
) -> Generator[tuple[int, int, Tensor], None, None]:
    """Yield begin, end and rows ``(end - begin, dim)`` of ranges of images; close it when done.

    Args:
        encoder: As `embed`, also the following.
        dataset: Images.
        batches: Ranges, each of which is one forward pass.
        dim: Width that the encoder must have.
        normalize: Scale rows to unit length.
        device: Where the encoder runs.

    Raises:
        TypeError: As `embed`.
        ValueError: As `embed`.
    """
    encoder.to(device)
    prefetch = getattr(dataset, "prefetch", None)
    with _evaluating(encoder), torch.inference_mode():
        for number, (begin, end) in enumerate(batches):
            if prefetch is not None and number + 1 < len(batches):
                prefetch(np.arange(*batches[number + 1]))
            images = dataset.tensor(np.arange(begin, end)).to(device)
            rows = _check_output(encoder(images), dim, dataset.ids[begin:end])
            if normalize:
                rows = nn.functional.normalize(rows, dim=1)
            yield begin, end, rows


def _batches(missing: list[tuple[int, int]], batch_size: int) -> Iterator[tuple[int, int]]:
    """Ranges to run: the batches of an uninterrupted run, as far as they are missing."""
    for first, last in missing:
        begin = first
        while begin < last:
            # Up to the next multiple: other batches could differ in the last bit.
            end = min(last, (begin // batch_size + 1) * batch_size)
            yield begin, end
            begin = end


def _check_output(output: object, dim: int, ids: Sequence[str]) -> Tensor:
    if not isinstance(output, Tensor) or not output.is_floating_point():
        kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
        raise TypeError(f"encoder: expected a floating tensor as output, got {kind}")
    if output.shape != (len(ids), dim):
        raise ValueError(
            f"encoder: expected output of shape [{len(ids)}, {dim}] (the fingerprint's dim), got "
            f"{list(output.shape)}"
        )
    rows = output.float()
    bad = (~rows.isfinite()).any(1).nonzero()
    if len(bad):
        raise ValueError(
            f"encoder: expected finite numbers, got a NaN or infinity for image "
            f"{ids[int(bad[0])]!r}"
        )
    return rows


def manifest_of(dataset: Images) -> dict[str, Sequence[str] | NDArray[np.int64]]:
    """The columns of a store of these images."""
    manifest: dict[str, Sequence[str] | NDArray[np.int64]] = {
        "id": dataset.ids,
        "label": dataset.labels,
    }
    if dataset.groups is not None:
        manifest["group"] = dataset.groups
    if len(dataset.class_names):
        manifest["class_name"] = [dataset.class_names[label] for label in dataset.labels]
    files = getattr(dataset, "files", None)
    if files is not None:
        # From the root: stores are moved and copied more often than what they were made of.
        manifest["path"] = [str(Path(file).absolute()) for file in files]
    return manifest


def embedding_source(encoder: nn.Module, dataset: Images, normalize: bool) -> str:
    """Hash of the weights, the ids and the treatment: half of one run never joins another's."""
    digest = hashlib.blake2b(repr((normalize, dataset.ids)).encode(), digest_size=16)
    for name, value in encoder.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _evaluating(encoder: nn.Module) -> Iterator[None]:
    """Evaluation mode for the block; each module's own flag returns, as some may be frozen."""
    flags = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


class _Rate(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        """The rate so far, as text."""
        return Text("" if task.speed is None else f"{task.speed:,.0f} images/s")


def _bar(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not (shown and sys.stderr.isatty()),
    )
