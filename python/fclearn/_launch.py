# SPDX-License-Identifier: Apache-2.0
"""Whether torchrun started this process, without waiting for torch."""

from __future__ import annotations

import os


def under_torchrun() -> bool:
    """Whether torchrun started this process.

    Example:
        >>> under_torchrun()
        False
    """
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def own_rank() -> int:
    """Number of this process among those of a torchrun; 0 without.

    Example:
        >>> own_rank()
        0
    """
    return int(os.environ["RANK"]) if under_torchrun() else 0
