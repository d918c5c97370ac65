# SPDX-License-Identifier: Apache-2.0
"""What counts as the same losses when a training is resumed."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fclearn._losses_key import changed_losses, losses_key
from fclearn.classifiers import PseudoClassifier
from fclearn.graph import KnnGraph
from fclearn.losses import CosineClassifierLoss, L2CompatLoss, LossTerm, PseudoClassifierLoss
from fclearn.methods import METHODS, Assets, build_method
from fclearn.methods.ni_fcl_scores import ScoreListLoss

IMAGES, CLASSES, DIM, OLD_DIM = 48, 4, 8, 6


class Own(nn.Module):
    """Of somebody who says nothing of its settings."""

    def __init__(self, **settings):
        super().__init__()
        vars(self).update(settings)

    def forward(self, embeddings, _labels, _rows):
        return embeddings.square().mean()


def key(*modules):
    return losses_key([LossTerm("compat", 1.0, module) for module in modules])


def assets():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(IMAGES) % CLASSES
    features = torch.randn(IMAGES, OLD_DIM, generator=generator) + 2 * torch.eye(4, OLD_DIM)[labels]
    return Assets(
        labels,
        old_features=features,
        old_model=nn.Flatten(),
        old_classifier=torch.randn(2, OLD_DIM, generator=generator),
        old_classes=torch.tensor([3, 1]),
        independent_features=torch.randn(IMAGES, OLD_DIM, generator=generator),
        old_scores=KnnGraph.build(features, 9),
    )


def built(name, **settings):
    torch.manual_seed(0)
    return losses_key(build_method(name, assets(), DIM, **settings))


def other(value):
    if isinstance(value, bool):
        return not value
    return type(value)(2 * value) if value else type(value)(1 if isinstance(value, int) else 0.2)


NUMBERS = [
    pytest.param(name, setting, id=f"{name}-{setting}")
    for name, spec in METHODS.items()
    for setting, value in spec.defaults.items()
    if isinstance(value, bool | int | float)
    # Without effect here: of another loss than the default, and all rows are credible anyway.
    and (name, setting) not in {("aml", "triplet_margin"), ("nccl", "max_entropy")}
]


@pytest.mark.parametrize(("name", "setting"), NUMBERS)
def test_every_setting_of_every_method_is_noticed(name, setting):
    value = other(METHODS[name].defaults[setting])
    try:
        changed = built(name, **{setting: value})
    except ValueError:  # half of it is in range
        changed = built(name, **{setting: METHODS[name].defaults[setting] / 2})
    assert changed_losses(built(name), changed)


@pytest.mark.parametrize("name", METHODS)
def test_the_same_method_again_is_the_same(name):
    first = built(name)
    assert changed_losses(first, built(name)) == []
    # As the checkpoints of several processes have it.
    assert changed_losses(json.loads(json.dumps(first)), first) == []


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"scale": 20.0}, {"scale": 1.0}),
        ({"mode": "hard"}, {"mode": "soft"}),
        ({"margin": None}, {"margin": 0.1}),
        ({"steps": (1, 2)}, {"steps": (1, 3)}),
        ({"hard": True}, {"hard": False}),
        ({"scale": np.float32(2)}, {"scale": np.float32(3)}),
        ({"hard": np.bool_(True)}, {"hard": np.bool_(False)}),
        ({"steps": (1, np.int64(2))}, {"steps": (1, np.int64(3))}),
        ({"ranges": (None, ("a", np.float32(2)))}, {"ranges": (None, ("a", np.float32(3)))}),
    ],
)
def test_settings_of_own_modules_are_noticed_and_named(one, two):
    (name,) = one
    assert changed_losses(key(Own(**one)), key(Own(**two))) == [f"losses[0].module.{name}"]
    inside = [key(L2CompatLoss(torch.eye(3)), nn.Sequential(Own(**own))) for own in (one, two)]
    assert changed_losses(*inside) == [f"losses[1].module.0.{name}"]


def test_what_is_no_setting_does_not_count():
    one = Own(scale=float("nan"), _seen=1, rows=[1], run=print, pairs=(nn.Identity(),))
    two = Own(scale=float("nan"), _seen=2, rows=[2], run=len, pairs=(1, nn.Identity()))
    assert changed_losses(key(one), key(two.eval())) == []


def test_numbers_of_numpy_are_those_of_python():
    theirs = Own(scale=np.float32(2), steps=(np.int64(1), np.bool_(True)), mean=np.longdouble(0.5))
    assert changed_losses(key(theirs), key(Own(scale=2.0, steps=(1, True), mean=0.5))) == []


def test_what_is_printed_does_not_count():
    class Counting(Own):
        def extra_repr(self):
            return f"called={self._calls}"

    one, two = Counting(_calls=0), Counting(_calls=7)
    assert repr(one) != repr(two)
    assert changed_losses(key(one), key(two)) == []


def test_another_class_is_named_without_what_is_in_it():
    class Other(Own):
        pass

    of_another_class = [Own(scale=1.0, k=3), Other(scale=2.0, steps=(1,))]
    assert changed_losses(*map(key, of_another_class)) == ["losses[0].module"]
    parts = [nn.Sequential(Own(scale=2.0), one) for one in of_another_class]
    assert changed_losses(*map(key, parts)) == ["losses[0].module.1"]
    more = nn.Sequential(Own(scale=3.0), of_another_class[0], Own(scale=1.0))
    assert changed_losses(key(parts[0]), key(more)) == [
        "losses[0].module.0.scale",
        "losses[0].module.2",
    ]


def test_other_shapes_are_noticed():
    some, more = CosineClassifierLoss(3, 4), CosineClassifierLoss(5, 4)
    assert changed_losses(key(some), key(more)) == ["losses[0].module.prototypes"]
    # Of as many numbers, all of them equal.
    wide, high = L2CompatLoss(torch.zeros(3, 4)), L2CompatLoss(torch.zeros(4, 3))
    assert changed_losses(key(wide), key(high)) == ["losses[0].module.features"]


def test_margin_type_and_smoothing_are_told_apart():
    plain = CosineClassifierLoss(3, 3, margin=0.3)
    arc = CosineClassifierLoss(3, 3, margin=0.3, margin_type="arcface")
    assert changed_losses(key(plain), key(arc)) == ["losses[0].module.margin_type"]
    frozen = [PseudoClassifierLoss(torch.eye(3), label_smoothing=x) for x in (0.0, 0.1)]
    assert changed_losses(*map(key, frozen)) == ["losses[0].module.label_smoothing"]


def test_prototypes_walked_at_another_temperature_are_others():
    """Old features that know their classes well: the walk moves their means by little."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % CLASSES
    features = F.normalize(
        4 * torch.eye(4, 16)[labels] + 0.5 * torch.randn(400, 16, generator=generator), dim=1
    )
    means = PseudoClassifier.from_means(features, labels)
    graph = KnnGraph.build(features, 10, labels=labels)
    tenth, eleventh, fifth = (
        means.refine(graph.normalize(temperature=t), 0.9).prototypes for t in (0.1, 0.11, 0.2)
    )
    assert (tenth - fifth).abs().max() < 5e-3
    for others in (eleventh, fifth):
        changed = changed_losses(
            key(PseudoClassifierLoss(tenth)), key(PseudoClassifierLoss(others))
        )
        assert changed == ["losses[0].module.prototypes"]


@pytest.mark.parametrize("shape", [(40, 6), (200_000, 16), (3, 4, 5), (7,), ()])
def test_tensors_count_as_the_same_up_to_rounding(shape):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(shape, generator=generator)
    noise = torch.randn(shape, generator=generator)

    def changed(size):
        pair = [Own(), Own()]
        for own, tensor in zip(pair, (rows, rows * (1 + size * noise)), strict=True):
            own.register_buffer("rows", tensor)
        return changed_losses(*map(key, pair))

    assert changed(0) == changed(1e-6) == []
    assert changed(1e-3) == ["losses[0].module.rows"]


def test_two_exchanged_rows_among_many_are_noticed():
    rows = F.normalize(torch.randn(100_000, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    order = torch.arange(len(rows))
    order[[5, 70_000]] = order[[70_000, 5]]
    assert changed_losses(key(L2CompatLoss(rows)), key(L2CompatLoss(rows[order])))


def of_buffer(tensor):
    own = Own()
    own.register_buffer("chosen", tensor)
    return key(own)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
@pytest.mark.parametrize("shape", [(100_000,), (50_000, 2), (3,), ()])
def test_integers_count_exactly(dtype, shape):
    numbers = torch.arange(math.prod(shape)).reshape(shape).to(dtype)
    once = of_buffer(numbers)
    assert changed_losses(once, of_buffer(numbers.clone())) == []
    assert changed_losses(json.loads(json.dumps(once)), once) == []
    beside = numbers.clone()
    beside.view(-1)[-1:].bitwise_xor_(torch.ones(1, dtype=dtype))  # by one, in one place
    for other_numbers in (beside, numbers.to(torch.int16), numbers[None]):
        assert changed_losses(once, of_buffer(other_numbers)) == ["losses[0].module.chosen"]


def test_two_exchanged_integers_among_many_are_noticed():
    numbers = torch.arange(100_000)
    exchanged = numbers.clone()
    exchanged[[5, 6]] = numbers[[6, 5]]
    assert changed_losses(of_buffer(numbers), of_buffer(exchanged))


def test_another_list_of_images_among_many_is_noticed():
    count, length = 20_000, 20
    scores = torch.rand(count, length, generator=torch.Generator().manual_seed(0))
    images = (torch.arange(count)[:, None] + torch.arange(2, 2 + length)) % count
    others = images.clone()
    others[7] -= 1
    lists = [ScoreListLoss(KnnGraph.from_knn(found, scores), 2) for found in (images, others)]
    assert changed_losses(*map(key, lists)) == ["losses[0].module.members"]


def test_empty_and_infinite_tensors_have_a_finite_sketch():
    own = Own()
    own.register_buffer("nothing", torch.zeros(0, 3))
    own.register_buffer("log_weights", torch.tensor([0.5, -torch.inf, torch.nan]))
    own.register_buffer("none_chosen", torch.zeros(0, 3, dtype=torch.bool))
    assert changed_losses(key(own), key(own)) == []
    assert all(map(math.isfinite, key(own)["losses[0].module.log_weights"]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mark", ["-inf", "nan", "lowest"])
def test_masked_numbers_are_compared_beside_their_marks(dtype, mark):
    mark = torch.finfo(dtype).min if mark == "lowest" else float(mark)
    masked = torch.tensor([mark, 0.5, 0.25, mark], dtype=dtype)
    once = of_buffer(masked)
    assert changed_losses(json.loads(json.dumps(once)), once) == []
    elsewhere, louder = masked[[1, 0, 2, 3]], masked.clone()
    louder[1] = 0.75
    for changed in (elsewhere, louder, masked.nan_to_num(0.0, 0.0, 0.0).clamp(min=0)):
        assert changed_losses(once, of_buffer(changed)) == ["losses[0].module.chosen"]


def test_marks_far_from_each_other_are_told_apart():
    def marked(place):
        numbers = torch.zeros(1_000_000)
        numbers[place] = -torch.inf
        return of_buffer(numbers)

    assert changed_losses(marked(5), marked(5)) == []
    assert changed_losses(marked(5), marked(5 + 2 * 512 * 512)) == ["losses[0].module.chosen"]


def test_nan_is_nan_whatever_its_bits():
    bits = torch.tensor([0x7FF8000000000000, -0x0008000000000000])
    one, two = bits.view(torch.float64).split(1)
    assert one.isnan()
    assert two.isnan()
    assert changed_losses(of_buffer(one), of_buffer(two)) == []


def test_complex_numbers_count_up_to_rounding():
    numbers = torch.randn(5, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    once = of_buffer(numbers.conj())
    assert changed_losses(once, of_buffer(numbers.conj().resolve_conj() * (1 + 1e-6))) == []
    for others in (numbers, 1.001 * numbers.conj()):
        assert changed_losses(once, of_buffer(others)) == ["losses[0].module.chosen"]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_sparse_tensors_are_compared_by_their_entries(layout, dtype):
    dense = (4 * torch.eye(3)).to(dtype)

    def of(numbers):
        return of_buffer(numbers.to_sparse(layout=layout))

    assert changed_losses(of(dense), of(dense.clone())) == []
    assert changed_losses(of(dense), of(2 * dense)) == ["losses[0].module.chosen.values"]
    assert changed_losses(of(dense), of(dense.roll(1, 1))) == ["losses[0].module.chosen.indices"]
    assert changed_losses(of(dense), of(F.pad(dense, (0, 1)))) == ["losses[0].module.chosen"]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.LazyLinear(3), r"module\.weight: .*, got a UninitializedParameter of torch\.float32: "),
        (nn.BatchNorm1d(3, device="meta"), r"module\.running_mean: .*, got a Tensor of .*meta"),
    ],
)
def test_tensors_without_numbers_are_refused_by_name(module, message):
    with pytest.raises(ValueError, match=rf"^losses\[0\]\.{message}"):
        key(module)


def frozen(weight):
    head = nn.Linear(3, 3, bias=False).requires_grad_(False)
    head.weight.copy_(weight)
    return nn.Sequential(head)


def test_frozen_parameters_are_compared_as_buffers_are():
    rows = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    assert changed_losses(key(frozen(rows)), key(frozen(rows * (1 + 1e-7)))) == []
    for others in (rows[[1, 0, 2]], -rows, 1.001 * rows):
        assert changed_losses(key(frozen(rows)), key(frozen(others))) == [
            "losses[0].module.0.weight"
        ]
    # Those that are trained begin anywhere: the checkpoint's count.
    started = [frozen(weight).requires_grad_(True) for weight in (rows, -rows)]
    assert changed_losses(*map(key, started)) == []
    # A buffer is trained by nobody, whatever it says.
    assert changed_losses(*(of_buffer(x.requires_grad_()) for x in (rows.clone(), -rows)))


def test_a_class_is_the_same_in_a_script_and_imported(monkeypatch):
    imported = key(Own(scale=1.0))
    monkeypatch.setattr(Own, "__module__", "__main__")
    assert changed_losses(imported, key(Own(scale=1.0))) == []


def test_what_is_no_key_is_another_key():
    now = key(L2CompatLoss(torch.eye(3)))
    features = "losses[0].module.features"
    for broken in ([], ["a"] * len(now[features]), "x", None, {}, [1.0]):
        assert changed_losses({**now, features: broken}, now) == [features]
    assert changed_losses({"0: compat 1 L2CompatLoss()": [1.0, 0.5]}, now) == ["losses"]
