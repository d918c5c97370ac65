# SPDX-License-Identifier: Apache-2.0
"""Adapters for engines that do not know us: an ONNX file, or a transform inside a faiss index."""

from __future__ import annotations

import importlib
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fclearn._files import replacing
from fclearn.adapters._served import check_lengths
from fclearn.adapters.base import Adapter

if TYPE_CHECKING:
    import faiss
    import onnx
    from torch import Tensor

# F.normalize's: a row shorter than this is divided by it.
_SMALLEST_NORM = 1e-12
_OPSET = 17
# What an ONNX model that `to_onnx` wrote says made it.
_PRODUCER = "fclearn"
# Ends an index file that `export_index` wrote, before the length of the index. faiss reads no
# further than the index goes, and what it writes itself, also of an export, ends without.
_MARK = b"fclearn export of "


def to_onnx(adapter: Adapter, path: str | os.PathLike[str]) -> None:
    """Write a fitted adapter as an ONNX model: input ``features``, output ``mapped``.

    Both are float32 ``(batch, D)`` of any batch size; rows are scaled to unit length before and
    after the map, as `Adapter.transform` does. The model's ``producer_name`` is ``"fclearn"``.

    Args:
        adapter: Fitted.
        path: File to write. One that is there is replaced only if it is an ONNX model of this
            producer.

    Raises:
        ModuleNotFoundError: The package onnx is missing.
        RuntimeError: The adapter is not fitted.
        ValueError: Anything else is at ``path``.
        OSError: The file cannot be written.
    """
    onnx = _import("onnx", "onnx")
    state = _fitted(adapter)
    _check_out("path", Path(path), _is_onnx_export)
    model = _OnnxGraph(onnx)
    rows = model.unit("features")
    affine = adapter.affine()
    if affine is not None:
        weight, bias = affine
        mapped = model.node("Add", model.node("MatMul", rows, model.array(weight)), bias)
    else:
        linear = model.node("MatMul", rows, state["linear.weight"].T)
        hidden = model.node("MatMul", rows, state["down.weight"].T)
        hidden = model.gelu(model.node("Add", hidden, state["down.bias"]))
        residual = model.node("MatMul", hidden, state["up.weight"].T)
        mapped = model.node("Add", model.node("Add", linear, state["linear.bias"]), residual)
    model.unit(mapped, "mapped")
    target_dim = len(affine[1]) if affine is not None else len(state["linear.bias"])
    proto = model.finish(adapter.name, adapter.source_dim, target_dim)
    with replacing(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())


def to_faiss(adapter: Adapter) -> list[faiss.VectorTransform]:
    """The transforms an affine adapter consists of, first one first.

    Scaling to unit length, the map, scaling again; `wrap_index` puts them before an index.

    Raises:
        ModuleNotFoundError: faiss is missing.
        RuntimeError: The adapter is not fitted.
        ValueError: The map is not affine.
    """
    faiss = _import("faiss", "faiss-cpu")
    _fitted(adapter)
    affine = adapter.affine()
    if affine is None:
        raise ValueError(
            f"adapter {adapter.name!r}: faiss has transforms for affine maps only; use to_onnx"
        )
    weight, bias = affine
    linear = faiss.LinearTransform(*weight.shape, True)
    faiss.copy_array_to_vector(weight.T.contiguous().numpy().ravel(), linear.A)
    faiss.copy_array_to_vector(bias.contiguous().numpy(), linear.b)
    linear.is_trained = True
    source, target = (faiss.NormalizationTransform(dim, 2.0) for dim in weight.shape)
    return [source, linear, target]


def wrap_index(adapter: Adapter, index: faiss.Index) -> faiss.IndexPreTransform:
    """An index that takes source features and searches ``index``, which stays as it is.

    What is added to it later is mapped as queries are. Warns of what could not be checked of it.

    Raises:
        ModuleNotFoundError: faiss is missing.
        RuntimeError: The adapter is not fitted.
        ValueError: The map is not affine; an index of another dim than it maps to, or whose rows
            are not unit length, as the adapter's outputs are (if its target is compared by inner
            products, and the index does so, any length is right).
    """
    wrapped, note = _wrapped(adapter, index)
    if note:
        warnings.warn(f"index: {note}", stacklevel=2)
    return wrapped


def _wrapped(adapter: Adapter, index: faiss.Index) -> tuple[faiss.IndexPreTransform, str]:
    """The index, and what could not be checked of it."""
    engine = _import("faiss", "faiss-cpu")
    transforms = to_faiss(adapter)
    if transforms[-1].d_out != index.d:
        raise ValueError(
            f"index: expected {transforms[-1].d_out} dims, the adapter's target, got {index.d}"
        )
    note = check_lengths(index, "cosine" if adapter.target is None else adapter.target.metric)
    wrapped = engine.IndexPreTransform(index)
    for transform in reversed(transforms):
        wrapped.prepend_transform(transform)
    # faiss keeps plain pointers; the index must not outlive what it points to.
    wrapped.referenced_objects = [index, *transforms]
    return wrapped, note


def export_index(
    adapter: Adapter, index: str | os.PathLike[str], out: str | os.PathLike[str]
) -> str:
    """`wrap_index` from file to file.

    Args:
        adapter: Fitted, and affine.
        index: Stays as it is.
        out: File to write. One that is there is replaced only if this function wrote it, and
            nothing has changed its end since.

    Returns:
        What could not be checked of the index, or ``""``.

    Raises:
        FileNotFoundError: No such index file.
        ValueError: As `wrap_index`, or not an index file; ``out`` that is the index itself, or
            anything else that no export wrote.
        OSError: The file cannot be written.
    """
    faiss = _import("faiss", "faiss-cpu")
    if not Path(index).is_file():
        raise FileNotFoundError(f"{index}: no such index file")
    if Path(out).exists() and Path(out).samefile(index):
        raise ValueError(f"out: expected another file than {index}, which stays as it is")
    _check_out("out", Path(out), _is_index_export)
    try:
        loaded = faiss.read_index(os.fspath(index))
    except RuntimeError as error:
        raise ValueError(f"{index}: not a faiss index file") from error
    wrapped, note = _wrapped(adapter, loaded)
    with replacing(out) as temporary:
        faiss.write_index(wrapped, os.fspath(temporary))
        mark = _mark(temporary.stat().st_size)
        with temporary.open("ab") as file:
            file.write(mark)
    return note


def _check_out(name: str, out: Path, is_export: Callable[[Path], bool]) -> None:
    """Refuse to replace what may serve, or anything but an export."""
    if out.exists() and not (out.is_file() and is_export(out)):
        raise ValueError(
            f"{name}: expected no file, or one that an export wrote, whole and as it was written, "
            f"found another in {out}; remove it first if it is no longer needed"
        )


def _mark(length: int) -> bytes:
    """The end of an export whose index takes so many bytes."""
    return _MARK + length.to_bytes(8, "little")


def _is_onnx_export(path: Path) -> bool:
    """Whether a file is an ONNX model that says we made it."""
    onnx, content = _import("onnx", "onnx"), path.read_bytes()
    try:
        model = onnx.load_model_from_string(content)
    except Exception:  # protobuf's own, of a module that onnx does not name
        return False
    return bool(model.producer_name == _PRODUCER)


def _is_index_export(path: Path) -> bool:
    """Whether a file ends as exported indexes do, at the place where they do."""
    length = path.stat().st_size - len(_mark(0))
    if length < 0:
        return False
    with path.open("rb") as file:
        file.seek(length)
        return file.read() == _mark(length)


class _OnnxGraph:
    """Nodes and constants as they are made; numbers become names."""

    def __init__(self, onnx: Any) -> None:
        self._onnx = onnx
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def array(self, values: Tensor | np.ndarray | float) -> str:
        name = f"constant{len(self._constants)}"
        array = np.ascontiguousarray(np.asarray(values, dtype=np.float32))
        self._constants.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def node(self, operator: str, *inputs: object, output: str | None = None, **more: int) -> str:
        names = [value if isinstance(value, str) else self.array(value) for value in inputs]  # type: ignore[arg-type]
        output = output or f"value{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(operator, names, [output], **more))
        return output

    def unit(self, rows: str, output: str | None = None) -> str:
        squares = self.node("Mul", rows, rows)
        axes = self._axes()
        norm = self.node("Sqrt", self.node("ReduceSum", squares, axes, keepdims=1))
        return self.node("Div", rows, self.node("Max", norm, _SMALLEST_NORM), output=output)

    def gelu(self, values: str) -> str:
        error = self.node("Erf", self.node("Div", values, math.sqrt(2)))
        return self.node("Mul", self.node("Mul", values, 0.5), self.node("Add", error, 1.0))

    def finish(self, name: str, source_dim: int, target_dim: int) -> onnx.ModelProto:
        helper, kind = self._onnx.helper, self._onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            self._nodes,
            name,
            [helper.make_tensor_value_info("features", kind, ["batch", source_dim])],
            [helper.make_tensor_value_info("mapped", kind, ["batch", target_dim])],
            self._constants,
        )
        # An old format version: runtimes refuse those newer than they are.
        model: onnx.ModelProto = helper.make_model(
            graph,
            producer_name=_PRODUCER,
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=8,
        )
        self._onnx.checker.check_model(model)
        return model

    def _axes(self) -> str:
        name = f"constant{len(self._constants)}"
        self._constants.append(self._onnx.numpy_helper.from_array(np.array([1]), name))
        return name


def _fitted(adapter: Adapter) -> dict[str, Tensor]:
    if not adapter._state:
        raise RuntimeError(f"adapter {adapter.name!r}: call fit() before exporting it")
    return adapter._state


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"{module} is missing: pip install {package}") from None
