"""A user's or item's record in the training part, as numbers that a projection reads.

The learnt biases of matrix factorisation have seen the label of every row they were fitted on, so a later stage that
is trained on the same rows would trust them too much; holding these rows out costs them data. These are shrunken means,
and `Dataset.training_counts` keeps a training row's own label out of them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sellarec.data.dataset import Dataset, shrunk_rate


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
