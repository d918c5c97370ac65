# SPDX-License-Identifier: Apache-2.0
"""``fcl train`` with every method, and with an old classifier."""

from __future__ import annotations

import numpy as np
import pytest
from cli_samples import refused, train

from fclearn import KnnGraph
from fclearn.features import FeatureStore, as_tensor
from fclearn.methods import METHODS, build_method

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def old_head(work, tmp_path):
    """Rows of an old classifier for three of the four classes, in another order, and one more."""
    names = sorted(set(FeatureStore.open(work / "old-store").manifest["class_name"]))
    rows = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    (tmp_path / "names.txt").write_text("\n".join([names[2], "extinct", names[0], names[1]]))
    write_run(tmp_path / "run.txt", FeatureStore.open(work / "old-store"))
    return [
        "method.name=bct",
        "train.epochs=1",
        f"old_features={work}/old-store",
        f"old_model={work}/old",
        f"independent_features={work}/new-store",
        f"old_classifier={tmp_path}/rows.npy",
        f"old_classes={tmp_path}/names.txt",
        f"old_scores={tmp_path}/run.txt",
    ]


def write_run(path, store, equal=False):
    """What a service with these features finds for each image, as TREC writes it."""
    graph = KnnGraph.build(as_tensor(store), 3)
    lines = []
    for row, name in enumerate(store.ids):
        lines.append(f"{name} Q0 {name} 1 1.0 old")
        for place, edge in enumerate(range(*graph.crow_indices[row : row + 2].tolist())):
            score = 0.5 if equal else float(graph.values[edge])
            found = store.ids[int(graph.col_indices[edge])]
            lines.append(f"{name} Q0 {found} {place + 2} {score!r} old")
    path.write_text("\n".join(lines), encoding="utf-8")


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
    # By the rules of files of ids: a mark of byte order, CR LF, and only line ends end a line.
    names = (tmp_path / "names.txt").read_text("utf-8").replace("extinct", "ex\u2028tin\x1cct")
    written = "\ufeff" + names.replace("\n", "\r\n") + "\r\n\r\n"
    (tmp_path / "names.txt").write_bytes(written.encode())
    assert fcl(*train(photos, tmp_path / "other", *old_head))[0] == 0
    assert seen[1].old_classes.tolist() == [2, 0, 1]


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


def test_an_old_service_is_asked_for_scores_alone(photos, work, fcl, tmp_path):
    def result(*more):
        return fcl(*train(photos, tmp_path / "run", "--method", "ni-fcl-scores", *more))

    run = tmp_path / "scores.txt"
    store = FeatureStore.open(work / "old-store")
    write_run(run, store, equal=True)
    assert refused(
        result(),
        "old_scores: method 'ni-fcl-scores' needs the old service's scores",
        "as in old_scores=run.txt",
    )
    lines = run.read_text(encoding="utf-8").splitlines()
    run.write_text("\n".join(line for line in lines if not line.startswith(store.ids[2])))
    assert refused(
        result(f"old_scores={run}"),
        f"{run}: no list of other images for 1 of the {len(store)} images: '{store.ids[2]}'",
    )
    run.write_text("\n".join(lines))
    code, _, messages = result(f"old_scores={run}", "train.epochs=1")
    assert code == 0
    assert f"{run}: the scores of every list are equal: 1/rank stands for them" in messages
    # Other lists under the same name are not gone on with.
    write_run(run, store)
    (tmp_path / "run" / "model.json").unlink()
    assert refused_after_a_start(result(f"old_scores={run}", "train.epochs=1"), "log_old differ")


def refused_after_a_start(result, part):
    code, output, error = result
    return code == 2 and output is None and part in error.splitlines()[-1]


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
    names.write_text("a\nb\n\nc\n")
    assert refused(result(), "names.txt: expected one class name a line", "got a blank line 3")
    names.write_bytes(b"a\n\xff\n")
    assert refused(result(), "names.txt: expected class names as UTF-8 text, one a line")
    names.write_text("a\nb\nc\na\n")
    assert refused(result(), "names.txt: expected distinct class names, got 'a' twice")
    names.write_text("a\nb\nc\nd\n")
    assert refused(result(), "names.txt: none of its 4 classes is one of the images', such as '")
    np.save(tmp_path / "rows.npy", np.full((4, 8), np.nan, np.float32))
    assert refused(result(), "names.txt: none of its 4 classes")
