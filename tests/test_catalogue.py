"""Any system on pairs that nobody rated."""

import dataclasses

import numpy as np
import pytest

from sellarec.analysis.catalogue import NEW_USER, _OnOtherRows, score_candidates, score_pair, with_candidates
from sellarec.analysis.what_if import Explorer
from sellarec.errors import SellarecError
from sellarec.progress import listening
from sellarec.systems.registry import find_system
from sellarec.systems.scores import sigmoid

SCORED = ("counting", "mf", "din", "zero_shot", "tallrec", "mlp_control", "mlp_records", "sella", "no_warm_token")


def last_disliked_row(work):
    """A scored row that is its user's last one and no like: nothing that comes after it can be in its history."""
    last = work.dataset.interactions.groupby("user").tail(1).index
    rows = work.part("test")
    return rows[rows.index.isin(last) & (rows["label"] == 0)].iloc[0]


@pytest.mark.parametrize("name", SCORED)
def test_a_candidate_is_scored_as_the_same_row_of_the_dataset(small_workspace, name):
    row = last_disliked_row(small_workspace)
    stored = small_workspace.run(name).scores.set_index("row").loc[row.name, "score"]
    found = score_candidates(small_workspace, name, row["user"], [3, row["item"]])
    assert found.shape == (2,) and found[1] == pytest.approx(stored, abs=1e-6)


@pytest.mark.parametrize("name", ["counting", "din", "tallrec", "sella"])
def test_a_rated_pair_is_scored_as_it_was_before_the_rating(small_workspace, name):
    """Behind the user's own rows its target, once liked, would stand in its own history."""
    rows = small_workspace.part("test")
    liked = rows[rows["label"] == 1].iloc[0]
    stored = small_workspace.run(name).scores.set_index("row").loc[liked.name, "score"]
    pair = int(liked["user"]), int(liked["item"])
    assert score_pair(small_workspace, name, *pair) == pytest.approx(stored, abs=1e-6)
    rated = small_workspace.dataset.interactions
    never = next(i for i in range(1, 31) if i not in set(rated.loc[rated["user"] == pair[0], "item"]))
    behind = score_candidates(small_workspace, name, pair[0], [never])[0]
    assert score_pair(small_workspace, name, pair[0], never) == pytest.approx(behind, abs=1e-6)


def test_of_a_pair_that_was_rated_twice_the_scored_row_answers(small_workspace):
    rows, row = small_workspace.dataset.interactions, int(small_workspace.part("test").index[0])
    first = int(rows.index[rows["user"] == rows.loc[row, "user"]][0])
    twice = rows.copy()
    twice.loc[first, "item"] = rows.loc[row, "item"]
    place = _OnOtherRows(small_workspace, dataclasses.replace(small_workspace.dataset, interactions=twice))
    of_first, of_scored = find_system("tallrec").score(place, place.with_weights("tallrec"), np.array([first, row]))
    assert first < row and of_first != of_scored
    found = score_pair(place, "tallrec", *rows.loc[row, ["user", "item"]])
    assert found == pytest.approx(of_scored, abs=1e-6)


def test_a_new_user_is_the_explorers_new_user(small_workspace):
    explorer = Explorer(small_workspace)
    cases = [explorer.case(NEW_USER, item, (2, 5)) for item in (1, 7)]
    found = score_candidates(small_workspace, "sella", NEW_USER, [1, 7], liked=[2, 5])
    assert found == pytest.approx(sigmoid(explorer.log_odds(cases)), abs=1e-6)


def test_what_a_new_user_likes_moves_a_model_that_reads_histories_and_no_other(small_workspace):
    def moved(name):
        a, b = (score_candidates(small_workspace, name, NEW_USER, [1, 7], liked=liked) for liked in ([2, 4], [3, 5]))
        return not np.array_equal(a, b)

    assert moved("tallrec") and moved("din") and not moved("mf") and not moved("counting")


def test_candidates_stand_behind_the_users_rows_and_change_no_count(small_workspace):
    data = small_workspace.dataset
    whole, rows = with_candidates(data, 3, [1, 2, 9])
    added = whole.interactions.loc[rows]
    assert list(added["item"]) == [1, 2, 9] and set(added["user"]) == {3} and added["split"].isna().all()
    assert whole.interactions["user"].is_monotonic_increasing
    likes = data.interactions[(data.interactions["user"] == 3) & (data.interactions["label"] == 1)]["item"]
    for row in rows:
        assert list(whole.history(row)) == list(likes)
    kept = np.delete(np.arange(len(whole.interactions)), rows)
    for column in ("user", "item"):
        assert np.array_equal(whole.training_counts(column)[kept], data.training_counts(column))
    assert [len(whole.part(s)) for s in ("train", "valid", "test")] == [
        len(data.part(s)) for s in ("train", "valid", "test")
    ]


def test_ids_that_do_not_exist_are_refused(small_workspace):
    data = small_workspace.dataset
    with pytest.raises(SellarecError, match=f"user {data.n_users + 1} is not in .* 1 to {data.n_users}"):
        with_candidates(data, data.n_users + 1, [1])
    with pytest.raises(SellarecError, match=f"item 0 is not in .* 1 to {data.n_items}"):
        with_candidates(data, 1, [0])
    with pytest.raises(SellarecError, match="new user only"):
        with_candidates(data, 1, [2], liked=[3])
    with pytest.raises(SellarecError, match="gives no scores"):
        score_candidates(small_workspace, "semantic", 1, [2])


def test_a_listener_hears_of_every_batch_and_can_end_the_work(small_workspace):
    heard = []
    with listening(lambda label, done, total: heard.append((done, total))):
        score_candidates(small_workspace, "sella", 1, range(1, 31))
    assert heard[-1] == (30, 30)

    class Cancelled(Exception):
        pass

    def cancel(*_):
        raise Cancelled

    with pytest.raises(Cancelled), listening(cancel):
        score_candidates(small_workspace, "sella", 1, range(1, 31))
    assert score_candidates(small_workspace, "sella", 1, [1]).shape == (1,)  # nobody listens any more
