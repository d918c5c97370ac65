# SPDX-License-Identifier: Apache-2.0
"""Configurations: yaml and ``a.b=c`` overrides into frozen, typed dataclasses, and back."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from fclearn._files import reason
from fclearn._schema import Config, build
from fclearn.training import TrainConfig
from fclearn.wording import shown


@dataclass(frozen=True)
class DataConfig:
    """Which images.

    Attributes:
        kind: ``"icons"`` (drawn once from the fonts of ``qtawesome``), ``"folder"`` (one folder
            per class), ``"manifest"`` (csv or parquet with columns ``path,label``) or
            ``"fashion-mnist"``.
        path: Folder, manifest, or folder of Fashion-MNIST's files; icons take none.
        size: Side in pixels; default 32 for icons, 64 for folders and manifests. Fashion-MNIST
            has 28.
        grey: One channel instead of three, for folders and manifests; the others are grey.
        classes: Names of the classes to keep, in this order; None: all.
        part: ``"train"`` or ``"test"`` of Fashion-MNIST.
        short_side: The short side of photos is scaled to it before the centre of ``size`` is cut
            out; None: to ``size``. For folders and manifests.
        augmentation: What ``train.augment`` does: ``"drawings"``: small shifts, rotations and
            scalings; ``"photos"``: random resized crops with flips, for folders and manifests.
        class_share: Keep this share of the classes (of ``classes``, if given), drawn at random but
            always the same.

    Raises:
        ValueError: A size below 8, no classes, a path missing or superfluous, photos of a kind that
            has none, a share out of range.
    """

    kind: Literal["icons", "folder", "manifest", "fashion-mnist"] = "icons"
    path: str | None = None
    size: int | None = None
    grey: bool = False
    classes: tuple[str, ...] | None = None
    part: Literal["train", "test"] = "train"
    short_side: int | None = None
    augmentation: Literal["drawings", "photos"] = "drawings"
    class_share: float = 1.0

    def __post_init__(self) -> None:
        files = self.kind in {"folder", "manifest"}
        if self.augmentation == "photos" and not files:
            raise ValueError(f"augmentation: photos are files, and {self.kind} has none")
        if self.short_side is not None and not files:
            raise ValueError(f"short_side: expected null, {self.kind} has images of one size")
        if not 0 < self.class_share <= 1:
            raise ValueError(f"class_share: expected a number in (0, 1], got {self.class_share}")
        if self.kind in {"folder", "manifest"} and not self.path:
            raise ValueError(f"path: expected the path of the {self.kind}, got {self.path!r}")
        if self.kind == "icons" and self.path is not None:
            raise ValueError(f"path: icons are drawn from a package and take none: {self.path!r}")
        if self.size is not None and self.size < 8:
            raise ValueError(f"size: expected at least 8 pixels, got {self.size}")
        if self.classes is not None and not self.classes:
            raise ValueError("classes: expected at least one name, or null for all")


@dataclass(frozen=True)
class EncoderConfig:
    """Which network: a ``name`` of `fclearn.encoders.build_encoder` and its embedding ``dim``.

    Raises:
        ValueError: A dim below 1.
    """

    name: str = "small-cnn"
    dim: int = 64

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"dim: expected at least 1, got {self.dim}")


@dataclass(frozen=True)
class MethodConfig:
    """Which of `fclearn.methods.METHODS`, and overrides of its settings."""

    name: str = "ni-fcl"
    settings: Mapping[str, int | float | str | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainRunConfig:
    """One training, from images to a model folder.

    Attributes:
        data: Images.
        encoder: Network.
        method: What it is trained for.
        train: Hyper-parameters.
        old_features: Feature store with the old model's features of the images; None without.
        old_model: Model folder of the old model, where it is at hand: its stored features are then
            checked on a sample, and methods that ask it about augmented images can; None without.
        independent_features: Feature store with those of the new architecture trained without
            compatibility; None without.
        old_classifier: ``.npy`` file with rows of the old model's classifier, shape ``(K, D_old)``,
            without bias; None without.
        old_classes: Text file with the class name of each of these rows, one a line.
        old_scores: TREC run file of a search service that gives no vectors: the training images it
            found for each of them, with scores; None without.
        output: Folder of the run.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` …, or ``"auto"``: a GPU if there is one.

    Example:
        >>> config = load_config(TrainRunConfig, overrides=["train.epochs=5", "encoder.dim=128"])
        >>> config.train.epochs, config.encoder
        (5, EncoderConfig(name='small-cnn', dim=128))
        >>> load_config(TrainRunConfig, overrides=["train.epoch=5"])
        Traceback (most recent call last):
        ...
        ValueError: config: unknown key 'train.epoch'; did you mean 'train.epochs'?
    """

    data: DataConfig = field(default_factory=DataConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    old_features: str | None = None
    old_model: str | None = None
    independent_features: str | None = None
    old_classifier: str | None = None
    old_classes: str | None = None
    old_scores: str | None = None
    output: str = "runs/train"
    device: str = "auto"


def load_config(
    kind: type[Config],
    path: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> Config:
    """Read a configuration: defaults, then a yaml file, then overrides.

    Args:
        kind: A dataclass whose fields are bool, int, float, str, `Literal`, None, tuples or string
            mappings of these, or such dataclasses.
        path: A yaml file.
        overrides: ``"a.b=value"``, the value in yaml; later ones win.

    Raises:
        TypeError: A value of another type; the message names key, expectation and value.
        ValueError: Not yaml, an unknown key (the nearest is suggested), a value out of range.
        OSError: The file cannot be read.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        loaded = _parse(_read(Path(path)), str(path))
        if loaded is not None and not isinstance(loaded, dict):
            raise ValueError(f"{path}: expected a mapping of keys, got {shown(loaded)}")
        tree = loaded or {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise ValueError(
                f"override: expected key=value, as in train.epochs=5, got {override!r}"
            )
        _assign(tree, key.split("."), _parse(text, f"override {override!r}"))
    return build(kind, tree)


def dump_config(config: object) -> str:
    """The yaml that `load_config` reads back to an equal configuration.

    Args:
        config: A dataclass instance.

    Example:
        >>> print(dump_config(EncoderConfig(dim=8)))
        name: small-cnn
        dim: 8
        <BLANKLINE>
    """
    if not is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"config: expected a dataclass instance, got {type(config).__name__}")
    return yaml.dump(asdict(config), Dumper=_Dumper, sort_keys=False)


class _Loader(yaml.SafeLoader):
    """Plain data only; ``1e-3`` is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would take for a number."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True  # equal values are written twice: nobody reads *id001


for _yaml in (_Loader, _Dumper):
    # YAML 1.1 takes an exponent only after a decimal point, and with a sign.
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8: {error}") from error


def _parse(text: str, name: str) -> object:
    try:
        return cast("object", yaml.load(text, Loader=_Loader))
    except Exception as error:  # a tag on a value that is not of its kind fails in many ways
        raise ValueError(f"{name}: not valid yaml: {reason(error)}") from error


def _assign(tree: dict[str, Any], path: Sequence[str], value: object) -> None:
    for part in path[:-1]:
        child = tree.get(part)
        # A copy, as an alias of yaml is the same mapping in another place.
        copied = dict(child) if isinstance(child, dict) else {}
        tree[part] = copied
        tree = copied
    tree[path[-1]] = value
