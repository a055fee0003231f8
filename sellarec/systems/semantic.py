"""Item distillation: one vector per title, read off the language model that stage 1 tuned (paper Fig. 3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from sellarec.backbone.engine import embed_rows
from sellarec.prompts import Prompt, item_prompt
from sellarec.runs import Run
from sellarec.settings import Config
from sellarec.systems.base import System, Workspace


def _distil(work: Workspace, run: Run) -> None:
    """One vector per titled item: the tuned model's last hidden state of "Movie: TITLE" (paper Fig. 3)."""
    lm, dataset = work.tuned_model, work.dataset
    natural = work.config.prompt.natural_titles
    items = range(1, dataset.n_items + 1)
    rows = lm.tokenize_all(Prompt("", item_prompt(dataset, i, natural)) for i in items)
    raw = embed_rows(lm, rows, label="distilling items", unit="items")
    vectors = standardized(raw) if work.config.stage2.standardize else raw
    table = np.vstack([np.zeros(lm.width, dtype=np.float32), vectors])
    run.save_tensors("semantic", {"semantic": table})


def standardized(raw: np.ndarray) -> np.ndarray:
    """Subtract the mean vector and divide by one number, so that the mean norm is 1.

    Last hidden states of a language model share one large direction; with it every cosine is near 1. The norm decides
    how far one optimiser step on the warm projection moves its output: at a root mean square of 1 (a norm of
    sqrt(d_L)), AdamW's step of 1e-3 moves it by more than a word embedding is long.
    """
    centred = raw - raw.mean(axis=0)
    return centred / np.linalg.norm(centred, axis=1).mean()


def semantic_embedding(work: Workspace) -> nn.Embedding:
    """The distilled vectors by item id, trainable."""
    table = torch.from_numpy(work.with_weights("semantic").tensors("semantic")["semantic"])
    return nn.Embedding.from_pretrained(table, freeze=False)


def _settings(config: Config) -> dict[str, Any]:
    own = {"natural_titles": config.prompt.natural_titles}
    return own if config.stage2.standardize else own | {"standardize": False}  # keys of older runs do not hold it


SYSTEM = System(
    "semantic",
    "Item distillation",
    _settings,
    _distil,
    needs=("tallrec",),
    uses_backbone=True,
)
