"""Does a model that is given histories read them? Test metrics with each row's own history, another row's, and none.

    python benchmarks/histories.py --dataset ml-1m --system sasrec

The run's weights must be in the store; nothing is trained. A model to which all three are alike ranks items only.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import tyro

from sellarec.config import make_config
from sellarec.data.dataset import Dataset
from sellarec.errors import SellarecError
from sellarec.evaluation import auc, uauc
from sellarec.systems.base import Workspace
from sellarec.systems.registry import find_system

CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "its own": lambda histories: histories,
    "another row's": lambda histories: np.random.default_rng(0).permutation(histories),
    "none": np.zeros_like,
}


@dataclass(frozen=True)
class Options:
    """Score a finished run's test rows with other histories."""

    system: Literal["sasrec", "din"] = "sasrec"
    """Its run must be in the store, with weights."""
    dataset: str = "ml-1m"
    """A registered dataset or an own table."""
    profile: str = "quick"
    """As for `sellarec run`."""
    changes: dict[str, float] = field(default_factory=dict)
    """Settings by dotted name, such as: sasrec.weight_decay 1e-4"""
    runs: Path = Path("runs")
    """The run store."""


class OtherHistories:
    """A dataset whose rows have histories that are not theirs."""

    def __init__(self, dataset: Dataset, change: Callable[[np.ndarray], np.ndarray]) -> None:
        self._dataset, self._change = dataset, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def padded_histories(self, rows: np.ndarray, length: int) -> np.ndarray:
        return self._change(self._dataset.padded_histories(rows, length))


def compare(work: Workspace, name: str) -> pd.DataFrame:
    """AUC and UAUC of a run's test rows, by whose histories they are given."""
    run, rows, lines = work.with_weights(name), work.part("test"), {}
    for whose, change in CHANGES.items():
        place = copy.copy(work)
        place.dataset = OtherHistories(work.dataset, change)
        score = find_system(name).score(place, run, rows.index.to_numpy())
        lines[whose] = {"AUC": auc(rows["label"], score), "UAUC": uauc(rows["user"], rows["label"], score)}
    return pd.DataFrame.from_dict(lines, orient="index")


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    work = Workspace(make_config(options.profile, options.dataset), options.runs, computes=False)
    work = work.variant(options.changes)
    print(compare(work, options.system).round(4).to_string())


if __name__ == "__main__":
    try:
        main()
    except SellarecError as error:
        sys.exit(f"error: {error}")
