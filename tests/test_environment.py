"""The three lists of dependencies agree, and the data room stays light."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WANTED = [Requirement(d) for d in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]]


def test_the_lock_pins_every_dependency_within_its_range():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    for wanted in WANTED:
        assert pins[canonicalize_name(wanted.name)] in wanted.specifier, wanted


def test_conda_users_get_the_same_dependencies():
    listed = re.findall(r"^ +- ([A-Za-z].*)$", (ROOT / "environment.yml").read_text(), re.M)
    conda = {str(Requirement(entry)) for entry in listed if not entry.startswith(("conda-forge", "python=", "pip:"))}
    assert conda == {str(w) for w in WANTED}


def test_ranges_admit_newer_releases():
    assert not [w for w in WANTED if any(s.operator in ("==", "<", "<=", "~=") for s in w.specifier)]


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("sellarec.cli", "torch"),
        ("sellarec.data.open", "torch"),
        ("sellarec.data.open", "transformers"),
        ("sellarec.data.open", "duckdb"),
        ("sellarec.evaluation", "torch"),
        ("sellarec.prompts", "torch"),
        ("sellarec.figures", "torch"),
        ("sellarec.systems.registry", "streamlit"),
    ],
)
def test_rooms_do_not_import_what_they_must_not_know(module, forbidden):
    code = f"import sys, {module}; sys.exit('{forbidden}' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
