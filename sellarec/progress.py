"""Progress that reads well everywhere: one moving line in a terminal, a few plain lines in a notebook or a log."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from tqdm import tqdm

from sellarec.distributed import is_main

T = TypeVar("T")

# What tqdm says in notebooks without widgets: progress is plain text there.
warnings.filterwarnings("ignore", message="IProgress not found")

_listener: ContextVar[Callable[[str, int, int], None] | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Callable[[str, int, int], None]) -> Iterator[None]:
    """Call `listener` with label, work done and total whenever work advances in this block, in its thread.

    What the listener raises ends the work: so a user interface shows progress, and cancels.
    """
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)


class Progress:
    """Counts work done and prints rate and time left; silent for work under two seconds or without a label.

    Use as a context manager so that the last line is printed also when the work is interrupted.
    """

    def __init__(self, label: str, total: int, unit: str = "rows", done: int = 0) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self.first = done
        self.note = ""
        self._start = self._shown = time.monotonic()
        self._live = sys.stderr.isatty()
        self._interval = 0.5 if self._live else 20.0
        self._printed = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._printed or time.monotonic() - self._start > 2:
            self._show(end="\n")

    def advance(self, n: int = 1, note: str = "") -> None:
        self.done += n
        self.note = note or self.note
        if listener := _listener.get():
            listener(self.label, self.done, self.total)
        if time.monotonic() - self._shown > self._interval:
            self._show(end="" if self._live else "\n")

    def _show(self, end: str) -> None:
        if not self.label or not is_main():
            return
        self._printed, self._shown = True, time.monotonic()
        line = tqdm.format_meter(
            self.done,
            self.total,
            self._shown - self._start,
            initial=self.first,
            unit=f" {self.unit}",
            ascii=True,
            prefix=self.label,
            postfix=self.note,
            bar_format="{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt}, {rate_fmt}, "
            "{elapsed} so far, {remaining} left{postfix}",
        )
        print(("\r\033[K" if self._live else "") + line, end=end, file=sys.stderr, flush=True)


def track(items: Iterable[T], label: str, total: int, unit: str = "rows") -> Iterator[T]:
    """Yield the items and report progress, one unit an item."""
    with Progress(label, total, unit) as progress:
        for item in items:
            yield item
            progress.advance()
