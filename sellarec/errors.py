"""The one exception that a user is meant to read."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class SellarecError(Exception):
    """Something the user can put right; the message says what was wrong, where, and what to do."""


class NotComputed(SellarecError):
    """A run or its weights are not in the store, and nothing may be computed."""


def disk_is_full(error: BaseException) -> bool:
    """Whether a write failed for want of space; torch, safetensors and numpy each say so in their own way."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(sign in str(error) for sign in ("No space left on device", "Disk quota exceeded", "os error 28"))


MOST_NAMES = 40
"""How many valid names an error lists at most."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """One sentence for an unknown name: the closest valid one if there is one, then what is valid."""
    valid = list(valid)
    close = difflib.get_close_matches(name, valid, n=1)
    hint = f"Did you mean '{close[0]}'? " if close else ""
    shown, more = valid[:MOST_NAMES], len(valid) - MOST_NAMES
    return f"{hint}Valid: {', '.join(shown)}{f' and {more:,} more' if more > 0 else ''}."
