# SPDX-License-Identifier: Apache-2.0
"""Verb ``methods``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from fclearn.cli.console import JsonFlag, draw, emit

if TYPE_CHECKING:
    from fclearn.methods import MethodSpec

#: Of a column, where nothing else bounds it: sentences are read in a few words a line.
_MAX_WIDTH = 40


def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One method, explained.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """List the methods that 'fcl train' knows, with what each needs and its settings.

    With a name: that method's idea, where it comes from, its needs and settings.

    Methods of your own are there, too, where FCL_METHODS names the modules that register them.

    \b
    Examples:
      fcl methods
      fcl methods ni-fcl
      fcl methods --json
    """
    from fclearn.cli.own_methods import load_own_methods
    from fclearn.methods import METHODS, get_method

    load_own_methods()
    if name is not None:
        spec = get_method(name)
        if json:
            emit(_facts(spec))
        else:
            _explain(spec)
    elif json:
        emit({"methods": [_facts(spec) for spec in METHODS.values()]})
    else:
        _list(METHODS.values())


def _facts(spec: MethodSpec) -> dict[str, object]:
    return {
        "name": spec.name,
        "title": spec.title,
        "source": spec.source,
        "needs": [need.name.lower() for need in spec.needs],
        "settings": dict(spec.defaults),
        "idea": spec.idea,
    }


def _list(specs: Iterable[MethodSpec]) -> None:
    from rich.table import Table

    table = Table(show_lines=True)
    for heading in ("name", "title", "needs", "settings", "source"):
        table.add_column(heading, max_width=_MAX_WIDTH)
    for spec in specs:
        needs = ", ".join(need.name.lower().replace("_", " ") for need in spec.needs)
        table.add_row(spec.name, spec.title, needs, "\n".join(_settings(spec)), spec.source)
    draw(table, stdout=True)


def _explain(spec: MethodSpec) -> None:
    lines = [f"{spec.name}: {spec.title}", f"source: {spec.source}", "", spec.idea, ""]
    lines += ["needs", *(f"  {need.value}" for need in spec.needs)]
    lines += ["settings, as in method.settings.KEY=VALUE", *(f"  {s}" for s in _settings(spec))]
    print("\n".join(lines))


def _settings(spec: MethodSpec) -> list[str]:
    from fclearn.methods.base import NEW_CLASSIFIER_DEFAULTS

    # Those that all of the library's own methods have come last.
    own = [key for key in spec.defaults if key not in NEW_CLASSIFIER_DEFAULTS]
    common = [key for key in NEW_CLASSIFIER_DEFAULTS if key in spec.defaults]
    return [f"{key}={_yaml(spec.defaults[key])}" for key in [*own, *common]]


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
