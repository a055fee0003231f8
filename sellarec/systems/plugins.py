"""Systems that other installed packages bring, as entry points of the group "sellarec.systems"."""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import entry_points

from sellarec.errors import SellarecError
from sellarec.systems.base import System

GROUP = "sellarec.systems"


def installed_systems(taken: Collection[str]) -> list[System]:
    """What the entry points name, each a `System`.

    Args:
        taken: Names that are ours.

    Raises:
        SellarecError: one cannot be loaded, is no system, or has a name that is taken.
    """
    found: list[System] = []
    for entry in entry_points(group=GROUP):
        origin = f"{entry.value} of the package {entry.dist.name if entry.dist else '?'}"
        try:
            system = entry.load()
        except Exception as error:  # whatever another package does when it is imported
            raise SellarecError(
                f"{origin} cannot be loaded: {type(error).__name__}: {error}. Mend or uninstall it."
            ) from error
        if not isinstance(system, System):
            raise SellarecError(f"{origin} is no System but a {type(system).__name__}: {GROUP} is for these.")
        if system.name in {*taken, *(other.name for other in found)}:
            raise SellarecError(f"{origin} is called '{system.name}', as another system is. Give it its own name.")
        found.append(system)
    return found
