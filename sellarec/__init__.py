"""SeLLa-Rec, its baselines, ablations and analyses. `Workspace(make_config(...)).run("sella")` is the way in."""

from importlib import import_module
from importlib.metadata import version
from typing import Any

__version__ = version("sellarec")
__all__ = ["Workspace", "make_config"]

_HOMES = {"Workspace": "sellarec.systems.base", "make_config": "sellarec.config"}


def __getattr__(name: str) -> Any:  # late: a workspace brings torch along
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sellarec' has no attribute '{name}'")
