"""The run store: what was computed, from what, with which settings; whole or not there at all.

A run is the folder `runs/<dataset>/<backbone>/<system>/<seed>-<key>/`. Its key is a hash of settings, data and the keys
of the runs it grew from, so that a changed setting is a new run and never overwrites an old one. A run is computed in a
hidden work folder and renamed when it is whole; `manifest.json` holds the sha256 of every file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from safetensors.numpy import load_file, save_file

from sellarec.distributed import agreed, is_main, wait, world
from sellarec.errors import SellarecError

MANIFEST = "manifest.json"
SCRATCH = "scratch-"
FAILURE = "failure.txt"
FITTED = ".fitted"
"""Marks a run whose training is done, until its manifest is written."""
WITHOUT_WEIGHTS = "without_weights.json"
"""Names the files that a run was published without."""


@dataclass(frozen=True)
class RunKey:
    """The identity of a run: where it belongs and everything that it depends on."""

    dataset: str
    backbone: str
    system: str
    seed: int
    settings: dict[str, Any]
    data_hash: str
    upstream: dict[str, str]

    @cached_property
    def digest(self) -> str:
        """First 12 hex digits of the sha256 over all of it."""
        parts = {k: getattr(self, k) for k in ("system", "backbone", "seed", "settings", "data_hash", "upstream")}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

    def folder(self, root: Path) -> Path:
        place = [folder_name(p) for p in (self.dataset, self.backbone, self.system)]
        return root.joinpath(*place, f"{self.seed}-{self.digest}")


@dataclass(frozen=True)
class Run:
    """A finished run, or one being written."""

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "config.json").read_text())

    @cached_property
    def metrics(self) -> dict[str, Any]:
        return json.loads((self.folder / "metrics.json").read_text())

    @cached_property
    def fingerprint(self) -> str:
        """Tells computations of one key apart: its published copy has the same, a run that rounded otherwise another.
        First 12 hex digits of the sha256 over log and metrics."""
        records = [self.folder / name for name in ("log.jsonl", "metrics.json")]
        return hashlib.sha256(b"".join(r.read_bytes() for r in records if r.is_file())).hexdigest()[:12]

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Columns row, split, user, item, label, warm, score; one line per scored interaction."""
        return pd.read_parquet(self.folder / "scores.parquet")

    @cached_property
    def log(self) -> pd.DataFrame:
        path = self.folder / "log.jsonl"
        return pd.read_json(path, lines=True) if path.is_file() and path.stat().st_size else pd.DataFrame()

    def scratch(self, name: str) -> Path:
        """A folder for what an interrupted computation goes on from; `clear_scratch` removes it."""
        return self.folder / f"{SCRATCH}{name}"

    def clear_scratch(self) -> None:
        for folder in self.folder.glob(f"{SCRATCH}*") if is_main() else ():
            shutil.rmtree(folder)

    @property
    def partial_scores(self) -> Path | None:
        """Where scoring may keep its work; None for a finished run, which nobody writes to."""
        return None if (self.folder / MANIFEST).exists() else self.folder / "partial.npy"

    def tensors(self, name: str) -> dict[str, np.ndarray]:
        return load_file(self.weights(f"{name}.safetensors"))

    @property
    def has_weights(self) -> bool:
        """False of a run that was published without them."""
        return not (self.folder / WITHOUT_WEIGHTS).exists()

    def weights(self, name: str) -> Path:
        """A file or folder of weights.

        Raises:
            SellarecError: the run was published without them.
        """
        if not self.has_weights:
            system = self.config["system"]
            raise SellarecError(
                f"{self.folder} was published without its weights. Compute them with: sellarec run {system} --weights, "
                "and the settings in its config.json."
            )
        return self.folder / name

    # Of several processes at one run only the first one writes.

    def save_tensors(self, name: str, tensors: dict[str, np.ndarray]) -> None:
        if is_main():
            save_file({k: np.array(v, order="C") for k, v in tensors.items()}, self.folder / f"{name}.safetensors")

    def save_table(self, name: str, table: pd.DataFrame) -> None:
        if is_main():
            table.to_parquet(self.folder / f"{name}.parquet", index=False)

    def write_json(self, name: str, content: Any) -> None:
        if is_main():
            fresh = self.folder / f".{name}.new"  # a file is whole or not there, also on a disk that fills up
            fresh.write_text(json.dumps(_plain(content), indent=2, sort_keys=True) + "\n")
            fresh.replace(self.folder / f"{name}.json")

    def describe(self, name: str, value: Any) -> None:
        """Say something more of a run in its config."""
        if is_main():
            self.config[name] = value
            self.write_json("config", self.config)

    def append_log(self, entry: dict[str, Any]) -> None:
        if is_main():
            with (self.folder / "log.jsonl").open("a") as out:
                out.write(json.dumps(_plain(entry)) + "\n")


_computing: ContextVar[Run | None] = ContextVar("_computing", default=None)


def record(fact: str) -> None:
    """Say of the run that is being computed, if one is, by what that changes rounding; its config then names it under
    "computed_with", also if the computation breaks off and goes on later."""
    run = _computing.get()
    if run and is_main() and fact not in run.config["computed_with"]:
        run.describe("computed_with", sorted([*run.config["computed_with"], fact]))


def is_there(root: Path, key: RunKey, *, weights: bool = False) -> bool:
    """Whether the run of a key is in the store; if `weights`, with these."""
    folder = key.folder(root)
    return folder.exists() and (not weights or Run(folder).has_weights)


def ensure_run(root: Path, key: RunKey, compute: Callable[[Run], None], *, weights: bool = False) -> Run:
    """The finished run of a key; computed first if it is not there, or has no weights although `weights` are asked for.

    An interrupted computation keeps its work folder, which `compute` finds again and may go on from.

    Raises:
        SellarecError: the stored run is damaged.
    """
    folder, work = key.folder(root), _work_folder(root, key)
    if agreed(is_there(root, key, weights=weights)):
        return open_run(folder)
    work.mkdir(parents=True, exist_ok=True)
    with run_lock(root, key) if is_main() else nullcontext():
        if is_main() and (work / MANIFEST).exists():  # finished, but not moved when it was stopped
            _move(work, folder)
        if not agreed(is_there(root, key, weights=weights)):
            run = Run(work)
            run.write_json("config", _description(key, _begun_under(work)))
            if is_main():
                (work / FAILURE).unlink(missing_ok=True)
            outer = _computing.set(run)
            try:
                compute(run)
            except Exception as error:
                with suppress(FileExistsError), (work / FAILURE).open("x") as out:  # of several the first one's reason
                    out.write(str(error) or type(error).__name__)
                raise
            finally:
                _computing.reset(outer)
            wait()
            if is_main():
                seal(work, folder)
    wait()
    return open_run(folder)


def seal(work: Path, folder: Path) -> None:
    """Finish a run: write its manifest, then rename its work folder to its place. A run without weights that stands
    there is replaced."""
    Run(work).write_json("manifest", {"files": _hashes(work)})
    (work / FITTED).unlink(missing_ok=True)
    _move(work, folder)


def _move(work: Path, folder: Path) -> None:
    old = folder.with_name(f".old-{folder.name}")
    if not Run(folder).has_weights:
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(work, folder)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def run_lock(root: Path, key: RunKey, timeout: float = -1) -> Iterator[None]:
    """Whoever computes a run, or brings it into the store, holds this lock.

    Raises:
        Timeout: somebody else has it, and not let go of it for so many seconds; by default that is waited for.
    """
    path = _work_folder(root, key).with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path, timeout=timeout):
        yield
    path.unlink(missing_ok=True)


def last_failure(root: Path, key: RunKey) -> str | None:
    """The message with which the last try to compute a run ended, if it failed."""
    path = _work_folder(root, key) / FAILURE
    return path.read_text() if path.is_file() else None


def is_begun(root: Path, key: RunKey) -> bool:
    """Whether a run is being computed, or was interrupted; computing it again goes on from there."""
    return _work_folder(root, key).is_dir()


def _work_folder(root: Path, key: RunKey) -> Path:
    folder = key.folder(root)
    return folder.with_name(f".work-{folder.name}")


def open_run(folder: Path, advice: str | None = None) -> Run:
    """Open a finished run after checking every file against its manifest.

    Args:
        advice: What to do about a damaged one; by default that it may be deleted and computed again.

    Raises:
        SellarecError: the manifest or a file is missing or was changed.
    """
    advice = advice or f"Delete the folder to have it computed again: {folder}"
    try:
        expected = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        raise SellarecError(f"{folder}: no readable {MANIFEST}; this is not a whole run. {advice}") from error
    found = _hashes(folder)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            what = "is missing" if name not in found else "was changed or added after the run was finished"
            raise SellarecError(f"{folder / name} {what}. {advice}")
    return Run(folder)


def _begun_under(work: Path) -> dict[str, Any]:
    """What an interrupted computation has said of itself; nothing if there was none."""
    try:
        return json.loads((work / "config.json").read_text())
    except (OSError, ValueError):
        return {}


def _description(key: RunKey, before: dict[str, Any]) -> dict[str, Any]:
    """What a reader needs to know of where a run comes from. One that goes on elsewhere, or under other code, names
    both; `before` is what it said until then."""
    packages = ("torch", "transformers", "peft", "accelerate", "scikit-learn", "numpy", "pandas")
    versions = {"python": platform.python_version(), **{n: version(n) for n in packages}}
    processes = [f"{world()} processes"] if world() > 1 else []
    machine = ", ".join([f"{platform.system()} {platform.machine()}", f"{os.cpu_count()} cores", *_gpu(), *processes])
    earlier = before.get("versions", {})
    return {
        **{k: getattr(key, k) for k in key.__dataclass_fields__},
        "key": key.digest,
        "code": _both(before.get("code"), code_version(), ", "),
        "versions": {name: _both(earlier.get(name), now) for name, now in versions.items()},
        "machine": _both(before.get("machine"), machine),
        "computed_with": before.get("computed_with", []),
    }


def _both(before: str | None, now: str, separator: str = ", then ") -> str:
    """What was said before and what is true now, in their order; once if they are the same."""
    said = before.split(separator) if before else []
    return separator.join(said if said[-1:] == [now] else [*said, now])


def _gpu() -> list[str]:
    return [torch.cuda.get_device_name()] if torch.cuda.is_available() else []


def code_version() -> str:
    """The git commit of the source tree, with "+changes" if it is edited; "unknown" without git or a checkout."""
    where = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(where), *words], capture_output=True, text=True, check=True).stdout

    if not (where.parent / ".git").exists():  # a repository that only happens to hold our installation is not ours
        return "unknown"
    try:
        commit, changes = git("rev-parse", "--short=12", "HEAD"), git("status", "--porcelain", "--", str(where))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.strip() + ("+changes" if changes.strip() else "")


def _hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file below the folder but the manifest and hidden ones, by relative path."""
    out = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST and p.name[0] != "."):
        with path.open("rb") as stream:
            out[path.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return out


def folder_name(name: str) -> str:
    """A name as one safe path component: other characters than letters, digits, '.', '_', '-' become '_'."""
    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in name).lstrip(".")
    if safe != name:
        safe += "-" + hashlib.sha256(name.encode()).hexdigest()[:6]
    return safe


def _plain(value: Any) -> Any:
    """JSON has no nan and no numpy types: undefined numbers become null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
