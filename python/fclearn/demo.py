# SPDX-License-Identifier: Apache-2.0
"""The main job, end to end on real images: an old model is forgotten, its gallery stays in use.

An old model is trained on a quarter of the training classes. Its features of all training images
and of the held-out ones are stored, then the model is deleted: the upgrade sees those features,
the images and their labels, nothing else. The new model is trained twice, on its own and
compatibly, and classes nobody was trained on decide: every held-out image is a query, the others
are the gallery, without the query's own font family, whose drawings are near-copies.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

import fcl_ext
from fclearn.datasets import ImageDataset, load_icons, split_classes
from fclearn.embedding import embed
from fclearn.encoders import build_encoder
from fclearn.evaluation import compatibility_report
from fclearn.features import FeatureStore, Fingerprint
from fclearn.methods import Assets, build_method
from fclearn.report import make_examples, write_report
from fclearn.training import TrainConfig, Trainer


@dataclass(frozen=True)
class DemoConfig:
    """Sizes and budgets; the same training budget for every model.

    Attributes:
        num_old_classes: Classes the old model is trained on.
        num_new_classes: Classes of the new training set, the old ones among them.
        num_test_classes: Held-out classes; None: all that are left.
        old_encoder: Architecture of the old model: a smaller one, as upgrades go.
        new_encoder: Architecture of both new models.
        old_dim: Dim of the old features.
        new_dim: Dim of the new embedding; its first ``old_dim`` dims carry compatibility.
        method: How the new model is trained.
        train: Hyper-parameters of all three trainings.
        old_clean_share: The old model's ``clean_share``: it was trained as models are, with every
            image augmented, and nobody thought of an upgrade then.
    """

    num_old_classes: int = 100
    num_new_classes: int = 400
    num_test_classes: int | None = None
    old_encoder: str = "tiny-cnn"
    new_encoder: str = "small-cnn"
    old_dim: int = 64
    new_dim: int = 256
    method: str = "ni-fcl"
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=40))
    old_clean_share: float = 0.0


QUICK = DemoConfig(
    num_old_classes=10,
    num_new_classes=30,
    num_test_classes=20,
    old_dim=16,
    new_dim=24,
    train=TrainConfig(epochs=2, batch_size=32),
)


def run_demo(
    output_dir: str | os.PathLike[str] = "runs/demo",
    *,
    seed: int = 0,
    quick: bool = False,
    progress: bool = True,
) -> dict[str, object]:
    """Run the demo, or what is left of it: finished stages are found in ``output_dir``.

    Args:
        output_dir: Gets ``report.html``, ``report.json``, pictures, feature stores, checkpoints.
        seed: Of the split of the classes and of all trainings.
        quick: A tiny run that exercises everything in seconds; its numbers mean nothing.
        progress: Show progress on stderr, if that is a terminal.

    Returns:
        The content of ``report.json``.

    Raises:
        OSError: The output folder cannot be written.
        ValueError: The folder holds the run of another configuration.
    """
    start = time.perf_counter()
    config = QUICK if quick else DemoConfig()
    config = replace(config, train=replace(config.train, seed=seed))
    run = _Run(config, Path(output_dir), *_split(load_icons(), config), progress)
    old_train, old_test = run.old_features()
    independent_test = run.new_features("independent", old_train)
    new_test = run.new_features(config.method, old_train)

    test = run.test_data
    report = compatibility_report(
        old_query=old_test,
        old_gallery=old_test,
        new_query=new_test,
        new_gallery=new_test,
        independent_query=independent_test,
        independent_gallery=independent_test,
        query_labels=test.labels,
        gallery_labels=test.labels,
        # A query's own family holds the query itself, too.
        query_groups=test.groups,
        gallery_groups=test.groups,
        seed=seed,
    )
    examples = make_examples(
        report,
        old_query=np.asarray(old_test.features),
        old_gallery=old_test,
        new_query=np.asarray(new_test.features),
        query_images=test.images,
        gallery_images=test.images,
        query_labels=test.labels,
        gallery_labels=test.labels,
        class_names=test.class_names,
        query_groups=test.groups,
        gallery_groups=test.groups,
    )
    return write_report(
        run.output,
        report=report,
        histories={
            "old": run.output / "old" / "history.csv",
            "independent": run.output / "independent" / "history.csv",
            "new": run.output / config.method / "history.csv",
        },
        retrieval_examples=examples,
        facts=_facts(run, quick, time.perf_counter() - start),
    )


def _split(
    icons: ImageDataset, config: DemoConfig
) -> tuple[ImageDataset, ImageDataset, ImageDataset]:
    added = config.num_new_classes - config.num_old_classes
    old, rest, held_out = split_classes(
        icons.num_classes, config.num_old_classes, added, seed=config.train.seed
    )
    return (
        icons.select_classes(old),
        icons.select_classes(np.concatenate([old, rest])),
        icons.select_classes(held_out[: config.num_test_classes]),
    )


@dataclass(frozen=True)
class _Run:
    """The stages; each leaves its features in the output folder and is skipped if they exist."""

    config: DemoConfig
    output: Path
    old_data: ImageDataset
    new_data: ImageDataset
    test_data: ImageDataset
    progress: bool

    def old_features(self) -> tuple[FeatureStore, FeatureStore]:
        """Train the old model, store its features of training and held-out images, forget it."""
        dim = self.config.old_dim
        paths = self._store_path("old-train"), self._store_path("old-test")
        if not all(path.is_dir() for path in paths):
            assets = Assets(torch.from_numpy(self.old_data.labels))
            encoder = self._train(
                "old",
                self.config.old_encoder,
                "independent",
                assets,
                self.old_data,
                dim,
                replace(self.config.train, clean_share=self.config.old_clean_share),
            )
            self._embed(encoder, self.new_data, "old-train", dim)
            self._embed(encoder, self.test_data, "old-test", dim)
        # From here on nobody can ask the old model anything.
        (self.output / "old" / "checkpoint.pt").unlink(missing_ok=True)
        return self._open("old-train", dim), self._open("old-test", dim)

    def new_features(self, method: str, old_train: FeatureStore) -> FeatureStore:
        """Train a new model by a method; its features of the held-out images."""
        dim = self.config.new_dim
        name = f"{method}-test"
        if not self._store_path(name).is_dir():
            if old_train.ids != list(self.new_data.ids):
                raise ValueError(f"{old_train.path}: features of other images than the training's")
            assets = Assets(
                torch.from_numpy(self.new_data.labels),
                old_features=torch.from_numpy(np.array(old_train.features)),
            )
            encoder = self._train(
                method, self.config.new_encoder, method, assets, self.new_data, dim
            )
            self._embed(encoder, self.test_data, name, dim)
        return self._open(name, dim)

    def _train(
        self,
        name: str,
        encoder_name: str,
        method: str,
        assets: Assets,
        data: ImageDataset,
        dim: int,
        train: TrainConfig | None = None,
    ) -> torch.nn.Module:
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
        return encoder

    def _store_path(self, name: str) -> Path:
        return self.output / "features" / name

    def _fingerprint(self, name: str, dim: int) -> Fingerprint:
        # The configuration is part of it: features of another run are refused, not mixed in.
        return Fingerprint(
            f"demo {name.removesuffix('-test').removesuffix('-train')}",
            dim,
            preprocessing=json.dumps(asdict(self.config)),
        )

    def _embed(self, encoder: torch.nn.Module, data: ImageDataset, name: str, dim: int) -> None:
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
                f"{self.output}: holds a demo of another configuration or seed; "
                "remove it or choose another output folder"
            )
        return store


def _facts(run: _Run, quick: bool, seconds: float) -> Mapping[str, object]:
    seed = run.config.train.seed
    old, new, test = run.old_data, run.new_data, run.test_data
    return {
        "title": "Icons: an upgrade without re-indexing",
        "data": (
            f"Icon fonts: old model trained on {old.num_classes} classes ({len(old)} images), "
            f"new models on {new.num_classes} ({len(new)}), tested on {test.num_classes} "
            f"held-out classes ({len(test)} images, each a query; the gallery leaves out the "
            "query's own font family)"
        ),
        "command": f"fcl demo --seed {seed}" + (" --quick" if quick else ""),
        "config": asdict(run.config),
        "seed": seed,
        "versions": {
            "fcl_ext": fcl_ext.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "seconds": round(seconds, 1),
    }
