# SPDX-License-Identifier: Apache-2.0
"""Asking Milvus: ids within filters, and what goes wrong on the way."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fclearn.stores.base import StoreConnectionError
from fclearn.stores.urls import StoreUrl

_LOGGERS = ("pymilvus", "milvus_lite", "grpc")
_FIRST_PRINTED = ord(" ")
_UNAVAILABLE = {2, 14}  # to Milvus, and to gRPC


def quoted(url: StoreUrl, value: int | str) -> str:
    r"""An id within a filter, so that nothing in it can end the text.

    Raises:
        ValueError: Control characters, which filters have no words for.

    Example:
        >>> print(quoted(StoreUrl.parse("milvus:a.db"), 'a" or id != "'))
        "a\" or id != \""
    """
    if isinstance(value, str) and any(
        ord(letter) < _FIRST_PRINTED and letter not in "\t\n\r" for letter in value
    ):
        raise ValueError(
            f"store {url}: Milvus cannot ask for ids with control characters: {value!r}"
        )
    return json.dumps(value, ensure_ascii=False)


@contextmanager
def milvus_errors(module: Any, url: StoreUrl) -> Iterator[None]:
    """Errors of pymilvus as ours, and said once: it also prints what it raises.

    Args:
        module: pymilvus.
        url: Of the store.

    Raises:
        StoreConnectionError: A server that cannot be reached.
        ValueError: What the store refuses, or a file that cannot be opened.
    """
    levels = [(logging.getLogger(name), logging.getLogger(name).level) for name in _LOGGERS]
    for logger, _ in levels:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    except (module.exceptions.ConnectionConfigException, OSError) as error:
        if url.place.startswith("http"):
            raise StoreConnectionError(f"store {url}: no connection: {error}") from error
        raise ValueError(
            f"store {url}: cannot be opened: no such folder, not of Milvus Lite, or in use by "
            "another process"
        ) from error
    except module.MilvusException as error:
        text = f"store {url}: {getattr(error, 'message', None) or error}"
        if getattr(error, "code", None) in _UNAVAILABLE:
            raise StoreConnectionError(text) from error
        raise ValueError(text) from error
    finally:
        for logger, level in levels:
            logger.setLevel(level)
