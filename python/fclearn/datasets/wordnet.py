# SPDX-License-Identifier: Apache-2.0
"""WordNet's glosses: short English definitions, classed by what they are a kind of."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# Where the Debian package wordnet-base puts the files.
DEFAULT_PATH = "/usr/share/wordnet"
#: Parts of speech with hypernyms.
_PARTS = ("noun", "verb")
NUM_CLASSES, LEAST = 200, 30


@dataclass(frozen=True)
class Glosses:
    """Definitions and the class of each.

    Attributes:
        texts: N definitions, all different.
        labels: Shape ``(N,)``, int64.
        ids: Part of speech and offset in WordNet's file, as in ``noun/00027167``.
        class_names: First word of each class's hypernym and its offset, as in
            ``thing/00002452``.
    """

    texts: list[str]
    labels: NDArray[np.int64]
    ids: list[str]
    class_names: list[str]

    def subset(self, rows: Sequence[int] | NDArray[np.int64]) -> Glosses:
        """Some of them, under the same labels.

        Args:
            rows: Row numbers.
        """
        return Glosses(
            [self.texts[row] for row in rows],
            self.labels[np.asarray(rows, np.int64)],
            [self.ids[row] for row in rows],
            self.class_names,
        )


@dataclass(frozen=True)
class _Synset:
    id: str
    word: str
    over: tuple[str, ...]
    definition: str


def load_glosses(
    path: str | os.PathLike[str] = DEFAULT_PATH,
    *,
    num_classes: int = NUM_CLASSES,
    least: int = LEAST,
) -> Glosses:
    """Read ``data.noun`` and ``data.verb`` of WordNet 3.0.

    A class is a hypernym (also of an instance) with many glosses; classes come in the order of
    their offsets, and the first ones are taken. A definition without its examples is a text. One
    that several classes have is left to the first of them, one that several synsets share to the
    first synset.

    Args:
        path: Folder of the files.
        num_classes: Classes to take, at least 1.
        least: Glosses that a class must have.

    Raises:
        ValueError: A missing or damaged file, fewer classes than asked for.

    References:
        Fellbaum (ed.), *WordNet: An Electronic Lexical Database*, MIT Press 1998; wndb(5WN).
    """
    synsets = [synset for part in _PARTS for synset in _read(Path(path) / f"data.{part}", part)]
    under: dict[str, list[_Synset]] = defaultdict(list)
    for synset in synsets:
        for over in synset.over:
            under[over].append(synset)
    large = sorted(
        (name for name, found in under.items() if len(found) >= least),
        key=lambda name: (name.partition("/")[2], name),
    )
    if not 1 <= num_classes <= len(large):
        raise ValueError(
            f"num_classes: expected 1 to {len(large)} (classes with {least} glosses or more in "
            f"{path}), got {num_classes}"
        )
    word_of = {synset.id: synset.word for synset in synsets}
    seen: set[str] = set()
    kept: list[tuple[_Synset, int]] = []
    for label, name in enumerate(large[:num_classes]):
        for synset in under[name]:
            if synset.definition not in seen:
                seen.add(synset.definition)
                kept.append((synset, label))
    return Glosses(
        [synset.definition for synset, _ in kept],
        np.array([label for _, label in kept], np.int64),
        [synset.id for synset, _ in kept],
        [f"{word_of.get(name, '?')}/{name.partition('/')[2]}" for name in large[:num_classes]],
    )


def _read(file: Path, part: str) -> list[_Synset]:
    if not file.is_file():
        raise ValueError(f"WordNet: {file} is missing; on Debian: apt install wordnet-base")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        return [_synset(line, part) for line in lines if not line.startswith("  ")]  # the licence
    except (ValueError, IndexError) as error:
        raise ValueError(f"WordNet: {file} is damaged: {error}") from error


def _synset(line: str, part: str) -> _Synset:
    left, bar, gloss = line.partition("|")
    if not bar:
        raise ValueError(f"expected a gloss behind a bar, got {line[:40]!r}")
    fields = left.split()
    first = 4 + 2 * int(fields[3], 16)  # behind the words, whose number is in hexadecimal
    pointers = fields[first + 1 : first + 1 + 4 * int(fields[first])]
    kinds = {"n": "noun", "v": "verb"}
    over = tuple(
        f"{kinds[kind]}/{offset}"
        for symbol, offset, kind in zip(pointers[::4], pointers[1::4], pointers[2::4], strict=True)
        if symbol in {"@", "@i"} and kind in kinds
    )
    definition = gloss.partition('"')[0].strip(" ;")
    return _Synset(f"{part}/{fields[0]}", fields[4], over, definition)
