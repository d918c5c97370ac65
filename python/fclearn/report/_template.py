# SPDX-License-Identifier: Apache-2.0
"""Pages from templates, with what all of them say: title, command, facts, configuration."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jinja2
import yaml

# The values of report.json: JSON has no narrower type.
Json = Any

#: A verdict's sign, by its status; style.css has a colour for each.
SIGNS = {"compatible": "✓", "mixed": "!", "unclear": "?", "incompatible": "✗"}

# Shown in places of their own, on every page.
_PLACED = frozenset({"title", "data", "command", "config", "versions", "kind", "items"})


def fill(
    template: str,
    data: Mapping[str, Json],
    *,
    kind: str,
    hidden: Collection[str],
    numbers_file: str = "report.json",
    **content: object,
) -> str:
    """Fill a template; every inserted string is escaped.

    Args:
        template: Name of its file.
        data: What the page is about; ``title``, ``data``, ``command``, ``config`` and ``versions``
            have their places, others are listed by name.
        kind: What the page is, in the line above the title.
        hidden: Keys of ``data`` not to list.
        numbers_file: Where the numbers are.
        content: For the template.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fclearn.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["signs"] = SIGNS
    return environment.get_template(template).render(
        title=str(data.get("title", kind.capitalize())),
        kind=kind,
        data=data.get("data"),
        command=data.get("command"),
        facts=facts_of(data, hidden),
        config=yaml.safe_dump(data["config"], sort_keys=False) if data.get("config") else "",
        numbers_file=numbers_file,
        **content,
    )


def facts_of(data: Mapping[str, Json], hidden: Collection[str]) -> list[tuple[str, str]]:
    """Flatten what was said about the run into name and value."""
    pairs: list[tuple[str, str]] = []

    def add(name: str, value: Json) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                add(f"{name}, {key}", item)
        elif isinstance(value, list):
            pairs.append((name, ", ".join(map(str, value))))
        elif value is not None:
            pairs.append((name, str(value)))

    versions = data.get("versions")
    if isinstance(versions, Mapping):
        pairs.append(("versions", ", ".join(f"{key} {value}" for key, value in versions.items())))
    if not isinstance(data.get("data"), str):
        add("data", data.get("data"))
    for key, value in data.items():
        if key not in hidden and key not in _PLACED:
            add(key.replace("_", " "), value)
    return pairs
