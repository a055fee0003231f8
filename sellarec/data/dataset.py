"""The `Dataset`: interactions in protocol order, the catalogue, and the histories derived from them."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from sellarec.errors import SellarecError, nearest

SPLITS = ("train", "valid", "test")

FOLDS = 5
"""Folds of the cross-fitted counts."""

SHRINKAGE = 5.0
"""Ratings at the usual rate of likes that are added to every count before a rate is taken of it."""


def shrunk_rate(rated: np.ndarray | int, liked: np.ndarray | int, usual: float) -> np.ndarray | float:
    """Likes per rating, drawn towards the usual rate where there are few ratings, and that rate without any."""
    return (liked + SHRINKAGE * usual) / (rated + SHRINKAGE)


_TRAILING_ARTICLE = re.compile(r"^(.*), (The|A|An|Les|La|Le|L'|Das|Der|Die|El|Il)((?: \(.*\))*)$")


def natural_title(title: str) -> str:
    """Move a trailing article to the front: "Matrix, The (1999)" → "The Matrix (1999)"."""
    match = _TRAILING_ARTICLE.match(title)
    if not match:
        return title
    name, article, rest = match.groups()
    return f"{article}{'' if article.endswith(chr(39)) else ' '}{name}{rest}"


def year_of(titles: pd.Series) -> pd.Series:
    """The year at the end of each title, "Heat (1995)", Int16; missing where there is none."""
    return titles.str.extract(r"\((\d{4})\)\s*$")[0].astype("float").astype("Int16")


@dataclass(frozen=True)
class Dataset:
    """One recommendation dataset, split by time.

    Attributes:
        name: How runs and reports call it.
        interactions: One row per rating, sorted by (user, timestamp, file order): `user`, `item` int32 from 1,
            `label` int8, `timestamp` int64 seconds, `split` category, `warm` bool. The index is the row id.
        catalogue: One row per item, indexed by item id from 1: `title`, `year`, `genres`, `raw_item`.
        strict_history: If true a history holds only likes with an earlier timestamp; if false also those of the
            same second that stand earlier in the file (the protocol's rule).
        domain: The noun for an item in prompts: "movie" or "book".
    """

    name: str
    interactions: pd.DataFrame
    catalogue: pd.DataFrame
    strict_history: bool = False
    domain: str = "movie"

    @property
    def n_users(self) -> int:
        return int(self.interactions["user"].max())

    @property
    def n_items(self) -> int:
        return len(self.catalogue)

    def part(self, split: str) -> pd.DataFrame:
        """The rows of one split, in protocol order."""
        return self.interactions[self.interactions["split"] == split]

    @cached_property
    def _likes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All liked items user by user, and for each row where its history begins and ends in them."""
        rows = self.interactions
        user, liked = rows["user"].to_numpy(), rows["label"].to_numpy() == 1
        before = np.concatenate([[0], np.cumsum(liked)])[:-1]
        first_row = np.searchsorted(user, user, side="left")
        if self.strict_history:
            stamp = rows["timestamp"].to_numpy()
            new_moment = np.r_[True, (user[1:] != user[:-1]) | (stamp[1:] != stamp[:-1])]
            end = before[np.maximum.accumulate(np.where(new_moment, np.arange(len(rows)), 0))]
        else:
            end = before
        return rows["item"].to_numpy()[liked], before[first_row], end

    def history(self, row: int, limit: int | None = None) -> np.ndarray:
        """Items that the row's user liked before it, oldest first; the last `limit` of them if given."""
        items, start, end = self._likes
        lo = start[row] if limit is None else max(start[row], end[row] - limit)
        return items[lo : end[row]]

    def padded_histories(self, rows: np.ndarray, length: int) -> np.ndarray:
        """The last `length` items liked before each row, oldest first and padded with 0 on the left, (n, length)."""
        items, start, end = self._likes
        at = end[rows, None] - np.arange(length, 0, -1)
        there = at >= start[rows, None]
        return np.where(there, items[np.where(there, at, 0)], 0).astype(np.int64)

    def history_lengths(self, rows: np.ndarray) -> np.ndarray:
        """How many liked items precede each row, shape (n,)."""
        _, start, end = self._likes
        return end[rows] - start[rows]

    def training_counts(self, column: str) -> np.ndarray:
        """What the training part knows of each row's user or item, shape (n, 2), int64: ratings, and likes among them.

        Cross-fitted: a training row counts only rows outside its own fold, one fifth of the training part. With its
        own label in the count, a model that is trained on the row would learn to read the label off. (Leaving out the
        one row alone would not do: within a user the count would then be low exactly where the label is 1. A fold
        weakens this and does not end it: benchmarks/label_leak.py.)
        No label of valid or test is read.

        Args:
            column: "user" or "item".
        """
        return self._counted[column][1]

    def training_totals(self, column: str) -> np.ndarray:
        """Ratings in the training part by user or item id, and likes among them, shape (ids + 1, 2), int64."""
        return self._counted[column][0]

    @cached_property
    def _counted(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """By column: totals by id, and cross-fitted counts by row."""
        return {column: self._count(column, size) for column, size in (("user", self.n_users), ("item", self.n_items))}

    def _count(self, column: str, size: int) -> tuple[np.ndarray, np.ndarray]:
        ids = self.interactions[column].to_numpy()
        train = np.flatnonzero(self.interactions["split"] == "train")
        label = self.interactions["label"].to_numpy()[train]
        fold = np.random.default_rng(0).permutation(len(train)) % FOLDS
        by_fold = np.zeros((FOLDS, size + 1, 2), dtype=np.int64)
        np.add.at(by_fold, (fold, ids[train]), np.stack([np.ones_like(label), label], axis=1))
        totals = by_fold.sum(axis=0)
        counts = totals[ids]
        counts[train] -= by_fold[fold, ids[train]]
        for found in (totals, counts):
            found.setflags(write=False)
        return totals, counts

    def item_by_title(self, text: str) -> int:
        """The item whose title is this, as the data, `distinct_titles` or a prompt writes it, or the only one whose
        title contains it.

        Raises:
            SellarecError: no title contains the text, or several do.
        """
        wanted = text.strip().casefold()
        as_written = (self.titles, self.distinct_titles, map(natural_title, self.titles))
        ways = [[t.casefold() for t in titles] for titles in as_written]
        titles = next((titles for titles in ways if wanted in titles), ways[-1])
        found = [i for i, t in enumerate(titles) if i and t == wanted]
        found = found or [i for i, t in enumerate(titles) if i and wanted in t]
        if len(found) == 1:
            return found[0]
        if found:
            some = ", ".join(f"{self.titles[i]} (item {i})" for i in found[:5])
            raise SellarecError(
                f"{len(found)} titles contain '{text}', such as {some}. Name one of them in full, as it stands here."
            )
        raise SellarecError(f"no title of {self.name} contains '{text}'. {nearest(text, self.titles[1:])}")

    @cached_property
    def titles(self) -> list[str]:
        """Title by item id; entry 0 is the empty title of the unknown item."""
        return ["", *self.catalogue["title"]]

    @cached_property
    def distinct_titles(self) -> list[str]:
        """The same where one that several items share bears the item's id: "Twins (1988) (item 2)"."""
        often = Counter(self.titles)
        return [t if often[t] == 1 else f"{t} (item {i})" for i, t in enumerate(self.titles)]

    @cached_property
    def hash(self) -> str:
        """sha256 over everything a model can see; part of every run's key."""
        digest = hashlib.sha256(f"{self.domain} {self.strict_history}".encode())
        for column in ("user", "item", "label", "timestamp", "warm"):
            digest.update(np.ascontiguousarray(self.interactions[column]).tobytes())
        digest.update(self.interactions["split"].cat.codes.to_numpy().tobytes())
        digest.update("\n".join(self.catalogue["title"] + "\t" + self.catalogue["genres"]).encode())
        return digest.hexdigest()

    def summary(self) -> pd.DataFrame:
        """Table 2 of the paper: rows, users, items, positive share, and warm rows, by split."""
        rows = self.interactions
        lengths = pd.Series(self.history_lengths(np.arange(len(rows))), index=rows.index)

        def describe(part: pd.DataFrame) -> dict:
            return {
                "rows": len(part),
                "users": part["user"].nunique(),
                "items": part["item"].nunique(),
                "positive": part["label"].mean(),
                "warm rows": int(part["warm"].sum()),
                "history mean": lengths[part.index].mean(),
                "empty histories": int((lengths[part.index] == 0).sum()),
            }

        parts = {split: describe(self.part(split)) for split in SPLITS}
        return pd.DataFrame({**parts, "all": describe(rows)}).T.astype(
            {c: int for c in ("rows", "users", "items", "warm rows", "empty histories")}
        )


def sample_users(rows: pd.DataFrame, budget: int | None, seed: int) -> pd.DataFrame:
    """Whole users, drawn at random until `budget` rows are reached; all rows if there are no more than that.

    Whole users keep the per-user metrics meaningful: a random row sample would leave most users one row.
    """
    if budget is None or len(rows) <= budget:
        return rows
    counts = rows.groupby("user").size()
    order = np.random.default_rng(seed).permutation(len(counts))
    reached = np.cumsum(counts.to_numpy()[order])
    chosen = counts.index[order[: np.searchsorted(reached, budget) + 1]]
    return rows[rows["user"].isin(chosen)]


def sample_rows(rows: pd.DataFrame, budget: int | None, seed: int) -> pd.DataFrame:
    """`budget` rows drawn at random, in their original order; all rows if there are no more than that."""
    if budget is None or len(rows) <= budget:
        return rows
    keep = np.random.default_rng(seed).choice(len(rows), budget, replace=False)
    return rows.iloc[np.sort(keep)]
