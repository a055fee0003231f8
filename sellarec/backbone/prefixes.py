"""The prefix cache: keys and values of what prompts share, computed once and kept on disk.

Most of a prompt comes before anything trainable. Behind the same frozen model these prefixes are the same for the
scores of stage 1, for every epoch of stage 3 and for every variant of it; with them a row costs its last tokens only.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from sellarec.backbone.compiled import FACT, layers_for, would_be_compiled
from sellarec.backbone.engine import CPU_TOKENS, prefix_states
from sellarec.backbone.language_model import LanguageModel
from sellarec.progress import Progress
from sellarec.runs import record

Prefix = tuple[int, ...]

SAVE_SECONDS = 30.0
"""A killed computation loses at most so much work."""

SHARE_OF_DISK = 0.75
"""Of the space that is free or taken by kept prefixes, at most so much is used."""

GIB = 2**30

ABOUT_FILES = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
"""What a model's settings say of where it came from, and not of what it computes."""


@dataclass(frozen=True)
class PrefixCache:
    """Keys and values by prefix, read from a file as they are needed.

    Attributes:
        data: Shape (tokens, layers, 2, heads, head size), as `dtype` or its bits: the prefixes one after the other.
        starts: Where in it each prefix begins.
    """

    data: np.ndarray
    starts: dict[Prefix, int]
    dtype: torch.dtype

    def batch(self, prefixes: Sequence[Prefix]) -> tuple[Tensor, Tensor]:
        """As `KeptPrefixes.batch`."""
        lengths = [len(p) for p in prefixes]
        out = np.zeros((len(prefixes), max(lengths), *self.data.shape[1:]), dtype=self.data.dtype)
        for n, prefix in enumerate(prefixes):
            start = self.starts[prefix] if prefix else 0
            out[n, : len(prefix)] = self.data[start : start + len(prefix)]
        return torch.from_numpy(out).view(self.dtype), torch.tensor(lengths)


def open_prefix_cache(
    lm: LanguageModel,
    prefixes: Sequence[Prefix],
    folder: Path,
    gib: float,
    *,
    token_budget: int = CPU_TOKENS,
    label: str = "prefix cache",
) -> PrefixCache | None:
    """The keys and values of all prefixes, computed if the folder does not hold them yet.

    The groups in which they are computed depend on the list alone, so that the same list gives the same bytes, also
    after a kill. Several processes may share the folder.

    Args:
        gib: The folder may grow to this many GiB, and to `SHARE_OF_DISK` at most: what was used longest ago goes.
        token_budget: Padded tokens in one group.

    Returns:
        None, with a line that says so, where they do not fit or the model's cache is not one tensor a layer; None
        also where all prefixes are empty.
    """
    distinct = [p for p in dict.fromkeys(prefixes) if p]
    if not distinct:
        return None
    shape = _shape(lm)
    if shape is None:
        print(f"{label}: computed anew each time, this backbone's layers keep different things.", flush=True)
        return None
    lengths = np.array([len(p) for p in distinct])
    starts, total, dtype = np.cumsum(lengths) - lengths, int(lengths.sum()), lm.embedding.weight.dtype
    needed = total * math.prod(shape) * dtype.itemsize
    path = folder / f"{_digest(lm, distinct, token_budget)}.bin"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            if not _reserve(path.with_suffix(".part"), needed, gib):
                print(
                    f"{label}: would take {needed / GIB:.1f} GiB on disk and is computed anew each time "
                    f"(--prefix-gib is {gib:g}, {shutil.disk_usage(folder).free / GIB:.0f} GiB are free).",
                    flush=True,
                )
                return None
            shown = f"{label}, {needed / GIB:.1f} GiB" if label else ""
            with layers_for(lm, len(distinct)):
                _compute(lm, distinct, starts, (total, *shape), path, token_budget, shown)
        os.utime(path)
        data = np.memmap(path, _numpy(dtype), mode="r", shape=(total, *shape))
        cache = PrefixCache(data, dict(zip(distinct, starts.tolist(), strict=True)), dtype)
        _in_use[path] += 1
        weakref.finalize(cache, _in_use.subtract, [path])
    for fact in ("prefix cache", *([FACT] if would_be_compiled(lm, len(distinct)) else [])):
        record(fact)
    return cache


_in_use: Counter[Path] = Counter()
"""How many caches of this process read a file: to remove one would free nothing, and it would be computed again."""


def _compute(
    lm: LanguageModel,
    prefixes: Sequence[Prefix],
    starts: np.ndarray,
    shape: tuple[int, ...],
    path: Path,
    token_budget: int,
    label: str,
) -> None:
    """Fill the reserved file; an interrupted computation goes on after the last group that was surely written."""
    part, done_file = path.with_suffix(".part"), path.with_suffix(".done")
    done = int(done_file.read_text()) if done_file.exists() else 0
    dtype = lm.embedding.weight.dtype
    data = np.memmap(part, _numpy(dtype), mode="r+", shape=shape)
    groups = list(_groups(prefixes, token_budget))
    saved = time.monotonic()
    with Progress(label, len(prefixes), "rows", done=sum(map(len, groups[:done]))) as progress:
        for number, group in enumerate(groups[done:], start=done + 1):
            states = prefix_states(lm, [prefixes[i] for i in group]).cpu().view(_bits(dtype)).numpy()
            for n, i in enumerate(group):
                data[starts[i] : starts[i] + len(prefixes[i])] = states[n, : len(prefixes[i])]
            progress.advance(len(group))
            if time.monotonic() - saved > SAVE_SECONDS:
                data.flush()
                fresh = path.with_suffix(".count")
                fresh.write_text(str(number))
                fresh.replace(done_file)
                saved = time.monotonic()
    data.flush()
    done_file.unlink(missing_ok=True)
    part.replace(path)


def _groups(prefixes: Sequence[Prefix], token_budget: int) -> Iterator[list[int]]:
    """Positions of prefixes of similar length, at most `token_budget` padded tokens together."""
    group: list[int] = []
    for i in sorted(range(len(prefixes)), key=lambda i: len(prefixes[i])):
        if group and (len(group) + 1) * len(prefixes[i]) > token_budget:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def room(folder: Path) -> float:
    """Bytes that kept prefixes may take in a folder, which need not be there yet."""
    place = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
    taken = sum(s.st_size for s in _files(folder).values())
    return (shutil.disk_usage(place).free + taken) * SHARE_OF_DISK


def _files(folder: Path) -> dict[Path, os.stat_result]:
    found = {}
    for file in folder.glob("*"):
        with suppress(FileNotFoundError):  # another process has removed or renamed it meanwhile
            if file.suffix in (".bin", ".part"):
                found[file] = file.stat()
    return found


def _reserve(part: Path, needed: int, gib: float) -> bool:
    """Make the file that will be written, with its space taken on the disk; False if there is no room for it.

    Files that were used longest ago make room, but for those that a process is writing or this one is reading.
    """
    folder, done = part.parent, part.with_suffix(".done")
    if part.exists() and part.stat().st_size == needed and done.exists():
        return True
    _remove(part)
    with FileLock(folder / "room.lock"):
        files = _files(folder)
        taken, allowed = sum(s.st_size for s in files.values()), min(gib * GIB, room(folder))
        old = sorted((f for f in files if not _in_use[f]), key=lambda f: files[f].st_mtime)
        if taken + needed - sum(files[f].st_size for f in old) > allowed:
            return False  # nothing is removed in vain
        for file in old:
            if taken + needed <= allowed:
                break
            if _remove_unless_locked(file):
                taken -= files[file].st_size
        if taken + needed > allowed:
            return False
        try:
            with part.open("wb") as stream:
                if hasattr(os, "posix_fallocate"):  # a full disk is an error now rather than a crash in the middle
                    os.posix_fallocate(stream.fileno(), 0, needed)
                else:
                    stream.truncate(needed)
        except OSError:
            _remove(part)
            return False
    return True


def _remove_unless_locked(file: Path) -> bool:
    try:
        with FileLock(file.with_suffix(".lock"), timeout=0):
            _remove(file)
    except Timeout:
        return False
    return True


def _remove(file: Path) -> None:
    file.with_suffix(".done").unlink(missing_ok=True)  # first: beside another file it would be believed
    file.unlink(missing_ok=True)


def _shape(lm: LanguageModel) -> tuple[int, ...] | None:
    """(layers, 2, heads, head size) of what one token leaves behind; None if layers differ."""
    states = prefix_states(lm, [(0,)])
    return None if states is None else tuple(states.shape[2:])


def _digest(lm: LanguageModel, prefixes: Sequence[Prefix], token_budget: int) -> str:
    """Names all that decides the bytes: the weights themselves, what the model does with them, the list, and how it is
    grouped."""
    settings = {k: v for k, v in lm.model.config.to_dict().items() if k not in ABOUT_FILES}
    compiled = " compiled" if would_be_compiled(lm, len(prefixes)) else ""
    digest = hashlib.sha256(f"{lm.embedding.weight.dtype} {token_budget}{compiled}".encode())
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, weight in sorted(lm.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    for prefix in prefixes:
        digest.update(np.array([len(prefix), *prefix], dtype=np.int32).tobytes())
    return digest.hexdigest()[:16]


def _bits(dtype: torch.dtype) -> torch.dtype:
    """numpy has no bfloat16: its bits travel as integers."""
    return torch.int16 if dtype == torch.bfloat16 else dtype


def _numpy(dtype: torch.dtype) -> np.dtype:
    return torch.empty(0, dtype=_bits(dtype)).numpy().dtype
