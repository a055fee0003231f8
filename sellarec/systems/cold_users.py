"""Training rows that are shown as if their user were new, so that a model meets such rows before it is tested on them.

Nearly every user of a random training row is known, but 35 % of MovieLens-1M's validation rows and 78 % of
MovieLens-100K's belong to users without a past. A model that always had the user's record leans on it and leaves the
history unread (Volkovs et al., DropoutNet, NeurIPS 2017). Ours, not in the paper.
"""

from __future__ import annotations

import numpy as np

from sellarec.systems.base import Workspace


def hide_users(work: Workspace, rows: np.ndarray, share: float | None) -> np.ndarray:
    """Which training rows show their user as new, shape (n,), bool.

    Args:
        rows: Row ids of the training part, (n,).
        share: How many of them; None takes the share of rows of new users in the validation part (no label is read).
    """
    if share is None:
        share = 1.0 - known_users(work, work.dataset.part("valid").index.to_numpy()).mean()
    return np.random.default_rng(work.config.seed).random(len(rows)) < share


def known_users(work: Workspace, rows: np.ndarray) -> np.ndarray:
    """Which rows belong to users of the training part, shape (n,), bool."""
    return np.isin(work.dataset.interactions["user"].to_numpy()[rows], work.dataset.part("train")["user"])
