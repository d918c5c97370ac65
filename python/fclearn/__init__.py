# SPDX-License-Identifier: Apache-2.0
"""Feature-compatible learning: upgrade an embedding model and keep the old index.

Data flows one way: :mod:`~fclearn.features` → :mod:`~fclearn.graph` → :mod:`~fclearn.classifiers` →
:mod:`~fclearn.losses` → :mod:`~fclearn.methods` → :mod:`~fclearn.training` →
:mod:`~fclearn.embedding` → :mod:`~fclearn.evaluation` → :mod:`~fclearn.report`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fclearn.classifiers import PseudoClassifier
    from fclearn.embedding import embed
    from fclearn.encoders import build_encoder
    from fclearn.evaluation import compatibility_report, evaluate_retrieval
    from fclearn.features import FeatureStore, Fingerprint
    from fclearn.graph import KnnGraph
    from fclearn.model_folder import load_model
    from fclearn.report import write_report
    from fclearn.training import TrainConfig, Trainer

__all__ = [
    "FeatureStore",
    "Fingerprint",
    "KnnGraph",
    "PseudoClassifier",
    "TrainConfig",
    "Trainer",
    "build_encoder",
    "compatibility_report",
    "embed",
    "evaluate_retrieval",
    "load_model",
    "write_report",
]

_HOME = {
    "FeatureStore": "features",
    "Fingerprint": "features",
    "KnnGraph": "graph",
    "PseudoClassifier": "classifiers",
    "TrainConfig": "training",
    "Trainer": "training",
    "build_encoder": "encoders",
    "compatibility_report": "evaluation",
    "embed": "embedding",
    "evaluate_retrieval": "evaluation",
    "load_model": "model_folder",
    "write_report": "report",
}


def __getattr__(name: str) -> object:
    # Imported on first use, so that `fcl --help` does not wait for torch and matplotlib.
    if name not in _HOME:
        raise AttributeError(f"module 'fclearn' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fclearn.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
