"""Layers that torch.compile has made into few kernels, for work that is long enough to pay for the compiling.

A layer of a small model is some fifty operations, of which seven are large: memory is read and written for each, and a
GPU waits to be told of them. Compiled, they are a handful. All layers of a model are of one class and share what is
compiled, because each is handed its own part of the cache and never looks itself up in it by its number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from sellarec.backbone.grouped import FAMILIES
from sellarec.backbone.language_model import LanguageModel, layers_of
from sellarec.distributed import world

WORTH = {"cpu": 4_000, "cuda": 50_000}
"""Rows, those of all epochs, from which compiling pays. With SmolLM2-135M it takes 5 to 30 s a form. In scoring it
saves 11 ms a row on a 2-core CPU and .1 ms on an H200, in training twice to four times that."""

FORMS = 32
"""How many forms of a layer may be compiled: training and scoring, with and without a cache, in each number format."""


def worth_compiling(lm: LanguageModel, rows: int) -> bool:
    """Whether so many rows pay for compiling the model's layers, and they can be compiled."""
    if rows < WORTH[lm.placement.device.type] or world() > 1 or lm.placement.nf4:
        return False
    untouched = not any("forward" in vars(layer) for layer in layers_of(lm.model))
    return untouched and lm.model.config.model_type in FAMILIES and _compiler_works(lm.placement.device.type)


def layers_for(lm: LanguageModel, rows: int) -> AbstractContextManager:
    """Within it the model's layers are compiled, if so many rows are worth it."""
    return compiled_layers(lm) if worth_compiling(lm, rows) else nullcontext()


@contextmanager
def compiled_layers(lm: LanguageModel) -> Iterator[None]:
    """Within it the model's layers are compiled, which takes a while when they first compute. Scores change by
    rounding: what is fused is not rounded in between."""
    layers = layers_of(lm.model)
    for number, layer in enumerate(layers):
        layer.forward = _forward(layer, number)
    try:
        with torch._dynamo.config.patch(recompile_limit=FORMS):
            yield
    finally:
        for layer in layers:
            del layer.forward


def _forward(layer: nn.Module, number: int) -> Callable[..., Tensor]:
    def forward(hidden: Tensor, *, past_key_values: Any = None, **more: Any) -> Tensor:
        own = None if past_key_values is None else past_key_values.layers[number]
        if torch.is_grad_enabled() and not hidden.requires_grad:  # the first layer's would be a form of its own
            hidden = hidden.detach().requires_grad_()
        return _compiled(type(layer))(layer, hidden, past_key_values=own, **more)

    return forward


@cache
def _compiled(kind: type[nn.Module]) -> Callable[..., Tensor]:
    return torch.compile(kind.forward, dynamic=True)


@cache
def _compiler_works(device: str) -> bool:
    """Whether a small function can be compiled here; says so, and why not."""
    print("Compiling the model's layers where that saves time (once, up to a minute) ...", flush=True)
    try:
        torch.compile(lambda x: x.exp() + 1)(torch.ones(8, device=device))
    except Exception as error:  # whatever is missing: a compiler, its headers, OpenMP, Triton
        print(f"They stay as they are, which is slower and no error: {str(error).splitlines()[0]}", flush=True)
        return False
    return True
