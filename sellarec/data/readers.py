"""Raw files → two plain tables, ratings and catalogue, with every malformed row named.

Each reader returns `(ratings, catalogue)`:

- ratings: `user`, `item` (raw ids as strings), `rating` float64, `timestamp` int64 (unix seconds), in file order;
- catalogue: `item`, `title`, `year` (Int16, may be missing), `genres` ('|'-joined, may be empty).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from sellarec.data.dataset import year_of
from sellarec.errors import SellarecError

Tables = tuple[pd.DataFrame, pd.DataFrame]

LATEST = np.iinfo(np.int64).max // 10**9
"""Unix seconds, the year 2262, up to which pandas has dates in nanoseconds."""

CALENDAR_DAYS = (1900_01_01, 2100_12_31)
"""Days as one number; as seconds they all lie in 1970."""


def read_ml_1m(folder: Path) -> Tables:
    """Read `ratings.dat` and `movies.dat` of MovieLens-1M ('::'-separated, latin-1)."""
    advice = "Is this the ML-1M file? Fetch it again with: sellarec fetch ml-1m --force"
    ratings = _read_delimited(folder / "ratings.dat", "::", 4, "latin-1", advice)
    movies = _read_delimited(folder / "movies.dat", "::", 3, "latin-1", advice)
    frame = _ratings_frame(folder / "ratings.dat", *zip(*ratings, strict=True), first_line=1)
    items, titles, genres = zip(*movies, strict=True)
    return _checked(frame, _catalogue(items, titles, genres), folder / "movies.dat")


def read_ml_100k(folder: Path) -> Tables:
    """Read `ml-100k.inter` and `ml-100k.item` (tab-separated with a header, UTF-8).

    The item file keeps title and year apart; they are joined to "Toy Story (1995)", the form that ML-1M has.
    """
    advice = "Fetch it again with: sellarec fetch ml-100k --force"
    ratings = _read_delimited(folder / "ml-100k.inter", "\t", 4, "utf-8", advice, header=True)
    movies = _read_delimited(folder / "ml-100k.item", "\t", 4, "utf-8", advice, header=True)
    frame = _ratings_frame(folder / "ml-100k.inter", *zip(*ratings, strict=True), first_line=2)
    items, titles, years, genres = zip(*movies, strict=True)
    titles = [f"{title} ({year})" if year.isdigit() else title for title, year in zip(titles, years, strict=True)]
    return _checked(frame, _catalogue(items, titles, [g.replace(" ", "|") for g in genres]), folder / "ml-100k.item")


def read_table(path: Path) -> Tables:
    """Read an own dataset: one parquet or CSV file with columns user, item, title, rating, timestamp.

    `genres` ('|'-separated, in parquet also lists) is used if it is there. Timestamps are unix seconds or anything
    pandas reads as a date. Ids are text: "007" and "7" are two.
    """
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    except (ValueError, OSError) as error:  # pandas' parser and decoding errors are ValueErrors
        raise SellarecError(f"{path}: not readable as a table ({error}). Save it as parquet or UTF-8 CSV.") from error
    missing = [c for c in ("user", "item", "title", "rating", "timestamp") if c not in table]
    if missing:
        raise SellarecError(
            f"{path}: no column {', '.join(missing)}; found {', '.join(map(str, table.columns))}. "
            "Needed: user, item, title, rating, timestamp."
        )
    if not len(table):
        raise SellarecError(f"{path}: the table has no rows.")
    for column in ("user", "item"):
        empty = np.flatnonzero(table[column].isna() | (table[column].astype(str).str.strip() == ""))
        if len(empty):
            raise SellarecError(f"{path} line {empty[0] + 2}: no {column}. Correct or remove the row.")
    stamps = _seconds(table["timestamp"])
    frame = _ratings_frame(path, table["user"].astype(str), table["item"].astype(str), table["rating"], stamps, 2)
    _refuse_copies(frame, path)
    genres = table["genres"].map(_joined) if "genres" in table else ""
    titles = table["title"].astype("string").str.strip()
    about = table.assign(item=table["item"].astype(str), title=titles, genres=genres)
    about = about[["item", "title", "genres"]].drop_duplicates()
    return _checked(frame, _catalogue(about["item"], about["title"].fillna(""), about["genres"].fillna("")), path)


def _refuse_copies(ratings: pd.DataFrame, path: Path) -> None:
    """A rating that is there twice would stand in its own history if it was a like, and give its label away."""
    copies = np.flatnonzero(ratings.duplicated(["user", "item", "timestamp"]))
    if len(copies):
        raise SellarecError(
            f"{path} line {copies[0] + 2}: the same user, item and timestamp as an earlier line ({len(copies):,} such "
            "lines). Keep one of each."
        )


def _read_csv(path: Path) -> pd.DataFrame:
    """Nothing but ratings and timestamps is taken for a number, or for missing because it reads "NA" or "None"."""
    text = dict.fromkeys(("user", "item", "title", "genres"), str)
    empty = {"rating": [""], "timestamp": [""]}
    return pd.read_csv(path, dtype=text, keep_default_na=False, na_values=empty, low_memory=False)


def _seconds(stamps: pd.Series) -> pd.Series:
    """Unix seconds of numbers, digits and dates; what is none of these stays as it is, to be named."""
    if pd.api.types.is_datetime64_any_dtype(stamps):
        numbers = pd.Series(np.nan, index=stamps.index)
    else:
        numbers = pd.to_numeric(stamps, errors="coerce")
    dates = pd.to_datetime(stamps.where(numbers.isna()), errors="coerce", utc=True, format="mixed")
    read = numbers.where(dates.isna(), dates.astype("datetime64[s, UTC]").astype("int64"))
    return read.astype("object").where(read.notna(), stamps)


def _joined(genres: object) -> object:
    return "|".join(map(str, genres)) if isinstance(genres, (list, tuple, np.ndarray)) else genres


def _read_delimited(
    path: Path, separator: str, n_fields: int, encoding: str, advice: str, *, header: bool = False
) -> list[list[str]]:
    """Split every line into exactly `n_fields` fields, or name the first line where that fails."""
    try:
        text = path.read_bytes().decode(encoding)
    except FileNotFoundError as error:
        raise SellarecError(f"{path}: no such file. {advice}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise SellarecError(f"{path} line {line}: not {encoding} text (byte {error.start}). {advice}") from error
    # Not splitlines(): latin-1 titles may hold characters that Python takes for line ends.
    lines = text.replace("\r\n", "\n").rstrip("\n").split("\n")
    rows = [line.split(separator) for line in lines[header:]]
    if not rows or rows == [[""]]:
        raise SellarecError(f"{path}: the file has no rows. {advice}")
    for number, row in enumerate(rows, start=1 + header):
        if len(row) != n_fields:
            raise SellarecError(
                f"{path} line {number}: expected {n_fields} fields separated by {separator!r}, found {len(row)}. "
                f"{advice}"
            )
    return rows


def _ratings_frame(
    path: Path, user: Iterable, item: Iterable, rating: Iterable, timestamp: Iterable, first_line: int
) -> pd.DataFrame:
    """Build the ratings table; ratings and timestamps must be finite numbers, or the first bad line is named."""
    frame = pd.DataFrame({"user": list(user), "item": list(item)})
    for name, values in (("rating", rating), ("timestamp", timestamp)):
        raw = pd.Series(list(values))
        numbers = pd.to_numeric(raw, errors="coerce").astype("float64")
        bad = np.flatnonzero(~np.isfinite(numbers))
        if len(bad):
            raise SellarecError(
                f"{path} line {bad[0] + first_line}: {name} '{raw[bad[0]]}' is not a finite number. "
                "Correct or remove the row."
            )
        frame[name] = numbers
    late = np.flatnonzero(frame["timestamp"].abs() > LATEST)
    if len(late):
        raise SellarecError(
            f"{path} line {late[0] + first_line}: timestamp '{raw[late[0]]}' is more than 292 years from 1970. "
            "Is it in milliseconds? Give seconds."
        )
    if frame["timestamp"].between(*CALENDAR_DAYS).all():
        raise SellarecError(
            f"{path} line {first_line}: timestamp '{raw[0]}' looks like a day written as YYYYMMDD, as all others do. "
            "Write 2020-01-31, or give seconds since 1970."
        )
    return frame.astype({"timestamp": "int64"})


def _catalogue(items: Sequence, titles: Sequence, genres: Sequence) -> pd.DataFrame:
    table = pd.DataFrame({"item": list(items), "title": list(titles), "genres": list(genres)}, dtype="string")
    table["title"] = table["title"].str.strip()
    table["year"] = year_of(table["title"])
    return table[["item", "title", "year", "genres"]].astype({"item": "object", "title": "object", "genres": "object"})


def _checked(ratings: pd.DataFrame, catalogue: pd.DataFrame, path: Path) -> Tables:
    """Check the promises between the two tables: one title per item, a title for every rated item."""
    twice = catalogue.loc[catalogue["item"].duplicated(), "item"]
    if len(twice):
        entries = catalogue.loc[catalogue["item"] == twice.iloc[0]].head(2)
        column, what = ("genres", "list of genres") if entries["title"].nunique() == 1 else ("title", "title")
        raise SellarecError(
            f"{path}: item {twice.iloc[0]} occurs twice in the catalogue ({' / '.join(entries[column].fillna(''))}). "
            f"Keep one {what} per item id."
        )
    titled = catalogue.loc[catalogue["title"] != "", "item"]
    untitled = ratings.loc[~ratings["item"].isin(titled), "item"]
    if len(untitled):
        raise SellarecError(
            f"{path}: item {untitled.iloc[0]} is rated but has no title ({untitled.nunique()} such items). "
            "Add their titles or remove their ratings."
        )
    return ratings, catalogue
