# SPDX-License-Identifier: Apache-2.0
"""What can be compared: methods that train the new model, and maps put behind a finished one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from fclearn.experiments.settings import BenchConfig
from fclearn.methods import METHODS, MethodSpec, Need, Setting, get_method
from fclearn.probe import ADAPTERS
from fclearn.wording import nearest

#: Every method, those that decide most first: a run that is cut short has them.
_ORDER = (
    *("ni-fcl", "independent", "bct", "ni-fcl-mean", "ni-fcl-walk", "ni-fcl-instance-walk", "l2"),
    "ni-fcl-views",
    *("lwf", "lce", "nccl", "hot-refresh", "uni-bct", "adv-bct", "mix-bct", "bt2", "aml"),
)
_PREFIX = "map-"


class Contender(Protocol):
    """What a record says about one: a `MethodSpec` or a `MapSpec`."""

    @property
    def name(self) -> str:
        """As on the command line."""

    @property
    def title(self) -> str:
        """In words."""

    @property
    def needs(self) -> tuple[Need, ...]:
        """What it is given."""

    @property
    def defaults(self) -> Mapping[str, Setting]:
        """Its settings."""


@dataclass(frozen=True)
class MapSpec:
    """A map of the independent model's features to the old ones, fitted on the training images.

    Attributes:
        adapter: Of `fclearn.probe.ADAPTERS`.
        needs: Features of both models for the same images.
        defaults: None beyond the adapter's own.
    """

    adapter: str
    needs: tuple[Need, ...] = (Need.LABELS, Need.FEATURE_CACHE, Need.INDEPENDENT_FEATURES)
    defaults: Mapping[str, Setting] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As on the command line."""
        return _PREFIX + self.adapter

    @property
    def title(self) -> str:
        """In words."""
        return f"{self.adapter} behind the independent model"


def get_contender(name: str) -> MethodSpec | MapSpec:
    """The method or map of a name.

    Raises:
        ValueError: An unknown name; the nearest known one is suggested.

    Example:
        >>> get_contender("map-ridge").title
        'ridge behind the independent model'
        >>> get_contender("bct").title
        'BCT (influence loss)'
    """
    if name in METHODS:
        return get_method(name)
    names = all_contenders()
    if name not in names:
        raise ValueError(f"methods: unknown name {name!r}; {nearest(name, names)}")
    return MapSpec(name.removeprefix(_PREFIX))


def all_contenders() -> list[str]:
    """Methods, most important first, then the maps between spaces of any two dims."""
    methods = sorted(METHODS, key=lambda name: (_rank(name), name))
    return methods + [_PREFIX + name for name in ADAPTERS if name != "mean-shift"]


def lacking(spec: Contender, config: BenchConfig) -> str:
    """What a method needs that nobody has in a setting, in words; empty if it has everything.

    Example:
        >>> from fclearn.experiments.settings import DEFAULTS
        >>> lacking(get_contender("bct"), DEFAULTS["wordnet"])
        "the old classifier, which 'minilm-l3' does not have"
    """
    if Need.OLD_MODEL in spec.needs and config.old_is_frozen:
        return f"the old model at hand in training; only features of {config.old_encoder!r} are"
    if Need.OLD_CLASSIFIER in spec.needs:
        if config.old_is_frozen:
            return f"the old classifier, which {config.old_encoder!r} does not have"
        if config.labels == "clusters":
            return "the old classifier's classes, and the new images have clusters instead"
    if Need.OLD_SCORES in spec.needs:
        return (
            "an old service's scores in the place of vectors: no new query meets the old gallery, "
            "and n/o, which is compared here, is not defined"
        )
    return ""


def _rank(name: str) -> int:
    return _ORDER.index(name) if name in _ORDER else len(_ORDER)
