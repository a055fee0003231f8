"""The one exception that a user is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SellarecError(Exception):
    """Something the user can put right; the message says what was wrong, where, and what to do."""


def at_least(settings: object, **least: float) -> None:
    """Refuse settings that are smaller than what can work; None stands for all there is.

    Raises:
        SellarecError: names the first of them.
    """
    for name, bound in least.items():
        value = getattr(settings, name)
        if value is not None and value < bound:
            raise SellarecError(f"{name} is {value}; it must be at least {bound}.")


def below_one(settings: object, *names: str) -> None:
    """Refuse shares that are not in [0, 1).

    Raises:
        SellarecError: names the first of them.
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None and not 0 <= value < 1:
            raise SellarecError(f"{name} is {value}; it must be at least 0 and below 1.")


def above_zero(settings: object, *names: str) -> None:
    """Refuse what must be more than nothing.

    Raises:
        SellarecError: names the first of them.
    """
    for name in names:
        if not getattr(settings, name) > 0:
            raise SellarecError(f"{name} is {getattr(settings, name)}; it must be above 0.")


MOST_NAMES = 40
"""How many valid names an error lists at most."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """One sentence for an unknown name: the closest valid one if there is one, then what is valid."""
    valid = list(valid)
    close = difflib.get_close_matches(name, valid, n=1)
    hint = f"Did you mean '{close[0]}'? " if close else ""
    shown, more = valid[:MOST_NAMES], len(valid) - MOST_NAMES
    return f"{hint}Valid: {', '.join(shown)}{f' and {more:,} more' if more > 0 else ''}."
