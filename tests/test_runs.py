import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sellarec import runs
from sellarec.backbone.loading import identity
from sellarec.errors import SellarecError
from sellarec.runs import Run, RunKey, ensure_run, open_run, record
from tests.conftest import SMALL


def key(**changes):
    base = {
        "dataset": "d",
        "backbone": "b/c",
        "system": "s",
        "seed": 1,
        "settings": {"a": 1},
        "data_hash": "h",
        "upstream": {},
    }
    return RunKey(**{**base, **changes})


def compute(run: Run):
    run.save_tensors("w", {"x": np.arange(3.0), "scalar": np.array(2.0)})
    run.append_log({"step": 1, "loss": np.float32(0.5)})
    run.write_json("metrics", {"auc": float("nan"), "n": np.int64(3)})


def test_a_run_is_computed_once_and_read_back(tmp_path):
    calls = []
    for _ in range(2):
        run = ensure_run(tmp_path, key(), lambda r: (calls.append(1), compute(r)))
    assert len(calls) == 1
    assert run.tensors("w")["x"].tolist() == [0, 1, 2] and run.tensors("w")["scalar"].shape == ()
    assert run.metrics == {"auc": None, "n": 3} and run.log["loss"].tolist() == [0.5]
    assert run.config["key"] == key().digest and run.config["settings"] == {"a": 1}


@pytest.mark.parametrize("change", [{"settings": {"a": 2}}, {"data_hash": "i"}, {"upstream": {"t": "k"}}, {"seed": 2}])
def test_whatever_a_run_depends_on_changes_its_key(change):
    assert key(**change).digest != key().digest


def test_names_cannot_leave_the_store_or_collide(tmp_path):
    folder = key(dataset="../../etc", backbone="/x/y").folder(tmp_path)
    assert folder.is_relative_to(tmp_path) and len(folder.relative_to(tmp_path).parts) == 4
    assert ".." not in folder.parts
    assert key(backbone="a/b").folder(tmp_path) != key(backbone="a_b").folder(tmp_path)


def test_a_run_that_goes_on_elsewhere_names_both_machines_and_versions(tmp_path, monkeypatch):
    def stops(run):
        raise KeyboardInterrupt

    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(runs, "_gpu", lambda: ["a GPU"])
        elsewhere.setattr(runs, "version", lambda package: "1.0")
        elsewhere.setattr(runs, "code_version", lambda: "abc")
        with pytest.raises(KeyboardInterrupt):
            ensure_run(tmp_path, key(), stops)
    monkeypatch.setattr(runs, "_gpu", lambda: [])
    monkeypatch.setattr(runs, "version", lambda package: "2.0" if package == "torch" else "1.0")
    monkeypatch.setattr(runs, "code_version", lambda: "def")
    said = ensure_run(tmp_path, key(), compute).config
    here = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    assert said["machine"] == f"{here}, a GPU, then {here}" and said["code"] == "abc, def"
    assert said["versions"]["torch"] == "1.0, then 2.0" and said["versions"]["numpy"] == "1.0"
    assert runs._both("here, then there", "here") == "here, then there, then here"


def test_without_git_or_a_checkout_of_its_own_the_code_is_unknown(tmp_path, monkeypatch):
    assert re.fullmatch(r"unknown|[0-9a-f]{12}(\+changes)?", runs.code_version())
    package = tmp_path / "lib" / "sellarec"
    package.mkdir(parents=True)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    with monkeypatch.context() as installed:
        installed.setattr(runs, "__file__", str(package / "runs.py"))
        assert runs.code_version() == "unknown", "somebody's repository that holds an installation"
    (package.parent / ".git").mkdir()
    monkeypatch.setattr(runs, "__file__", str(package / "runs.py"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runs.code_version() == "unknown", "no git"


def test_a_run_names_what_it_was_computed_with_also_when_it_goes_on_later(tmp_path):
    def begins(run):
        record("compiled layers")
        upstream = ensure_run(tmp_path, key(system="upstream"), lambda r: (record("upstream's own"), compute(r)))
        assert upstream.config["computed_with"] == ["upstream's own"]
        raise KeyboardInterrupt

    def goes_on(run):
        for fact in ("prefix cache", "a", "a"):
            record(fact)
        compute(run)

    with pytest.raises(KeyboardInterrupt):
        ensure_run(tmp_path, key(), begins)
    record("of no run")
    assert ensure_run(tmp_path, key(), goes_on).config["computed_with"] == ["a", "compiled layers", "prefix cache"]
    assert ensure_run(tmp_path, key(seed=2), compute).config["computed_with"] == []


def test_an_interrupted_run_is_not_taken_for_a_whole_one_and_keeps_its_work(tmp_path):
    def half(run):
        run.save_tensors("checkpoint", {"x": np.zeros(1)})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_run(tmp_path, key(), half)
    assert not key().folder(tmp_path).exists()
    found = []
    ensure_run(tmp_path, key(), lambda run: (found.extend(p.name for p in run.folder.iterdir()), compute(run)))
    assert "checkpoint.safetensors" in found
    assert open_run(key().folder(tmp_path)).metrics["n"] == 3


def test_a_disk_that_is_full_when_the_manifest_is_written_leaves_a_run_that_goes_on(tmp_path, monkeypatch):
    write = Path.write_text

    def full(path, text):
        write(path, text[:5] if "manifest" in path.name else text)
        if "manifest" in path.name:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        ensure_run(tmp_path, key(), compute)
    monkeypatch.setattr(Path, "write_text", write)
    assert ensure_run(tmp_path, key(), lambda run: None).metrics["n"] == 3


@pytest.mark.parametrize("damage", ["flip", "remove", "add", "manifest"])
def test_a_changed_missing_or_added_file_is_noticed_and_named(tmp_path, damage):
    folder = ensure_run(tmp_path, key(), compute).folder
    path = folder / "w.safetensors"
    if damage == "flip":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "remove":
        path.unlink()
    elif damage == "add":
        path = folder / "stray.txt"
        path.write_text("x")
    else:
        path = folder / "manifest.json"
        path.write_text(json.dumps({})[:1])
    with pytest.raises(SellarecError, match=path.name):
        ensure_run(tmp_path, key(), compute)


def test_large_weights_are_told_apart_by_blocks_from_the_first_to_the_last_byte(tmp_path):
    path = tmp_path / "model.safetensors"
    content = np.zeros(80 * 2**20, dtype=np.uint8)
    found = []
    for changed in (0, len(content) - 1, 0):
        content[:] = 0
        content[changed] = 1
        content.tofile(path)
        found.append(identity(str(tmp_path)))
    assert found[0] == found[2] != found[1]


def test_a_run_of_a_hub_backbone_belongs_to_its_revision(planted_table, llama, tmp_path):
    settings = [w for k, v in SMALL.items() for w in (f"--{k.replace('_', '-')}", str(v))]
    words = ["run", "zero_shot", "--dataset", str(planted_table), "--profile", "smoke", *settings]
    offline = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}

    def run(backbone):
        command = [sys.executable, "-m", "sellarec.cli", *words, "--runs", str(tmp_path / "runs")]
        return subprocess.run(
            [*command, "--backbone", backbone], env=offline, capture_output=True, text=True, timeout=120, check=False
        )

    cache = tmp_path / "hub" / "models--someone--tiny"
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(llama, cache / "snapshots" / commit)
        (cache / "refs").mkdir(exist_ok=True)
        (cache / "refs" / "main").write_text(commit)
        done = run("someone/tiny")
        assert done.returncode == 0, done.stderr
        config = json.loads((Path(done.stdout.splitlines()[-1]) / "config.json").read_text())
        assert config["settings"]["weights"] == commit
    missing = run("someone/else")
    assert missing.returncode == 1 and "backbone 'someone/else' cannot be loaded" in missing.stderr
