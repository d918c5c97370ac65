# SPDX-License-Identifier: Apache-2.0
"""The command ``fcl`` itself: verbs, help, usage errors, interrupts, tracebacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cli_samples import process, refused, train

from fclearn.cli import main
from fclearn.methods import METHODS
from fclearn.training import Trainer

VERBS = [
    *("demo", "train", "upgrade", "embed", "graph", "walk", "eval", "probe", "adapt", "export"),
    *("plan", "pull", "push", "rollback", "report", "methods", "bench-methods", "bench-chain"),
    "doctor",
]


def test_an_output_that_cannot_be_written(work, photos, fcl, tmp_path):
    file = tmp_path / "file"
    file.write_text("in the way", encoding="utf-8")
    result = fcl(*train(photos, file / "run", "method.name=independent"))
    assert refused(result, "Not a directory")
    graph = ["graph", work / "old-store", "--k", 2, "--out", file / "g.safetensors"]
    assert refused(fcl(*graph), str(file))
    assert refused(fcl("embed", work / "old", photos, "--out", file), f"{file}: expected nothing")


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


def test_interrupted_before_anything_was_kept(fcl, tmp_path, monkeypatch):
    def stop(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("fclearn.graph.KnnGraph.build", stop)
    np.save(tmp_path / "rows.npy", np.eye(3, dtype=np.float32))
    code, _, error = fcl("graph", tmp_path / "rows.npy", "--out", tmp_path / "graph")
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
    code, result, error = fcl("demo", "--out", tmp_path, "--seed", 3, "--quick", "--json")
    assert code == 0
    assert calls == [(tmp_path, {"seed": 3, "quick": True})]
    assert result == {"verdict": {"text": "Worth it."}, "update_gain": None}
    assert "Worth it." in error
    assert str(tmp_path / "report.html") in error


def test_a_reader_that_stops_reading_is_no_error():
    command = [sys.executable, "-m", "fclearn.cli", "methods", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 141
    assert errors == b""
