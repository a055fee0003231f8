"""Made-up rows: what is not changed scores as its run, what is changed reaches the prompt and the tokens."""

import dataclasses

import numpy as np
import pytest
import torch

from sellarec.analysis.catalogue import row_of_pair, score_pair
from sellarec.analysis.what_if import Explorer, interventions
from sellarec.errors import SellarecError
from sellarec.prompts import ITEM, SOFT_TOKENS, USER, WARM, PromptWriter
from sellarec.settings import PromptConfig
from sellarec.systems.scores import sigmoid


@pytest.fixture(scope="module")
def explorer(small_workspace):
    return Explorer(small_workspace)


@pytest.fixture(scope="module")
def case(explorer):
    test = explorer.dataset.part("test")
    lengths = explorer.dataset.history_lengths(test.index.to_numpy())
    return explorer.case_of_row(int(test.index[(lengths > 5) & test["warm"].to_numpy()][0]))


def test_an_unchanged_row_gets_the_score_of_its_run(explorer, small_workspace):
    scores = small_workspace.run("sella").scores
    found = explorer.log_odds([explorer.case_of_row(r) for r in scores["row"]])
    np.testing.assert_allclose(1 / (1 + np.exp(-found)), scores["score"], atol=2e-6)


def test_of_a_pair_that_was_rated_twice_the_scored_row_is_shown(small_workspace):
    rows, test = small_workspace.dataset.interactions, small_workspace.part("test")
    row = int(test.index[0])
    twice = rows.copy()
    first = int(rows.index[rows["user"] == rows.loc[row, "user"]][0])
    assert first < row and rows.loc[first, "split"] == "train"
    twice.loc[first, "item"] = rows.loc[row, "item"]
    work = small_workspace.variant({"stage3.rows": 31})
    work.dataset = dataclasses.replace(small_workspace.dataset, interactions=twice)
    explorer, pair = Explorer(work), rows.loc[row, ["user", "item"]]
    assert row_of_pair(work, *pair) == row and explorer.case_of_pair(*pair) == explorer.case_of_row(row)


def test_a_training_row_is_counted_as_the_system_counts_it(explorer, small_workspace):
    """With its own label in the counts, the answer would be another one than the system's own."""
    train = explorer.dataset.part("train").iloc[::40]
    cases = [explorer.case_of_pair(int(user), int(item)) for user, item in train[["user", "item"]].to_numpy()]
    assert any(case.of_item != explorer.counts("item", case.item) for case in cases)
    own = [score_pair(small_workspace, "sella", case.user, case.item) for case in cases]
    np.testing.assert_allclose(sigmoid(explorer.log_odds(cases)), own, atol=2e-6)


def test_spans_cover_the_prompt_and_say_what_it_says(explorer, case):
    prompt = explorer.prompt(case)
    assert [s for _, s, _ in prompt.spans] == [0, *(e for _, _, e in prompt.spans[:-1])]
    said = {name: prompt.text[start:end] for name, start, end in prompt.spans if name != "instruction"}
    listed = case.history[-explorer.work.config.prompt.history :]
    titles = PromptWriter(explorer.dataset, PromptConfig())._titles
    assert [said[f"title {n}"] for n in range(1, len(listed) + 1)] == [titles[i] for i in listed]
    assert said["target"] == titles[case.item] and said["user record"].startswith(" The user likes")
    assert [said[t] for t in SOFT_TOKENS] == list(SOFT_TOKENS)
    assert said["item record"].startswith(" It is liked by") and said["genres"].startswith(" (")


def test_attention_is_a_causal_distribution_whose_segments_add_up(explorer, case):
    found = explorer.attention(case)
    layers, heads, length, _ = found.weights.shape
    assert (layers, heads) == (2, 4) and length == len(found.tokens) == len(found.segments)
    np.testing.assert_allclose(found.weights.sum(axis=-1), 1, atol=1e-5)
    assert np.triu(found.weights[0, 0], 1).max() == 0
    parts = found.by_segment()
    np.testing.assert_allclose(sum(parts.values()), 1, atol=1e-5)
    assert next(iter(parts)) == "sink" and set(SOFT_TOKENS) <= set(parts)
    for token in SOFT_TOKENS:
        assert found.tokens.count(token) == 1 and found.segments[found.tokens.index(token)] == token
    joined = "".join(t for t, s in zip(found.tokens, found.segments, strict=True) if s == "title 2")
    assert "Film" in joined


def test_a_look_is_the_score_and_the_attention_whether_its_prefix_was_seen_or_not(explorer, case):
    cases = [case, case.without_token("<User_ID>"), dataclasses.replace(case, history=()), case]
    explorer._prefixes.clear()
    for seen, other in zip((False, True, False, True), cases, strict=True):
        assert (explorer._row(other).prefix in explorer._prefixes) == seen
        log_odds, attention = explorer.look(other)
        assert log_odds == pytest.approx(explorer.log_odds([other])[0], abs=2e-6)
        expected = explorer.attention(other).by_segment()
        assert list(attention) == list(expected)
        for segment, share in attention.items():
            np.testing.assert_allclose(share, expected[segment], atol=1e-6)


def test_segments_are_right_after_a_long_history_was_cut(explorer, case):
    lm = explorer._lm
    prompt = explorer.prompt(case)
    whole = lm.token_ends(prompt, SOFT_TOKENS)
    short = dataclasses.replace(lm, max_tokens=len(whole) - 7)
    assert short.token_ends(prompt, SOFT_TOKENS) == whole[7:]
    assert len(short.tokenize(prompt, SOFT_TOKENS)) == len(whole) - 7


def test_each_intervention_changes_what_it_says(explorer, case):
    other = {"swap_user": 2 if case.user != 2 else 3, "swap_item": 5 if case.item != 5 else 6}
    changed = interventions(explorer, case, **other)
    listed = explorer.work.config.prompt.history
    assert len(changed) == min(len(case.history), listed) + 3 + 3
    for name in (USER, ITEM, WARM):
        assert name not in explorer.prompt(changed[f"without {name}"]).text
    first = explorer.dataset.titles[case.history[-listed:][0]]
    assert case.history[-listed:][0] not in changed[f"without {first}"].history
    longer = dataclasses.replace(case, history=tuple(range(1, listed + 3)))
    removed = explorer.prompt(interventions(explorer, longer, **other)[f"without {explorer.dataset.titles[3]}"])
    assert sum(name.startswith("title ") for name, _, _ in removed.spans) == listed - 1  # no earlier like moves up

    base = explorer._vectors([case])
    for name, token in (("user's", USER), ("item's", ITEM), ("item's warm", WARM)):
        swapped = explorer._vectors([changed[f"another {name} token"]])
        assert {t for t in SOFT_TOKENS if not torch.equal(base[t], swapped[t])} == {token}
        assert explorer.prompt(changed[f"another {name} token"]) == explorer.prompt(case)
    together = explorer.log_odds([case, *changed.values()])
    alone = [explorer.log_odds([c])[0] for c in (case, *changed.values())]
    np.testing.assert_allclose(together, alone, atol=2e-5)
    assert explorer.log_odds([case])[0] == alone[0]  # the same input alone gives the same bits, so this is no rounding:
    assert (np.array(alone[1:]) != alone[0]).all()


def test_of_two_films_of_one_title_each_is_left_out(explorer, case, monkeypatch):
    named_alike = ["", *["Twins (1988)"] * explorer.dataset.n_items]
    monkeypatch.setattr(explorer, "dataset", dataclasses.replace(explorer.dataset))  # without cached titles
    monkeypatch.setitem(vars(explorer.dataset), "titles", named_alike)
    case = dataclasses.replace(case, history=(4, 5))
    changed = interventions(explorer, case, 2, 5)
    assert [changed[f"without Twins (1988) (item {i})"].history for i in (4, 5)] == [(5,), (4,)]
    twice = interventions(explorer, dataclasses.replace(case, history=(4, 4)), 2, 5)
    assert [twice[f"without Twins (1988) (item 4), title {n}"].history for n in (1, 2)] == [(4,), (4,)]
    with pytest.raises(SellarecError, match=r"such as Twins \(1988\) \(item 1\).*as it stands here"):
        explorer.find_case(1, "Twins (1988)")
    assert explorer.find_case(1, "twins (1988) (item 3)").item == explorer.find_case(1, 3).item == 3


def test_ids_that_do_not_exist_are_explained(explorer):
    with pytest.raises(SellarecError, match="user 999 is not in"):
        explorer.case(999, 1, ())
    for item in (-1, 0, 31):
        with pytest.raises(SellarecError, match="ids go from 1 to 30"):
            explorer.case(1, item, ())
    assert np.isfinite(explorer.log_odds([explorer.case(0, 1, ())])).all()  # somebody new, without a history


def test_a_history_of_500_titles_is_scored(explorer):
    case = explorer.case(1, 2, tuple(range(1, 31)) * 17)
    assert np.isfinite(explorer.log_odds([case])).all()


def test_runs_that_score_raw_logits_have_no_what_ifs(small_workspace):
    work = small_workspace.variant({"evaluation.raw_yes": True})
    with pytest.raises(SellarecError, match="raw_yes"):
        Explorer(work)
