"""Stage 1's adapter tuned further on stage 3's rows: what Prompt4NR and BinLLM share, and by itself a control.

TALLRec tuned further has read the rows that SeLLa-Rec has, without any soft token: what SeLLa-Rec gains over it is not
owed to more rows. It is not in the paper. Passes, batch and rate are stage 1's, in `full` CoLLM's and BinLLM's 1e-4: at
that rate the fewer steps of the other profiles could hardly move an adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from torch import nn

from sellarec.backbone.language_model import LanguageModel
from sellarec.backbone.lora import merge_lora, resume_lora
from sellarec.backbone.token_rows import TokenRow
from sellarec.errors import SellarecError
from sellarec.runs import Run
from sellarec.settings import Config
from sellarec.systems.base import System, Workspace
from sellarec.systems.row_prompts import prompts_of
from sellarec.systems.rows import stage3_rows
from sellarec.systems.tallrec import score_text, tune_adapter

Tokenize = Callable[[LanguageModel, np.ndarray, np.ndarray], list[TokenRow]]
"""Language model, row ids (n,), which of them show their user as new (n,) → their prompts."""


def tune_further(work: Workspace, run: Run, tokenize: Tokenize, label: str, soft: nn.Module | None = None) -> None:
    """Train on stage 3's rows as stage 1 was trained, and save the adapter. `soft` is as in `TextModel`."""
    adapter = work.with_weights("tallrec").weights("adapter")
    lm = resume_lora(work.fresh_model(), adapter, checkpointing=work.config.lora.checkpointing)
    cold_users = work.config.stage3.cold_users
    tune_adapter(work, run, lm, stage3_rows(work), cold_users, partial(tokenize, lm), label, "further", soft)


def score_tuned_further(
    work: Workspace, run: Run, rows: np.ndarray, tokenize: Tokenize, label: str, soft: nn.Module | None = None
) -> np.ndarray:
    """Probabilities of the rows, shape (n,), with the adapter that `tune_further` saved."""
    lm = merge_lora(work.fresh_model(), run.weights("adapter"))
    prompts = tokenize(lm, rows, np.zeros(len(rows), dtype=bool))
    return score_text(work, lm, run, prompts, f"{label}, scoring", soft=soft)


def settings(config: Config) -> dict:
    """The settings that decide the result of such a system.

    Raises:
        SellarecError: there is no adapter to tune further.
    """
    if not config.lora.rank:
        raise SellarecError("This system tunes stage 1's adapter further; lora.rank must not be 0.")
    return {
        "prompt": config.prompt,
        "stage1": config.stage1,
        "rows": config.stage3.rows,
        "cold_users": config.stage3.cold_users,
    }


LABEL = "TALLRec, tuned further"


def _prompts(work: Workspace) -> Tokenize:
    return lambda lm, rows, new_user: prompts_of(work, lm, rows, new_user=new_user)


SYSTEM = System(
    "tallrec_further",
    LABEL,
    settings,
    lambda work, run: tune_further(work, run, _prompts(work), LABEL),
    lambda work, run, rows: score_tuned_further(work, run, rows, _prompts(work), LABEL),
    needs=("tallrec",),
    uses_backbone=True,
)
