# SPDX-License-Identifier: Apache-2.0
"""What ``tools/wheels.py`` says of a wheel, and what it refuses."""

from __future__ import annotations

import zipfile

import pytest

import wheels

OURS = ("fcl_ext/_C.cpython-311-x86_64-linux-gnu.so", "fcl_ext/libfcl_ops.so")
CUDA = "fcl_ext/libfcl_ops_cuda.so"


def wheel(folder, *names):
    path = folder / "fcl_ext-1-cp311-cp311-manylinux_2_34_x86_64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"\0" * 1_500_000)
    return path


def test_size_and_libraries(tmp_path):
    path = wheel(tmp_path, *OURS, CUDA, "fcl_ext/ops.py")
    text = wheels.describe(path, "ON")
    assert text.startswith(f"{path.name}: 6.0 MB (")
    for name in (*OURS, CUDA):
        assert f"{name.removeprefix('fcl_ext/')} 1.5 of 1.5 MB" in text
    assert "ops.py" not in text


def test_a_library_that_is_missing(tmp_path):
    path = wheel(tmp_path, *OURS)
    wheels.describe(path, "OFF")
    with pytest.raises(ValueError, match=r"missing \['libfcl_ops_cuda.so'\]"):
        wheels.describe(path, "ON")


def test_a_copy_of_torch(tmp_path):
    path = wheel(tmp_path, *OURS, "fcl_ext.libs/libtorch_cpu-1234.so")
    with pytest.raises(ValueError, match=r"copied in .*libtorch_cpu"):
        wheels.describe(path, "OFF")
