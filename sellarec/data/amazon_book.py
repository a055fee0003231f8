"""Amazon-Book as a dataset: the tables that `amazon_files` prepared, the papers' cut, and what they count."""

from __future__ import annotations

import html
from pathlib import Path

import pandas as pd

from sellarec.data.amazon_files import YEAR, print_beside
from sellarec.data.dataset import Dataset, year_of
from sellarec.data.protocol import Cut, cut_last_month_in_half
from sellarec.data.readers import Tables

UNTITLED = "(no title)"
"""CoLLM leaves the title of such a book empty."""

PUBLISHED_PARTS = {"train": (727_463, 0.6337), "valid": (25_747, 0.6290), "test": (25_747, 0.6204)}
"""Rows, and share of likes among them."""


def read(folder: Path) -> Tables:
    """The tables that `amazon_files.prepare` wrote, in the form of the readers."""
    ratings = pd.read_parquet(folder / "reviews.parquet")
    books = pd.read_parquet(folder / "books.parquet")
    titles = books["title"].str.strip().replace("", UNTITLED)
    genres = books["genre"].map(html.unescape).str.replace("|", " ")
    return ratings, books[["item"]].assign(title=titles, year=year_of(titles), genres=genres)


def compare(dataset: Dataset) -> None:
    """Print rows and share of likes of each part beside the published ones."""
    for split, (rows, positive) in PUBLISHED_PARTS.items():
        part = dataset.part(split)
        print_beside(f"{split} rows", f"{len(part):,}", f"{rows:,}")
        print_beside(f"{split} likes", f"{part['label'].mean():.4f}", f"{positive:.4f}")


def cut() -> Cut:
    """January to November train; of December, sorted by time, the first half valid and the second test."""
    return cut_last_month_in_half(YEAR[0], "2017-12-01", YEAR[1])
