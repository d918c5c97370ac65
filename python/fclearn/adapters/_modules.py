# SPDX-License-Identifier: Apache-2.0
"""What a trained head is made of: an affine map, and what is learned beside it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: An affine map alone; a frozen one with a learned low-rank one beside it; one with a hidden layer
#: beside it.
FORMS = ("linear", "low-rank", "mlp")
# A step of the optimiser leaves the weight nearly orthogonal: two steps of the iteration bring the
# error from a few percent to rounding.
_POLAR_STEPS = 2


class HeadModule(nn.Module):
    """A head that starts as the affine map it is given.

    Args:
        weight: Of the start, shape ``(D_source, D_target)``.
        bias: Shape ``(D_target,)``.
        form: Of `FORMS`.
        hidden: Width of the hidden layer, or the rank.
        orthogonal: Keep the affine map's weight a rotation: rows or columns orthonormal.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, form: str, hidden: int, *, orthogonal: bool
    ) -> None:
        """Copy the start; what is beside it begins at zero."""
        super().__init__()
        self._orthogonal = orthogonal and form != "low-rank"
        self.linear = nn.Linear(*weight.shape)
        with torch.no_grad():
            self.linear.weight.copy_(weight.T)
            self.linear.bias.copy_(bias)
        self.down: nn.Linear | None = None
        self.up: nn.Linear | None = None
        if form != "linear":
            self.down = nn.Linear(weight.shape[0], hidden, bias=form == "mlp")
            self.up = nn.Linear(hidden, weight.shape[1], bias=False)
            nn.init.zeros_(self.up.weight)
        if form == "low-rank":
            self.linear.requires_grad_(requires_grad=False)

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows, shape ``(n, D_source)`` to ``(n, D_target)``."""
        state = dict(self.named_parameters())
        return apply_head(rows, state)

    def groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Parameters for AdamW; a rotation has one length, which decay would only fight."""
        learned = [one for one in self.parameters() if one.requires_grad]
        if not self._orthogonal:
            return [{"params": learned, "weight_decay": weight_decay}]
        turned = self.linear.weight
        rest = [one for one in learned if one is not turned]
        return [
            {"params": [turned], "weight_decay": 0.0},
            {"params": rest, "weight_decay": weight_decay},
        ]

    @torch.no_grad()
    def after_step(self) -> None:
        """Bring the weight back to the rotation it has nearly stayed."""
        if self._orthogonal:
            weight = self.linear.weight
            for _ in range(_POLAR_STEPS):
                # Newton-Schulz; on the shorter side, so that the product is the smaller one.
                if weight.shape[0] <= weight.shape[1]:
                    step = weight @ weight.T @ weight
                else:
                    step = weight @ (weight.T @ weight)
                weight.mul_(1.5).sub_(step, alpha=0.5)

    @torch.no_grad()
    def finish(self, weight: Tensor, bias: Tensor, share: float) -> dict[str, Tensor]:
        """The tensors of the head: so far on the way from its start; a rotation whole, and exact.

        Args:
            weight: Of the start.
            bias: Of the start.
            share: Of what was learned, in [0, 1].
        """
        if self._orthogonal:
            left, _, right = torch.linalg.svd(self.linear.weight.double(), full_matrices=False)
            self.linear.weight.copy_(left @ right)
        else:
            self.linear.weight.lerp_(weight.T.to(self.linear.weight), 1 - share)
            self.linear.bias.lerp_(bias.to(self.linear.bias), 1 - share)
            if self.up is not None:
                self.up.weight.mul_(share)
        return {name: tensor.detach() for name, tensor in self.state_dict().items()}


def apply_head(rows: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """Map rows by the tensors of a head: those of no hidden layer may be missing."""
    out = F.linear(rows, state["linear.weight"], state["linear.bias"])
    if "up.weight" not in state:
        return out
    hidden = F.linear(rows, state["down.weight"], state.get("down.bias"))
    if "down.bias" in state:
        hidden = F.gelu(hidden)
    return out + F.linear(hidden, state["up.weight"])


def affine_of(state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
    """Weight ``(D_source, D_target)`` and offset of a head's tensors; None with a hidden layer."""
    weight = state["linear.weight"].T
    if "up.weight" in state:
        if "down.bias" in state:
            return None
        weight = weight + state["down.weight"].T @ state["up.weight"].T
    return weight, state["linear.bias"]
