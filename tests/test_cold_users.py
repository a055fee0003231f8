"""Training rows that show their user as new: how many, what they show, and that nothing else changes."""

import numpy as np
import pandas as pd
import pytest

from sellarec.collab.records import training_records
from sellarec.config import make_config
from sellarec.errors import SellarecError
from sellarec.prompts import PromptWriter
from sellarec.settings import PromptConfig
from sellarec.systems.base import Workspace
from sellarec.systems.cold_users import hide_users, known_users
from sellarec.systems.rows import row_inputs


@pytest.fixture(scope="module")
def work(planted_table, tmp_path_factory):
    """The planted table with two users who arrive in the validation part."""
    table = pd.read_csv(planted_table)
    late = table["user"].isin([18, 19])
    nth = table.groupby("user").cumcount()
    table.loc[late, "timestamp"] = 1_000_000_000 + (690 + 5 * nth[late]) * 86400
    folder = tmp_path_factory.mktemp("late")
    table.to_csv(folder / "late.csv", index=False)
    return Workspace(make_config("smoke", str(folder / "late.csv")), folder)


@pytest.fixture(scope="module")
def rows(work):
    return work.dataset.part("train").index.to_numpy()


def test_as_many_users_are_hidden_as_are_new_in_the_validation_part(work, rows):
    valid, train = work.dataset.part("valid"), work.dataset.part("train")
    new = 1 - valid["user"].isin(train["user"]).mean()
    assert 0 < new < 1
    hidden = hide_users(work, rows, None)
    assert hidden.dtype == bool and hidden.mean() == pytest.approx(new, abs=0.1)
    np.testing.assert_array_equal(hidden, hide_users(work, rows, None))
    assert not hide_users(work, rows, 0.0).any() and hide_users(work, rows, 1.0).all()


def test_every_training_user_is_known_and_a_share_above_one_is_refused(work, rows):
    assert known_users(work, rows).all()
    with pytest.raises(SellarecError, match=r"stage1\.cold_users is 1\.5; it must be at most 1"):
        make_config(**{"stage1.cold_users": 1.5})


def test_a_hidden_user_reads_like_a_user_who_is_new(work, rows):
    data = work.dataset
    writer = PromptWriter(data, PromptConfig())
    known, hidden = writer.write(rows[7]), writer.write(rows[7], new_user=True)
    assert "The user likes" in known.prefix and "The user is new to movies here." in hidden.prefix
    assert hidden.prefix.split(".")[0] == known.prefix.split(".")[0]
    before, after = (p.suffix.split("Expected from both")[0] for p in (known, hidden))
    assert before == after
    item = int(data.interactions["item"].iat[rows[7]])
    stranger = writer.compose(data.history(rows[7], 10), item, (0, 0), data.training_counts("item")[rows[7]])
    assert hidden == stranger, "what is expected of a hidden user rests on the item alone"

    test = data.part("test")
    new = test.index[~test["user"].isin(data.part("train")["user"])].to_numpy()[:1]
    mask = np.array([True, False])
    user, item, of_user, of_item = row_inputs(work, rows[[7, 8]], mask)
    assert user.tolist() == [0, data.interactions["user"].iat[rows[8]]]
    assert item.tolist() == data.interactions["item"].iloc[rows[[7, 8]]].tolist()
    as_new = row_inputs(work, new)
    assert as_new[0].tolist() == [0]
    np.testing.assert_array_equal(of_user[0], as_new[2][0])
    np.testing.assert_array_equal(of_user[1], training_records(data, "user", rows[[8]])[0])
    np.testing.assert_array_equal(of_item, training_records(data, "item", rows[[7, 8]]))
