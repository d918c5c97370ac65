# SPDX-License-Identifier: Apache-2.0
"""How a store is named: ``kind:place?option=value``."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

from fclearn.wording import nearest

KINDS = ("faiss", "parquet", "qdrant", "postgresql", "milvus")
_SAFE = "/:@,"


@dataclass(frozen=True)
class StoreUrl:
    """A store's name in parts.

    Attributes:
        kind: One of `KINDS`.
        place: A path, or the address of a server.
        options: What follows the question mark, by name.

    Example:
        >>> url = StoreUrl.parse("qdrant:runs/q?collection=items")
        >>> url.kind, url.place, url.options
        ('qdrant', 'runs/q', {'collection': 'items'})
        >>> StoreUrl.parse("pg://host/db?table=items")
        Traceback (most recent call last):
        ...
        ValueError: store 'pg://host/db?table=items': expected kind:place?option=value, kind one of
        faiss, parquet, qdrant, postgresql, milvus
    """

    kind: str
    place: str
    options: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> StoreUrl:
        """Split a store's name.

        Raises:
            ValueError: Another kind, no place, an option twice or without a value.
        """
        kind, _, rest = text.partition(":")
        kind = "postgresql" if kind == "postgres" else kind
        place, _, query = rest.partition("?")
        if kind not in KINDS or not place:
            raise ValueError(
                f"store {_hidden(text)!r}: expected kind:place?option=value, kind one of "
                f"{', '.join(KINDS)}"
            )
        try:
            pairs = parse_qsl(query, strict_parsing=True, keep_blank_values=True) if query else []
        except ValueError as error:
            raise ValueError(f"store {_hidden(text)!r}: {error}") from None
        options: dict[str, str] = {}
        for key, value in pairs:
            if key in options or not value:
                problem = "twice" if key in options else "without a value"
                raise ValueError(f"store {_hidden(text)!r}: option {key!r} is given {problem}")
            options[key] = value
        return cls(kind, place, options)

    def take(self, required: Collection[str], optional: Collection[str] = ()) -> dict[str, str]:
        """The options, if they are these.

        Raises:
            ValueError: A required one is missing, or one is unknown.
        """
        known = [*required, *optional]
        for name in self.options:
            if name not in known:
                raise ValueError(f"store {self}: unknown option {name!r}; {nearest(name, known)}")
        for name in required:
            if name not in self.options:
                raise ValueError(f"store {self}: expected ?{name}=…, which is missing")
        return self.options

    def __str__(self) -> str:
        """The name, as `parse` takes it, without a password."""
        shown = {key: value for key, value in self.options.items() if key != "password"}
        query = "&".join(f"{key}={quote(value, safe=_SAFE)}" for key, value in shown.items())
        return f"{self.kind}:{_hidden(self.place)}" + (f"?{query}" if query else "")


def without_password(address: str) -> str:
    """An address without the password that it may hold.

    Example:
        >>> without_password("//me:secret@host/db")
        '//me@host/db'
    """
    parts = urlsplit(address)
    user, at, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=user.partition(":")[0] + at + host))


def _hidden(text: str) -> str:
    """The text, passwords cut out: also of one that is no proper address."""
    text = re.sub(r"(//[^:@/?]*):[^@/?]*@", r"\1@", text)
    return re.sub(r"(?i)([?&]password=)[^&]*", r"\1…", text)
