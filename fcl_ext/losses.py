# SPDX-License-Identifier: Apache-2.0
"""Compatibility losses on the softmax readout: none of them builds an N x C matrix.

All are ``logsumexp - s x.t`` for a target vector ``t`` in prototype space (or, for instance rows, a
difference of two log-sum-exps), so one pass over the prototypes gives loss and gradient.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fcl_ext import ops
from fcl_ext.readout import softmax_readout

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
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or shape ``(N,)`` for ``"none"``; float32, or float64 for float64 inputs.

    Raises:
        ValueError: Labels and targets both or neither given, a label out of range (CPU tensors; on
            CUDA it is a device assertion), or an option out of range.
        RuntimeError: Shapes, dtypes or devices that do not fit (from the operator).

    Note:
        Under autocast the loss runs in float32, like torch's own; give bfloat16 tensors outside
        autocast to run it in bfloat16.

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
    _check_options(scale, margin, margin_type, label_smoothing, reduction)
    if (labels is None) == (targets is None):
        raise ValueError("compat_loss: expected either labels or targets, got both or neither")
    if normalize:
        embeddings, prototypes = F.normalize(embeddings, dim=1), F.normalize(prototypes, dim=1)
    if targets is not None:
        if margin or label_smoothing:
            raise ValueError("compat_loss: margin and label_smoothing need labels, got targets")
        if targets.shape != embeddings.shape:
            raise ValueError(
                f"compat_loss: expected targets of shape [N, D] = {list(embeddings.shape)}, "
                f"got {list(targets.shape)}"
            )
        logsumexp = _logsumexp(embeddings, prototypes, None, scale)
        losses = logsumexp - scale * _row_dot(embeddings, targets)
        return _reduce(losses, None, reduction)
    assert labels is not None
    if margin_type == "arcface" and margin and not normalize:
        raise ValueError("compat_loss: an arcface margin is an angle and needs normalize=True")
    _check_labels("compat_loss", labels, len(embeddings), len(prototypes), ignore_index)
    valid = labels != ignore_index
    safe_labels = torch.where(valid, labels, torch.zeros_like(labels))
    # Not prototypes[safe_labels]: torch adds up that one's gradient in an order that changes.
    target_logits = scale * _row_dot(embeddings, F.embedding(safe_labels, prototypes))
    smooth_logits: Tensor | None = None
    if label_smoothing:
        mean_prototype = prototypes.to(target_logits.dtype).mean(0)
        smooth_logits = scale * (embeddings.to(target_logits.dtype) @ mean_prototype)
    if margin:
        # The kernel leaves the target class out; its shifted logit comes back here, per row.
        others = _logsumexp(embeddings, prototypes, safe_labels, scale)
        shifted = _apply_margin(target_logits / scale, margin, margin_type) * scale
        logsumexp = torch.logaddexp(others, shifted)
        if smooth_logits is not None:
            smooth_logits = smooth_logits + (shifted - target_logits) / len(prototypes)
        target_logits = shifted
    else:
        logsumexp = _logsumexp(embeddings, prototypes, None, scale)
    if smooth_logits is not None:
        target_logits = (1 - label_smoothing) * target_logits + label_smoothing * smooth_logits
    return _reduce(logsumexp - target_logits, valid, reduction)


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

    Example:
        >>> import torch, fcl_ext
        >>> teacher = fcl_ext.teacher_readout(torch.eye(2), torch.eye(2), scale=1.0)
        >>> teacher.mean.shape, teacher.negative_entropy.shape
        (torch.Size([2, 2]), torch.Size([2]))
    """
    if normalize:
        teacher_embeddings = F.normalize(teacher_embeddings, dim=1)
        prototypes = F.normalize(prototypes, dim=1)
    logsumexp, mean = softmax_readout(teacher_embeddings, prototypes, scale=scale)
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
        prototypes: Class rows, shape ``(C, D)``, same dtype and device.
        teacher_embeddings: Old-model features of the same images, shape ``(N, D)``; constants.
        teacher: Instead: what :func:`teacher_readout` returned for them (same prototypes, scale
            and normalize).
        scale: Inverse temperature, > 0.
        normalize: Scale rows to unit length first.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or shape ``(N,)`` for ``"none"``.

    Raises:
        ValueError: Both or neither teacher given, or an option out of range.
        RuntimeError: Shapes, dtypes or devices that do not fit.

    Example:
        >>> import torch, fcl_ext
        >>> x, w = torch.eye(3), torch.eye(3)
        >>> round(abs(fcl_ext.compat_kl(x, w, teacher_embeddings=x, scale=5.0).item()), 6)
        0.0
    """
    _check_options(scale, 0.0, "cosface", 0.0, reduction)
    if (teacher is None) == (teacher_embeddings is None):
        raise ValueError(
            "compat_kl: expected either teacher_embeddings or teacher, got both or neither"
        )
    if normalize:
        embeddings, prototypes = F.normalize(embeddings, dim=1), F.normalize(prototypes, dim=1)
    if teacher_embeddings is not None:
        if normalize:
            teacher_embeddings = F.normalize(teacher_embeddings, dim=1)
        teacher = teacher_readout(teacher_embeddings, prototypes, scale=scale, normalize=False)
    assert teacher is not None
    mean, negative_entropy = teacher
    if mean.shape != embeddings.shape:
        raise ValueError(
            f"compat_kl: expected a teacher of shape [N, D] = {list(embeddings.shape)}, "
            f"got {list(mean.shape)}"
        )
    logsumexp = _logsumexp(embeddings, prototypes, None, scale)
    losses = logsumexp - scale * _row_dot(embeddings, mean) + negative_entropy
    return _reduce(losses, None, reduction)


class PositiveSets(NamedTuple):
    """For each label the rows of a feature bank that count as its positives, as CSR.

    Attributes:
        crow_indices: Shape ``(L + 1,)``, int64.
        col_indices: Rows of the bank, shape ``(E,)``, int64.
        log_weights: Shape ``(E,)`` with weights summing to 1 per label, or None for a plain mean.
    """

    crow_indices: Tensor
    col_indices: Tensor
    log_weights: Tensor | None = None

    @classmethod
    def from_labels(cls, feature_labels: Tensor, num_labels: int | None = None) -> PositiveSets:
        """The rows of one's own class.

        Args:
            feature_labels: Shape ``(R,)``, int64 >= 0.
            num_labels: L; default the largest label + 1.
        """
        if num_labels is None:
            num_labels = int(feature_labels.max()) + 1 if len(feature_labels) else 0
        sorted_labels, order = torch.sort(feature_labels, stable=True)
        bounds = torch.arange(num_labels + 1, device=feature_labels.device)
        return cls(torch.searchsorted(sorted_labels, bounds), order)


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
        feature_labels: Their labels, shape ``(R,)``, int64 >= 0.
        positives: Instead of feature_labels: ready :class:`PositiveSets`, to sort once per data
            set rather than once per step, or to weight the rows.
        scale: Inverse temperature, > 0.
        normalize: Scale rows to unit length first.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        Scalar, or shape ``(N,)`` for ``"none"``.

    Raises:
        ValueError: A label without positives (CPU tensors; on CUDA its loss is inf), both or
            neither of feature_labels and positives, or an option out of range.
        RuntimeError: Shapes, dtypes or devices that do not fit.

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
    _check_options(scale, 0.0, "cosface", 0.0, reduction)
    if (positives is None) == (feature_labels is None):
        raise ValueError(
            "compat_supcon: expected either feature_labels or positives, got both or neither"
        )
    if feature_labels is not None:
        if feature_labels.shape != features.shape[:1]:
            raise ValueError(
                f"compat_supcon: expected feature_labels of shape [R] = [{features.shape[0]}], "
                f"got {list(feature_labels.shape)}"
            )
        positives = PositiveSets.from_labels(feature_labels)
    assert positives is not None
    crow_indices, col_indices, log_weights = positives
    _check_labels("compat_supcon", labels, len(embeddings), len(crow_indices) - 1, None)
    counts = crow_indices[labels + 1] - crow_indices[labels]
    if labels.device.type == "cpu" and not torch.compiler.is_compiling() and (counts == 0).any():
        row = int((counts == 0).nonzero()[0])
        raise ValueError(
            f"compat_supcon: label {int(labels[row])} of row {row} has no row among the features"
        )
    if normalize:
        embeddings, features = F.normalize(embeddings, dim=1), F.normalize(features, dim=1)
    logsumexp = _logsumexp(embeddings, features, None, scale)
    # The mean is the gradient to the embeddings, so it is computed with the loss.
    need_mean = embeddings.requires_grad and torch.is_grad_enabled()
    log_positive, _ = ops.sparse_readout(
        embeddings, features, labels, crow_indices, col_indices, log_weights, scale, need_mean
    )
    if log_weights is None:
        log_positive = log_positive - torch.log(counts.to(log_positive.dtype))
    return _reduce(logsumexp - log_positive, None, reduction)


def _logsumexp(
    embeddings: Tensor, prototypes: Tensor, exclude: Tensor | None, scale: float
) -> Tensor:
    # The mean is the gradient to the embeddings: computed in the same pass, if anyone asks for it.
    need_mean = embeddings.requires_grad and torch.is_grad_enabled()
    return ops.softmax_readout(embeddings, prototypes, None, exclude, scale, need_mean)[0]


def _row_dot(left: Tensor, right: Tensor) -> Tensor:
    """Dot product of corresponding rows, accumulated as the kernels do."""
    dtype = torch.float64 if left.dtype == torch.float64 else torch.float32
    return (left.to(dtype) * right.to(dtype)).sum(1)


def _apply_margin(cosines: Tensor, margin: float, margin_type: str) -> Tensor:
    if margin_type == "cosface":
        return cosines - margin
    # Inside by a hair, so that the derivative of the sine stays finite at cos = +-1.
    sine = (1 - cosines.square()).clamp(min=torch.finfo(cosines.dtype).eps).sqrt()
    rotated = cosines * math.cos(margin) - sine * math.sin(margin)
    continued = cosines - margin * math.sin(margin)
    return torch.where(cosines > math.cos(math.pi - margin), rotated, continued)


def _reduce(losses: Tensor, valid: Tensor | None, reduction: str) -> Tensor:
    if valid is not None:
        losses = torch.where(valid, losses, torch.zeros_like(losses))
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.mean() if valid is None else losses.sum() / valid.sum()


def _check_options(
    scale: float, margin: float, margin_type: str, label_smoothing: float, reduction: str
) -> None:
    if not scale > 0 or math.isinf(scale):
        raise ValueError(f"scale: expected a finite number > 0, got {scale}")
    if margin_type not in ("cosface", "arcface"):
        raise ValueError(f"margin_type: expected 'cosface' or 'arcface', got {margin_type!r}")
    if not 0 <= margin < math.pi:
        raise ValueError(f"margin: expected a number in [0, pi), got {margin}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: expected a number in [0, 1], got {label_smoothing}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")


def _check_labels(
    function: str, labels: Tensor, num_rows: int, num_classes: int, ignore_index: int | None
) -> None:
    if labels.shape != (num_rows,) or labels.dtype != torch.int64:
        raise ValueError(
            f"{function}: expected labels of shape [N] = [{num_rows}] and dtype int64, "
            f"got {list(labels.shape)} and {labels.dtype}"
        )
    if labels.device.type != "cpu" or torch.compiler.is_compiling():
        return  # looking at values would wait for the device, or break the graph
    bad = (labels < 0) | (labels >= num_classes)
    if ignore_index is not None:
        bad &= labels != ignore_index
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"{function}: expected labels in [0, {num_classes}), "
            f"got {int(labels[row])} in row {row}"
        )
