# SPDX-License-Identifier: Apache-2.0
"""Files of one id a line: the same rules wherever one is given."""

from __future__ import annotations

import numpy as np
import pytest
from store_samples import sample_rows, unit

from fclearn._lines import is_line, read_lines
from fclearn.backfill.files import read_done
from fclearn.cli.eval_run import ServingIndex
from fclearn.features import FeatureStore, Fingerprint
from fclearn.features.ids import read_id_lines
from fclearn.stores import open_store, push, read_ids

faiss = pytest.importorskip("faiss")

# The last one holds characters that only str.splitlines takes for the end of a line.
IDS = ["photo 2", " photo 1", "é", "a\u2028b\x85c\x0bd"]
FILES = {
    "plain": "\n".join(IDS) + "\n",
    "no line end": "\n".join(IDS),
    "blank lines": "\n" + "\n\n".join(IDS) + "\n \t\n\n",
    "windows": "\ufeff" + "\r\n".join(IDS) + "\r\n\r\n",
}


@pytest.fixture
def gallery(tmp_path):
    manifest = {"id": IDS, "label": range(4)}
    return FeatureStore.write(tmp_path / "s", unit(sample_rows(4)), manifest, Fingerprint("m", 4))


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_every_reader_goes_by_the_same_rules(gallery, tmp_path, text):
    path, index = tmp_path / "ids.txt", tmp_path / "g.index"
    path.write_bytes(text.encode())
    flat = faiss.IndexFlatIP(4)
    flat.add(np.asarray(gallery.features))
    faiss.write_index(flat, str(index))
    assert read_id_lines(path) == read_ids(path) == IDS
    assert read_done(path, IDS) == set(IDS)
    with open_store(f"faiss:{index}?ids={path}") as store:
        assert store.ids() == IDS
    assert ServingIndex(index, path, ()).open(gallery, across=False) is not None


@pytest.mark.parametrize("reader", [read_id_lines, read_ids, lambda path: read_done(path, IDS)])
def test_what_is_no_text_is_refused(tmp_path, reader):
    path = tmp_path / "ids.txt"
    path.write_bytes(b"a\n\xff\n")
    with pytest.raises(ValueError, match=r"ids\.txt: expected ids as UTF-8 text, one a line"):
        reader(path)


@pytest.mark.parametrize("name", [*IDS, "", " \t", "a\nb", "a\rb", "a\r", "\ufeffa", "a\ufeff"])
def test_a_line_is_what_is_read_as_it_was_written(tmp_path, name):
    (tmp_path / "names.txt").write_bytes(f"{name}\n".encode())
    assert is_line(name) == (read_lines(tmp_path / "names.txt", "names") == [name])


def test_blank_lines_count_between_others_alone(tmp_path):
    (tmp_path / "names.txt").write_bytes(b"\na\n \nb\n \n\n")
    assert read_lines(tmp_path / "names.txt", "names") == ["", "a", " ", "b"]


def test_every_id_that_can_be_read_can_be_written(gallery, tmp_path):
    name = f"faiss:{tmp_path}/g.index?ids={tmp_path}/g.txt"
    with open_store(name) as store:
        push(gallery, store)
    with open_store(name) as store:
        assert store.ids() == IDS


@pytest.mark.parametrize("bad", [" ", "\u2028", "b\nc", "b\rc", "b\r\n", "\ufeffb"], ids=ascii)
def test_no_id_is_written_that_would_be_read_otherwise(tmp_path, bad):
    rows = FeatureStore.write(tmp_path / "s", np.eye(2), {"id": ["a", bad]}, Fingerprint("m", 2))
    name = f"faiss:{tmp_path}/g.index?ids={tmp_path}/g.txt"
    with open_store(name) as store, pytest.raises(ValueError, match="must be a line of text, got"):
        push(rows, store)
