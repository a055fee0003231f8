"""Published runs: what a reader with the same data need not compute again, without a line of that data.

A published run is a run without weights and rows: the scores alone, in the order in which the protocol lists the rows.
Whoever has the data adopts it: rows and labels come from their own copy, and the metrics made of them must be the
published ones. Weights are computed again where something grows from them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import Timeout
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from sellarec.errors import SellarecError
from sellarec.evaluation import metrics
from sellarec.runs import MANIFEST, WITHOUT_WEIGHTS, Run, RunKey, folder_name, open_run, run_lock, seal
from sellarec.systems.base import Workspace
from sellarec.systems.registry import SYSTEMS, find_system

RECORDS = ("config.json", "metrics.json", "log.jsonl", WITHOUT_WEIGHTS)
SCORES = "scores.safetensors"


def publish(work: Workspace, target: Path) -> list[Path]:
    """Write every run of this configuration that is in the store, and all that these grew from, below a folder.

    Returns:
        The folders that were written; those that are there stay as they are.

    Raises:
        SellarecError: no run of this configuration is in the store.
    """
    runs, written = {run.folder: run for run in runs_of(work)}, []
    if not runs:
        config = work.config
        raise SellarecError(
            f"{work.root}: no run with these settings is there (dataset {config.dataset}, backbone {config.backbone}, "
            f"{work.base_dtype}). Name the profile, and every setting, that they were computed with."
        )
    for run in runs.values():
        folder = target / run.folder.relative_to(work.root)
        if not folder.exists():
            _write(run, folder)
            written.append(folder)
    return written


def runs_of(work: Workspace) -> Iterator[Run]:
    """Of each system and seed that is done its run, and before it the ones that it grew from."""
    for seed in work.seeds():
        variant = work.variant({"seed": seed})
        for name in SYSTEMS:
            if variant.is_done(name):
                yield from _with_upstream(variant, name)


def _with_upstream(work: Workspace, name: str) -> Iterator[Run]:
    system = find_system(name)
    variant = work.variant(system.changes)
    for need in system.needs:
        yield from _with_upstream(variant, need)
    yield variant.run(name)


def _write(run: Run, folder: Path) -> None:
    with _fresh(folder) as work:
        _copy_records(run, work)
        if (run.folder / "scores.parquet").exists():
            save_file({"score": run.scores["score"].to_numpy()}, work / SCORES)
        if weights := sorted(f.relative_to(run.folder).as_posix() for f in run.folder.rglob("*.safetensors")):
            Run(work).write_json(WITHOUT_WEIGHTS.removesuffix(".json"), weights)
        seal(work, folder)


def adopt(work: Workspace, source: Path) -> list[Path]:
    """Bring the runs that were published of this workspace's data into its store.

    Returns:
        The folders that came into the store; those that are there stay as they are.

    Raises:
        SellarecError: nothing was published of this dataset, or all of it is of other data; a run was changed.
    """
    runs = {run: _key_of(work, run) for run in _published(work, source)}
    ours = {run: key for run, key in runs.items() if key.data_hash == work.dataset.hash}
    if not ours:
        settings = next(iter(runs)).config["settings"].get("data")
        raise SellarecError(
            f"The {len(runs)} runs below {source} were computed from other data: your interactions have the hash "
            f"{work.dataset.hash[:12]}, the first one's {next(iter(runs.values())).data_hash[:12]}, with the data "
            f"settings {settings}."
        )
    return [folder for folder in (_adopt_one(work, run, key) for run, key in ours.items()) if folder]


def other_formats(work: Workspace, source: Path) -> list[str]:
    """The number formats of published runs that the workspace's settings do not ask for: its tables would not find
    these.
    """
    return sorted({run.config["settings"].get("dtype") for run in _published(work, source)} - {None, work.base_dtype})


def _published(work: Workspace, source: Path) -> list[Run]:
    place = source / folder_name(work.dataset.name)
    found = sorted(path.parent for path in place.glob(f"*/*/*/{MANIFEST}"))
    if not found:
        raise SellarecError(f"{place}: no run was published there.")
    return [open_run(path, f"Restore it from where it was published: git checkout -- {path}") for path in found]


def _adopt_one(work: Workspace, published: Run, key: RunKey) -> Path | None:
    """Where a published run now lies; None if it is there already, or is being computed."""
    folder, scored = key.folder(work.root), (published.folder / SCORES).exists()
    if scored != (published.folder / "metrics.json").exists():
        raise SellarecError(f"{published.folder}: scores without metrics, or metrics without scores.")
    with suppress(Timeout), run_lock(work.root, key, timeout=0):
        if folder.exists():
            return None
        with _fresh(folder) as copy:
            _copy_records(published, copy)
            if scored:
                Run(copy).save_table("scores", _with_rows(work, published))
            seal(copy, folder)
        return folder
    return None


def _key_of(work: Workspace, published: Run) -> RunKey:
    config = published.config
    try:
        key = RunKey(**{name: config[name] for name in RunKey.__dataclass_fields__})
        named = all(isinstance(name, str) for name in (key.dataset, key.backbone, key.system, key.data_hash))
        typed = named and isinstance(key.seed, int) and isinstance(key.settings, dict)
        honest = typed and (key.dataset, key.digest) == (work.dataset.name, config["key"])
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
    variant = work.variant(budgets)
    parts = {split: variant.part(split) for split in ("valid", "test")}
    rows = pd.concat(parts.values())[["split", "user", "item", "label", "warm"]]
    try:
        score = load_file(published.folder / SCORES)["score"]
    except (SafetensorError, KeyError) as error:
        raise SellarecError(f"{published.folder / SCORES} holds no scores: {error}") from error
    if score.shape != (len(rows),):
        raise SellarecError(f"{published.folder}: {len(score):,} scores for {len(rows):,} rows of your data.")
    if score.dtype not in (np.float32, np.float64) or not np.isfinite(score).all():
        raise SellarecError(f"{published.folder / SCORES}: not all of its scores are finite numbers.")
    rows = rows.assign(score=score)
    for split, part in parts.items():
        _check_metrics(published, split, metrics(part, rows.loc[part.index, "score"].to_numpy()))
    return rows.rename_axis("row").reset_index()


def _check_metrics(published: Run, split: str, found: dict[str, dict[str, float]]) -> None:
    for part, name in ((part, name) for part, values in found.items() for name in values):
        said = published.metrics.get(split, {}).get(part, {}).get(name)
        if not np.isclose(found[part][name], np.nan if said is None else said, rtol=0, atol=1e-9, equal_nan=True):
            raise SellarecError(
                f"{published.folder}: {name} of its {split} rows ({part}) is {found[part][name]:.6f} with your data "
                f"and {said} as published."
            )


@contextmanager
def _fresh(folder: Path) -> Iterator[Path]:
    """An empty work folder beside a run's place, which is gone afterwards."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".adopt-") as scratch:
        work = Path(scratch) / folder.name
        work.mkdir()
        yield work
