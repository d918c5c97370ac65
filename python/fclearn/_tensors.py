# SPDX-License-Identifier: Apache-2.0
"""Tensors into safetensors files, whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fclearn._files import replacing


def save_tensors(
    tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file in place of any other.

    Args:
        tensors: By name, contiguous.
        path: File to write. Its folder is made if needed.
        metadata: Of the header.

    Raises:
        OSError: The folder cannot be made or written, or the disk is full.

    Example:
        >>> import torch
        >>> from safetensors.torch import load_file
        >>> save_tensors({"rows": torch.eye(2)}, "rows.safetensors", {"format": "rows"})
        >>> load_file("rows.safetensors")["rows"].tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    with replacing(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=dict(metadata))
        except SafetensorError as error:
            # The library has the system's error in words only.
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
