"""What a workspace computes, reuses and goes on from."""

import dataclasses
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sellarec import cli, runs
from sellarec.config import make_config
from sellarec.errors import SellarecError
from sellarec.runs import Run
from sellarec.systems import counting
from sellarec.systems.base import Workspace
from sellarec.systems.registry import OVERALL, SYSTEMS, find_system
from sellarec.tables import provenance_table
from tests.conftest import SMALL


def test_runs_are_reused_and_a_changed_setting_renews_only_what_depends_on_it(small_workspace, monkeypatch):
    for name in OVERALL:
        small_workspace.run(name)
    monkeypatch.setattr(Workspace, "_compute", lambda self, system, run: pytest.fail(f"computed {system.name} again"))
    again = Workspace(small_workspace.config, small_workspace.root)
    assert all(again.is_done(name) for name in OVERALL)
    changed = dataclasses.replace(
        small_workspace.config, stage3=dataclasses.replace(small_workspace.config.stage3, learning_rate=5e-4)
    )
    other = Workspace(changed, small_workspace.root)
    assert other.is_done("sella_collab") and other.is_done("tallrec") and not other.is_done("sella")


def test_the_same_run_twice_gives_the_same_bytes(planted_table, llama, tmp_path):
    config = make_config("smoke", str(planted_table), backbone=str(llama), **SMALL)
    manifests = [Workspace(config, tmp_path / n).run("sella").folder / "manifest.json" for n in "ab"]
    assert manifests[0].read_bytes() == manifests[1].read_bytes()


def test_a_system_is_computed_for_several_seeds_by_one_command(planted_table, tmp_path, capsys):
    words = ["--profile", "smoke", "--dataset", str(planted_table), "--runs", str(tmp_path)]
    cli.main(["run", "mf", "--seed", "3", "--seeds", "2", *words])
    said = capsys.readouterr().out
    assert "0 of 2 are in the store; to compute: MF, seed 3; MF, seed 4" in said
    work = Workspace(make_config("smoke", str(planted_table), seed=3), tmp_path, computes=False)
    assert work.seeds() == [3, 4]
    for seed in (3, 4):
        found = work.variant({"seed": seed}).run("mf").metrics["test"]["all"]
        assert f"mf                     seed {seed}  AUC {found['auc']:.4f}" in said


def test_a_step_without_scores_is_named_by_its_folder(small_workspace, capsys):
    other = small_workspace.variant({"seed": 1})
    cli._run_all(small_workspace, "semantic", 2)
    folders = [str(work.run("semantic").folder) for work in (small_workspace, other)]
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[-2:]] == folders


def test_seeds_are_those_that_the_store_has_runs_of(planted_table, tmp_path):
    work = Workspace(make_config("smoke", str(planted_table), seed=20), tmp_path, computes=False)
    assert work.seeds() == [20]
    for place, name in zip([*work.places, tmp_path / "other"], ("3-abc", "12-abc", "5-abc"), strict=True):
        (place / "mf" / name).mkdir(parents=True)
    (work.places[0] / "mf" / ".work-7-abc").mkdir()
    assert work.seeds() == [3, 12, 20]


def test_a_kill_between_training_and_scoring_does_not_train_again(planted_table, tmp_path):
    work = Workspace(make_config("smoke", str(planted_table), **SMALL), tmp_path)
    calls = []

    def fit(w, run: Run):
        calls.append("fit")
        run.append_log({"step": 1})

    def die(w, run, rows):
        calls.append("score")
        if len(calls) == 2:
            raise KeyboardInterrupt
        return np.linspace(0, 1, len(rows))

    system = dataclasses.replace(SYSTEMS["counting"], fit=fit, score=die)
    SYSTEMS["counting"] = system
    try:
        with pytest.raises(KeyboardInterrupt):
            work.run("counting")
        run = work.run("counting")
    finally:
        SYSTEMS["counting"] = counting.SYSTEM
    assert calls == ["fit", "score", "score"]
    assert run.log["step"].tolist() == [1]
    assert {p.name for p in run.folder.iterdir()} == {
        "config.json",
        "log.jsonl",
        "manifest.json",
        "metrics.json",
        "scores.parquet",
    }


def test_a_kill_while_a_run_is_sealed_computes_nothing_again(planted_table, tmp_path, monkeypatch):
    work = Workspace(make_config("smoke", str(planted_table), **SMALL), tmp_path)
    hashes = runs._hashes

    def die(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "_hashes", die)
    with pytest.raises(KeyboardInterrupt):
        work.run("counting")
    monkeypatch.setattr(runs, "_hashes", hashes)
    monkeypatch.setitem(SYSTEMS, "counting", dataclasses.replace(counting.SYSTEM, fit=pytest.fail, score=pytest.fail))
    run = Workspace(work.config, tmp_path).run("counting")
    assert sorted(p.name for p in run.folder.iterdir()) == [
        *("config.json", "manifest.json", "means.safetensors", "metrics.json", "scores.parquet")
    ]


def test_a_later_setting_leaves_the_keys_of_older_runs_alone(small_workspace):
    usual = small_workspace.key(find_system("sella_collab")).settings
    assert "without_contrast" not in usual["stage2"] and "domain" not in usual["data"]
    other = small_workspace.variant({"stage2.without_contrast": 0.25}).key(find_system("sella_collab")).settings
    assert other["stage2"] == {**usual["stage2"], "without_contrast": 0.25}


def test_settings_that_change_no_result_change_no_key(small_workspace):
    def key(name, **changes):
        return small_workspace.variant({k.replace("__", "."): v for k, v in changes.items()}).key(find_system(name))

    assert key("tallrec", stage1__checkpoint_seconds=5.0).digest == key("tallrec").digest
    for idle in ({"stage3__records": False}, {"stage3__tokens": "warm"}, {"stage3__learning_rate": 0.5}):
        assert key("person_prompt", **idle).digest == key("person_prompt").digest
        assert key("sella", **idle).digest != key("sella").digest
    assert key("person_prompt", stage3__vector_norm=0.5).digest != key("person_prompt").digest


def test_settings_that_a_system_refuses_leave_it_not_done_and_stop_nothing_else(small_workspace):
    small_workspace.run("tallrec")
    work = small_workspace.variant({"lora.rank": 0})
    work.run("tallrec")
    assert not work.is_done("tallrec_further") and work.is_done("counting") == small_workspace.is_done("counting")
    assert work.begun("tallrec_further") == [] and work.failure("tallrec_further") is None
    with pytest.raises(SellarecError, match=r"lora\.rank"):
        work.run("tallrec_further")


def test_a_run_belongs_to_the_weights_of_a_local_backbone_wherever_they_lie(planted_table, llama, tmp_path):
    def zero_shot(folder):
        config = make_config("smoke", str(planted_table), backbone=str(folder), **SMALL)
        return Workspace(config, tmp_path / "runs").run("zero_shot").folder

    first = zero_shot(shutil.copytree(llama, tmp_path / "a" / "model"))
    assert zero_shot(shutil.move(tmp_path / "a" / "model", tmp_path / "b" / "model")) == first
    assert first.parent.parent.name == "model"
    path = tmp_path / "b" / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.5
    save_file(tensors, path, metadata={"format": "pt"})
    assert zero_shot(path.parent) != first
    shutil.rmtree(path.parent)
    config = make_config("smoke", str(planted_table), backbone=str(path.parent), **SMALL)
    assert Workspace(config, tmp_path / "runs").run("counting").metrics  # needs no backbone
    with pytest.raises(SellarecError, match="no such file or folder"):
        zero_shot(path.parent)


def test_a_run_knows_what_it_grew_from_and_what_was_computed_again_since(small_workspace, monkeypatch):
    work = small_workspace
    run, upstream = work.run("sella_collab"), work.run("semantic")
    assert run.config["grew_from"] == {"semantic": upstream.fingerprint} and len(upstream.fingerprint) == 12
    assert work.computed_since("sella_collab") == [] == work.computed_since("mf")
    assert provenance_table(work, ["sella_collab"])["grew from"].item() == ""
    monkeypatch.setitem(vars(upstream), "fingerprint", "of another computation")
    assert work.computed_since("sella_collab") == ["semantic"]
    assert provenance_table(work, ["sella_collab"])["grew from"].item() == "another semantic"
    monkeypatch.delitem(run.config, "grew_from")  # as in older runs
    assert work.computed_since("sella_collab") == []
