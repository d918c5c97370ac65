# SPDX-License-Identifier: Apache-2.0
"""Many methods, many seeds, one budget: every run leaves a file and is not run again.

Per seed, the old and the independent model are trained once and shared. Each method gets what it
declares to need and nothing else, at its defaults: no setting is chosen on the classes that test.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from fclearn.datasets import ImageDataset
from fclearn.evaluation import CompatibilityReport, oracle_gain
from fclearn.evaluation._bootstrap import bootstrap_means, interval
from fclearn.experiments.records import (
    Record,
    check_folder,
    is_done,
    load_record,
    make_record,
    record_path,
    save_record,
)
from fclearn.experiments.settings import (
    BenchConfig,
    data_fingerprint,
    load_images,
    make_setting,
    shared_classes,
)
from fclearn.experiments.stages import Stages
from fclearn.experiments.upgrade import UpgradeData, report_upgrade
from fclearn.features import FeatureStore, as_tensor
from fclearn.methods import METHODS, Assets, MethodSpec, Need, get_method
from fclearn.training import DivergenceError

#: Every method, those that decide most first: a run that is cut short has them.
ORDER = (
    *("ni-fcl", "independent", "bct", "ni-fcl-mean", "ni-fcl-walk", "l2", "lwf", "lce", "nccl"),
    *("hot-refresh", "uni-bct", "adv-bct", "mix-bct", "bt2", "aml"),
)
_METRICS = ("map", "cmc@1")


def bench_methods(
    config: BenchConfig,
    output: str | os.PathLike[str],
    *,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    work: str | os.PathLike[str] | None = None,
    images: ImageDataset | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> list[Record]:
    """Run what is missing of a comparison; stopped at any instant, the same call resumes.

    Args:
        config: The setting; its seed is replaced by each of ``seeds``.
        output: Folder of the results, one JSON file per run.
        methods: Of `fclearn.methods.METHODS`; None: all.
        seeds: Each splits the classes anew and starts all trainings.
        work: Folder of features and checkpoints; default ``output/work``.
        images: Instead of the data set's own.
        progress: Show progress on stderr, if that is a terminal.
        say: Gets a line per run.

    Returns:
        One record per run, by seed, then method.

    Raises:
        ValueError: An unknown method, a name or a seed given twice, results of another setting; or
            some runs failed, by divergence or by refusing the setting, and the others are done.
        OSError: A folder cannot be written.
    """
    folder = Path(output)
    specs = [get_method(name) for name in (all_methods() if methods is None else methods)]
    for name, values in (("methods", [spec.name for spec in specs]), ("seeds", list(seeds))):
        if not values or len(set(values)) != len(values):
            raise ValueError(f"{name}: expected at least one, each once, got {values}")
    check_folder(folder, config)
    images = load_images(config) if images is None else images
    records, failed = [], []
    for seed in seeds:
        here = replace(config, train=replace(config.train, seed=seed))
        comparison = _Comparison.prepare(
            here, images, Path(work or folder / "work") / f"seed{seed}", progress
        )
        for spec in specs:
            path = record_path(folder, spec.name, seed)
            if not is_done(path, here, spec, comparison.fingerprint):
                say(f"seed {seed}: {spec.name}")
                try:
                    save_record(path, comparison.run(spec))
                except (DivergenceError, ValueError) as error:
                    # One method that cannot is no reason to leave out the others.
                    failed.append(f"seed {seed}: {spec.name}: {error}")
                    say(failed[-1])
                    continue
            record = load_record(path)
            assert record is not None
            records.append(record)
    if failed:
        raise ValueError(f"{len(failed)} runs failed, the others are done: {'; '.join(failed)}")
    return records


def all_methods() -> list[str]:
    """Names of all methods, in `ORDER`; those it does not know come last."""
    return sorted(METHODS, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


@dataclass(frozen=True)
class _Comparison:
    """What the methods of one seed share."""

    config: BenchConfig
    data: UpgradeData
    stages: Stages
    fingerprint: str

    @classmethod
    def prepare(
        cls, config: BenchConfig, images: ImageDataset, work: Path, progress: bool
    ) -> _Comparison:
        data = make_setting(images, config)
        fingerprint = data_fingerprint(data)
        stages = Stages(
            config,
            data,
            work,
            "comparison",
            facts={"images": fingerprint},
            keep_classifier=True,
            progress=progress,
        )
        return cls(config, data, stages, fingerprint)

    def run(self, spec: MethodSpec) -> Record:
        old_train, old_test = self.stages.old_features()
        old = self.stages.assets(old_train)
        independent_train, independent_test = self.stages.independent_features(old)
        if spec.name == "independent":
            new_test = independent_test
        else:
            assets = self._given(spec, old, independent_train)
            new_test = self.stages.new_features(spec.name, assets)
        report = report_upgrade(
            self.data.test,
            old=old_test,
            new=new_test,
            independent=independent_test,
            seed=self.config.train.seed,
        )
        return make_record(
            self.config,
            spec,
            data={
                "fingerprint": self.fingerprint,
                **{
                    name: {"classes": part.num_classes, "images": len(part)}
                    for name, part in vars(self.data).items()
                },
            },
            report=report,
            ceiling=self._ceiling(old_test, report),
            train_seconds=_train_seconds(self.stages.history_path(spec.name)),
        )

    def _given(self, spec: MethodSpec, old: Assets, independent: FeatureStore) -> Assets:
        """What a method needs, and nothing else."""
        rows = classes = None
        if Need.OLD_CLASSIFIER in spec.needs:
            mine, its = shared_classes(self.data)
            rows = torch.from_numpy(self.stages.old_classifier()[mine])
            classes = torch.from_numpy(its)
        return Assets(
            old.labels,
            old_features=old.old_features if Need.FEATURE_CACHE in spec.needs else None,
            old_classifier=rows,
            old_classes=classes,
            independent_features=(
                as_tensor(independent) if Need.INDEPENDENT_FEATURES in spec.needs else None
            ),
        )

    def _ceiling(
        self, old_test: FeatureStore, report: CompatibilityReport
    ) -> dict[str, dict[str, object]]:
        test, seed = self.data.test, self.config.train.seed
        ids = np.arange(len(test)) if test.groups is None else test.groups
        gain = oracle_gain(as_tensor(old_test), test.labels, ids, metrics=_METRICS, seed=seed)
        old = report.per_query["old/old"]
        counted = ~np.isnan(old["map"])
        values = np.stack([(old[name] + gain[name])[counted] for name in _METRICS], axis=1)
        draws = bootstrap_means(values, report.num_bootstrap, seed)
        return {
            name: {
                "value": float(values[:, at].mean()),
                "interval": list(interval(draws[:, at], report.confidence)),
            }
            for at, name in enumerate(_METRICS)
        }


def _train_seconds(history: Path) -> float:
    with history.open(newline="", encoding="utf-8") as file:
        return sum(float(row["seconds"]) for row in csv.DictReader(file))
