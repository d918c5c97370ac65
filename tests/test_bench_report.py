# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' own tools: summary, regression check, interleaving."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture(scope="module")
def report():
    spec = importlib.util.spec_from_file_location("bench_report", BENCH / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _raw(ratio):
    return {
        "datetime": "2026-01-02T03:04:05",
        "machine_info": {
            "cpu": {"brand_raw": "a cpu"},
            "torch": "2",
            "threads": 2,
            "fcl_isa": "avx2",
            "python": "3.11",
        },
        "benchmarks": [
            {
                "group": "loss 1x2x3",
                "name": "test_loss[naive-1x2x3]",
                "stats": {"median": 0.5},
                "extra_info": {"peer": "naive", "ratio": ratio, "seconds": 0.25},
            }
        ],
    }


def test_a_ratio_that_fell_is_a_regression(report):
    before, same, worse = (report.summarise(_raw(ratio)) for ratio in (4.0, 3.9, 2.0))
    assert before["benchmarks"][0]["seconds"] == 0.25
    assert report.regressions(same, before) == []
    (line,) = report.regressions(worse, before)
    assert "naive took 2.00 times our time, 4.00 in the committed results of 2026-01-02" in line
    assert report.compared(worse, before) == 1
    for other in {"fcl_isa": "avx512"}, {"cpu": "another cpu"}, {"threads": 4}:
        assert report.regressions({**worse, **other}, before) == []
        assert report.compared({**worse, **other}, before) == 0


def test_command_line(report, tmp_path, monkeypatch, capsys):
    raw, kept = tmp_path / "raw.json", tmp_path / "kept.json"
    raw.write_text(json.dumps(_raw(4.0)))
    monkeypatch.setattr(sys, "argv", ["report.py", str(raw), "--write", str(kept)])
    assert report.main() == 0
    assert "loss 1x2x3" in capsys.readouterr().out
    raw.write_text(json.dumps(_raw(1.0)))
    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(kept.read_text()) | {"cpu": "another cpu"}))
    monkeypatch.setattr(sys, "argv", ["report.py", str(raw), "--against", str(other), str(kept)])
    assert report.main() == 1
    output = capsys.readouterr()
    assert output.err.count("regression: loss 1x2x3") == 1
    assert f"ratios compared with {other}: 0" in output.out
    assert f"ratios compared with {kept}: 1" in output.out


def test_history_of_committed_results(report, tmp_path):
    spec = importlib.util.spec_from_file_location("bench_history", BENCH / "history.py")
    history = importlib.util.module_from_spec(spec)
    sys.modules["bench_history"] = history  # where a dataclass looks for its annotations
    spec.loader.exec_module(history)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    for ratio in (4.0, 5.0):
        (tmp_path / "cpu.json").write_text(json.dumps(report.summarise(_raw(ratio))))
        subprocess.run([*git, "add", "cpu.json"], check=True)
        subprocess.run([*git, "commit", "-qm", "results"], check=True)
    found = history.series(history.versions("cpu.json", tmp_path))
    (points,) = found.values()
    assert list(found) == [("loss 1x2x3", "naive")]
    assert [point.ratio for point in points] == [4.0, 5.0]
    assert points[0].commit != points[1].commit
    figure = history.draw(found)
    (line, _) = figure.axes[0].lines
    assert list(line.get_ydata()) == [4.0, 5.0]


def test_parts_of_one_run_are_joined(report):
    one, other = _raw(4.0), _raw(3.0)
    rows = report.summarise(report.joined([one, other]))["benchmarks"]
    assert [row["ratio"] for row in rows] == [4.0, 3.0]
    other["machine_info"]["torch"] = "3"
    with pytest.raises(ValueError, match="agree in torch; found 2 and 3"):
        report.joined([one, other])
