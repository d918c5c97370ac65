# SPDX-License-Identifier: Apache-2.0
"""Every method under one roof: what it needs, and the loss terms it trains with."""

from __future__ import annotations

import re
from dataclasses import replace

from fclearn.losses import LossTerm
from fclearn.methods import (
    adv_bct,
    aml,
    bct,
    bt2,
    hot_refresh,
    independent,
    l2,
    lce,
    lwf,
    mix_bct,
    nccl,
    ni_fcl,
    ni_fcl_instance_walk,
    ni_fcl_mean,
    ni_fcl_scores,
    ni_fcl_views,
    ni_fcl_walk,
    uni_bct,
)
from fclearn.methods.base import (
    NEW_CLASSIFIER_DEFAULTS,
    Assets,
    MethodSpec,
    Need,
    Setting,
    Settings,
    new_classifier,
)
from fclearn.wording import nearest

METHODS: dict[str, MethodSpec] = {
    module.SPEC.name: module.SPEC
    for module in (
        independent,
        ni_fcl,
        ni_fcl_instance_walk,
        ni_fcl_views,
        ni_fcl_mean,
        ni_fcl_walk,
        ni_fcl_scores,
        bct,
        aml,
        l2,
        lwf,
        lce,
        nccl,
        hot_refresh,
        uni_bct,
        adv_bct,
        mix_bct,
        bt2,
    )
}

_KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "text"}

# A name is also that of a folder, and `fcl upgrade` has one of the old model beside it.
_NAME = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*")
_TAKEN_BY_FOLDERS = {"old"}

__all__ = [
    "METHODS",
    "NEW_CLASSIFIER_DEFAULTS",
    "Assets",
    "MethodSpec",
    "Need",
    "Setting",
    "Settings",
    "build_method",
    "get_method",
    "new_classifier",
    "register",
]


def register(spec: MethodSpec) -> None:
    """Add a method of your own to `METHODS`, for `build_method` and for the command ``fcl``.

    ``fcl`` imports the modules that the environment variable ``FCL_METHODS`` names, by commas.

    Args:
        spec: The method; its ``build`` gets its ``defaults``, overridden by what the user gives.

    Raises:
        TypeError: Not a `MethodSpec`, or a default that is no setting.
        ValueError: A name that exists, or cannot be that of a folder.

    Example:
        >>> from dataclasses import replace
        >>> register(replace(get_method("l2"), name="l2"))
        Traceback (most recent call last):
        ...
        ValueError: name: expected one that no method has yet, got 'l2'
    """
    if not isinstance(spec, MethodSpec):
        raise TypeError(f"spec: expected a MethodSpec, got {type(spec).__name__}")
    if not _NAME.fullmatch(spec.name) or spec.name in _TAKEN_BY_FOLDERS:
        raise ValueError(
            "name: expected words of a-z and 0-9, joined by '-', '_' or '.', and not 'old', "
            f"got {spec.name!r}"
        )
    if spec.name in METHODS:
        raise ValueError(f"name: expected one that no method has yet, got {spec.name!r}")
    for key, value in spec.defaults.items():
        if type(value) not in _KINDS:
            raise TypeError(
                f"defaults: expected {key} to be {', '.join(_KINDS.values())}, got {value!r}"
            )
    METHODS[spec.name] = spec


def get_method(name: str) -> MethodSpec:
    """The method of a name.

    Raises:
        ValueError: An unknown name; the nearest known one is suggested.

    Example:
        >>> get_method("ni-fcl").title
        'NI-FCL, instance level + learned head'
    """
    if name not in METHODS:
        raise ValueError(f"method: unknown name {name!r}; {nearest(name, METHODS)}")
    return METHODS[name]


def build_method(
    name: str, assets: Assets, embedding_dim: int, **settings: Setting
) -> list[LossTerm]:
    """The loss terms a method trains a new encoder with.

    Args:
        name: One of `METHODS`.
        assets: What you own.
        embedding_dim: Dim of the new embedding, at least that of the old features.
        settings: Overrides of the method's defaults.

    Raises:
        TypeError: A setting of another type than its default.
        ValueError: An unknown method or setting, assets the method needs and does not get (they are
            named), or an embedding narrower than the old features.

    Example:
        >>> import torch
        >>> assets = Assets(torch.tensor([0, 1, 1]), old_features=torch.eye(3))
        >>> [term.name for term in build_method("ni-fcl", assets, 4)]
        ['new', 'compat', 'compat', 'compat']
        >>> build_method("bct", assets, 4)
        Traceback (most recent call last):
        ...
        ValueError: method 'bct' needs the old classifier (old_classifier), which is missing
    """
    spec = get_method(name)
    for need in spec.needs:
        if not assets.has(need):
            raise ValueError(f"method {name!r} needs {need.value}, which is missing")
    for key, value in settings.items():
        _check_setting(spec, key, value)
    if Need.FEATURE_CACHE in spec.needs and embedding_dim < assets.old_dim:
        raise ValueError(
            f"dim: expected at least the {assets.old_dim} dims of the old features, "
            f"got {embedding_dim}"
        )
    terms = spec.build(assets, embedding_dim, {**spec.defaults, **settings})
    return [replace(term, labels=assets.labels) for term in terms]


def _check_setting(spec: MethodSpec, key: str, value: Setting) -> None:
    if key not in spec.defaults:
        raise ValueError(
            f"method {spec.name!r} has no setting {key!r}; {nearest(key, spec.defaults)}"
        )
    default = spec.defaults[key]
    # Any whole number is a float's value, and True is also an int to Python.
    kinds = (int, float) if isinstance(default, float) else (type(default),)
    if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool):
        raise TypeError(
            f"{key}: method {spec.name!r} expects {_KINDS[type(default)]} as its default "
            f"{default!r}, got {value!r}"
        )
