"""Any system's answers on pairs that nobody rated: the catalogue for a user, real or made up.

The candidates become rows of the dataset, at the end of the user's, so that every system scores them as it scores test
rows: with its own prompt, its own history, and nothing that it has not seen before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from sellarec.data.dataset import Dataset
from sellarec.errors import SellarecError
from sellarec.runs import Run
from sellarec.systems.base import System, Workspace
from sellarec.systems.registry import find_system

NEW_USER = 0


def score_candidates(
    work: Workspace, name: str, user: int, items: Sequence[int], liked: Sequence[int] = ()
) -> np.ndarray:
    """A system's probabilities that a user likes each item, after everything that the user has liked.

    Args:
        name: A system whose run is in the store.
        user: An id of the dataset, or `NEW_USER`.
        items: Candidates, n of them.
        liked: What a new user likes, oldest first.

    Returns:
        Shape (n,).

    Raises:
        SellarecError: an id that the dataset does not have; a system without scores.
    """
    system = find_system(name)
    if system.score is None:
        raise SellarecError(f"{system.label} gives no scores.")
    dataset, rows = with_candidates(work.dataset, user, items, liked)
    place = _OnOtherRows(work.variant(system.changes), dataset)
    return system.score(place, work.with_weights(name), rows)


def score_pair(work: Workspace, name: str, user: int, item: int) -> float:
    """A system's probability that a user likes an item: of a pair that is rated, as of its row, with the history before
    the rating; of any other, after everything that the user has liked. Arguments and errors are those of
    `score_candidates`.
    """
    system, row = find_system(name), row_of_pair(work, user, item)
    if row is None or system.score is None:
        return float(score_candidates(work, name, user, [item])[0])
    return float(system.score(work.variant(system.changes), work.with_weights(name), np.array([row]))[0])


def row_of_pair(work: Workspace, user: int, item: int) -> int | None:
    """The row that stands for a user and an item: of several ratings the first scored test row, or else the first of
    all; None if the pair is not rated."""
    rows = work.dataset.interactions
    rated = rows.index[(rows["user"] == user) & (rows["item"] == item)]
    scored = rated[rated.isin(work.part("test").index)]
    return next((int(row) for row in (*scored, *rated)), None)


def with_candidates(
    dataset: Dataset, user: int, items: Sequence[int], liked: Sequence[int] = ()
) -> tuple[Dataset, np.ndarray]:
    """The dataset with a row for each candidate behind the user's own, and the ids of these rows, shape (n,).

    The new rows belong to no split and bear the label 0, so that nothing counts them and no history lists them.
    """
    rows = dataset.interactions
    if not 0 <= user <= dataset.n_users:
        raise SellarecError(f"user {user} is not in {dataset.name}; ids go from 1 to {dataset.n_users}.")
    if unknown := [i for i in (*items, *liked) if not 1 <= i <= dataset.n_items]:
        raise SellarecError(f"item {unknown[0]} is not in {dataset.name}; ids go from 1 to {dataset.n_items}.")
    if liked and user != NEW_USER:
        raise SellarecError("likes can be made up for a new user only.")
    at = int(np.searchsorted(rows["user"], user, side="right"))
    now = int(rows["timestamp"].iloc[at - 1]) + 1 if at else 1
    added = pd.DataFrame(
        {
            "user": user,
            "item": [*liked, *items],
            "label": [1] * len(liked) + [0] * len(items),
            "timestamp": [*range(now, now + len(liked)), *[now + len(liked)] * len(items)],
            "split": pd.Categorical([None] * (len(liked) + len(items)), dtype=rows["split"].dtype),
            "warm": False,
        }
    ).astype(rows.dtypes.to_dict())
    whole = pd.concat([rows.iloc[:at], added, rows.iloc[at:]], ignore_index=True)
    return dataclasses.replace(dataset, interactions=whole), np.arange(at + len(liked), at + len(added))


class _OnOtherRows(Workspace):
    """A workspace's runs and models, for scoring rows of another dataset."""

    def __init__(self, origin: Workspace, dataset: Dataset) -> None:
        super().__init__(origin.config, origin.root, computes=False)
        self._origin = origin
        self.dataset = dataset
        self.base_dtype = origin.base_dtype

    @property
    def base_model(self):
        return self._origin.base_model

    @property
    def tuned_model(self):
        return self._origin.tuned_model

    def run_of(self, system: System) -> Run:
        return self._origin.run_of(system)

    def with_weights(self, name: str) -> Run:
        return self._origin.with_weights(name)
