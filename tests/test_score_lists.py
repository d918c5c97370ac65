# SPDX-License-Identifier: Apache-2.0
"""Ranked lists of a service in TREC's form: what is read, what is left out, what is refused."""

from __future__ import annotations

import re

import pytest
import torch

from fclearn.score_lists import read_score_lists

IDS = ["a", "b", "c", "d"]
LINES = [
    *("a Q0 b 1 3 old", "a Q0 a 2 9 old", "", "a Q0 c 3 7.5e0 old"),
    *("c\tQ0\td 1 -1 old", "b Q0 d 0 2 old", "d Q0 x 1 8 old", "d Q0 a 2 8 old", "x Q0 b 1 1 old"),
]


def write(path, lines, encoding="utf-8"):
    path.write_bytes("\n".join(lines).encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_lists_by_id_best_first(tmp_path, encoding):
    graph = read_score_lists(write(tmp_path / "run", LINES, encoding), IDS)
    assert graph.crow_indices.tolist() == [0, 2, 3, 4, 5]
    assert graph.col_indices.tolist() == [2, 1, 3, 3, 0]  # neither a for itself nor x
    assert graph.values.dtype == torch.float64
    assert graph.values.tolist() == [7.5, 3.0, 2.0, -1.0, 8.0]
    assert graph.mode is None
    assert graph.metadata == {}
    turned = read_score_lists(write(tmp_path / "run", LINES[::-1]), IDS[::-1])
    assert turned.crow_indices.tolist() == [0, 1, 2, 3, 5]
    assert turned.col_indices.tolist() == [3, 0, 0, 1, 2]


def test_ids_are_compared_as_text(tmp_path):
    path = write(tmp_path / "run", ["7 Q0 8 1 0.5 t", "8 Q0 7 1 0.5 t"])
    assert read_score_lists(path, [7, 8]).col_indices.tolist() == [1, 0]


def test_ranks_count_where_no_list_has_scores_that_differ(tmp_path):
    ranks = {"a": ("b 7", "c 1", "d 3"), "b": ("a 0", "d 1"), "c": ("a 1",), "d": ("a 1", "b 2")}
    lines = [f"{query} Q0 {one} 0.5 t" for query, found in ranks.items() for one in found]
    graph = read_score_lists(write(tmp_path / "run", lines), IDS)
    assert graph.col_indices.tolist() == [2, 3, 1, 0, 3, 0, 0, 1]
    torch.testing.assert_close(
        graph.values, torch.tensor([1, 1 / 2, 1 / 3, 1, 1 / 2, 1, 1, 1 / 2], dtype=torch.float64)
    )
    assert graph.metadata == {"scores": "1/rank"}
    lines[-1] = "d Q0 b 2 0.6 t"
    scored = read_score_lists(write(tmp_path / "run", lines), IDS)
    assert scored.values.tolist() == [0.5] * 6 + [0.6, 0.5]
    assert scored.col_indices.tolist()[-2:] == [1, 0]


def replaced(number, line):
    return [*LINES[: number - 1], line, *LINES[number:]]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (replaced(4, "a Q0 c 3 7.5"), ", line 4: expected 'query-id Q0 .* tag', got 5 columns"),
        (replaced(1, "a Q0 b b 1 3 old"), ", line 1: expected .*, got 7 columns"),
        (replaced(4, "a Q0 c 3 high t"), "line 4: expected an integer rank .* '3' and 'high'"),
        (replaced(4, "a Q0 c 1.5 3 t"), "line 4: expected an integer rank .* '1.5' and '3'"),
        (replaced(4, "a Q0 c -1 3 t"), "line 4: expected a rank from 0 or 1 on, got '-1'"),
        (replaced(4, f"a Q0 c {2**63} 3 t"), "line 4: expected a rank from 0 or 1 on"),
        (replaced(4, "a Q0 c 3 nan t"), "line 4: expected a finite score, got 'nan'"),
        (replaced(4, "x Q0 y 3 -1e999 t"), "line 4: expected a finite score, got '-1e999'"),
        (replaced(4, "a Q0 b 3 3 t"), ", line 4: 'b' is listed twice for query 'a'$"),
        ([*LINES, *LINES[:1]], ", line 10: 'b' is listed twice for query 'a'$"),
        (["", " "], ": expected lines of 'query-id Q0 document-id rank score tag', found none"),
        (["x Q0 a 1 2 t"], ": expected query ids of the 4 images, as 'a', got 'x' and others"),
        (["a Q0 x 1 2 t"], ": expected document ids of the 4 images, as 'a', got 'x' and others"),
        (LINES[:4], ": no list of other images for 3 of the 4 images: 'b', 'c', 'd'$"),
        (["a Q0 a 1 2 t"], ": no list of other images for 4 of the 4 images: 'a', 'b', 'c', …$"),
    ],
)
def test_refused_runs(tmp_path, lines, message):
    path = write(tmp_path / "run.txt", lines)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}.*{message}") as error:
        read_score_lists(path, IDS)
    assert "\n" not in str(error.value)


def test_refused_ids_and_files(tmp_path):
    path = write(tmp_path / "run.txt", LINES)
    with pytest.raises(ValueError, match="ids: expected distinct ids, got 'a' in rows 0 and 2"):
        read_score_lists(path, ["a", "b", "a"])
    with pytest.raises(ValueError, match=r"ids: expected ids without blanks, .*, got 'c d'"):
        read_score_lists(path, ["a", "b", "c d"])
    with pytest.raises(ValueError, match=r"query ids of the 0 images, as 'none', got 'a'"):
        read_score_lists(path, [])
    path.write_bytes(b"a Q0 b 1 0.5 \xff\n")
    with pytest.raises(ValueError, match=r"run\.txt: expected a text file in UTF-8"):
        read_score_lists(path, IDS)
    with pytest.raises(FileNotFoundError):
        read_score_lists(tmp_path / "nowhere", IDS)
