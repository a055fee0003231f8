"""A frozen language model that reads trainable soft tokens: its prompts, what is kept of them, training and scoring.

SeLLa-Rec, its variants and PersonPrompt differ in what makes their soft tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from sellarec.backbone.compiled import layers_for
from sellarec.backbone.engine import log_odds, score_rows
from sellarec.backbone.held import HeldPrefixes, hold_prefixes
from sellarec.backbone.language_model import LanguageModel
from sellarec.backbone.loading import sent
from sellarec.backbone.token_rows import TokenRow
from sellarec.distributed import world
from sellarec.runs import Run
from sellarec.systems.base import Workspace
from sellarec.systems.cold_users import hide_users
from sellarec.systems.row_prompts import caches_prefixes, cut_prompts, prefix_cache_of, prompts_of
from sellarec.systems.rows import row_inputs, selection_rows, stage3_rows
from sellarec.training import train


class HybridModel(nn.Module):
    """A frozen language model that is fed trainable soft tokens, as a map from row positions to log-odds."""

    def __init__(
        self,
        lm: LanguageModel,
        soft: nn.Module,
        work: Workspace,
        rows: np.ndarray,
        new_user: np.ndarray | None = None,
        *,
        epochs: int = 1,
    ) -> None:
        """
        Args:
            soft: Has `tokens`, the soft tokens that it makes, and maps a batch of `row_inputs` to their vectors.
            new_user: Rows, as a mask (n,), that hide what is known of their user.
            epochs: How often each row will be asked for in training.
        """
        super().__init__()
        self.soft = soft
        self._lm, self._work, self._rows, self._new_user = lm, work, rows, new_user
        self._passes = len(rows) * epochs
        self.token_rows = prompts_of(work, lm, rows, soft.tokens, new_user)
        self._kept = prefix_cache_of(work, lm, rows, self.cut) if caches_prefixes(work, lm) else None
        self.held: HeldPrefixes | None = None
        self.lengths = np.array([len(r) for r in self.token_rows])
        self._inputs = row_inputs(work, rows, new_user)

    @cached_property
    def cut(self) -> list[TokenRow]:
        """The same prompts, of which nothing before the cut needs a gradient."""
        return cut_prompts(self._work, self._lm, self._rows, self.token_rows, self.soft.tokens, self._new_user)

    def forward(self, positions: np.ndarray) -> Tensor:
        held = self.held if self.held and self.held.is_open else None
        with layers_for(self._lm, self._passes):
            rows = [self.cut[i] for i in positions]
            return log_odds(self._lm, rows, self.vectors(positions), self._kept or held)

    def vectors(self, positions: np.ndarray) -> dict[str, Tensor]:
        return self.soft(*(sent(t[positions], self._lm.placement.device) for t in self._inputs))

    def score(self, raw_yes: bool = False, label: str = "scoring", resume: Path | None = None) -> np.ndarray:
        """Log-odds of all rows, shape (n,)."""
        kept = self._kept or (self.held and self.held.open())
        rows = self.cut if kept else self.token_rows
        return score_rows(self._lm, rows, self.vectors, kept=kept, raw_yes=raw_yes, label=label, resume=resume)


@contextmanager
def holding(work: Workspace, lm: LanguageModel, *models: HybridModel) -> Iterator[None]:
    """Within it a GPU holds what the prompts of some models begin with, from the first time that one of them scores: by
    then training has shown what memory a batch needs."""
    held = hold_prefixes(lm, (row.prefix for model in models for row in model.cut), work.config.prefix_gib)
    for model in models:
        model.held = held
    try:
        yield
    finally:
        if held:
            held.release()


def train_tokens(
    work: Workspace, run: Run, soft: nn.Module, rates: dict[str, float], label: str, phase: int = 1
) -> None:
    """Train what makes soft tokens, behind the frozen tuned model, on stage 3's rows and with its settings."""
    chosen, valid = stage3_rows(work), selection_rows(work, label)
    config, lm, raw_yes = work.config, work.tuned_model, work.config.evaluation.raw_yes
    rows = chosen.index.to_numpy()
    hidden = hide_users(work, rows, config.stage3.cold_users)
    model = HybridModel(lm, soft, work, rows, hidden, epochs=config.stage3.epochs)
    on_valid = HybridModel(lm, soft, work, valid.index.to_numpy())
    again = [on_valid] if config.stage3.evaluations > 1 else []
    if again and config.stage3.epochs > 1 and world() == 1:  # several processes draw a row's process anew each time
        again.append(model)
    with holding(work, lm, *again):
        train(
            model,
            chosen["label"].to_numpy(),
            rows,
            lambda resume: (valid["label"].to_numpy(), on_valid.score(raw_yes, "stage 3, validation", resume)),
            config.stage3,
            config.seed,
            run.scratch(f"phase{phase}"),
            lengths=model.lengths,
            rates=rates,
            log=lambda entry: run.append_log({"phase": phase, **entry}),
            scales_loss=lm.placement.scales_loss,
            label=label,
        )
