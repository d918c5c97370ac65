# SPDX-License-Identifier: Apache-2.0
"""Devices by name."""

from __future__ import annotations

import torch


def choose_device(name: str) -> torch.device:
    """The device of a name; ``"auto"`` is a GPU if there is one.

    Args:
        name: As torch knows it, or ``"auto"``.

    Raises:
        ValueError: No such device here.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:1, got {name!r}") from error
    if device.type not in {"cpu", "cuda"}:
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:1, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device: torch sees {torch.cuda.device_count()} CUDA devices here, got {name!r}"
        )
    return device
