import dataclasses

import pytest

from sellarec.config import make_config
from sellarec.data.open import open_dataset
from sellarec.prompts import ITEM, SOFT_TOKENS, USER, WARM, PromptWriter, natural_title
from sellarec.settings import PromptConfig


@pytest.fixture(scope="module")
def data(planted_table):
    return open_dataset(str(planted_table))


@pytest.mark.parametrize(
    ("raw", "natural"),
    [
        ("Matrix, The (1999)", "The Matrix (1999)"),
        ("Avventura, L' (1960)", "L'Avventura (1960)"),
        ("Few Good Men, A (1992)", "A Few Good Men (1992)"),
        ("Good, the Bad (1966)", "Good, the Bad (1966)"),
        ("Heat (1995)", "Heat (1995)"),
        ("Bridge, The", "The Bridge"),
    ],
)
def test_a_trailing_article_moves_to_the_front(raw, natural):
    assert natural_title(raw) == natural


def test_the_paper_prompt_is_history_target_and_question(data):
    writer = PromptWriter(data, make_config("full-paper").prompt)
    prompt = writer.compose(data.history(5)[:0], 1)
    assert prompt.text == (
        f'The user rated these movies highly: none. Will the user like the movie "{data.titles[1]}"? '
        "Answer Yes or No. Answer:"
    )
    two = writer.compose([1, 2], 3).prefix
    assert two.endswith(f'"{data.titles[1]}", "{data.titles[2]}".')


def test_only_the_last_titles_are_listed_oldest_first(data):
    writer = PromptWriter(data, PromptConfig(history=2, natural_titles=False))
    prefix = writer.compose([1, 2, 3], 4).prefix
    assert data.titles[1] not in prefix
    assert prefix.index(data.titles[2]) < prefix.index(data.titles[3])
    assert PromptWriter(data, PromptConfig(history=0, user_profile=False)).compose([1], 2).prefix == ""


def test_rows_with_equal_histories_share_the_prefix(data):
    writer = PromptWriter(data, PromptConfig(), SOFT_TOKENS)
    a, b = writer.compose([1, 2], 3, of_user=(4, 1)), writer.compose([1, 2], 5, of_user=(4, 1), of_item=(3, 2))
    assert a.prefix == b.prefix and a.suffix != b.suffix
    assert "The user likes 25% of 4 movies." in a.prefix
    assert "It is new here." in a.suffix and "It is liked by 67% of 3 users." in b.suffix


def test_the_expectation_adds_how_far_user_and_item_are_from_the_usual(data):
    usual = data.part("train")["label"].mean()
    writer = PromptWriter(data, PromptConfig())

    def expected(of_user, of_item):
        return float(writer.compose([], 1, of_user, of_item).text.split("Expected from both: ")[1].split("%")[0])

    assert expected((0, 0), (0, 0)) == round(100 * usual)
    user, item = (12 + 5 * usual) / 20, (1 + 5 * usual) / 15
    assert expected((15, 12), (10, 1)) == round(100 * (user + item - usual))
    assert expected((500, 500), (500, 500)) == 99
    assert "Expected" not in PromptWriter(data, PromptConfig(expectation=False)).compose([], 1).text


def test_a_token_that_is_left_out_takes_its_words_with_it(data):
    def suffix(*tokens):
        return PromptWriter(data, PromptConfig(), tokens).compose([], 1).suffix

    assert f"{ITEM}, {WARM}." in suffix(*SOFT_TOKENS)
    assert "collaborative" not in suffix(ITEM, WARM)
    assert f"feature is {WARM}." in suffix(USER, WARM)
    assert "feature" not in suffix()


def test_a_test_row_is_told_all_training_counts_of_its_user_and_item(data):
    writer, train = PromptWriter(data, PromptConfig()), data.part("train")
    for row in data.part("test").index[:40]:
        user, item = data.interactions.loc[row, ["user", "item"]]
        of_user, of_item = train[train["user"] == user]["label"], train[train["item"] == item]["label"]
        prompt = writer.write(row)
        told = (
            f"likes {100 * of_user.mean():.0f}% of {len(of_user)} movies" if len(of_user) else "is new to movies here"
        )
        assert told in prompt.prefix
        told = f"liked by {100 * of_item.mean():.0f}% of {len(of_item)} users" if len(of_item) else "It is new here."
        assert told in prompt.suffix


def test_an_item_is_found_by_its_title_as_a_prompt_writes_it(data):
    catalogue = data.catalogue.assign(title=["Matrix, The (1999)", *data.catalogue["title"][1:]])
    moved = dataclasses.replace(data, catalogue=catalogue)
    assert moved.item_by_title("The Matrix (1999)") == moved.item_by_title("matrix, the (1999)") == 1
