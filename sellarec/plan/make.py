"""The plan of a run: which steps it has, and what would make it fit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from sellarec.backbone.language_model import NO_SPLIT_IN_4_BITS
from sellarec.backbone.loading import NF4
from sellarec.config import change_config
from sellarec.errors import SellarecError
from sellarec.machine import GIB, Machine
from sellarec.plan.shape import Shape, Step
from sellarec.settings import Config
from sellarec.systems.base import Workspace
from sellarec.systems.rows import budget_of
from sellarec.systems.sella import phases

SHARE = 0.5
"""Of the machine's rate for large matrix products, what a step is expected to reach."""


@dataclass(frozen=True)
class Plan:
    """What a run will need; `prefixes` says of the prefix cache in words."""

    parameters: int
    adapter: int
    steps: list[Step]
    machine: Machine
    prefixes: str

    @property
    def memory(self) -> float:
        return max(step.memory for step in self.steps)

    @property
    def fits(self) -> bool:
        return self.memory <= self.machine.memory

    def seconds(self, step: Step) -> float:
        return step.operations / (SHARE * self.machine.rate * self.machine.processes)


def make_plan(work: Workspace, machine: Machine) -> Plan:
    """What stages 1 and 3, distillation and scoring of SeLLa-Rec will need; stage 2 is not counted. No weights are
    loaded.

    Raises:
        SellarecError: neither shape nor tokenizer of the backbone can be read; there is nothing to split.
    """
    if work.config.split and machine.processes == 1:
        raise SellarecError("--split shares the weights of several processes: name their number with --processes.")
    if work.config.split and machine.nf4:
        raise SellarecError(NO_SPLIT_IN_4_BITS)
    return _plan_with(Shape(work, machine), work.config)


def _plan_with(shape: Shape, config: Config) -> Plan:
    work, machine = shape.workspace, shape.machine
    shape = shape.splitting(config.split)
    data = work.dataset
    valid, test, train = (len(work.part(split)) for split in ("valid", "test", "train"))
    rows = budget_of(config.stage3.rows, train)
    # each prefix is computed once; without the cache every step computes them for itself
    alone = machine.device == "cpu" and machine.processes == 1
    wanted, allowed = shape.kept_bytes(valid + test + rows), min(config.prefix_gib_on_disk * GIB, machine.room)
    kept = alone and wanted <= allowed
    steps = [shape.reading()]
    if config.lora.rank:
        tuned = budget_of(config.stage1.rows, train) * config.stage1.epochs
        cost = shape.checkpointed if config.lora.checkpointing else shape.stage1
        steps.append(shape.training("stage 1, LoRA", tuned, config.stage1, shape.text, cost, shape.adapter))
        steps.append(shape.scoring("stage 1, validation", valid * config.stage1.evaluations, shape.text))
    if kept:
        steps.append(shape.scoring("prefix cache", valid + test + rows, shape.hybrid[:, :1]))
    if config.lora.rank:
        steps.append(shape.scoring("stage 1, scoring", valid + test, shape.text, kept))
    steps.append(shape.scoring("distilling items", data.n_items, np.array([[0, shape.item_tokens]])))
    cost = shape.stage3_behind_kept if kept else shape.stage3
    turns = len(phases(config.stage3))
    through = rows * config.stage3.epochs * turns
    steps.append(shape.training("stage 3, soft tokens", through, config.stage3, shape.hybrid, cost, shape.soft, kept))
    steps.append(shape.scoring("stage 3, validation", valid * config.stage3.evaluations * turns, shape.hybrid, kept))
    steps.append(shape.scoring("stage 3, scoring", valid + test, shape.hybrid, kept))
    said = _on_disk(wanted, allowed, kept) if alone else ""
    if machine.device == "cuda" and not config.split and config.prefix_gib != 0 and config.stage3.evaluations > 1:
        again = valid + (rows if config.stage3.epochs > 1 and machine.processes == 1 else 0)
        said = _on_gpu(shape.kept_bytes(again))
    return Plan(shape.parameters, shape.adapter, steps, machine, said)


def _on_gpu(wanted: float) -> str:
    """What is to be said of the prefix cache in a GPU's memory."""
    return (
        f"Prefix cache: {wanted / GIB:.1f} GiB, of which a GPU holds what fits into half of what batches leave free "
        "(--prefix-gib);\nneither this nor the time that it saves is counted."
    )


def _on_disk(wanted: float, allowed: float, kept: bool) -> str:
    """What is to be said of the one on disk."""
    said = f"Prefix cache: {wanted / GIB:.1f} GiB of disk, {allowed / GIB:.1f} allowed (--prefix-gib, 3/4 of the free)"
    return said + ("." if kept else ": too little, every step computes prefixes for itself.")


def what_would_fit(work: Workspace, machine: Machine) -> dict[str, object] | None:
    """The mildest change of settings under which a plan fits; None if there is none."""
    for number_format, place in (({}, machine), *_lighter(work.config, machine)):
        smaller = _smaller(work, place)
        if smaller is not None:
            return {**number_format, **smaller}
    return None


def _lighter(config: Config, machine: Machine) -> list[tuple[dict[str, object], Machine]]:
    """The next number format that takes less memory, if there is one, and the machine in it."""
    if machine.dtype == torch.float32:
        return [({"dtype": "bfloat16"}, replace(machine, dtype=torch.bfloat16))]
    if machine.device == "cuda" and not machine.nf4 and not config.split:
        return [({"dtype": NF4}, replace(machine, nf4=True))]
    return []


def _smaller(work: Workspace, machine: Machine) -> dict[str, object] | None:
    """The mildest of accumulation, splitting and checkpointing under which a plan fits; None if there is none."""
    config, shape = work.config, Shape(work, machine)
    most = max(config.stage1.batch, config.stage3.batch)
    splits = [2**n for n in range(1, most.bit_length())]
    tries: list[dict[str, object]] = [
        {f"stage{n}.accumulate": min(s, getattr(config, f"stage{n}").batch) for n in (1, 3)} for s in splits
    ]
    if machine.processes > 1 and not machine.nf4 and not config.split:
        tries += [{"split": True, **others} for others in ({}, *tries)]
    tries += [{"lora.checkpointing": True, **others} for others in ({}, *tries)]
    return next((t for t in ({}, *tries) if _plan_with(shape, change_config(config, t)).fits), None)
