"""Finished runs side by side, from their scores alone."""

import json
import re
import shutil

import numpy as np
import pytest

from sellarec import cli
from sellarec.analysis.step0 import STEP0
from sellarec.compare import by_seed, compare, grown_apart, runs_named
from sellarec.config import as_options, make_config
from sellarec.errors import SellarecError
from sellarec.evaluation import auc, uauc
from sellarec.published import publish
from sellarec.runs import WITHOUT_WEIGHTS, Run
from sellarec.systems.base import Workspace
from sellarec.tables import difference_table
from tests.conftest import SMALL


@pytest.fixture
def store(planted_table, tmp_path):
    """Counting, and MF with biases at two seeds."""
    work = Workspace(make_config("smoke", str(planted_table), **SMALL), tmp_path)
    for seed in (0, 1):
        work.variant({"seed": seed}).run("mf_bias")
    work.run("counting")
    return work


def test_the_first_is_compared_with_each_other_one(store):
    overall, found = compare(runs_named(store, ["mf_bias", "counting"]))
    rows = store.part("test")
    assert overall.loc["MF + biases", "auc"] == pytest.approx(auc(rows["label"], store.test_scores("mf_bias")))
    expected = difference_table(store, "mf_bias", ["counting"])
    assert found.iloc[0].to_dict() == expected.drop(columns="system").iloc[0].to_dict()
    assert found.attrs["of"] == "MF + biases"


def test_items_can_be_resampled_too_and_it_says_what_it_rests_on(store):
    runs = runs_named(store, ["mf_bias", "counting"])
    (overall, users), (_, both) = compare(runs), compare(runs, items=True)
    assert users["auc"].item() == both["auc"].item() and users["auc_low"].item() != both["auc_low"].item()
    rows = store.part("test")
    assert overall["probability"].iloc[0] == pytest.approx(store.test_scores("mf_bias").mean(dtype=float))
    each = rows["user"].value_counts()
    assert overall.attrs["rests_on"].startswith(
        f"{len(rows):,}, of {len(each):,} users, effectively {len(rows) ** 2 / (each**2).sum():.0f} ("
    )
    assert overall.attrs["rests_on"].endswith(f", {rows['label'].mean():.1%} liked")


def test_of_several_seeds_the_mean_metric_is_taken(store):
    overall, found = compare(runs_named(store, ["mf_bias", "counting"], seeds=3))  # of which two are in the store
    rows = store.part("test")
    scores = [store.variant({"seed": s}).test_scores("mf_bias") for s in (0, 1)]
    mean = np.mean([uauc(rows["user"], rows["label"], score) for score in scores])
    assert overall.loc["MF + biases, mean of seeds 0, 1", "uauc"] == pytest.approx(mean)
    assert found["uauc"].item() == pytest.approx(mean - overall["uauc"].iloc[1])


def test_validation_rows_and_parts_have_their_own_numbers(store):
    runs = runs_named(store, ["counting"])
    for split, part in (("valid", "all"), ("test", "warm"), ("test", "cold")):
        overall, found = compare(runs, split, part)
        assert overall["auc"].item() == pytest.approx(store.run("counting").metrics[split][part]["auc"])
        assert found.empty  # there is no other one


def test_a_folder_of_runs_is_not_taken_for_a_damaged_one_that_may_be_deleted(store):
    with pytest.raises(SellarecError, match=r"not a whole run\. Name a system, or the folder of one run") as told:
        runs_named(store, ["counting", str(store.root)])
    assert "Delete" not in str(told.value)


def test_runs_of_other_settings_are_named_by_their_folder(store):
    other = store.variant({"mf.dim": 4}).run("mf_bias")
    overall, found = compare(runs_named(store, ["mf_bias", str(other.folder)]))
    assert overall.index[1] == f"MF + biases ({other.folder.name})"
    assert overall["auc"].iloc[1] == pytest.approx(other.metrics["test"]["all"]["auc"])
    assert found["auc"].item() == pytest.approx(overall["auc"].iloc[0] - overall["auc"].iloc[1])


def test_runs_over_other_rows_are_refused(store):
    other = store.variant({"evaluation.test_rows": 1}).run("counting")
    with pytest.raises(SellarecError, match="scores other rows than"):
        compare(runs_named(store, ["counting", str(other.folder)]))


def test_what_cannot_be_compared_is_said_with_what_to_do(store, tmp_path):
    with pytest.raises(
        SellarecError, match=r"DIN is not in the run store .+\. To compute it: sellarec run din --dataset"
    ):
        runs_named(store, ["din"])
    with pytest.raises(SellarecError, match="Did you mean 'counting'"):
        runs_named(store, ["countin"])
    with pytest.raises(SellarecError, match="name systems"):
        runs_named(store, [])
    damaged = tmp_path / "copy"
    shutil.copytree(store.run("counting").folder, damaged)
    (damaged / "metrics.json").write_text("{}")
    with pytest.raises(SellarecError, match="was changed or added"):
        runs_named(store, [str(damaged)])


def test_a_run_of_an_analysis_is_said_to_score_nothing(small_workspace):
    run = small_workspace.run_of(STEP0)
    with pytest.raises(SellarecError, match=r"step0 \(.+\) is a step that others grow from; it scores no rows"):
        runs_named(small_workspace, [str(run.folder)])


def test_one_run_in_two_places_is_two_lines(store, tmp_path):
    copy = tmp_path / "copy" / store.run("counting").folder.name
    shutil.copytree(store.run("counting").folder, copy)
    overall, found = compare(runs_named(store, [str(store.run("counting").folder), str(copy)]))
    assert len(overall) == 2 and found["auc"].item() == 0 and str(copy) in found.index[0]


def test_parts_without_rows_and_published_runs_are_explained(store, tmp_path):
    runs = runs_named(store, ["counting"])
    rows = store.run("counting").scores.assign(warm=True)
    vars(runs["Counting (item + user mean)"][0])["scores"] = rows
    with pytest.raises(SellarecError, match="no cold rows among the scored test rows"):
        compare(runs, part="cold")
    (folder,) = [f for f in publish(store, tmp_path / "published") if f.parent.name == "counting"]
    with pytest.raises(SellarecError, match="published run, without rows: sellarec adopt"):
        runs_named(store, [str(folder)])


def test_a_run_in_another_number_format_is_pointed_to(small_workspace):
    """As after `adopt` on a machine that would choose another format: computing would take hours."""
    small_workspace.run("tallrec")
    there = small_workspace.base_dtype
    other = small_workspace.variant({"dtype": {"float32": "bfloat16", "bfloat16": "float32"}[there]})
    with pytest.raises(SellarecError, match=f"It is there in {there}: add --dtype {there}"):
        runs_named(other, ["tallrec"])


def test_the_command_prints_both_tables(store, planted_table, capsys):
    words = ["--profile", "smoke", "--dataset", str(planted_table), "--runs", str(store.root), *as_options(SMALL)]
    cli.main(["compare", "mf_bias", "counting", *words, "--seeds", "2", "--part", "warm"])
    out = capsys.readouterr().out
    assert out.startswith("planted, warm scored test rows")
    assert "MF + biases, mean of seeds 0, 1 minus" in out
    assert "UAUC, MF + biases, mean of seeds 0, 1 is" in out
    with pytest.raises(SystemExit, match="--seeds is 0"):
        cli.main(["compare", "counting", *words, "--seeds", "0"])


def test_a_difference_takes_the_seeds_that_both_have(store):
    for seed in (1, 2):
        store.variant({"seed": seed}).run("mf")
    _, found = compare(runs_named(store, ["mf_bias", "mf", "counting"], seeds=3))
    first, second = (store.variant({"seed": 1}).run(n).metrics["test"]["all"]["auc"] for n in ("mf_bias", "mf"))
    assert found["auc"].iloc[0] == pytest.approx(first - second) and found.index[0].endswith("(seeds of both: 1)")
    both = np.mean([store.variant({"seed": n}).run("mf_bias").metrics["test"]["all"]["auc"] for n in (0, 1)])
    assert found["auc"].iloc[1] == pytest.approx(both - store.run("counting").metrics["test"]["all"]["auc"])


def test_seeds_are_told_one_by_one_with_the_t_interval_of_their_mean(store):
    store.run("mf")
    found = by_seed(runs_named(store, ["mf_bias", "counting", "mf"], seeds=2))
    assert found.index.tolist() == ["Counting (item + user mean)"]  # MF has one seed
    gains = [
        store.variant({"seed": n}).run("mf_bias").metrics["test"]["all"]["auc"]
        - store.run("counting").metrics["test"]["all"]["auc"]
        for n in (0, 1)
    ]
    line = found.iloc[0]
    assert line["seeds"] == "0, 1" and line["AUC"] == f"{gains[0]:+.4f}  {gains[1]:+.4f}"
    far = 12.7062 * abs(gains[0] - gains[1]) / 2  # t with one degree of freedom; two values lie half their distance off
    mean, low = (float(x) for x in re.findall(r"[+-]\d\.\d+", line["mean AUC"])[:2])
    assert mean == pytest.approx(sum(gains) / 2, abs=6e-5) and low == pytest.approx(mean - far, abs=2e-4)
    assert by_seed(runs_named(store, ["mf_bias", "counting"])).empty


def test_whichever_of_two_draws_nothing_the_other_ones_seeds_are_taken(store):
    pairs = (["mf_bias", "counting"], ["counting", "mf_bias"])
    there, back = (compare(runs_named(store, names, seeds=2))[1] for names in pairs)
    assert there["auc"].item() == pytest.approx(-back["auc"].item())
    assert "seeds" in by_seed(runs_named(store, ["counting", "mf_bias"], seeds=2))


def test_a_run_that_grew_from_another_computation_of_what_it_is_compared_with_is_told(small_workspace, tmp_path):
    for name in ("sella", "tallrec", "counting"):
        small_workspace.run(name)
    runs = runs_named(small_workspace, ["sella", "tallrec", "counting"])
    assert grown_apart(runs) == []
    copy = tmp_path / "tallrec"
    shutil.copytree(small_workspace.run("tallrec").folder, copy)
    with (copy / "log.jsonl").open("a") as log:
        log.write("{}\n")  # rounded otherwise
    told = grown_apart(runs | {"TALLRec (stage 1)": [Run(copy)]})
    assert told == ["SeLLa-Rec grew from another computation of TALLRec (stage 1), which has rounded otherwise."]


def test_of_an_adopted_run_that_does_not_say_what_it_grew_from_only_a_doubt_is_told(small_workspace, tmp_path):
    for name in ("sella", "tallrec"):
        small_workspace.run(name)
    adopted = tmp_path / "sella"
    shutil.copytree(small_workspace.run("sella").folder, adopted)
    config = json.loads((adopted / "config.json").read_text())
    del config["grew_from"]
    (adopted / "config.json").write_text(json.dumps(config))
    (adopted / WITHOUT_WEIGHTS).write_text("[]")
    told = grown_apart(runs_named(small_workspace, ["tallrec"]) | {"SeLLa-Rec": [Run(adopted)]})
    assert told == ["TALLRec (stage 1) was computed here; the one that SeLLa-Rec grew from may have rounded otherwise."]


def test_what_is_no_fair_baseline_is_marked(store, capsys, monkeypatch):
    monkeypatch.setattr("sellarec.systems.registry.MOVIELENS", (store.config.dataset,))
    store.run("din")
    words = ["counting", "din", "--dataset", store.config.dataset, "--profile", "smoke", "--runs", str(store.root)]
    cli.main(["compare", *words, *as_options(SMALL)])
    out = capsys.readouterr().out
    assert out.count("DIN †") == 2 and "† No fair baseline" in out and "Counting (item + user mean) †" not in out
