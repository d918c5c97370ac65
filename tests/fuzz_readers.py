# SPDX-License-Identifier: Apache-2.0
"""Damaged files for every reader: what is damaged, how, and what a reader may answer.

A reader may read a damaged file or refuse it with one line that names it; anything else is a bug,
and so is asking for memory that the file's own size does not justify (`little_memory`).
``tests/test_fuzz_readers.py`` runs this briefly, ``tools/fuzz.py`` for as long as you like.
"""

from __future__ import annotations

import contextlib
import json
import random
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fclearn import FeatureStore, Fingerprint, KnnGraph, PseudoClassifier
from fclearn._checkpoint import load_checkpoint
from fclearn.adapters import ForwardMap, Procrustes, load_adapter
from fclearn.backfill import ScoreCalibration
from fclearn.config import TrainRunConfig, dump_config, load_config
from fclearn.encoders import build_encoder
from fclearn.evaluation import Qrels
from fclearn.experiments.records import load_record
from fclearn.features.npy import open_npy
from fclearn.model_folder import load_model, save_model
from fclearn.score_lists import read_score_lists

#: What is put into a file beside bytes of its own: numbers at the ends of types, what has a meaning
#: in some format.
TOKENS = [
    *(b"", b"\0", b"\n", b'"', b"'", b",", b":", b"- ", b"{", b"}", b"[", b"]", b"[" * 2000),
    *(b"nan", b"inf", b"-1", b"0", b"1e999", b"9223372036854775808", b"-9223372036854775809"),
    *(b"null", b"true", b"{}", b"[]", b"\xff\xfe", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\x1a"),
    *(b"!!int x", b"!!float ", b"!!bool q", b"!!timestamp q", b"!!python/name:os.system", b"&a *a"),
    *(b"2020-99-99", b"0x", b"1_000", b"? [a]: b", b"<<: 3", b"'descr': '|O'", b"'<f2'", b"(1,)"),
    *(b'"I64"', b'"BOOL"', b'"F8_E4M3"', b'"BF16"', b'"shape":[]', b'"data_offsets":[0,0]'),
]


#: What a reader may take beyond what the process has: the files are of a few kilobytes.
MEMORY = 2 << 30
#: How the libraries say that there is no more.
_NO_MEMORY = ("allocate", "bad_alloc")


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Let the process have `MEMORY` more, so that what asks for more fails and takes no machine."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before, most = resource.getrlimit(resource.RLIMIT_AS)
    allowed = mapped + MEMORY
    if before != resource.RLIM_INFINITY:
        allowed = min(allowed, before)
    resource.setrlimit(resource.RLIMIT_AS, (allowed, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, most))


@dataclass(frozen=True)
class Target:
    """A file, and who reads it.

    Attributes:
        make: Writes a whole artifact below a folder and returns the file to damage.
        read: Reads the artifact again, given that file, and uses what it got.
        names: The message must name the file or its folder.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    names: bool = True


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A damaged copy: up to four of truncating, flipping, deleting, repeating, putting in."""
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        begin = rng.randint(0, len(damaged))
        end = min(len(damaged), begin + rng.choice([1, 1, 2, 4, 8, 64, 4096]))
        kind = rng.randint(0, 6)
        if kind == 0:
            del damaged[begin:]
        elif kind == 1 and begin < len(damaged):
            damaged[begin] ^= 1 << rng.randint(0, 7)
        elif kind == 2:
            del damaged[begin:end]
        elif kind == 3:
            damaged[begin:begin] = damaged[begin:end]
        elif kind == 4:
            damaged[begin:end] = rng.choice(TOKENS)
        elif kind == 5:
            damaged[begin:begin] = rng.choice(TOKENS)
        else:
            damaged[begin:end] = rng.randbytes(end - begin)
    return bytes(damaged)


def answer(target: Target, path: Path) -> str | None:
    """What is wrong with a reader's answer to a file; None if nothing is."""
    try:
        target.read(path)
    except (ValueError, TypeError, OSError) as error:
        text = str(error)
        if _ran_out_of_memory(error):
            return f"asks for too much memory: {text!r}"
        if "\n" in text.strip():
            return f"more than one line: {text!r}"
        if target.names and path.name not in text and str(path.parent) not in text:
            return f"does not name the file: {type(error).__name__}: {text!r}"
        return None
    except Exception as error:  # what the readers must never let out
        return f"{type(error).__name__}: {error}"
    return None


def _ran_out_of_memory(error: BaseException) -> bool:
    """A refusal for lack of memory is luck: a larger machine would have tried."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, MemoryError) or any(part in str(at) for part in _NO_MEMORY):
            return True
        at = at.__cause__ or at.__context__
    return False


def _rows(seed: int = 0, dim: int = 5) -> torch.Tensor:
    return torch.randn(12, dim, generator=torch.Generator().manual_seed(seed))


def _store(folder: Path, file: str, manifest_format: str = "csv") -> Path:
    columns = {
        "id": [f"é {row}" for row in range(12)],
        "label": np.arange(12) % 3,
        "group": np.arange(12) % 4,
        "class_name": ['a,"b"'] * 12,
    }
    fingerprint = Fingerprint("old", 5, norm="none")
    FeatureStore.write(folder / "store", _rows(), columns, fingerprint, manifest_format)
    return folder / "store" / file


def _read_store(path: Path) -> object:
    store = FeatureStore.open(path.parent)
    return store.subset(range(len(store)))[0].tobytes()


def _graph(folder: Path) -> Path:
    KnnGraph.build(_rows(), 3).normalize().save(folder / "graph.safetensors")
    return folder / "graph.safetensors"


def _read_graph(path: Path) -> object:
    graph = KnnGraph.load(path)
    # What loads must be safe for the kernels, which do not check every index again.
    if graph.mode is None or graph.num_nodes > 1000:
        return graph
    return graph.walk(torch.ones(graph.num_nodes, 2), 0.5, num_steps=2)


def _classifier(folder: Path) -> Path:
    PseudoClassifier.from_means(_rows(), torch.arange(12) % 3).save(folder / "c.safetensors")
    return folder / "c.safetensors"


def _adapter(folder: Path) -> Path:
    side = Fingerprint("new", 5)
    fitted = Procrustes().fit(
        source=_rows(), target=_rows(1), source_fingerprint=side, target_fingerprint=side
    )
    fitted.save(folder / "adapter.safetensors")
    return folder / "adapter.safetensors"


def _read_adapter(path: Path) -> object:
    adapter = load_adapter(path)
    return adapter.transform(torch.ones(2, adapter.source_dim))


def _forward(folder: Path) -> Path:
    ForwardMap(5, 5, width=8).save(folder / "map.safetensors")
    return folder / "map.safetensors"


def _calibration(folder: Path) -> Path:
    scores = np.linspace(0, 1, 50)
    fitted = ScoreCalibration.fit(source=scores, target=scores**2)
    fitted.save(folder / "calibration.safetensors")
    return folder / "calibration.safetensors"


def _npy(folder: Path) -> Path:
    np.save(folder / "rows.npy", _rows().numpy())
    return folder / "rows.npy"


def _config(folder: Path) -> Path:
    path = folder / "config.yaml"
    path.write_text(dump_config(TrainRunConfig()), encoding="utf-8")
    return path


def _qrels(folder: Path) -> Path:
    path = folder / "qrels.txt"
    path.write_text("".join(f"q{row // 3} 0 d{row} {row % 3}\n" for row in range(12)), "utf-8")
    return path


def _score_lists(folder: Path) -> Path:
    path = folder / "run.txt"
    text = "".join(f"i{row} Q0 i{(row + 1) % 4} 1 0.{row} old\n" for row in range(4))
    path.write_text(text, "utf-8")
    return path


def _checkpoint(folder: Path) -> Path:
    path = folder / "checkpoint.pt"
    torch.save({"epoch": 1, "model": {"w": _rows()}}, path)
    return path


def _record(folder: Path) -> Path:
    path = folder / "l2-seed0.json"
    path.write_text(json.dumps({"format": 2, "config": {"method": "l2"}}), encoding="utf-8")
    return path


def _model(folder: Path, file: str) -> Path:
    encoder = build_encoder("tiny-cnn", dim=4, channels=1)
    save_model(
        *(folder / "model", encoder), name="tiny-cnn", dim=4, channels=1, size=8, method="l2"
    )
    return folder / "model" / file


TARGETS = {
    "npy": Target(_npy, lambda path: open_npy(path)[-1:].tobytes()),
    "store-features": Target(lambda folder: _store(folder, "features.npy"), _read_store),
    "store-csv": Target(lambda folder: _store(folder, "manifest.csv"), _read_store),
    "store-parquet": Target(
        lambda folder: _store(folder, "manifest.parquet", "parquet"), _read_store
    ),
    "store-fingerprint": Target(lambda folder: _store(folder, "fingerprint.json"), _read_store),
    "graph": Target(_graph, _read_graph),
    "classifier": Target(_classifier, PseudoClassifier.load),
    "adapter": Target(_adapter, _read_adapter),
    "forward-map": Target(_forward, ForwardMap.load),
    "calibration": Target(_calibration, ScoreCalibration.load),
    # A message about a value names the key, not the file.
    "config": Target(_config, lambda path: load_config(TrainRunConfig, path), names=False),
    "qrels": Target(_qrels, Qrels.read),
    "score-lists": Target(
        _score_lists, lambda path: read_score_lists(path, [f"i{row}" for row in range(4)])
    ),
    "checkpoint": Target(_checkpoint, lambda path: load_checkpoint(path, torch.device("cpu"))),
    "model-card": Target(
        lambda folder: _model(folder, "model.json"), lambda path: load_model(path.parent)
    ),
    "model-weights": Target(
        lambda folder: _model(folder, "model.safetensors"), lambda path: load_model(path.parent)
    ),
    "record": Target(_record, load_record, names=False),
}
