"""A machine, this one or another: what memory it has free, and how fast it multiplies matrices."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from sellarec.backbone.loading import DTYPES, NF4, check_dtype, choose_placement
from sellarec.errors import SellarecError

GIB = 2**30

V1_FILES = ("memory.limit_in_bytes", "memory.usage_in_bytes")


@dataclass(frozen=True)
class Machine:
    """Where something runs, or would run.

    Attributes:
        memory: Bytes that are free for a process, of the GPU if there is one.
        rate: Floating-point operations a second of a process in large matrix products in the working dtype.
        nf4: Linear weights are held in 4 bits.
        processes: How many share every batch.
        room: Bytes of disk that cached prefixes may take.
    """

    device: str
    dtype: torch.dtype
    memory: int
    rate: float
    nf4: bool = False
    processes: int = 1
    room: float = math.inf


def describe_machine(
    dtype: str = "auto",
    device: str | None = None,
    memory: float | None = None,
    tflops: float | None = None,
    processes: int = 1,
) -> Machine:
    """This machine, measured now; or another one, of which device, GiB and 10^12 operations a second are named.

    Args:
        memory, tflops: Of each process. Processes on this machine's CPU share what it has; on GPUs each has its own.

    Raises:
        SellarecError: another device is named without its memory and rate, or cannot work with the dtype; a number is
            not above 0.
    """
    for name, value in (("memory", memory), ("tflops", tflops)):
        if value is not None and not 0 < value < math.inf:
            raise SellarecError(f"--{name} is {value:g}; it must be above 0.")
    if processes < 1:
        raise SellarecError(f"--processes is {processes}; at least one does the work.")
    if device is not None:
        if device not in ("cpu", "cuda") or memory is None or tflops is None:
            raise SellarecError("Another machine needs all of --device (cpu or cuda), --memory and --tflops.")
        if device == "cpu" and dtype == NF4:
            raise SellarecError(f"--dtype {NF4} needs a GPU.")
        check_dtype(dtype)
        named = DTYPES.get(dtype, torch.bfloat16 if device == "cuda" else torch.float32)
        return Machine(device, named, int(memory * GIB), tflops * 1e12, dtype == NF4, processes)
    place = choose_placement(dtype)
    on_gpu = place.device.type == "cuda"
    sharing = 1 if on_gpu else processes
    free = (torch.cuda.mem_get_info()[0] if on_gpu else _free_memory() // sharing) if memory is None else memory * GIB
    rate = matmul_rate(place.device, place.dtype) / sharing if tflops is None else tflops * 1e12
    return Machine(place.device.type, place.dtype, int(free), rate, place.nf4, processes)


def _free_memory(root: Path = Path("/")) -> int:
    """Bytes that programs may still take, caches that would make room included where the system tells."""
    meminfo = root / "proc/meminfo"
    found = re.search(r"MemAvailable: +(\d+) kB", meminfo.read_text()) if meminfo.is_file() else None
    free = int(found[1]) * 1024 if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(0, min(free, *_left_by_control_groups(root)))


def _left_by_control_groups(root: Path) -> Iterator[float]:
    """Bytes that each control group with a limit leaves, of a container or a job, and infinity."""
    yield math.inf
    listed = root / "proc/self/cgroup"
    for line in listed.read_text().splitlines() if listed.is_file() else ():
        _, controllers, place = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = root / "sys/fs/cgroup" / controllers  # version 2 names no controllers
        limit, used = ("memory.max", "memory.current") if top.name == "cgroup" else V1_FILES
        own = top / place.lstrip("/")
        for group in (own, *own.parents[: len(own.parts) - len(top.parts)]):
            with suppress(OSError, ValueError):  # no such file, or "max"
                caches = re.findall(r"inactive_file (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
                held = int((group / used).read_text()) - int([0, *caches][-1])  # version 1 tells the total last
                yield int((group / limit).read_text()) - held


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product, the best of a few."""
    size, repeats = (8192, 10) if device.type == "cuda" else (1024, 5)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def seconds() -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            c = a @ b
        c[0, 0].item()  # waits for a GPU
        return (time.perf_counter() - start) / repeats

    seconds()
    return 2 * size**3 / min(seconds() for _ in range(3))
