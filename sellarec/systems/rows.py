"""Which training rows each stage learns from, and what soft tokens and the MLP read of a row."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sellarec.checks import check_selectable
from sellarec.collab.records import training_records
from sellarec.data.dataset import sample_rows
from sellarec.systems.base import Workspace
from sellarec.systems.cold_users import known_users

LEAST_BESIDE = 0.25
"""Stage 3's rows are held out of stage 2 if at least so much of the training part is left to it."""

RowInputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of some interactions: users (n,), items (n,), and the records of both, (n, 2) each."""


def selection_rows(work: Workspace, what: str) -> pd.DataFrame:
    """The validation rows on which a checkpoint of a language model's training is chosen.

    Raises:
        SellarecError: their labels are all the same.
    """
    rows = work.part("valid")
    check_selectable(work.dataset.name, rows["label"], what, more="evaluation.valid_rows")
    return rows


def budget_of(rows: int | float | None, most: int) -> int:
    """How many of so many rows a setting asks for: a number, a share below 1, or None for all."""
    if rows is None:
        return most
    return max(1, round(rows * most)) if isinstance(rows, float) else min(rows, most)


def stage1_rows(work: Workspace) -> pd.DataFrame:
    """The training rows that the adapter is tuned on."""
    train = work.dataset.part("train")
    return sample_rows(train, budget_of(work.config.stage1.rows, len(train)), work.config.seed)


def stage3_rows(work: Workspace) -> pd.DataFrame:
    """The training rows that stage 3 learns from; only where the others are too few, some of stage 1's too.

    A language model is surer of rows that it was tuned on than of new ones.
    """
    train, seed, seen = work.dataset.part("train"), work.config.seed, stage1_rows(work)
    budget, fresh = budget_of(work.config.stage3.rows, len(train)), train.drop(seen.index)
    if budget <= len(fresh):
        return sample_rows(fresh, budget, seed)
    return pd.concat([fresh, sample_rows(seen, budget - len(fresh), seed)]).sort_index()


def stage2_rows(work: Workspace) -> pd.DataFrame:
    """The training rows that stage 2 learns from: without stage 3's if they are held out."""
    return beside_stage3(work) if work.config.stage2.hold_out else work.dataset.part("train")


def beside_stage3(work: Workspace) -> pd.DataFrame:
    """The training rows that stage 3 does not learn from; all of them if these are too few to learn from."""
    train = work.dataset.part("train")
    others = train.drop(stage3_rows(work).index)
    return others if len(others) >= LEAST_BESIDE * len(train) else train


def row_inputs(work: Workspace, rows: np.ndarray, new_user: np.ndarray | None = None) -> RowInputs:
    """What `SoftTokens` reads of dataset rows.

    Users whom the training part does not know, and those of the rows that `new_user` (n,) names, are user 0.
    """
    part, unknown = work.dataset.interactions.iloc[rows], ~known_users(work, rows)
    if new_user is not None:
        unknown |= new_user
    user = torch.from_numpy(np.where(unknown, 0, part["user"]).astype(np.int64))
    item = torch.from_numpy(part["item"].to_numpy().astype(np.int64))
    of_user = training_records(work.dataset, "user", rows, unknown)
    return user, item, of_user, training_records(work.dataset, "item", rows)
