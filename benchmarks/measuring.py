"""A table of measurements, and what is measured: seconds and the memory they took."""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Table:
    """Measurements, printed as they come."""

    repeats: int
    operations_per_token: float
    rate: float
    lines: list[dict[str, Any]] = field(default_factory=list)

    def measure(
        self,
        task: str,
        way: str,
        work: Callable[[], object],
        amount: int,
        tokens: int = 0,
        passes: float = 1,
        warm: bool = True,
        **more: float,
    ) -> None:
        """Time some work on `amount` things with `tokens` tokens in all; training needs three passes, or about two."""
        if warm:
            work()
        peak = PeakMemory()
        taken = [seconds(work) for _ in range(self.repeats)]
        middle = statistics.median(taken)
        line: dict[str, Any] = {"task": task, "way": way, "per_second": amount / middle}
        line["spread"] = (max(taken) - min(taken)) / middle
        if tokens:
            line["tokens_per_second"] = tokens / middle
            line["of_peak"] = passes * self.operations_per_token * tokens / middle / self.rate
        line["peak_gib"] = peak.gib()
        first = next((m["per_second"] for m in self.lines if m["task"] == task), line["per_second"])
        line["times_first"] = line["per_second"] / first
        self.lines.append(line | more)
        print(
            f"{task:20} {way:26} {line['per_second']:10,.1f}/s ±{line['spread']:4.0%}"
            + (f" {line['tokens_per_second']:9,.0f} tokens/s {line['of_peak']:5.0%} of peak" if tokens else " " * 33)
            + f" {line['peak_gib']:5.1f} GiB  x{line['times_first']:.2f}"
            + "".join(f"  {k} {v:.4f}" for k, v in more.items()),
            flush=True,
        )


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


class PeakMemory:
    """The most memory held since it was made: the GPU's if there is one, else this process's where Linux tells."""

    def __init__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        elif sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5")

    def gib(self) -> float:
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 2**30
        status = Path("/proc/self/status")
        found = [line for line in status.read_text().splitlines() if "VmHWM" in line] if status.exists() else []
        return int(found[0].split()[1]) / 2**20 if found else float("nan")


def processor() -> str:
    """This machine's, by name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.machine()
