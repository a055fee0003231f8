"""The Snakefile with two jobs, one of which fails. Needs the extra of that name."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("snakemake", reason="snakemake is not installed: pip install -e '.[snakemake]'")


@pytest.fixture
def snakemake(planted_table, tmp_path):
    """Runs the Snakefile in an own folder; returns the exit status and what was said."""
    shutil.copy(planted_table, tmp_path / "planted.csv")

    def run(*config):
        words = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "-j", "2", "--keep-going"]
        words += ["--config", "datasets=planted.csv", "profile=smoke", *config]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        return done.returncode, done.stdout + done.stderr

    return run


def test_a_failed_job_leaves_the_other_standing_and_is_tried_again(snakemake, tmp_path):
    results = tmp_path / "runs" / ".finished" / "smoke" / "planted.csv" / "smollm2-135m"
    status, said = snakemake("systems=counting,mf", "seeds=0", "options=--mf.learning-rate 1e30")
    assert status != 0 and "of epoch 0: not every value is finite any more; lower its learning_rate" in said
    assert "test all" in (results / "counting-0.txt").read_text() and not (results / "mf-0.txt").exists()
    status, said = snakemake("systems=counting,mf", "seeds=0")
    assert status == 0, said
    assert "test all" in (results / "mf-0.txt").read_text()
    assert snakemake("systems=counting,mf", "seeds=0")[1].count("Nothing to be done") == 1
    shutil.rmtree(tmp_path / "runs" / "planted" / "no-llm" / "mf")
    status, said = snakemake("systems=counting,mf", "seeds=0")
    assert status == 0 and said.count("system=mf") == 1 and "system=counting" not in said


def test_tables_seeds_and_needs_become_jobs_and_an_unknown_system_is_refused(snakemake):
    status, said = snakemake("systems=sella", "seeds=0,1", "--dry-run")
    assert status == 0 and said.count("system=tallrec") == 2 == said.count("system=sella_collab")
    status, said = snakemake("systems=sela")
    assert status != 0 and "sella" in said
