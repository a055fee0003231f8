"""What a run will need, before it runs: parameters, memory, tokens, operations and time of each step.

Nothing is guessed from formulas: each step is carried out on PyTorch's meta device, which computes shapes only, with
one and with two layers of the backbone; what autograd keeps and the operations that are counted grow by the difference
with every further layer. Only the time rests on an assumption, the share of the machine's matrix-product rate reached.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from sellarec.backbone.cost import Cost, forward_cost, training_cost
from sellarec.backbone.engine import TOKEN_BUDGET
from sellarec.backbone.language_model import NO_SPLIT_IN_4_BITS, TokenRow, wrap_language_model
from sellarec.backbone.loading import NF4, Placement, load_shape, reading_dtype
from sellarec.backbone.lora import lora_config
from sellarec.config import as_options, change_config
from sellarec.data.dataset import sample_rows
from sellarec.errors import SellarecError
from sellarec.machine import GIB, Machine
from sellarec.prompts import SOFT_TOKENS, item_prompt
from sellarec.settings import Config, TrainConfig
from sellarec.systems.base import Workspace
from sellarec.systems.row_prompts import cut_prompts, prompts_of
from sellarec.systems.sella import phases

SAMPLE = 300
"""Prompts that are tokenized to learn how long they are."""

SHARE = 0.5
"""Of the machine's rate for large matrix products, what a step is expected to reach."""

NF4_BYTES = 0.516
"""Bytes of a 4-bit weight and its share of the doubly quantized scales: 4 bits, 8 a block of 64, 32 a 256 of these."""

RUNTIME = 500 * 2**20
"""Bytes of the interpreter and its libraries."""

WORK = {"cpu": 2.2, "cuda": 1.2}
"""Times what autograd keeps is what a step holds. On a CPU the allocator cannot give back what was freed between two
tensors that stay: SmolLM2-135M, 16 rows of 123 tokens, float32, kept 2.6 GiB and the process grew by 6.7 (glibc)."""


@dataclass(frozen=True)
class Step:
    """One step of the pipeline.

    Attributes:
        rows: How many prompts it computes, validation included.
        tokens: Tokens of these that go through the model, padding left out.
        operations: Floating-point operations, of all processes together.
        weights: Bytes of the frozen backbone that each process holds.
        trained: Bytes of what is trained, with its gradients and the optimizer's moments.
        activations: Bytes of what a batch keeps and works with.
    """

    name: str
    rows: int = 0
    tokens: int = 0
    operations: float = 0.0
    weights: float = 0.0
    trained: float = 0.0
    activations: float = 0.0

    @property
    def memory(self) -> float:
        """Bytes at the peak, of each process."""
        return RUNTIME + self.weights + self.trained + self.activations


@dataclass(frozen=True)
class Plan:
    """What a run will need; `disk` says of the prefix cache in words."""

    parameters: int
    adapter: int
    steps: list[Step]
    machine: Machine
    disk: str

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
    rows = _budget(config.stage3.rows, train)
    # each prefix is computed once; without the cache every step computes them for itself
    alone = machine.device == "cpu" and machine.processes == 1
    wanted, allowed = shape.kept_bytes(valid + test + rows), min(config.prefix_gib * GIB, machine.room)
    kept = alone and wanted <= allowed
    steps = [shape.reading()]
    if config.lora.rank:
        tuned = _budget(config.stage1.rows, train) * config.stage1.epochs
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
    return Plan(shape.parameters, shape.adapter, steps, machine, _disk(wanted, allowed, kept) if alone else "")


def _disk(wanted: float, allowed: float, kept: bool) -> str:
    """What is to be said of the prefix cache."""
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


def _budget(rows: int | None, most: int) -> int:
    return most if rows is None else min(rows, most)


class Shape:
    """The backbone without its weights, and how long the prompts of a workspace are.

    Costs are those of one row; a batch costs as many times that.
    """

    split = False
    """Each process holds a part of the layers' weights."""

    def __init__(self, work: Workspace, machine: Machine) -> None:
        self.workspace, self.machine = work, machine
        self.config, tokenizer = load_shape(work.config.backbone)
        self.layers, self.overhead = self.config.num_hidden_layers, WORK[machine.device]
        self._plain = {n: self._new_model(n) for n in (1, 2)}
        self._adapted = {n: self._with_adapter(model) for n, model in self._plain.items()}
        self.parameters = self._count(self._plain, lambda p: True)
        linear = {id(weight) for model in self._plain.values() for weight in _linear_weights(model)}
        self.in_4_bits = self._count(self._plain, lambda p: id(p) in linear) if machine.nf4 else 0
        self.of_layer = self._in_layer(self._plain, lambda p: True)
        self.adapter = self._count(self._adapted, lambda p: p.requires_grad)
        lm = wrap_language_model(
            self._plain[1], tokenizer, Placement(torch.device("meta"), torch.float32, "shapes only")
        )
        rows = sample_rows(work.dataset.part("train"), SAMPLE, seed=0).index.to_numpy()
        texts, hybrids = prompts_of(work, lm, rows), prompts_of(work, lm, rows, SOFT_TOKENS)
        self.text = _lengths(cut_prompts(work, lm, rows, texts))
        self.hybrid = _lengths(cut_prompts(work, lm, rows, hybrids, SOFT_TOKENS))
        data, width, dim = work.dataset, self.config.hidden_size, work.config.stage2.dim
        self.soft = (data.n_users + data.n_items + 2) * (dim + 1) + (data.n_items + 1 + width) * width
        items = range(1, min(SAMPLE, work.dataset.n_items) + 1)
        self.item_tokens = round(np.mean([len(tokenizer(item_prompt(work.dataset, i))["input_ids"]) for i in items]))

    def splitting(self, split: bool) -> Shape:
        """The same, with the layers' frozen weights split among the processes or not."""
        other = copy.copy(self)
        other.split = split
        return other

    def reading(self) -> Step:
        """All weights before they are cast. A GPU gets them as it will hold them."""
        held = self._weights()
        if self.machine.device == "cpu":
            held = max(held, self.parameters * reading_dtype(self.config, "cpu", self.machine.dtype).itemsize)
        return Step("reading the weights", weights=held)

    def training(
        self,
        name: str,
        rows: int,
        config: TrainConfig,
        lengths: np.ndarray,
        cost: Callable[[int, int], Cost],
        trained: int = 0,
        kept: bool = False,
    ) -> Step:
        """A training step's needs: operations at the mean length, memory at the longest of the sample."""
        per_row = cost(*_whole_numbers(lengths.mean(axis=0))).operations
        processes = self.machine.processes
        together = -(-config.batch // max(1, config.accumulate // processes))
        activations = cost(*_whole_numbers(lengths.max(axis=0))).kept * -(-together // processes)
        # 16 bytes a trained parameter: itself, its gradient, two moments; 4 more where gradients travel
        held = (16 if processes == 1 else 20) * trained
        tokens = round(rows * lengths[:, int(kept) :].sum(axis=1).mean())
        return Step(name, rows, tokens, rows * per_row, self._weights(), held, self.overhead * activations)

    def scoring(self, name: str, rows: int, lengths: np.ndarray, kept: bool = False) -> Step:
        """A scoring step's needs, as if no two rows shared a prefix; with `kept` it is there already."""
        mean, longest = lengths.sum(axis=1).mean(), int(lengths.sum(axis=1).max())
        together = max(1, TOKEN_BUDGET[self.machine.device] // longest)
        at_work = self.layer(training_cost, self._plain, 0, longest, True).kept * together
        operations = self.of_all_layers(forward_cost, self._plain, round(mean)).operations
        if kept:
            operations -= self.of_all_layers(forward_cost, self._plain, round(lengths[:, 0].mean())).operations
            mean = lengths[:, 1].mean()
        held = self._weights()
        return Step(name, rows, round(rows * mean), rows * operations, held, activations=self.overhead * at_work)

    def stage1(self, prefix: int, suffix: int) -> Cost:
        return self.of_all_layers(training_cost, self._adapted, 0, prefix + suffix, False)

    def checkpointed(self, prefix: int, suffix: int) -> Cost:
        """Stage 1 that keeps the inputs of every layer and one layer's activations at a time."""
        length = prefix + suffix
        inputs = length * self.config.hidden_size * self.machine.dtype.itemsize * self.layers
        at_work = self.layer(training_cost, self._adapted, 0, length, False).kept
        again = self.of_all_layers(forward_cost, self._adapted, length).operations
        return Cost(self.stage1(prefix, suffix).operations + again, inputs + at_work)

    def stage3(self, prefix: int, suffix: int) -> Cost:
        return self.of_all_layers(training_cost, self._plain, prefix, suffix, True)

    def stage3_behind_kept(self, prefix: int, suffix: int) -> Cost:
        return self.stage3(prefix, suffix) + self.of_all_layers(forward_cost, self._plain, prefix) * -1

    def kept_bytes(self, rows: int) -> float:
        """Disk that keys and values of this many prefixes take."""
        config = self.config
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shared = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        per_token = 2 * self.layers * shared * size * self.machine.dtype.itemsize
        return rows * self.hybrid[:, 0].mean() * per_token

    def of_all_layers(self, cost: Callable[..., Cost], models: dict[int, nn.Module], *lengths: int) -> Cost:
        """The cost of all layers."""
        return cost(models[1], *lengths) + self.layer(cost, models, *lengths) * (self.layers - 1)

    def layer(self, cost: Callable[..., Cost], models: dict[int, nn.Module], *lengths: int) -> Cost:
        """What one layer more costs."""
        return cost(models[2], *lengths) + cost(models[1], *lengths) * -1

    def _weights(self) -> float:
        """Bytes that a process holds: of split layers its part, and twice the layer that is gathered to compute."""
        whole = self.parameters - self.in_4_bits
        if self.split:
            whole += self.of_layer * (2 - self.layers * (1 - 1 / self.machine.processes))
        return whole * self.machine.dtype.itemsize + self.in_4_bits * NF4_BYTES

    def _count(self, models: dict[int, nn.Module], which: Callable[[nn.Parameter], bool]) -> int:
        one = sum(p.numel() for p in models[1].parameters() if which(p))
        return one + (self.layers - 1) * self._in_layer(models, which)

    def _in_layer(self, models: dict[int, nn.Module], which: Callable[[nn.Parameter], bool]) -> int:
        one, two = (sum(p.numel() for p in models[n].parameters() if which(p)) for n in (1, 2))
        return two - one

    def _new_model(self, layers: int) -> nn.Module:
        from transformers import AutoModelForCausalLM

        config = copy.deepcopy(self.config)
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
        attention = "eager" if self.machine.device == "cpu" else "sdpa"
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=self.machine.dtype, attn_implementation=attention)
        return model.requires_grad_(False)

    def _with_adapter(self, model: nn.Module) -> nn.Module:
        from peft import get_peft_model

        settings = replace(self.workspace.config.lora, rank=self.workspace.config.lora.rank or 1)
        return get_peft_model(copy.deepcopy(model), lora_config(settings)).to(self.machine.dtype)


def _linear_weights(model: nn.Module) -> list[nn.Parameter]:
    """The weights that 4-bit loading packs: all linear ones but the output head's."""
    head = model.get_output_embeddings()
    return [m.weight for m in model.modules() if isinstance(m, nn.Linear) and m is not head]


def _whole_numbers(lengths: np.ndarray) -> list[int]:
    return [int(n) for n in lengths.round()]


def _lengths(rows: list[TokenRow]) -> np.ndarray:
    """Tokens of prefix and suffix, shape (n, 2)."""
    return np.array([[len(row.prefix), len(row.suffix)] for row in rows])


def described(plan: Plan, backbone: str) -> str:
    """The plan as a table."""
    of = plan.machine
    lines = [
        f"{backbone}: {plan.parameters / 1e6:,.0f} M parameters, adapter {plan.adapter / 1e6:,.1f} M, "
        f"{'4-bit weights, ' if of.nf4 else ''}{str(of.dtype).removeprefix('torch.')} on {of.device}",
        f"{'machine' if of.processes == 1 else f'each of {of.processes} processes'}: {of.memory / GIB:.1f} GiB free, "
        f"{of.rate / 1e12:.3g} x 10^12 operations/s in large matrix products; "
        f"{SHARE:.0%} of that is expected",
        "",
        f"{'':22}{'rows':>8}{'tokens':>12}{'10^12 op.':>12}{'time':>10}{'GiB':>8}"
        f"{'weights':>9}{'trained':>9}{'batch':>8}",
    ]
    for step in plan.steps:
        parts = _gib(step.weights, 9) + _gib(step.trained, 9) + _gib(step.activations, 8)
        counts = (f"{n:,}" if n else "" for n in (step.rows, step.tokens))
        lines.append(_line(step.name, *counts, step.operations, plan.seconds(step), step.memory) + parts)
    operations = sum(step.operations for step in plan.steps)
    lines += [
        _line("together", "", "", operations, sum(map(plan.seconds, plan.steps)), plan.memory),
        "",
        "Stage 2 and systems without a language model are not counted: they run on the CPU, in each process.",
        f"GiB: the peak of each process. Weights of the backbone; what is trained, its gradients and the optimizer's "
        f"moments; what a\nbatch keeps and works with; and {RUNTIME / GIB:.1f} of the interpreter and its libraries.",
        *([plan.disk] if plan.disk else []),
    ]
    return "\n".join(lines)


def _line(name: str, rows: str, tokens: str, operations: float, seconds: float, memory: float) -> str:
    work, clock = (f"{operations / 1e12:,.1f}", tqdm.format_interval(seconds)) if operations else ("", "")
    return f"{name:22}{rows:>8}{tokens:>12}{work:>12}{clock:>10}{_gib(memory, 8)}"


def _gib(size: float, width: int) -> str:
    return f"{size / GIB:{width}.2f}"


def refusal(plan: Plan, change: dict[str, object] | None) -> SellarecError:
    """The error that says what is missing, and which setting would do."""
    worst = max(plan.steps, key=lambda s: s.memory)
    way = "No setting makes it fit: a machine with more memory is needed."
    if change:
        way = f"This would fit: {' '.join(as_options(change))}"
    return SellarecError(
        f"{worst.name} needs {worst.memory / GIB:.1f} GiB, {plan.machine.memory / GIB:.1f} are free. {way}"
    )
