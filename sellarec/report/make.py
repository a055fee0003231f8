"""One report: the notebooks in order, those that could show something new; then its pages and images."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sellarec.config import as_parameters
from sellarec.data import sources
from sellarec.errors import SellarecError
from sellarec.report.images import write_images
from sellarec.report.notebooks import NotebookError, execute_notebook, notebooks_folder
from sellarec.report.pages import write_pages
from sellarec.settings import Config
from sellarec.systems.base import Workspace
from sellarec.systems.registry import OVERALL, find_system

EXECUTED = ".executed.json"


def make_report(profile: str, config: Config, runs: Path, reports: Path, *, compute: bool = True) -> Path:
    """Execute every notebook and write the entry page; returns its path.

    Args:
        profile: The one whose changes the configuration is told by.
        compute: False leaves out each notebook that asks for something that the run store does not have.

    Raises:
        SellarecError: a notebook failed; or nothing is to be computed and the store does not have what the entry page
            is made of.
    """
    started = time.monotonic()
    work, parameters = Workspace(config, runs.resolve(), computes=compute), as_parameters(profile, config)
    folder = reports.resolve() / _folder_name(work, profile, parameters["changes"])
    folder.mkdir(parents=True, exist_ok=True)
    parameters |= {"runs": str(work.root), "output": str(folder)}
    notebooks = sorted(notebooks_folder().glob("[0-9]*.ipynb"))
    if work.config.evaluation.raw_yes:
        print("== without 15_attention.ipynb: what-ifs are told in log-odds, not in raw logits of Yes", flush=True)
        notebooks = [n for n in notebooks if n.stem != "15_attention"]
    if not compute:
        _ask_for_all(work, OVERALL)
    left_out = _execute(work, notebooks, folder, parameters)
    shown = [n for n in notebooks if n.stem not in left_out]
    record = {n.name: _fingerprint(n, parameters, work) for n in shown}  # now that all runs are there
    (folder / EXECUTED).write_text(json.dumps(record, indent=2))
    write_pages(work, folder, [folder / "notebooks" / n.name for n in shown], profile, left_out)
    print(write_images(folder), flush=True)
    print(f"Report in {(time.monotonic() - started) / 60:.1f} minutes: {folder / 'index.html'}", flush=True)
    return folder / "index.html"


def _ask_for_all(work: Workspace, names: Sequence[str]) -> None:
    """Name everything that the entry page is made of and the store does not have.

    Raises:
        SellarecError: something is missing, or cannot be read.
    """
    missing = [find_system(name) for name in names if not work.is_done(name)]
    ways = "".join(f"\n  {system.label}: {work.way_to(system)}" for system in missing)
    if missing:
        raise SellarecError(f"The entry page also shows what is not in the run store {work.root}:{ways}")
    for name in names:
        work.run(name)


def _execute(work: Workspace, notebooks: list[Path], folder: Path, parameters: dict[str, Any]) -> dict[str, str]:
    """Execute those that could show something new; those that were left out, by name, with the reason."""
    kept, left_out = _executed_before(folder), {}
    for notebook in notebooks:
        target = folder / "notebooks" / notebook.name
        if target.is_file() and kept.get(notebook.name) == _fingerprint(notebook, parameters, work):
            print(f"== {notebook.name} stands: neither it, nor the code, nor the runs have changed", flush=True)
            continue
        begun = time.monotonic()
        print(f"== {notebook.name}", flush=True)
        kept.pop(notebook.name, None)  # what is written from here on is not what was recorded
        (folder / EXECUTED).write_text(json.dumps(kept, indent=2))
        try:
            execute_notebook(notebook, target, parameters | {"compute": work.computes})
        except NotebookError as error:
            if work.computes or error.missing is None:
                raise
            left_out[notebook.stem] = error.missing
            _forget(notebook, folder)
            print(f"== {notebook.name} left out: {error.missing}", flush=True)
            continue
        print(f"== {notebook.name} done in {time.monotonic() - begun:.0f} s", flush=True)
    return left_out


def _forget(notebook: Path, folder: Path) -> None:
    """Remove what a notebook has written, now or in an earlier report."""
    number = notebook.stem.partition("_")[0]
    for file in (folder / "notebooks" / notebook.name, folder / f"{notebook.stem}.html"):
        file.unlink(missing_ok=True)
    for file in (*(folder / "tables").glob(f"{number}_*"), *(folder / "figures").glob(f"{number}_*")):
        file.unlink()


def _fingerprint(notebook: Path, parameters: dict[str, Any], work: Workspace) -> str:
    """A hash of everything that an executed notebook shows: its source, parameters, data, code, and the runs there."""
    code = sorted(Path(__file__).resolve().parents[1].rglob("*.py"))
    runs = sorted(p for place in work.places for p in place.rglob("manifest.json"))
    names = [p.relative_to(work.root).as_posix() for p in runs]
    model = [work.backbone_identity, work.base_dtype]
    digest = hashlib.sha256(json.dumps([parameters, names, work.dataset.hash, model], sort_keys=True).encode())
    for path in (notebook, *code, *runs):  # a manifest holds the hashes of all that a run holds
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _executed_before(folder: Path) -> dict[str, str]:
    try:
        return json.loads((folder / EXECUTED).read_text())
    except (OSError, ValueError):
        return {}


def _folder_name(work: Workspace, profile: str, changes: dict[str, Any]) -> str:
    """One folder per settings, so that a changed one does not overwrite the profile's own report."""
    of = work.config
    data = _short(work.dataset.name, of.dataset, sources.DATASETS)
    model = _short(Path(of.backbone).name, of.backbone, sources.MODELS)
    settings = f"-{_digest(json.dumps(changes, sort_keys=True))}" if changes else ""
    return f"{data}-{model}-{profile}-{of.seed}{settings}"


def _short(name: str, whole: str, registered: Mapping[str, object]) -> str:
    """A name for a folder; files and hub ids that end alike are told apart by a digest of the whole."""
    return name if whole in registered else f"{name}-{_digest(whole)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
