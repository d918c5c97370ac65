# SPDX-License-Identifier: Apache-2.0
"""WordNet's glosses: read by definition from a few lines of its own format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fclearn.datasets import load_glosses
from fclearn.datasets.wordnet import DEFAULT_PATH

LICENCE = "  1 This software and database is being provided to you, the LICENSEE.\n"


def line(offset, word, over=(), gloss="a gloss", part="n", symbol="@"):
    """One synset: its words, its pointers, maybe frames of a verb, its gloss."""
    pointers = [f"{symbol} {target} {part} 0000" for target in over]
    pointers.append("~ 99999999 n 0000")  # a hyponym, which decides nothing
    frames = " 01 + 02 00" if part == "v" else ""
    return (
        f"{offset} 03 {part} 02 {word} 0 other_word 1 {len(pointers):03} {' '.join(pointers)}"
        f"{frames} | {gloss}  \n"
    )


@pytest.fixture
def folder(tmp_path):
    animals = [line(f"{100 + n:08}", f"cat_{n}", ["00000002"], f"cat {n}") for n in range(4)]
    things = [line(f"{200 + n:08}", f"box_{n}", ["00000001"], f"box {n}") for n in range(3)]
    cities = [
        line(f"{300 + n:08}", f"town_{n}", ["00000003"], f"town {n}", symbol="@i") for n in range(3)
    ]
    few = [line("00000400", "lone", ["00000004"], "a lone one")]
    both = [line("00000500", "cat_box", ["00000002", "00000001"], 'of both; "an example; of it"')]
    same = [line("00000501", "copy", ["00000002"], "cat 0")]
    roots = [line("00000001", "thing"), line("00000002", "animal", ["00000001"], "a being; alive")]
    noun = "".join([LICENCE, *roots, *animals, *things, *cities, *few, *both, *same])
    (tmp_path / "data.noun").write_text(noun)
    run = [line(f"{600 + n:08}", f"run_{n}", ["00000002"], f"run {n}", part="v") for n in range(3)]
    (tmp_path / "data.verb").write_text(LICENCE + "".join(run))
    return tmp_path


def test_classes_are_hypernyms_by_offset(folder):
    glosses = load_glosses(folder, num_classes=4, least=3)
    # noun/1 and noun/2, then verb/2 of the same offset, then the instances of noun/3.
    assert glosses.class_names == [
        *("thing/00000001", "animal/00000002", "?/00000002", "?/00000003"),
    ]
    assert glosses.texts == [
        *("a being; alive", "box 0", "box 1", "box 2", "of both"),
        *("cat 0", "cat 1", "cat 2", "cat 3"),
        *("run 0", "run 1", "run 2"),
        *("town 0", "town 1", "town 2"),
    ]
    assert glosses.labels.tolist() == [0] * 5 + [1] * 4 + [2] * 3 + [3] * 3
    assert glosses.ids[0] == "noun/00000002"
    assert glosses.ids[9] == "verb/00000600"
    first = load_glosses(folder, num_classes=2, least=3)
    assert first.texts == glosses.texts[:9]
    part = glosses.subset([9, 0])
    assert (part.ids, part.labels.tolist()) == (["verb/00000600", "noun/00000002"], [2, 0])


def test_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"num_classes: expected 1 to 4 .*got 5"):
        load_glosses(folder, num_classes=5, least=3)
    with pytest.raises(ValueError, match=r"data.noun is missing; on Debian: apt install wordnet"):
        load_glosses(tmp_path / "nowhere")
    verbs = folder / "data.verb"
    whole = verbs.read_text()
    for damaged in (
        whole.replace("|", ""),
        whole[: len(LICENCE) + 30],
        whole.replace(" 002 ", " xy "),
    ):
        verbs.write_text(damaged)
        with pytest.raises(ValueError, match=r"data.verb is damaged: "):
            load_glosses(folder, num_classes=1, least=3)


@pytest.mark.skipif(not Path(DEFAULT_PATH, "data.noun").is_file(), reason="needs wordnet-base")
def test_real_wordnet():
    glosses = load_glosses()
    assert len(glosses.class_names) == 200
    assert np.bincount(glosses.labels).min() >= 20  # thirty, without what other classes have
    assert len(set(glosses.texts)) == len(glosses.texts) > 13_000
