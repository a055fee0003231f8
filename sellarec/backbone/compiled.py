"""Layers that torch.compile has made into few kernels, for work that is long enough to pay for the compiling.

A layer of a small model is some fifty operations, of which seven are large: memory is read and written for each, and a
GPU waits to be told of them. Compiled, they are a handful. All layers of a model are of one class and share what is
compiled, because each is handed its own part of the cache and never looks itself up in it by its number.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from sellarec.backbone.grouped import FAMILIES
from sellarec.backbone.language_model import LanguageModel, layers_of
from sellarec.distributed import world
from sellarec.runs import record

WORTH = {"cpu": 6_000, "cuda": 100_000}
"""Rows, those of all epochs, from which compiling pays for SmolLM2-135M. On a 2-core CPU it takes about 20 s and saves
3 to 11 ms a row in scoring, up to 48 in training. On an H200 it takes 7 to 13 s and saves .1 ms in scoring; in stage 1
it takes 48 to 72 s and saves .3 ms with three titles a prompt, with ten perhaps 1 (against an H100 without)."""

FORMS = 64
"""How many forms of a layer may be compiled: training and scoring, with and without a cache, in each number format."""

FACT = "compiled layers"
"""What is said of a run in which they computed."""


def worth_compiling(lm: LanguageModel, rows: int) -> bool:
    """Whether so many rows pay for compiling the model's layers, and these are of a kind that can be compiled."""
    if rows < WORTH[lm.placement.device.type] or lm.model.config.model_type not in FAMILIES:
        return False
    if world() > 1 or lm.placement.nf4 or threading.current_thread() is not threading.main_thread():
        return False  # in the app, sessions share a model
    layers = layers_of(lm.model)
    # what checkpointing computes again in the backward pass would be computed by other layers
    checkpointed = any(getattr(layer, "gradient_checkpointing", False) for layer in layers)
    # those with which transformers shows attention stay for good, and cannot be compiled
    hooked = any(part._forward_hooks for layer in layers for part in layer.modules())
    return not checkpointed and not hooked


def would_be_compiled(lm: LanguageModel, rows: int) -> bool:
    """Whether `layers_for` so many rows compiles layers, here and now."""
    return worth_compiling(lm, rows) and _compiler_works(lm.placement.device.type)


def layers_for(lm: LanguageModel, rows: int) -> AbstractContextManager:
    """Within it the model's layers are compiled, if so many rows are worth it."""
    return compiled_layers(lm) if worth_compiling(lm, rows) else nullcontext()


@contextmanager
def compiled_layers(lm: LanguageModel) -> Iterator[None]:
    """Within it the model's layers are compiled when they first compute. Scores change by rounding: what is fused is
    not rounded in between. Dropout draws other numbers. TORCH_COMPILE_DISABLE=1 leaves layers as they are."""
    numbered = [(n, layer) for n, layer in enumerate(layers_of(lm.model)) if "forward" not in vars(layer)]
    try:
        for number, layer in numbered:  # none, if they are compiled already
            layer.forward = _forward(layer, number)
        with torch._dynamo.config.patch(recompile_limit=FORMS):
            yield
    finally:
        for _, layer in numbered:
            vars(layer).pop("forward", None)


def _forward(layer: nn.Module, number: int) -> Callable[..., Tensor]:
    # the first layer would be a form of its own, whose input needs no gradient
    first = number == 0 and any(p.requires_grad for p in layer.parameters())

    def forward(hidden: Tensor, *, past_key_values: Any = None, **more: Any) -> Tensor:
        own = None if past_key_values is None else past_key_values.layers[number]
        if first and torch.is_grad_enabled() and not hidden.requires_grad:
            hidden = hidden.detach().requires_grad_()
        computed_by = _compiled(type(layer), hidden.device.type)
        if computed_by is not type(layer).forward:
            record(FACT)
        return computed_by(layer, hidden, past_key_values=own, **more)

    return forward


@cache
def _compiled(kind: type[nn.Module], device: str) -> Callable[..., Tensor]:
    if not _compiler_works(device):
        return kind.forward
    print("Compiling the model's layers: the first rows take up to a minute longer ...", flush=True)
    return torch.compile(kind.forward, dynamic=True)


@cache
def _compiler_works(device: str) -> bool:
    """Whether a small function can be compiled here; if not, says why."""
    if torch._dynamo.config.disable:
        return False
    try:
        torch.compile(lambda x: x.exp() + 1)(torch.ones(8, device=device))
    except Exception as error:  # whatever is missing: a compiler, its headers, OpenMP, Triton
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        print(f"The model's layers are not compiled, which is slower and no error: {reason}", flush=True)
        return False
    return True
