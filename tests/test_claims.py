"""Verdicts over the paper's claims."""

import pytest

from sellarec import tables
from sellarec.analysis import claims
from sellarec.config import make_config
from sellarec.evaluation import Interval, UserBootstrap, auc
from sellarec.profiles import AS_IN_THE_PAPER
from sellarec.systems.registry import marked_label, not_fair


def test_a_claim_holds_only_if_its_interval_lies_above_zero():
    for low, value, high, expected in (
        (0.01, 0.02, 0.03, "holds"),
        (-0.03, -0.02, -0.01, "does not hold"),
        (-0.01, 0.02, 0.05, "undecided"),
        (float("nan"), 0.1, float("nan"), "undecided"),
    ):
        assert claims.verdict(Interval(value, low, high)) == expected
        assert claims.Gain(Interval(value, low, high), users=30, effective=30).verdict == expected


def test_a_handful_of_users_decides_nothing_nor_do_metrics_that_disagree():
    better, worse, open_ = Interval(0.2, 0.1, 0.3), Interval(-0.2, -0.3, -0.1), Interval(-0.1, -0.3, 0.1)
    few = claims.Gain(better, users=100, effective=29.4)
    assert few.verdict == "undecided"
    assert str(few) == "ΔAUC +0.2000 [+0.1000, +0.3000]; 100 users, effectively 29: too few"
    assert claims.Gain(better, 100, 50, uauc=worse).verdict == "undecided"
    assert claims.Gain(better, 100, 50, uauc=open_).verdict == "holds"
    assert claims.Gain(worse, 100, 50, uauc=open_).verdict == "does not hold"


def test_a_seed_of_another_sign_leaves_a_claim_undecided():
    better = Interval(0.2, 0.1, 0.3)
    agreed, parted = (claims.Gain(better, 100, 50, seeds={1: 0.1, 2: gain}) for gain in (0.01, -0.01))
    assert (agreed.verdict, parted.verdict) == ("holds", "undecided")
    assert str(parted).endswith("effectively 50; seed 1: +0.1000; seed 2: -0.0100")


def test_the_store_is_asked_for_other_seeds(small_workspace):
    other = small_workspace.variant({"seed": small_workspace.config.seed + 1})
    for place in (small_workspace, other):
        place.run("sella")
        place.run("mf")
    label = small_workspace.part("test")["label"]
    expected = auc(label, other.test_scores("sella")) - auc(label, other.test_scores("mf"))
    assert claims._gain(small_workspace, "mf").seeds == {other.config.seed: pytest.approx(expected)}


BEATS = "SeLLa-Rec beats all fair baselines of the paper, and loses to no other"

FILMS = make_config("quick", "ml-1m")


@pytest.fixture
def gains(small_workspace, monkeypatch):
    """What SeLLa-Rec has over others, by name; every system is in the store."""
    of = {}
    better = claims.Gain(Interval(0.2, 0.1, 0.3), 99, 99.0)
    monkeypatch.setattr(claims, "_gain", lambda work, name: of.get(name, better))
    monkeypatch.setattr(claims, "not_fair", lambda config: not_fair(FILMS))
    monkeypatch.setattr(type(small_workspace), "is_done", lambda work, name: True)
    return of


def test_the_papers_baselines_are_beaten_if_all_fair_ones_are(small_workspace, gains):
    worse = claims.Gain(Interval(-0.2, -0.3, -0.1), 99, 99.0)
    open_ = claims.Gain(Interval(-0.1, -0.3, 0.1), 99, 99.0)
    found = lambda: next(claims._beats_systems(small_workspace))  # noqa: E731
    assert found().verdict == "holds" and found().text == BEATS
    assert "better than 5 of 5 fair ones; hardest is " in found().evidence
    assert found().evidence.endswith("fair baselines: SASRec, DIN, Prompt4NR, PersonPrompt, CoLLM-MF, BinLLM")
    gains["sasrec"] = open_
    assert found().verdict == "holds", "it is no fair baseline"
    for unsure in (open_, claims.Gain(Interval(0.3, -0.1, 0.7), 99, 99.0)):
        gains["mf"] = unsure
        assert found().verdict == "undecided" and "better than 4 of 5 fair ones; hardest is MF: " in found().evidence
    gains["sasrec"] = worse
    assert found().verdict == "does not hold", "to lose to what is handicapped counts"
    assert "hardest is SASRec: " in found().evidence and found().evidence.endswith(
        "baselines: DIN, Prompt4NR, PersonPrompt, CoLLM-MF, BinLLM"
    )


def test_a_claim_over_baselines_needs_all_of_them(small_workspace, gains, monkeypatch):
    monkeypatch.setattr(type(small_workspace), "is_done", lambda work, name: name in ("mf", "sasrec"))
    found = claims._beats(small_workspace, "it beats", "Table 3", ["mf", "sasrec", "din", "sella"])
    assert found.verdict == "undecided" and "better than 1 of 1 fair ones there (2 of all 3)" in found.evidence
    alone = claims._beats(small_workspace, "it beats", "Table 3", ["sasrec", "sella"])
    assert alone.verdict == "undecided", "none of them is fair"


def test_what_is_no_fair_baseline_depends_on_settings_and_data():
    assert {"sasrec", "din", "person_prompt", "collm"} <= not_fair(FILMS).keys()
    assert "sasrec" not in not_fair(make_config("quick", "ml-1m", **{"sasrec.weight_decay": 1e-4}))
    assert "person_prompt" not in not_fair(make_config("quick", "ml-1m", **{"person_prompt.learning_rate": 1e-4}))
    assert "collm" not in not_fair(make_config("quick-paper", "ml-1m"))
    assert not_fair(make_config("quick", "books.csv")).keys() == {"collm", "binllm"}, "counts give labels away anywhere"
    assert not not_fair(make_config("quick-paper", "books.csv"))
    assert (marked_label("mf", FILMS), marked_label("sasrec", FILMS)) == ("MF", "SASRec †")


def test_what_is_tuned_again_is_no_fair_baseline_where_that_was_seen_to_lose_what_stage_1_had_learnt():
    again = {"prompt4nr", "tallrec_further"}
    default, paper, full = (not_fair(make_config(p, "ml-1m")) for p in ("quick", "quick-paper", "full"))
    assert again <= default.keys() and "binllm_held_out" not in default, "BinLLM regains it"
    assert not again & paper.keys(), "titles alone"
    assert not again & full.keys(), "another rate"
    assert "labels" in full["binllm"]


def test_claims_are_asked_of_what_is_in_the_store(small_workspace):
    work = small_workspace
    for name in ("sella", "tallrec", "mf", "no_warm_token", "unaligned"):
        work.run(name)
    found = {c.text: c for c in claims.claims(work)}
    rows = work.part("test")
    bootstrap = UserBootstrap(rows["user"].to_numpy(), rows["label"].to_numpy())
    scores = work.test_scores("sella"), work.test_scores("no_warm_token")
    gain, within = (bootstrap.interval(metric, *scores) for metric in ("auc", "uauc"))
    asked = found["Worse with no warm token"]
    assert f"{gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]" in asked.evidence
    assert f"{rows['user'].nunique()} users" in asked.evidence
    expected = claims.Gain(gain, bootstrap.users, bootstrap.effective_users["auc"], within)
    assert asked.verdict == expected.verdict and asked.source == "after Table 5" and str(expected) in asked.evidence
    assert asked.evidence.endswith("Our warm token holds genres and year too, not the title's vector alone")
    beats = found[BEATS]
    assert "there (2 of all 11)" in beats.evidence and beats.verdict != "holds"  # not all of the table is there
    assert found["The same of those that we set beside them"].source == "ours"
    assert "users" in found["Stage 3, its tokens and its rows, improves on stage 1"].evidence
    assert "of the rows are of new users" in found["Stage 3 improves on stage 1 on cold rows"].evidence
    shown = claims.claims_table(work, ["ablation"])
    assert list(shown.index) == ["Worse with no warm token", "Worse if never aligned, with all three tokens"]
    assert shown["here"].iloc[0] == asked.verdict and shown["paper"].iloc[1] == "ours"
    assert "white-space: normal" in tables.in_words(shown).to_html()
    unseen = found["It does so for items that it did not see: text and behaviour agree"]
    assert "items left out" in unseen.evidence
    assert "recall@10" in found["Contrastive learning brings an item's two vectors together"].evidence


def test_text_that_starts_again_is_no_baseline_to_hold_against(small_workspace, gains):
    stage3, further = claims._tokens_help(small_workspace)
    assert stage3.verdict == "holds" and further.verdict == "undecided"


def test_the_papers_claims_are_its_own_only_of_its_own_method(small_workspace):
    paper = small_workspace.variant(AS_IN_THE_PAPER)
    for work, source in ((small_workspace, "after Table 3"), (paper, "Table 3")):
        for name in ("sella", "tallrec"):
            work.run(name)
        assert {c.source for c in claims.claims(work, ["systems"])} == {source, "ours"}
