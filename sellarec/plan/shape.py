"""What one step needs, counted on the shape of the backbone and the lengths of prompts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from sellarec.backbone.cost import Cost, forward_cost, training_cost
from sellarec.backbone.engine import tokens_at_once
from sellarec.backbone.language_model import wrap_language_model
from sellarec.backbone.loading import Placement, attention_on, load_shape, of_layers, reading_dtype
from sellarec.backbone.lora import lora_config
from sellarec.backbone.token_rows import TokenRow
from sellarec.data.dataset import sample_rows
from sellarec.machine import Machine
from sellarec.prompts import SOFT_TOKENS, item_prompt
from sellarec.settings import TrainConfig
from sellarec.systems.base import Workspace
from sellarec.systems.row_prompts import cut_prompts, prompts_of

SAMPLE = 300
"""Prompts that are tokenized to learn how long they are."""

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
        together = max(1, tokens_at_once(self.machine.device, self.config.hidden_size) // longest)
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
        """Disk, or memory, that keys and values of this many prefixes take."""
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

        config, attention = of_layers(self.config, layers), attention_on(self.machine.device, self.config)
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
