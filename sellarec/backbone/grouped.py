"""Attention for CPUs where several query heads share keys and values.

transformers' eager attention first copies keys and values for each query head, and in the backward pass sums what comes
back for the copies. Here the query heads of a group stand one behind the other as more queries of one head: the same
numbers from fewer and larger products, and nothing is copied.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PretrainedConfig

NAME = "sellarec_grouped"

FAMILIES = ("gemma3_text", "llama", "mistral", "qwen2", "qwen3")
"""Whose eager attention is the plain one: no soft caps, no sinks, nothing added to the scores but the mask."""


def fits(config: PretrainedConfig) -> bool:
    """Whether a backbone's attention is what this module computes, and shares keys and values at all."""
    if config.model_type not in FAMILIES or getattr(config, "attn_logit_softcapping", None):
        return False
    return config.num_key_value_heads < config.num_attention_heads


def register() -> str:
    """Make this attention known to transformers; returns the name to ask for."""
    from transformers import AttentionInterface, AttentionMaskInterface  # late, see loading.py
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    return NAME


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention as transformers asks for it.

    Args:
        query: Shape (B, heads, T, head size); heads that share keys and values follow one another.
        key, value: Shape (B, shared heads, S, head size).
        attention_mask: Shape (B or 1, 1, T, S), added to the scores.

    Returns:
        Shape (B, T, heads, head size), and None for the weights, which are not shown.
    """
    batch, heads, tokens, size = query.shape
    shared = key.shape[1]
    exact = math.frexp(scaling)[0] == 0.5  # a power of two: it rounds nothing, and the queries are the smaller tensor
    query = (query * scaling if exact else query).reshape(batch, shared, -1, size)
    scores = query @ key.transpose(2, 3)
    scores = scores if exact else scores * scaling
    if attention_mask is not None:
        of_group = scores.view(batch, shared, heads // shared, tokens, -1) + attention_mask[:, :, None]
        scores = of_group.view_as(scores)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).view(batch, heads, tokens, size).transpose(1, 2).contiguous(), None
