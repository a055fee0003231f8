"""PersonPrompt (Li et al., TOIS 2023), as CoLLM compares to it: free token vectors for every user and item.

The language model and its stage-1 adapter are frozen; the vectors are trained on stage 3's rows with CoLLM's learning
rate for MovieLens-1M. Deviation: users and items that these rows do not show get the mean of the trained vectors.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from sellarec.config import Config
from sellarec.prompts import ITEM, USER
from sellarec.runs import Run
from sellarec.systems.base import System, Workspace, sigmoid
from sellarec.systems.collaborative import distinct_ids
from sellarec.systems.sella import HybridModel, train_tokens
from sellarec.systems.sella_collab import stage3_rows

LEARNING_RATE = 1e-2


class FreeTokens(nn.Module):
    """One trainable vector of the language model's width for every user and item."""

    tokens = (USER, ITEM)

    def __init__(self, n_users: int, n_items: int, width: int, token_norm: float) -> None:
        super().__init__()
        self.user_embedding, self.item_embedding = nn.Embedding(n_users + 1, width), nn.Embedding(n_items + 1, width)
        for table in (self.user_embedding, self.item_embedding):
            nn.init.normal_(table.weight, std=token_norm / width**0.5)

    def forward(self, user: Tensor, item: Tensor, *records: Tensor) -> dict[str, Tensor]:
        """Ids (B,), (B,) → vectors of both tokens, shape (B, d_L)."""
        return {USER: self.user_embedding(user), ITEM: self.item_embedding(item)}

    @torch.no_grad()
    def average_unseen(self, users: Tensor, items: Tensor) -> None:
        """Give ids that are not among the trained ones the mean vector of those."""
        for table, seen in ((self.user_embedding.weight, users), (self.item_embedding.weight, items)):
            unseen = torch.ones(len(table), dtype=torch.bool)
            unseen[seen] = False
            table[unseen] = table[seen].mean(dim=0)


def _new(work: Workspace) -> FreeTokens:
    lm, dataset = work.tuned_model, work.dataset
    torch.manual_seed(work.config.seed)
    return FreeTokens(dataset.n_users, dataset.n_items, lm.width, lm.token_norm()).to(lm.placement.device)


def fit(work: Workspace, run: Run) -> None:
    soft = _new(work)
    train_tokens(work, run, soft, LEARNING_RATE, "PersonPrompt")
    soft.average_unseen(*distinct_ids(stage3_rows(work)))
    run.save_tensors("tokens", {k: v.cpu().numpy() for k, v in soft.state_dict().items()})


def score(work: Workspace, run: Run, rows: np.ndarray) -> np.ndarray:
    soft = _new(work)
    soft.load_state_dict({k: torch.from_numpy(v) for k, v in run.tensors("tokens").items()})
    model = HybridModel(work.tuned_model, soft.eval(), work, rows)
    return sigmoid(model.score(work.config.evaluation.raw_yes, "PersonPrompt, scoring", run.partial_scores))


def _settings(config: Config) -> dict:
    return {"prompt": config.prompt, "stage1_rows": config.stage1.rows, "stage3": config.stage3, "rate": LEARNING_RATE}


SYSTEM = System("person_prompt", "PersonPrompt", _settings, fit, score, needs=("tallrec",), uses_backbone=True)
