"""Open a dataset by name: fetch what is missing, read it, apply its protocol."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from sellarec.data import amazon_book, readers, sources
from sellarec.data.dataset import Dataset
from sellarec.data.protocol import build_dataset, cut_by_month, cut_by_span
from sellarec.errors import SellarecError, nearest
from sellarec.settings import DataConfig

FIXED = {
    "ml-100k": ("domain",),
    "ml-1m": ("valid_from", "test_from", "domain"),
    "amazon-book": ("valid_from", "test_from", "domain"),
}
"""Settings that a dataset's protocol does not leave open."""


def open_dataset(name: str, config: DataConfig = DataConfig()) -> Dataset:
    """The dataset of a registered name or of an own table; opened once, an own table again if it has changed.

    Raises:
        SellarecError: neither a registered name nor an existing file, or something is wrong with the files.
    """
    check_name(name)
    _refuse_idle_settings(name, config)
    own = name not in sources.DATASETS
    return _open(name, config, (Path(name).stat().st_mtime_ns, Path(name).stat().st_size) if own else None)


@lru_cache(maxsize=4)
def _open(name: str, config: DataConfig, version: tuple[int, int] | None) -> Dataset:
    """As `open_dataset`; `version` tells states of one file apart."""
    cut, domain = cut_by_span(config.valid_from, config.test_from), config.domain
    if name == "ml-1m":
        tables = readers.read_ml_1m(sources.fetch(name))
        # Twenty months, June 2001 to January 2003, cut as CoLLM does.
        cut = cut_by_month(("2001-06-01", "2002-04-01", "2002-09-01"), end="2003-02-01")
    elif name == "ml-100k":
        tables = readers.read_ml_100k(sources.fetch(name))
    elif name == "amazon-book":
        tables = amazon_book.read(sources.fetch(name))
        cut, domain = amazon_book.cut(), "book"
    else:
        tables = readers.read_table(Path(name))
    return build_dataset(
        _called(name),
        tables,
        cut,
        like_above=config.like_above,
        strict_history=config.strict_history,
        domain=domain,
    )


def _called(name: str) -> str:
    """A registered dataset's name, or an own table's, which is never that of a registered one."""
    stem = Path(name).stem
    return f"own-{stem}" if stem in sources.DATASETS and name != stem else stem


def check_name(name: str) -> None:
    """
    Raises:
        SellarecError: neither a registered name nor an existing table.
    """
    if name not in sources.DATASETS and not (Path(name).suffix in (".parquet", ".csv") and Path(name).is_file()):
        raise SellarecError(
            f"dataset '{name}' is neither a registered name nor a .parquet or .csv file. "
            f"{nearest(name, sources.DATASETS)}"
        )


def _refuse_idle_settings(name: str, config: DataConfig) -> None:
    """A setting that changes nothing would still make new runs of everything."""
    for setting in FIXED.get(name, ()):
        if getattr(config, setting) != getattr(DataConfig(), setting):
            option = f"--data.{setting.replace('_', '-')}"
            raise SellarecError(f"{option} has no effect on {name}, whose protocol fixes it. Leave it out.")
