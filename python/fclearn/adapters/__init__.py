# SPDX-License-Identifier: Apache-2.0
"""Upgrades without training an encoder: maps between the feature spaces of two models."""

from fclearn.adapters.base import Adapter, load_adapter
from fclearn.adapters.forward import ForwardMap
from fclearn.adapters.heads import CompatHead, MlpMap
from fclearn.adapters.maps import LowRank, MeanShift, Procrustes, Ridge

__all__ = [
    "Adapter",
    "CompatHead",
    "ForwardMap",
    "LowRank",
    "MeanShift",
    "MlpMap",
    "Procrustes",
    "Ridge",
    "load_adapter",
]
