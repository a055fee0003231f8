"""Two processes at one run, over gloo on the CPU, against one."""

import json
import subprocess
import sys

import numpy as np
import pytest

from sellarec.config import make_config
from sellarec.systems.base import Workspace
from tests.conftest import SMALL


@pytest.fixture(scope="module")
def both(planted_table, llama, tmp_path_factory):
    """The workspaces of the same runs, made by one process and by two."""
    changes = SMALL | {"lora.dropout": 0.0, "stage1.batch": 7, "stage3.accumulate": 2}
    config = make_config("smoke", str(planted_table), backbone=str(llama), **changes)
    alone, together = (Workspace(config, tmp_path_factory.mktemp(name)) for name in ("alone", "together"))
    alone.run("sella")
    words = ["--dataset", str(planted_table), "--backbone", str(llama), "--profile", "smoke"]
    words += [w for k, v in changes.items() for w in (f"--{k.replace('_', '-')}", json.dumps(v).strip('"'))]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch += ["-m", "sellarec.cli", "run", "sella", "--runs", str(together.root), *words]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return alone, Workspace(config, together.root, computes=False), done


@pytest.mark.parametrize("name", ["tallrec", "sella_collab", "sella"])
def test_two_processes_give_the_run_of_one(both, name):
    alone, together, _ = both
    one, two = (work.run(name) for work in (alone, together))
    assert one.config["key"] == two.config["key"]
    columns = ["row", "user", "item", "label"]  # no row twice, none lost, in the same order
    assert one.scores[columns].equals(two.scores[columns])
    np.testing.assert_allclose(two.scores["score"], one.scores["score"], atol=2e-5)
    for split in ("valid", "test"):
        for metric in ("auc", "uauc"):
            assert two.metrics[split]["all"][metric] == pytest.approx(one.metrics[split]["all"][metric], abs=1e-3)


def test_losses_are_those_of_the_whole_batch_and_are_logged_once(both):
    alone, together, _ = both
    one, two = (work.run("tallrec").log.dropna(subset="loss") for work in (alone, together))
    assert list(one["step"]) == list(two["step"])
    np.testing.assert_allclose(two["loss"], one["loss"], atol=1e-5)


def test_only_the_first_process_speaks_and_nothing_is_left_behind(both):
    _, together, done = both
    assert done.stdout.count("] SeLLa-Rec, 2 processes\n") == 1 and done.stdout.count("test all") == 1
    left = [p for p in together.root.rglob("*") if "partial" in p.name or ".work" in p.name or p.suffix == ".lock"]
    assert not left
