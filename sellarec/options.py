"""What each command takes: a command is a dataclass, whose fields are its options and whose docstrings its help."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sellarec.data.sources import SOURCES
from sellarec.profiles import PROFILES
from sellarec.settings import Config


@dataclasses.dataclass(frozen=True)
class FetchOptions:
    """Bring a source into the cache, verified; or take it from a file or folder that you name."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(help=f"One of: {', '.join(SOURCES)}.")]
    origin: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """A folder with the files, or the archive, instead of the network."""
    force: bool = False
    """Fetch again even if it is there."""


@dataclasses.dataclass(frozen=True)
class ProfileOptions:
    """Print all settings of a profile as JSON."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(help=", ".join(PROFILES))] = "quick"
    dataset: str = "ml-100k"
    """A dataset's name or the path of a table: some settings differ by dataset."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Configured:
    """What all commands take that compute, plan or read runs."""

    profile: Annotated[str, tyro.conf.arg(help=f"{', '.join(PROFILES)}: the defaults of the settings below.")] = "quick"
    runs: Path = Path("runs")
    """The run store."""
    config: Annotated[Config, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Config)


@dataclasses.dataclass(frozen=True)
class RunOptions(Configured):
    """Compute one system, or all of a table, and everything that they need; what is in the store is reused."""

    system: tyro.conf.Positional[str]
    """Name of a system, or of a table: table3, table5, controls or checks."""
    seeds: int = 1
    """How many seeds to compute, starting at `seed`. Of a table, only its systems without a language model have more
    than one: the others take hours, and are named one by one."""
    weights: bool = False
    """Of a system whose run was adopted without weights, compute it again in its place; where another system grows
    from it, that happens by itself."""


@dataclasses.dataclass(frozen=True)
class PlanOptions(Configured):
    """Say what SeLLa-Rec's stages 1 and 3 will need under these settings, on this machine or another; refuse what
    cannot fit."""

    device: str | None = None
    """cpu or cuda, to plan for another machine; its `memory` and `tflops` must be named too."""
    memory: float | None = None
    """GiB that are free there for each process; None asks this machine."""
    tflops: float | None = None
    """The rate of each process for large matrix products in the working number format; None measures this machine."""
    processes: int = 1
    """GPUs, or processes, that share every batch of one run (torchrun); with `--split` also the layers' weights."""


@dataclasses.dataclass(frozen=True)
class ReportOptions(Configured):
    """Execute all notebooks with these settings and write one HTML report."""

    origin: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Fetch the dataset from this folder or archive first."""
    reports: Path = Path("reports")
    """Where the report's folder is made."""
    compute: bool = True
    """Compute what the run store does not have; --no-compute leaves out the notebooks that would need it."""


@dataclasses.dataclass(frozen=True)
class AppOptions(Configured):
    """Open the app over the run store, on localhost. It shows what is there and never trains."""

    port: int = 8501
    """Where it listens, on this machine only."""
    headless: bool = False
    """Do not open a browser."""


@dataclasses.dataclass(frozen=True)
class PublishOptions(Configured):
    """Write the runs of these settings that are in the store, and all that they grew from, to a folder that may be
    shared: settings, metrics, log and scores of each, without weights and without a line of the data."""

    to: Path = Path("reports/published")
    """Where they are written; runs that are there stay."""


@dataclasses.dataclass(frozen=True)
class AdoptOptions(Configured):
    """Bring the published runs of a dataset into the store. Rows and labels are taken from your own copy of the data,
    and the metrics made of them must be the published ones. Tables then need no computation; weights, which are not
    published, are computed again where something grows from them or looks into them.
    """

    origin: Annotated[Path, tyro.conf.arg(name="from")] = Path("reports/published")
    """Where the published runs are."""


@dataclasses.dataclass(frozen=True)
class CompareOptions(Configured):
    """Set runs side by side: AUC and UAUC of each, and how much better the first one is than each other one, with
    paired 95 % intervals. It reads the scores of finished runs and computes none.

    Example: sellarec compare sella tallrec mlp_records --dataset ml-1m --seeds 3
    """

    systems: tyro.conf.Positional[tuple[str, ...]]
    """Systems under the settings below, or the folders of runs under any settings, as `sellarec run` prints them."""
    on: Literal["test", "valid"] = "test"
    """Which part of the data; of the validation part, the rows on which language models' checkpoints were
    chosen; models without one were chosen on the whole part."""
    part: Literal["all", "warm", "cold"] = "all"
    """Which of its rows; warm: the training part knows user and item."""
    seeds: int = 1
    """Of systems, how many seeds from `seed` on; of those in the store, the mean metric is taken, and the difference of
    those that both have."""
    items: bool = False
    """Resample items as well as users: would it hold of other items too? Such intervals are wider, rather too wide."""
