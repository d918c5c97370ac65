# SPDX-License-Identifier: Apache-2.0
"""Old features of the views that are trained on: which images the old model is shown, and when."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_samples import bars as make_bars

from fclearn._losses_key import changed_losses, losses_key
from fclearn.encoders import SmallCnn
from fclearn.integrations import CompatTerms
from fclearn.losses import CosineClassifierLoss, LossTerm
from fclearn.methods import Assets, build_method
from fclearn.methods.ni_fcl_views import OldViewLoss
from fclearn.training import TrainConfig, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

OLD_DIM, DIM = 6, 8


class Watched(nn.Module):
    """An encoder that notes what it is shown, in which mode."""

    seen: ClassVar[list] = []

    def __init__(self, dim):
        super().__init__()
        self.encoder = SmallCnn(dim, width=4)

    def forward(self, images):
        Watched.seen.append((images.clone(), self.training, torch.is_grad_enabled()))
        return self.encoder(images)


def old_and_assets(data):
    torch.manual_seed(3)
    old = Watched(OLD_DIM)
    with torch.no_grad():
        features = old.eval()(data.tensor(np.arange(len(data))))
    Watched.seen.clear()
    return old, Assets(torch.from_numpy(data.labels), old_features=features, old_model=old)


def trainer_of(assets, data, output_dir=None, **config):
    torch.manual_seed(0)
    encoder = Watched(DIM)
    terms = build_method("ni-fcl-views", assets, DIM)
    config = TrainConfig(**{"epochs": 2, "batch_size": 16, **config})
    return Trainer(encoder, terms, data, config, output_dir=output_dir, progress=False)


def test_by_definition():
    torch.manual_seed(0)
    old, images = SmallCnn(OLD_DIM, width=4).double(), torch.rand(5, 1, 16, 16).double()
    embeddings = torch.randn(5, DIM, dtype=torch.float64, requires_grad=True)
    term = OldViewLoss(old)
    value = term(embeddings, torch.zeros(5), torch.arange(5), images)
    with torch.no_grad():
        target = F.normalize(old.eval()(images), dim=1)
    part = F.normalize(embeddings[:, :OLD_DIM], dim=1)
    torch.testing.assert_close(value, (part - target).square().sum(1).mean())
    (gradient,) = torch.autograd.grad(value, embeddings)
    assert torch.equal(gradient[:, OLD_DIM:], torch.zeros(5, DIM - OLD_DIM))
    assert gradient[:, :OLD_DIM].abs().max() > 0


def test_the_old_model_sees_the_very_views_and_is_left_as_it_was():
    data = make_bars()
    old, assets = old_and_assets(data)
    old.train()
    before = {key: value.clone() for key, value in old.state_dict().items()}
    trainer_of(assets, data, epochs=1).fit()
    new, asked = Watched.seen[::2], Watched.seen[1::2]
    assert len(new) == len(asked) == len(data) // 16
    plain = data.tensor(np.arange(len(data)))
    for (shown, training, _), (view, asked_training, gradients) in zip(new, asked, strict=True):
        assert torch.equal(shown, view)
        assert training
        assert not asked_training
        assert not gradients
        augmented = [not (plain == image).flatten(1).all(1).any() for image in view]
        assert any(augmented)
        assert not all(augmented)  # clean_share
    assert old.training
    assert all(parameter.requires_grad for parameter in old.parameters())
    for key, value in old.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_it_is_no_part_of_the_checkpoint_but_another_one_is_refused(tmp_path):
    data = make_bars()
    old, assets = old_and_assets(data)
    trainer_of(assets, data, tmp_path, epochs=2).fit()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert not any("old" in key for key in state["modules"])
    trainer_of(assets, data, tmp_path, epochs=2).fit()  # all done
    with torch.no_grad():
        old.encoder.head.weight.mul_(1.5)
    named = r"losses\[3\]\.module\.old_model\.encoder\.head\.weight differ"
    with pytest.raises(ValueError, match=named):
        trainer_of(assets, data, tmp_path, epochs=2).fit()


def changes(change, steps=100_000):
    """What a training names after a change to the old model, which was trained for many steps."""

    def key(model):
        return losses_key([LossTerm("compat", 1.0, OldViewLoss(model))])

    torch.manual_seed(0)
    old = SmallCnn(OLD_DIM, width=4)
    for part in old.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.num_batches_tracked.fill_(steps)
    before = key(old)
    with torch.no_grad():
        change(old)
    return [
        name.removeprefix("losses[0].module.old_model.")
        for name in changed_losses(before, key(old))
    ]


def test_every_tensor_of_the_old_model_counts_by_itself():
    assert changes(lambda _: None) == []
    assert changes(lambda old: old.head.weight.mul_(1 + 1e-6)) == []
    assert changes(lambda old: old.head.weight.mul_(1.001)) == ["head.weight"]
    # Norms stay as they are.
    assert changes(lambda old: old.head.weight.neg_()) == ["head.weight"]
    assert changes(lambda old: old.head.weight.copy_(old.head.weight.flip(0))) == ["head.weight"]

    def count(old):
        counters = [x for name, x in old.named_buffers() if name.endswith("num_batches_tracked")]
        counters[0].add_(1)

    (name,) = changes(count)
    assert name.endswith("num_batches_tracked")


def test_without_images_it_says_so():
    term = OldViewLoss(SmallCnn(OLD_DIM, width=4))
    with pytest.raises(ValueError, match="images: the old model is asked about the views"):
        term(torch.zeros(2, DIM), torch.zeros(2), torch.arange(2))
    labels = torch.arange(4)
    with pytest.raises(ValueError, match=r"got 'views' \(OldViewLoss\), which sees images"):
        CompatTerms([LossTerm("views", 1.0, term)], labels)
    with pytest.raises(ValueError, match=r"needs the old model itself, .* \(old_model\)"):
        CompatTerms.from_method("ni-fcl-views", torch.eye(4), labels, dim=DIM)


def test_a_term_cannot_see_images_and_the_whole_batch():
    class Both(CosineClassifierLoss):
        sees_images = whole_batch = True

    with pytest.raises(ValueError, match="module: Both sees images and wants the whole batch"):
        LossTerm("both", 1.0, Both(2, 2))


def test_embeddings_narrower_than_its_features_are_refused():
    term = OldViewLoss(SmallCnn(OLD_DIM, width=4))
    with pytest.raises(ValueError, match="expected at least the 6 dims of the old features, got 5"):
        term(torch.zeros(2, 5), torch.zeros(2), torch.arange(2), torch.rand(2, 1, 16, 16))
