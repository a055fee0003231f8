import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from safetensors.numpy import load_file, save_file

from sellarec.analysis.alignment import after_stage_3
from sellarec.analysis.catalogue import score_candidates
from sellarec.analysis.what_if import Explorer
from sellarec.cli import main
from sellarec.config import change_config, make_config
from sellarec.data import sources
from sellarec.errors import SellarecError
from sellarec.published import RECORDS, SCORES, adopt, other_formats, publish, runs_of
from sellarec.runs import MANIFEST, RunKey, open_run, seal
from sellarec.systems.base import Workspace
from sellarec.systems.registry import find_system
from sellarec.tables import overall_table

SYSTEMS = ("counting", "mf", "tallrec", "sella", "no_alignment")


@pytest.fixture(scope="module")
def published(small_workspace, tmp_path_factory):
    for name in SYSTEMS:
        small_workspace.run(name)
    target = tmp_path_factory.mktemp("published")
    return target, publish(small_workspace, target)


def elsewhere(work: Workspace, root, **changes) -> Workspace:
    """The same settings over an empty store, in which nothing is computed."""
    return Workspace(change_config(work.config, changes), root, computes=False)


def of_system(folder, name):
    return next(folder.glob(f"*/*/{name}/*"))


def test_adopted_runs_give_the_tables_that_the_computed_ones_gave(small_workspace, published, tmp_path):
    adopted = adopt(work := elsewhere(small_workspace, tmp_path), published[0])
    assert len(adopted) == len(published[1]) and not adopt(work, published[0])
    scored = ("counting", "mf", "tallrec", "sella", "no_alignment")
    pd.testing.assert_frame_equal(overall_table(work, scored), overall_table(small_workspace, scored))
    for name in scored:
        pd.testing.assert_frame_equal(work.run(name).scores, small_workspace.run(name).scores)
        assert work.run(name).config == small_workspace.run(name).config


def test_nothing_of_the_data_is_published(small_workspace, published):
    target, _ = published
    titles = small_workspace.dataset.catalogue["title"].iloc[1:]
    files = [p for p in target.rglob("*") if p.is_file()]
    assert {p.name for p in files} == {*RECORDS, SCORES, MANIFEST}
    for path in files:
        content = path.read_bytes()
        assert not any(title.encode() in content for title in titles), path
        assert str(Path(small_workspace.config.backbone).parent).encode() not in content, path
    for path in target.rglob(SCORES):
        assert list(load_file(path)) == ["score"]


def test_weights_are_computed_again_where_something_looks_into_them(small_workspace, published, tmp_path):
    adopt(looks := elsewhere(small_workspace, tmp_path), published[0])
    with pytest.raises(SellarecError, match="Compute them with: sellarec run sella --weights"):
        Explorer(looks).log_odds([])
    with pytest.raises(SellarecError, match="Compute them with: sellarec run mf --weights"):
        find_system("mf").score(looks, looks.run("mf"), looks.part("test").index.to_numpy())
    with pytest.raises(SellarecError, match="Compute them with: sellarec run counting --weights"):
        score_candidates(looks, "counting", 1, [1, 2])
    work = Workspace(looks.config, looks.root)
    explorer = Explorer(work)
    row = int(work.part("test").index[0])
    again = 1 / (1 + np.exp(-explorer.log_odds([explorer.case_of_row(row)])[0]))
    assert again == pytest.approx(small_workspace.test_scores("sella")[0], abs=1e-5)
    for name in ("tallrec", "semantic", "sella_collab", "sella"):
        assert work.run(name).has_weights and not looks.run("no_alignment").has_weights
        assert work.run(name).folder.name == small_workspace.run(name).folder.name


def test_analyses_compute_the_weights_that_they_look_into(small_workspace, published, tmp_path, capsys):
    adopt(looks := elsewhere(small_workspace, tmp_path), published[0])
    work = Workspace(looks.config, looks.root)
    found = after_stage_3(work)
    np.testing.assert_allclose(found.projected, after_stage_3(small_workspace).projected, atol=1e-5)
    assert "SeLLa-Rec was computed again: its scores are 0.0000 from the published ones" in capsys.readouterr().out
    for name in ("counting", "mf"):
        again, first = (score_candidates(w, name, 1, [1, 2, 3]) for w in (work, small_workspace))
        np.testing.assert_allclose(again, first, atol=1e-6)
        assert work.run(name).has_weights


def test_a_run_that_was_not_moved_when_it_was_stopped_is_not_computed_again(
    small_workspace, published, tmp_path, monkeypatch
):
    adopt(work := elsewhere(small_workspace, tmp_path), published[0])
    folder, done = work.run("mf").folder, small_workspace.run("mf").folder
    shutil.copytree(done, folder.with_name(f".work-{folder.name}"))
    monkeypatch.setattr(Workspace, "_compute", lambda *_: pytest.fail("it was computed again"))
    assert Workspace(work.config, work.root).with_weights("mf").has_weights
    assert not list(folder.parent.glob(".*"))


def test_a_run_that_is_being_computed_is_not_brought_in_between(small_workspace, published, tmp_path):
    work = elsewhere(small_workspace, tmp_path)
    folder = tmp_path / small_workspace.run("mf").folder.relative_to(small_workspace.root)
    folder.parent.mkdir(parents=True)
    with FileLock(folder.with_name(f".work-{folder.name}.lock")):
        assert folder not in adopt(work, published[0])
    assert adopt(work, published[0]) == [folder]
    assert not [*tmp_path.rglob("*.lock")]


def test_runs_of_other_data_settings_do_not_stop_the_others(small_workspace, published, tmp_path):
    shutil.copytree(published[0], tmp_path / "copy")
    strict = Workspace(change_config(small_workspace.config, {"data.strict_history": True}), tmp_path / "strict")
    strict.run("counting")
    assert len(publish(strict, tmp_path / "copy")) == 1
    assert len(adopt(elsewhere(small_workspace, tmp_path / "runs"), tmp_path / "copy")) == len(published[1])


def test_rows_are_those_of_the_budget_that_a_run_was_scored_with(small_workspace, published, tmp_path):
    other = elsewhere(small_workspace, tmp_path, **{"evaluation.test_rows": 12, "evaluation.valid_rows": 5})
    assert len(adopt(other, published[0])) == len(published[1])
    same = elsewhere(small_workspace, tmp_path)
    pd.testing.assert_frame_equal(same.run("mf").scores, small_workspace.run("mf").scores)


def test_what_cannot_be_published_is_said(small_workspace, tmp_path):
    with pytest.raises(SellarecError, match="no run with these settings is there"):
        publish(elsewhere(small_workspace, tmp_path), tmp_path / "shared")
    seventeen = Workspace(change_config(small_workspace.config, {"seed": 17}), tmp_path)
    seventeen.run("counting")
    seventeen.run("mf")
    assert any(f.name.startswith("17-") for f in publish(seventeen, tmp_path / "shared"))


def test_scores_of_other_data_are_refused(small_workspace, published, tmp_path):
    with pytest.raises(SellarecError, match="computed from other data"):
        adopt(elsewhere(small_workspace, tmp_path, **{"data.domain": "song"}), published[0])


@pytest.mark.parametrize("change", ["scores", "fewer", "nan", "none", "settings", "seed", "type", "empty", "file"])
def test_a_changed_run_is_refused(small_workspace, published, tmp_path, change):
    shutil.copytree(published[0], tmp_path / "copy")
    folder = of_system(tmp_path / "copy", "mf")
    if change in ("settings", "seed", "type", "empty"):
        config = json.loads((folder / "config.json").read_text())
        if change == "settings":
            config["settings"]["mf"]["dim"] = 7
        elif change == "type":
            config["backbone"] = 5
        else:
            config["seed"] = "../../../outside"
        key = RunKey(**{name: config[name] for name in RunKey.__dataclass_fields__})
        config["key"] = key.digest if change in ("seed", "type") else config["key"]
        (folder / "config.json").write_text("{}" if change == "empty" else json.dumps(config))
    elif change == "file":
        (folder / "metrics.json").write_text("{}")
    elif change == "none":
        (folder / SCORES).unlink()
    else:
        score = load_file(folder / SCORES)["score"]
        changed = {"scores": score[::-1], "fewer": score[:-1], "nan": score * np.nan}[change]
        save_file({"score": changed.copy()}, folder / SCORES)
    if change != "file":
        (folder / "manifest.json").unlink()
        folder.rename(moved := folder.with_name("moved"))
        seal(moved, folder)
    expected = {
        "scores": "with your data and .* as published",
        "fewer": "scores for",
        "nan": "finite",
        "none": "metrics without scores",
        "type": "do not give its key",
        "settings": "do not give its key",
        "seed": "do not give its key",
        "empty": "does not describe a run",
        "file": "was changed",
    }
    with pytest.raises(SellarecError, match=expected[change]):
        adopt(elsewhere(small_workspace, tmp_path / "runs"), tmp_path / "copy")
    assert not list((tmp_path / "runs").rglob(".adopt-*"))


def test_where_nothing_was_published_is_said(small_workspace, tmp_path):
    with pytest.raises(SellarecError, match="no run was published there"):
        adopt(elsewhere(small_workspace, tmp_path), tmp_path / "nowhere")


def test_runs_in_another_number_format_than_this_machine_chooses_are_named(small_workspace, published, tmp_path):
    same = elsewhere(small_workspace, tmp_path)
    other = "float32" if same.base_dtype == "bfloat16" else "bfloat16"
    assert other_formats(same, published[0]) == []
    assert other_formats(elsewhere(small_workspace, tmp_path, dtype=other), published[0]) == [same.base_dtype]


def test_the_two_commands(planted_table, tmp_path, capsys):
    def command(*words):
        main([*words, "--dataset", str(planted_table), "--profile", "smoke"])
        return capsys.readouterr().out.splitlines()

    command("run", "counting", "--runs", str(tmp_path / "runs"))
    assert command("publish", "--runs", str(tmp_path / "runs"), "--to", str(tmp_path / "shared"))[-1].startswith(
        "1 runs"
    )
    said = command("adopt", "--runs", str(tmp_path / "other"), "--from", str(tmp_path / "shared"))
    assert said[-1].startswith("1 runs") and "metrics are those of your data" in said[-1]
    again = command("adopt", "--runs", str(tmp_path / "other"), "--from", str(tmp_path / "shared"))
    assert again[-1].startswith("0 runs") and "metrics" not in again[-1]
    assert "--weights computes it again" in command("run", "counting", "--runs", str(tmp_path / "other"))[-1]
    assert "was computed again" in command("run", "counting", "--weights", "--runs", str(tmp_path / "other"))[1]
    scores = [next((tmp_path / r).rglob("scores.parquet")) for r in ("runs", "other")]
    pd.testing.assert_frame_equal(*map(pd.read_parquet, scores))


def test_a_table_with_a_space_in_its_name_travels_too(planted_table, tmp_path):
    path = shutil.copy(planted_table, tmp_path / "my songs.csv")
    work = Workspace(make_config("smoke", str(path)), tmp_path / "runs")
    work.run("counting")
    publish(work, tmp_path / "shared")
    assert len(adopt(elsewhere(work, tmp_path / "other"), tmp_path / "shared")) == 1


PUBLISHED = Path(__file__).resolve().parents[1] / "reports" / "published"


def test_the_runs_that_this_repository_publishes_are_whole_and_hold_no_table():
    folders = [path.parent for path in PUBLISHED.rglob(MANIFEST)]
    assert folders
    for folder in folders:
        run = open_run(folder)
        assert {p.name for p in folder.iterdir()} <= {*RECORDS, SCORES, MANIFEST}
        assert not Path(run.config["backbone"]).is_absolute()
        assert not (folder / SCORES).exists() or list(load_file(folder / SCORES)) == ["score"]


QUICK_STAGE_3 = {
    "stage3.rows": 12_000,
    "stage3.epochs": 1,
    "stage3.evaluations": 1,
    "stage3.batch": 32,
    "stage3.accumulate": 1,
    "stage3.learning_rate": 1e-3,
}
"""What `full` leaves of a stage 3 that runs on a CPU."""

AT_2E_4 = {f"stage3.{part}learning_rate": 2e-4 for part in ("", "embedding_", "projection_")}
"""The rate of the paper's code."""

STUDIED = (
    ("quick", {}),
    ("quick", {"stage3.embedding_learning_rate": 1e-3, "stage3.projection_learning_rate": 1e-3}),
    *(("quick", {"mlp.start": start}) for start in range(1, 5)),
    ("quick", {"sasrec.weight_decay": 1e-4}),
    ("quick-paper", {}),
    *(("quick-paper", {"mlp.start": start}) for start in (1, 2)),
    ("quick-paper", AT_2E_4),
    ("quick-paper", AT_2E_4 | {"stage3.epochs": 3, "stage3.evaluations": 6}),
    ("full", {"stage1.accumulate": 1}),
    ("full", {"stage1.accumulate": 1, "stage3.accumulate": 1}),
    ("full", {"stage1.accumulate": 1, **QUICK_STAGE_3}),
)
"""The settings behind docs/results.md: profiles, and changes to them."""


def test_the_published_metrics_are_those_of_movielens_1m(ml_1m_folder, tmp_path):
    sources.fetch("ml-1m", ml_1m_folder)
    work = Workspace(make_config("quick", "ml-1m", dtype="bfloat16"), tmp_path, computes=False)
    adopted = adopt(work, PUBLISHED)
    assert len(adopted) == len(list(PUBLISHED.glob(f"ml-1m/*/*/*/{MANIFEST}")))
    studied = (make_config(profile, "ml-1m", dtype="bfloat16", **changes) for profile, changes in STUDIED)
    named = {run.folder for c in studied for run in runs_of(Workspace(c, tmp_path, computes=False))}
    assert set(adopted) == named  # today's settings still name every one of them
    assert work.is_done("sella") and overall_table(work, ("counting",))["auc"].item() == pytest.approx(0.7317, abs=5e-5)
