import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sellarec.data.dataset import sample_rows, sample_users
from sellarec.data.open import open_dataset
from sellarec.data.protocol import build_dataset, cut_by_month, cut_by_span
from sellarec.data.readers import read_ml_1m
from sellarec.errors import SellarecError

ratings = st.lists(
    st.tuples(st.integers(1, 6), st.integers(1, 8), st.integers(1, 5), st.integers(0, 40)), min_size=8, max_size=80
)


def dataset(table, **options):
    frame = pd.DataFrame(table, columns=["user", "item", "rating", "timestamp"]).astype({"user": str, "item": str})
    items = sorted(frame["item"].unique())
    catalogue = pd.DataFrame({"item": items, "title": [f"T{i}" for i in items], "genres": ""})
    catalogue["year"] = pd.Series([pd.NA] * len(items), dtype="Int16")
    return build_dataset("t", (frame, catalogue), cut_by_span(0.5, 0.8), **options)


def built(table, **options):
    """The dataset, or None if chance left a part empty."""
    try:
        return dataset(table, **options)
    except SellarecError:
        return None


@given(ratings)
def test_histories_hold_exactly_the_earlier_likes_of_the_same_user(table):
    data = built(table)
    if data is None:
        return
    rows = data.interactions
    for n in range(len(rows)):
        earlier = rows.iloc[:n]
        expected = earlier[(earlier["user"] == rows["user"].iat[n]) & (earlier["label"] == 1)]["item"]
        assert data.history(n).tolist() == expected.tolist()
        assert data.history(n, 2).tolist() == expected.tolist()[-2:]
        assert data.history_lengths(np.array([n]))[0] == len(expected)


@given(ratings)
def test_strict_histories_hold_only_likes_of_an_earlier_second(table):
    data = built(table, strict_history=True)
    if data is None:
        return
    rows = data.interactions
    for n in range(len(rows)):
        mine = rows[(rows["user"] == rows["user"].iat[n]) & (rows["label"] == 1)]
        assert data.history(n).tolist() == mine[mine["timestamp"] < rows["timestamp"].iat[n]]["item"].tolist()


@given(ratings)
def test_parts_follow_each_other_in_time_and_nothing_is_lost(table):
    data = built(table)
    if data is None:
        return
    stamps = [data.part(s)["timestamp"] for s in ("train", "valid", "test")]
    assert sum(map(len, stamps)) == len(table)
    assert stamps[0].max() < stamps[1].min() and stamps[1].max() < stamps[2].min()


@given(ratings)
def test_warm_means_user_and_item_in_train_and_ids_start_at_one(table):
    data = built(table)
    if data is None:
        return
    rows, train = data.interactions, data.part("train")
    expected = [
        u in set(train["user"]) and i in set(train["item"]) for u, i in zip(rows["user"], rows["item"], strict=True)
    ]
    assert rows["warm"].tolist() == expected
    assert sorted(rows["item"].unique()) == list(range(1, data.n_items + 1))
    assert rows["user"].is_monotonic_increasing and rows["user"].min() == 1
    assert rows.dtypes.astype(str).to_dict() == {
        "user": "int32",
        "item": "int32",
        "label": "int8",
        "timestamp": "int64",
        "split": "category",
        "warm": "bool",
    }


@settings(deadline=None)
@given(ratings, st.integers(0, 99))
def test_later_labels_never_change_what_earlier_rows_see(table, seed):
    """Flipping the last part's ratings leaves train, valid and their histories as they are."""
    data = built(table)
    if data is None:
        return
    edge = data.part("test")["timestamp"].min()
    flipped = [(u, i, 6 - r if t >= edge else r, t) for u, i, r, t in table]
    other = dataset(flipped)
    kept = data.interactions["split"] != "test"
    pd.testing.assert_frame_equal(data.interactions[kept], other.interactions[kept])
    assert all((data.history(n) == other.history(n)).all() for n in np.flatnonzero(kept))


def test_ties_keep_the_order_of_the_file():
    table = [(1, 5, 5, 0), (1, 3, 5, 0), (1, 4, 1, 1), (1, 1, 5, 6), (1, 2, 5, 10)]
    data = dataset(table)
    assert data.catalogue["raw_item"].tolist() == ["5", "3", "4", "1", "2"]
    assert data.history(2).tolist() == [1, 2]


def test_ids_of_more_digits_than_a_float_holds_stay_apart():
    one, other = "117065749986299237881", "117065749986299237882"
    rows = [(one, n, 5 if n % 2 else 1, n) for n in range(1, 11)] + [(other, n + 20, 5, n) for n in range(1, 11)]
    data = dataset(rows)
    assert data.interactions["user"].is_monotonic_increasing
    likes = data.history(int(data.interactions.index[data.interactions["user"] == 2][-1]))
    assert set(data.catalogue["raw_item"][likes]) <= {str(n + 20) for n in range(1, 11)}


def test_a_label_is_a_rating_strictly_above_the_threshold():
    table = [(1, 1, 3, 0), (1, 2, 4, 0), (1, 3, 3, 6), (1, 4, 4, 10)]
    assert dataset(table).interactions["label"].tolist() == [0, 1, 0, 1]
    with pytest.raises(SellarecError, match="all training labels are the same"):
        dataset(table, like_above=2.0)


def test_an_empty_part_is_named():
    with pytest.raises(SellarecError, match="valid part has no rows"):
        dataset([(1, 1, 5, 0), (1, 2, 1, 0), (1, 3, 5, 10)])


def test_sampling_takes_whole_users_and_the_same_ones_again(planted_table):
    data = open_dataset(str(planted_table))
    test = data.part("test")
    part = sample_users(test, 30, seed=0)
    assert 30 <= len(part) < len(test)
    assert all((part["user"] == u).sum() == (test["user"] == u).sum() for u in part["user"].unique())
    assert part.equals(sample_users(test, 30, seed=0))
    assert len(sample_rows(test, 7, seed=0)) == 7
    assert sample_rows(test, None, seed=0) is test


def test_movielens_1m_gives_the_published_counts(ml_1m_folder):
    cut = cut_by_month(("2001-06-01", "2002-04-01", "2002-09-01"), end="2003-02-01")
    data = build_dataset("ml-1m", read_ml_1m(ml_1m_folder), cut)
    assert [len(data.part(s)) for s in ("train", "valid", "test")] == [33_891, 10_401, 7_331]
    assert (data.n_users, data.n_items) == (838, 3_255)
    assert int(data.part("test")["warm"].sum()) == 4_153
    assert data.part("train")["label"].mean() == pytest.approx(0.5368, abs=5e-5)


@given(ratings, st.sampled_from(["user", "item"]), st.data())
def test_training_counts_never_read_the_rows_own_label_nor_one_of_valid_and_test(table, column, draw):
    data = built(table)
    if data is None:
        return
    rows, counts = data.interactions, data.training_counts(column)
    unread = draw.draw(st.sampled_from(range(len(rows))))
    flipped = rows.assign(label=rows["label"].where(rows.index != unread, 1 - rows["label"]).astype("int8"))
    after = dataclasses.replace(data, interactions=flipped).training_counts(column)
    assert counts[unread].tolist() == after[unread].tolist()
    if rows["split"].iat[unread] != "train":
        assert (counts == after).all()


@given(ratings)
def test_training_counts_of_later_rows_are_those_of_the_whole_training_part(table):
    data = built(table)
    if data is None:
        return
    rows, train, counts = data.interactions, data.part("train"), data.training_counts("item")
    for row in np.flatnonzero(rows["split"] != "train"):
        mine = train[train["item"] == rows["item"].iat[row]]["label"]
        assert counts[row].tolist() == [len(mine), mine.sum()]
    inside = rows["split"] == "train"
    whole = train.groupby("item")["label"].transform("size")
    assert (counts[inside, 0] < whole).all()
