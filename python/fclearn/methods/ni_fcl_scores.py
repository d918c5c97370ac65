# SPDX-License-Identifier: Apache-2.0
r"""NI-FCL from scores alone: the new model is to order images as the old service ordered them.

The old service gives no vectors: it answers each training image with a ranked list of training
images and scores. The loss is KL(old || new) between two softmaxes over an image's list: of its
scores, and of the cosines between its embedding and those that the listed images last had in
training. Members not yet seen are left out of both. Scores are divided by their spread within
lists, so the service's unit does not matter. With ``damping`` the old side is walked over the
graph of the lists first, as features are elsewhere; it is off, for a walk gives up part of the
order the service's users see where lists contradict each other.

It keeps more of the order of results, new queries among new images, once *all* images are embedded
by the new model: what was found first should not needlessly change. Without vectors there is
nothing a new query could be compared with in the old index: it does not make the new model
compatible with that. Nor does it say anything of images outside the lists, which are left to the
new classifier.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fclearn import _csr
from fclearn._row_tables import at_rows
from fclearn.graph import KnnGraph
from fclearn.losses import LossModule, LossTerm
from fclearn.methods.base import (
    NEW_CLASSIFIER_DEFAULTS,
    Assets,
    MethodSpec,
    Need,
    Settings,
    new_classifier,
)

# Of a walk's mass from an image, what may be missing.
_EPSILON = 1e-3


class ScoreListLoss(LossModule):
    r"""KL between what old scores and new cosines say of the images in one's list.

    .. math:: \ell_i = \sum_{j \in S_i} p_{ij} \log\frac{p_{ij}}{q_{ij}}, \quad
        p_i = \mathrm{softmax}_{S_i}(\beta s_{ij} / \sigma), \quad
        q_i = \mathrm{softmax}_{S_i}(\alpha \cos(z_i, m_j))

    :math:`S_i` are the members j of the list of i that have an embedding :math:`m_j` by now, in
    this batch or an earlier one; :math:`\sigma` is the standard deviation of scores within lists.
    With damping :math:`\lambda`, p is the part of :math:`(1 - \lambda)(I - \lambda P)^{-1} P` that
    is on the list, renormalised, P being the p above over whole lists.

    Args:
        scores: Graph of N nodes, one per training image; row i has the images found for image i.
            Edges of an image to itself are left out.
        dim: Of the embeddings D: all of it is compared.
        scale: :math:`\alpha`, inverse temperature of the cosines.
        old_scale: :math:`\beta`, that of the scores in units of their spread.
        k: Members of a list that count, those with the highest scores.
        damping: Probability of walking on, in [0, 1); 0: no walk. One took 20 s for 20,000 lists of
            50 on two cores that were not idle.

    Raises:
        ValueError: An option out of range, images without a list, no two scores of a list that
            differ.

    Note:
        Memory is ``(N, D)`` for the embeddings and ``(N, K)``, K at most ``k``, for the lists; a
        batch costs O(B K D).

    References:
        Scores in the place of vectors: after Shen, Wu, Shan, ICLR 2021 submission, whose form of
        it is not published.

    Example:
        >>> graph = KnnGraph.from_knn(torch.tensor([[1, 2], [0, 2], [0, 1]]), torch.rand(3, 2))
        >>> term = ScoreListLoss(graph, dim=4)
        >>> term(torch.randn(3, 4), torch.zeros(3), torch.arange(3)).shape
        torch.Size([])
    """

    whole_batch = True
    members: Tensor
    log_old: Tensor
    last_embeddings: Tensor
    by_row = ("members", "log_old", "last_embeddings")

    def __init__(
        self,
        scores: KnnGraph,
        dim: int,
        *,
        scale: float = 10.0,
        old_scale: float = 2.0,
        k: int = 100,
        damping: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value in (("scale", scale), ("old_scale", old_scale)):
            if not value > 0:
                raise ValueError(f"{name}: expected a positive number, got {value}")
        if k < 1:
            raise ValueError(f"k: expected at least 1 member of a list, got {k}")
        if not 0 <= damping < 1:
            raise ValueError(f"damping: expected a number in [0, 1), got {damping}")
        members, values = _padded(scores, k)
        log_old = _log_softmax(old_scale * _in_spreads(values, members >= 0), members >= 0)
        if damping:
            log_old = _walked(members, log_old, damping)
        # Finite also as float32, so that 0 times it is 0.
        log_old = log_old.clamp(min=-1e30).masked_fill(members < 0, 0.0)
        # Whoever resumes has the lists; the embeddings go with the checkpoint.
        self.register_buffer("members", members, persistent=False)
        self.register_buffer("log_old", log_old.float(), persistent=False)
        # Zero until an image is seen, which no unit vector is.
        self.register_buffer("last_embeddings", torch.zeros(len(members), dim))
        self.scale, self.old_scale, self.k, self.damping = scale, old_scale, k, damping

    def forward(self, embeddings: Tensor, labels: Tensor, rows: Tensor) -> Tensor:  # noqa: ARG002
        """Mean loss of the batch; an image of whose list none is seen yet counts as 0.

        Raises:
            ValueError: Embeddings of another dim, or another number of rows than of them.
        """
        dim = self.last_embeddings.shape[1]
        if embeddings.shape[1] != dim:
            raise ValueError(f"embeddings: expected {dim} dims, got {embeddings.shape[1]}")
        members = at_rows(self.members, rows, embeddings)
        unit = F.normalize(embeddings, dim=1)
        if self.training:
            self.last_embeddings[rows] = unit.detach().to(self.last_embeddings.dtype)
        found = self.last_embeddings[members.clamp(min=0)]  # (B, K, D)
        seen = (members >= 0) & found.any(2)
        cosines = torch.einsum("bd,bkd->bk", unit, found.to(unit.dtype))
        new = _log_softmax(self.scale * cosines, seen)
        old = _log_softmax(self.log_old[rows].to(unit.dtype), seen)
        return torch.where(seen, old.exp() * (old - new), 0.0).sum(1).mean()

    def extra_repr(self) -> str:
        """Shapes and hyper-parameters."""
        (count, width), dim = self.members.shape, self.last_embeddings.shape[1]
        names = ("scale", "old_scale", "k", "damping")
        options = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        return f"num_images={count}, list_length={width}, dim={dim}, {options}"


def _padded(scores: KnnGraph, k: int) -> tuple[Tensor, Tensor]:
    """Members ``(N, K)``, -1 for none, and scores in float64, the k highest of each list."""
    scores = scores.to("cpu")
    rows, cols = _csr.row_of_edge(scores.crow_indices), scores.col_indices.long()
    keep = (cols >= 0) & (cols != rows)
    rows, cols, values = rows[keep], cols[keep], scores.values.detach()[keep].double()
    counts = torch.bincount(rows, minlength=scores.num_nodes)
    alone = (counts == 0).nonzero()
    if len(alone):
        raise ValueError(
            f"old_scores: image {int(alone[0])} has no list of other images ({len(alone)} such)"
        )
    order = torch.from_numpy(np.lexsort((-values.numpy(), rows.numpy())))
    rows, cols, values = rows[order], cols[order], values[order]
    place = torch.arange(len(rows)) - _csr.offsets(counts)[rows]
    first = place < k
    shape = (scores.num_nodes, min(k, int(counts.max())))
    where = (rows[first], place[first])
    members = torch.full(shape, -1, dtype=torch.int64).index_put(where, cols[first])
    return members, torch.zeros(shape, dtype=torch.float64).index_put(where, values[first])


def _in_spreads(values: Tensor, listed: Tensor) -> Tensor:
    """Scores from the mean of their list, over the standard deviation from it within all lists."""
    values = values / values.abs().max().clamp(min=torch.finfo(values.dtype).tiny)
    means = values.sum(1, keepdim=True) / listed.sum(1, keepdim=True)
    centred = torch.where(listed, values - means, 0.0)
    spread = (centred.square().sum() / listed.sum()).sqrt()
    if not spread > torch.finfo(values.dtype).eps:
        raise ValueError("old_scores: expected scores that differ within a list, got equal ones")
    return centred / spread


def _log_softmax(logits: Tensor, among: Tensor) -> Tensor:
    """Over the entries of each row that are among; others and empty rows finite, for gradients."""
    return logits.masked_fill(~among, torch.finfo(logits.dtype).min).log_softmax(1)


def _walked(members: Tensor, log_old: Tensor, damping: float) -> Tensor:
    """Logarithms of the walked probabilities on the lists, up to a constant per row."""
    listed = members >= 0
    steps = log_old.exp()
    graph = KnnGraph.from_csr(_csr.offsets(listed.sum(1)), members[listed], steps[listed])
    # R = (1 - d) I + d R P: off its diagonal, R P is R / d.
    crow, ends, weights = graph.normalize(mode="none").walk_labels(
        torch.arange(len(members)), damping, epsilon=_EPSILON, num_classes=len(members)
    )
    keys = _csr.row_of_edge(crow) * len(members) + ends.long()
    wanted = torch.arange(len(members))[:, None] * len(members) + members
    place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    found = torch.where(keys[place] == wanted, weights[place].double() / damping, 0.0)
    # What the walk cut off still has the one step from the image itself.
    return torch.maximum(found.log(), log_old + float(np.log1p(-damping)))


def _build(assets: Assets, dim: int, settings: Settings) -> list[LossTerm]:
    assert assets.old_scores is not None  # a need
    module = ScoreListLoss(
        assets.old_scores,
        dim,
        scale=float(settings["scale"]),
        old_scale=float(settings["old_scale"]),
        k=int(settings["k"]),
        damping=float(settings["damping"]),
    )
    return [
        new_classifier(assets, dim, settings),
        LossTerm("compat", float(settings["weight"]), module),
    ]


SPEC = MethodSpec(
    name="ni-fcl-scores",
    title="NI-FCL, old scores only (for the order of results)",
    source="after Shen, Wu, Shan, Non-Inherent Feature Compatible Learning, ICLR 2021 submission",
    needs=(Need.LABELS, Need.OLD_SCORES),
    defaults={
        **NEW_CLASSIFIER_DEFAULTS,
        "scale": 10.0,
        "old_scale": 2.0,
        "k": 100,
        "damping": 0.0,
        "weight": 3.0,
    },
    build=_build,
)
