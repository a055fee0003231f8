"""Published runs: what a reader with the same data need not compute again, without a line of that data.

A published run is a run without weights and rows: the scores alone, in the order in which the protocol lists the rows.
Whoever has the data adopts it: rows and labels come from their own copy, and the metrics made of them must be the
published ones. Weights are computed again where something grows from them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from sellarec.errors import SellarecError
from sellarec.evaluation import metrics
from sellarec.runs import MANIFEST, WITHOUT_WEIGHTS, Run, RunKey, open_run, seal
from sellarec.systems.base import Workspace
from sellarec.systems.registry import SYSTEMS, find_system
from sellarec.tables import SEEDS

RECORDS = ("config.json", "metrics.json", "log.jsonl", WITHOUT_WEIGHTS)
SCORES = "scores.safetensors"


def publish(work: Workspace, target: Path) -> list[Path]:
    """Write every run of this configuration that is in the store, and all that these grew from, below a folder.

    Returns:
        The folders that were written; those that are there stay as they are.
    """
    written = []
    for run in {run.folder: run for run in _runs_of(work)}.values():
        folder = target / run.folder.relative_to(work.root)
        if not folder.exists():
            _write(run, folder)
            written.append(folder)
    return written


def _runs_of(work: Workspace) -> Iterator[Run]:
    """Of each system and seed that is done its run, and before it the ones that it grew from."""
    for seed in SEEDS:
        place = work.variant({"seed": seed})
        for name in SYSTEMS:
            if place.is_done(name):
                yield from _with_upstream(place, name)


def _with_upstream(work: Workspace, name: str) -> Iterator[Run]:
    system = find_system(name)
    place = work.variant(system.changes)
    for need in system.needs:
        yield from _with_upstream(place, need)
    yield place.run(name)


def _write(run: Run, folder: Path) -> None:
    work = _fresh(folder)
    _copy_records(run, work)
    if (run.folder / "scores.parquet").exists():
        save_file({"score": run.scores["score"].to_numpy()}, work / SCORES)
    if weights := sorted(f.relative_to(run.folder).as_posix() for f in run.folder.rglob("*.safetensors")):
        Run(work).write_json(WITHOUT_WEIGHTS.removesuffix(".json"), weights)
    seal(work, folder)


def adopt(work: Workspace, source: Path) -> list[Path]:
    """Bring the runs that were published of this workspace's dataset into its store.

    Returns:
        The folders that came into the store; those that are there stay as they are.

    Raises:
        SellarecError: nothing was published of this dataset; a run was changed, or is of other data than this.
    """
    place = source / work.dataset.name
    found = sorted(path.parent for path in place.glob(f"*/*/*/{MANIFEST}"))
    if not found:
        raise SellarecError(f"{place}: no run was published there.")
    return [folder for folder in (_adopt_one(work, open_run(path)) for path in found) if folder]


def other_formats(work: Workspace, folders: list[Path]) -> list[str]:
    """The number formats of runs that the workspace's settings do not ask for: its tables would not find these."""
    return sorted({Run(f).config["settings"].get("dtype") for f in folders} - {None, work.base_dtype})


def _adopt_one(work: Workspace, published: Run) -> Path | None:
    key = _key_of(work, published)
    if key.data_hash != work.dataset.hash:
        raise SellarecError(
            f"{published.folder} was computed from other data: its interactions have the hash {key.data_hash[:12]}, "
            f"yours {work.dataset.hash[:12]}."
        )
    folder = key.folder(work.root)
    if folder.exists():
        return None
    copy = _fresh(folder)
    _copy_records(published, copy)
    if (published.folder / SCORES).exists():
        Run(copy).save_table("scores", _with_rows(work, published))
    seal(copy, folder)
    return folder


def _key_of(work: Workspace, published: Run) -> RunKey:
    config = published.config
    try:
        key = RunKey(**{name: config[name] for name in RunKey.__dataclass_fields__})
        honest = isinstance(key.seed, int) and (key.dataset, key.digest) == (work.dataset.name, config["key"])
    except (KeyError, TypeError) as error:
        raise SellarecError(f"{published.folder / 'config.json'} does not describe a run: {error}") from error
    if not honest:
        raise SellarecError(f"{published.folder}: its settings do not give its key; it was changed.")
    return key


def _copy_records(run: Run, folder: Path) -> None:
    for name in (name for name in RECORDS if (run.folder / name).is_file()):
        shutil.copyfile(run.folder / name, folder / name)


def _with_rows(work: Workspace, published: Run) -> pd.DataFrame:
    """The scores table of a run, its rows taken from the workspace's own data."""
    budgets = {f"evaluation.{k}": v for k, v in published.config["settings"]["evaluation"].items()}
    place = work.variant(budgets)
    parts = {split: place.part(split) for split in ("valid", "test")}
    rows = pd.concat(parts.values())[["split", "user", "item", "label", "warm"]]
    try:
        score = load_file(published.folder / SCORES)["score"]
    except (SafetensorError, KeyError) as error:
        raise SellarecError(f"{published.folder / SCORES} holds no scores: {error}") from error
    if score.shape != (len(rows),):
        raise SellarecError(f"{published.folder}: {len(score):,} scores for {len(rows):,} rows of your data.")
    rows = rows.assign(score=score)
    for split, part in parts.items():
        _compare(published, split, metrics(part, rows.loc[part.index, "score"].to_numpy()))
    return rows.rename_axis("row").reset_index()


def _compare(published: Run, split: str, found: dict[str, dict[str, float]]) -> None:
    for part, name in ((part, name) for part, values in found.items() for name in values):
        said = published.metrics.get(split, {}).get(part, {}).get(name)
        if not np.isclose(found[part][name], np.nan if said is None else said, rtol=0, atol=1e-9, equal_nan=True):
            raise SellarecError(
                f"{published.folder}: {name} of its {split} rows ({part}) is {found[part][name]:.6f} with your data "
                f"and {said} as published."
            )


def _fresh(folder: Path) -> Path:
    """An empty work folder beside a run's place."""
    work = folder.with_name(f".adopt-{folder.name}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    return work
