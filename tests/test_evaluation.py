import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from sellarec.evaluation import Interval, UserBootstrap, auc, metrics, uauc, user_aucs

rows = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1), st.integers(-3, 3)), min_size=1, max_size=60)


def columns(table):
    return tuple(np.array(c) for c in zip(*table, strict=True))


def test_auc_of_a_hand_counted_case():
    # Pairs (liked, disliked): .9>.1, .9>.5, .5>.1 count one, .5=.5 counts a half: 3.5 of 4.
    assert auc([1, 1, 0, 0], [0.9, 0.5, 0.1, 0.5]) == pytest.approx(3.5 / 4)


def test_one_class_is_nan_not_zero():
    assert np.isnan(auc([1, 1], [0.2, 0.3]))
    assert np.isnan(uauc([1, 2], [1, 0], [0.2, 0.3]))


def test_uauc_leaves_out_users_without_both_classes():
    user = [1, 1, 2, 2, 3, 4, 4, 4]
    label = [1, 0, 1, 1, 0, 1, 0, 0]
    score = [0.9, 0.1, 0.5, 0.6, 0.3, 0.2, 0.1, 0.3]
    assert user_aucs(user, label, score).to_dict() == {1: 1.0, 4: 0.5}
    assert uauc(user, label, score) == 0.75


@given(rows)
def test_auc_agrees_with_scikit_learn(table):
    _, label, score = columns(table)
    if 0 < label.sum() < len(label):
        assert auc(label, score) == pytest.approx(roc_auc_score(label, score))


@given(rows)
def test_uauc_agrees_with_a_loop_over_users(table):
    user, label, score = columns(table)
    each = [
        roc_auc_score(label[user == u], score[user == u]) for u in np.unique(user) if len(set(label[user == u])) == 2
    ]
    assert uauc(user, label, score) == pytest.approx(np.mean(each) if each else np.nan, nan_ok=True)


@given(rows, st.integers(0, 1000))
def test_order_of_rows_and_monotone_transforms_change_nothing(table, seed):
    user, label, score = columns(table)
    order = np.random.default_rng(seed).permutation(len(user))
    assert auc(label, score) == pytest.approx(auc(label[order], np.exp(score[order])), nan_ok=True)
    assert uauc(user, label, score) == pytest.approx(uauc(user[order], label[order], 2 * score[order]), nan_ok=True)


@pytest.mark.parametrize(
    ("label", "score", "message"),
    [([0, 2], [0.1, 0.2], "neither 0 nor 1"), ([0, 1], [0.1, np.nan], "row 1"), ([0, 1], [0.1], "2 labels and 1")],
)
def test_bad_input_is_refused_with_the_reason(label, score, message):
    with pytest.raises(ValueError, match=message):
        auc(label, score)


def test_metrics_split_warm_and_cold_and_count_what_they_rest_on():
    table = pd.DataFrame({"user": [1, 1, 2, 2], "label": [1, 0, 1, 1], "warm": [True, True, False, False]})
    found = metrics(table, np.array([0.9, 0.1, 0.4, 0.6]))
    assert found["warm"] == {"auc": 1.0, "uauc": 1.0, "rows": 2, "users": 1, "users_left_out": 0}
    assert np.isnan(found["cold"]["auc"])
    assert found["all"]["users_left_out"] == 1


@pytest.fixture
def sample():
    random = np.random.default_rng(3)
    user = random.integers(0, 40, 600)
    label = random.integers(0, 2, 600)
    good = np.round(label + random.normal(0, 1.0, 600), 1)  # rounding makes ties
    return user, label, good, np.round(label + random.normal(0, 3.0, 600), 1)


def test_a_resample_equals_the_metric_of_the_repeated_rows(sample):
    user, label, score, _ = sample
    bootstrap = UserBootstrap(user, label, resamples=5, seed=1)
    users = np.unique(user)
    for n, weight in enumerate(
        np.random.default_rng(1).multinomial(len(users), np.full(len(users), 1 / len(users)), 5)
    ):
        rows = np.concatenate([np.repeat(np.flatnonzero(user == u), w) for u, w in zip(users, weight, strict=True)])
        assert bootstrap.auc(score)[n] == pytest.approx(roc_auc_score(label[rows], score[rows]))
        each = [user_aucs(user, label, score)[u] for u, w in zip(users, weight, strict=True) for _ in range(w)]
        assert bootstrap.uauc(score)[n] == pytest.approx(np.mean(each))


def test_a_resample_of_users_and_items_equals_the_metric_of_the_repeated_rows(sample):
    user, label, score, _ = sample
    item = np.random.default_rng(4).integers(0, 25, len(user))
    bootstrap = UserBootstrap(user, label, resamples=5, seed=1, item=item)
    random = np.random.default_rng(1)
    of_user, of_item = (random.multinomial(n, np.full(n, 1 / n), 5) for n in (len(set(user)), len(set(item))))
    for n in range(5):
        times = of_user[n][user] * of_item[n][item]  # every user and item occurs, so that ids are places
        rows = np.repeat(np.arange(len(user)), times)
        assert bootstrap.auc(score)[n] == pytest.approx(roc_auc_score(label[rows], score[rows]))
        rows = np.repeat(np.arange(len(user)), of_item[n][item])
        each = user_aucs(user[rows], label[rows], score[rows])
        drawn = of_user[n][each.index]
        assert bootstrap.uauc(score)[n] == pytest.approx((each * drawn).sum() / drawn.sum())


def test_resampling_items_too_widens_what_hangs_on_items(sample):
    user, label, _, _ = sample
    item = np.random.default_rng(4).integers(0, 6, len(user))
    score = label * (item < 3)  # right about three items only
    users, both = (UserBootstrap(user, label, item=i).interval("auc", score) for i in (None, item))
    assert users.value == both.value and both.high - both.low > 2 * (users.high - users.low)


def test_auc_rests_on_fewer_users_where_some_have_most_rows():
    user = np.repeat([1, 2, 3], [8, 1, 1])
    effective = UserBootstrap(user, np.arange(10) % 2).effective_users
    assert effective == {"auc": pytest.approx(100 / 66), "uauc": 1.0}


def test_the_interval_holds_the_estimate_and_a_clear_difference_excludes_zero(sample):
    user, label, good, bad = sample
    bootstrap = UserBootstrap(user, label)
    single = bootstrap.interval("auc", good)
    assert single.low < single.value < single.high
    difference = bootstrap.interval("auc", good, bad)
    assert difference.value == pytest.approx(auc(label, good) - auc(label, bad))
    assert difference.excludes_zero
    assert not bootstrap.interval("uauc", good, good).excludes_zero


def test_what_rests_on_one_user_has_no_interval():
    one = UserBootstrap(np.array([7] * 4), np.array([0, 1, 0, 1])).interval("auc", np.array([0.1, 0.4, 0.2, 0.15]))
    assert one.value == 0.75 and np.isnan([one.low, one.high]).all() and not one.excludes_zero
    user, label = np.array([1, 1, 2, 2]), np.array([0, 1, 1, 1])  # only user 1 has both classes
    two = UserBootstrap(user, label)
    assert np.isnan(two.interval("uauc", np.arange(4.0)).low) and np.isfinite(two.interval("auc", np.arange(4.0)).low)


def test_pairing_narrows_the_interval_of_nearly_equal_scores(sample):
    user, label, good, _ = sample
    bootstrap = UserBootstrap(user, label)
    paired = bootstrap.interval("auc", good, good + np.random.default_rng(0).normal(0, 0.05, len(good)))
    alone = bootstrap.interval("auc", good)
    assert paired.high - paired.low < (alone.high - alone.low) / 3


def test_an_interval_is_written_with_the_bounds_that_there_are():
    nan = float("nan")
    assert f"{Interval(0.73169, 0.70949, 0.75261):.4f}" == "0.7317 [0.7095, 0.7526]"
    assert f"{Interval(-0.0011, -0.0047, 0.0026):+.4f}" == "-0.0011 [-0.0047, +0.0026]"
    assert (f"{Interval(0.5, nan, nan):.3f}", f"{Interval(nan, nan, nan):.3f}") == ("0.500", "undefined")
