# SPDX-License-Identifier: Apache-2.0
"""One training, from a configuration to a model folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fclearn._files import reason, replacing
from fclearn._launch import under_torchrun
from fclearn.augmentation import augment_drawings
from fclearn.cli.assets import check_needs, load_assets
from fclearn.cli.console import say
from fclearn.cli.devices import choose_device
from fclearn.cli.images import load_images
from fclearn.config import TrainRunConfig, dump_config, load_config
from fclearn.datasets import RandomCrops
from fclearn.encoders import build_encoder
from fclearn.features import FeatureStore, Fingerprint
from fclearn.methods import build_method, get_method
from fclearn.model_folder import CARD, ModelCard, check_encoder, save_classifier, save_model
from fclearn.training import SHARDED_CHECKPOINTS, Trainer

if TYPE_CHECKING:
    from fclearn.distributed.world import World

_ARGUMENTS, _CHECKPOINT, _OLD = "args.yaml", "checkpoint.pt", "old_fingerprint.json"
# Where a run goes on, and where its files are, may differ when it resumes.
_MAY_CHANGE = {"device", "output"}


@dataclass(frozen=True)
class TrainedRun:
    """What `run_training` made: the history, a row per epoch, and the model's card."""

    history: list[dict[str, float]]
    card: ModelCard


def run_training(config: TrainRunConfig) -> TrainedRun:
    """Train, or resume what ``config.output`` holds, and write the model.

    Under torchrun all processes train together, and the first one writes.

    Args:
        config: All there is to know.

    Raises:
        ValueError: Anything that does not agree; an output folder with another run.
        OSError: The output folder cannot be written.
        DivergenceError: As `Trainer.fit`.
        KeyboardInterrupt: Ctrl-C; the message says what is kept.
    """
    if not under_torchrun():
        return _run(config, None)
    from fclearn.distributed import joined_world

    with joined_world(config.device) as world:
        return _run(config, world)


def _run(config: TrainRunConfig, world: World | None) -> TrainedRun:
    output = Path(config.output)
    spec = get_method(config.method.name)
    check_needs(config, spec)
    device = choose_device(config.device) if world is None else world.device
    check_same_run(config, output)
    photos = config.data.augmentation == "photos"
    crops = RandomCrops(config.train.seed, config.train.clean_share)
    data = load_images(config.data, crops if photos and config.train.augment else None)
    assets = load_assets(config, data)
    _check_same_old(config, output)
    torch.manual_seed(config.train.seed)
    name, dim, channels = config.encoder.name, config.encoder.dim, data.channels
    encoder = build_encoder(name, dim=dim, channels=channels)
    # Not at the end alone, where save_model does it: the training would be lost.
    check_encoder(encoder, name=name, dim=dim, channels=channels)
    losses = build_method(spec.name, assets, dim, **config.method.settings)
    augment = _left_alone if photos else augment_drawings  # crops are drawn with the files
    log = None if sys.stderr.isatty() else say  # a terminal has the bar
    trainer: Trainer
    if world is None:
        trainer = Trainer(
            encoder,
            losses,
            data,
            config.train,
            output_dir=output,
            device=device,
            augment=augment,
            log=log,
        )
        where = str(device)
    else:
        from fclearn.distributed.training import DistributedTrainer

        trainer = DistributedTrainer(
            encoder,
            losses,
            data,
            config.train,
            world=world,
            output_dir=output,
            augment=augment,
            log=log,
        )
        where = f"{world.size} x {device.type}"
        world.barrier()  # all have read what the first one now writes
    if world is None or world.is_first:
        with replacing(output / _ARGUMENTS) as temporary:
            temporary.write_text(dump_config(config), encoding="utf-8")
        if config.old_features is not None:
            old = FeatureStore.open(config.old_features).fingerprint
            with replacing(output / _OLD) as temporary:
                temporary.write_text(json.dumps(old.to_dict(), indent=2), encoding="utf-8")
    say(
        f"training {spec.name} ({name}, dim {dim}) on {len(data)} "
        f"images of {data.num_classes} classes, on {where}, in {output}"
    )
    try:
        history = trainer.fit()
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(_what_is_kept(output)) from stop
    rows = trainer.classifier()
    card = None
    if world is None or world.is_first:
        if rows is not None:
            save_classifier(output, rows, data.class_names)
        card = save_model(
            output,
            encoder,
            name=name,
            dim=dim,
            channels=channels,
            size=data.images.shape[1],
            method=spec.name,
            short_side=config.data.short_side,
        )
    if world is not None:
        card = world.from_first(card)
    assert card is not None
    return TrainedRun(history, card)


def _left_alone(images: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    return images


def _is_begun(output: Path) -> bool:
    return (output / _CHECKPOINT).is_file() or (output / SHARDED_CHECKPOINTS).is_dir()


def check_same_run(config: TrainRunConfig, output: Path) -> None:
    """Refuse to resume a run that was started with other settings.

    Args:
        config: What is to be run.
        output: Its folder.

    Raises:
        ValueError: A run with other settings; they are named.
    """
    if not _is_begun(output) or not (output / _ARGUMENTS).is_file():
        return
    before = dict(_flatten(asdict(load_config(TrainRunConfig, output / _ARGUMENTS))))
    now = dict(_flatten(asdict(config)))
    changed = [
        f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
        for key in sorted({*before, *now} - _MAY_CHANGE)
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise ValueError(
            f"{output}: holds a run with other settings ({'; '.join(changed)}): give another "
            "output, or remove it"
        )


def is_trained(config: TrainRunConfig) -> bool:
    """Whether this very training has ended, on the old features that are there now.

    Args:
        config: What is to be run.

    Raises:
        ValueError: As `run_training`, of a folder with another run.
    """
    output = Path(config.output)
    check_same_run(config, output)
    card, history = output / CARD, output / "history.csv"
    if not _is_begun(output) or not all(
        path.is_file() for path in (card, history, output / _ARGUMENTS)
    ):
        return False
    _check_same_old(config, output)
    # The card comes last; one that is older than the last epoch is of a training before.
    return history.stat().st_mtime_ns <= card.stat().st_mtime_ns


def _check_same_old(config: TrainRunConfig, output: Path) -> None:
    """Refuse to go on with the features of another old model under the same name."""
    begun = output / _OLD
    if config.old_features is None or not _is_begun(output) or not begun.is_file():
        return
    try:
        before = Fingerprint.from_dict(json.loads(begun.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{begun}: {reason(error)}") from error
    now = FeatureStore.open(config.old_features).fingerprint
    before.check_same(now, f"{output} was begun with other old features than {config.old_features}")


def _flatten(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _what_is_kept(output: Path) -> str:
    if (output / _CHECKPOINT).is_file():
        return f"the checkpoint of the last whole epoch is kept in {output / _CHECKPOINT}"
    return "no epoch was finished yet"
