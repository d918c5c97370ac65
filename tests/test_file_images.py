# SPDX-License-Identifier: Apache-2.0
"""Images that stay files: the same pixels, the same training, the same features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fclearn.datasets import RandomCrops, files, load_image_folder
from fclearn.datasets.files import FileImages
from fclearn.embedding import embed
from fclearn.encoders import SmallCnn
from fclearn.features import Fingerprint
from fclearn.losses import CosineClassifierLoss, LossTerm
from fclearn.training import TrainConfig, Trainer


@pytest.fixture
def folder(tmp_path):
    """Images of several formats, sides and modes."""
    random = np.random.default_rng(0)
    for number in range(24):
        side = 20 + 3 * number
        pixels = random.integers(0, 255, (side, 30 + number, 3), dtype=np.uint8)
        name = tmp_path / "photos" / f"class{number % 3}" / f"{number:02}"
        name.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(name.with_suffix([".png", ".jpg", ".webp"][number % 3]))
    return tmp_path / "photos"


@pytest.fixture(params=[False, True], ids=["rgb", "grey"])
def both(request, folder, monkeypatch):
    """The data set in memory, and as files."""
    held = load_image_folder(folder, size=16, grey=request.param)
    monkeypatch.setattr(files, "MEMORY_BYTES", 0)
    return held, load_image_folder(folder, size=16, grey=request.param)


def test_same_pixels(both):
    held, lazy = both
    assert isinstance(lazy.images, FileImages)
    assert isinstance(held.images, np.ndarray)
    assert lazy.images.shape == held.images.shape
    assert lazy.channels == held.channels
    np.testing.assert_array_equal(lazy.array(), held.images)
    rows = np.array([5, 0, 5, 23])
    lazy.prefetch(rows)
    assert torch.equal(lazy.tensor(rows), held.tensor(rows))
    part = lazy.select_classes([2, 0])
    assert isinstance(part.images, FileImages)
    assert torch.equal(part.tensor([0, 3]), held.select_classes([2, 0]).tensor([0, 3]))


def test_same_training_and_features(both, tmp_path):
    stores = []
    for name, data in zip(("held", "lazy"), both, strict=True):
        torch.manual_seed(0)
        encoder = SmallCnn(4, channels=data.channels, width=4)
        losses = [LossTerm("new", 1.0, CosineClassifierLoss(3, 4))]
        history = Trainer(encoder, losses, data, TrainConfig(epochs=2, batch_size=8)).fit()
        fingerprint = Fingerprint("model", 4)
        store = embed(encoder, data, tmp_path / name, fingerprint=fingerprint, batch_size=5)
        stores.append((history[-1]["loss"], np.array(store.features)))
    assert stores[0][0] == stores[1][0]
    np.testing.assert_array_equal(stores[0][1], stores[1][1])


def test_what_nobody_takes_does_not_pile_up(both):
    _, lazy = both
    for begin in range(20):
        lazy.prefetch(np.arange(begin, begin + 4))
    assert len(lazy.images._pending) <= 20


def test_an_unreadable_image_is_named_when_it_is_needed(folder, monkeypatch):
    (folder / "class1" / "01.jpg").write_bytes(b"no image")
    monkeypatch.setattr(files, "MEMORY_BYTES", 0)
    data = load_image_folder(folder, size=16)
    bad = data.ids.index("class1/01.jpg")
    data.tensor([bad - 1])
    with pytest.raises(ValueError, match=r"01\.jpg: cannot be read"):
        data.tensor([bad])


def test_a_longer_short_side_keeps_the_middle(tmp_path):
    pixels = np.zeros((64, 96), np.uint8)
    pixels[16:48, 32:64] = 255  # the middle half of the short side
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "x.png")
    whole = load_image_folder(tmp_path, size=16, grey=True).images[0]
    middle = load_image_folder(tmp_path, size=16, grey=True, short_side=32).images[0]
    assert (whole > 128).mean() == pytest.approx(0.25, abs=0.1)
    assert (middle > 128).all()
    with pytest.raises(ValueError, match=r"short_side: expected 16 \(size\) to 4096 pixels, got 8"):
        load_image_folder(tmp_path, size=16, short_side=8)


class TestCrops:
    """Random resized crops: of the right distribution, repeatable, new in every epoch."""

    @pytest.mark.parametrize("size", [(500, 375), (90, 90), (40, 600)])
    def test_boxes_are_inside_and_of_allowed_shape(self, size):
        crops = RandomCrops(seed=3)
        areas = []
        for row in range(400):
            (left, top, right, bottom), _ = crops.draw(size, epoch=0, row=row)
            assert 0 <= left < right <= size[0] + 1e-9
            assert 0 <= top < bottom <= size[1] + 1e-9
            proportion = (right - left) / (bottom - top)
            assert 3 / 4 - 1e-9 <= proportion <= 4 / 3 + 1e-9
            areas.append((right - left) * (bottom - top) / (size[0] * size[1]))
        if size != (40, 600):  # where hardly any box of 8 % of the area fits
            assert 0.08 <= min(areas) < 0.12
            assert max(areas) > 0.8

    def test_the_largest_box_of_a_panorama_is_in_its_middle(self):
        box, _ = RandomCrops(least_area=1).draw((600, 30), epoch=0, row=0)
        assert box == (280, 0, 320, 30)

    def test_half_is_mirrored_and_a_share_is_left_whole(self):
        drawn = [RandomCrops(clean_share=0.3).draw((9, 9), epoch=0, row=r) for r in range(2000)]
        whole = [mirrored for box, mirrored in drawn if box is None]
        assert len(whole) == pytest.approx(600, abs=80)
        assert not any(whole)
        mirrored = [mirrored for box, mirrored in drawn if box is not None]
        assert np.mean(mirrored) == pytest.approx(0.5, abs=0.05)
        assert not any(RandomCrops(flip=False).draw((9, 9), epoch=0, row=r)[1] for r in range(50))

    def test_pixels_are_those_of_the_box(self, tmp_path, monkeypatch):
        random = np.random.default_rng(0)
        pixels = random.integers(0, 255, (40, 60), dtype=np.uint8)
        (tmp_path / "a").mkdir()
        Image.fromarray(pixels).save(tmp_path / "a" / "x.png")
        for mirrored in (False, True):
            monkeypatch.setattr(
                RandomCrops, "draw", lambda *_, m=mirrored, **__: ((8.0, 4.0, 40.0, 36.0), m)
            )
            data = load_image_folder(tmp_path, size=32, grey=True, crops=RandomCrops())
            cut = pixels[4:36, 8:40]
            np.testing.assert_array_equal(
                data.images[np.array([0])][0], cut[:, ::-1] if mirrored else cut
            )

    def test_a_small_box_of_a_large_jpeg_keeps_its_detail(self, tmp_path, monkeypatch):
        """Decoded at half its size, stripes of two pixels would be grey."""
        pixels = np.repeat((np.arange(800) // 2 % 2 * 255).astype(np.uint8)[None], 600, axis=0)
        (tmp_path / "a").mkdir()
        Image.fromarray(pixels).save(tmp_path / "a" / "x.jpg", quality=95)
        monkeypatch.setattr(RandomCrops, "draw", lambda *_, **__: ((0.0, 0.0, 32.0, 32.0), False))
        data = load_image_folder(tmp_path, size=32, grey=True, crops=RandomCrops())
        assert data.images[np.array([0])].std() > 100

    def test_epochs_differ_and_repeat(self, folder):
        def epochs(seed=0):
            data = load_image_folder(folder, size=16, crops=RandomCrops(seed))
            seen = []
            for epoch in (0, 1, 0):
                data.start_epoch(epoch)
                data.prefetch(np.arange(4))
                seen.append(data.tensor(np.arange(4)))
                data.prefetch(np.arange(4, 8))  # of an epoch that was left half-way
            return seen

        first, second, again = epochs()
        assert torch.equal(first, again)
        assert not torch.equal(first, second)
        assert not torch.equal(first, epochs(seed=1)[0])

    def test_a_resumed_training_sees_the_same_crops(self, folder, tmp_path):
        def train(epochs_at_once, output):
            for stop in epochs_at_once:
                torch.manual_seed(0)
                data = load_image_folder(folder, size=16, crops=RandomCrops())
                encoder = SmallCnn(4, channels=3, width=4)
                losses = [LossTerm("new", 1.0, CosineClassifierLoss(3, 4))]
                config = TrainConfig(epochs=3, batch_size=8, augment=False)
                trainer = Trainer(encoder, losses, data, config, output_dir=output)
                if stop is not None:
                    save = trainer._save

                    def stopped(where, save=save, trainer=trainer, stop=stop):
                        save(where)
                        if trainer._epoch == stop:
                            raise KeyboardInterrupt

                    trainer._save = stopped
                    with pytest.raises(KeyboardInterrupt):
                        trainer.fit()
                else:
                    history = trainer.fit()
            return [row["loss"] for row in history]

        assert train([None], tmp_path / "one") == train([2, None], tmp_path / "two")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"clean_share": 1.5}, "clean_share: expected a number in"),
            ({"least_area": 0}, "least_area: expected a number in"),
            ({"widest": 0.5}, "widest: expected a number >= 1, got 0.5"),
        ],
    )
    def test_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            RandomCrops(**options)
