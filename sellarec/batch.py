"""Many runs one after the other: the systems of a table, or one of them, for one seed or several."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass

from tqdm import tqdm

from sellarec.distributed import world
from sellarec.errors import SellarecError, disk_is_full
from sellarec.systems.base import System, Workspace
from sellarec.systems.registry import TABLES, find_system


@dataclass(frozen=True, eq=False)
class Job:
    """One system under one seed."""

    work: Workspace
    system: System

    def __str__(self) -> str:
        return f"{self.system.label}, seed {self.work.config.seed}"

    @property
    def done(self) -> bool:
        return self.work.is_done(self.system.name)


def jobs_of(work: Workspace, name: str, seeds: int = 1) -> list[Job]:
    """One system, or all of a table; what has a seed also with the next `seeds - 1` seeds, but of a table's systems
    only those without a language model: the others take hours."""
    systems = [find_system(n) for n in TABLES.get(name, (name,))]
    again = [s for s in systems if s.uses_seed and not (s.uses_backbone and name in TABLES)]
    jobs = [Job(work, system) for system in systems]
    for more in range(1, seeds):
        other = work.variant({"seed": work.config.seed + more})
        jobs += [Job(other, s) for s in again]
    return jobs


def compute(jobs: list[Job]) -> dict[Job, str]:
    """Bring about what is missing; a job that fails leaves the others standing.

    Returns:
        The messages of the failed ones.
    """
    # Of several processes each would look for itself; all of them ask for every job instead.
    missing = [job for job in jobs if world() > 1 or not job.done]
    print(f"{len(jobs) - len(missing)} of {len(jobs)} are in the store", end="")
    print(f"; to compute: {'; '.join(map(str, missing))}" if missing else "", flush=True)
    failed: dict[Job, str] = {}
    took: dict[bool, list[float]] = {True: [], False: []}
    for number, job in enumerate(missing):
        print(f"{number + 1} of {len(missing)}: {job}{_time_left(missing[number:], took)}", flush=True)
        began = time.monotonic()
        try:
            job.work.run(job.system.name)
            took[job.system.uses_backbone].append(time.monotonic() - began)
        except Exception as error:
            if disk_is_full(error):
                raise  # the next system would find it full too
            if world() > 1:
                raise  # the other processes wait for this one; the launcher ends them, and the command goes on later
            if not isinstance(error, SellarecError):
                traceback.print_exc()
            failed[job] = str(error) or type(error).__name__
    return failed


def _time_left(jobs: list[Job], took: dict[bool, list[float]]) -> str:
    """What is left at the mean time so far of each kind, with a language model and without."""
    kinds = [job.system.uses_backbone for job in jobs]
    if not all(took[kind] for kind in kinds):
        return ""
    return f", about {tqdm.format_interval(sum(sum(took[k]) / len(took[k]) for k in kinds))} left"
