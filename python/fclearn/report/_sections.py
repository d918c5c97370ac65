# SPDX-License-Identifier: Apache-2.0
"""Pages made of sections, and sections made of blocks: for chains, plans and several runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypedDict

from fclearn.report._numbers import Table
from fclearn.report._pictures import as_data_uri
from fclearn.report._template import Json, fill


class Block(TypedDict):
    """Something in a section: ``kind`` says what ``content`` is."""

    kind: str
    content: object


class Section(TypedDict):
    """A heading and what is under it."""

    title: str
    blocks: list[Block]


def verdict(status: str, headline: str, details: str) -> Block:
    """A decision in a box."""
    content = {"status": status, "headline": headline, "details": details}
    return {"kind": "verdict", "content": content}


def table(content: Table) -> Block:
    """A table."""
    return {"kind": "table", "content": content}


def text(content: str) -> Block:
    """A paragraph."""
    return {"kind": "text", "content": content}


def notes(content: Sequence[str]) -> Block:
    """A list."""
    return {"kind": "notes", "content": list(content)}


def command(content: str) -> Block:
    """A command to run again."""
    return {"kind": "command", "content": content}


def figures(content: Sequence[tuple[bytes, str]], note: str = "") -> Block:
    """Pictures, PNG, each with a text that says what it shows."""
    pictures = [{"uri": as_data_uri(png), "alt": alt} for png, alt in content]
    return {"kind": "figures", "content": {"pictures": pictures, "note": note}}


def render_sections(
    sections: Sequence[Section],
    data: Mapping[str, Json],
    *,
    kind: str,
    hidden: Collection[str],
    numbers_file: str,
) -> bytes:
    """A page of sections.

    Args:
        sections: In order.
        data: As `fill`.
        kind: As there.
        hidden: As there.
        numbers_file: As there.
    """
    return fill(
        "sections.html.j2",
        data,
        kind=kind,
        hidden=hidden,
        numbers_file=numbers_file,
        sections=sections,
    ).encode()
