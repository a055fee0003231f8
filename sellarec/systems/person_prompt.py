"""PersonPrompt (Li et al., TOIS 2023), as CoLLM compares to it: free token vectors for every user and item.

The language model and its stage-1 adapter are frozen; the vectors are trained on stage 3's rows with CoLLM's learning
rate for MovieLens-1M. Deviations: vectors start at random and as long as SeLLa-Rec's (`stage3.vector_norm`), and
users and items that training does not show read the mean of the trained vectors.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor, nn

from sellarec.prompts import ITEM, USER
from sellarec.runs import Run
from sellarec.settings import Config, Stage3Config
from sellarec.systems.base import System, Workspace
from sellarec.systems.cold_users import hide_users
from sellarec.systems.collaborative import distinct_ids
from sellarec.systems.hybrid import HybridModel, train_tokens
from sellarec.systems.rows import stage3_rows
from sellarec.systems.scores import probabilities
from sellarec.systems.weights import save_state, saved_state

IDLE = (
    *("learning_rate", "embedding_learning_rate", "projection_learning_rate"),
    *("records", "facts", "fact_norm", "tokens", "projection", "order"),
)
"""Settings of stage 3 that change nothing here."""


class FreeTokens(nn.Module):
    """One trainable vector of the language model's width for every user and item."""

    tokens = (USER, ITEM)

    def __init__(self, seen: tuple[Tensor, Tensor], sizes: tuple[int, int], width: int, norm: float) -> None:
        """
        Args:
            seen: Distinct users and items that training shows, int64; all others read the mean of these.
            sizes: Largest user id and item id.
            norm: Of the vectors at the start, about.
        """
        super().__init__()
        self.user_embedding, self.item_embedding = (nn.Embedding(n + 1, width) for n in sizes)
        self.register_buffer("seen_users", seen[0], persistent=False)
        self.register_buffer("seen_items", seen[1], persistent=False)
        for table in (self.user_embedding, self.item_embedding):
            nn.init.normal_(table.weight, std=norm / width**0.5)

    def forward(self, user: Tensor, item: Tensor, *records: Tensor) -> dict[str, Tensor]:
        """Ids (B,), (B,) → vectors of both tokens, shape (B, d_L)."""
        return {
            USER: _or_mean(self.user_embedding.weight, user, self.seen_users),
            ITEM: _or_mean(self.item_embedding.weight, item, self.seen_items),
        }


def _or_mean(table: Tensor, ids: Tensor, seen: Tensor) -> Tensor:
    """Rows of a table; for ids that are not among the seen ones the mean of these rows, or of all if none was seen."""
    known = table[seen] if len(seen) else table
    return torch.where(torch.isin(ids, seen)[:, None], table[ids], known.detach().mean(dim=0))


def _new(work: Workspace) -> FreeTokens:
    lm, dataset = work.tuned_model, work.dataset
    torch.manual_seed(work.config.seed)
    rows, config = stage3_rows(work), work.config.stage3
    hidden = hide_users(work, rows.index.to_numpy(), config.cold_users)
    seen = distinct_ids(rows[~hidden])[0], distinct_ids(rows)[1]  # who is only shown as new has no vector of their own
    sizes, norm = (dataset.n_users, dataset.n_items), config.vector_norm * lm.token_norm()
    return FreeTokens(seen, sizes, lm.width, norm).to(lm.placement.device)


def fit(work: Workspace, run: Run) -> None:
    soft = _new(work)
    train_tokens(work, run, soft, {"soft.": work.config.person_prompt.learning_rate}, "PersonPrompt")
    save_state(run, "tokens", soft.state_dict())


def score(work: Workspace, run: Run, rows: np.ndarray) -> np.ndarray:
    soft = _new(work)
    soft.load_state_dict(saved_state(run, "tokens"))
    model = HybridModel(work.tuned_model, soft.eval(), work, rows)
    raw_yes = work.config.evaluation.raw_yes
    return probabilities(model.score(raw_yes, "PersonPrompt, scoring", run.partial_scores), raw_yes)


def _settings(config: Config) -> dict:
    stage3 = dataclasses.replace(config.stage3, **{name: getattr(Stage3Config(), name) for name in IDLE})
    rate = config.person_prompt.learning_rate
    return {"prompt": config.prompt, "stage1_rows": config.stage1.rows, "stage3": stage3, "rate": rate}


SYSTEM = System(
    "person_prompt", "PersonPrompt", _settings, fit, score, needs=("tallrec",), uses_backbone=True, version=2
)
