"""How well systems do on parts of the test rows: warm and cold, and by how often user and item were seen (Fig. 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from sellarec.evaluation import UserBootstrap, slice_masks
from sellarec.systems.base import Workspace
from sellarec.systems.registry import marked_label

STRICT_WARM = 3
"""CoLLM's stricter definition: user and item each have more training rows than this."""

SEEN = ((0, 0), (1, 3), (4, 10), (11, 30), (31, 100), (101, None))
"""Bins of training ratings, both ends included."""

COLUMNS = ("system", "label", "part", "rows", "users", "uauc_users", "liked", "probability")


def warm_masks(work: Workspace) -> dict[str, np.ndarray]:
    """Masks over the scored test rows (n,): both definitions of warm with their complements.

    "warm" is the paper's: user and item occur in the training part. "warm, more than 3" is CoLLM's stricter one.
    """
    strict = np.logical_and(*(seen_in_training(work, c) > STRICT_WARM for c in ("user", "item")))
    both = {f"warm, more than {STRICT_WARM}": strict, f"not more than {STRICT_WARM}": ~strict}
    return slice_masks(work.part("test")) | both


def seen_masks(work: Workspace, column: str) -> dict[str, np.ndarray]:
    """Masks over the scored test rows by how many training rows their user or item (`column`) has."""
    seen = seen_in_training(work, column)
    return {_bin_name(lo, hi): (seen >= lo) & (seen <= (np.inf if hi is None else hi)) for lo, hi in SEEN}


def seen_in_training(work: Workspace, column: str) -> np.ndarray:
    """For each scored test row, how many training rows its user or item has, shape (n,)."""
    counts = work.dataset.part("train")[column].value_counts()
    return work.part("test")[column].map(counts).fillna(0).to_numpy(dtype=np.int64)


def metrics_on(work: Workspace, systems: Sequence[str], masks: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """AUC and UAUC of systems on parts of the test rows, with 95 % user-bootstrap intervals.

    Returns:
        One line per system and part that has both classes: `system`, `label` (with a † if it is no fair baseline),
        `part`, `rows`, `users` (all), `uauc_users` (with both classes), share `liked`, mean `probability`, and for each
        metric m: `m`, `m_low`, `m_high`.
    """
    rows = work.part("test")
    lines = []
    for part, mask in masks.items():
        chosen = rows[mask]
        if chosen["label"].nunique() < 2:
            continue
        bootstrap = UserBootstrap(chosen["user"].to_numpy(), chosen["label"].to_numpy())
        for name in systems:
            score = work.test_scores(name)[mask]
            line = {"system": name, "label": marked_label(name, work.config), "part": part, "rows": len(chosen)}
            line |= {"users": bootstrap.users, "uauc_users": int(bootstrap.effective_users["uauc"])}
            line |= {"liked": chosen["label"].mean(), "probability": score.mean(dtype=np.float64)}
            for metric in ("auc", "uauc"):
                interval = bootstrap.interval(metric, score)
                line |= interval.columns(metric)
            lines.append(line)
    bounds = [m + end for m in ("auc", "uauc") for end in ("", "_low", "_high")]
    return pd.DataFrame(lines, columns=[*COLUMNS, *bounds])


def _bin_name(low: int, high: int | None) -> str:
    if high is None:
        return f"more than {low - 1}"
    return str(low) if low == high else f"{low} to {high}"
