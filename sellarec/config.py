"""A configuration by profile, dataset and changes, and back again: as options, and as what differs from a profile."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from sellarec.data import sources
from sellarec.errors import SellarecError, nearest
from sellarec.profiles import PROFILES, profile_on
from sellarec.settings import Config, Settings


def make_config(profile: str = "quick", dataset: str = "ml-100k", **changes: Any) -> Config:
    """A profile's settings for a dataset, with further changes by dotted name.

    >>> make_config("smoke", "ml-1m", **{"stage3.rows": 128}).stage3.rows
    128

    Raises:
        SellarecError: an unknown profile, name or value type; the nearest valid one is named.
    """
    return located(change_config(Config(), {"dataset": dataset, **profile_on(dataset, profile), **changes}))


def located(config: Config) -> Config:
    """The configuration with dataset and backbone as absolute paths if they are files: notebooks run elsewhere."""
    named = {"dataset": sources.DATASETS, "backbone": sources.MODELS}
    paths = {k: Path(getattr(config, k)) for k, known in named.items() if getattr(config, k) not in known}
    return dataclasses.replace(config, **{k: str(p.resolve()) for k, p in paths.items() if p.exists()})


def change_config(config: Config, changes: Mapping[str, Any]) -> Config:
    """The configuration with some settings changed, by dotted name.

    Raises:
        SellarecError: an unknown name, or a value that cannot be; the nearest valid one is named.
    """
    own: dict[str, Any] = {}
    of_group: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        group, dot, leaf = name.partition(".")
        _check_name(config, name)
        if dot:
            of_group.setdefault(group, {})[leaf] = _coerced(name, value, getattr(config, group), leaf)
        else:
            own[name] = _coerced(name, value, config, name)
    groups = {name: dataclasses.replace(getattr(config, name), **of_group[name]) for name in of_group}
    return dataclasses.replace(config, **own, **groups)


def settings_of(config: Any, prefix: str = "") -> dict[str, Any]:
    """All settings by dotted name."""
    out: dict[str, Any] = {}
    for each in dataclasses.fields(config):
        value, name = getattr(config, each.name), prefix + each.name
        out |= settings_of(value, f"{name}.") if isinstance(value, Settings) else {name: value}
    return out


def as_parameters(profile: str, config: Config) -> dict[str, Any]:
    """A configuration as notebooks and the app take it: `dataset`, `backbone`, `profile`, `seed`, and `changes`, all
    other settings in which it differs from the profile."""
    changes = changes_from(profile, config)
    named = {name: changes.pop(name, getattr(config, name)) for name in ("backbone", "seed")}
    return {"dataset": config.dataset, "profile": profile, **named, "changes": changes}


def changes_from(profile: str, config: Config) -> dict[str, Any]:
    """The settings in which a configuration differs from a profile on its dataset, by dotted name."""
    default = settings_of(make_config(profile, config.dataset))
    return {name: value for name, value in settings_of(config).items() if value != default[name]}


def as_options(changes: Mapping[str, Any]) -> list[str]:
    """Settings by dotted name as words of the command line.

    >>> as_options({"stage1.rows": 64, "stage3.records": False})
    ['--stage1.rows', '64', '--stage3.no-records']
    """
    words = []
    for name, value in changes.items():
        group, dot, leaf = name.rpartition(".")
        words.append(f"--{group}{dot}{'no-' if value is False else ''}{leaf}".replace("_", "-"))
        words += [] if isinstance(value, bool) else [str(value)]
    return words


def words_of(config: Config) -> list[str]:
    """Options that give this configuration again, from the profile that needs the fewest."""
    changes = {profile: changes_from(profile, config) for profile in PROFILES}
    profile = min(changes, key=lambda p: (len(changes[p]), p != "quick"))
    named = {"dataset": config.dataset, "backbone": config.backbone, "profile": profile}
    return as_options(named | {k: v for k, v in changes[profile].items() if k not in named})


def _check_name(config: Config, name: str) -> None:
    head, *rest = name.split(".")
    fields = [f.name for f in dataclasses.fields(config)]
    if head not in fields:
        raise SellarecError(f"setting '{name}' is not known. {nearest(head, fields)}")
    if not isinstance(group := getattr(config, head), Settings):
        if rest:
            raise SellarecError(f"setting '{name}': '{head}' has no parts.")
        return
    leaves = [f.name for f in dataclasses.fields(group)]
    if not rest:
        raise SellarecError(f"setting '{name}' is a group. {nearest('', leaves)}")
    if ".".join(rest) not in leaves:
        raise SellarecError(f"setting '{name}' is not known. {nearest('.'.join(rest), leaves)}")


def _coerced(name: str, value: Any, owner: object, field: str) -> Any:
    """Check a value against its field's annotation; whole numbers serve as floats."""
    kind = typing.get_type_hints(type(owner))[field]
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            raise SellarecError(f"setting '{name}' cannot be {value!r}. {nearest(str(value), typing.get_args(kind))}")
        return value
    kinds = typing.get_args(kind) or (kind,)
    if float in kinds and int not in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kinds) or (bool not in kinds and isinstance(value, bool)):
        said = " or ".join("None" if k is type(None) else k.__name__ for k in kinds)
        raise SellarecError(f"setting '{name}' needs {said}, not {value!r}.")
    return value
