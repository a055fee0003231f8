"""Ratings → `Dataset`: the temporal protocol of CoLLM, BinLLM and SeLLa-Rec.

Cut the ratings into train, valid and test by time, call a rating above the threshold a like, renumber users and
items, and mark the warm rows. Nothing is filtered; no label of a later part is used for an earlier one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from sellarec.data.dataset import SPLITS, Dataset
from sellarec.data.readers import Tables
from sellarec.errors import SellarecError

Cut = Callable[[np.ndarray], np.ndarray]
"""Timestamps (n,) → split codes (n,): 0 train, 1 valid, 2 test, -1 left out."""


def cut_by_month(starts: tuple[str, str, str], end: str) -> Cut:
    """Cut at calendar dates (UTC): train, valid and test begin at `starts`; from `end` on rows are left out."""
    edges = np.array([np.datetime64(d, "s").astype("int64") for d in (*starts, end)])

    def cut(timestamp: np.ndarray) -> np.ndarray:
        code = np.searchsorted(edges, timestamp, side="right") - 1
        return np.where(code == 3, -1, code)

    return cut


def cut_by_span(valid_from: float, test_from: float) -> Cut:
    """Cut at shares of the time between the first and the last rating, e.g. .70 and .85."""
    if not 0 < valid_from < test_from < 1:
        raise SellarecError(f"cut {valid_from}, {test_from}: two increasing shares between 0 and 1 are needed.")

    def cut(timestamp: np.ndarray) -> np.ndarray:
        first, last = int(timestamp.min()), int(timestamp.max())
        edges = first + np.array([valid_from, test_from]) * (last - first)
        return np.searchsorted(edges, timestamp, side="right")

    return cut


def cut_last_month_in_half(start: str, held_out: str, end: str) -> Cut:
    """Cut at dates (UTC) and by count: before `held_out` train; from it to `end`, in order of time, half valid, half
    test. Rows of the same second go in the order in which they come; of an odd number, test has one more."""
    first, middle, last = (int(np.datetime64(d, "s").astype("int64")) for d in (start, held_out, end))

    def cut(timestamp: np.ndarray) -> np.ndarray:
        code = np.where((timestamp >= first) & (timestamp < middle), 0, -1)
        late = np.flatnonzero((timestamp >= middle) & (timestamp < last))
        late = late[np.argsort(timestamp[late], kind="stable")]
        code[late[: len(late) // 2]], code[late[len(late) // 2 :]] = 1, 2
        return code

    return cut


def build_dataset(
    name: str,
    tables: Tables,
    cut: Cut,
    *,
    like_above: float = 3.0,
    strict_history: bool = False,
    domain: str = "movie",
) -> Dataset:
    """Apply the protocol to raw tables.

    Args:
        name: The dataset's name.
        tables: `(ratings, catalogue)` as the readers return them.
        cut: Rule that assigns each timestamp to a part.
        like_above: A rating strictly above it is label 1.
        strict_history: See `Dataset`.
        domain: See `Dataset`.

    Raises:
        SellarecError: a part of the split is empty or train has only one class.
    """
    ratings, catalogue = tables
    code = cut(ratings["timestamp"].to_numpy())
    rows = ratings.assign(code=code)[code >= 0]
    # Raw ids that are numbers sort as numbers, so that ids follow the file's own user order.
    order = pd.to_numeric(rows["user"], errors="coerce")
    rows = rows.assign(order=order if order.notna().all() else rows["user"])
    # Ids of more digits than a float holds are one number: by the id itself, no two users' rows are mixed.
    rows = rows.sort_values(["order", "user", "timestamp"], kind="stable").reset_index(drop=True)
    user, _ = pd.factorize(rows["user"])
    item, raw_items = pd.factorize(rows["item"])

    interactions = pd.DataFrame(
        {
            "user": (user + 1).astype("int32"),
            "item": (item + 1).astype("int32"),
            "label": (rows["rating"] > like_above).astype("int8"),
            "timestamp": rows["timestamp"].astype("int64"),
            "split": pd.Categorical.from_codes(rows["code"], categories=list(SPLITS)),
        }
    )
    _check_parts(name, interactions)
    train = interactions[interactions["split"] == "train"]
    interactions["warm"] = interactions["user"].isin(train["user"]) & interactions["item"].isin(train["item"])

    known = catalogue.set_index("item").loc[raw_items].reset_index(names="raw_item")
    known.index = pd.RangeIndex(1, len(known) + 1, name="item")
    return Dataset(name, interactions, known, strict_history=strict_history, domain=domain)


def _check_parts(name: str, interactions: pd.DataFrame) -> None:
    sizes = interactions["split"].value_counts()
    for split in SPLITS:
        if sizes[split] == 0:
            raise SellarecError(
                f"{name}: the {split} part has no rows. Choose other cut points for this "
                "time span: data.valid_from and data.test_from, shares of it."
            )
    if interactions.loc[interactions["split"] == "train", "label"].nunique() < 2:
        raise SellarecError(
            f"{name}: all training labels are the same. A like is a rating above "
            "data.like_above: choose another threshold."
        )
