"""Counting baseline: shrunk item mean + shrunk user mean of the training part. No learning at all.

Every system should beat it. It does not stand in the paper; we added it because on ML-1M it is above every published
collaborative baseline in AUC.
"""

from __future__ import annotations

import numpy as np

from sellarec.data.dataset import shrunk_rate
from sellarec.runs import Run
from sellarec.systems.base import System, Workspace
from sellarec.systems.scores import into_unit_interval


def fit(work: Workspace, run: Run) -> None:
    prior = work.dataset.part("train")["label"].mean()
    means = {column: shrunk_rate(*work.dataset.training_totals(column).T, prior) for column in ("user", "item")}
    run.save_tensors("means", means)


def score(work: Workspace, run: Run, rows: np.ndarray) -> np.ndarray:
    """Item mean + user mean - mean of all: both deviations count once, and it ranks as the sum does."""
    means, part = run.tensors("means"), work.dataset.interactions.iloc[rows]
    rate = means["item"][part["item"]] + means["user"][part["user"]] - means["user"][0]
    return into_unit_interval(rate).astype(np.float32)


SYSTEM = System("counting", "Counting (item + user mean)", lambda config: {}, fit, score, uses_seed=False, version=2)
