# SPDX-License-Identifier: Apache-2.0
"""The record of CUDA paths that were verified on a GPU, and what the CUDA library hears of it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

import fcl_ext
from fcl_ext import cuda_paths

RECORD = {
    "path": "mma",
    "op": "softmax_readout",
    "device": "NVIDIA H200",
    "torch": "2.13.0",
    "date": "2026-01-31",
}


def _file(tmp_path, content):
    file = tmp_path / "cuda_verified.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def _library(known):
    """Stands in for the CUDA library: knows some (op, path), and collects what it is told."""
    told = []

    def fcl_cuda_set_verified(op, path, is_verified):
        told.append((op, path, is_verified))
        return (op, path) in known

    return SimpleNamespace(fcl_cuda_set_verified=fcl_cuda_set_verified), told


def test_the_committed_record_is_sound():
    for entry in cuda_paths.verified():
        assert entry.op in dir(fcl_ext.ops)


def test_records_are_read(tmp_path):
    (entry,) = cuda_paths.verified(_file(tmp_path, [RECORD]))
    assert entry == cuda_paths.Verified(**RECORD)
    assert cuda_paths.verified(_file(tmp_path, [])) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected a list of records, got dict"),
        (["mma"], "expected records of .*'device'.*, got 'mma'"),
        ([{**RECORD, "speed": "high"}], "expected records of"),
        ([{k: v for k, v in RECORD.items() if k != "device"}], "expected records of"),
        ([{**RECORD, "device": ""}], "expected non-empty strings"),
        ([{**RECORD, "date": 20260131}], "expected non-empty strings"),
    ],
)
def test_bad_records_are_refused(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        cuda_paths.verified(_file(tmp_path, content))


def test_the_library_is_told():
    library, told = _library({(b"softmax_readout", b"mma")})
    cuda_paths.export(library, [cuda_paths.Verified(**RECORD)])
    assert told == [(b"softmax_readout", b"mma", True)]


def test_a_path_the_library_lacks_is_refused():
    library, _ = _library(set())
    with pytest.raises(ValueError, match="no path mma of an operator softmax_readout"):
        cuda_paths.export(library, [cuda_paths.Verified(**RECORD)])
