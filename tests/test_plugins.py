"""Systems of other packages, found by their entry points."""

import subprocess
import sys
import textwrap

import pytest

MODULE = """
from sellarec.systems.base import System

def fit(work, run):
    run.save_tensors("likes", {"item": work.dataset.training_totals("item")[:, 1].astype("float32")})

def score(work, run, rows):
    likes = run.tensors("likes")["item"]
    return likes[work.dataset.interactions["item"].to_numpy()[rows]] / likes.max()

POPULAR = System("popular", "Popularity", lambda config: {}, fit, score, uses_seed=False)
OURS = System("sella", "another one", lambda config: {}, fit, score)
NOTHING = 3
"""


@pytest.fixture
def sellarec(tmp_path, planted_table):
    """Runs `sellarec` beside a package that names one thing of `MODULE` as a system."""

    def run(thing, *words):
        (tmp_path / "popularity.py").write_text(MODULE)
        about = tmp_path / "popularity-1.0.dist-info"
        about.mkdir(exist_ok=True)
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: popularity\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[sellarec.systems]\npopular = popularity:{thing}\n")
        code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from sellarec.cli import main; main(sys.argv[1:])"
        settings = ["--dataset", str(planted_table), "--profile", "smoke", "--runs", str(tmp_path / "runs")]
        return subprocess.run(
            [sys.executable, "-c", code, *words, *(settings if len(words) > 1 else [])], capture_output=True, text=True
        )

    return run


def test_a_system_of_another_package_is_listed_run_and_compared_by_its_name(sellarec):
    listed = sellarec("POPULAR", "systems")
    assert any(line.split()[0] == "popular" and "table3" in line for line in listed.stdout.splitlines()[1:])
    for name in ("popular", "counting"):
        done = sellarec("POPULAR", "run", name)
        assert done.returncode == 0 and "test all" in done.stdout, done.stderr
    told = sellarec("POPULAR", "compare", "popular", "counting").stdout
    assert "Popularity minus" in told and "Counting (item + user mean)" in told


@pytest.mark.parametrize(
    ("thing", "said"),
    [
        ("MISSING", r"popularity:MISSING of the package popularity cannot be loaded: AttributeError"),
        ("NOTHING", r"is no System but a int"),
        ("OURS", r"is called 'sella', as another system is"),
    ],
)
def test_what_is_no_system_is_told_with_its_package(sellarec, thing, said):
    failed = sellarec(thing, "systems")
    assert failed.returncode == 1 and failed.stderr.startswith("sellarec: popularity:")
    assert said in textwrap.dedent(failed.stderr) and "Traceback" not in failed.stderr
