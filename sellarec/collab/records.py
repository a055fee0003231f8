"""What is known of users and items besides vectors, as numbers that a projection reads: records and facts.

A record is a user's or an item's in the training part; facts are an item's genres and year, which need no rating.

The learnt biases of matrix factorisation have seen the label of every row they were fitted on, so a later stage that
is trained on the same rows would trust them too much; holding these rows out costs them data. These are shrunken means,
and `Dataset.training_counts` keeps a training row's own label out of them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sellarec.data.dataset import Dataset, shrunk_rate

GENRES = 32
"""How many genres are told apart at most; MovieLens has 18, Amazon's books have hundreds."""


def training_records(dataset: Dataset, column: str, rows: np.ndarray, unknown: np.ndarray | None = None) -> Tensor:
    """For each of some interactions the record of its user or item, shape (n, 2), float32.

    The first number is the log-odds of a like, shrunk towards the average; the second the logarithm of the number of
    ratings. Both are standardized over the training rows.

    Args:
        rows: Row ids, (n,).
        unknown: Rows, as a mask (n,), whose user or item counts as one that was never rated.
    """
    counts = dataset.training_counts(column)[rows]
    if unknown is not None:
        counts[unknown] = 0
    return records_of_counts(dataset, column, counts)


def records_of_counts(dataset: Dataset, column: str, counts: np.ndarray) -> Tensor:
    """The records of any counts of ratings and likes among them, (n, 2) each."""
    prior = dataset.part("train")["label"].mean()
    usual = _record(dataset.training_counts(column)[(dataset.interactions["split"] == "train").to_numpy()], prior)
    spread = np.maximum(usual.std(axis=0), 1e-6)
    return torch.from_numpy(((_record(counts, prior) - usual.mean(axis=0)) / spread).astype(np.float32))


def _record(counts: np.ndarray, prior: float) -> np.ndarray:
    rate = shrunk_rate(counts[:, 0], counts[:, 1], prior)
    return np.stack([np.log(rate / (1 - rate)), np.log1p(counts[:, 0])], axis=1)


def item_facts(dataset: Dataset) -> Tensor:
    """Genres and year of every item by id, shape (n_items + 1, facts), float32; no label is read.

    A column for each of the `GENRES` most frequent genres, less its mean; the last one is the year, standardized. What
    is not known is 0, and so is all of item 0.
    """
    genres = dataset.catalogue["genres"].str.get_dummies("|").drop(columns="", errors="ignore").astype(np.float32)
    genres = genres[genres.sum().sort_values(ascending=False, kind="stable").index[:GENRES]]
    named = (dataset.catalogue["genres"] != "").to_numpy()[:, None]
    year = dataset.catalogue["year"].astype(np.float32)
    spread = year.std() if year.nunique() > 1 else 1.0
    columns = np.column_stack([(genres - genres.mean()) * named, ((year - year.mean()) / spread).fillna(0)])
    return torch.from_numpy(np.vstack([np.zeros((1, columns.shape[1])), columns]).astype(np.float32))
