# SPDX-License-Identifier: Apache-2.0
"""How exact the loss is at a million classes: float32 and bfloat16 against float64.

``python bench/accuracy.py --write bench/results/accuracy.json`` prints relative errors (2-norm over
rows) of loss and gradient, and fails where float32 misses 1e-6, or bfloat16 what torch's own
cross-entropy in bfloat16 reaches. Data: random unit rows, and rows that lean to their class as
after training (cosine 0.5 and 0.8).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

import fcl_ext

ROWS, BLOCK, LIMIT = 64, 50_000, 1e-6


def make(classes: int, dim: int, cosine: float) -> tuple[Tensor, Tensor, Tensor]:
    """Unit rows, prototypes and labels; rows have this cosine with their prototype, 0: any."""
    generator = torch.Generator().manual_seed(0)
    w = F.normalize(torch.randn(classes, dim, generator=generator), dim=1)
    y = torch.randint(0, classes, (ROWS,), generator=generator)
    x = F.normalize(torch.randn(ROWS, dim, generator=generator), dim=1)
    if cosine:
        across = F.normalize(x - (x * w[y]).sum(1, keepdim=True) * w[y], dim=1)
        x = cosine * w[y] + (1 - cosine**2) ** 0.5 * across
    return x, w, y


def exact(x: Tensor, w: Tensor, y: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Loss per row and its gradient to x in float64, in blocks of classes.

    Relative to the target, which is left out of the sums: a loss of 1e-10 and its gradient would
    otherwise be differences of nearly equal numbers, and have six digits even in float64.
    """
    x, target = x.double(), w[y].double()
    others = torch.zeros(len(x), 1, dtype=torch.float64)
    pull = torch.zeros_like(x)
    for begin, part in zip(range(0, len(w), BLOCK), w.double().split(BLOCK), strict=True):
        weights = torch.exp(scale * (x @ part.T - (x * target).sum(1, keepdim=True)))
        inside = (y >= begin) & (y < begin + len(part))
        weights[inside, y[inside] - begin] = 0
        others += weights.sum(1, keepdim=True)
        pull += weights @ part
    gradient = scale * (pull - others * target) / (1 + others)
    return torch.log1p(others[:, 0]), gradient


def errors(loss: Tensor, grad: Tensor, truth: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Relative errors of loss and gradient."""
    pairs = zip((loss, grad), truth, strict=True)
    first, second = (float((a.double() - b).norm() / b.norm()) for a, b in pairs)
    return first, second


def gradient(loss: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The losses, and their gradient."""
    return loss.detach(), torch.autograd.grad(loss.sum(), x)[0]


def measure(classes: int, dim: int) -> list[dict[str, object]]:
    """One row per data set, scale and dtype."""
    found: list[dict[str, object]] = []
    for cosine in (0.0, 0.5, 0.8):
        for scale in (30.0, 64.0):
            for dtype in (torch.float32, torch.bfloat16):
                x, w, y = (
                    t if t.dtype == torch.int64 else t.to(dtype) for t in make(classes, dim, cosine)
                )
                truth = exact(x, w, y, scale)
                x.requires_grad_()
                options = {"scale": scale, "normalize": False, "reduction": "none"}
                ours = errors(*gradient(fcl_ext.compat_loss(x, w, y, **options), x), truth)
                logits = scale * F.linear(x, w)
                theirs = errors(*gradient(F.cross_entropy(logits, y, reduction="none"), x), truth)
                limit = (LIMIT, LIMIT) if dtype == torch.float32 else theirs
                found.append(
                    {
                        "data": f"cosine {cosine}" if cosine else "random",
                        "scale": scale,
                        "dtype": str(dtype).removeprefix("torch."),
                        "loss": ours[0],
                        "gradient": ours[1],
                        "torch_loss": theirs[0],
                        "torch_gradient": theirs[1],
                        "passed": ours[0] <= limit[0] and ours[1] <= limit[1],
                    }
                )
    return found


def main() -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    rows = measure(arguments.classes, arguments.dim)
    table = Table(title=f"relative errors, C = {arguments.classes:,}, D = {arguments.dim}")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(
            *(f"{v:.1e}" if isinstance(v, float) and v < 1 else str(v) for v in row.values())
        )
    Console(width=120).print(table)
    if arguments.write is not None:
        facts = {"classes": arguments.classes, "dim": arguments.dim, "torch": torch.__version__}
        text = json.dumps({**facts, "rows": rows}, indent=1)
        arguments.write.write_text(text + "\n", encoding="utf-8")
    return 0 if all(row["passed"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
