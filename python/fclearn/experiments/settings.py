# SPDX-License-Identifier: Apache-2.0
"""Settings of the field: which images, which classes, how clean, how many a class."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from fclearn.experiments.frozen import FROZEN_DIMS
from fclearn.experiments.text_models import TEXT_MODELS
from fclearn.experiments.upgrade import QUICK, UpgradeConfig
from fclearn.training import TrainConfig

Dataset = Literal["icons", "fashion-mnist", "wordnet"]
Setting = Literal["extended", "open", "extended-data", "open-data"]
Labels = Literal["given", "clusters"]


@dataclass(frozen=True)
class BenchConfig(UpgradeConfig):
    """What methods are compared on: `UpgradeConfig`, and what makes it harder.

    Attributes:
        dataset: Which images, or texts.
        classes: ``"extended"``: the new training set has the old model's classes and others;
            ``"open"``: only the others, ``num_new_classes - num_old_classes`` of them;
            ``"extended-data"``: both have all ``num_new_classes`` classes, the old model a share of
            their images, the new training set all; ``"open-data"``: the new one only the others.
        label_noise: Share of the new training images whose labels are shuffled among them, so that
            classes keep their sizes; a few come out right by chance. The old model saw none of it.
        images_per_class: Most images of a class in the new training set; None: all.
        old_image_share: Share of a class's images the old model is trained on, where that is not
            all of them.
        labels: ``"given"``, or ``"clusters"``: nobody has labelled the new training set, and
            clusters of the old features, as many as there are classes, take the place of classes.

    Raises:
        ValueError: A value out of range, or values that do not go together.
    """

    dataset: Dataset = "icons"
    classes: Setting = "extended"
    label_noise: float = 0.0
    images_per_class: int | None = None
    old_image_share: float = 0.3
    labels: Labels = "given"

    @property
    def old_is_frozen(self) -> bool:
        """Whether others have trained the old model, on other data."""
        return self.old_encoder in FROZEN_DIMS

    @property
    def trained_encoder(self) -> str:
        """A head, where new models stand on the features of a frozen one."""
        return "feature-head" if self.new_encoder in FROZEN_DIMS else self.new_encoder

    def to_dict(self) -> dict[str, Any]:
        """As plain values; without what the results in ``bench/results`` were written before."""
        facts = asdict(self)
        later = {"old_image_share": 0.3, "labels": "given"}
        return {name: facts[name] for name in facts if later.get(name, ...) != facts[name]}

    def __post_init__(self) -> None:
        choices = (("dataset", Dataset), ("classes", Setting), ("labels", Labels))
        for name, known in ((name, get_args(kind)) for name, kind in choices):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}: expected one of {list(known)}, got {getattr(self, name)!r}"
                )
        if not 0 <= self.label_noise <= 1:
            raise ValueError(f"label_noise: expected a number in [0, 1], got {self.label_noise}")
        if self.images_per_class is not None and self.images_per_class < 1:
            raise ValueError(f"images_per_class: expected at least 1, got {self.images_per_class}")
        if not 0 < self.old_image_share < 1:
            raise ValueError(
                f"old_image_share: expected a number in (0, 1), got {self.old_image_share}"
            )
        self._check_models()
        lowest = 0 if self.old_is_frozen else 1
        if not lowest <= self.num_old_classes < self.num_new_classes:
            raise ValueError(
                f"num_old_classes: expected {lowest} to {self.num_new_classes - 1}, fewer than the "
                f"new ones, got {self.num_old_classes}"
            )

    def _check_models(self) -> None:
        texts = self.dataset == "wordnet"
        for name in ("old_encoder", "new_encoder"):
            model = getattr(self, name)
            if texts and model not in TEXT_MODELS:
                raise ValueError(
                    f"{name}: expected one of {[*TEXT_MODELS]} for texts, got {model!r}"
                )
            if not texts and model in TEXT_MODELS:
                raise ValueError(f"{name}: {model!r} takes texts, {self.dataset} has images")
        if not texts and self.new_encoder in FROZEN_DIMS:
            raise ValueError(f"new_encoder: {self.new_encoder!r} is frozen and cannot be trained")
        if self.old_is_frozen:
            if self.old_dim != FROZEN_DIMS[self.old_encoder]:
                raise ValueError(
                    f"old_dim: expected {FROZEN_DIMS[self.old_encoder]} for {self.old_encoder!r}, "
                    f"got {self.old_dim}"
                )
            if self.classes != "extended":
                raise ValueError(
                    f"classes: expected 'extended' as {self.old_encoder!r} was trained by others, "
                    f"got {self.classes!r}"
                )


#: The demo's recipe on icons. Ten classes tell little: Fashion-MNIST is there to see that
#: everything runs on images of another kind.
DEFAULTS: dict[str, BenchConfig] = {
    "icons": BenchConfig(),
    "fashion-mnist": BenchConfig(
        num_old_classes=3,
        num_new_classes=6,
        train=TrainConfig(epochs=10),
        dataset="fashion-mnist",
    ),
    "wordnet": BenchConfig(
        num_old_classes=0,
        num_new_classes=120,
        old_encoder="minilm-l3",
        new_encoder="minilm-l6",
        old_dim=FROZEN_DIMS["minilm-l3"],
        new_dim=FROZEN_DIMS["minilm-l6"],
        train=TrainConfig(epochs=20, learning_rate=5e-4, augment=False),
        dataset="wordnet",
    ),
}

#: Exercises everything in seconds; its numbers mean nothing.
QUICK_SETTINGS: dict[str, BenchConfig] = {
    "icons": BenchConfig(**vars(QUICK)),
    "fashion-mnist": replace(
        DEFAULTS["fashion-mnist"],
        num_test_classes=2,
        old_dim=QUICK.old_dim,
        new_dim=QUICK.new_dim,
        train=QUICK.train,
        images_per_class=50,
    ),
    "wordnet": replace(
        DEFAULTS["wordnet"],
        num_new_classes=30,
        num_test_classes=20,
        train=replace(DEFAULTS["wordnet"].train, epochs=2),
    ),
}


def with_models(
    config: BenchConfig,
    *,
    old_encoder: str | None = None,
    new_encoder: str | None = None,
    old_dim: int | None = None,
    new_dim: int | None = None,
) -> BenchConfig:
    """The same setting with other models; dims that are not given follow from frozen ones.

    Args:
        config: The setting.
        old_encoder: Of `fclearn.encoders.build_encoder`, or of `FROZEN_DIMS`; None: as it is, also
            the following.
        new_encoder: Of `fclearn.encoders.build_encoder`, or a frozen model of texts under a head.
        old_dim: Dim of the old features.
        new_dim: Dim of the new embedding; never below the old one's.

    Raises:
        ValueError: Models that do not go with the data, or with each other.

    Example:
        >>> config = with_models(DEFAULTS["icons"], old_encoder="efficientnet-lite0")
        >>> config.old_dim, config.new_dim, config.num_old_classes
        (1280, 1280, 0)
    """
    old, new = old_encoder or config.old_encoder, new_encoder or config.new_encoder
    old_dim = old_dim or FROZEN_DIMS.get(old, config.old_dim)
    if new_dim is None:
        own = FROZEN_DIMS.get(new, config.new_dim) if new_encoder else config.new_dim
        new_dim = max(own, old_dim)
    num_old = 0 if old in FROZEN_DIMS else config.num_old_classes
    return replace(
        config,
        old_encoder=old,
        new_encoder=new,
        old_dim=old_dim,
        new_dim=new_dim,
        num_old_classes=num_old,
    )
