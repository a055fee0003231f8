"""Amazon-Book on small files in the official form, with counts that are known beforehand."""

import gzip
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sellarec.config import make_config
from sellarec.data import amazon_files, sources
from sellarec.data.open import _open, open_dataset
from sellarec.data.protocol import cut_last_month_in_half
from sellarec.errors import SellarecError
from sellarec.prompts import PromptWriter

ACTIVE = 22
"""Users who each review each of as many books in 2017: 22 reviews a user and a book."""


def stamp(date):
    return int(pd.Timestamp(date, tz="UTC").timestamp())


def review(user, item, date, rating=5.0):
    line = {"overall": rating, "verified": True, "reviewTime": "03 30, 2017", "reviewerID": user, "asin": item}
    return line | {
        "style": {"Format:": " Kindle"},
        "reviewText": 'She said "no",\n\tthen',
        "unixReviewTime": stamp(date),
    }


def book(item, title, category=("Books", "Literature &amp; Fiction", "World")):
    return {"category": list(category), "tech1": "", "description": ["a | b"], "title": title, "asin": item}


def planted():
    """Reviews and books as objects, in file order."""
    reviews = []
    for user in range(ACTIVE):
        for item in range(ACTIVE):
            date = f"2017-12-{1 + user:02}" if item >= 20 else f"2017-{1 + (user + item) % 11:02}-15"
            reviews.append(review(f"A{user}", f"{item:010d}", date, 5.0 if (user + item) % 3 else 4.0))
    reviews += [review("TOO_FEW", f"{item:010d}", "2017-05-05") for item in range(20)]  # 20 is not more than 20
    reviews += [review("A0", "RARE", f"2017-06-{day:02}") for day in range(1, 21)]
    reviews += [review("A0", "0000000000", "2016-12-31"), review("A0", "0000000000", "2018-01-01")]
    reviews += [review(f"A{n}", "NO_METADATA", "2017-07-07") for n in range(30)]
    books = [book("0000000000", "An old title"), book("RARE", "Rare")]
    books += [book(f"{item:010d}", f"Book {item}") for item in range(ACTIVE)]
    books[3] |= {"title": "", "category": []}
    return reviews, books


def write(folder, reviews, books, packed=True):
    folder.mkdir(exist_ok=True)
    for name, rows in ((amazon_files.REVIEWS, reviews), (amazon_files.BOOKS, books)):
        text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        data = text.encode(errors="surrogateescape")
        path = folder / (name + ".gz" * packed)
        path.write_bytes(gzip.compress(data) if packed else data)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SELLAREC_HOME", str(tmp_path / "home's"))
    _open.cache_clear()
    yield tmp_path / "home's"
    _open.cache_clear()


def left(cache):
    """What stands in the cache of sources, locks apart."""
    return [path for path in (cache / "sources").iterdir() if path.suffix != ".lock"]


def opened():
    return open_dataset("amazon-book", make_config(dataset="amazon-book").data)


@pytest.mark.parametrize("packed", [True, False])
def test_the_rules_leave_exactly_the_planted_reviews(tmp_path, cache, capsys, packed):
    sources.fetch("amazon-book", write(tmp_path / "a reader's folder", *planted(), packed=packed))
    data = opened()
    said = capsys.readouterr().out
    assert "reviews with metadata          526  published   27,163,817  differs" in said
    assert "in 2017                        524  published" in said
    assert len(data.interactions) == ACTIVE * ACTIVE and data.n_users == data.n_items == ACTIVE
    assert data.interactions["label"].mean() == pytest.approx(2 / 3, abs=0.01)  # only a rating of 5 is a like
    sizes = data.interactions["split"].value_counts()
    assert (sizes["train"], sizes["valid"], sizes["test"]) == (ACTIVE * 20, ACTIVE, ACTIVE)
    valid, test = data.part("valid")["timestamp"], data.part("test")["timestamp"]
    assert valid.min() == stamp("2017-12-01") and valid.max() < test.min() + 86400 and test.max() == stamp("2017-12-22")


def test_books_keep_their_last_title_their_second_category_and_a_word_for_no_title(tmp_path, cache):
    sources.fetch("amazon-book", write(tmp_path / "raw", *planted()))
    data = opened()
    by_raw = data.catalogue.set_index("raw_item")
    assert by_raw.loc["0000000000", "title"] == "Book 0"  # not "An old title", which stands on an earlier line
    assert by_raw.loc["0000000001", "title"] == "(no title)" and by_raw.loc["0000000001", "genres"] == ""
    assert by_raw.loc["0000000005", "genres"] == "Literature & Fiction"
    row = data.part("test").index[0]
    text = PromptWriter(data, make_config(dataset="amazon-book").prompt).write(row).text
    assert "rated these books highly" in text and "Will the user like the book" in text and "movie" not in text


def test_malformed_lines_are_named_and_left_out_below_the_share_and_refused_above_it(tmp_path, cache, capsys):
    reviews, books = planted()
    more = [review(f"B{n}", f"{n % 9:010d}", "2015-01-01") for n in range(4000)]
    bad = ['{"overall": 5.0, "reviewerID": "A7', "[1, 2]", json.dumps(review("A", "B", "2015-01-01", "five stars"))]
    folder = write(tmp_path / "raw", [*reviews, *bad, *more], books)
    sources.fetch("amazon-book", folder)
    first = len(reviews) + 1
    said = capsys.readouterr().out
    assert f"3 malformed and left out: line {first}: not JSON" in said
    assert f"line {first + 1}: no reviewerID" in said and f"line {first + 2}: no overall" in said
    assert len(opened().interactions) == ACTIVE * ACTIVE
    with pytest.raises(SellarecError, match=r"3 of 559 lines are malformed, more than 0\.1%: line 557: not JSON"):
        sources.fetch("amazon-book", write(tmp_path / "bad", [*reviews, *bad], books))
    assert len(opened().interactions) == ACTIVE * ACTIVE  # the dataset that was there still stands


def test_a_line_that_is_no_utf_8_is_named_and_left_out(tmp_path, cache, capsys):
    reviews, books = planted()
    more = [review(f"B{n}", f"{n % 9:010d}", "2015-01-01") for n in range(4000)]
    sources.fetch("amazon-book", write(tmp_path / "raw", [*reviews, '{"overall": "\udcff"}', *more], books))
    said = capsys.readouterr().out
    assert f"{len(reviews) + 4001:,} lines, 1 malformed and left out: line {len(reviews) + 1}: invalid encoding" in said
    assert len(opened().interactions) == ACTIVE * ACTIVE


def test_broken_files_end_with_advice_and_leave_no_half_made_dataset(tmp_path, cache):
    reviews, books = planted()
    folder = write(tmp_path / "raw", reviews, books)
    whole = (folder / "Books_5.json.gz").read_bytes()

    def refused(match):
        with pytest.raises(SellarecError, match=match):
            sources.fetch("amazon-book", folder)
        assert not sources.is_fetched("amazon-book") and not left(cache)

    (folder / "Books_5.json.gz").write_bytes(whole[: len(whole) // 2])
    refused("The download broke off; get the file again from https://")
    (folder / "Books_5.json.gz").write_bytes(gzip.compress(b""))
    refused("the file has no lines")
    (folder / "Books_5.json.gz").unlink()
    refused(r"there is no Books_5.json or Books_5.json.gz in it")
    write(folder, [{k: v for k, v in r.items() if k != "unixReviewTime"} for r in reviews], books)
    refused("line 1: no unixReviewTime")
    write(folder, reviews, [{k: v for k, v in b.items() if k != "title"} for b in books])
    refused("no line has a field 'title'")


def test_a_full_disk_is_called_by_its_name(tmp_path, cache, monkeypatch):
    import duckdb

    def full(*_):
        raise duckdb.IOException("IO Error: Could not write file: No space left on device")

    monkeypatch.setattr(amazon_files, "_select", full)
    with pytest.raises(SellarecError, match="The disk is full"):
        sources.fetch("amazon-book", write(tmp_path / "raw", *planted()))
    assert not left(cache)


def test_without_files_it_says_which_and_where(cache, tmp_path):
    for origin in (None, tmp_path / "nowhere"):
        with pytest.raises(SellarecError, match=r"get Books_5\.json\.gz and meta_.*https://.*--from FOLDER"):
            sources.fetch("amazon-book", origin)


@given(st.lists(st.integers(0, 40), min_size=2, max_size=60))
def test_the_last_month_is_halved_by_count_in_order_of_time_and_file(days):
    times = np.array([stamp("2017-11-20") + 86400 * day for day in days])
    code = cut_last_month_in_half("2017-01-01", "2017-12-01", "2018-01-01")(times)
    late = times >= stamp("2017-12-01")
    assert (code[~late] == 0).all() and (code[late] > 0).all()
    assert (code == 2).sum() - (code == 1).sum() in (0, 1)
    place = [(times[n], n) for n in range(len(times))]
    assert max((place[n] for n in np.flatnonzero(code == 1)), default=(0, 0)) < min(
        (place[n] for n in np.flatnonzero(code == 2)), default=(np.inf, 0)
    )
