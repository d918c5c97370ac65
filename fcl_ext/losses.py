# SPDX-License-Identifier: Apache-2.0
"""Compatibility losses on the softmax readout: none of them builds an N x C matrix.

All are ``logsumexp - s x.t`` for a target vector ``t`` in prototype space (or, for instance rows,
made of two log-sum-exps), so one pass over the prototypes gives loss and gradient.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fcl_ext import ops
from fcl_ext._compat_function import CompatLoss
from fcl_ext._derivatives import refuse_gradient
from fcl_ext._explain import need_integer, need_number, need_tensors
from fcl_ext._frozen import mean_prototype, packed_prototypes
from fcl_ext._loss_checks import can_look, check_labels, check_options, check_weights
from fcl_ext._readout_functions import PositiveRows, supcon_losses, target_losses
from fcl_ext.positive_sets import PositiveSets

Reduction = Literal["mean", "sum", "none"]
MarginType = Literal["cosface", "arcface"]


def compat_loss(
    embeddings: Tensor,
    prototypes: Tensor,
    labels: Tensor | None = None,
    *,
    targets: Tensor | None = None,
    scale: float = 30.0,
    margin: float = 0.0,
    margin_type: MarginType = "cosface",
    label_smoothing: float = 0.0,
    normalize: bool = True,
    ignore_index: int = -100,
    class_weights: Tensor | None = None,
    sample_weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Cross-entropy of embeddings against (pseudo) class prototypes.

    .. math:: L_i = \log \sum_c e^{s \langle x_i, w_c \rangle} - s \langle x_i, t_i \rangle

    with the target :math:`t_i = (1-\epsilon) w_{y_i} + \epsilon\, \overline{w}` of label smoothing
    :math:`\epsilon`, or any target vectors. A margin changes the target logit only: cosface
    :math:`s (\cos\theta - m)`, arcface :math:`s \cos(\theta + m)`, continued linearly where
    :math:`\theta + m > \pi`.

    Args:
        embeddings: New-model embeddings, shape ``(N, D)``, floating.
        prototypes: Class rows, shape ``(C, D)``, same dtype and device. Gradients flow to them if
            they require it.
        labels: Class per row, shape ``(N,)``, int64 in ``[0, C)`` or ``ignore_index``.
        targets: Instead of labels: target vectors in prototype space, shape ``(N, D)``; used as
            given.
        scale: Inverse temperature, > 0.
        margin: Cosine units for cosface, radians for arcface; >= 0.
        margin_type: ``"cosface"`` or ``"arcface"``.
        label_smoothing: Mass spread evenly over all classes, in ``[0, 1]``.
        normalize: Scale rows of embeddings and prototypes to unit length first.
        ignore_index: Rows with this label have loss 0 and leave the mean.
        class_weights: Factor of a row's loss by its class, shape ``(C,)``, constant. (With
            smoothing torch's cross_entropy also weighs each class of the smoothed target.)
        sample_weights: Factor of each row's loss, shape ``(N,)``, constant. The mean is weighted:
            it divides by the sum of the weights, as torch's cross_entropy does.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or shape ``(N,)`` for ``"none"``; float32, or float64 for float64 inputs.

    Raises:
        TypeError: Another thing than a tensor or a number in the place of one.
        ValueError: Labels and targets both or neither given, an option out of range, or a scale,
            margin or label_smoothing that requires a gradient.
        RuntimeError: Shapes, dtypes or devices that do not fit, or a label out of range, which is
            named with its row (on CUDA it is a device assertion).

    Note:
        Under autocast the loss runs in float32, like torch's own; give bfloat16 tensors outside
        autocast to run it in bfloat16. Losses keep their relative precision however small they
        are: the target class is left out of the sum and comes back exactly.

        With label smoothing, the mean of frozen prototypes on the CPU is kept between calls. The
        note of :func:`set_packing_cache`, which forgets it, says which changes are noticed.

    References:
        Shen et al., *Towards Backward-Compatible Representation Learning*, CVPR 2020 (influence
        loss); Wang et al., *CosFace*, CVPR 2018; Deng et al., *ArcFace*, CVPR 2019.

    Example:
        >>> import torch, fcl_ext
        >>> x, w = torch.eye(3), torch.eye(3)
        >>> loss = fcl_ext.compat_loss(x, w, torch.tensor([0, 1, 2]), scale=10.0)
        >>> round(loss.item(), 6)
        9.1e-05
    """
    check_options(scale, margin, margin_type, label_smoothing, reduction)
    if (labels is None) == (targets is None):
        raise ValueError("compat_loss: expected either labels or targets, got both or neither")
    if targets is not None:
        if margin or label_smoothing or class_weights is not None:
            raise ValueError(
                "compat_loss: margin, label_smoothing and class_weights need labels, got targets"
            )
        losses = _target_losses(
            "compat_loss", "targets", embeddings, prototypes, targets, scale, normalize
        )
        return _reduce(losses, sample_weights, reduction)
    assert labels is not None
    if margin_type == "arcface" and margin and not normalize:
        raise ValueError("compat_loss: an arcface margin is an angle and needs normalize=True")
    weighted = class_weights is not None or sample_weights is not None
    losses = _label_losses(
        embeddings,
        prototypes,
        labels,
        scale,
        margin,
        margin_type == "arcface",
        label_smoothing,
        normalize,
        ignore_index,
        "none" if weighted else reduction,
    )
    if not weighted:
        return losses
    valid = labels != ignore_index
    weights = valid.to(losses.dtype)
    if class_weights is not None:
        check_weights("class_weights", class_weights, "[C]", len(prototypes))
        weights = weights * class_weights[torch.where(valid, labels, 0)]
    if sample_weights is not None:
        check_weights("sample_weights", sample_weights, "[N]", len(embeddings))
        weights = weights * sample_weights
    return _reduce(losses, weights, reduction)


class Teacher(NamedTuple):
    r"""What distillation needs to know of the teacher, per row: cache it once per data set.

    Attributes:
        mean: The teacher's expected prototype, shape ``(N, D)``.
        negative_entropy: :math:`\sum_c p_c \log p_c`, shape ``(N,)``.
    """

    mean: Tensor
    negative_entropy: Tensor


@torch.no_grad()
def teacher_readout(
    teacher_embeddings: Tensor, prototypes: Tensor, *, scale: float, normalize: bool = True
) -> Teacher:
    """Summarise the teacher's softmax over C classes in D + 1 numbers a row.

    Args:
        teacher_embeddings: Old-model features, shape ``(N, D)``, floating.
        prototypes: Class rows, shape ``(C, D)``, same dtype and device.
        scale: Inverse temperature, > 0; use the student's.
        normalize: Scale rows of both to unit length first.

    Returns:
        A :class:`Teacher` for :func:`compat_kl`, without gradient.

    Raises:
        TypeError: Teacher embeddings or prototypes that are no tensors, a scale that is no number.
        ValueError: A scale with a tangent of forward-mode derivatives.
        RuntimeError: Shapes, dtypes or devices that do not fit, or a scale out of range.

    Example:
        >>> import torch, fcl_ext
        >>> teacher = fcl_ext.teacher_readout(torch.eye(2), torch.eye(2), scale=1.0)
        >>> teacher.mean.shape, teacher.negative_entropy.shape
        (torch.Size([2, 2]), torch.Size([2]))
    """
    refuse_gradient("scale", scale)
    try:
        teacher_embeddings, prototypes = _for_autocast(teacher_embeddings, prototypes)
        if normalize:
            teacher_embeddings = F.normalize(teacher_embeddings, dim=1)
        packed = packed_prototypes(prototypes, normalize)
        logsumexp, mean = ops.softmax_readout(
            teacher_embeddings, prototypes, None, None, scale, True, normalize, *packed
        )
    except (AttributeError, RuntimeError, TypeError):
        need_tensors(
            "teacher_readout", teacher_embeddings=teacher_embeddings, prototypes=prototypes
        )
        need_number("teacher_readout", "scale", scale)
        raise
    # sum_c p_c log p_c = sum_c p_c (s x.w_c - lse) = s x.mean - lse
    return Teacher(mean, scale * _row_dot(teacher_embeddings, mean) - logsumexp)


def compat_kl(
    embeddings: Tensor,
    prototypes: Tensor,
    *,
    teacher_embeddings: Tensor | None = None,
    teacher: Teacher | tuple[Tensor, Tensor] | None = None,
    scale: float,
    normalize: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Distillation: KL(old || new) between two softmaxes over the same prototypes.

    .. math::
        L_i = \sum_c p^{old}_{ic} \log \frac{p^{old}_{ic}}{p^{new}_{ic}}
            = \ell_i - s \langle x_i, r^{old}_i \rangle + \sum_c p^{old}_{ic} \log p^{old}_{ic}

    where :math:`r^{old}_i` is the teacher's expected prototype: the teacher's distribution over C
    classes enters through one vector.

    Args:
        embeddings: New-model embeddings, shape ``(N, D)``, floating.
        prototypes: Class rows, shape ``(C, D)``, same dtype and device; constants.
        teacher_embeddings: Old-model features of the same images, shape ``(N, D)``; constants.
        teacher: Instead: what :func:`teacher_readout` returned for them (same prototypes, scale
            and normalize).
        scale: Inverse temperature, > 0.
        normalize: Scale rows to unit length first.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or shape ``(N,)`` for ``"none"``.

    Raises:
        TypeError: Another thing than a tensor or a number in the place of one.
        ValueError: Both or neither teacher given, an option out of range, or a constant that
            requires a gradient.
        RuntimeError: Shapes, dtypes or devices that do not fit.

    Note:
        The value is a difference of numbers as large as the logits and carries their rounding (in
        float32 about 2e-6 at a scale of 16): of a student that is its teacher it is not exactly 0.
        The gradient is not of that difference.

    Example:
        >>> import torch, fcl_ext
        >>> x, w = torch.eye(3), torch.eye(3)
        >>> round(abs(fcl_ext.compat_kl(x, w, teacher_embeddings=x, scale=5.0).item()), 6)
        0.0
    """
    check_options(scale, 0.0, "cosface", 0.0, reduction)
    if (teacher is None) == (teacher_embeddings is None):
        raise ValueError(
            "compat_kl: expected either teacher_embeddings or teacher, got both or neither"
        )
    if teacher_embeddings is not None:
        refuse_gradient("teacher_embeddings", teacher_embeddings, "detach")
        teacher = teacher_readout(teacher_embeddings, prototypes, scale=scale, normalize=normalize)
    assert teacher is not None
    # The teacher's distribution depends on them, too: half of their gradient would be missing.
    refuse_gradient("prototypes", prototypes, "detach")
    mean, negative_entropy = teacher
    losses = _target_losses(
        "compat_kl", "a teacher", embeddings, prototypes, mean, scale, normalize
    )
    return _reduce(losses + negative_entropy, None, reduction)


def compat_supcon(
    embeddings: Tensor,
    labels: Tensor,
    features: Tensor,
    feature_labels: Tensor | None = None,
    *,
    positives: PositiveSets | tuple[Tensor, Tensor, Tensor | None] | None = None,
    scale: float = 10.0,
    normalize: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Instance-level pseudo classifier: every old feature is a row, one's class the target set.

    .. math::
        L_i = \log \sum_j e^{s \langle x_i, f_j \rangle}
            - \log \frac{1}{n_{y_i}} \sum_{j: y_j = y_i} e^{s \langle x_i, f_j \rangle}

    With weighted positives the second term is :math:`\log \sum_j H_{j y_i} e^{s x_i f_j}`, for
    instance with H from a random walk over the graph of old features.

    Args:
        embeddings: New-model embeddings, shape ``(N, D)``, floating.
        labels: Shape ``(N,)``, int64; each must have at least one positive.
        features: All old features, shape ``(R, D)``, same dtype and device. Gradients flow to them
            if they require it.
        feature_labels: Their labels, shape ``(R,)``, int64 >= 0, not far above R (see
            `PositiveSets.from_labels`).
        positives: Instead of feature_labels: ready :class:`PositiveSets`, to sort once per data
            set rather than once per step, or to weight the rows.
        scale: Inverse temperature, > 0.
        normalize: Scale rows to unit length first.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or shape ``(N,)`` for ``"none"``.

    Raises:
        TypeError: Another thing than a tensor or a number in the place of one.
        ValueError: A label without positives (CPU tensors; on CUDA its loss is inf), both or
            neither of feature_labels and positives, an option out of range, or weights that require
            a gradient.
        RuntimeError: Shapes, dtypes or devices that do not fit.

    Note:
        On the CPU, small losses and their gradients keep their relative precision: the positives
        are left out of the sum over all rows and come back exactly. That needs positives without
        weights, each once and in order, as `PositiveSets.from_labels` has them. Otherwise, on
        CUDA and in graphs of ``torch.compile``, both are the difference of two sums.

    References:
        Khosla et al., *Supervised Contrastive Learning*, NeurIPS 2020 (the :math:`L_{in}` form,
        with frozen rows in place of the batch).

    Example:
        >>> import torch, fcl_ext
        >>> f, y = torch.eye(3), torch.tensor([0, 1, 1])
        >>> loss = fcl_ext.compat_supcon(f, y, f, y, scale=1.0, reduction="none")
        >>> loss.shape
        torch.Size([3])
    """
    check_options(scale, 0.0, "cosface", 0.0, reduction)
    if (positives is None) == (feature_labels is None):
        raise ValueError(
            "compat_supcon: expected either feature_labels or positives, got both or neither"
        )
    try:
        losses = _supcon_losses(
            embeddings, labels, features, feature_labels, positives, scale, normalize
        )
    except (AttributeError, RuntimeError, TypeError, ValueError):
        need_tensors("compat_supcon", embeddings=embeddings, labels=labels, features=features)
        if feature_labels is not None:
            need_tensors("compat_supcon", feature_labels=feature_labels)
        # The operator that refuses it knows features as rows.
        if features.dtype != embeddings.dtype:
            raise RuntimeError(
                f"compat_supcon: expected features of dtype {embeddings.dtype}, as the "
                f"embeddings, got {features.dtype}"
            ) from None
        raise
    return _reduce(losses, None, reduction)


def _supcon_losses(
    embeddings: Tensor,
    labels: Tensor,
    features: Tensor,
    feature_labels: Tensor | None,
    positives: PositiveSets | tuple[Tensor, Tensor, Tensor | None] | None,
    scale: float,
    normalize: bool,
) -> Tensor:
    """`compat_supcon` of each row."""
    if feature_labels is not None:
        if feature_labels.shape != features.shape[:1]:
            raise ValueError(
                f"compat_supcon: expected feature_labels of shape [R] = [{features.shape[0]}], "
                f"got {list(feature_labels.shape)}"
            )
        positives = PositiveSets.from_labels(feature_labels)
    assert positives is not None
    crow_indices, col_indices, log_weights = positives
    check_labels("compat_supcon", labels, len(embeddings), len(crow_indices) - 1)
    counts = crow_indices[labels + 1] - crow_indices[labels]
    if can_look(labels) and (counts == 0).any():
        row = int((counts == 0).nonzero()[0])
        raise ValueError(
            f"compat_supcon: label {int(labels[row])} of row {row} has no row among the features"
        )
    refuse_gradient("log_weights", log_weights, "detach")
    apart = can_look(labels) and (
        # Sets made of labels are plain.
        feature_labels is not None
        or PositiveSets(crow_indices, col_indices, log_weights).are_plain()
    )
    embeddings, features = _for_autocast(embeddings, features)
    if normalize:
        embeddings = F.normalize(embeddings, dim=1)
    sets = PositiveRows(labels, crow_indices, col_indices, log_weights, apart)
    losses = supcon_losses(embeddings, features, sets, scale, normalize)
    if log_weights is None:
        losses = losses + torch.log(counts.to(losses.dtype))
    return losses


def _label_losses(
    embeddings: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    scale: float,
    margin: float,
    arcface: bool,
    label_smoothing: float,
    normalize: bool,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    try:
        embeddings, prototypes = _for_autocast(embeddings, prototypes)
        loss: Tensor = CompatLoss.apply(  # type: ignore[no-untyped-call]
            embeddings,
            prototypes,
            labels,
            mean_prototype(prototypes, normalize) if label_smoothing else None,
            scale,
            margin,
            arcface,
            label_smoothing,
            normalize,
            ignore_index,
            reduction,
            torch.is_grad_enabled(),
        )
    except (AttributeError, RuntimeError, TypeError):
        need_tensors("compat_loss", embeddings=embeddings, prototypes=prototypes, labels=labels)
        need_integer("compat_loss", "ignore_index", ignore_index)
        raise
    return loss


def _target_losses(
    function: str,
    what: str,
    embeddings: Tensor,
    prototypes: Tensor,
    targets: Tensor,
    scale: float,
    normalize: bool,
) -> Tensor:
    """``lse - s x.t`` per row."""
    try:
        if targets.shape != embeddings.shape:
            raise ValueError(
                f"{function}: expected {what} of shape [N, D] = {list(embeddings.shape)}, "
                f"got {list(targets.shape)}"
            )
        embeddings, prototypes = _for_autocast(embeddings, prototypes)
        if normalize:
            embeddings = F.normalize(embeddings, dim=1)
        return target_losses(embeddings, prototypes, targets, scale, normalize)
    except (AttributeError, RuntimeError, TypeError):
        need_tensors(
            function, **{"embeddings": embeddings, "prototypes": prototypes, what: targets}
        )
        raise


def _for_autocast(embeddings: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 where autocast is on, as torch's own losses have them; float64 stays."""
    device = embeddings.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return embeddings, rows
    embeddings, rows = (
        one if one.dtype == torch.float64 else one.float() for one in (embeddings, rows)
    )
    return embeddings, rows


def _row_dot(left: Tensor, right: Tensor) -> Tensor:
    """Dot product of corresponding rows, accumulated as the kernels do."""
    dtype = torch.float64 if left.dtype == torch.float64 else torch.float32
    return (left.to(dtype) * right.to(dtype)).sum(1)


def _reduce(losses: Tensor, weights: Tensor | None, reduction: str) -> Tensor:
    if weights is not None:
        losses = losses * weights
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.mean() if weights is None else losses.sum() / weights.sum()
