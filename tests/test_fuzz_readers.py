# SPDX-License-Identifier: Apache-2.0
"""Every reader of files: damaged ones are read or refused in one line (see ``fuzz_readers.py``)."""

from __future__ import annotations

import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fclearn import FeatureStore, Fingerprint, KnnGraph, PseudoClassifier
from fclearn._tensor_files import reading
from fclearn.adapters import ForwardMap
from fclearn.config import TrainRunConfig, load_config
from fclearn.datasets import load_image_manifest
from fclearn.experiments.records import load_record
from fclearn.model_folder import load_model
from fclearn.out_of_core import walk_file
from fuzz_readers import MEMORY, TARGETS, answer, little_memory, mutate


@pytest.mark.parametrize("name", TARGETS)
def test_whole_files_are_read(name, tmp_path):
    path = TARGETS[name].make(tmp_path)
    if name != "checkpoint":  # one of another version
        TARGETS[name].read(path)
    assert answer(TARGETS[name], path) is None


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_read_or_refused_in_one_line(name, tmp_path):
    path = TARGETS[name].make(tmp_path)
    whole = path.read_bytes()

    @settings(
        max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.randoms(use_true_random=False))
    def check(rng):
        path.write_bytes(mutate(whole, rng))
        assert answer(TARGETS[name], path) is None

    with little_memory():
        check()


def test_the_checks_find_what_they_are_for(tmp_path):
    path = TARGETS["npy"].make(tmp_path)

    def silent(_path):
        raise ValueError("wrong")

    def wordy(path):
        raise ValueError(f"{path}:\nwrong")

    def careless(_path):
        raise KeyError("version")

    def greedy(path):
        with reading(path, "array"):
            torch.empty(2 * MEMORY, dtype=torch.uint8)

    cases = (silent, "name the file"), (wordy, "one line"), (careless, "KeyError")
    for read, part in (*cases, (greedy, "too much memory")):
        with little_memory():
            assert part in answer(type(TARGETS["npy"])(TARGETS["npy"].make, read), path)


# What fuzzing and reading found; each was let through, or left the reader as another error.


def header_of(path):
    """Header of a safetensors file, as JSON."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_header(path, change):
    """Rewrite a safetensors file with another header."""
    header, rest = header_of(path)
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + rest)


@pytest.mark.parametrize("name", ["graph", "adapter", "forward-map", "calibration"])
@pytest.mark.parametrize("nested", ["[" * 100_000, "[]", "null", "3", '"x"'])
def test_headers_that_are_no_mapping(name, nested, tmp_path):
    path = TARGETS[name].make(tmp_path)

    def change(header):
        header["__metadata__"] = dict.fromkeys(header["__metadata__"], nested)

    with_header(path, change)
    with pytest.raises(ValueError, match=r"not a (valid|saved)"):
        TARGETS[name].read(path)


def test_a_forward_map_of_a_size_no_memory_holds(tmp_path):
    path = TARGETS["forward-map"].make(tmp_path)

    def change(header):
        (key,) = header["__metadata__"]
        inner = json.loads(header["__metadata__"][key])
        inner["sizes"]["width"] = 1 << 40
        header["__metadata__"][key] = json.dumps(inner)

    with_header(path, change)
    with pytest.raises(ValueError, match="not a valid ForwardMap file"):
        ForwardMap.load(path)


def test_a_pseudo_classifier_of_a_label_no_memory_holds(tmp_path):
    path = TARGETS["classifier"].make(tmp_path)
    tensors = load_file(path)
    tensors["labels"][-1] = 1 << 40
    save_file(tensors, path, metadata={"format": "fclearn.PseudoClassifier"})
    with pytest.raises(ValueError, match=rf"class 3 has no rows \({(1 << 40) - 3} such classes\)"):
        PseudoClassifier.load(path)


def test_a_model_card_of_a_size_no_memory_holds(tmp_path):
    path = TARGETS["model-card"].make(tmp_path)
    card = json.loads(path.read_text())
    for key, part in (("dim", "outputs"), ("channels", "inputs")):
        path.write_text(json.dumps({**card, key: 1 << 40}))
        with pytest.raises(ValueError, match=f"no layer of {1 << 40} {part}"):
            load_model(path.parent)


def test_headers_and_pickles_of_a_size_no_memory_holds(tmp_path):
    # A .npy header of four gigabytes, and a pickle in torch's older format that asks for as much.
    damaged = {
        "npy": b"\x93NUMPY\x03\x00\x76\x00\xcf\xff\xd4\x21",
        "checkpoint": b"X\\\x0aC\xcd\xdc\xf1c\xe8\xd0",
    }
    for name, content in damaged.items():
        (tmp_path / name).mkdir()
        path = TARGETS[name].make(tmp_path / name)
        path.write_bytes(content)
        with little_memory():
            assert answer(TARGETS[name], path) is None


def test_names_in_messages_stay_on_their_line(tmp_path):
    with pytest.raises(ValueError, match=r"found 'i\\n'"):
        FeatureStore.write(tmp_path, np.eye(1), {"i\n": ["a"]}, Fingerprint("m", 1))
    with pytest.raises(ValueError, match=r"unknown 'di\\nm'"):
        Fingerprint.from_dict({**Fingerprint("m", 1).to_dict(), "di\nm": 1})


@pytest.mark.parametrize("tag", ["!!bool q", "!!int ''", "!!timestamp q", "2020-99-99", "!!x y"])
def test_yaml_tags_on_values_of_another_kind(tag, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"output: {tag}\n")
    with pytest.raises(ValueError, match=r"config\.yaml: not valid yaml"):
        load_config(TrainRunConfig, path)


def test_yaml_that_is_not_text(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"output: \xff\xfe\n")
    with pytest.raises(ValueError, match=r"config\.yaml: expected text in UTF-8"):
        load_config(TrainRunConfig, path)


def test_labels_beyond_64_bits_do_not_wrap_around(tmp_path):
    store = tmp_path / "store"
    FeatureStore.write(store, np.eye(2, dtype=np.float32), {"id": ["a", "b"]}, Fingerprint("m", 2))
    (store / "manifest.csv").unlink()
    table = pa.table({"id": ["a", "b"], "label": pa.array([1, 2**63], pa.uint64())})
    pq.write_table(table, store / "manifest.parquet")
    with pytest.raises(ValueError, match="expected 64-bit integers in column 'label'"):
        FeatureStore.open(store)


def test_a_deeply_nested_record_counts_as_damaged(tmp_path):
    (tmp_path / "l2-seed0.json").write_text("[" * 100_000)
    assert load_record(tmp_path / "l2-seed0.json") is None


def test_image_manifests_that_are_no_table(tmp_path):
    path = tmp_path / "images.csv"
    for content, part in (
        (b"path,label\na.png,\xff\n", "cannot be read"),
        (b"path,label\na.png,x,y\n", "row 0 has too many cells"),
        (b'path,label\n"' + b"a" * 200_000 + b'",x\n', "field larger than field limit"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=part):
            load_image_manifest(path)


@pytest.mark.parametrize("done", [-1, 5, "x"])
def test_a_record_of_a_walk_out_of_range(done, tmp_path):
    rows = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    graph = KnnGraph.build(rows, 3).normalize()
    np.save(tmp_path / "rows.npy", rows.numpy())
    out = tmp_path / "walked.npy"
    walk_file(graph, tmp_path / "rows.npy", out, num_steps=2)
    # As a walk that was stopped would have left it, but for the number.
    (tmp_path / ".walked.npy.partial").write_bytes(out.read_bytes())
    key = {"damping": 0.9, "num_steps": 2, "tol": None, "transpose": False}
    record = tmp_path / ".walked.npy.partial.json"
    record.write_text(json.dumps({"columns_done": done, "key": key}))
    with pytest.raises(ValueError, match="not a record of a walk"):
        walk_file(graph, tmp_path / "rows.npy", out, num_steps=2)


def test_a_graph_with_a_tensor_of_another_kind(tmp_path):
    path = tmp_path / "graph.safetensors"
    KnnGraph.build(torch.eye(4), 2).save(path)
    header, _ = header_of(path)
    save_file(
        {"crow_indices": torch.zeros(()), "col_indices": torch.zeros(()), "values": torch.ones(())},
        path,
        metadata=header["__metadata__"],
    )
    with pytest.raises(ValueError, match="not a valid KnnGraph file"):
        KnnGraph.load(path)
