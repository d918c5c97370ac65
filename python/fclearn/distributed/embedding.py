# SPDX-License-Identifier: Apache-2.0
"""Embedding by several processes: the store that one process writes, to the last bit."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import nn

from fclearn.distributed.shard_files import Arrays, ShardFiles, pieces
from fclearn.distributed.world import World
from fclearn.embedding import Images, check_embedding, embed_batches, embedding_source, manifest_of
from fclearn.features import FeatureStore, FeatureWriter, Fingerprint

#: Images of a piece, rounded up to whole batches.
PIECE_ROWS = 16384


def embed_by_all(
    encoder: nn.Module,
    dataset: Images,
    store_path: Path,
    *,
    fingerprint: Fingerprint,
    world: World,
    batch_size: int = 256,
    normalize: bool = True,
    dtype: DTypeLike = "float32",
    piece_rows: int = PIECE_ROWS,
) -> FeatureStore:
    """`fclearn.embedding.embed` by all processes of a torchrun.

    Batches are those of one process, so features are, too (on the same kind of machine). Memory per
    process: the encoder, a batch, and ``piece_rows`` rows.

    Args:
        encoder: As `embed`, also the following; the same on every process.
        dataset: The same on every process.
        store_path: On a disk that all processes see; pieces are kept beside it until the end.
        fingerprint: What to record.
        world: Processes.
        batch_size: Images per forward pass.
        normalize: Scale rows to unit length.
        dtype: Of the stored features.
        piece_rows: Images of a piece, at least 1.

    Returns:
        The finished store, on every process.

    Raises:
        ValueError: As `embed`; pieces of another run.
        OSError: The store cannot be written.
        TypeError: As `embed`.
    """
    check_embedding(batch_size, fingerprint, normalize=normalize)
    num_images = len(dataset.ids)
    source = embedding_source(encoder, dataset, normalize)
    width = -(-piece_rows // batch_size) * batch_size
    key = {"source": source, "batch_size": batch_size, **fingerprint.to_dict()}
    files = ShardFiles(store_path, key, pieces(num_images, width), world)

    def work(begin: int, end: int) -> Arrays:
        out = np.empty((end - begin, fingerprint.dim), np.float32)
        batches = [(begin + a, begin + b) for a, b in pieces(end - begin, batch_size)]
        running = embed_batches(
            encoder, dataset, batches, fingerprint.dim, normalize=normalize, device=world.device
        )
        with closing(running):
            for first, last, rows in running:
                out[first - begin : last - begin] = rows.cpu().numpy()
        return {"features": out}

    files.run(work)
    if world.is_first:
        writer = FeatureWriter(store_path, num_images, fingerprint.dim, dtype, fingerprint, source)
        for begin, _, arrays in files.read():
            writer.write(begin, torch.from_numpy(arrays["features"]))
        writer.finish(manifest_of(dataset))
    files.remove()
    return FeatureStore.open(store_path)
