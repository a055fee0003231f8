"""Stage 1's adapter tuned further on stage 3's rows: what Prompt4NR and BinLLM share, and by itself a control.

TALLRec tuned further has read the rows that SeLLa-Rec has, without any soft token: what SeLLa-Rec gains over it is not
owed to more rows. It is not in the paper. Passes, batch and rate are stage 1's, in `full` CoLLM's and BinLLM's 1e-4: at
that rate the fewer steps of the other profiles could hardly move an adapter.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import nn

from sellarec.backbone.engine import score_rows
from sellarec.backbone.language_model import LanguageModel, TokenRow
from sellarec.backbone.lora import merge_lora, resume_lora, save_lora
from sellarec.errors import SellarecError
from sellarec.runs import Run
from sellarec.settings import Config
from sellarec.systems.base import System, Workspace, probabilities
from sellarec.systems.cold_users import hide_users
from sellarec.systems.row_prompts import prompts_of
from sellarec.systems.rows import selection_rows, stage3_rows
from sellarec.systems.tallrec import TextModel
from sellarec.training import train

Tokenize = Callable[[LanguageModel, np.ndarray, np.ndarray], list[TokenRow]]
"""Language model, row ids (n,), which of them show their user as new (n,) → their prompts."""


def tune_further(work: Workspace, run: Run, tokenize: Tokenize, label: str, soft: nn.Module | None = None) -> None:
    """Train on stage 3's rows as stage 1 was trained, and save the adapter. `soft` is as in `TextModel`."""
    chosen, valid, raw_yes = stage3_rows(work), selection_rows(work, label), work.config.evaluation.raw_yes
    adapter = work.with_weights("tallrec").weights("adapter")
    lm = resume_lora(work.fresh_model(), adapter, checkpointing=work.config.lora.checkpointing)
    rows = chosen.index.to_numpy()
    model = TextModel(lm, tokenize(lm, rows, hide_users(work, rows, work.config.stage3.cold_users)), soft)
    valid_rows = tokenize(lm, valid.index.to_numpy(), np.zeros(len(valid), dtype=bool))

    def on_valid() -> tuple[np.ndarray, np.ndarray]:
        found = score_rows(lm, valid_rows, soft, raw_yes=raw_yes, label=f"{label}, validation")
        return valid["label"].to_numpy(), found

    train(
        model,
        chosen["label"].to_numpy(),
        rows,
        on_valid,
        work.config.stage1,
        work.config.seed,
        run.scratch("further"),
        lengths=model.lengths,
        log=run.append_log,
        label=label,
    )
    save_lora(lm, run.folder / "adapter")


def score_tuned_further(
    work: Workspace, run: Run, rows: np.ndarray, tokenize: Tokenize, label: str, soft: nn.Module | None = None
) -> np.ndarray:
    """Probabilities of the rows, shape (n,), float32, with the adapter that `tune_further` saved."""
    lm = merge_lora(work.fresh_model(), run.weights("adapter"))
    prompts = tokenize(lm, rows, np.zeros(len(rows), dtype=bool))
    raw_yes = work.config.evaluation.raw_yes
    found = score_rows(lm, prompts, soft, raw_yes=raw_yes, label=f"{label}, scoring", resume=run.partial_scores)
    return probabilities(found, raw_yes)


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
