# SPDX-License-Identifier: Apache-2.0
"""For every operator with shape inference: a call, and changes that make it a refused one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Arguments = dict[str, Any]
# What becomes of the argument of a name.
Change = tuple[str, Callable[[Any], Any]]

INF, NAN = math.inf, math.nan


def arguments_of(op: str) -> Arguments:
    """A call that is not refused: 3 rows, 5 classes, 4 dims; a graph of 3 nodes and 4 edges."""
    x, w, labels = torch.randn(3, 4), torch.randn(5, 4), torch.tensor([0, 1, 2])
    mean = w.double().mean(0)
    graph = {
        "crow_indices": torch.tensor([0, 2, 3, 4]),
        "col_indices": torch.tensor([1, 2, 0, 0]),
    }
    walk = {**graph, "values": torch.full((4,), 0.5), "features": x, "damping": 0.5}
    loss = {"embeddings": x, "prototypes": w, "labels": labels}
    margin = {"mean_prototype": mean, "scale": 2.0, "margin": 0.2, "arcface": False}
    smooth = {"label_smoothing": 0.1, "normalize": False, "ignore_index": -100}
    packed = {"packed": torch.zeros(5 * 32), "squared_norms": torch.zeros(5)}
    readout = {"embeddings": x, "prototypes": w, "values": w.clone(), "exclude": labels}
    excluded = {
        "exclude_crow": torch.tensor([0, 2, 3, 3]),
        "exclude_col": torch.tensor([0, 1, 4]),
    }
    sets = {"crow_indices": torch.tensor([0, 2, 3]), "col_indices": torch.tensor([0, 1, 4])}
    per_row = {"logsumexp": torch.zeros(3), "coefficient": torch.zeros(3)}
    calls: dict[str, Arguments] = {
        "compat_loss": {
            **{**loss, **margin, **smooth, "reduction": "mean"},
            **{"need_embeddings": True, "need_prototypes": True},
            "logits": torch.empty(1, 5, 128),
            **packed,
        },
        "compat_loss_backward": {
            **loss,
            **{"state": torch.zeros(4, 3), "grad_loss": torch.ones(3)},
            **{"scale": 2.0, **smooth, "logits": torch.zeros(1, 5, 128)},
        },
        "compat_loss_gradients": {**loss, **margin, **smooth, "reduction": "mean"},
        "softmax_readout": {
            **{**readout, "values": None},
            **{"scale": 2.0, "need_mean": True, "normalize": False, **packed, **excluded},
        },
        "softmax_readout_backward": {
            **readout,
            **{**per_row, "grad_mean": torch.zeros(3, 4), "scale": 2.0},
            **{"need_embeddings": True, "need_prototypes": True, "need_values": True},
            **excluded,
        },
        "sparse_readout": {
            **{"embeddings": x, "rows": w, "labels": torch.tensor([0, 1, -1]), **sets},
            **{"log_weights": torch.zeros(3), "scale": 2.0, "need_mean": True},
        },
        "sparse_readout_backward_rows": {
            **{"embeddings": x, "rows": w, **per_row},
            "row_crow": torch.tensor([0, 1, 2, 2, 2, 3]),
            **{"row_labels": torch.tensor([0, 0, 1]), "row_log_weights": torch.zeros(3)},
            **{"query_crow": torch.tensor([0, 1, 2]), "query_index": torch.tensor([0, 1])},
            "scale": 2.0,
        },
        "random_walk": {**walk, "num_steps": 2},
        "random_walk_backward": {
            **{name: walk[name] for name in (*graph, "values", "features")},
            **{"grad_output": x.clone(), "damping": 0.5, "num_steps": 2},
            **{"need_features": True, "need_values": True},
        },
        "random_walk_resume": {
            **{name: walk[name] for name in (*graph, "values")},
            **{"state": x.clone(), "features": x, "damping": 0.5},
            **{"num_steps": 2, "num_bf16_steps": 1},
        },
        "random_walk_tol": {**walk, "tol": 1e-3, "max_steps": 100, "norm": "sum"},
        "walk_windows": graph,
        "edge_dot": {**graph, "left": x, "right": w},
        "csr_transpose": {**graph, "num_columns": 3},
        "class_walk": {
            **{**graph, "values": walk["values"], "labels": torch.tensor([0, 1, -1])},
            **{"num_classes": 2, "damping": 0.5, "drop": 0.0, "num_steps": 2},
        },
        "graph_prepare": {**graph, "order": torch.tensor([2, 0, 1])},
        "knn_graph": {"features": x, "k": 2, "metric": "ip"},
        "knn_graph_segments": {
            **{"features": x, "offsets": torch.tensor([0, 2, 3]), "k": 2, "metric": "ip"}
        },
        "knn_search": {"query": x, "gallery": w, "k": 2, "metric": "ip"},
        "pack_prototypes": {"prototypes": w, "normalize": True},
    }
    return calls[op]


def _is(value: object) -> Callable[[Any], Any]:
    return lambda _: value


def _narrow(t: Tensor) -> Tensor:
    return t[..., :-1]


def _strided(t: Tensor) -> Tensor:
    """The same shape with gaps between the numbers."""
    return t.repeat_interleave(2, -1)[..., ::2]


def _many(t: Tensor) -> Tensor:
    """More rows than int32 can number, of no memory."""
    return t[:1].expand(2**31 + 1, *t.shape[1:])


def _bad_vector(name: str) -> list[Change]:
    return [(name, Tensor.float), (name, _narrow), (name, lambda t: t[None])]


def _bad_rows(name: str) -> list[Change]:
    return [(name, lambda t: t[0]), (name, Tensor.int), (name, Tensor.double)]


def _one_of(name: str, *values: object) -> list[Change]:
    return [(name, _is(value)) for value in values]


_SCALE = _one_of("scale", 0.0, -2.5, INF, NAN)
_DAMPING = _one_of("damping", 0.0, 1.0, -0.25, NAN)
_STEPS = _one_of("num_steps", -1)
_CSR: list[Change] = [
    *[("crow_indices", change) for change in (Tensor.int, lambda t: t[:0], lambda t: t[None])],
    *[("col_indices", change) for change in (Tensor.float, Tensor.short, lambda t: t[None])],
]
_PROTOTYPES: list[Change] = [
    *[("embeddings", change) for change in (lambda t: t[0], Tensor.int, Tensor.double)],
    *[("prototypes", change) for change in (lambda t: t[0], Tensor.half, _narrow)],
    ("prototypes", lambda t: t[:0]),
    *_SCALE,
]
_PACKED: list[Change] = [
    ("packed", _is(None)),
    ("squared_norms", _is(None)),
    *[(n, f) for n in ("packed", "squared_norms") for f in (Tensor.double, _narrow, _strided)],
]
_MARGIN: list[Change] = [
    *_one_of("margin", -0.5, math.pi, NAN),
    *_one_of("label_smoothing", -0.125, 1.5, NAN, 0.0),
    ("mean_prototype", _is(None)),
    *_bad_vector("mean_prototype"),
]
_LOGITS: list[Change] = [("logits", f) for f in (Tensor.double, _narrow, _strided)]
_WALK: list[Change] = [
    *_CSR,
    *[("features", change) for change in (lambda t: t[0], Tensor.int, lambda t: t[1:])],
    *[("values", change) for change in (Tensor.double, Tensor.half, _narrow)],
    *_DAMPING,
]
_PER_ROW: list[Change] = [
    (name, change)
    for name in ("logsumexp", "coefficient")
    for change in (Tensor.double, _narrow, lambda t: t[None])
]
_EXCLUDED: list[Change] = [
    *[("exclude", change) for change in (Tensor.int, _narrow, _is(None))],
    *[("exclude_crow", change) for change in (Tensor.int, lambda t: t[None], lambda t: t[:0])],
    *[("exclude_col", change) for change in (Tensor.int, lambda t: t[None])],
    *[(name, _is(None)) for name in ("exclude_crow", "exclude_col")],
]
_METRIC = _one_of("metric", "dot")
REFUSED: dict[str, list[Change]] = {
    "compat_loss": [
        *(*_PROTOTYPES, *_bad_vector("labels"), *_MARGIN, *_LOGITS, *_PACKED),
        *_one_of("reduction", "max"),
    ],
    "compat_loss_backward": [
        *(*_PROTOTYPES, *_bad_vector("labels"), *_LOGITS),
        *[("state", change) for change in (Tensor.double, _narrow, lambda t: t[0])],
        *[("grad_loss", change) for change in (Tensor.double, _narrow)],
    ],
    "compat_loss_gradients": [
        *(*_PROTOTYPES, *_bad_vector("labels"), *_MARGIN),
        *_one_of("reduction", "none", "max"),
    ],
    "softmax_readout": [
        *(*_PROTOTYPES, *_PACKED, *_EXCLUDED),
        ("values", _is(torch.zeros(4, 2))),
        ("values", _is(torch.zeros(5, 2, dtype=torch.float64))),
        ("values", _is(torch.zeros(5, 0))),
    ],
    "softmax_readout_backward": [
        *(*_PROTOTYPES, *_PER_ROW, *_EXCLUDED),
        *[("grad_mean", change) for change in (Tensor.double, _narrow, lambda t: t[0])],
    ],
    "sparse_readout": [
        *(*_bad_rows("embeddings"), *_bad_rows("rows"), ("rows", _narrow), *_SCALE),
        *[("labels", change) for change in (Tensor.int, _narrow)],
        *[("crow_indices", change) for change in (Tensor.int, lambda t: t[:0], lambda t: t[None])],
        *[("col_indices", change) for change in (Tensor.int, lambda t: t[None])],
        *[("log_weights", change) for change in (Tensor.double, _narrow)],
    ],
    "sparse_readout_backward_rows": [
        *(*_bad_rows("embeddings"), *_bad_rows("rows"), ("rows", _narrow), *_SCALE, *_PER_ROW),
        *[("row_crow", change) for change in (Tensor.int, _narrow)],
        *[("row_labels", change) for change in (Tensor.int, lambda t: t[None])],
        *[("query_crow", f) for f in (Tensor.int, lambda t: t[:0], lambda t: t[None])],
        *[("query_index", change) for change in (Tensor.int, lambda t: t[None])],
        *[("row_log_weights", change) for change in (Tensor.double, _narrow)],
    ],
    "random_walk": [*_WALK, *_STEPS],
    "random_walk_backward": [
        *(*_WALK, *_STEPS),
        *[("grad_output", change) for change in (Tensor.double, _narrow)],
    ],
    "random_walk_resume": [
        *(*_WALK, *_STEPS, *_one_of("num_bf16_steps", -1, 3)),
        ("features", Tensor.half),
        *[("state", change) for change in (Tensor.double, Tensor.half, _narrow)],
    ],
    "random_walk_tol": [
        *(*_WALK, *_one_of("tol", 0.0, 1.0, NAN)),
        *(*_one_of("max_steps", 0), *_one_of("norm", "l2")),
    ],
    "walk_windows": [*_CSR, ("crow_indices", _many)],
    "edge_dot": [
        *_CSR,
        *[("left", change) for change in (lambda t: t[0], Tensor.int, lambda t: t[1:])],
        *[("right", change) for change in (lambda t: t[0], Tensor.half, _narrow)],
    ],
    "csr_transpose": [*_CSR, *_one_of("num_columns", -1, 0)],
    "class_walk": [
        *(*_CSR, *_bad_vector("labels"), *_DAMPING, *_STEPS),
        *[("values", change) for change in (Tensor.double, _narrow)],
        *(*_one_of("num_classes", -1, 2**31), *_one_of("drop", -0.5, 1.0, NAN)),
    ],
    "graph_prepare": [*_CSR, ("crow_indices", _many), *_bad_vector("order")],
    "knn_graph": [
        *[("features", f) for f in (lambda t: t[0], Tensor.int, lambda t: t[:, :0], _many)],
        *(*_one_of("k", 0, 3), *_METRIC),
    ],
    "knn_graph_segments": [
        *[("features", f) for f in (lambda t: t[0], Tensor.int, lambda t: t[:, :0], _many)],
        *[("offsets", change) for change in (Tensor.int, lambda t: t[None], lambda t: t[:0])],
        *(*_one_of("k", 0), *_METRIC),
    ],
    "knn_search": [
        *[("query", f) for f in (lambda t: t[0], Tensor.int, _narrow, _many)],
        *[("gallery", f) for f in (lambda t: t[0], Tensor.half, _narrow, _many)],
        *(*_one_of("k", 0, 6), *_METRIC),
    ],
    "pack_prototypes": [
        *[("prototypes", f) for f in (Tensor.half, Tensor.int, lambda t: t[0])],
        *[("prototypes", f) for f in (lambda t: t[:0], lambda t: t[:, :0])],
    ],
}
# Two arguments at once, where the second check is reached by no other way.
TOGETHER: list[tuple[str, list[Change]]] = [
    ("random_walk_resume", [("features", Tensor.double), ("state", Tensor.double)]),
    (
        "random_walk_resume",
        [(name, Tensor.double) for name in ("features", "state", "values")],
    ),
    ("csr_transpose", [("crow_indices", _many), ("col_indices", Tensor.int)]),
    ("compat_loss", [(name, lambda t: t[:, :0]) for name in ("embeddings", "prototypes")]),
    ("softmax_readout", [(name, lambda t: t[:, :0]) for name in ("embeddings", "prototypes")]),
    ("softmax_readout", [(name, Tensor.half) for name in ("embeddings", "prototypes")]),
    ("compat_loss", [(name, Tensor.double) for name in ("embeddings", "prototypes")]),
    ("knn_search", [(name, lambda t: t[:, :0]) for name in ("query", "gallery")]),
]
