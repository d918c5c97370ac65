# SPDX-License-Identifier: Apache-2.0
"""Many methods, many seeds, one budget: every run leaves a file and is not run again.

Per seed, the old and the independent model are trained once and shared. Each method gets what it
declares to need and nothing else, at its defaults: no setting is chosen on the classes that test.
Maps are fitted to pairs of the independent model's and the old features of the training images.
"""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fclearn.datasets import LabelledSet
from fclearn.evaluation import CompatibilityReport, ceiling_means, oracle_gain
from fclearn.evaluation.intervals import bootstrap_means, interval
from fclearn.experiments.contenders import (
    Contender,
    MapSpec,
    all_contenders,
    get_contender,
    lacking,
)
from fclearn.experiments.records import (
    Record,
    check_folder,
    is_done,
    load_record,
    make_record,
    record_path,
    save_record,
)
from fclearn.experiments.settings import BenchConfig
from fclearn.experiments.sources import load_images, load_old
from fclearn.experiments.splits import data_fingerprint, make_setting, shared_classes
from fclearn.experiments.stages import Stages
from fclearn.experiments.unlabelled import clustered
from fclearn.experiments.upgrade import UpgradeData, report_upgrade
from fclearn.features import FeatureSource, FeatureStore, as_tensor
from fclearn.methods import Assets, MethodSpec, Need
from fclearn.probe import ADAPTERS
from fclearn.training import DivergenceError

_METRICS = ("map", "cmc@1")


class RunsFailedError(ValueError):
    """Some runs of a comparison failed; the message says which and why."""


def bench_methods(
    config: BenchConfig,
    output: str | os.PathLike[str],
    *,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    work: str | os.PathLike[str] | None = None,
    images: LabelledSet | None = None,
    old: FeatureStore | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> list[Record]:
    """Run what is missing of a comparison; stopped at any instant, the same call resumes.

    Args:
        config: The setting; its seed is replaced by each of ``seeds``.
        output: Folder of the results, one JSON file per run.
        methods: Of `fclearn.experiments.contenders.all_contenders`; None: all that have what they
            need in this setting.
        seeds: Each splits the classes anew and starts all trainings.
        work: Folder of features and checkpoints; default ``output/work``.
        images: Instead of the data set's own, as `load_images` loads them.
        old: Instead of a frozen old model's own features, as `load_old` loads them.
        progress: Show progress on stderr, if that is a terminal.
        say: Gets a line per run.

    Returns:
        One record per run, by seed, then method.

    Raises:
        RunsFailedError: Some runs diverged or refused the setting; the others are done.
        ValueError: An unknown method, or one that lacks what it needs in this setting, a name or a
            seed given twice, results of another setting.
        OSError: A folder cannot be written.
    """
    folder = Path(output)
    names = all_contenders() if methods is None else methods
    specs = [get_contender(name) for name in names]
    if methods is None:
        specs = [spec for spec in specs if not lacking(spec, config)]
    for spec in specs:
        if lacking(spec, config):
            raise ValueError(f"methods: {spec.name!r} needs {lacking(spec, config)}")
    for name, values in (("methods", [spec.name for spec in specs]), ("seeds", list(seeds))):
        if not values or len(set(values)) != len(values):
            raise ValueError(f"{name}: expected at least one, each once, got {values}")
    check_folder(folder, config)
    images = load_images(config) if images is None else images
    old = load_old(config, images) if old is None else old
    records, failed = [], []
    for seed in seeds:
        here = replace(config, train=replace(config.train, seed=seed))
        comparison = _Comparison.prepare(
            here,
            images,
            Path(work or folder / "work") / f"seed{seed}",
            progress,
            old,
            keep_old_model=any(Need.OLD_MODEL in spec.needs for spec in specs),
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
        raise RunsFailedError(
            f"{len(failed)} runs failed, the others are done: {'; '.join(failed)}"
        )
    return records


@dataclass(frozen=True)
class _Comparison:
    """What the methods of one seed share."""

    config: BenchConfig
    data: UpgradeData
    stages: Stages
    fingerprint: str

    @classmethod
    def prepare(
        cls,
        config: BenchConfig,
        images: LabelledSet,
        work: Path,
        progress: bool,
        old: FeatureStore | None = None,
        keep_old_model: bool = False,
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
            keep_old_model=keep_old_model,
            frozen=old,
            progress=progress,
        )
        if config.labels == "clusters":
            data = clustered(stages)
            stages = replace(stages, data=data)
        return cls(config, data, stages, fingerprint)

    def run(self, spec: MethodSpec | MapSpec) -> Record:
        """Train, or fit, one contender, and what all share if it is the first; measure it."""
        old_train, old_test = self.stages.old_features()
        old = self.stages.assets(old_train)
        independent = self.stages.independent_features(old)
        if isinstance(spec, MapSpec):
            start = time.perf_counter()
            new: FeatureSource = self._mapped(spec, old, independent)
            seconds = time.perf_counter() - start
        else:
            new = independent[1]
            if spec.name != "independent":
                new = self.stages.new_features(spec.name, self._given(spec, old, independent[0]))
            seconds = _train_seconds(self.stages.history_path(spec.name))
        report = report_upgrade(
            self.data.test,
            old=old_test,
            new=new,
            independent=independent[1],
            self_test=isinstance(spec, MethodSpec),
            seed=self.config.train.seed,
        )
        return self._record(spec, report, old_test, seconds)

    def _mapped(
        self, spec: MapSpec, old: Assets, independent: tuple[FeatureStore, FeatureStore]
    ) -> Tensor:
        """Held-out features of the independent model, mapped to the old space."""
        train, test = (as_tensor(store) for store in independent)
        adapter = ADAPTERS[spec.adapter](self.config.train.seed)
        return adapter.fit(source=train, target=old.features, labels=old.labels).transform(test)

    def _record(
        self,
        spec: Contender,
        report: CompatibilityReport,
        old_test: FeatureStore,
        train_seconds: float,
    ) -> Record:
        sizes = {
            name: {"classes": part.num_classes, "images": len(part)}
            for name, part in vars(self.data).items()
        }
        return make_record(
            self.config,
            spec,
            data={"fingerprint": self.fingerprint, **sizes},
            report=report,
            ceiling=self._ceiling(old_test, report),
            train_seconds=train_seconds,
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
            old_model=self.stages.old_model() if Need.OLD_MODEL in spec.needs else None,
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
        gain = oracle_gain(
            as_tensor(old_test), test.labels, ids, metrics=_METRICS, seed=seed
        ).per_query
        old = report.per_query["old/old"]
        counted = ~np.isnan(old["map"])
        columns = [values[name][counted] for values in (old, gain) for name in _METRICS]
        values, width = np.stack(columns, axis=1), len(_METRICS)
        means, draws = (
            ceiling_means(found[..., :width], found[..., width:])
            for found in (values.mean(0), bootstrap_means(values, report.num_bootstrap, seed))
        )
        return {
            name: {
                "value": float(means[at]),
                "interval": list(interval(draws[:, at], report.confidence)),
            }
            for at, name in enumerate(_METRICS)
        }


def _train_seconds(history: Path) -> float:
    with history.open(newline="", encoding="utf-8") as file:
        return sum(float(row["seconds"]) for row in csv.DictReader(file))
