"""What rows cost on a laptop, one GPU and several, by the formulas of `sellarec plan`, as a Markdown table.

    python benchmarks/cost_curve.py --dataset ml-1m
    python benchmarks/cost_curve.py --gpu-tflops 700 --gpu-memory 140

The CPU is this machine, its rate measured now; the GPU is one of which you name rate and memory. All times are planned,
none is measured; a CPU run's share of the rate is 50 % as in `sellarec plan`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from shaped import SHAPES
from tqdm import tqdm
from transformers import Qwen2Config

from sellarec.backbone.loading import load_shape
from sellarec.config import make_config
from sellarec.machine import GIB, Machine, describe_machine
from sellarec.plan import Plan, make_plan
from sellarec.systems.base import Workspace


@dataclass(frozen=True)
class Options:
    """Plan SeLLa-Rec for some sizes, backbones and machines."""

    dataset: str = "ml-1m"
    """The dataset whose prompts are counted."""
    gpu_tflops: float = 700.0
    """The GPU's rate in large bfloat16 products; 700 is about what an H200 reaches."""
    gpu_memory: float = 140.0
    """Its GiB."""
    gpus: int = 8
    """How many of them the last columns have."""


COLUMNS = ("backbone", "profile", "rows in stage 1 and in stage 3, each", "test rows", "10^15 op.")
COLUMNS += ("this CPU", "GiB", "one GPU", "GiB")
SHARED = ("{n} GPUs", "GiB each", "and with `--split`")


def lines(options: Options, large: Path) -> Iterator[list[str]]:
    cpu = describe_machine()
    gpu = Machine("cuda", torch.bfloat16, int(options.gpu_memory * GIB), options.gpu_tflops * 1e12)
    together = replace(gpu, processes=options.gpus)
    for backbone, profile, sizes in (
        ("smollm2-135m", "quick", (1_000, 3_000, 10_000, None)),
        ("smollm2-135m", "full", (None,)),
        (str(large), "full", (None,)),
    ):
        for rows in sizes:
            changes = {"stage1.rows": rows, "stage3.rows": rows} if profile == "quick" else {"stage3.rows": None}
            work = Workspace(make_config(profile, options.dataset, backbone=backbone, **changes))
            on_cpu, on_gpu = make_plan(work, cpu), make_plan(work, gpu)
            split = make_plan(work.variant({"split": True}), together)
            yield [
                "Qwen2-7B's shape" if backbone == str(large) else backbone,
                profile,
                f"{rows or len(work.part('train')):,}",
                f"{len(work.part('test')):,}",
                f"{sum(s.operations for s in on_gpu.steps) / 1e15:,.1f}",
                *_needs(on_cpu),
                *_needs(on_gpu),
                *_needs(make_plan(work, together)),
                _needs(split)[1],
            ]


def _needs(plan: Plan) -> tuple[str, str]:
    return _clock(plan), f"{plan.memory / GIB:.0f}" + (" (too much)" * (not plan.fits))


def _clock(plan: Plan) -> str:
    return tqdm.format_interval(sum(map(plan.seconds, plan.steps)))


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    with tempfile.TemporaryDirectory() as folder:
        Qwen2Config(**SHAPES["qwen2-7b"]).save_pretrained(folder)
        load_shape("smollm2-135m")[1].save_pretrained(folder)
        columns = (*COLUMNS, *(column.format(n=options.gpus) for column in SHARED))
        print("| " + " | ".join(columns) + " |")
        print("|---" * len(columns) + "|")
        for line in lines(options, Path(folder)):
            print("| " + " | ".join(line) + " |", flush=True)


if __name__ == "__main__":
    main()
