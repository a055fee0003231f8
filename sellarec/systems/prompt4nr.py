"""Prompt4NR (Zhang and Wang, SIGIR 2023), as CoLLM compares to it: trained virtual tokens in the text, no ids.

Three vectors before the history and three before the target, the same for all rows, are trained together with the
adapter. Deviations: the backbone answers Yes or No after a prompt instead of filling a gap; one template instead of an
ensemble; the adapter starts at stage 1's, so that all systems have read the same rows; vectors start at random, at the
norm of a token embedding, and learn at the adapter's rate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from sellarec.backbone.language_model import LanguageModel
from sellarec.backbone.token_rows import TokenRow, without_prefix
from sellarec.prompts import ITEM, USER, Prompt, PromptWriter
from sellarec.runs import Run
from sellarec.systems.base import System, Workspace
from sellarec.systems.tuned_further import score_tuned_further, settings, tune_further
from sellarec.systems.weights import save_state, saved_state

PER_SLOT = 3


class VirtualTokens(nn.Module):
    """The vectors in front of the history and of the target."""

    def __init__(self, width: int, token_norm: float) -> None:
        super().__init__()
        self.user, self.item = (nn.Parameter(torch.randn(PER_SLOT, width) * token_norm / width**0.5) for _ in range(2))

    def forward(self, positions: np.ndarray) -> dict[str, Tensor]:
        """Row positions (B,) → the same vectors for each row, shape (B, PER_SLOT, d_L) per slot."""
        return {t: v.expand(len(positions), -1, -1) for t, v in ((USER, self.user), (ITEM, self.item))}


def tokenize_with_slots(lm: LanguageModel, prompts: Iterable[Prompt]) -> list[TokenRow]:
    """Prompts with placeholders for the virtual tokens: before the history, cut like any other to what the model
    reads, and before the target."""
    shorter = dataclasses.replace(lm, max_tokens=lm.max_tokens - PER_SLOT)
    rows = shorter.tokenize_all((Prompt(p.prefix, ITEM * PER_SLOT + p.suffix) for p in prompts), (ITEM,), PER_SLOT)
    start = len(lm.tokenize(Prompt("", "a")).prefix)  # a first token that some families want
    slots = (lm.soft_ids[USER],) * PER_SLOT
    return [TokenRow(r.prefix[:start] + slots + r.prefix[start:], r.suffix) for r in rows]


def _tokenizer(work: Workspace):
    writer = PromptWriter(work.dataset, work.config.prompt)

    def tokenize(lm: LanguageModel, rows: np.ndarray, new_user: np.ndarray) -> list[TokenRow]:
        prompts = (writer.write(r, new) for r, new in zip(rows, new_user, strict=True))
        return [without_prefix(row) for row in tokenize_with_slots(lm, prompts)]

    return tokenize


def _new(work: Workspace) -> VirtualTokens:
    lm = work.base_model
    torch.manual_seed(work.config.seed)
    return VirtualTokens(lm.width, lm.token_norm()).to(lm.placement.device)


def fit(work: Workspace, run: Run) -> None:
    soft = _new(work)
    tune_further(work, run, _tokenizer(work), "Prompt4NR", soft)
    save_state(run, "virtual_tokens", soft.state_dict())


def score(work: Workspace, run: Run, rows: np.ndarray) -> np.ndarray:
    soft = _new(work)
    soft.load_state_dict(saved_state(run, "virtual_tokens"))
    return score_tuned_further(work, run, rows, _tokenizer(work), "Prompt4NR", soft)


SYSTEM = System("prompt4nr", "Prompt4NR", settings, fit, score, needs=("tallrec",), uses_backbone=True)
