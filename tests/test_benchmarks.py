"""The benchmark itself, at a size that proves nothing but that it measures what it says."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sellarec.data.dataset import Dataset
from sellarec.errors import SellarecError

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "benchmarks"))

import engine  # noqa: E402
import exactness  # noqa: E402
import histories  # noqa: E402
import label_leak  # noqa: E402


def bench(table, backbone, where, *more):
    """What `sellarec bench` prints, and the measurements of its last line."""
    options = ["--dataset", str(table), "--backbone", str(backbone), "--rows", "24", "--candidates", "8"]
    options += ["--dtype", "float32", "--repeats", "1", *more]
    command = [sys.executable, "-m", "sellarec.cli", "bench", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=where, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(done.stdout.splitlines()[-1])["measured"]


@pytest.fixture(scope="module")
def measured(planted_table, llama, tmp_path_factory):
    more = [*("--attentions", "sdpa"), *("--accumulate", "2"), *("--budgets", "64"), "--tasks", *engine.TASKS]
    said, lines = bench(planted_table, llama, tmp_path_factory.mktemp("bench"), *more)
    assert "one batch of" in said and "aten::" in said
    return lines


@pytest.mark.skipif(not shutil.which("g++"), reason="torch compiles for a CPU with g++, which is not there")
def test_compiled_layers_score_the_same(planted_table, llama, tmp_path):
    _, lines = bench(planted_table, llama, tmp_path, "--no-plain", "--compiled", "--tasks", "ranking")
    assert [line["way"] for line in lines] == ["engine", "engine, compiled"]
    assert lines[-1]["gap_to_engine"] < 1e-5


def test_every_task_is_measured_beside_its_plain_way(measured):
    ways = {}
    for line in measured:
        ways.setdefault(line["task"], []).append(line["way"])
        assert line["per_second"] > 0 and line["times_first"] > 0
    assert len(ways) == 6
    assert all(names[0].startswith("plain") and len(names) > 1 for names in ways.values())


def test_the_engine_scores_as_the_plain_way_does(measured):
    scored = {line["way"]: line for line in measured if line["task"] == "score test rows"}
    assert {"engine, 64 at once", "engine, sdpa", "engine, prefixes cached, sdpa"} <= scored.keys()
    for way in ("careful float32", "engine", "engine, prefixes cached"):
        assert scored[way]["max_gap"] < 1e-5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "scorin"], r"task 'scorin' is not known. Did you mean 'scoring'"),
        (["--rows", "0"], "--rows, .* must be at least 1"),
        (["--budgets", "64", "0"], "--budgets must be at least 1"),
        (["--dataset", "nowhere"], "dataset 'nowhere' is neither a registered name"),
    ],
)
def test_what_cannot_be_measured_is_refused(monkeypatch, words, said):
    monkeypatch.setattr(sys, "argv", ["bench", *words])
    with pytest.raises(SellarecError, match=said):
        engine.main()


def test_the_script_for_a_gpu_is_sound_shell_and_knows_its_sizes():
    script = REPOSITORY / "benchmarks" / "h200.sh"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    refused = subprocess.run([script, "huge"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "usage" in refused.stderr and not (REPOSITORY / "bench-huge").exists()
    refused = subprocess.run([script, "smoke", "benhc"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "no step 'benhc'" in refused.stderr


def test_the_script_for_a_gpu_does_the_wanted_steps_once(tmp_path):
    script, says = REPOSITORY / "benchmarks" / "h200.sh", tmp_path / "says"
    says.write_text('#!/bin/sh\necho "ran $*"\n')
    says.chmod(0o755)

    def ran(**more):
        given = {**os.environ, "OUT": str(tmp_path / "out"), "PYTHON": str(says), **more}
        done = subprocess.run(
            [script, "smoke", "doctor", "sella"], env=given, capture_output=True, text=True, check=True
        )
        return [line.split()[3:5] for line in done.stdout.splitlines() if line.startswith("ran")]

    assert ran() == [["doctor"], ["run", "sella"]]
    assert ran() == []
    assert ran(PARTS="2") == [["run", "sella"]]  # other words, another step


def test_histories_are_taken_away_and_the_own_ones_give_the_runs_metrics(small_workspace):
    for name in ("sasrec", "din"):
        found, run = histories.compare(small_workspace, name), small_workspace.run(name)
        for metric in ("auc", "uauc"):
            assert found.loc["its own", metric.upper()] == pytest.approx(run.metrics["test"]["all"][metric], abs=1e-6)
        assert found["AUC"].nunique() > 1
    assert type(small_workspace.dataset) is Dataset  # the workspace's own is as it was


def test_who_knows_all_rates_reads_training_labels_off_the_counts(small_workspace):
    small_workspace.run("binary_mf")
    own = label_leak.against_own_label(small_workspace)
    assert own["user"] < 0.5 and own["item"] < 0.5  # the own label is missing exactly where it is a like
    found = label_leak.regressions(small_workspace)
    assert found.loc["and the rates of all rows", "train"] > found.loc["the counts", "train"] + 0.1
    assert all(w.startswith("-") for w in found.loc["and the rates of all rows", "weights"].split(", "))


@pytest.mark.parametrize("system", ["zero_shot", "tallrec", "sella", "no_warm_token"])
def test_a_run_in_float32_has_the_scores_of_a_plain_pass(small_workspace, system, tmp_path):
    small_workspace.run(system)
    kept = tmp_path / "kept.npy"
    found = exactness.compare(small_workspace, system, keep=kept, formats=("bfloat16", "float16"))
    assert found["rows"] == len(small_workspace.part("test")) == len(np.load(kept))
    assert found["engine"]["max_gap"] < 1e-4
    assert 0 < found["engine in float16"]["mean_gap"] < found["engine in bfloat16"]["mean_gap"] / 4
    assert found["engine"]["auc"] == pytest.approx(found["plain"]["auc"], abs=exactness.GOAL)
    np.save(kept, np.load(kept) + 1)  # what is kept is not computed again
    assert exactness.compare(small_workspace, system, keep=kept)["engine"]["mean_gap"] == pytest.approx(1, abs=1e-4)


def test_scores_of_other_rows_and_systems_without_a_prompt_are_refused(small_workspace, tmp_path):
    np.save(tmp_path / "kept.npy", np.zeros(1, dtype=np.float32))
    small_workspace.run("tallrec")
    with pytest.raises(SellarecError, match="it is of other rows"):
        exactness.compare(small_workspace, "tallrec", keep=tmp_path / "kept.npy")
    with pytest.raises(SellarecError, match="'counting' is neither"):
        exactness.compare(small_workspace, "counting")
