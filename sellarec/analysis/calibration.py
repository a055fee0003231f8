"""Do probabilities mean what they say? Reliability curves and the expected calibration error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sellarec.evaluation import Interval, UserBootstrap
from sellarec.systems.base import Workspace
from sellarec.systems.registry import find_system

BINS = 10


def reliability(label: np.ndarray, probability: np.ndarray, bins: int = BINS) -> pd.DataFrame:
    """Mean probability and share of likes in bins of equally many rows.

    Args:
        label, probability: Shape (n,); labels 0/1, probabilities in [0, 1].

    Returns:
        One line per bin in rising order: `probability`, `liked`, `rows`. Ties never part: a bin may be larger, and
        there are as many bins as distinct values at most.
    """
    frame = pd.DataFrame(
        {
            "bin": _bins(probability, bins),
            "probability": np.asarray(probability, dtype=float),
            "liked": np.asarray(label),
        }
    )
    grouped = frame.groupby("bin")
    return grouped[["probability", "liked"]].mean().assign(rows=grouped.size()).reset_index(drop=True)


def _bins(probability: np.ndarray, bins: int) -> np.ndarray:
    order = pd.Series(probability).rank(method="average").to_numpy()
    return np.minimum((order - 0.5) / len(order) * bins, bins - 1).astype(int)


def ece_interval(bootstrap: UserBootstrap, probability: np.ndarray, bins: int = BINS) -> Interval:
    """The expected calibration error, the curve's mean distance from the diagonal, with the 95 % interval of resampling
    users; bins stay those of all rows. It has no bounds (nan) where there are fewer than two users.

    It is never negative, so that noise alone lifts it: of a perfect system the interval would not hold 0.
    """
    gaps = np.zeros((len(probability), bins + 1))
    gaps[np.arange(len(probability)), _bins(probability, bins)] = probability - bootstrap.label
    gaps[:, bins] = 1
    sums = np.vstack([gaps.sum(axis=0), bootstrap.sums(gaps)])
    value, *samples = np.abs(sums[:, :bins]).sum(axis=1) / sums[:, bins]
    low, high = np.percentile(samples, [2.5, 97.5]) if bootstrap.users > 1 else (np.nan, np.nan)
    return Interval(float(value), float(low), float(high))


def calibration_table(work: Workspace, systems: Sequence[str]) -> pd.DataFrame:
    """Indexed by label: `system`, `ece` with its 95 % interval `ece_low` to `ece_high`, `log_loss` (nats), mean
    `probability` and share `liked` of the test rows."""
    rows = work.part("test")
    label = rows["label"].to_numpy()
    bootstrap = UserBootstrap(rows["user"].to_numpy(), label)
    lines = []
    for name in systems:
        score = work.test_scores(name).astype(np.float64)
        clipped = np.clip(score, 1e-7, 1 - 1e-7)
        loss = -np.mean(np.where(label == 1, np.log(clipped), np.log1p(-clipped)))
        ece = ece_interval(bootstrap, score)
        line = {"label": find_system(name).label, "system": name}
        line |= ece.columns("ece") | {"log_loss": loss}
        lines.append(line | {"probability": score.mean(), "liked": label.mean()})
    return pd.DataFrame(lines).set_index("label")


def reliability_curves(work: Workspace, systems: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The reliability curve of each system on the scored test rows."""
    label = work.part("test")["label"].to_numpy()
    return {name: reliability(label, work.test_scores(name)) for name in systems}
