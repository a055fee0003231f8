"""Which training rows each stage learns from, and what soft tokens and the MLP read of a row."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sellarec.collab.records import training_records
from sellarec.data.dataset import sample_rows
from sellarec.evaluation import check_selectable
from sellarec.systems.base import Workspace
from sellarec.systems.cold_users import known_users

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


def stage1_rows(work: Workspace) -> pd.DataFrame:
    """The training rows that the adapter is tuned on."""
    return sample_rows(work.dataset.part("train"), work.config.stage1.rows, work.config.seed)


def stage3_rows(work: Workspace) -> pd.DataFrame:
    """The training rows that stage 3 learns from; none of stage 1's while there are enough others.

    A language model is surer of rows that it was tuned on than of new ones.
    """
    train, config = work.dataset.part("train"), work.config
    fresh = train.drop(stage1_rows(work).index)
    return sample_rows(
        train if len(fresh) < (config.stage3.rows or len(train)) else fresh, config.stage3.rows, config.seed
    )


def stage2_rows(work: Workspace) -> pd.DataFrame:
    """The training rows that stage 2 learns from: without stage 3's if they are held out."""
    return beside_stage3(work) if work.config.stage2.hold_out else work.dataset.part("train")


def beside_stage3(work: Workspace) -> pd.DataFrame:
    """The training rows that stage 3 does not learn from; all of them if it learns from all."""
    train, held_out = work.dataset.part("train"), stage3_rows(work)
    return train if len(held_out) == len(train) else train.drop(held_out.index)


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
