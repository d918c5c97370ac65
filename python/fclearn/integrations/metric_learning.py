# SPDX-License-Identifier: Apache-2.0
"""Compatibility losses as losses of `pytorch_metric_learning`."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fcl_ext
from fclearn.losses import PseudoClassifierLoss, compatible_unit

try:
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.losses import BaseMetricLossFunction, CrossBatchMemory
    from pytorch_metric_learning.utils import common_functions as c_f
    from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
except ModuleNotFoundError as error:
    if error.name != "pytorch_metric_learning":
        raise
    raise ModuleNotFoundError(
        "fclearn.integrations.metric_learning needs pytorch-metric-learning: "
        "pip install pytorch-metric-learning",
        name=error.name,
    ) from None


class _Rows(NamedTuple):
    """Old features of unit length, and for each of their classes which of them it has."""

    features: Tensor
    classes: Tensor
    crow_indices: Tensor
    col_indices: Tensor


def _rows(features: Tensor, labels: Tensor) -> _Rows:
    if labels.shape != features.shape[:1] or len(labels) == 0:
        raise ValueError(
            f"labels: expected one per old feature ({len(features)}) and at least one, "
            f"got {list(labels.shape)}"
        )
    # Labels of the library are any integers; sets of positives go by consecutive ones.
    classes, numbers = torch.unique(labels.to(features.device), return_inverse=True)
    crow_indices, col_indices, _ = fcl_ext.PositiveSets.from_labels(numbers)
    return _Rows(F.normalize(features.detach(), dim=1), classes, crow_indices, col_indices)


class OldFeaturesLoss(BaseMetricLossFunction):  # type: ignore[misc]
    r"""New embeddings against old features, each a frozen row, those of one's class the target set.

    .. math:: L_i = \log \sum_j e^{s \langle x_i, f_j \rangle}
        - \log \frac{1}{n_{y_i}} \sum_{j: y_j = y_i} e^{s \langle x_i, f_j \rangle}

    The rows :math:`f` are the ``ref_emb`` of every call with their ``ref_labels``, or those given
    here (which trainers of the library need, for they pass no ``ref_emb``). One loss per embedding,
    so that any reducer works; a class without old rows has loss 0. Embeddings may be wider than the
    old features: their first dims are compared.

    Args:
        features: Old features, shape ``(R, D_old)``, floating; None: every call gives ``ref_emb``.
        labels: Their classes, shape ``(R,)``, integers.
        scale: Inverse temperature.
        kwargs: Of `BaseMetricLossFunction`: ``reducer`` and the like. The distance is the cosine.

    Raises:
        ValueError: Only one of features and labels, another number of them, a call that gives old
            features besides those given here, or neither, or embeddings narrower than they are.

    Note:
        A miner's ``indices_tuple`` weighs embeddings by how often they are anchors, as in the
        library's own classification losses. For a memory of old features see `OldFeaturesMemory`.
        In `DistributedLossWrapper` use ``efficient=False``.

    References:
        As `fcl_ext.compat_supcon`, which it equals.

    Example:
        >>> loss = OldFeaturesLoss()
        >>> x, old, labels = torch.randn(4, 6), torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
        >>> loss(x, labels, ref_emb=old, ref_labels=labels).shape
        torch.Size([])
    """

    features: Tensor | None
    classes: Tensor | None
    crow_indices: Tensor | None
    col_indices: Tensor | None

    def __init__(
        self,
        features: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        scale: float = 10.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, CosineSimilarity)
        if (features is None) != (labels is None):
            raise ValueError("features, labels: expected both or neither, got one of them")
        held = None if features is None or labels is None else _rows(features, labels)
        # As large as the training set: not in the state, as in fclearn.losses.
        for name in _Rows._fields:
            self.register_buffer(name, held and getattr(held, name), persistent=False)
        self.scale = scale

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: tuple[Tensor, ...] | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> dict[str, dict[str, Any]]:
        """Losses per embedding, for the reducer."""
        c_f.labels_required(labels)
        assert labels is not None
        # The library's stand-in for "not given" is the embeddings themselves.
        given = ref_emb is not embeddings
        if given == (self.features is not None) or (given and ref_labels is None):
            raise ValueError(
                "ref_emb: expected old features either at construction or with every call, with "
                f"their labels; got features={'None' if self.features is None else 'given'}, "
                f"ref_emb={'given' if given else 'None'}, "
                f"ref_labels={'given' if given and ref_labels is not None else 'None'}"
            )
        old = (
            _rows(ref_emb, ref_labels)
            if given and ref_labels is not None
            else _Rows(*(getattr(self, name) for name in _Rows._fields))
        )
        losses = self._losses(embeddings, labels, old)
        weights = lmu.convert_to_weights(indices_tuple, labels, losses.dtype, using_ref=True)
        return {
            "loss": {
                "losses": losses * weights,
                "indices": c_f.torch_arange_from_size(embeddings),
                "reduction_type": "element",
            }
        }

    def get_default_distance(self) -> nn.Module:
        """The cosine."""
        distance: nn.Module = CosineSimilarity()
        return distance

    def _losses(self, embeddings: Tensor, labels: Tensor, old: _Rows) -> Tensor:
        part = compatible_unit(embeddings, old.features.shape[1])
        numbers = torch.searchsorted(old.classes, labels).clamp(max=len(old.classes) - 1)
        known = old.classes[numbers] == labels
        losses = fcl_ext.compat_supcon(
            part,
            torch.where(known, numbers, 0),
            old.features.to(part.dtype),
            positives=(old.crow_indices, old.col_indices, None),
            scale=self.scale,
            normalize=False,
            reduction="none",
        )
        return torch.where(known, losses, 0.0)

    def extra_repr(self) -> str:
        """What it holds."""
        count = 0 if self.features is None else len(self.features)
        return f"num_features={count}, scale={self.scale}"


class OldFeaturesMemory(CrossBatchMemory):  # type: ignore[misc]
    """`CrossBatchMemory` that takes `OldFeaturesLoss`, which the library's own list leaves out.

    For old features that are computed while training, by a frozen old model: give those of the
    batch below its embeddings, and let ``enqueue_mask`` put them alone into the memory.

    Args:
        loss: An `OldFeaturesLoss` without features of its own.
        embedding_size: Dim of the old features.
        memory_size: How many the memory holds.

    Example:
        >>> memory = OldFeaturesMemory(OldFeaturesLoss(), embedding_size=3, memory_size=8)
        >>> x, old, labels = torch.randn(4, 6), torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
        >>> memory(torch.cat([x[:, :3], old]), labels.repeat(2), enqueue_mask=torch.arange(8) >= 4)
        tensor(...)
    """

    @staticmethod
    def supported_losses() -> list[str]:
        """Names of classes."""
        return [OldFeaturesLoss.__name__]


class TermLoss(BaseMetricLossFunction):  # type: ignore[misc]
    """A loss of `fclearn.losses` or of a method that looks at embeddings and labels alone.

    Args:
        module: Called as ``module(embeddings, labels)``, such as
            `fclearn.losses.PseudoClassifierLoss`.
        kwargs: Of `BaseMetricLossFunction`.

    Raises:
        ValueError: A loss that must be called with the numbers of training rows, which the library
            passes to no loss; a call with ``ref_emb`` or ``indices_tuple``.

    Example:
        >>> from fclearn.losses import PseudoClassifierLoss
        >>> loss = TermLoss(PseudoClassifierLoss(torch.eye(3)))
        >>> loss(torch.randn(2, 4), torch.tensor([0, 2])).shape
        torch.Size([])
    """

    def __init__(self, module: nn.Module, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if _needs_rows(module):
            raise ValueError(
                f"module: {type(module).__name__} needs the numbers of training rows, which "
                "pytorch-metric-learning does not pass; expected a loss of embeddings and labels"
            )
        self.module = module

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: tuple[Tensor, ...] | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> dict[str, dict[str, Any]]:
        """The loss of the batch, a scalar."""
        c_f.labels_required(labels)
        c_f.indices_tuple_not_supported(indices_tuple)
        c_f.ref_not_supported(embeddings, labels, ref_emb, ref_labels)
        loss = self.module(embeddings, labels)
        return {"loss": {"losses": loss, "indices": None, "reduction_type": "already_reduced"}}


def _needs_rows(module: nn.Module) -> bool:
    if isinstance(module, PseudoClassifierLoss):
        return module.soft_targets is not None
    required = [
        one.name
        for one in inspect.signature(module.forward).parameters.values()
        if one.default is one.empty and one.kind in {one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD}
    ]
    return len(required) > 2  # embeddings and labels
