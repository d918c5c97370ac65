# SPDX-License-Identifier: Apache-2.0
"""The stages of an upgrade; each leaves its features in a folder and is skipped if they exist."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from fclearn._files import replacing
from fclearn.datasets import LabelledSet
from fclearn.embedding import embed, manifest_of
from fclearn.encoders import build_encoder
from fclearn.experiments.upgrade import UpgradeConfig, UpgradeData
from fclearn.features import FeatureStore, Fingerprint, as_tensor
from fclearn.losses import CosineClassifierLoss, LossTerm
from fclearn.methods import Assets, build_method, get_method
from fclearn.training import TrainConfig, Trainer


@dataclass(frozen=True)
class Stages:
    """Trains and embeds, or finds what an earlier call left.

    Attributes:
        config: Sizes and budgets.
        data: Who sees what.
        output: Folder of feature stores, checkpoints and histories.
        name: What the run is called, in fingerprints and messages.
        facts: What else the features depend on; features of other facts are refused.
        keep_classifier: Keep the rows of the old model's classifier, for methods that need them.
        keep_old_model: Keep the old model itself, for methods that ask it about augmented images.
        frozen: Features of an old model that others have trained, found by id; None: one is
            trained here.
        progress: Show progress on stderr, if that is a terminal.
    """

    config: UpgradeConfig
    data: UpgradeData
    output: Path
    name: str
    facts: Mapping[str, object] = field(default_factory=dict)
    keep_classifier: bool = False
    keep_old_model: bool = False
    frozen: FeatureStore | None = None
    progress: bool = True

    def old_features(self) -> tuple[FeatureStore, FeatureStore]:
        """Train the old model, or ask the frozen one; store its features, forget it.

        Returns:
            Features of the new training images, and of the held-out ones.

        Raises:
            ValueError: The folder holds features of another configuration.
            OSError: The folder cannot be written.
        """
        dim = self.config.old_dim
        if self.frozen is not None:
            return (
                self._ask(self.frozen, self.data.new, "old-train"),
                self._ask(self.frozen, self.data.test, "old-test"),
            )
        wanted = [self._store_path("old-train"), self._store_path("old-test")]
        if self.keep_classifier:
            wanted.append(self._classifier_path)
        if self.keep_old_model:
            wanted.append(self._old_model_path)
        if not all(path.exists() for path in wanted):
            encoder, losses = self._train(
                "old",
                self.config.old_encoder,
                "independent",
                Assets(torch.from_numpy(self.data.old.labels)),
                self.data.old,
                dim,
                replace(self.config.train, clean_share=self.config.old_clean_share),
            )
            if self.keep_classifier:
                self._save_classifier(losses)
            if self.keep_old_model:
                with replacing(self._old_model_path) as temporary:
                    state = {key: value.contiguous() for key, value in encoder.state_dict().items()}
                    save_file(state, temporary)
            self._embed(encoder, self.data.new, "old-train", dim)
            self._embed(encoder, self.data.test, "old-test", dim)
        # From here on nobody can ask the old model anything, unless it was to be kept.
        (self.output / "old" / "checkpoint.pt").unlink(missing_ok=True)
        return self._open("old-train", dim), self._open("old-test", dim)

    def old_classifier(self) -> NDArray[np.float32]:
        """Rows of the old model's classifier, one per class of ``data.old``, ``(K, D_old)``.

        Raises:
            FileNotFoundError: It was not kept, or the old model is not trained yet.
        """
        rows: NDArray[np.float32] = np.load(self._classifier_path, allow_pickle=False)
        return rows

    def old_model(self) -> torch.nn.Module:
        """The old model.

        Raises:
            FileNotFoundError: It was not kept, or is not trained yet.
        """
        channels = self.data.old.channels
        encoder = build_encoder(self.config.old_encoder, dim=self.config.old_dim, channels=channels)
        encoder.load_state_dict(load_file(self._old_model_path))
        return encoder

    def assets(self, old_train: FeatureStore) -> Assets:
        """What is left of the old model: its features of the training images.

        Raises:
            ValueError: Features of other images than the training's.
        """
        if old_train.ids != list(self.data.new.ids):
            raise ValueError(f"{old_train.path}: features of other images than the training's")
        return Assets(
            torch.from_numpy(self.data.new.labels),
            old_features=torch.from_numpy(np.array(old_train.features)),
        )

    def new_features(self, method: str, assets: Assets) -> FeatureStore:
        """Train a new model by a method.

        Args:
            method: One of `fclearn.methods.METHODS`, with its defaults.
            assets: What it may use.

        Returns:
            Its features of the held-out images.
        """
        return self._new_features(method, assets, {f"{method}-test": self.data.test})[0]

    def independent_features(self, assets: Assets) -> tuple[FeatureStore, FeatureStore]:
        """Train the new model on its own; its features of training and of held-out images."""
        sets = {"independent-train": self.data.new, "independent-test": self.data.test}
        train, test = self._new_features("independent", assets, sets)
        return train, test

    def history_path(self, name: str) -> Path:
        """The training history of ``"old"`` or of a method."""
        return self.output / name / "history.csv"

    def _new_features(
        self, method: str, assets: Assets, sets: Mapping[str, LabelledSet]
    ) -> list[FeatureStore]:
        dim = self.config.new_dim
        if not all(self._store_path(name).is_dir() for name in sets):
            encoder, _ = self._train(
                method, self.config.trained_encoder, method, assets, self.data.new, dim
            )
            for name, images in sets.items():
                self._embed(encoder, images, name, dim)
        return [self._open(name, dim) for name in sets]

    def _train(
        self,
        name: str,
        encoder_name: str,
        method: str,
        assets: Assets,
        data: LabelledSet,
        dim: int,
        train: TrainConfig | None = None,
    ) -> tuple[torch.nn.Module, list[LossTerm]]:
        # Equal models start from equal weights, so that methods differ in their losses only.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.train.seed)
            encoder = build_encoder(encoder_name, dim=dim, channels=data.channels)
            losses = build_method(method, assets, dim)
        Trainer(
            encoder,
            losses,
            data,
            train or self.config.train,
            output_dir=self.output / name,
            progress=self.progress,
        ).fit()
        return encoder, losses

    @property
    def _classifier_path(self) -> Path:
        return self.output / "old" / "classifier.npy"

    @property
    def _old_model_path(self) -> Path:
        return self.output / "old" / "encoder.safetensors"

    def _save_classifier(self, losses: list[LossTerm]) -> None:
        rows = [t.module.prototypes for t in losses if isinstance(t.module, CosineClassifierLoss)]
        with replacing(self._classifier_path) as temporary, temporary.open("wb") as file:
            np.save(file, rows[0].detach().numpy())

    def _store_path(self, name: str) -> Path:
        return self.output / "features" / name

    def _fingerprint(self, name: str, dim: int) -> Fingerprint:
        # The configuration is part of it: features of another run are refused, not mixed in.
        model = name.removesuffix("-test").removesuffix("-train")
        settings = get_method("independent" if model == "old" else model).defaults
        made_by = {**self.config.to_dict(), **self.facts, "settings": dict(settings)}
        return Fingerprint(f"{self.name} {model}", dim, preprocessing=json.dumps(made_by))

    def _ask(self, frozen: FeatureStore, data: LabelledSet, name: str) -> FeatureStore:
        dim = self.config.old_dim
        path = self._store_path(name)
        if not path.is_dir():
            row_of = {item: row for row, item in enumerate(frozen.ids)}
            missing = [item for item in data.ids if item not in row_of]
            if missing:
                raise ValueError(f"{frozen.path}: no features of {missing[0]!r}")
            features = as_tensor(frozen, np.array([row_of[item] for item in data.ids], np.int64))
            rows = torch.nn.functional.normalize(features, dim=1)
            FeatureStore.write(path, rows, manifest_of(data), self._fingerprint(name, dim))
        return self._open(name, dim)

    def _embed(self, encoder: torch.nn.Module, data: LabelledSet, name: str, dim: int) -> None:
        embed(
            encoder,
            data,
            self._store_path(name),
            fingerprint=self._fingerprint(name, dim),
            progress=self.progress,
        )

    def _open(self, name: str, dim: int) -> FeatureStore:
        store = FeatureStore.open(self._store_path(name))
        if store.fingerprint != self._fingerprint(name, dim):
            raise ValueError(
                f"{self.output}: holds a {self.name} of another configuration or seed; "
                "remove it or choose another output folder"
            )
        return store
