# SPDX-License-Identifier: Apache-2.0
"""The new model on its own: the paragon n* that compatible models are measured against."""

from __future__ import annotations

from fclearn.losses import LossTerm
from fclearn.methods.base import (
    NEW_CLASSIFIER_DEFAULTS,
    Assets,
    MethodSpec,
    Need,
    Settings,
    new_classifier,
)


def _build(assets: Assets, dim: int, settings: Settings) -> list[LossTerm]:
    return [new_classifier(assets, dim, settings)]


SPEC = MethodSpec(
    name="independent",
    title="Independent (no compatibility)",
    source="the paragon of every paper of the field",
    needs=(Need.LABELS,),
    defaults=NEW_CLASSIFIER_DEFAULTS,
    build=_build,
)
