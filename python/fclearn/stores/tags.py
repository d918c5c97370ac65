# SPDX-License-Identifier: Apache-2.0
"""What a store says of its vectors: what made them, in a tag of ours, and how it compares them."""

from __future__ import annotations

import json
from collections.abc import Mapping

from fclearn.features import Fingerprint
from fclearn.stores.urls import StoreUrl

TAG = "fclearn"


def make_tag(fingerprint: Fingerprint, *, owned: bool) -> str:
    """The text by which a store remembers what made its vectors."""
    return json.dumps({TAG: {"fingerprint": fingerprint.to_dict(), "owned": owned}})


def read_tag(text: str | None, url: StoreUrl) -> tuple[Fingerprint | None, bool]:
    """Fingerprint and ownership of `make_tag`; a text by somebody else says nothing.

    Args:
        text: Of the store.
        url: Of the store, for messages.

    Raises:
        ValueError: A fingerprint that is none any more.

    Example:
        >>> url = StoreUrl.parse("parquet:gallery.parquet")
        >>> tag = make_tag(Fingerprint("m", 2), owned=True)
        >>> read_tag("customer table", url), read_tag(tag, url)[1]
        ((None, False), True)
    """
    try:
        tag = json.loads(text or "")[TAG]
        values, owned = tag["fingerprint"], tag["owned"] is True
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return None, False
    try:
        return Fingerprint.from_dict(values), owned
    except (TypeError, ValueError) as error:
        raise ValueError(f"store {url}: what it says of its vectors: {error}") from error


def metric_named(found: str, names: Mapping[str, str], url: StoreUrl) -> str:
    """Our name of a store's similarity.

    Args:
        found: As the store calls it.
        names: The store's names by ours.
        url: Of the store, for messages.

    Raises:
        ValueError: A similarity that is none of `fclearn.features.METRICS`.

    Example:
        >>> metric_named("Dot", {"ip": "Dot"}, StoreUrl.parse("qdrant:folder?collection=items"))
        'ip'
    """
    ours = {theirs: name for name, theirs in names.items()}
    if found not in ours:
        raise ValueError(
            f"store {url}: expected vectors compared by one of {', '.join(ours)}, found {found}"
        )
    return ours[found]
