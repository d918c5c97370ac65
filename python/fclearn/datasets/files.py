# SPDX-License-Identifier: Apache-2.0
"""Image files as one array of squares: in memory, or decoded when somebody asks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fclearn._files import reason
from fclearn.datasets.crops import Box, RandomCrops

#: Decoded images up to this size are kept in memory.
MEMORY_BYTES = 1 << 30
_MOST_BATCHES = 4


class FileImages:
    """Image files in the place of an array ``(N, size, size)`` or ``(N, size, size, 3)``, uint8.

    Every access decodes, on as many threads as there are cores (under torchrun, for each of the
    processes of this machine); `prefetch` starts that early.

    Args:
        files: One per image.
        size: Side in pixels.
        grey: One channel instead of three.
        short_side: The short side is scaled to it before the centre is cut out; None: to ``size``.
        crops: Random boxes in place of the centre, others in each epoch; None: the centre.

    Raises:
        ValueError: A size out of range; on access, an image that cannot be read.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        files: Sequence[Path],
        size: int,
        grey: bool,
        *,
        short_side: int | None = None,
        crops: RandomCrops | None = None,
    ) -> None:
        if not 8 <= size <= 1024:
            raise ValueError(f"size: expected 8 to 1024 pixels, got {size}")
        if short_side is not None and not size <= short_side <= 4096:
            raise ValueError(f"short_side: expected {size} (size) to 4096 pixels, got {short_side}")
        self._files = files
        self._size, self._grey = size, grey
        self._short_side = short_side or size
        self._crops = crops
        self._epoch = 0
        # Threads start with the first image, and end with the process or with this object.
        self._pool = ThreadPoolExecutor(_threads())
        self._pending: dict[int, Future[NDArray[np.uint8]]] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""
        square = (len(self._files), self._size, self._size)
        return square if self._grey else (*square, 3)

    @property
    def ndim(self) -> int:
        """3 for grey images, 4 for RGB."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Of all images, decoded."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        """Number of images."""
        return len(self._files)

    def prefetch(self, rows: NDArray[np.int64]) -> None:
        """Start to decode rows that will be asked for next."""
        if len(self._pending) > _MOST_BATCHES * len(rows):
            self._pending.clear()  # of a loop that was left half-way
        for row in rows.tolist():
            if row not in self._pending:
                self._pending[row] = self._pool.submit(self._read, row)

    def start_epoch(self, epoch: int) -> None:
        """From now on, crops are those of this epoch.

        Args:
            epoch: From 0.
        """
        if self._crops is not None and epoch != self._epoch:
            self._pending.clear()
        self._epoch = epoch

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images of some rows, decoded: shape ``(B, …)``."""
        wanted = rows.tolist()
        self.prefetch(rows)
        decoding = {row: self._pending.pop(row) for row in dict.fromkeys(wanted)}
        images = np.empty((len(wanted), *self.shape[1:]), np.uint8)
        for place, row in enumerate(wanted):
            images[place] = decoding[row].result()
        return images

    def take(self, rows: NDArray[np.int64]) -> FileImages:
        """The files of some rows, still not decoded."""
        return FileImages(
            [self._files[row] for row in rows.tolist()],
            self._size,
            self._grey,
            short_side=self._short_side,
            crops=self._crops,
        )

    def load(self) -> NDArray[np.uint8]:
        """All images, decoded."""
        images = np.empty(self.shape, np.uint8)
        step = 4096
        for begin in range(0, len(self), step):
            rows = np.arange(begin, min(begin + step, len(self)))
            images[rows] = self[rows]
        return images

    def _read(self, row: int) -> NDArray[np.uint8]:
        file = self._files[row]
        try:
            with Image.open(file) as opened:
                box, mirrored = None, False
                if self._crops is not None:
                    box, mirrored = self._crops.draw(opened.size, epoch=self._epoch, row=row)
                image = self._centre(opened) if box is None else self._crop(opened, box)
        except Exception as error:  # a hostile file can fail in many ways inside the decoders
            raise ValueError(f"image {file}: cannot be read: {reason(error)}") from error
        if mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(image)

    def _centre(self, opened: Image.Image) -> Image.Image:
        size, short = self._size, self._short_side
        # JPEGs are decoded at half, a quarter … of their size where that is enough.
        opened.draft(None, (2 * short, 2 * short))
        image = self._decoded(opened)
        scale = short / min(image.size)
        width, height = (max(short, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
        left, top = (width - size) // 2, (height - size) // 2
        return image.crop((left, top, left + size, top + size))

    def _crop(self, opened: Image.Image, box: Box) -> Image.Image:
        size, whole = self._size, opened.size
        enough = 2 * size / min(box[2] - box[0], box[3] - box[1])
        if enough < 1:
            opened.draft(None, (round(whole[0] * enough), round(whole[1] * enough)))
        image = self._decoded(opened)
        across, down = image.width / whole[0], image.height / whole[1]
        return image.resize(
            (size, size),
            Image.Resampling.BILINEAR,
            box=(box[0] * across, box[1] * down, box[2] * across, box[3] * down),
            reducing_gap=2.0,
        )

    def _decoded(self, opened: Image.Image) -> Image.Image:
        return opened.convert("L" if self._grey else "RGB")


def _threads() -> int:
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, (os.cpu_count() or 1) // beside)


def images_of(
    files: Sequence[Path],
    size: int,
    grey: bool,
    *,
    short_side: int | None = None,
    crops: RandomCrops | None = None,
) -> NDArray[np.uint8] | FileImages:
    """An array where all images fit into `MEMORY_BYTES` and stay as they are, else the files.

    Raises:
        ValueError: A size out of range; an image that cannot be read, where they are read now.
    """
    images = FileImages(files, size, grey, short_side=short_side, crops=crops)
    return images.load() if crops is None and images.nbytes <= MEMORY_BYTES else images
