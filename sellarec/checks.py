"""What stops a training or a scoring whose result would mean nothing."""

from __future__ import annotations

import numpy as np

from sellarec.errors import SellarecError


def check_selectable(name: str, label: np.ndarray, what: str, more: str = "") -> None:
    """Refuse validation labels (n,) on which no state of `what` is better than another.

    Args:
        more: The setting of which more could help, if there is one.

    Raises:
        SellarecError: they are all the same.
    """
    if len(np.unique(label)) < 2:
        raise SellarecError(
            f"{name}: all validation labels are the same, so that no epoch of {what} is better than another. "
            f"Choose another data.like_above or other cut points{f', or more of {more}' if more else ''}."
        )


def check_finite(values: np.ndarray | float, what: str, advice: str) -> None:
    """Refuse a loss or scores that are no numbers any more.

    Raises:
        SellarecError: `what` has them; with the advice.
    """
    if not np.isfinite(values).all():
        raise SellarecError(f"{what}: not every value is finite any more; {advice}.")
