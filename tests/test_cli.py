# SPDX-License-Identifier: Apache-2.0
"""The command ``fcl``, end to end on a few real drawings, and everything it refuses."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fclearn.cli import main
from fclearn.datasets import load_icons
from fclearn.features import FeatureStore, FeatureWriter, Fingerprint
from fclearn.graph import KnnGraph
from fclearn.methods import METHODS, build_method
from fclearn.training import DivergenceError, Trainer

VERBS = [
    *(
        "demo",
        "train",
        "upgrade",
        "embed",
        "graph",
        "walk",
        "eval",
        "probe",
        "adapt",
        "export",
        "plan",
    ),
    *("pull", "push", "rollback", "report", "methods", "bench-methods", "bench-chain", "doctor"),
]
TINY = ["data.size=16", "data.grey=true", "train.batch_size=8", "encoder.dim=8", "device=cpu"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of the drawings of a few icon classes."""
    root = tmp_path_factory.mktemp("images")
    icons = load_icons().select_classes(range(4))
    for row, label in enumerate(icons.labels):
        folder = root / icons.class_names[label]
        folder.mkdir(exist_ok=True)
        Image.fromarray(icons.images[row]).save(folder / f"{row}.png")
    return root


@pytest.fixture(scope="module")
def work(photos, tmp_path_factory):
    """An old and a compatible new model, and their stores: what the commands make in order."""
    root = tmp_path_factory.mktemp("work")
    data = ["data.kind=folder", f"data.path={photos}", *TINY]
    commands = [
        ["train", *data, "method.name=independent", "train.epochs=1", f"output={root}/old"],
        ["embed", f"{root}/old", str(photos), "--out", f"{root}/old-store"],
        ["train", *data, f"old_features={root}/old-store", "train.epochs=2", f"output={root}/new"],
        ["embed", f"{root}/new", str(photos), "--out", f"{root}/new-store"],
    ]
    for command in commands:
        assert main(command) == 0
    return root


@pytest.fixture
def fcl(capsys):
    """Run a command; its exit code, its JSON (None without) and its messages."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return code, json.loads(output.out) if output.out else None, output.err

    return run


def refused(result, *parts):
    """Exit code 2, nothing on stdout, and exactly one line with all parts."""
    code, output, error = result
    assert code == 2
    assert output is None
    assert error.startswith("fcl: error: ")
    assert error.count("\n") == 1
    assert error.endswith("\n")
    for part in parts:
        assert part in error
    return True


def test_training_leaves_a_model_folder(work):
    for name in ("old", "new"):
        files = {path.name for path in (work / name).iterdir()}
        assert files == {
            "args.yaml",
            "checkpoint.pt",
            "classes.txt",
            "classifier.npy",
            "history.csv",
            "model.json",
            "model.safetensors",
            *(["old_fingerprint.json"] if name == "new" else []),
        }
    card = json.loads((work / "new" / "model.json").read_text(encoding="utf-8"))
    assert (card["encoder"], card["dim"], card["channels"]) == ("small-cnn", 8, 1)
    assert (card["size"], card["grey"]) == (16, True)
    assert card["fingerprint"] == FeatureStore.open(work / "new-store").fingerprint.to_dict()


def test_stores_of_two_models_differ_in_fingerprint(work):
    old, new = FeatureStore.open(work / "old-store"), FeatureStore.open(work / "new-store")
    assert old.ids == new.ids
    assert old.fingerprint != new.fingerprint
    np.testing.assert_allclose(np.linalg.norm(new.features, axis=1), 1, atol=1e-6)


def test_train_again_is_at_once_done(work, fcl):
    code, result, _ = fcl("train", "--config", work / "new" / "args.yaml", "--json")
    assert code == 0
    assert result["epochs"] == 2
    assert result["last_epoch"]["epoch"] == 2
    assert result["model"] == FeatureStore.open(work / "new-store").fingerprint.to_dict()


def test_embed_says_what_it_wrote(work, photos, fcl, tmp_path):
    store = tmp_path / "half"
    name = sorted(folder.name for folder in photos.iterdir())[1]
    code, result, _ = fcl(
        *("embed", work / "new", photos, "--out", store, "--json"),
        *("--class", name, "--dtype", "float16", "--batch-size", 2),
    )
    assert code == 0
    opened = FeatureStore.open(store)
    assert result["rows"] == len(opened) == len(list((photos / name).iterdir()))
    assert result["dim"] == 8
    assert opened.features.dtype == np.float16
    assert set(opened.manifest["class_name"]) == {name}


def test_graph(work, fcl, tmp_path):
    path = tmp_path / "graph.safetensors"
    code, result, _ = fcl("graph", work / "old-store", "--k", 3, "--out", path, "--json")
    assert code == 0
    graph = KnnGraph.load(path)
    assert result["nodes"] == graph.num_nodes == len(FeatureStore.open(work / "old-store"))
    assert result["edges"] == graph.num_edges == 3 * graph.num_nodes
    assert graph.mode == result["mode"] == "row"
    sums = torch.zeros(graph.num_nodes).index_add_(
        0, torch.arange(graph.num_nodes).repeat_interleave(3), graph.values
    )
    torch.testing.assert_close(sums, torch.ones_like(sums))


def test_within_class_graph(work, fcl, tmp_path):
    path = tmp_path / "graph.safetensors"
    code, result, _ = fcl(
        "graph", work / "old-store", "--k", 2, "--within-class", "--out", path, "--json"
    )
    assert code == 0
    assert result["within_class"] is True
    graph = KnnGraph.load(path)
    labels = torch.from_numpy(FeatureStore.open(work / "old-store").labels)
    rows = torch.arange(graph.num_nodes).repeat_interleave(graph.crow_indices.diff())
    assert (labels[rows] == labels[graph.col_indices.long()]).all()


def test_walk(work, fcl, tmp_path, monkeypatch):
    graph, out = tmp_path / "graph.safetensors", tmp_path / "walked"
    before = FeatureStore.open(work / "old-store")
    assert fcl("graph", work / "old-store", "--k", 3, "--out", graph)[0] == 0
    command = ["walk", graph, work / "old-store", "--out", out, "--damping", 0.4]

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FeatureWriter, "finish", stop)
        assert fcl(*command)[0] == 130
    assert not out.exists()
    code, result, _ = fcl(*command, "--json")
    assert code == 0
    assert result["rows"] == len(before)
    walked = FeatureStore.open(out)
    assert walked.ids == before.ids
    assert walked.fingerprint == before.fingerprint
    features = torch.tensor(before.features)
    expected = KnnGraph.load(graph).walk(features, 0.4, num_steps=10)
    expected = torch.nn.functional.normalize(expected, dim=1)
    torch.testing.assert_close(torch.tensor(walked.features), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph.safetensors", "walked"]


def test_refused_walks(work, fcl, tmp_path):
    store, graph = work / "old-store", tmp_path / "graph.safetensors"
    missing = fcl("walk", graph, store, "--out", tmp_path / "out")
    assert refused(missing, "no such graph file")
    np.save(tmp_path / "plain.npy", np.eye(4, dtype=np.float32))
    assert fcl("graph", tmp_path / "plain.npy", "--k", 2, "--out", graph)[0] == 0
    other = fcl("walk", graph, store, "--out", tmp_path / "out")
    assert refused(other, "features: expected one row per node, 4")
    assert refused(fcl("walk", graph, store, "--out", store), "--out: expected another folder")
    damping = fcl("walk", graph, store, "--out", tmp_path / "out", "--damping", 1)
    assert refused(damping, "features: expected one row per node, 4")


def evaluate(work, *more):
    return ["eval", "--old-query", work / "old-store", "--new-query", work / "new-store", *more]


def test_eval_prints_a_table_and_a_verdict(work, fcl):
    code, result, error = fcl(*evaluate(work))
    assert code == 0
    assert result is None
    assert "new/old" in error
    assert "mAP" in error


def test_eval_json_and_gates(work, fcl):
    passing = ["--gate", "new/new.map>=0", "--gate", "negative_flip_rate <= 1"]
    code, result, error = fcl(*evaluate(work, "--json", "--num-bootstrap", 20, *passing))
    assert code == 0
    assert result["passed"] is True
    assert [gate["passed"] for gate in result["gates"]] == [True, True]
    assert set(result["matrix"]) == {"old/old", "new/old", "new/new"}
    assert result["update_gain"] is None
    assert "gate passed: new/new.map>=0" in error

    code, result, error = fcl(*evaluate(work, "--json", "--gate", "new/old.map>1", *passing))
    assert code == 1
    assert result["passed"] is False
    assert [gate["passed"] for gate in result["gates"]] == [False, True, True]
    assert result["gates"][0]["value"] == result["matrix"]["new/old"]["map"]
    assert "gate FAILED: new/old.map>1" in error


def test_gates_compare_entries(work, fcl):
    _, result, _ = fcl(*evaluate(work, "--json"))
    better = result["matrix"]["new/old"]["map"] > result["matrix"]["old/old"]["map"]
    code, _, _ = fcl(*evaluate(work, "--gate", "new/old.map>old/old.map"))
    assert code == (0 if better else 1)


def test_an_own_gallery_leaves_out_the_query_itself(work, fcl):
    _, alone, _ = fcl(*evaluate(work, "--json", "--num-bootstrap", 5))
    both = ["--old-gallery", work / "old-store", "--new-gallery", work / "new-store"]
    _, named, _ = fcl(*evaluate(work, *both, "--json", "--num-bootstrap", 5))
    assert alone == named
    assert alone["matrix"]["old/old"]["map"] < 1


def write_store(path, rows, labels, model="m", ids=None, **columns):
    rows = np.asarray(rows, dtype=np.float32)
    ids = [f"i{n}" for n in range(len(rows))] if ids is None else ids
    return FeatureStore.write(
        path, rows, {"id": ids, "label": labels, **columns}, Fingerprint(model, rows.shape[1])
    ).path


def synthetic(tmp_path):
    """Old features that confuse two classes, new ones that do not, the latter in another order."""
    generator = np.random.default_rng(0)
    labels = np.arange(40) % 4
    clean = np.eye(4)[labels] + 0.1 * generator.normal(size=(40, 4))
    noisy = clean + 0.6 * generator.normal(size=(40, 4))
    order = generator.permutation(40)
    ids = [f"i{row}" for row in order]
    return {
        "old": write_store(tmp_path / "old", noisy, labels, "old"),
        "new": write_store(tmp_path / "new", clean[order], labels[order], "new", ids),
        "independent": write_store(tmp_path / "ind", clean, labels, "ind"),
    }


def test_eval_with_an_independent_model_matches_rows_by_id(fcl, tmp_path):
    stores = synthetic(tmp_path)
    code, result, _ = fcl(
        *("eval", "--old-query", stores["old"], "--new-query", stores["new"]),
        *("--independent-query", stores["independent"], "--json"),
        *("--gate", "update_gain>=0.2", "--gate", "self_test_tax<=0"),
    )
    assert code == 0
    # The new and the independent features are the same rows in another order.
    assert result["matrix"]["new/new"] == pytest.approx(result["matrix"]["independent/independent"])
    assert result["self_test_tax"] == pytest.approx(0)


def test_an_update_gain_without_a_value_fails_its_gate(fcl, tmp_path):
    stores = synthetic(tmp_path)
    code, result, error = fcl(
        *("eval", "--old-query", stores["independent"], "--new-query", stores["new"]),
        *("--independent-query", stores["independent"], "--json", "--gate", "update_gain>=0"),
    )
    assert code == 1
    assert result["gates"] == [{"gate": "update_gain>=0", "value": None, "passed": False}]
    assert "update_gain is undefined" in error


def test_eval_with_groups(fcl, tmp_path):
    """Twins of one group are all that old features match: without them nothing is right."""
    rows = np.repeat(np.eye(4), 2, axis=0)
    store = write_store(
        tmp_path / "s", rows, [0, 0, 1, 1, 0, 0, 1, 1], group=[0, 0, 1, 1, 2, 2, 3, 3]
    )
    first_hits = []
    for more in ([], ["--use-groups"]):
        _, result, _ = fcl("eval", "--old-query", store, "--new-query", store, "--json", *more)
        first_hits.append(result["matrix"]["old/old"]["cmc@1"])
    assert first_hits[0] == 1
    assert first_hits[1] < 1


@pytest.mark.parametrize(
    ("gate", "part"),
    [
        ("new/old.map", "--gate: expected NAME>=NUMBER (or <=, >, <), as in update_gain>=0.2"),
        ("new/old.mapp>0", "unknown name 'new/old.mapp'; did you mean 'new/old.map'?"),
        ("new/old.map>nan", "unknown name 'nan'"),
        ("update_gain>0", "update_gain needs --independent-query"),
    ],
)
def test_refused_gates(work, fcl, gate, part):
    assert refused(fcl(*evaluate(work, "--gate", gate)), part)


def test_eval_refuses_stores_that_do_not_agree(fcl, work, tmp_path):
    old, new = work / "old-store", work / "new-store"
    assert refused(
        fcl("eval", "--old-query", old, "--old-gallery", new, "--new-query", new),
        "--old-query and --old-gallery: refusing to mix features: model 'small-cnn independent",
    )
    few = write_store(tmp_path / "few", np.ones((2, 8)), [0, 1])
    assert refused(
        fcl("eval", "--old-query", old, "--new-query", few), f"{few}: no features for", " ids of "
    )
    assert refused(
        fcl("eval", "--old-query", old, "--new-query", tmp_path / "none"),
        "expected the folder of a feature store, found nothing",
    )
    assert refused(fcl(*evaluate(work, "--use-groups")), "--use-groups needs a column 'group'")
    assert refused(fcl(*evaluate(work, "--new-gallery", new)), "--old-gallery: expected one")
    assert refused(
        fcl(*evaluate(work, "--old-gallery", old, "--independent-query", new)),
        "--independent-query and --independent-gallery: expected both or neither",
    )
    assert refused(fcl(*evaluate(work, "--metrics", "map,nap")), "nap")


def train(photos, output, *more):
    return ["train", "data.kind=folder", f"data.path={photos}", *TINY, f"output={output}", *more]


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["train.epoch=1"], ["unknown key 'train.epoch'; did you mean 'train.epochs'?"]),
        (["train.epochs"], ["expected key=value, as in train.epochs=5, got 'train.epochs'"]),
        (["train.epochs=few"], ["train.epochs: expected an integer, got 'few' (text)"]),
        (["method.name=ni-fc"], ["method: unknown name 'ni-fc'; did you mean 'ni-fcl'?"]),
        ([], ["old_features: method 'ni-fcl' needs the old model's features", "give a store"]),
        (
            ["method.name=bt2", "old_features=OLD"],
            ["independent_features: method 'bt2' needs the independent", "give a store"],
        ),
        (["method.name=bct", "old_features=OLD"], ["method 'bct' needs the old classifier"]),
        (
            ["old_features=OLD", "method.settings.scal=3"],
            ["method 'ni-fcl' has no setting 'scal'; did you mean 'scale'?"],
        ),
        (["old_features=OLD", "encoder.dim=4"], ["dim: expected at least the 8 dims"]),
        (["method.name=independent", "encoder.name=small"], ["encoder: expected one of"]),
        (["method.name=independent", "device=tpu9"], ["device: expected auto, cpu, cuda"]),
        (["method.name=independent", "device=cuda:99"], ["device: torch sees ", "'cuda:99'"]),
        (["method.name=independent", "train.batch_size=999"], ["batch_size: expected at most"]),
        (["method.name=independent", "data.classes=[nothing]"], ["data.classes: no class 'noth"]),
        (["method.name=independent", "data.path=/nowhere"], ["/nowhere is not a folder"]),
    ],
)
def test_refused_trainings(work, photos, fcl, tmp_path, overrides, parts):
    overrides = [text.replace("OLD", str(work / "old-store")) for text in overrides]
    assert refused(fcl(*train(photos, tmp_path / "run", *overrides)), *parts)


def test_other_settings_do_not_resume_a_run(work, photos, fcl):
    result = fcl(*train(photos, work / "new", f"old_features={work}/old-store", "train.epochs=9"))
    assert refused(result, "holds a run with other settings", "train.epochs was 2 and is 9")


def test_old_features_are_matched_by_id(work, photos, fcl, tmp_path):
    old = FeatureStore.open(work / "old-store")
    order = np.arange(len(old))[::-1].copy()
    rows, labels, ids = old.subset(order)
    names = [old.manifest["class_name"][row] for row in order]
    turned = write_store(tmp_path / "turned", rows, labels, ids=ids, class_name=names)
    run = tmp_path / "run"
    assert fcl(*train(photos, run, f"old_features={turned}", "train.epochs=2"))[0] == 0
    assert history(run) == history(work / "new")

    missing = write_store(tmp_path / "missing", rows[1:], labels[1:], ids=ids[1:])
    result = fcl(*train(photos, tmp_path / "x", f"old_features={missing}"))
    assert refused(result, f"no features for 1 of the {len(old)} ids of the images: '{ids[0]}'")

    labels[0] += 1
    mislabelled = write_store(tmp_path / "mislabelled", rows, labels, ids=ids)
    result = fcl(*train(photos, tmp_path / "x", f"old_features={mislabelled}"))
    assert refused(result, f"1 of {len(old)} labels differ", f"'{ids[0]}' is {labels[0]} there")

    names[0] = "else"
    renamed = write_store(tmp_path / "renamed", rows, labels, ids=ids, class_name=names)
    result = fcl(*train(photos, tmp_path / "x", f"old_features={renamed}"))
    assert refused(result, f"'{ids[0]}' is 'else' there and ")


def test_refused_config_files(fcl, tmp_path):
    path = tmp_path / "c.yaml"
    assert refused(fcl("train", "--config", path), f"{path}: No such file or directory")
    path.write_text("train: {epoch: 3}\n", encoding="utf-8")
    assert refused(fcl("train", "--config", path), "did you mean 'train.epochs'?")
    path.write_text("train: {epochs\n", encoding="utf-8")
    assert refused(fcl("train", "--config", path), f"{path}: not valid yaml")


def test_an_output_that_cannot_be_written(work, photos, fcl, tmp_path):
    file = tmp_path / "file"
    file.write_text("in the way", encoding="utf-8")
    result = fcl(*train(photos, file / "run", "method.name=independent"))
    assert refused(result, "Not a directory")
    graph = ["graph", work / "old-store", "--k", 2, "--out", file / "g.safetensors"]
    assert refused(fcl(*graph), str(file))
    assert refused(fcl("embed", work / "old", photos, "--out", file), f"{file}: expected nothing")


def test_refused_models(work, photos, fcl, tmp_path):
    store = tmp_path / "store"
    assert refused(fcl("embed", tmp_path, photos, "--out", store), "expected a model written by")
    model = tmp_path / "model"
    model.mkdir()
    for name in ("model.json", "model.safetensors"):
        (model / name).write_bytes((work / "old" / name).read_bytes())
    weights = (model / "model.safetensors").read_bytes()
    for damaged in (weights[:-4], b"", (work / "new" / "model.safetensors").read_bytes()):
        (model / "model.safetensors").write_bytes(damaged)
        assert refused(fcl("embed", model, photos, "--out", store), "damaged, or not the weights")
    (model / "model.json").write_text('{"encoder": "small-cnn", "dimm": 3}', encoding="utf-8")
    assert refused(fcl("embed", model, photos, "--out", store), "unknown key 'dimm'")
    assert not store.exists()


def test_refused_embeddings(work, fcl, tmp_path):
    out = ["--out", tmp_path / "store"]
    assert refused(fcl("embed", work / "old", "iconss", *out), "data: expected icons, fashion-")
    dtype = ["--dtype", "int8"]
    assert refused(fcl("embed", work / "old", "icons", *dtype, *out), "--dtype: expected float32")
    unknown = ["--class", "no such icon"]
    assert refused(fcl("embed", work / "old", "icons", *unknown, *out), "no class 'no such icon'")


def test_refused_graphs(work, fcl, tmp_path):
    graph = ["graph", work / "old-store", "--out", tmp_path / "g"]
    assert refused(fcl(*graph, "--k", 999), "k: expected fewer neighbours than rows")
    assert refused(fcl(*graph, "--k", 3, "--mode", "rows"), "mode: expected 'row', 'symmetric'")
    assert refused(fcl(*graph, "--k", 3, "--temperature", 0), "temperature: expected a positive")
    np.save(tmp_path / "plain.npy", np.eye(4, dtype=np.float32))
    plain = ["graph", tmp_path / "plain.npy", "--out", tmp_path / "g", "--k", 2]
    assert refused(fcl(*plain, "--within-class"), "expected the folder of a feature store")
    assert fcl(*plain)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["trian"], "No such command 'trian'"),
        (["train", "--epochs", "3"], "No such option: --epochs"),
        (["embed"], "Missing argument 'MODEL_DIR'"),
        (["eval", "--old-query", "x"], "Missing option '--new-query'"),
        (["graph", "x", "--out", "y", "--k", "three"], "--k"),
    ],
)
def test_usage_errors(fcl, arguments, part):
    assert refused(fcl(*arguments), part)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_has_an_example(verb, capsys):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Examples:" in text
    assert f"fcl {verb}" in text


def test_help_lists_the_verbs(capsys):
    for arguments in ([], ["--help"]):
        assert main(arguments) == 0
        text = capsys.readouterr().out
        assert all(verb in text for verb in VERBS)


def test_methods(fcl, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["methods"]) == 0
    text = capsys.readouterr().out
    assert all(f" {name} " in text for name in METHODS)
    assert "instance_weight=1.0" in text
    _, result, _ = fcl("methods", "--json")
    methods = {method["name"]: method for method in result["methods"]}
    assert list(methods) == list(METHODS)
    assert methods["ni-fcl"]["needs"] == ["labels", "feature_cache"]
    assert methods["ni-fcl"]["settings"]["scale"] == 10


def test_one_method_explained(fcl, capsys):
    assert main(["methods", "bct"]) == 0
    text = capsys.readouterr().out
    for part in (METHODS["bct"].title, METHODS["bct"].source, METHODS["bct"].idea):
        assert part in text
    assert "  the old classifier (old_classifier)" in text
    assert "  scale=10.0" in text
    _, result, _ = fcl("methods", "bct", "--json")
    assert result["idea"] == METHODS["bct"].idea
    assert result["needs"] == ["labels", "feature_cache", "old_classifier"]
    assert refused(fcl("methods", "bc"), "method: unknown name 'bc'; did you mean 'bct'?")


@pytest.fixture
def old_head(work, tmp_path):
    """Rows of an old classifier for three of the four classes, in another order, and one more."""
    names = sorted(set(FeatureStore.open(work / "old-store").manifest["class_name"]))
    rows = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    (tmp_path / "names.txt").write_text("\n".join([names[2], "extinct", names[0], names[1]]))
    return [
        "method.name=bct",
        "train.epochs=1",
        f"old_features={work}/old-store",
        f"independent_features={work}/new-store",
        f"old_classifier={tmp_path}/rows.npy",
        f"old_classes={tmp_path}/names.txt",
    ]


def test_an_old_classifier_arrives_by_class_name(photos, fcl, tmp_path, old_head, monkeypatch):
    seen = []

    def spy(name, assets, dim, **settings):
        seen.append(assets)
        return build_method(name, assets, dim, **settings)

    monkeypatch.setattr("fclearn.cli.train_run.build_method", spy)
    code, _, messages = fcl(*train(photos, tmp_path / "run", *old_head))
    assert code == 0
    assert "1 of the 4 rows of the old classifier are of classes without images" in messages
    (assets,) = seen
    assert assets.old_classes.tolist() == [2, 0, 1]
    np.testing.assert_array_equal(assets.old_classifier, np.load(tmp_path / "rows.npy")[[0, 2, 3]])


@pytest.fixture
def one_thread():
    """Batches this small gain nothing from threads, and lose much where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_trained(photos, fcl, tmp_path, old_head, name):
    # The old model of these tests has hardly been trained: none of its answers is credible.
    settings = ["method.settings.max_entropy=1"] if name == "nccl" else []
    run = tmp_path / "run"
    command = train(photos, run, *old_head, *settings, "--method", name, "--json")
    code, result, _ = fcl(*command)
    assert code == 0
    assert f" {name} " in result["model"]["model"]
    assert (run / "model.safetensors").is_file()


def test_settings_that_are_true_or_text(photos, fcl, tmp_path, old_head):
    settings = ["method.settings.symmetric=true", "method.settings.loss=triplet"]
    command = train(photos, tmp_path / "run", *old_head, *settings, "--method", "aml")
    assert fcl(*command)[0] == 0
    assert fcl("train", "--config", tmp_path / "run" / "args.yaml")[0] == 0
    code, _, error = fcl(*command, "method.settings.symmetric=1", f"output={tmp_path}/other")
    assert code == 2
    assert "error: symmetric: method 'aml' expects true or false as its default False" in error


def test_refused_old_classifiers(photos, fcl, tmp_path, old_head):
    def result(*more):
        return fcl(*train(photos, tmp_path / "run", *old_head, *more))

    assert refused(result("old_classes=null"), "old_classes: expected beside old_classifier")
    assert refused(
        result("old_classifier=null"),
        "old_classifier: method 'bct' needs the old classifier",
        "as in old_classifier=rows.npy old_classes=names.txt",
    )
    assert refused(
        result("old_classifier=null", "method.name=ni-fcl"),
        "old_classifier: expected beside old_classes",
    )
    assert refused(result("old_classifier=/nowhere.npy"), "/nowhere.npy: expected a .npy file")
    assert refused(result("old_classes=/nowhere.txt"), "/nowhere.txt: No such file")
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\n")
    assert refused(result(), "names.txt: expected one class name", "of the 4 rows", "got 3 lines")
    names.write_text("a\nb\nc\na\n")
    assert refused(result(), "names.txt: expected distinct class names, got 'a' twice")
    names.write_text("a\nb\nc\nd\n")
    assert refused(result(), "names.txt: none of its 4 classes is one of the images', such as '")
    np.save(tmp_path / "rows.npy", np.full((4, 8), np.nan, np.float32))
    assert refused(result(), "names.txt: none of its 4 classes")


def test_a_diverged_training_is_one_line(photos, fcl, tmp_path, monkeypatch):
    def diverge(_self):
        raise DivergenceError("the loss is nan in epoch 1")

    monkeypatch.setattr(Trainer, "fit", diverge)
    code, _, error = fcl(*train(photos, tmp_path / "run", "method.name=independent"))
    assert code == 2
    started, message = error.splitlines()
    assert started.startswith("training independent")
    assert message == "fcl: error: the loss is nan in epoch 1"


def test_tracebacks_on_demand_and_for_bugs(photos, fcl, tmp_path, monkeypatch):
    monkeypatch.setenv("FCL_DEBUG", "1")
    code, _, error = fcl("train", "train.epoch=1")
    assert code == 2
    assert "Traceback" in error
    assert error.splitlines()[-1].startswith("fcl: error: config: unknown key")

    def fail(_self):
        raise ZeroDivisionError("ours")

    monkeypatch.delenv("FCL_DEBUG")
    monkeypatch.setattr(Trainer, "fit", fail)
    code, _, error = fcl(*train(photos, tmp_path / "run", "method.name=independent"))
    assert code == 70
    assert "Traceback" in error
    assert error.splitlines()[-1] == "fcl: error: ours"


def history(run):
    """What training decides; not how fast it was."""
    with (run / "history.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        {key: row[key] for key in row if key not in {"seconds", "images_per_second"}}
        for row in rows
    ]


def process(arguments, **options):
    # As many threads as here: sums in another order would differ in the last bit.
    path = os.pathsep.join(entry for entry in sys.path if entry)
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": path}
    return subprocess.Popen(
        [sys.executable, "-m", "fclearn.cli", *map(str, arguments)],
        env=environment,
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        **options,
    )


def test_interrupted_training_resumes_to_the_same_end(photos, fcl, tmp_path):
    more = ["method.name=independent", "train.epochs=60"]
    command = train(photos, tmp_path / "run", *more)
    running = process(command)
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "history.csv").is_file():
        assert running.poll() is None, running.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    running.send_signal(signal.SIGINT)
    _, error = running.communicate(timeout=60)
    assert running.returncode == 130
    last = error.splitlines()[-1]
    assert last.startswith("fcl: interrupted: the checkpoint of the last whole epoch is kept in ")
    assert last.endswith("checkpoint.pt; the same command resumes")
    assert "Traceback" not in error
    assert 1 <= len(history(tmp_path / "run")) < 60
    assert not (tmp_path / "run" / "model.json").exists()

    assert fcl(*command)[0] == 0
    assert fcl(*train(photos, tmp_path / "undisturbed", *more))[0] == 0
    assert history(tmp_path / "run") == history(tmp_path / "undisturbed")
    cards = [(tmp_path / name / "model.json").read_text() for name in ("run", "undisturbed")]
    assert cards[0] == cards[1]


def test_interrupted_before_anything_was_kept(fcl, monkeypatch):
    def stop(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("fclearn.graph.KnnGraph.build", stop)
    monkeypatch.setattr("fclearn.features.as_features", lambda path: path)
    code, _, error = fcl("graph", "store", "--out", "graph")
    assert code == 130
    assert error == "fcl: interrupted: what was finished is kept; the same command resumes\n"


def test_the_command_starts_without_torch():
    code = (
        "import sys, fclearn.cli\n"
        "assert fclearn.cli.main(['--help']) == 0\n"
        "assert fclearn.cli.main(['train', '--help']) == 0\n"
        "slow = {'torch', 'numpy', 'matplotlib', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'imported {slow}' if slow else 0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_the_module_is_the_command():
    running = process(["eval"])
    output, error = running.communicate(timeout=60)
    assert running.returncode == 2
    assert output == ""
    assert error == "fcl: error: Missing option '--old-query'.\n"


def test_demo_passes_its_options_on(fcl, monkeypatch, tmp_path):
    calls = []

    def run_demo(output, **options):
        calls.append((Path(output), options))
        print("progress")
        return {"verdict": {"text": "Worth it."}, "update_gain": float("nan")}

    monkeypatch.setitem(sys.modules, "fclearn.demo", SimpleNamespace(run_demo=run_demo))
    code, result, error = fcl("demo", "--output", tmp_path, "--seed", 3, "--quick", "--json")
    assert code == 0
    assert calls == [(tmp_path, {"seed": 3, "quick": True})]
    assert result == {"verdict": {"text": "Worth it."}, "update_gain": None}
    assert "Worth it." in error
    assert str(tmp_path / "report.html") in error


def test_reports_are_written_and_rebuilt(work, fcl, tmp_path):
    folder = tmp_path / "report"
    code, measured, _ = fcl(*evaluate(work, "--report", folder, "--json", "--num-bootstrap", 9))
    assert code == 0
    (folder / "report.html").unlink()
    code, rebuilt, error = fcl("report", folder, "--json")
    assert code == 0
    assert rebuilt["matrix"] == measured["matrix"]
    assert rebuilt["stores"][0] == str(work / "old-store")
    assert (folder / "report.html").stat().st_size > 10_000
    assert str(folder / "report.html") in error

    assert refused(fcl("report", tmp_path), "expected the folder of a report, found no report.json")
    (folder / "report.json").write_text("{", encoding="utf-8")
    assert refused(fcl("report", folder), "report.json: not JSON")
    (folder / "report.json").write_text("{}", encoding="utf-8")
    assert refused(fcl("report", folder), "is not that of a report")


def test_a_reader_that_stops_reading_is_no_error():
    command = [sys.executable, "-m", "fclearn.cli", "methods", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 141
    assert errors == b""
