# SPDX-License-Identifier: Apache-2.0
"""Embedding images into a store: values, resuming, and what the encoder may not do."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn

from fclearn import FeatureStore, Fingerprint, embed
from fclearn.features import FeatureWriter

FINGERPRINT = Fingerprint("tiny", 6)


@dataclass
class Dataset:
    images: np.ndarray
    labels: np.ndarray
    ids: list[str]
    groups: np.ndarray | None = None
    class_names: list[str] = field(default_factory=list)
    fail_at: int | None = None

    def tensor(self, index):
        if self.fail_at is not None and self.fail_at in index:
            raise KeyboardInterrupt
        return torch.from_numpy(self.images[index]).unsqueeze(1).float() / 255


@pytest.fixture
def data():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (11, 5, 5), dtype=np.uint8)
    labels = random.integers(0, 3, 11)
    ids = [f"image {row}" for row in range(11)]
    return Dataset(images, labels, ids, np.arange(11) // 2, ["x", "y", "z"])


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(36, 6)
    )


@torch.no_grad()
def _expected(encoder, data, normalize=True):
    output = encoder.eval()(data.tensor(np.arange(len(data.ids))))
    encoder.train()
    return nn.functional.normalize(output, dim=1) if normalize else output


def test_store_holds_unit_embeddings_in_order(tmp_path, data, encoder):
    store = embed(encoder, data, tmp_path / "new", fingerprint=FINGERPRINT, batch_size=4)
    torch.testing.assert_close(torch.from_numpy(np.array(store.features)), _expected(encoder, data))
    np.testing.assert_allclose(np.linalg.norm(store.features, axis=1), 1, rtol=1e-6)
    assert store.ids == data.ids
    assert store.labels.tolist() == data.labels.tolist()
    assert store.groups.tolist() == data.groups.tolist()
    assert store.manifest["class_name"] == [data.class_names[label] for label in data.labels]
    assert store.fingerprint == FINGERPRINT
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_without_normalisation_groups_and_names(tmp_path, data, encoder):
    data.groups, data.class_names = None, []
    raw = Fingerprint("tiny", 6, norm="none")
    store = embed(encoder, data, tmp_path / "s", fingerprint=raw, normalize=False, dtype="float16")
    assert store.features.dtype == np.float16
    assert list(store.manifest) == ["id", "label"]
    np.testing.assert_allclose(store.features, _expected(encoder, data, False), atol=1e-3)


def test_training_flags_of_each_module_return(tmp_path, data, encoder):
    encoder.train()
    encoder[1].eval()
    flags = [module.training for module in encoder.modules()]
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    embed(encoder, data, tmp_path / "s", fingerprint=FINGERPRINT)
    assert [module.training for module in encoder.modules()] == flags
    torch.testing.assert_close(encoder.state_dict(), before, rtol=0, atol=0)
    data.fail_at = 3
    with pytest.raises(KeyboardInterrupt):
        embed(encoder, data, tmp_path / "s", fingerprint=FINGERPRINT)
    assert [module.training for module in encoder.modules()] == flags


def test_a_disk_that_refuses_leaves_no_mode_behind(tmp_path, data, encoder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    encoder.train()
    monkeypatch.setattr(FeatureWriter, "write", full)
    with pytest.raises(OSError, match="No space"):
        embed(encoder, data, tmp_path / "s", fingerprint=FINGERPRINT)
    assert all(module.training for module in encoder.modules())
    assert not torch.is_inference_mode_enabled()


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, data, encoder):
    whole = embed(encoder, data, tmp_path / "whole", fingerprint=FINGERPRINT, batch_size=3)
    data.fail_at = 7
    with pytest.raises(KeyboardInterrupt):
        embed(encoder, data, tmp_path / "s", fingerprint=FINGERPRINT, batch_size=3)
    with pytest.raises(ValueError, match="found nothing"):
        FeatureStore.open(tmp_path / "s")
    data.fail_at = 2  # done already: must not be asked for again
    store = embed(encoder, data, tmp_path / "s", fingerprint=FINGERPRINT, batch_size=3)
    for file in ("features.npy", "manifest.csv", "fingerprint.json"):
        assert (store.path / file).read_bytes() == (whole.path / file).read_bytes()


def test_a_partial_store_of_other_weights_or_images_is_refused(tmp_path, data, encoder):
    data.fail_at = 7
    with pytest.raises(KeyboardInterrupt):
        embed(encoder, data, tmp_path / "s", fingerprint=FINGERPRINT, batch_size=3)
    data.fail_at = None
    data.ids[0] = "another"
    with pytest.raises(ValueError, match=r"refusing to continue.*source"):
        embed(encoder, data, tmp_path / "s", fingerprint=FINGERPRINT, batch_size=3)
    data.ids[0] = "image 0"
    with torch.no_grad():
        encoder[-1].bias[0] += 1
    with pytest.raises(ValueError, match=r"refusing to continue.*source"):
        embed(encoder, data, tmp_path / "s", fingerprint=FINGERPRINT, batch_size=3)


def test_nothing_to_embed(tmp_path, encoder):
    empty = Dataset(np.zeros((0, 5, 5), np.uint8), np.zeros(0, np.int64), [])
    store = embed(encoder, empty, tmp_path / "s", fingerprint=FINGERPRINT)
    assert (len(store), store.dim) == (0, 6)


class Fixed(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, images):
        return self.output(images)


@pytest.mark.parametrize(
    ("output", "error", "match"),
    [
        (lambda x: x.new_zeros(len(x), 5), ValueError, r"shape \[11, 6\] .* got \[11, 5\]"),
        (lambda x: x.new_zeros(6), ValueError, r"shape \[11, 6\] .* got \[6\]"),
        (lambda x: (x,), TypeError, "expected a floating tensor as output, got tuple"),
        (lambda x: x.new_zeros(len(x), 6).long(), TypeError, "as output, got torch.int64"),
        (
            lambda x: torch.where(torch.arange(len(x))[:, None] == 4, torch.nan, x.new_ones(6)),
            ValueError,
            "expected finite numbers, got a NaN or infinity for image 'image 4'",
        ),
    ],
)
def test_refuses_what_an_encoder_may_not_return(tmp_path, data, output, error, match):
    with pytest.raises(error, match=match):
        embed(Fixed(output), data, tmp_path / "s", fingerprint=FINGERPRINT)
    assert not (tmp_path / "s").exists()


def test_zero_rows_stay_zero(tmp_path, data):
    encoder = Fixed(lambda x: x.new_zeros(len(x), 6).bfloat16())
    assert not embed(encoder, data, tmp_path / "s", fingerprint=FINGERPRINT).features.any()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"fingerprint": Fingerprint("tiny", 6, norm="none")}, "expected norm 'l2' .* got 'none'"),
        ({"dtype": "float64"}, "dtype: expected float32 or float16"),
    ],
)
def test_refuses_arguments_that_do_not_agree(tmp_path, data, encoder, options, match):
    with pytest.raises(ValueError, match=match):
        embed(encoder, data, tmp_path / "s", **{"fingerprint": FINGERPRINT, **options})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_goes_to_a_terminal_only(tmp_path, data, encoder, monkeypatch, capsys, terminal):
    stderr = io.StringIO()
    stderr.isatty = lambda: terminal
    monkeypatch.setattr("sys.stderr", stderr)
    embed(encoder, data, tmp_path / "s", fingerprint=FINGERPRINT, batch_size=4)
    assert ("11/11" in stderr.getvalue()) == terminal
    assert capsys.readouterr().out == ""
    stderr.truncate(0)
    embed(encoder, data, tmp_path / "s", fingerprint=FINGERPRINT, progress=False)
    assert stderr.getvalue() == ""
