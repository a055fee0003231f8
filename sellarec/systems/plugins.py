"""Systems that other installed packages bring, as entry points of the group "sellarec.systems"."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points

from sellarec.errors import SellarecError
from sellarec.systems.base import System

GROUP = "sellarec.systems"


def installed_systems(known: Mapping[str, System]) -> list[System]:
    """What the entry points name, each a `System`.

    Args:
        known: Our systems by name.

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
        if known.get(system.name, system) is not system or system.name in {other.name for other in found}:
            raise SellarecError(f"{origin} is called '{system.name}', as another system is. Give it its own name.")
        found.append(system)
    return found
