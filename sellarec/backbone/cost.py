"""What a pass through a backbone costs, counted on its shape: the model is on the meta device and holds no weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from sellarec.backbone.language_model import body_of


@dataclass(frozen=True)
class Cost:
    """Of one row: floating-point operations, and the bytes that autograd keeps for the backward pass."""

    operations: float
    kept: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.operations + other.operations, self.kept + other.kept)

    def __mul__(self, factor: float) -> Cost:
        return Cost(self.operations * factor, self.kept * factor)


@lru_cache(maxsize=64)
def forward_cost(model: nn.Module, length: int) -> Cost:
    """A forward pass of one row."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ids = torch.zeros(1, length, dtype=torch.long, device="meta")
        body_of(model)(input_ids=ids, use_cache=False, **_places(model, 0, length))
    return Cost(counter.get_total_flops(), 0)


@lru_cache(maxsize=64)
def training_cost(model: nn.Module, prefix: int, suffix: int, soft: bool) -> Cost:
    """A forward and backward pass of one row; `soft` lets the gradient flow to the inputs rather than to an adapter."""
    own = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    body, past = body_of(model), None
    alive = []  # or a freed storage's address could be counted for another one's
    embeds = torch.zeros(1, suffix, model.config.hidden_size, device="meta", dtype=next(model.parameters()).dtype)
    with (
        FlopCounterMode(display=False) as counter,
        saved_tensors_hooks(lambda t: alive.append(t) or keep(t), lambda t: t),
    ):
        if prefix:
            with torch.no_grad():
                ids = torch.zeros(1, prefix, dtype=torch.long, device="meta")
                past = body(input_ids=ids, use_cache=True, **_places(model, 0, prefix)).past_key_values
        out = body(
            inputs_embeds=embeds.requires_grad_(soft),
            past_key_values=past,
            use_cache=past is not None,
            **_places(model, prefix, suffix),
        ).last_hidden_state
        out[:, -1].float().sum().backward()
    return Cost(counter.get_total_flops(), sum(kept.values()))


def _places(model: nn.Module, before: int, length: int) -> dict[str, Tensor]:
    """A ready-made mask and positions; models make them of token flags by looking at these, and meta tensors hold
    nothing."""
    mask = torch.zeros(1, 1, length, before + length, device="meta", dtype=next(model.parameters()).dtype)
    return {"attention_mask": mask, "position_ids": torch.arange(before, before + length, device="meta")[None]}
