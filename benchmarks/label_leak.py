"""Do the counts in prompt and tokens give a training row's label away, where something else has learnt that label too?

    python benchmarks/label_leak.py --dataset ml-1m

A training row's counts leave out its fold. But who also knows a user's or an item's total can take the difference,
which is that of the fold, and the row's own label is part of it. Here logistic regression on stage 3's rows reads the
counts, alone and with what a factorisation may have learnt: the rates of all other rows (as SeLLa-Rec's stage 2 does,
which holds stage 3's out), the rates of all rows, or binary MF's codes, which come from all rows. A higher training AUC
with a lower test AUC, and negative weights of the counts, say that it reads labels off.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import tyro
from sklearn.linear_model import LogisticRegression

from sellarec.collab.binary import BinaryMF
from sellarec.collab.records import records_of_counts, training_records
from sellarec.config import make_config
from sellarec.errors import SellarecError
from sellarec.evaluation import auc, user_aucs
from sellarec.systems.base import Workspace
from sellarec.systems.rows import stage2_rows, stage3_rows
from sellarec.systems.weights import saved_state

COLUMNS = ("user", "item")


@dataclass(frozen=True)
class Options:
    """Read labels off, as well as logistic regression can."""

    dataset: str = "ml-1m"
    """A registered dataset or an own table."""
    profile: str = "quick"
    """As for `sellarec run`; says which rows stage 3 learns from."""
    runs: Path = Path("runs")
    """The run store; the run of binary_mf must be there, with weights."""


def against_own_label(work: Workspace) -> dict[str, float]:
    """Mean over users, and over items, of the AUC of a training row's own count against its label; .5 tells nothing."""
    rows = stage3_rows(work)
    return {
        column: user_aucs(rows[column], rows["label"], _counts(work, rows, column)[:, 0]).mean() for column in COLUMNS
    }


def regressions(work: Workspace) -> pd.DataFrame:
    """What logistic regression makes of the counts, alone and with what else there may be.

    Returns:
        Indexed by what is read: `train`, `test`: AUC; `weights`: those of the user's and the item's count.
    """
    train, test = stage3_rows(work), work.part("test")
    knows = {
        "the counts": lambda rows: [],
        "and the rates of other rows": lambda rows: _rates(work, stage2_rows(work), rows),
        "and the rates of all rows": lambda rows: _rates(work, work.dataset.part("train"), rows),
        "and binary MF's codes": lambda rows: _codes(work, rows),
    }
    lines = {}
    for name, more in knows.items():
        x, y = (
            np.hstack([*(_counts(work, rows, column) for column in COLUMNS), *more(rows)]) for rows in (train, test)
        )
        model = LogisticRegression(max_iter=2000).fit(x, train["label"])
        lines[name] = {
            "train": auc(train["label"], model.decision_function(x)),
            "test": auc(test["label"], model.decision_function(y)),
            "weights": ", ".join(f"{w:+.2f}" for w in model.coef_[0, [0, 2]]),
        }
    return pd.DataFrame.from_dict(lines, orient="index")


def _counts(work: Workspace, rows: pd.DataFrame, column: str) -> np.ndarray:
    return training_records(work.dataset, column, rows.index.to_numpy()).numpy()


def _rates(work: Workspace, learnt_from: pd.DataFrame, rows: pd.DataFrame) -> list[np.ndarray]:
    """The records of users and items in some training rows, own labels included, (n, 2) each."""
    out = []
    for column in COLUMNS:
        of = learnt_from.groupby(column)["label"].agg(["size", "sum"])
        counts = of.reindex(rows[column]).fillna(0).to_numpy(dtype=np.int64)
        out.append(records_of_counts(work.dataset, column, counts).numpy())
    return out


def _codes(work: Workspace, rows: pd.DataFrame) -> list[np.ndarray]:
    """Which code a user and an item has, one-hot."""
    model = BinaryMF(work.dataset.n_users, work.dataset.n_items, work.config.binllm.dim)
    model.load_state_dict(saved_state(work.with_weights("binary_mf"), "model"))
    out = []
    for column, bits, size in zip(COLUMNS, (model.user_bits, model.item_bits), _sizes(work), strict=True):
        code = bits(torch.arange(size + 1)).unique(dim=0, return_inverse=True)[1].numpy()
        out.append(np.eye(code.max() + 1)[code[rows[column]]])
    return out


def _sizes(work: Workspace) -> tuple[int, int]:
    return work.dataset.n_users, work.dataset.n_items


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    work = Workspace(make_config(options.profile, options.dataset), options.runs, computes=False)
    told = ", ".join(f"{value:.3f} within {column}s" for column, value in against_own_label(work).items())
    print(f"AUC of a training row's own count against its label: {told}\n")
    print(regressions(work).round(4).to_string())


if __name__ == "__main__":
    try:
        main()
    except SellarecError as error:
        sys.exit(f"error: {error}")
