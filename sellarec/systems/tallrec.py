"""Zero-shot and TALLRec (Bao et al., RecSys 2023) = stage 1: a language model on text prompts, without and with LoRA.

Deviations from TALLRec: the loss is the binary cross-entropy of Yes against No at the answer position (SeLLa-Rec
Eq. 5), not the causal-LM loss over the answer; the prompt holds liked titles only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor, nn

from sellarec.backbone.compiled import layers_for
from sellarec.backbone.engine import log_odds, score_rows
from sellarec.backbone.language_model import LanguageModel
from sellarec.backbone.lora import add_lora, merge_lora, save_lora
from sellarec.backbone.prefixes import PrefixCache
from sellarec.backbone.token_rows import TokenRow, without_prefix
from sellarec.runs import Run
from sellarec.settings import Config
from sellarec.systems.base import System, Workspace
from sellarec.systems.cold_users import hide_users
from sellarec.systems.row_prompts import caches_prefixes, cut_prompts, prefix_cache_of, prompts_of
from sellarec.systems.rows import selection_rows, stage1_rows
from sellarec.systems.scores import probabilities
from sellarec.training import train


class TextModel(nn.Module):
    """A language model with an adapter, as a map from row positions to log-odds."""

    def __init__(
        self, lm: LanguageModel, rows: list[TokenRow], soft: nn.Module | None = None, *, epochs: int = 1
    ) -> None:
        """
        Args:
            soft: Trained along; maps row positions to the vectors of the soft tokens in these rows.
            epochs: How often each row will be asked for.
        """
        super().__init__()
        # not the model itself: what looks after several processes should see the trained weights only
        self.adapter = nn.ParameterList(p for p in lm.model.parameters() if p.requires_grad)
        self.soft = soft
        self._lm, self._rows, self._passes = lm, [without_prefix(r) for r in rows], len(rows) * epochs
        self.lengths = np.array([len(r) for r in rows])

    def train(self, mode: bool = True) -> TextModel:
        self._lm.model.train(mode)
        return super().train(mode)

    def forward(self, positions: np.ndarray) -> Tensor:
        with layers_for(self._lm, self._passes):
            return log_odds(self._lm, [self._rows[i] for i in positions], self.soft(positions) if self.soft else None)


def _settings(config: Config) -> dict:
    lora = {k: v for k, v in asdict(config.lora).items() if k != "checkpointing"}  # memory only, the same result
    return {"prompt": config.prompt, "lora": lora, "stage1": config.stage1}


def _fit_stage1(work: Workspace, run: Run) -> None:
    if work.config.lora.rank:
        lm, config = add_lora(work.fresh_model(), work.config.lora, work.config.seed), work.config.stage1

        def tokenize(rows: np.ndarray, new_user: np.ndarray) -> list[TokenRow]:
            return prompts_of(work, lm, rows, new_user=new_user)

        tune_adapter(work, run, lm, stage1_rows(work), config.cold_users, tokenize, "stage 1, LoRA", "stage1")


def tune_adapter(
    work: Workspace,
    run: Run,
    lm: LanguageModel,
    chosen: pd.DataFrame,
    cold_users: float | None,
    tokenize: Callable[[np.ndarray, np.ndarray], list[TokenRow]],
    label: str,
    scratch: str,
    soft: nn.Module | None = None,
) -> None:
    """Train a model's adapter with stage 1's settings, and save it.

    Args:
        chosen: The rows to train on.
        cold_users: As `stage1.cold_users`.
        tokenize: Row ids (n,), and which of them show their user as new, (n,) → their prompts.
        scratch: Where the run keeps checkpoints.
        soft: As in `TextModel`.
    """
    config, valid = work.config, selection_rows(work, label)
    rows, raw_yes = chosen.index.to_numpy(), config.evaluation.raw_yes
    model = TextModel(lm, tokenize(rows, hide_users(work, rows, cold_users)), soft, epochs=config.stage1.epochs)
    valid_rows = tokenize(valid.index.to_numpy(), np.zeros(len(valid), dtype=bool))

    def on_valid(resume: Path) -> tuple[np.ndarray, np.ndarray]:
        found = score_rows(lm, valid_rows, soft, raw_yes=raw_yes, label=f"{label}, validation", resume=resume)
        return valid["label"].to_numpy(), found

    train(
        model,
        chosen["label"].to_numpy(),
        rows,
        on_valid,
        config.stage1,
        config.seed,
        run.scratch(scratch),
        lengths=model.lengths,
        log=run.append_log,
        scales_loss=lm.placement.scales_loss,
        label=label,
    )
    save_lora(lm, run.folder / "adapter")


def _score_tuned(work: Workspace, run: Run, rows: np.ndarray) -> np.ndarray:
    if not work.config.lora.rank:
        return _score_untuned(work, run, rows)
    lm = merge_lora(work.fresh_model(), run.weights("adapter"))
    prompts, kept = prompts_of(work, lm, rows), None
    if caches_prefixes(work, lm):
        cut = cut_prompts(work, lm, rows, prompts)
        kept = prefix_cache_of(work, lm, rows, cut)
        prompts = cut if kept else prompts
    return score_text(work, lm, run, prompts, "TALLRec, scoring", kept=kept)


def _score_untuned(work: Workspace, run: Run, rows: np.ndarray) -> np.ndarray:
    lm = work.base_model
    return score_text(work, lm, run, prompts_of(work, lm, rows), "zero-shot, scoring")


def score_text(
    work: Workspace,
    lm: LanguageModel,
    run: Run,
    prompts: list[TokenRow],
    label: str,
    *,
    soft: nn.Module | None = None,
    kept: PrefixCache | None = None,
) -> np.ndarray:
    """Probabilities of prompts, shape (n,); goes on from what the run has."""
    raw_yes = work.config.evaluation.raw_yes
    found = score_rows(lm, prompts, soft, kept=kept, raw_yes=raw_yes, label=label, resume=run.partial_scores)
    return probabilities(found, raw_yes)


ZERO_SHOT = System(
    "zero_shot",
    "Zero-shot LLM",
    lambda config: {"prompt": config.prompt},
    lambda work, run: None,
    _score_untuned,
    uses_backbone=True,
    uses_seed=False,
)
TALLREC = System("tallrec", "TALLRec (stage 1)", _settings, _fit_stage1, _score_tuned, uses_backbone=True)
