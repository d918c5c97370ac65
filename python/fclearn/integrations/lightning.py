# SPDX-License-Identifier: Apache-2.0
"""Compatibility terms in the ``training_step`` of a LightningModule.

Works with `lightning` and `pytorch_lightning` alike: it calls the module and imports neither. As a
submodule, terms are moved to the device, trained and checkpointed with the rest.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fclearn.integrations.terms import CompatTerms


def compat_loss(module: Any, terms: CompatTerms, embeddings: Tensor, rows: Tensor) -> Tensor:
    """The compatibility terms of a batch, to be added to your loss; each is logged.

    Terms that change between epochs are told which epoch it is.

    Args:
        module: The LightningModule whose ``training_step`` this is called in.
        terms: A submodule of it: ``self.compat = terms`` in its ``__init__``.
        embeddings: Shape ``(B, D)``, floating.
        rows: Which training rows they are of, shape ``(B,)``, integers.

    Returns:
        Scalar. Logged are ``"compat/NAME"``, as weighted.

    Raises:
        ValueError: Terms that are no submodule, terms that follow epochs under a trainer without
            ``max_epochs``, or what `CompatTerms.values` refuses.

    Example:
        >>> import torch
        >>> from fclearn.losses import L2CompatLoss, LossTerm
        >>> class Net(torch.nn.Module):  # stands for a LightningModule
        ...     def __init__(self, terms):
        ...         super().__init__()
        ...         self.compat = terms
        ...     def log_dict(self, values, **_options):
        ...         print(values)
        ...     def training_step(self, batch, _number):
        ...         embeddings, rows = batch
        ...         return compat_loss(self, self.compat, embeddings, rows)
        >>> terms = CompatTerms([LossTerm("own", 2.0, L2CompatLoss(torch.eye(3)))], torch.arange(3))
        >>> loss = Net(terms).training_step((torch.eye(3, 4), torch.tensor([0, 1, 2])), 0)
        {'compat/own': tensor(0.)}
    """
    # Children first: walking through all modules of a large encoder takes a while.
    if terms not in module.children() and not any(terms is part for part in module.modules()):
        raise ValueError(
            "terms: expected a submodule of the LightningModule, which Lightning moves to the "
            "device and saves; set self.compat = terms in its __init__"
        )
    if terms.follows_epochs:
        epochs = module.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise ValueError(
                "trainer: expected max_epochs, over which the weight of a term changes, "
                f"got {epochs}"
            )
        terms.begin_epoch(module.current_epoch + 1, epochs)
    values = terms.values(embeddings, rows)
    module.log_dict(
        {f"compat/{name}": value.detach() for name, value in values.items()},
        batch_size=len(embeddings),
    )
    return torch.stack(list(values.values())).sum()
