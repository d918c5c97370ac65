# SPDX-License-Identifier: Apache-2.0
"""The compatibility loss with classes spread over processes: equal to one process, to rounding."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from fcl_ext._derivatives import refuse_gradient
from fcl_ext.losses import MarginType, Reduction
from fclearn._nearest import nearest_prototype
from fclearn.distributed.collectives import Group, check_same_count, gather, total
from fclearn.distributed.readout import logsumexp_over_shards, rows_of_shards, sum_over_shards


def sharded_compat_loss(
    embeddings: Tensor,
    shard: Tensor,
    labels: Tensor,
    *,
    first: int,
    num_classes: int,
    group: Group,
    scale: float = 30.0,
    margin: float = 0.0,
    margin_type: MarginType = "cosface",
    label_smoothing: float = 0.0,
    normalize: bool = True,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""`fcl_ext.compat_loss` of own rows against the classes of all processes.

    .. math:: L_i = \log(1 + e^{\ell_i^{others} - z_i}) + \epsilon (z_i - \overline{z}_i)

    with :math:`\ell^{others}` the log-sum-exp without the target class and :math:`z` the target's
    logit after the margin: small losses keep their digits. What is computed once per row, margins
    above all, is so in float64, as in the kernel. Called by all processes of the group.

    Args:
        embeddings: Own rows, shape ``(n, D)``, floating, as many on every process.
        shard: Own classes, shape ``(C_k, D)``, same dtype; may have no rows. Gradients flow to it
            if it requires them: of the sum over the processes of what they differentiate.
        labels: Class per own row among all C, shape ``(n,)``, int64, or ``ignore_index``.
        first: Number of the first own class.
        num_classes: C.
        group: Processes.
        scale: As in `fcl_ext.compat_loss`, also the following.
        margin: Cosine units for cosface, radians for arcface.
        margin_type: ``"cosface"`` or ``"arcface"``.
        label_smoothing: In ``[0, 1]``; above 0 it makes a unit copy of the shard.
        normalize: Scale rows of embeddings and prototypes to unit length first.
        ignore_index: Rows with this label have loss 0 and leave the mean.
        reduction: ``"none"``: shape ``(n,)``. ``"sum"``: over own rows. ``"mean"``: own rows over
            the mean number of counted rows per process, so that the *average over processes* (what
            DistributedDataParallel makes of gradients) is the mean over all rows.

    Returns:
        Shape ``(n,)`` or scalar, float32, or float64 for float64 inputs.

    Raises:
        ValueError: Another number of rows than on other processes, a label out of range, an arcface
            margin without normalize (CPU only for what depends on values); a scale, margin or
            label_smoothing that requires a gradient.
        RuntimeError: Shapes, dtypes or a scale that the kernel refuses.

    References:
        As `fcl_ext.compat_loss`. An et al., *Partial FC*, ICCV workshops 2021, shard classes so.

    Example:
        >>> import torch, fcl_ext
        >>> from fclearn.distributed import sharded_compat_loss, single_process
        >>> x, w, y = torch.eye(3), torch.eye(3), torch.tensor([0, 1, 2])
        >>> with single_process() as group:
        ...     loss = sharded_compat_loss(x, w, y, first=0, num_classes=3, group=group, scale=9.0)
        >>> torch.allclose(loss, fcl_ext.compat_loss(x, w, y, scale=9.0))
        True
    """
    for name, value in (("scale", scale), ("margin", margin), ("label_smoothing", label_smoothing)):
        refuse_gradient(name, value)
    check_same_count("sharded_compat_loss", embeddings, group)
    if margin_type == "arcface" and margin and not normalize:
        raise ValueError("sharded_compat_loss: an arcface margin needs normalize=True")
    _check_labels(labels, num_classes, ignore_index, group)
    if torch.is_autocast_enabled(embeddings.device.type):
        embeddings, shard = embeddings.float(), shard.float()
    valid = labels != ignore_index
    target_index = torch.where(valid, labels, -1)
    target = rows_of_shards(shard, target_index, first=first, group=group).double()
    unit = embeddings
    if normalize:
        unit = F.normalize(embeddings.double(), dim=1).to(embeddings.dtype)
        target = F.normalize(target, dim=1)
    others = logsumexp_over_shards(
        unit,
        shard,
        first=first,
        group=group,
        scale=scale,
        exclude=target_index,
        normalize=normalize,
    )
    dtype, others, wide = others.dtype, others.double(), unit.double()
    plain = scale * (wide * target).sum(1)
    shifted = _with_margin(plain, scale, margin, margin_type, torch.finfo(dtype).eps)
    # Not softplus, which is linear from 20 on: that would cost float64 its last digits.
    losses = torch.logaddexp(torch.zeros_like(others), others - shifted)
    if label_smoothing > 0:
        rows = F.normalize(shard, dim=1) if normalize else shard
        mean = sum_over_shards(rows, group) / num_classes
        smooth = scale * (wide @ mean.double()) + (shifted - plain) / num_classes
        losses = losses + label_smoothing * (shifted - smooth)
    losses = torch.where(valid, losses, 0.0)
    if reduction == "none":
        return losses.to(dtype)
    if reduction == "sum":
        return losses.sum().to(dtype)
    counted = total(valid.sum(), group).double() / dist.get_world_size(group)
    return (losses.sum() / counted).to(dtype)


@torch.no_grad()
def nearest_class(embeddings: Tensor, shard: Tensor, *, first: int, group: Group) -> Tensor:
    """Class of the highest cosine among those of all processes, lower first, for own rows.

    Args:
        embeddings: Own rows, shape ``(n, D)``, as many on every process.
        shard: Own classes, shape ``(C_k, D)``.
        first: Number of the first of them.
        group: Processes.

    Returns:
        Shape ``(n,)``, int64.
    """
    rows = gather(embeddings, group)
    own = nearest_prototype(rows, shard)
    # Processes hold ascending classes, and the first of equal maxima wins.
    winner = gather(own.score[None], group).argmax(0, keepdim=True)
    found = gather(own.row[None] + first, group).gather(0, winner)[0]
    return found.chunk(dist.get_world_size(group))[dist.get_rank(group)]


def _with_margin(
    logit: Tensor, scale: float, margin: float, margin_type: MarginType, tiny: float
) -> Tensor:
    """The rule of apply_margin (csrc/ops/compat_row.h): squared sines from ``tiny`` on."""
    if margin == 0:
        return logit
    if margin_type == "cosface":
        return logit - scale * margin
    cosine = logit / scale
    squared_sine = 1 - cosine.square()
    # Not clamp, which would pass a gradient at `tiny` itself.
    sine = torch.where(squared_sine > tiny, squared_sine, tiny).sqrt()
    turned = cosine * math.cos(margin) - sine * math.sin(margin)
    # Past pi, the cosine of the angle would rise again.
    straight = cosine - margin * math.sin(margin)
    return scale * torch.where(cosine > -math.cos(margin), turned, straight)


def _check_labels(labels: Tensor, num_classes: int, ignore_index: int, group: Group) -> None:
    if labels.device.type != "cpu":
        return  # looking at values would wait for the device
    bad = ((labels < 0) | (labels >= num_classes)) & (labels != ignore_index)
    # Every process raises, or none: one that went on alone would wait for the others for ever.
    if int(total(bad.sum(), group)) == 0:
        return
    if not bad.any():
        raise ValueError("sharded_compat_loss: labels of another process are out of range")
    row = int(bad.nonzero()[0])
    raise ValueError(
        f"sharded_compat_loss: expected labels in [0, {num_classes}), "
        f"got {int(labels[row])} in row {row}"
    )
