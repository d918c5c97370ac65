# SPDX-License-Identifier: Apache-2.0
"""Methods compared: settings, runs that resume, refusals, and the table made of their files."""

from __future__ import annotations

import gzip
import json
import math
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch

from fclearn.adapters import Ridge
from fclearn.cli import main
from fclearn.datasets import ImageDataset
from fclearn.evaluation import evaluate_retrieval, oracle_gain
from fclearn.experiments import benchmark, settings, sources
from fclearn.experiments.benchmark import RunsFailedError, bench_methods
from fclearn.experiments.contenders import all_contenders, get_contender
from fclearn.experiments.records import load_records, per_query, record_path, save_record
from fclearn.experiments.settings import DEFAULTS, BenchConfig
from fclearn.experiments.splits import data_fingerprint, make_setting, shared_classes
from fclearn.experiments.summary import over_seeds, student_t, summarise
from fclearn.experiments.table import BEGIN, END, TABLE, write_summary
from fclearn.experiments.upgrade import split_images
from fclearn.methods import METHODS
from fclearn.training import DivergenceError, TrainConfig

NUM_CLASSES, PER_CLASS = 12, 12
CONFIG = BenchConfig(
    num_old_classes=3,
    num_new_classes=8,
    old_encoder="tiny-cnn",
    new_encoder="tiny-cnn",
    old_dim=8,
    new_dim=12,
    train=TrainConfig(epochs=2, batch_size=16),
)
METHODS_RUN = ("ni-fcl", "bct", "bt2", "independent", "map-ridge")


@pytest.fixture(scope="module")
def images():
    """Each class a pattern, each image that pattern under noise; two near-copies a group."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 200, (NUM_CLASSES, 16, 16))
    labels = np.repeat(np.arange(NUM_CLASSES), PER_CLASS)
    noisy = patterns[labels] + rng.integers(0, 56, (len(labels), 16, 16))
    return ImageDataset(
        noisy.astype(np.uint8),
        labels,
        ids=[f"image {row}" for row in range(len(labels))],
        groups=np.arange(len(labels)) // 2 % 3,
        class_names=[f"class {label}" for label in range(NUM_CLASSES)],
    )


def compare(folder, images, **options):
    config = options.pop("config", CONFIG)
    options = {"methods": METHODS_RUN, "seeds": (0, 1), **options}
    return bench_methods(
        config, folder, images=images, progress=False, say=lambda _: None, **options
    )


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    return folder, compare(folder, images)


def copy(folder, target):
    for path in folder.glob("*.json"):
        target.mkdir(exist_ok=True)
        (target / path.name).write_bytes(path.read_bytes())
    return target


def edit(path, change):
    record = json.loads(path.read_text(encoding="utf-8"))
    change(record)
    path.write_text(json.dumps(record), encoding="utf-8")


def test_every_method_is_a_contender_once():
    names = all_contenders()
    assert len(set(names)) == len(names)
    assert set(METHODS) == {name for name in names if not name.startswith("map-")}
    assert names[0] == "ni-fcl"
    assert [get_contender(name).name for name in names] == names


def test_one_record_per_run(finished):
    folder, records = finished
    assert len(records) == 2 * len(METHODS_RUN) == len(list(folder.glob("*.json")))
    for record in records:
        config = record["config"]
        spec = get_contender(config["method"])
        assert record["given"] == [need.name.lower() for need in spec.needs]
        assert config["settings"] == dict(spec.defaults)
        assert record["versions"].keys() == {"fcl_ext", "torch", "numpy", "python"}
        assert record["train_seconds"] > 0
        assert record["report"]["num_queries"] == record["data"]["test"]["images"] == 4 * PER_CLASS
        for metric in ("map", "cmc@1"):
            low, high = record["ceiling"][metric]["interval"]
            assert low <= record["ceiling"][metric]["value"] <= high


def test_methods_of_a_seed_share_old_and_independent_model(finished):
    _, records = finished
    for seed in (0, 1):
        reports = [r["report"] for r in records if r["config"]["train"]["seed"] == seed]
        for row in ("old/old", "independent/independent"):
            assert len({json.dumps(report["matrix"][row]) for report in reports}) == 1
        assert len({report["matrix"]["new/old"]["map"] for report in reports}) == len(reports)


def test_independent_is_the_paragon_itself(finished):
    _, records = finished
    for record in records:
        if record["config"]["method"] == "independent":
            matrix = record["report"]["matrix"]
            assert matrix["new/new"] == matrix["independent/independent"]
            assert record["report"]["self_test_tax"] == 0


def test_a_map_serves_queries_only(finished, images):
    folder, records = finished
    record = next(r for r in records if r["config"]["method"] == "map-ridge")
    assert "new/new" not in record["report"]["matrix"]
    assert record["report"]["self_test_tax"] is None
    stages = benchmark._Comparison.prepare(CONFIG, images, folder / "work" / "seed0", False).stages
    old, old_test = stages.old_features()
    new, new_test = stages.independent_features(stages.assets(old))
    ridge = Ridge().fit(
        source=torch.from_numpy(np.array(new.features)),
        target=torch.from_numpy(np.array(old.features)),
    )
    result = evaluate_retrieval(
        ridge.transform(torch.from_numpy(np.array(new_test.features))),
        old_test,
        query_labels=stages.data.test.labels,
        gallery_labels=stages.data.test.labels,
        exclude_self=True,
        query_ids=stages.data.test.groups,
        gallery_ids=stages.data.test.groups,
    )
    assert record["report"]["matrix"]["new/old"]["map"] == pytest.approx(result["map"], abs=1e-3)


def test_a_second_call_runs_nothing(finished, images, monkeypatch):
    folder, records = finished
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}

    def never(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(benchmark.Stages, "_train", never)
    assert compare(folder, images) == records
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.json")} == before


def test_a_lost_or_damaged_record_comes_back_the_same(finished, images, tmp_path):
    folder, records = finished
    target = copy(folder, tmp_path / "copy")
    record_path(target, "bct", 0).unlink()
    damaged = record_path(target, "ni-fcl", 1)
    damaged.write_text(damaged.read_text(encoding="utf-8")[:100], encoding="utf-8")
    # Without the work folder, everything the two runs need is trained again.
    again = compare(target, images)
    for one, other in zip(records, again, strict=True):
        assert one["report"] == other["report"]
        assert one["config"] == other["config"]


def test_more_methods_and_seeds_join_a_folder(finished, images, tmp_path):
    target = copy(finished[0], tmp_path / "copy")
    found = compare(target, images, methods=["l2"], seeds=[0], work=finished[0] / "work")
    assert [record["config"]["method"] for record in found] == ["l2"]
    assert len(load_records(target)) == 2 * len(METHODS_RUN) + 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"label_noise": 0.5}, "label_noise"),
        ({"train": replace(CONFIG.train, epochs=3)}, "train.epochs"),
        ({"classes": "open", "new_dim": 16}, "classes, new_dim"),
    ],
)
def test_folder_of_another_setting_is_refused(finished, images, change, named):
    with pytest.raises(ValueError, match=rf"another configuration \({named} differ\)"):
        compare(finished[0], images, config=replace(CONFIG, **change))


def test_record_of_another_default_or_image_is_refused(finished, images, tmp_path):
    target = copy(finished[0], tmp_path / "copy")
    edit(record_path(target, "bct", 0), lambda r: r["config"]["settings"].update(scale=5.0))
    with pytest.raises(ValueError, match=r"bct-seed0.json: .*\(settings.scale differ\)"):
        compare(target, images, methods=["bct"], seeds=[0])
    changed = replace(images, images=255 - images.images)
    with pytest.raises(ValueError, match=r"ni-fcl-seed0.json: .*\(the images differ\)"):
        compare(target, changed, methods=["ni-fcl"], seeds=[0])


def test_features_of_other_defaults_are_refused(finished, images, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "bct", replace(METHODS["bct"], defaults={"scale": 5.0}))
    with pytest.raises(RunsFailedError, match=r"bct: .*holds a comparison of another"):
        compare(tmp_path, images, methods=["bct"], seeds=[0], work=finished[0] / "work")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["bcd"]}, "unknown name 'bcd'"),
        ({"methods": ["bct", "bct"]}, "methods: expected at least one, each once"),
        ({"methods": []}, "methods: expected at least one, each once"),
        ({"seeds": [1, 1]}, "seeds: expected at least one, each once"),
    ],
)
def test_bad_lists(images, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        compare(tmp_path, images, **options)
    assert not list(tmp_path.iterdir())


def test_a_method_that_fails_leaves_the_others(finished, images, tmp_path, monkeypatch):
    run = benchmark._Comparison.run

    def sometimes(self, spec):
        if spec.name == "bct":
            raise DivergenceError("the loss is nan")
        return run(self, spec)

    monkeypatch.setattr(benchmark._Comparison, "run", sometimes)
    with pytest.raises(RunsFailedError, match=r"1 runs failed.*seed 0: bct: the loss is nan"):
        compare(tmp_path, images, seeds=[0], work=finished[0] / "work")
    assert {path.name for path in tmp_path.glob("*.json")} == {
        f"{name}-seed0.json" for name in METHODS_RUN if name != "bct"
    }


def test_a_stopped_run_goes_on_to_the_same_result(finished, images, tmp_path, monkeypatch):
    embed = benchmark.Stages._embed
    stops = iter(["old-test", "independent-train", "bct-test"])
    stop = next(stops)

    def interrupted(self, encoder, data, name, dim):
        if name == stop:
            raise KeyboardInterrupt
        embed(self, encoder, data, name, dim)

    monkeypatch.setattr(benchmark.Stages, "_embed", interrupted)
    while stop:
        with pytest.raises(KeyboardInterrupt):
            compare(tmp_path, images, methods=["bct"], seeds=[1])
        stop = next(stops, "")
    (record,) = compare(tmp_path, images, methods=["bct"], seeds=[1])
    (undisturbed,) = (
        r
        for r in finished[1]
        if (r["config"]["method"], r["config"]["train"]["seed"]) == ("bct", 1)
    )
    assert record["report"] == undisturbed["report"]
    assert record["per_query"] == undisturbed["per_query"]


def test_methods_get_what_they_need_and_nothing_else(finished, images):
    comparison = benchmark._Comparison.prepare(
        CONFIG, images, finished[0] / "work" / "seed0", False
    )
    old_train, _ = comparison.stages.old_features()
    assets = comparison.stages.assets(old_train)
    independent, _ = comparison.stages.independent_features(assets)
    given = {
        name: comparison._given(METHODS[name], assets, independent)
        for name in METHODS_RUN
        if name in METHODS
    }
    assert given["independent"].old_features is None
    assert given["ni-fcl"].old_classifier is None
    assert given["ni-fcl"].independent_features is None
    assert given["bct"].old_classifier.shape == (3, 8)
    assert given["bct"].old_classes.tolist() == [0, 1, 2]
    assert given["bt2"].independent_features.shape == (8 * PER_CLASS, 12)


def test_kept_classifier_knows_its_classes(images, tmp_path):
    """Its rows are those of the old model: they tell its training classes apart."""
    config = replace(CONFIG, train=TrainConfig(epochs=40, batch_size=16, learning_rate=1e-2))
    stages = benchmark._Comparison.prepare(config, images, tmp_path, False).stages
    features = torch.from_numpy(np.array(stages.old_features()[0].features))
    rows = torch.nn.functional.normalize(torch.from_numpy(stages.old_classifier()), dim=1)
    labels = torch.from_numpy(stages.data.new.labels)
    answers = (features[labels < 3] @ rows.T).argmax(1)
    assert (answers == labels[labels < 3]).float().mean() > 0.8


def test_setting_splits_as_the_demo_does(images):
    data, plain = make_setting(images, CONFIG), split_images(images, CONFIG)
    assert data_fingerprint(data) == data_fingerprint(plain)
    assert not {*data.test.class_names} & {*data.new.class_names, *data.old.class_names}
    assert data.new.class_names[:3] == data.old.class_names


def test_open_classes(images):
    data = make_setting(images, replace(CONFIG, classes="open"))
    assert data.new.num_classes == 5
    assert not {*data.new.class_names} & {*data.old.class_names}
    assert [len(part) for part in shared_classes(data)] == [0, 0]
    extended = make_setting(images, CONFIG)
    assert data.test.ids == extended.test.ids
    mine, its = shared_classes(extended)
    assert [extended.old.class_names[c] for c in mine] == [extended.new.class_names[c] for c in its]


def test_label_noise_keeps_class_sizes(images):
    clean = make_setting(images, CONFIG)
    noisy = make_setting(images, replace(CONFIG, label_noise=0.25))
    assert noisy.new.ids == clean.new.ids
    assert np.array_equal(np.bincount(noisy.new.labels), np.bincount(clean.new.labels))
    assert 0.1 < (noisy.new.labels != clean.new.labels).mean() <= 0.25
    assert np.array_equal(noisy.old.labels, clean.old.labels)
    assert np.array_equal(noisy.test.labels, clean.test.labels)


def test_images_per_class(images):
    data = make_setting(images, replace(CONFIG, images_per_class=5))
    assert np.bincount(data.new.labels).tolist() == [5] * 8
    assert len(data.old) == 3 * PER_CLASS
    assert set(data.new.ids) <= set(make_setting(images, CONFIG).new.ids)
    other = replace(CONFIG, images_per_class=5, train=replace(CONFIG.train, seed=1))
    assert make_setting(images, other).new.ids != data.new.ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_noise": 1.5}, "label_noise: expected a number in"),
        ({"label_noise": math.nan}, "label_noise: expected a number in"),
        ({"images_per_class": 0}, "images_per_class: expected at least 1, got 0"),
        ({"classes": "closed"}, "classes: expected one of .*'closed'"),
        ({"dataset": "mnist"}, "dataset: expected one of .*'mnist'"),
        ({"num_old_classes": 8}, "num_old_classes: expected 1 to 7"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


def test_oracle_gain_by_definition():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 6)
    features = torch.from_numpy(rng.standard_normal((24, 5)).astype(np.float32))
    gain = oracle_gain(features, labels, np.arange(24), metrics=("map",), seed=3)["map"]
    unit = torch.nn.functional.normalize(features, dim=1)
    coin = np.random.default_rng(3).integers(0, 2, 24)
    for row in range(24):
        # One's own half, without oneself, is searched from the mean of the other half.
        seen = (labels != labels[row]) | (coin == coin[row])
        seen[row] = False
        others = (labels == labels[row]) & (coin != coin[row])
        precision = []
        for query in (unit[torch.from_numpy(others)].mean(0), unit[row]):
            result = evaluate_retrieval(
                query[None],
                features[torch.from_numpy(seen)],
                query_labels=labels[[row]],
                gallery_labels=labels[seen],
                metrics=("map",),
                return_per_query=True,
            )
            precision.append(result.per_query["map"][0])
        assert gain[row] == pytest.approx(np.nan_to_num(precision[0] - precision[1]), abs=1e-6)


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (30, 2.0423)]
)
def test_student_t(degrees, quantile):
    assert student_t(degrees, 0.95) == pytest.approx(quantile, abs=1e-3)


def test_over_seeds_without_a_value():
    estimate = over_seeds([(0.5, None), (None, None)])
    assert (estimate.value, estimate.interval) == (None, None)


def test_summary_of_the_records(finished):
    _, records = finished
    summary = summarise(records)
    assert summary.seeds == (0, 1)
    assert {method.name for method in summary.methods} == set(METHODS_RUN)
    by_name = {method.name: method for method in summary.methods}
    assert by_name["ni-fcl"].gains == {}
    values = {
        (r["config"]["method"], r["config"]["train"]["seed"]): r["report"]["matrix"]["new/old"]
        for r in records
    }
    for metric in ("map", "cmc@1"):
        estimate = by_name["bct"].estimates["new/old", metric]
        own = [values["bct", seed][metric] for seed in (0, 1)]
        theirs = [values["ni-fcl", seed][metric] for seed in (0, 1)]
        assert estimate.value == pytest.approx(np.mean(own))
        gain = by_name["bct"].gains["new/old", metric]
        assert gain.value == pytest.approx(np.mean(own) - np.mean(theirs), abs=1e-4)
        assert gain.values == pytest.approx(np.subtract(own, theirs), abs=1e-4)
        low, high = gain.interval
        assert low < gain.value < high
    assert by_name["map-ridge"].gains["new/new", "map"].value is None


def test_paired_interval_is_that_of_the_differences(finished):
    records = [r for r in finished[1] if r["config"]["train"]["seed"] == 0]
    by_name = {method.name: method for method in summarise(records).methods}
    one, other = (per_query(r, "new/old", "map") for r in records[:2])
    assert [r["config"]["method"] for r in records[:2]] == ["ni-fcl", "bct"]
    low, high = by_name["bct"].gains["new/old", "map"].interval
    error = (other - one).std() / math.sqrt(len(one))
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.15)


def test_per_query_values_survive_the_file(finished):
    for record in finished[1]:
        for row in ("new/old", "new/new"):
            if row in record["report"]["matrix"]:
                for metric in ("map", "cmc@1"):
                    values = per_query(record, row, metric)
                    assert values.shape == (record["report"]["num_queries"],)
                    mean = record["report"]["matrix"][row][metric]
                    assert values.mean() == pytest.approx(mean, abs=1e-5)


def test_methods_are_ranked_by_update_gain(finished):
    records = json.loads(json.dumps(finished[1]))
    for record in records:
        place = METHODS_RUN.index(record["config"]["method"])
        record["report"]["update_gain"] = [0.1, 0.4, None, 0.2, 0.0][place]
    names = [method.name for method in summarise(records).methods]
    assert names == ["bct", "independent", "ni-fcl", "map-ridge", "bt2"]


def test_table_from_the_files(finished, tmp_path):
    target = copy(finished[0], tmp_path / "bench")
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    page.write_text(f"before\n{BEGIN}\nold text\n{END}\nafter\n", encoding="utf-8")
    write_summary(target, page)
    table = (target / TABLE).read_text(encoding="utf-8")
    assert "| `bct` | old features, old classifier |" in table
    assert "| `bt2` | old features, independent model's features |" in table
    assert "| `independent` | nothing |" in table
    assert "8 (96 images)" in table
    mean = np.mean([r["report"]["matrix"]["old/old"]["map"] for r in finished[1]])
    assert f"| *old model, old gallery* | – | {100 * mean:.1f} [" in table
    for name in ("update_gain.png", "cross_self.png"):
        assert (target / name).read_bytes().startswith(b"\x89PNG")
        assert f"]({name})" in table
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{BEGIN}\nData: icons")
    assert text.endswith(f"(../bench/cross_self.png)\n{END}\nafter\n")
    assert "old text" not in text


def test_single_seed_has_its_interval_over_queries(finished, tmp_path):
    target = copy(finished[0], tmp_path / "one")
    for path in target.glob("*-seed1.json"):
        path.unlink()
    write_summary(target)
    report = load_records(target)[0]["report"]
    low, high = report["intervals"]["old/old"]["map"]
    value = report["matrix"]["old/old"]["map"]
    cell = f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    assert cell in (target / TABLE).read_text(encoding="utf-8")


def test_table_refuses(finished, tmp_path):
    with pytest.raises(ValueError, match="expected results of fcl bench-methods"):
        write_summary(tmp_path)
    target = copy(finished[0], tmp_path / "mixed")
    record = load_records(target)[0]
    record["config"]["label_noise"] = 0.25
    save_record(record_path(target, "l2", 0), record)
    with pytest.raises(ValueError, match=r"of another setting than .*\(label_noise differ\)"):
        write_summary(target)
    page = tmp_path / "page.md"
    page.write_text("no markers", encoding="utf-8")
    with pytest.raises(ValueError, match="expected the lines <!-- bench-methods: begin"):
        write_summary(finished[0], page)


def test_command(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(DEFAULTS, "icons", CONFIG)
    monkeypatch.setattr(sources, "load_icons", lambda: images)
    command = ["bench-methods", "--out", str(tmp_path), "--methods", "independent, l2"]
    options = ["--label-noise", "0.2", "--classes", "open", "--images-per-class", "6"]
    assert main([*command, *options, "--seeds", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [run["config"]["method"] for run in result["runs"]] == ["independent", "l2"]
    config = result["runs"][0]["config"]
    assert (config["label_noise"], config["classes"], config["images_per_class"]) == (
        0.2,
        "open",
        6,
    )
    assert config["train"]["seed"] == 3
    (tmp_path / TABLE).unlink()
    assert main(["bench-methods", "--out", str(tmp_path), "--table"]) == 0
    assert "Label noise in the new training set: 20 %." in (tmp_path / TABLE).read_text(
        encoding="utf-8"
    )
    assert main([*command, "--seeds", "3"]) == 2
    assert "classes, images_per_class, label_noise differ" in capsys.readouterr().err


def test_fashion_mnist_runs(tmp_path, capsys):
    rng = np.random.default_rng(0)
    labels = (np.arange(400) % 10).astype(np.uint8)
    images = (20 * labels[:, None, None] + rng.integers(0, 50, (400, 28, 28))).astype(np.uint8)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        (tmp_path / f"t10k-{name}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
    out = tmp_path / "out"
    command = ["bench-methods", "--dataset", "fashion-mnist", "--path", str(tmp_path), "--quick"]
    assert main([*command, "--methods", "l2", "--out", str(out), "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["data"]["new"] == {"classes": 6, "images": 240}
    assert run["report"]["num_queries"] == 80


def test_command_tells_of_failed_runs_and_writes_the_table(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(settings.DEFAULTS, "icons", CONFIG)
    monkeypatch.setattr(sources, "load_icons", lambda: images)
    # With so few images no old feature is credible to NCCL.
    command = ["bench-methods", "--out", str(tmp_path), "--methods", "nccl,l2"]
    assert main(command) == 2
    assert (
        "1 runs failed, the others are done: seed 0: nccl: max_entropy" in capsys.readouterr().err
    )
    assert "| `l2` |" in (tmp_path / TABLE).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "icon"], "--dataset: unknown name 'icon'; did you mean 'icons'?"),
        (["--seeds", "one"], "--seeds: expected integers by commas, got 'one'"),
        (["--methods", "bctt"], "unknown name 'bctt'"),
        (["--classes", "closed"], "classes: expected one of"),
        (["--path", "x"], "path: icons are drawn from a package and take none: 'x'"),
        (["--dataset", "fashion-mnist", "--path", "x"], "Fashion-MNIST: x/"),
    ],
)
def test_command_refuses(tmp_path, capsys, options, message):
    assert main(["bench-methods", "--out", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err
