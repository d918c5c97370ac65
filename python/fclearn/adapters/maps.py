# SPDX-License-Identifier: Apache-2.0
"""Maps in closed form: what migration tools ship, and what a trained adapter has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from fclearn.adapters.base import Adapter

# Of the mean variance of a direction, what each gets beside its own before whitening.
_SHRINKAGE = 0.1


class Procrustes(Adapter):
    r"""The rotation that brings the pairs closest: :math:`\min \|(X - \bar X)W - (Y - \bar Y)\|_F`.

    W is orthogonal; between different dims it has orthonormal rows or columns. What sets the source
    rows apart from each other therefore survives as well as it can, where least squares would
    shrink it.

    References:
        Schönemann, *A generalized solution of the orthogonal Procrustes problem*, 1966.

    Example:
        >>> turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> x = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 2.0], [3.0, 1.0]]))
        >>> adapter = Procrustes().fit(source=x, target=x @ turn)
        >>> torch.allclose(adapter.transform(x), x @ turn, atol=1e-6)
        True
    """

    name = "procrustes"

    @property
    def source_dim(self) -> int:
        """D_source."""
        return self._state["weight"].shape[0]

    def _fit(self, source: Tensor, target: Tensor, labels: Tensor | None) -> dict[str, Tensor]:  # noqa: ARG002
        weight, bias = procrustes(source, target)
        return {"weight": weight.float(), "bias": bias.float()}

    def _transform(self, rows: Tensor) -> Tensor:
        return rows @ self._state["weight"] + self._state["bias"]

    def affine(self) -> tuple[Tensor, Tensor]:
        """As `Adapter.affine`."""
        return self._state["weight"], self._state["bias"]


class Ridge(Adapter):
    r"""Affine least squares, :math:`\min \|XW + b - Y\|^2 + \alpha \|W\|^2`.

    The penalty :math:`\alpha` is the one of a grid that generalised cross-validation likes best, so
    there is nothing to choose.

    References:
        Golub, Heath, Wahba, *Generalized cross-validation*, 1979, Eq. (1.4).

    Example:
        >>> x = torch.nn.functional.normalize(torch.randn(50, 3), dim=1)
        >>> Ridge().fit(source=x, target=x[:, :2]).transform(x).shape
        torch.Size([50, 2])
    """

    name = "ridge"

    @property
    def source_dim(self) -> int:
        """D_source."""
        return self._state["weight"].shape[0]

    def _fit(self, source: Tensor, target: Tensor, labels: Tensor | None) -> dict[str, Tensor]:  # noqa: ARG002
        weight, bias = ridge(source, target)
        return {"weight": weight.float(), "bias": bias.float()}

    def _transform(self, rows: Tensor) -> Tensor:
        return rows @ self._state["weight"] + self._state["bias"]

    def affine(self) -> tuple[Tensor, Tensor]:
        """As `Adapter.affine`."""
        return self._state["weight"], self._state["bias"]


class LowRank(Adapter):
    """Reduced-rank regression: the ridge map, cut to the directions that explain its fit.

    Args:
        rank: Directions kept; fewer where there are fewer.

    References:
        Izenman, *Reduced-rank regression for the multivariate linear model*, 1975.

    Example:
        >>> x = torch.nn.functional.normalize(torch.randn(50, 6), dim=1)
        >>> LowRank(rank=2).fit(source=x, target=x).transform(x).shape
        torch.Size([50, 6])
    """

    name = "low-rank"

    def __init__(self, rank: int = 64) -> None:
        """Refuse a rank below 1."""
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank: expected at least 1, got {rank}")
        self.rank = rank

    @property
    def source_dim(self) -> int:
        """D_source."""
        return self._state["down"].shape[0]

    def _fit(self, source: Tensor, target: Tensor, labels: Tensor | None) -> dict[str, Tensor]:  # noqa: ARG002
        weight, bias = ridge(source, target)
        fitted = source.double() @ weight
        _, _, directions = torch.linalg.svd(fitted - fitted.mean(0), full_matrices=False)
        kept = directions[: self.rank]
        # The mean of the fit passes in full: only what varies is cut.
        centre = fitted.mean(0)
        return {
            "down": (weight @ kept.T).float(),
            "up": kept.float().contiguous(),
            "bias": (bias + centre - centre @ kept.T @ kept).float(),
        }

    def _transform(self, rows: Tensor) -> Tensor:
        return rows @ self._state["down"] @ self._state["up"] + self._state["bias"]

    def affine(self) -> tuple[Tensor, Tensor]:
        """As `Adapter.affine`."""
        return self._state["down"] @ self._state["up"], self._state["bias"]


class MeanShift(Adapter):
    r"""Subtract the mean drift, :math:`x - \overline{(x - y)}`; both models of one dim.

    References:
        Goswami et al., *Query Drift Compensation*, 2025.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> MeanShift().fit(source=x, target=x).transform(x).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    name = "mean-shift"

    @property
    def source_dim(self) -> int:
        """D_source."""
        return self._state["drift"].shape[0]

    def _fit(self, source: Tensor, target: Tensor, labels: Tensor | None) -> dict[str, Tensor]:  # noqa: ARG002
        if source.shape[1] != target.shape[1]:
            raise ValueError(
                "mean-shift: expected source and target of one dim, "
                f"got {source.shape[1]} and {target.shape[1]}"
            )
        return {"drift": (source - target).mean(0)}

    def _transform(self, rows: Tensor) -> Tensor:
        return rows - self._state["drift"]

    def affine(self) -> tuple[Tensor, Tensor]:
        """As `Adapter.affine`."""
        drift = self._state["drift"]
        return torch.eye(len(drift)), -drift


def procrustes(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation ``(D_source, D_target)`` and offset ``(D_target,)``, float64, of pairs of rows."""
    x, y = source.double(), target.double()
    centre, level = x.mean(0), y.mean(0)
    left, _, right = torch.linalg.svd((x - centre).T @ (y - level), full_matrices=False)
    weight = left @ right
    return weight, level - centre @ weight


def whitened_procrustes(source: Tensor, target: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """`procrustes` behind source rows of which the larger directions were shrunk, in part.

    Args:
        source: Shape ``(N, D_source)``.
        target: Shape ``(N, D_target)``.
        power: Of the covariance of the source rows, inverted: 0 leaves them as they are, 0.5 makes
            all directions equal.

    Returns:
        Weight ``(D_source, D_target)`` and offset ``(D_target,)``, float64. Mapped rows are spread
        as widely as the target's.
    """
    x, y = source.double(), target.double()
    centre, level = x.mean(0), y.mean(0)
    x, y = x - centre, y - level
    values, directions = torch.linalg.eigh(x.T @ x / len(x))
    # Directions that hardly occur would be blown up: their share of noise is the largest.
    values = values.clamp(min=0) + _SHRINKAGE * values.mean()
    shrink = (directions * values**-power) @ directions.T
    left, _, right = torch.linalg.svd(shrink @ (x.T @ y), full_matrices=False)
    weight = shrink @ (left @ right)
    mapped = float((x @ weight).norm())
    if mapped > 0:
        weight *= float(y.norm()) / mapped
    return weight, level - centre @ weight


def ridge(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Weight ``(D_source, D_target)`` and offset ``(D_target,)``, float64; see `Ridge`."""
    x, y = source.double(), target.double()
    centre, level = x.mean(0), y.mean(0)
    x, y = x - centre, y - level
    left, values, right = torch.linalg.svd(x, full_matrices=False)
    projected = left.T @ y
    # What no coefficient explains is left at any penalty.
    rest = float(y.square().sum() - projected.square().sum())
    best, best_score = 0.0, float("inf")
    for penalty in torch.logspace(-6, 2, 33, dtype=torch.float64) * float(values[0]) ** 2:
        kept = values.square() / (values.square() + penalty)
        error = rest + float(((1 - kept)[:, None] * projected).square().sum())
        freedom = len(x) - 1 - float(kept.sum())
        if freedom > 0 and error / freedom**2 < best_score:
            best, best_score = float(penalty), error / freedom**2
    weight = right.T @ ((values / (values.square() + best))[:, None] * projected)
    return weight, level - centre @ weight
