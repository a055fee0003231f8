"""Do probabilities mean what they say? Reliability curves and the expected calibration error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

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
    order = pd.Series(probability).rank(method="average").to_numpy()
    at = np.minimum((order - 0.5) / len(order) * bins, bins - 1).astype(int)
    frame = pd.DataFrame({"bin": at, "probability": np.asarray(probability, dtype=float), "liked": np.asarray(label)})
    grouped = frame.groupby("bin")
    return grouped[["probability", "liked"]].mean().assign(rows=grouped.size()).reset_index(drop=True)


def expected_calibration_error(curve: pd.DataFrame) -> float:
    """Mean distance of the curve from the diagonal, weighted by rows; in [0, 1]."""
    return float(((curve["probability"] - curve["liked"]).abs() * curve["rows"]).sum() / curve["rows"].sum())


def calibration_table(work: Workspace, systems: Sequence[str]) -> pd.DataFrame:
    """Indexed by label: `system`, `ece`, `log_loss` (nats), mean `probability` and share `liked` of the test rows."""
    label = work.part("test")["label"].to_numpy()
    lines = []
    for name in systems:
        score = work.test_scores(name).astype(np.float64)
        clipped = np.clip(score, 1e-7, 1 - 1e-7)
        loss = -np.mean(np.where(label == 1, np.log(clipped), np.log1p(-clipped)))
        ece = expected_calibration_error(reliability(label, score))
        line = {"label": find_system(name).label, "system": name, "ece": ece, "log_loss": loss}
        lines.append(line | {"probability": score.mean(), "liked": label.mean()})
    return pd.DataFrame(lines).set_index("label")


def reliability_curves(work: Workspace, systems: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The reliability curve of each system on the scored test rows."""
    label = work.part("test")["label"].to_numpy()
    return {name: reliability(label, work.test_scores(name)) for name in systems}
