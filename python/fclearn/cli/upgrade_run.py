# SPDX-License-Identifier: Apache-2.0
"""An upgrade as a list of commands, each of which can be given by hand and resumes."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fclearn._files import replacing
from fclearn.cli.console import say
from fclearn.cli.train_run import is_trained
from fclearn.cli.upgrade_config import UpgradeModel, UpgradeRunConfig
from fclearn.cli.upgrade_done import (
    REPORT,
    check_configs,
    check_report,
    is_of_these,
    is_reported,
)
from fclearn.config import DataConfig, MethodConfig, TrainRunConfig, dump_config
from fclearn.features import FeatureStore
from fclearn.features.folder import FINGERPRINT
from fclearn.methods import Need, get_method
from fclearn.model_folder import CARD, CLASSES, CLASSIFIER, read_card

_METRICS = "map,cmc@1,cmc@5"


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        arguments: After ``fcl``.
        is_done: Says whether an earlier run has finished it, where the command itself does not see
            that at once.
    """

    arguments: tuple[str, ...]
    is_done: Callable[[], bool] = lambda: False


def write_steps(config: UpgradeRunConfig) -> list[Step]:
    """Write the configurations of the trainings, and list all commands in order.

    Args:
        config: The upgrade.

    Raises:
        ValueError: An unknown method, one that is given twice or goes without vectors; a folder of
            images that is not there; an output folder with other things in the places of ours,
            which stay as they are.
        OSError: The output folder cannot be written.
    """
    if len(set(config.methods)) != len(config.methods):
        raise ValueError(f"methods: expected each once, got {', '.join(config.methods)}")
    for name in config.methods:
        if Need.OLD_SCORES in get_method(name).needs:
            raise ValueError(
                f"methods: {name!r} is for an old service without vectors; an upgrade measures new "
                "queries among the old model's"
            )
    if not config.data.path:
        raise ValueError("data.path: expected the folder of the images, as in data.path=DIR")
    for part in (config.data.train, config.data.test):
        folder = Path(config.data.path) / part
        if not folder.is_dir():
            raise ValueError(f"data.path: expected a folder {folder} with one folder per class")
    runs = dict(_runs(config))
    check_configs({_config_file(config, name): run for name, run in runs.items()})
    for name in config.methods:
        check_report(_folder(config, "reports", name), _compared(config, name))
    for name, run in runs.items():
        with replacing(_config_file(config, name)) as temporary:
            temporary.write_text(dump_config(run), encoding="utf-8")
    return list(_steps(config, runs))


def run_steps(steps: Sequence[Step], processes: int, main: Callable[[list[str]], int]) -> int:
    """Run commands one after another, until one fails; those that have ended before are left out.

    Args:
        steps: From `write_steps`.
        processes: Of each command; more than one by torchrun.
        main: Runs a command in this process.

    Returns:
        The exit code of the last command that ran.
    """
    num_run = 0
    for number, step in enumerate(steps, start=1):
        done = step.is_done()
        kept = "  (done before)" if done else ""
        say(f"[{number}/{len(steps)}] fcl {shlex.join(step.arguments)}{kept}")
        if done:
            continue
        num_run += 1
        arguments = list(step.arguments)
        code = main(arguments) if processes == 1 else _by_torchrun(arguments, processes)
        if code != 0:
            return code
    if num_run == 0:
        say("all of it had ended before; nothing was run")
    return 0


def read_reports(config: UpgradeRunConfig) -> dict[str, dict[str, Any]]:
    """The report of each method.

    Raises:
        OSError: One is not there.
    """
    return {
        name: json.loads((_folder(config, "reports", name) / REPORT).read_text(encoding="utf-8"))
        for name in config.methods
    }


def _by_torchrun(arguments: list[str], processes: int) -> int:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *launch, "-m", "fclearn.cli", *arguments]
    # Ctrl-C reaches torchrun as well, which ends its processes; this one waits for it.
    with subprocess.Popen(command) as running:
        while True:
            try:
                return running.wait()
            except KeyboardInterrupt:
                running.wait()
                raise


def _runs(config: UpgradeRunConfig) -> Iterator[tuple[str, TrainRunConfig]]:
    """The trainings, by name of the model."""
    yield "old", _training(config, "old", config.old, "independent", {})
    yield "independent", _training(config, "independent", config.new, "independent", {})
    for name in config.methods:
        if name != "independent":
            yield name, _training(config, name, config.new, name, _given(config, name))


def _steps(config: UpgradeRunConfig, runs: Mapping[str, TrainRunConfig]) -> Iterator[Step]:
    images = Path(config.data.path) / config.data.train

    def train(name: str) -> Step:
        card = _folder(config, "models", name) / CARD
        words = ("train", "--config", str(_config_file(config, name)))
        return Step(words, lambda: is_of_these(card, images) and is_trained(runs[name]))

    yield train("old")
    yield _embed(config, "old", config.data.train)
    yield _embed(config, "old", config.data.test)
    yield train("independent")
    if any(Need.INDEPENDENT_FEATURES in get_method(name).needs for name in config.methods):
        yield _embed(config, "independent", config.data.train)
    yield _embed(config, "independent", config.data.test)
    for name in config.methods:
        if name != "independent":
            yield train(name)
            yield _embed(config, name, config.data.test)
        yield _evaluate(config, name)


def _given(config: UpgradeRunConfig, method: str) -> dict[str, str]:
    """What a method needs, and nothing else."""
    needs = get_method(method).needs
    given = {}
    if Need.FEATURE_CACHE in needs:
        given["old_features"] = str(_store(config, "old", config.data.train))
    if Need.OLD_MODEL in needs:
        given["old_model"] = str(_folder(config, "models", "old"))
    if Need.INDEPENDENT_FEATURES in needs:
        given["independent_features"] = str(_store(config, "independent", config.data.train))
    if Need.OLD_CLASSIFIER in needs:
        given["old_classifier"] = str(_folder(config, "models", "old") / CLASSIFIER)
        given["old_classes"] = str(_folder(config, "models", "old") / CLASSES)
    return given


def _training(
    config: UpgradeRunConfig, name: str, model: UpgradeModel, method: str, given: dict[str, str]
) -> TrainRunConfig:
    images = config.data
    return TrainRunConfig(
        DataConfig(
            "folder",
            str(Path(images.path) / images.train),
            size=images.size,
            short_side=images.short_side,
            augmentation=images.augmentation,
            class_share=model.class_share,
        ),
        model.encoder,
        MethodConfig(method),
        model.train,
        output=str(_folder(config, "models", name)),
        device=config.device,
        **given,
    )


def _embed(config: UpgradeRunConfig, model: str, part: str) -> Step:
    images, store = Path(config.data.path) / part, _store(config, model, part)
    folder = _folder(config, "models", model)

    def is_done() -> bool:
        return (
            is_of_these(store / FINGERPRINT, images)
            and FeatureStore.open(store).fingerprint == read_card(folder).fingerprint
        )

    words = ("embed", str(folder), str(images), "--out", str(store), "--device", config.device)
    return Step(words, is_done)


def _evaluate(config: UpgradeRunConfig, method: str) -> Step:
    old, new, independent = _compared(config, method)
    report = _folder(config, "reports", method)
    words = (
        *("eval", "--old-query", str(old), "--new-query", str(new)),
        *("--independent-query", str(independent)),
        *("--metrics", _METRICS, "--report", str(report)),
    )
    return Step(words, lambda: is_reported(report, (old, new, independent)))


def _compared(config: UpgradeRunConfig, method: str) -> tuple[Path, Path, Path]:
    old, new, independent = (
        _store(config, model, config.data.test) for model in ("old", method, "independent")
    )
    return old, new, independent


def _config_file(config: UpgradeRunConfig, name: str) -> Path:
    return Path(config.output) / "configs" / f"{name}.yaml"


def _store(config: UpgradeRunConfig, model: str, part: str) -> Path:
    return _folder(config, "features", f"{model}-{part}")


def _folder(config: UpgradeRunConfig, kind: str, name: str) -> Path:
    return Path(config.output) / kind / name
