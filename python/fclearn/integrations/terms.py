# SPDX-License-Identifier: Apache-2.0
"""Compatibility terms as one module, for a training that another library runs.

An engine hands a batch to its loss; what the terms need besides embeddings is which training rows
they are of. Labels are looked up here by row, so that they need not travel with the batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fclearn._row_tables import check_terms
from fclearn.features import FeatureSource, as_tensor
from fclearn.graph import KnnGraph
from fclearn.losses import EpochHook, LossTerm
from fclearn.methods import Assets, build_method

if TYPE_CHECKING:
    from fclearn.distributed.whole_batch import SharedBatch

# What methods call their terms; a name of one's own says more.
_COMMON_NAMES = {"new", "compat"}


class CompatTerms(nn.Module):
    """A sum of loss terms over embeddings and the numbers of their training rows.

    Where torch.distributed runs, a term that compares the rows of a batch gets those of all
    processes, which must all call this in every step, with as many rows. Gradients are then to be
    averaged, as DistributedDataParallel does.

    A plain module: its buffers follow ``.to(device)``, what was computed from old features is in
    its state, old features are not (see `fclearn.losses`).

    Args:
        terms: Summands; their names are those under which engines log them. Terms named as methods
            name them (``"compat"``) are logged by the name of their class.
        labels: Class of every training row, shape ``(N,)``, int64, as the terms were given.

    Raises:
        ValueError: No terms, one that sees images, labels of another shape or dtype, or terms that
            were made for other training rows, by the number or, as far as known, their labels.

    Example:
        >>> from fclearn.losses import InstanceCompatLoss, L2CompatLoss
        >>> old, labels = torch.eye(3), torch.tensor([0, 1, 1])
        >>> terms = CompatTerms([LossTerm("instances", 1.0, InstanceCompatLoss(old, labels)),
        ...                      LossTerm("own", 1.0, L2CompatLoss(old))], labels)
        >>> loss = terms(torch.ones(2, 5), torch.tensor([0, 2]))
        >>> sorted(terms.values(torch.ones(2, 5), torch.tensor([0, 2])))
        ['instances', 'own']
    """

    labels: Tensor

    def __init__(self, terms: Sequence[LossTerm], labels: Tensor) -> None:
        super().__init__()
        if not terms:
            raise ValueError("terms: expected at least one")
        if labels.ndim != 1 or labels.dtype != torch.int64:
            raise ValueError(
                f"labels: expected int64 of shape (N,), got {labels.dtype} of {list(labels.shape)}"
            )
        check_terms(terms, labels, argument="terms", given="labels")
        for term in terms:
            if term.sees_images:
                raise ValueError(
                    f"terms: expected terms of embeddings, labels and rows, got {term.name!r} "
                    f"({type(term.module).__name__}), which sees images; fclearn.Trainer gives them"
                )
        self.register_buffer("labels", labels.detach().clone(), persistent=False)
        self.names = _names(terms)
        self.weights = [term.weight for term in terms]
        self._whole_batch = [term.whole_batch for term in terms]
        self.modules_of_terms = nn.ModuleList([term.module for term in terms])
        self._epoch: tuple[int, int] | None = None

    @classmethod
    def from_method(
        cls,
        name: str,
        old_features: FeatureSource | None,
        labels: Tensor,
        *,
        dim: int,
        own_classifier: bool = False,
        old_scores: KnnGraph | None = None,
        **settings: float | str | bool,
    ) -> CompatTerms:
        """The terms of a method of `fclearn.methods`.

        Args:
            name: Of the method; ``"ni-fcl"`` is the one to start with.
            old_features: Of the training rows: a store, its path, a ``.npy`` file, an array or a
                tensor, ``(N, D_old)``; None for a method that needs none.
            labels: Class of every row, shape ``(N,)``, int64, 0 .. C - 1.
            dim: Of the new embeddings, at least that of the old features.
            own_classifier: Also train the classifier that every method gives the new model; False:
                your own loss does what it is for.
            old_scores: For ``"ni-fcl-scores"``: the lists of an old service, a node per row
                (`fclearn.score_lists.read_score_lists`).
            settings: Overrides of the method's defaults.

        Raises:
            ValueError: What `fclearn.methods.build_method` refuses, a method without compatibility
                terms, or one whose terms need the classifier without ``own_classifier``.

        Example:
            >>> labels = torch.arange(20) % 2
            >>> terms = CompatTerms.from_method("l2", torch.randn(20, 4), labels, dim=6)
            >>> terms.names
            ['L2CompatLoss']
        """
        features = None if old_features is None else as_tensor(old_features)
        assets = Assets(labels, old_features=features, old_scores=old_scores)
        built = build_method(name, assets, dim, **settings)
        kept = [term for term in built if own_classifier or term.name != "new"]
        if all(term.name == "new" for term in kept):
            raise ValueError(f"method {name!r}: expected one with compatibility terms, it has none")
        left_out = {
            parameter
            for term in built
            if term not in kept
            for parameter in term.module.parameters()
        }
        if any(parameter in left_out for term in kept for parameter in term.module.parameters()):
            raise ValueError(
                f"method {name!r}: its terms act on the classifier it gives the new model; "
                "expected own_classifier=True, got False"
            )
        return cls(kept, labels)

    def values(self, embeddings: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """Each term's weighted value, a scalar by name.

        Args:
            embeddings: Shape ``(B, D)``, floating, not normalised; float16 and bfloat16 are
                computed in float32. Their first dims are compared with the old features.
            rows: Which training rows they are of, shape ``(B,)``, integers in ``[0, N)``.

        Raises:
            ValueError: Shapes that do not fit, rows that are no integers or out of range (the
                latter on the CPU only), embeddings narrower than the old features, or processes
                with other numbers of rows where a term needs those of all (on the CPU).
        """
        rows = self._checked(embeddings, rows)
        if embeddings.dtype in {torch.float16, torch.bfloat16}:
            embeddings = embeddings.float()
        labels = self.labels[rows]
        values: dict[str, Tensor] = {}
        whole: SharedBatch | None = None
        for name, weight, module, whole_batch in zip(
            self.names, self.weights, self.modules_of_terms, self._whole_batch, strict=True
        ):
            if whole_batch and _several_processes():
                if whole is None:
                    from fclearn.distributed.whole_batch import SharedBatch  # noqa: PLC0415  (slow)

                    whole = SharedBatch(embeddings, labels, rows)
                values[name] = weight * whole.value(module)
            else:
                values[name] = weight * module(embeddings, labels, rows)
        return values

    def forward(self, embeddings: Tensor, rows: Tensor) -> Tensor:
        """The sum of `values`."""
        return torch.stack(list(self.values(embeddings, rows).values())).sum()

    @property
    def follows_epochs(self) -> bool:
        """Whether a term changes between epochs and must be told of them."""
        return any(isinstance(module, EpochHook) for module in self.modules_of_terms)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Tell the terms that follow epochs, once per epoch: may be called in every step.

        Args:
            epoch: From 1.
            epochs: Of the whole training.
        """
        if self._epoch == (epoch, epochs):
            return
        self._epoch = (epoch, epochs)
        for module in self.modules_of_terms:
            if isinstance(module, EpochHook):
                module.on_epoch(epoch, epochs)

    def _checked(self, embeddings: Tensor, rows: Tensor) -> Tensor:
        if embeddings.ndim != 2 or not embeddings.is_floating_point():
            raise ValueError(
                "embeddings: expected floating of shape (B, D), "
                f"got {embeddings.dtype} of {list(embeddings.shape)}"
            )
        if rows.shape != embeddings.shape[:1] or rows.dtype not in {torch.int32, torch.int64}:
            raise ValueError(
                f"rows: expected integers of shape ({len(embeddings)},), one per embedding, "
                f"got {rows.dtype} of {list(rows.shape)}"
            )
        if rows.device.type == "cpu":  # elsewhere, looking at values would wait for the device
            bad = rows[(rows < 0) | (rows >= len(self.labels))]
            if len(bad):
                raise ValueError(
                    f"rows: expected numbers of training rows in [0, {len(self.labels)}), "
                    f"got {int(bad[0])}"
                )
        return rows.to(self.labels.device, torch.int64)

    def extra_repr(self) -> str:
        """Names and weights."""
        weights = ", ".join(
            f"{name}={weight}" for name, weight in zip(self.names, self.weights, strict=True)
        )
        return f"num_rows={len(self.labels)}, {weights}"


def _several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _names(terms: Sequence[LossTerm]) -> list[str]:
    plain = [
        type(term.module).__name__ if term.name in _COMMON_NAMES else term.name for term in terms
    ]
    repeated = {name for name, count in Counter(plain).items() if count > 1}
    seen: Counter[str] = Counter()
    names = []
    for name in plain:
        seen[name] += 1
        names.append(f"{name}_{seen[name]}" if name in repeated else name)
    return names
