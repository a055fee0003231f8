import shutil

import pandas as pd
import pytest

from sellarec.data.open import open_dataset
from sellarec.data.readers import read_ml_1m, read_ml_100k, read_table
from sellarec.errors import SellarecError
from sellarec.settings import DataConfig

RATINGS = "1::7::5::100\n2::8::3::200\n"
MOVIES = "7::Léon (1994)::Crime\n8::Matrix, The (1999)::Action|Sci-Fi\n"


def ml_1m(folder, ratings=RATINGS, movies=MOVIES):
    (folder / "ratings.dat").write_text(ratings, encoding="latin-1")
    (folder / "movies.dat").write_text(movies, encoding="latin-1")
    return folder


def ml_100k(folder, items="1\tToy Story\t1995\tAnimation Comedy\n2\tunkonwn\tunkonwn\tunknown\n", encoding="utf-8"):
    (folder / "ml-100k.inter").write_text("user_id\titem_id\trating\ttimestamp\n1\t1\t5\t100\n1\t2\t3\t200\n")
    (folder / "ml-100k.item").write_text("item_id\ttitle\tyear\tclass\n" + items, encoding=encoding)
    return folder


def test_movielens_1m_keeps_order_titles_years_and_genres(tmp_path):
    ratings, catalogue = read_ml_1m(ml_1m(tmp_path))
    assert ratings.to_dict("list") == {
        "user": ["1", "2"],
        "item": ["7", "8"],
        "rating": [5.0, 3.0],
        "timestamp": [100, 200],
    }
    assert catalogue["title"].tolist() == ["Léon (1994)", "Matrix, The (1999)"]
    assert catalogue["year"].tolist() == [1994, 1999]
    assert catalogue["genres"].tolist() == ["Crime", "Action|Sci-Fi"]


def test_movielens_100k_joins_title_and_year(tmp_path):
    _, catalogue = read_ml_100k(ml_100k(tmp_path))
    assert catalogue["title"].tolist() == ["Toy Story (1995)", "unkonwn"]
    assert catalogue["genres"].tolist() == ["Animation|Comedy", "unknown"]
    assert catalogue["year"].isna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        ("1::7::5::100\n2::8::3\n", r"ratings.dat line 2: expected 4 fields separated by '::', found 3"),
        ("1::7::5::100\n2::8::x::9\n", r"line 2: rating 'x' is not a finite number"),
        ("1::7::5::nan\n", r"line 1: timestamp 'nan' is not a finite number"),
        ("1::7::5::inf\n", r"line 1: timestamp 'inf' is not a finite number"),
        ("", r"ratings.dat: the file has no rows"),
        ("1::9::5::100\n", r"item 9 is rated but has no title"),
    ],
)
def test_a_malformed_ratings_file_is_refused_by_line_and_reason(tmp_path, ratings, message):
    with pytest.raises(SellarecError, match=message):
        read_ml_1m(ml_1m(tmp_path, ratings))


def test_an_item_with_two_titles_is_named(tmp_path):
    with pytest.raises(SellarecError, match=r"item 7 occurs twice in the catalogue \(A / B\)"):
        read_ml_1m(ml_1m(tmp_path, movies="7::A::X\n7::B::X\n8::C::X\n"))


def test_a_missing_file_says_how_to_get_it(tmp_path):
    with pytest.raises(SellarecError, match=r"no such file.*sellarec fetch ml-1m"):
        read_ml_1m(tmp_path)


def test_a_wrong_encoding_is_named_with_its_line(tmp_path):
    items = "1\tToy Story\t1995\tComedy\n2\tLéon\t1994\tCrime\n"
    with pytest.raises(SellarecError, match=r"ml-100k.item line 3: not utf-8 text"):
        read_ml_100k(ml_100k(tmp_path, items, encoding="latin-1"))


def table(**columns):
    base = {"user": [1, 2], "item": [7, 8], "title": ["A (1990)", "B"], "rating": [5, 3], "timestamp": [100, 200]}
    return pd.DataFrame({**base, **columns})


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_an_own_table_may_be_parquet_or_csv_and_its_times_may_be_dates(tmp_path, kind):
    path = tmp_path / f"own.{kind}"
    frame = table(timestamp=["1970-01-01 00:01:40", "1970-01-01 00:03:20"])
    frame.to_parquet(path) if kind == "parquet" else frame.to_csv(path, index=False)
    ratings, catalogue = read_table(path)
    assert ratings["timestamp"].tolist() == [100, 200]
    assert catalogue["item"].tolist() == ["7", "8"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"timestamp": [100.0, float("inf")]}, "line 3: timestamp 'inf'"),
        ({"timestamp": ["1970-01-01", "someday"]}, "line 3: timestamp 'someday'"),
        ({"timestamp": [100, 1_600_000_000_000]}, "line 3: timestamp '1600000000000' .* milliseconds"),
        ({"rating": [5, None]}, "line 3: rating 'nan'"),
        ({"title": ["A", None]}, "item 8 is rated but has no title"),
        ({"user": ["a", None]}, "line 3: no user"),
        ({"item": [None, 8]}, "line 2: no item"),
        ({"item": [7, 7]}, r"item 7 occurs twice in the catalogue \(A \(1990\) / B\). Keep one title"),
        (
            {"item": [7, 7], "title": ["A", " A"], "genres": ["Drama", "War"]},
            r"item 7 occurs twice in the catalogue \(Drama / War\). Keep one list of genres",
        ),
        (
            {"user": ["a", "a"], "item": [7, 7], "title": ["A", "A"], "rating": [5, 2], "timestamp": [100, 100]},
            r"line 3: the same user, item and timestamp as an earlier line \(1 such",
        ),
        ({"timestamp": [20200131, 20200201]}, "line 2: timestamp '20200131' looks like a day .* 2020-01-31"),
    ],
)
def test_a_bad_own_table_is_refused_with_the_reason(tmp_path, columns, message):
    path = tmp_path / "own.csv"
    table(**columns).to_csv(path, index=False)
    with pytest.raises(SellarecError, match=message):
        read_table(path)


def test_ids_and_titles_are_text_as_they_stand_and_dates_may_be_written_in_several_ways(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text(
        "user,item,title,rating,timestamp,genres\n"
        "007,01,None,5,1970-01-02,\n"
        "7,1,NA,4,1970-01-02 00:00:01,Drama\n"
        "NA,1,NA,1,86402,Drama\n"
    )
    ratings, catalogue = read_table(path)
    assert ratings["user"].tolist() == ["007", "7", "NA"] and ratings["timestamp"].tolist() == [86400, 86401, 86402]
    assert catalogue[["item", "title", "genres"]].to_numpy().tolist() == [["01", "None", ""], ["1", "NA", "Drama"]]


def test_a_parquet_table_may_list_genres_and_hold_digits_as_text(tmp_path):
    path = tmp_path / "own.parquet"
    table(timestamp=["100", "200"], genres=[["Drama", "War"], []]).to_parquet(path)
    ratings, catalogue = read_table(path)
    assert ratings["timestamp"].tolist() == [100, 200] and catalogue["genres"].tolist() == ["Drama|War", ""]


def test_an_own_table_never_bears_a_registered_datasets_name(planted_table, tmp_path):
    """Or the paper's figures would stand beside its own, and its runs among the other's."""
    shutil.copy(planted_table, tmp_path / "ml-1m.csv")
    assert open_dataset(str(tmp_path / "ml-1m.csv"), DataConfig()).name == "own-ml-1m"
    assert open_dataset(str(planted_table), DataConfig()).name == "planted"


def test_an_own_table_without_a_column_or_rows_or_content_is_refused(tmp_path):
    path = tmp_path / "own.csv"
    table().drop(columns="title").to_csv(path, index=False)
    with pytest.raises(SellarecError, match="no column title; found user, item, rating, timestamp"):
        read_table(path)
    table().head(0).to_csv(path, index=False)
    with pytest.raises(SellarecError, match="the table has no rows"):
        read_table(path)
    path.write_bytes(b"")
    with pytest.raises(SellarecError, match="not readable as a table"):
        read_table(path)


def test_an_own_table_that_was_written_anew_is_read_anew(planted_table, tmp_path):
    path = tmp_path / "own.csv"
    frame = pd.read_csv(planted_table)
    frame.to_csv(path, index=False)
    first = open_dataset(str(path))
    assert open_dataset(str(path)) is first
    frame.assign(rating=6 - frame["rating"]).to_csv(path, index=False)
    path.touch()
    assert open_dataset(str(path)).hash != first.hash
