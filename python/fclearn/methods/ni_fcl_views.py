# SPDX-License-Identifier: Apache-2.0
"""NI-FCL where the frozen old model can still be asked: about the very views that are trained on.

As ``ni-fcl``, but the third term, the squared distance to the image's own old feature, compares the
embedding of a shifted, rotated or cropped view with the old feature of that same view, where the
cache has the old feature of the image as it is. No view is pulled to a target that was made of
another picture, and every epoch shows the new model targets it has not seen. It costs one pass of
the old model per batch; nothing flows back through it.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fclearn.losses import LossModule, LossTerm, compatible_unit
from fclearn.methods import ni_fcl
from fclearn.methods.base import Assets, MethodSpec, Need, Settings


class OldViewLoss(LossModule):
    """Squared distance between unit embedding and unit old feature of the same view.

    Args:
        old_model: From images ``(B, C, H, W)`` to features ``(B, D_old)``. A copy is kept, frozen
            and in evaluation mode, on the device of the images; it is no part of the state.

    Shapes: called with embeddings ``(B, D)``, labels ``(B,)``, rows ``(B,)`` and the images that
    the embeddings were made of.

    Example:
        >>> term = OldViewLoss(nn.Flatten())
        >>> images = torch.rand(2, 1, 2, 2)
        >>> float(term(3 * images.flatten(1), torch.zeros(2), torch.arange(2), images)) < 1e-9
        True
    """

    sees_images = True

    def __init__(self, old_model: nn.Module) -> None:
        super().__init__()
        frozen = copy.deepcopy(old_model).eval().requires_grad_(False)
        # In a tuple, so that it is no submodule: neither put into training mode nor saved.
        self._frozen = (frozen,)

    def frozen_tensors(self) -> dict[str, Tensor]:
        """Those of the old model, by name: a training is not resumed with another one."""
        (model,) = self._frozen
        named = (*model.named_parameters(), *model.named_buffers())
        return {f"old_model.{name}": tensor for name, tensor in named}

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,  # noqa: ARG002
        rows: Tensor,  # noqa: ARG002
        images: Tensor | None = None,
    ) -> Tensor:
        """Mean loss of the batch.

        Raises:
            ValueError: No images: a training loop that does not hand them on.
        """
        if images is None:
            raise ValueError(
                "images: the old model is asked about the views of the batch; got None"
            )
        old = self._frozen[0].to(images.device)
        with torch.no_grad():
            target = F.normalize(old(images).float(), dim=1)
        part = compatible_unit(embeddings, target.shape[1])
        return (part - target).square().sum(1).mean()


def _build(assets: Assets, dim: int, settings: Settings) -> list[LossTerm]:
    assert assets.old_model is not None
    terms = ni_fcl.instance_terms(assets, dim, {**settings, "own_weight": 0.0})
    weight = ni_fcl.own_weight(assets, settings)
    views = LossTerm("compat", weight, OldViewLoss(assets.old_model))
    return [*terms, views]


SPEC = MethodSpec(
    name="ni-fcl-views",
    title="NI-FCL, instance level + learned head, old features of augmented views",
    source=ni_fcl.SPEC.source,
    needs=(*ni_fcl.SPEC.needs, Need.OLD_MODEL),
    defaults=ni_fcl.SPEC.defaults,
    build=_build,
)
