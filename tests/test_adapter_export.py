# SPDX-License-Identifier: Apache-2.0
"""Adapters outside of fclearn give what they give inside."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fclearn.adapters import CompatHead, LowRank, MeanShift, MlpMap, Procrustes, Ridge, export

MAKERS = {
    "procrustes": Procrustes,
    "ridge": Ridge,
    "low-rank": lambda: LowRank(rank=3),
    "mean-shift": MeanShift,
    "mlp": lambda: MlpMap(hidden=4, epochs=2),
    "compat-head-linear": lambda: CompatHead(epochs=2, head="linear", orthogonal=True),
    "compat-head-low-rank": lambda: CompatHead(hidden=3, epochs=2, head="low-rank"),
}
AFFINE = [name for name in MAKERS if name != "mlp"]


def _fitted(name, target_dim=8):
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(60, 8, generator=generator)
    turn = torch.randn(8, target_dim, generator=generator)
    target = source @ turn + 0.1 * torch.randn(60, target_dim, generator=generator)
    labels = torch.arange(60) % 6
    return MAKERS[name]().fit(source=source, target=target, labels=labels), 3 * source, target


@pytest.mark.parametrize("name", MAKERS)
def test_onnx_model_maps_the_same(name, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    adapter, rows, _ = _fitted(name, 8 if name == "mean-shift" else 5)
    rows[3] = 0  # no direction, and no division by zero
    export.to_onnx(adapter, tmp_path / "adapter.onnx")
    session = runtime.InferenceSession(
        str(tmp_path / "adapter.onnx"), providers=["CPUExecutionProvider"]
    )
    for count in (1, 60):
        (mapped,) = session.run(["mapped"], {"features": rows[:count].numpy()})
        torch.testing.assert_close(
            torch.from_numpy(mapped), adapter.transform(rows[:count]), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", AFFINE)
def test_faiss_index_takes_source_features(name, tmp_path):
    faiss = pytest.importorskip("faiss")
    adapter, rows, target = _fitted(name, 8 if name == "mean-shift" else 5)
    gallery = torch.nn.functional.normalize(target, dim=1).numpy()
    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(gallery)
    faiss.write_index(index, str(tmp_path / "old.faiss"))
    before = (tmp_path / "old.faiss").read_bytes()
    export.export_index(adapter, tmp_path / "old.faiss", tmp_path / "new.faiss")
    assert (tmp_path / "old.faiss").read_bytes() == before
    wrapped = faiss.read_index(str(tmp_path / "new.faiss"))
    scores, found = wrapped.search(rows.numpy(), 3)
    expected_scores, expected = index.search(adapter.transform(rows).numpy(), 3)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-5)
    assert (found == expected).mean() > 0.98


def test_wrapped_index_keeps_what_it_points_to():
    faiss = pytest.importorskip("faiss")
    adapter, rows, target = _fitted("ridge")

    def make():
        index = faiss.IndexFlatIP(8)
        index.add(torch.nn.functional.normalize(target, dim=1).numpy())
        return export.wrap_index(adapter, index)

    wrapped = make()
    _, found = wrapped.search(rows.numpy(), 1)
    assert found.shape == (60, 1)


def test_refused_exports(tmp_path):
    faiss = pytest.importorskip("faiss")
    adapter, *_ = _fitted("mlp")
    with pytest.raises(ValueError, match="adapter 'mlp': faiss has transforms for affine maps"):
        export.to_faiss(adapter)
    with pytest.raises(RuntimeError, match=r"call fit\(\) before exporting"):
        export.to_faiss(Ridge())
    with pytest.raises(ValueError, match="index: expected 8 dims, the adapter's target, got 3"):
        export.wrap_index(_fitted("ridge")[0], faiss.IndexFlatIP(3))
    with pytest.raises(FileNotFoundError, match="no such index file"):
        export.export_index(adapter, tmp_path / "none", tmp_path / "out")
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(ValueError, match="not a faiss index file"):
        export.export_index(adapter, tmp_path / "junk", tmp_path / "out")


def _live(folder):
    """A fitted adapter, and an index in a file."""
    faiss = pytest.importorskip("faiss")
    adapter, _, target = _fitted("ridge")
    index = faiss.IndexFlatIP(8)
    index.add(torch.nn.functional.normalize(target, dim=1).numpy())
    faiss.write_index(index, str(folder / "live"))
    return adapter, index


FOREIGN = {
    "text": lambda _: b"not an index",
    "empty": lambda _: b"",
    "shortened": lambda data: data[:-30],
    # As faiss writes it, after an export was read and added to, say.
    "without its end": lambda data: data[: data.index(export._MARK)],
    "end alone": lambda data: data[data.index(export._MARK) :],
    "lengthened": lambda data: data + b"more",
    "with a gap": lambda data: data[:60] + data[90:],
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_no_export_wrote_is_not_overwritten(kind, tmp_path):
    adapter, _ = _live(tmp_path)
    out = tmp_path / "out"
    export.export_index(adapter, tmp_path / "live", out)
    before = FOREIGN[kind](out.read_bytes())
    out.write_bytes(before)
    with pytest.raises(ValueError, match="expected no file, or one that an export wrote"):
        export.export_index(adapter, tmp_path / "live", out)
    assert out.read_bytes() == before


def test_no_file_but_an_onnx_export_is_overwritten(tmp_path):
    onnx = pytest.importorskip("onnx")
    adapter, *_ = _fitted("ridge")
    out = tmp_path / "out.onnx"
    export.to_onnx(adapter, out)
    once = out.read_bytes()
    export.to_onnx(_fitted("procrustes")[0], out)
    assert out.read_bytes() != once
    other = onnx.load_model_from_string(once)
    other.producer_name = "pytorch"
    for content in (b"", b"not a model", once[:-30], other.SerializeToString()):
        out.write_bytes(content)
        with pytest.raises(ValueError, match="path: expected no file, or one that an export wrote"):
            export.to_onnx(adapter, out)
        assert out.read_bytes() == content
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ValueError, match="found another in"):
        export.to_onnx(adapter, tmp_path / "folder.onnx")


def test_no_other_index_is_overwritten(tmp_path):
    faiss = pytest.importorskip("faiss")
    adapter, index = _live(tmp_path)
    with pytest.raises(ValueError, match="out: expected another file than"):
        export.export_index(adapter, tmp_path / "live", tmp_path / "live")
    faiss.write_index(index, str(tmp_path / "other"))
    faiss.write_index_binary(faiss.IndexBinaryFlat(8), str(tmp_path / "binary"))
    # Built as exports are, and live.
    faiss.write_index(export.wrap_index(adapter, index), str(tmp_path / "wrapped"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("wrapped")
    for name in ("other", "binary", "wrapped", "folder", "link"):
        with pytest.raises(ValueError, match="expected no file, or one that an export wrote"):
            export.export_index(adapter, tmp_path / "live", tmp_path / name)
    assert faiss.read_index(str(tmp_path / "wrapped")).ntotal == 60


def test_an_export_is_written_again_without_reading_it(tmp_path, monkeypatch):
    faiss = pytest.importorskip("faiss")
    adapter, index = _live(tmp_path)
    out = tmp_path / "out"
    export.export_index(adapter, tmp_path / "live", out)
    once, read, opened = out.read_bytes(), faiss.read_index, []
    with monkeypatch.context() as patch:
        patch.setattr(faiss, "read_index", lambda *of: opened.append(of[0]) or read(*of))
        export.export_index(adapter, tmp_path / "live", out)
    assert opened == [str(tmp_path / "live")]
    assert out.read_bytes() == once
    # Another adapter, and faiss's ways to read what has an end that it does not know.
    export.export_index(_fitted("procrustes")[0], tmp_path / "live", out)
    written = out.read_bytes()
    assert written != once
    for again in (
        read(str(out)),
        read(str(out), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY),
        faiss.deserialize_index(np.frombuffer(written, dtype=np.uint8)),
    ):
        assert again.ntotal == index.ntotal
