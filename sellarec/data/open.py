"""Open a dataset by name: fetch what is missing, read it, apply its protocol."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from sellarec.data import amazon_book, readers, sources
from sellarec.data.dataset import Dataset
from sellarec.data.protocol import build_dataset, cut_by_month, cut_by_span
from sellarec.errors import SellarecError, nearest


@dataclass(frozen=True)
class DataConfig:
    """How ratings become a dataset. The cut shares are for datasets without published cut dates."""

    valid_from: float = 0.70
    """Share of the calendar span at which validation begins."""
    test_from: float = 0.85
    """Share of the calendar span at which test begins."""
    like_above: float = 3.0
    """A rating strictly above this is a like (Amazon-Book: 4)."""
    strict_history: bool = False
    """Leave likes of the same second out of a history."""
    domain: str = field(default="movie", metadata={"late": True})
    """The noun for an item of an own table in prompts: "song", "restaurant"."""


@lru_cache(maxsize=4)
def open_dataset(name: str, config: DataConfig = DataConfig()) -> Dataset:
    """The dataset of a registered name or of an own table.

    Raises:
        SellarecError: neither a registered name nor an existing file, or something is wrong with the files.
    """
    cut = cut_by_span(config.valid_from, config.test_from)
    domain = "movie" if name in sources.DATASETS else config.domain
    if name == "ml-1m":
        tables = readers.read_ml_1m(sources.fetch(name))
        # Twenty months, June 2001 to January 2003, cut as CoLLM does.
        cut = cut_by_month(("2001-06-01", "2002-04-01", "2002-09-01"), end="2003-02-01")
    elif name == "ml-100k":
        tables = readers.read_ml_100k(sources.fetch(name))
    elif name == "amazon-book":
        tables = amazon_book.read(sources.fetch(name))
        cut, domain = amazon_book.cut(), "book"
    elif Path(name).suffix in (".parquet", ".csv") and Path(name).is_file():
        tables = readers.read_table(Path(name))
    else:
        raise SellarecError(
            f"dataset '{name}' is neither a registered name nor a .parquet or .csv file. "
            f"{nearest(name, sources.DATASETS)}"
        )
    return build_dataset(
        Path(name).stem,
        tables,
        cut,
        like_above=config.like_above,
        strict_history=config.strict_history,
        domain=domain,
    )
