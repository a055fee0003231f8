"""What a group of settings can say of itself: what cannot work, and which settings came late."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from sellarec.errors import SellarecError


def late(default: Any) -> Any:
    """A setting that came later: keys of earlier runs, where it had its default, do not hold it."""
    return field(default=default, metadata={"late": True})


class Settings:
    """A group of settings."""

    def check(self, group: str) -> None:
        """Refuse what cannot work.

        Args:
            group: What the settings' full names begin with, "stage1.".

        Raises:
            SellarecError: names the first such setting.
        """


def at_least(settings: object, group: str, **least: float) -> None:
    """Refuse settings that are smaller than what can work; None stands for all there is.

    Args:
        group: What their full names begin with, "stage1.".

    Raises:
        SellarecError: names the first of them.
    """
    for name, bound in least.items():
        value = getattr(settings, name)
        if value is not None and not value >= bound:
            raise SellarecError(f"{group}{name} is {value}; it must be at least {bound}.")


def at_most(settings: object, group: str, **most: float) -> None:
    """As `at_least`, of what is larger."""
    for name, bound in most.items():
        value = getattr(settings, name)
        if value is not None and not value <= bound:
            raise SellarecError(f"{group}{name} is {value}; it must be at most {bound}.")


def above_zero(settings: object, group: str, *names: str) -> None:
    """As `at_least`, of what must be more than nothing."""
    for name in names:
        if not getattr(settings, name) > 0:
            raise SellarecError(f"{group}{name} is {getattr(settings, name)}; it must be above 0.")


def share(settings: object, group: str, *names: str) -> None:
    """As `at_least`, of shares that must be in [0, 1)."""
    for name in names:
        if not 0 <= getattr(settings, name) < 1:
            raise SellarecError(f"{group}{name} is {getattr(settings, name)}; it must be at least 0 and below 1.")
