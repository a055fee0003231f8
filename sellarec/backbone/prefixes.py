"""Keys and values of the beginnings of prompts, computed once and kept on disk.

Most of a prompt comes before anything trainable. Behind the same frozen model these beginnings are the same for the
scores of stage 1, for every epoch of stage 3 and for every variant of it; with them a row costs its last tokens only.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from sellarec.backbone.engine import TOKEN_BUDGET, prefix_states
from sellarec.backbone.language_model import LanguageModel
from sellarec.progress import Progress

Prefix = tuple[int, ...]

SAVE_SECONDS = 30.0
"""A killed computation loses at most so much work."""

SHARE_OF_DISK = 0.75
"""Of the space that is free or taken by kept prefixes, at most so much is used."""

GIB = 2**30


@dataclass(frozen=True)
class KeptPrefixes:
    """Keys and values by prefix, read from a file as they are needed.

    Attributes:
        data: Shape (tokens, layers, 2, heads, head size), as `dtype` or its bits: the prefixes one after the other.
        starts: Where in it each prefix begins.
    """

    data: np.ndarray
    starts: dict[Prefix, int]
    dtype: torch.dtype

    def batch(self, prefixes: Sequence[Prefix]) -> tuple[Tensor, Tensor]:
        """Keys and values of some prefixes, padded on the right, (B, T, layers, 2, heads, size); and lengths (B,)."""
        lengths = torch.tensor([len(p) for p in prefixes])
        out = torch.zeros(len(prefixes), int(lengths.max()), *self.data.shape[1:], dtype=_bits(self.dtype))
        for n, prefix in enumerate(prefixes):
            start = self.starts[prefix] if prefix else 0
            out[n, : len(prefix)] = torch.from_numpy(self.data[start : start + len(prefix)])
        return out.view(self.dtype), lengths


def keep_prefixes(
    lm: LanguageModel,
    prefixes: Sequence[Prefix],
    identity: str,
    folder: Path,
    gib: float,
    *,
    token_budget: int = TOKEN_BUDGET["cpu"],
    label: str = "beginnings of prompts",
) -> KeptPrefixes | None:
    """The keys and values of all prefixes, computed if the folder does not hold them yet.

    The groups in which they are computed depend on the list alone, so that the same list gives the same bytes, also
    after a kill.

    Args:
        identity: Of the model and its number format; names what the keys and values are of.
        gib: The folder may grow to so many GiB, and to `SHARE_OF_DISK` at most: what was used longest ago goes.
        token_budget: Padded tokens in one group.

    Returns:
        None, with a line that says so, where they do not fit or the model's cache is not one tensor a layer.
    """
    distinct = [p for p in dict.fromkeys(prefixes) if p]
    shape = _shape(lm) if distinct else None
    if shape is None:
        return None
    lengths = np.array([len(p) for p in distinct])
    ends = np.cumsum(lengths)
    dtype = lm.embedding.weight.dtype
    needed = int(ends[-1]) * math.prod(shape) * dtype.itemsize
    path = folder / f"{_digest(identity, distinct)}.bin"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            if not _make_room(folder, needed, gib, keep=path.with_suffix(".part")):
                print(
                    f"The {label} would take {needed / GIB:.1f} GiB on disk and are computed anew each time "
                    f"(--prefix-gib is {gib:g}, {shutil.disk_usage(folder).free / GIB:.0f} GiB are free).",
                    flush=True,
                )
                return None
            _compute(lm, distinct, ends - lengths, shape, path, token_budget, f"{label}, {needed / GIB:.1f} GiB")
    os.utime(path)
    data = np.memmap(path, _numpy(dtype), mode="c", shape=(int(ends[-1]), *shape))
    return KeptPrefixes(data, dict(zip(distinct, (ends - lengths).tolist(), strict=True)), dtype)


def _compute(
    lm: LanguageModel,
    prefixes: Sequence[Prefix],
    starts: np.ndarray,
    shape: tuple[int, ...],
    path: Path,
    token_budget: int,
    label: str,
) -> None:
    """Write the file; an interrupted one goes on after the last group that was surely written."""
    part, done_file = path.with_suffix(".part"), path.with_suffix(".done")
    done = int(done_file.read_text()) if part.exists() and done_file.exists() else 0
    total = int(starts[-1]) + len(prefixes[-1])
    dtype = lm.embedding.weight.dtype
    data = np.memmap(part, _numpy(dtype), mode="r+" if done else "w+", shape=(total, *shape))
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
                done_file.write_text(str(number))
                saved = time.monotonic()
    data.flush()
    part.replace(path)
    done_file.unlink(missing_ok=True)


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


def _make_room(folder: Path, needed: int, gib: float, keep: Path) -> bool:
    """Remove the files that were used longest ago until `needed` bytes fit; False if they cannot."""
    files = [f for f in folder.iterdir() if f.suffix in (".bin", ".part")]
    here = keep.stat().st_size if keep.exists() else 0
    taken = sum(f.stat().st_size for f in files if f.suffix == ".bin")  # one being written is sparse
    allowed = min(gib * GIB, (shutil.disk_usage(folder).free + taken) * SHARE_OF_DISK)
    if needed > allowed:
        return False
    kept = sum(f.stat().st_size for f in files) - here
    for file in sorted((f for f in files if f != keep), key=lambda f: f.stat().st_mtime):
        if kept + needed <= allowed:
            break
        kept -= file.stat().st_size
        file.unlink()
        file.with_suffix(".done").unlink(missing_ok=True)
    return True


def _shape(lm: LanguageModel) -> tuple[int, ...] | None:
    """(layers, 2, heads, head size) of what one token leaves behind; None if layers differ."""
    states = prefix_states(lm, [(0,)])
    return None if states is None else tuple(states.shape[2:])


def _digest(identity: str, prefixes: Sequence[Prefix]) -> str:
    digest = hashlib.sha256(identity.encode())
    for prefix in prefixes:
        digest.update(np.array([len(prefix), *prefix], dtype=np.int32).tobytes())
    return digest.hexdigest()[:16]


def _bits(dtype: torch.dtype) -> torch.dtype:
    """numpy has no bfloat16: its bits travel as integers."""
    return torch.int16 if dtype == torch.bfloat16 else dtype


def _numpy(dtype: torch.dtype) -> np.dtype:
    return torch.empty(0, dtype=_bits(dtype)).numpy().dtype
