"""Where a language model looks: the same pass as the engine's, with attention that shows its weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from sellarec.backbone.engine import embed, prefixes_of
from sellarec.backbone.language_model import LanguageModel, body_of
from sellarec.backbone.token_rows import TokenRow
from sellarec.errors import SellarecError

SHOWS_WEIGHTS = "eager"
"""The only implementation of attention that does."""


@torch.no_grad()
def attention_weights(lm: LanguageModel, row: TokenRow, soft: dict[str, Tensor] | None = None) -> np.ndarray:
    """How much each position attends to each earlier one, shape (layers, heads, T, T), float32; rows sum to 1.

    Args:
        soft: For each soft token its vector, shape (1, d_L).

    Raises:
        SellarecError: the backbone's attention does not give its weights away.
    """
    embeds = embed(lm, torch.tensor([row.prefix + row.suffix]), soft)
    with using_attention(lm, SHOWS_WEIGHTS), lm.precision():
        layers = _attention_of(body_of(lm.model)(inputs_embeds=embeds, output_attentions=True))
    return torch.stack([layer[0].float() for layer in layers]).cpu().numpy()


@torch.no_grad()
def answer_and_attention(
    lm: LanguageModel, row: TokenRow, soft: dict[str, Tensor], prefixes: dict[tuple[int, ...], object]
) -> tuple[float, np.ndarray]:
    """The log-odds of one row, and how much its last position attends to each position, averaged over heads.

    Args:
        soft: For each soft token its vector, shape (1, d_L).
        prefixes: Keys and values by prefix: what is in it is not computed again, what is not is added.

    Returns:
        The log-odds, and shape (layers, T), float32, each line summing to 1.

    Raises:
        SellarecError: the backbone's attention does not give its weights away.
    """
    if row.prefix and row.prefix not in prefixes:
        prefixes[row.prefix] = prefixes_of(lm, [row])[0]
    past = copy.deepcopy(prefixes.get(row.prefix))  # a pass writes into it
    embeds = embed(lm, torch.tensor([row.suffix]), soft)
    with using_attention(lm, SHOWS_WEIGHTS), lm.precision():
        out = body_of(lm.model)(
            inputs_embeds=embeds, past_key_values=past, use_cache=past is not None, output_attentions=True
        )
        layers = _attention_of(out)
    yes, no = lm.answer_head()
    log_odds = out.last_hidden_state[0, -1].float() @ (yes - no)
    return log_odds.item(), torch.stack([layer[0, :, -1].float().mean(dim=0) for layer in layers]).cpu().numpy()


def _attention_of(out: object) -> tuple[Tensor, ...]:
    if not out.attentions or out.attentions[0] is None:
        raise SellarecError("This backbone's attention does not show its weights.")
    return out.attentions


@contextmanager
def using_attention(lm: LanguageModel, name: str) -> Iterator[None]:
    """Within it the model uses the implementation of attention that transformers knows by a name."""
    usual = lm.model.config._attn_implementation
    try:
        lm.model.set_attn_implementation(name)
        yield
    finally:
        lm.model.set_attn_implementation(usual)
