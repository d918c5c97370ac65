# SPDX-License-Identifier: Apache-2.0
"""Ids of Qdrant's points: integers and UUIDs, or any text kept in the payload."""

from __future__ import annotations

import uuid
from typing import Any

from fclearn.stores.urls import StoreUrl

_NUMBERS = 1 << 64


def point_id(url: StoreUrl, name: str, key: str | None) -> int | str:
    """The point's own id.

    Args:
        url: Of the store, for messages.
        name: Id of the row.
        key: Where the payload keeps it; None if it is the point's own id.

    Raises:
        ValueError: Neither an integer nor a UUID, and no key.

    Example:
        >>> url = StoreUrl.parse("qdrant:folder?collection=items")
        >>> point_id(url, "17", None), point_id(url, "photo-17", "name")
        (17, 'a1c6fdac-5541-57ed-81af-6ee99a3c5a93')
    """
    if key is not None:  # the same id always makes the same point
        return str(uuid.uuid5(uuid.NAMESPACE_OID, name))
    if name.isdecimal() and str(int(name)) == name and int(name) < _NUMBERS:
        return int(name)
    try:
        if str(uuid.UUID(name)) == name:
            return name
    except ValueError:
        pass
    raise ValueError(
        f"store {url}: ids of Qdrant's points are integers or UUIDs, got {name!r}; "
        "&id=KEY keeps other ids in the payload"
    )


def id_of(url: StoreUrl, record: Any, key: str | None) -> str:
    """The id of the row that a point is.

    Raises:
        ValueError: A point whose payload lacks the key.
    """
    if key is None:
        return str(record.id)
    value = (record.payload or {}).get(key)
    if value is None or value == "":
        raise ValueError(f"store {url}: point {record.id} has no {key!r}, its id")
    return str(value)
