"""Tables of runs: what they carry, and what they say of what is missing."""

import numpy as np
import pandas as pd
import pytest

from sellarec.config import make_config
from sellarec.evaluation import Interval, UserBootstrap, auc
from sellarec.figures import difference_figure
from sellarec.profiles import AS_IN_THE_PAPER
from sellarec.systems.base import Workspace
from sellarec.systems.registry import OVERALL
from sellarec.tables import (
    blend_table,
    by_part,
    difference_table,
    differences,
    export_table,
    overall_table,
    pretty,
    provenance_table,
    scope,
    systems_of,
    verdict,
)
from tests.conftest import SMALL


def intervals(table, metric):
    return [Interval(*line) for line in table[[metric, f"{metric}_low", f"{metric}_high"]].to_numpy()]


def test_tables_carry_intervals_verdicts_scope_and_provenance(small_workspace, monkeypatch, tmp_path):
    monkeypatch.setattr("sellarec.tables.FEWEST_TO_DECIDE", 1)
    overall = overall_table(small_workspace)
    assert overall["system"].tolist() == list(OVERALL)
    known = overall.dropna(subset=["auc_low"])
    assert (known["auc_low"] <= known["auc"]).all() and (known["auc"] <= known["auc_high"]).all()
    differences = difference_table(small_workspace)
    sella, mf = (overall.loc[overall["system"] == n, "auc"].item() for n in ("sella", "mf"))
    assert differences.loc["MF", "auc"] == pytest.approx(sella - mf)
    for low, high, said in ((0.1, 0.3, "better"), (-0.3, -0.1, "worse"), (-0.1, 0.1, "undecided")):
        assert verdict(Interval((low + high) / 2, low, high)) == said
    assert differences["auc_verdict"].tolist() == [verdict(i) for i in intervals(differences, "auc")]
    gains = difference_table(small_workspace, "mf", ["sella", "counting"], gains=True)
    for bound in ("auc", "auc_low", "uauc_high"):
        assert gains.loc["SeLLa-Rec", bound] == pytest.approx(differences.loc["MF", bound])
    figure = difference_figure(gains)
    assert figure.layout.title.text.startswith("Each other system minus MF (right of 0: it is better)")
    assert figure.data[0].hovertemplate.startswith("%{y} − MF: ")
    assert difference_figure(differences).data[0].hovertemplate.startswith("SeLLa-Rec − %{y}: ")
    assert pretty(gains)["AUC, it is"].tolist() == gains["auc_verdict"].tolist()
    monkeypatch.setattr("sellarec.systems.registry.MOVIELENS", (small_workspace.config.dataset,))
    unfair = difference_table(small_workspace, "sella", ["din", "mf"])
    assert pretty(unfair).index.tolist() == ["DIN †", "MF"] and pretty(unfair).notna().all(axis=None)
    assert difference_figure(unfair).data[0].y[0] == "DIN †" and "No fair baseline" in str(difference_figure(unfair))
    export_table(unfair, "t", tmp_path)
    assert r"DIN $^\dagger$ & " in (tmp_path / "tables" / "t.tex").read_text()
    assert (tmp_path / "tables" / "t.csv").read_text().startswith("against,system,auc,auc_low,")
    assert "AUC, it is" in pretty(gains) and "AUC, SeLLa-Rec is" in pretty(differences)
    assert pretty(overall.assign(seeds=1)).shape == (len(OVERALL), 2)  # other tests may have run other seeds
    assert "scored on whole users with" in scope(small_workspace) and "32 of" in scope(small_workspace)
    for stage1, stage3, said in ((100, 60, "100, 241 and 60 of 301"), (301, 200, "301, 101 and 200 of 301")):
        rows = small_workspace.variant({"stage1.rows": stage1, "stage3.rows": stage3})
        assert f"stages 1, 2 and 3 on {said} training rows" in scope(rows)
        assert ("200 of them in both 1 and 3" in scope(rows)) == (stage1 == 301)
    assert (
        provenance_table(small_workspace, ["sella"])["run"].item().endswith(small_workspace.run("sella").config["key"])
    )


def test_a_note_says_what_is_shown_and_whether_the_method_is_the_papers(small_workspace):
    ours, paper = small_workspace, small_workspace.variant(AS_IN_THE_PAPER)
    assert scope(ours).endswith("seed 0; prompt and tokens with our additions.")
    assert scope(paper).endswith("prompt and tokens without our additions.")
    shown = scope(ours, "user 3 and Heat (1995)")
    assert "; user 3 and Heat (1995); seed 0" in shown and "scored on" not in shown
    assert overall_table(ours, ("counting",)).attrs["paper"] == "Qwen2-7B, all rows, without our additions"


def test_a_caption_is_latex(tmp_path):
    export_table(pd.DataFrame({"a": [1.0]}), "t", tmp_path, r"my_songs & 50 % of <User_ID>\1")
    made = (tmp_path / "tables" / "t.tex").read_text()
    assert r"\caption{my\_songs \& 50 \% of \textless{}User\_ID\textgreater{}\textbackslash{}1}" in made


def test_parts_with_few_users_say_so():
    lines = pd.DataFrame(
        {
            **{"system": "mf", "label": "MF", "part": ["warm", "cold"], "rows": [900, 4], "users": [40, 1]},
            **{"uauc_users": [38, 1], "auc": [0.7, 0.75], "auc_low": [0.6, np.nan], "auc_high": [0.8, np.nan]},
        }
    )
    shown = by_part(lines, "auc").loc["MF"]
    assert shown["warm: 900 rows, 40 users"] == ".700 [.600, .800]"
    assert shown["cold: 4 rows, 1 users (too few)"] == ".750"


def test_a_blend_is_the_mean_of_two_rankings_against_the_one_alone(small_workspace):
    blends = blend_table(small_workspace, "mf", ["counting", "mf", "sella"])
    counting = "with Counting (item + user mean)"
    assert list(blends.index) == ["with itself, seed 1", counting, "with SeLLa-Rec"]
    label = small_workspace.part("test")["label"].to_numpy()
    mf = pd.Series(small_workspace.test_scores("mf"))
    for name, work, system in (
        ("with itself, seed 1", small_workspace.variant({"seed": 1}), "mf"),
        (counting, small_workspace, "counting"),
    ):
        both = auc(label, (mf.rank() + pd.Series(work.test_scores(system)).rank()).to_numpy())
        assert blends.loc[name, "auc"] == pytest.approx(both - auc(label, mf.to_numpy()))
    assert difference_figure(blends).layout.title.text.startswith("The mean of two rankings minus MF")


def test_uauc_is_judged_by_the_users_that_it_rests_on():
    user = np.repeat(np.arange(30), 2)
    label = np.where(user < 2, np.tile([0, 1], 30), user % 2)  # two users have both a like and a dislike
    found = differences(UserBootstrap(user, label), {"it": (label + 0.0, 1.0 - label)})
    assert found["auc_verdict"].item() == "better" and found["uauc_verdict"].item() == "too few users"


def test_a_difference_on_a_handful_of_users_decides_nothing(small_workspace, monkeypatch):
    monkeypatch.setattr("sellarec.tables.FEWEST_TO_DECIDE", 10_000)
    assert set(difference_table(small_workspace)["auc_verdict"]) == {"too few users"}


def test_tables_show_what_is_there_and_name_what_is_missing_with_its_command(small_workspace, planted_table, tmp_path):
    work = Workspace(make_config("smoke", str(planted_table), **SMALL), tmp_path)
    work.run("sasrec")
    assert systems_of(work, "table3", ("mf", "sasrec")) == ("mf", "sasrec")
    assert "sasrec" in systems_of(work, "table3", ()) and "sella" not in systems_of(work, "table3", ())
    assert not work.is_done("mf")


def test_missing_systems_are_printed_with_the_command(small_workspace, tmp_path, capsys):
    work = Workspace(small_workspace.config, tmp_path)
    assert systems_of(work, "table5", ()) == ()
    out = capsys.readouterr().out
    assert "no_warm_token" in out and "sellarec run table5" in out
