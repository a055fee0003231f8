"""Two processes at one run, over gloo on the CPU, against one."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from sellarec.config import make_config
from sellarec.systems.base import Workspace
from tests.conftest import SMALL


def in_two_processes(*words):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, *words], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


CHANGES = SMALL | {"lora.dropout": 0.0, "stage1.batch": 7, "stage3.accumulate": 4}


@pytest.fixture(scope="module")
def alone(planted_table, llama, tmp_path_factory):
    """The workspace of runs that one process made."""
    config = make_config("smoke", str(planted_table), backbone=str(llama), **CHANGES)
    work = Workspace(config, tmp_path_factory.mktemp("alone"))
    work.run("sella")
    return work


@pytest.fixture(scope="module", params=[False, True], ids=["whole", "split"])
def both(request, alone, planted_table, llama, tmp_path_factory):
    """The workspaces of the same runs, made by one process and by two, that hold all weights or share them."""
    config = make_config("smoke", str(planted_table), backbone=str(llama), split=request.param, **CHANGES)
    together = Workspace(config, tmp_path_factory.mktemp("together"))
    words = ["--dataset", str(planted_table), "--backbone", str(llama), "--profile", "smoke"]
    words += [w for k, v in CHANGES.items() for w in (f"--{k.replace('_', '-')}", json.dumps(v).strip('"'))]
    words += ["--split", "--lora.checkpointing"] * request.param
    done = in_two_processes("-m", "sellarec.cli", "run", "sella", "--runs", str(together.root), *words)
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


HOLDINGS = """
import os
import sys
from sellarec.backbone.engine import score_rows
from sellarec.backbone.language_model import open_language_model
from sellarec.backbone.lora import add_lora
from sellarec.backbone.token_rows import TokenRow
from sellarec.settings import LoraSettings
from sellarec.distributed import leave, rank

lm = add_lora(open_language_model(sys.argv[1], "float32", split=True), LoraSettings(), seed=0)
score_rows(lm, [TokenRow((5, 6), (7, 8, n)) for n in range(10, 13)], label="")  # gathers layers, and lets them go
here = lambda p: p.to_local().numel() if hasattr(p, "to_local") else p.numel()
layers = [(n, p) for n, p in lm.model.named_parameters() if ".layers." in n]
for kind in (True, False):
    chosen = [p for n, p in layers if ("lora_" in n) is kind]
    said = f"HELD {rank()} {kind} {sum(map(here, chosen))} {sum(p.numel() for p in chosen)}\\n"
    os.write(1, said.encode())  # at once: two processes share the pipe
leave()
"""


def test_frozen_layers_are_halved_and_stay_so_and_trained_weights_are_whole(llama, tmp_path):
    script = tmp_path / "holdings.py"
    script.write_text(HOLDINGS)
    done = in_two_processes(str(script), str(llama))
    held = sorted(re.findall(r"HELD (\d) (\w+) (\d+) (\d+)", done.stdout))
    assert [h[:2] for h in held] == [("0", "False"), ("0", "True"), ("1", "False"), ("1", "True")]
    for _, trained, here, whole in held:
        assert int(here) == (int(whole) if trained == "True" else int(whole) / 2)
