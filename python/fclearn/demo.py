# SPDX-License-Identifier: Apache-2.0
"""The main job, end to end on real images: an old model is forgotten, its gallery stays in use.

An old model is trained on a quarter of the training classes. Its features of all training images
and of the held-out ones are stored, then the model is deleted: the upgrade sees those features,
the images and their labels, nothing else. The new model is trained twice, on its own and
compatibly, and classes nobody was trained on decide: every held-out image is a query, the others
are the gallery, without the query's own font family, whose drawings are near-copies.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from fclearn.datasets import load_icons
from fclearn.experiments.records import software_versions
from fclearn.experiments.stages import Stages
from fclearn.experiments.upgrade import QUICK, UpgradeConfig, report_upgrade, split_images
from fclearn.report import describe_items, make_examples, write_report


@dataclass(frozen=True)
class DemoConfig(UpgradeConfig):
    """The recipe of the upgrade, and ``method``: how the new model is trained."""

    method: str = "ni-fcl"


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
    config = replace(DemoConfig(), **vars(QUICK)) if quick else DemoConfig()
    config = replace(config, train=replace(config.train, seed=seed))
    run = Stages(
        config, split_images(load_icons(), config), Path(output_dir), "demo", progress=progress
    )
    old_train, old_test = run.old_features()
    assets = run.assets(old_train)
    independent_test = run.new_features("independent", assets)
    new_test = run.new_features(config.method, assets)

    test = run.data.test
    report = report_upgrade(
        test, old=old_test, new=new_test, independent=independent_test, seed=seed
    )
    examples = make_examples(
        report,
        old_query=np.asarray(old_test.features),
        old_gallery=old_test,
        new_query=np.asarray(new_test.features),
        query_images=test.array(),
        gallery_images=test.array(),
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
            "old": run.history_path("old"),
            "independent": run.history_path("independent"),
            "new": run.history_path(config.method),
        },
        retrieval_examples=examples,
        facts=_facts(run, quick, time.perf_counter() - start),
        items=describe_items(
            test.labels,
            test.labels,
            exclude_self=test.groups is None,
            query_ids=test.ids,
            gallery_ids=test.ids,
            query_groups=test.groups,
            gallery_groups=test.groups,
        ),
    )


def _facts(run: Stages, quick: bool, seconds: float) -> Mapping[str, object]:
    seed = run.config.train.seed
    old, new, test = run.data.old, run.data.new, run.data.test
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
        "versions": software_versions(),
        "seconds": round(seconds, 1),
    }
