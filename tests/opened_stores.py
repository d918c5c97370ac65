# SPDX-License-Identifier: Apache-2.0
"""Pulls from, pushes to and rollbacks of a real store by its URL, a few rows at a time."""

from __future__ import annotations

from fclearn.stores import Journal, open_store, pull, push, rollback

COUNT = 25


def opened_push(url, store, **options):
    with open_store(url) as opened:
        return push(store, opened, **{"batch_size": 4, **options})


def opened_rollback(result, url, **options):
    with open_store(url) as opened:
        return rollback(Journal(result.journal), opened, **options)


def opened_pull(url, out, **options):
    with open_store(url) as opened:
        return pull(opened, out, **{"batch_size": 4, "model": "old", **options})
