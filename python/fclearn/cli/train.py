# SPDX-License-Identifier: Apache-2.0
"""Verb ``train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fclearn.cli.console import JsonFlag, emit, say


def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings, as in train.epochs=5."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings as yaml; overrides win.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(metavar="NAME", help="Short for method.name=NAME.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Train a model by any method of 'fcl methods'.

    Without old features: method.name=independent. With a store of the old model's features of the
    same images, the new model becomes compatible with them; rows are matched by id. Some methods
    also take the old model's classifier: its rows as .npy, and a text file with their class names.
    method.name=ni-fcl-scores takes the ranked lists of an old search service that gives no vectors.

    FCL_METHODS=my_module adds the methods that this Python module registers.

    Under torchrun, all its processes train together, with the classifiers spread over them.

    Writes checkpoint.pt (under torchrun: the folder checkpoints), history.csv, args.yaml (every
    setting), model.safetensors, model.json and the model's own classifier (classifier.npy,
    classes.txt) into the output folder. Stopped at any instant, the
    same command resumes. Where stderr is no terminal, a line now and then says how far it is.

    \b
    Keys (and defaults):
      data.kind (icons) icons, folder, manifest, fashion-mnist
      data.path, data.size, data.short_side, data.grey, data.classes, data.class_share, data.part
      data.augmentation (drawings) or photos: random resized crops with flips
      encoder.name (small-cnn) small-cnn, resnet18, resnet50-large-images, timm:NAME
      encoder.dim (64)
      method.name (ni-fcl), method.settings.KEY
      train.epochs (40), batch_size, accumulate, optimizer, learning_rate, weight_decay,
        warmup_epochs, augment, max_grad_norm, precision, seed
      old_features, old_model (checks them), independent_features, old_classifier, old_classes,
        old_scores
      output (runs/train), device (auto)

    \b
    Examples:
      fcl train --method independent encoder.dim=64 output=runs/old
      fcl train old_features=runs/old-features encoder.dim=128 output=runs/new
      fcl train --method bct old_features=runs/old-features \\
        old_classifier=rows.npy old_classes=names.txt
      fcl train --method ni-fcl-scores old_scores=run.txt output=runs/same-order
      fcl train --config runs/new/args.yaml train.epochs=80 output=runs/longer
      torchrun --nproc-per-node 4 -m fclearn.cli train --config runs/new/args.yaml
    """
    from fclearn.cli.own_methods import load_own_methods
    from fclearn.cli.train_run import run_training
    from fclearn.config import TrainRunConfig, load_config

    load_own_methods()
    named = [] if method is None else [f"method.name={method}"]
    run = load_config(TrainRunConfig, config, [*(overrides or []), *named])
    trained = run_training(run)
    last = trained.history[-1]
    say(f"trained {len(trained.history)} epochs, loss {last['loss']:.3f}; model in {run.output}")
    if json:
        emit(
            {
                "output": run.output,
                "model": trained.card.fingerprint.to_dict(),
                "epochs": len(trained.history),
                "last_epoch": last,
            }
        )
