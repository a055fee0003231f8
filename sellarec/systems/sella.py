"""SeLLa-Rec: item distillation, aligned matrix factorisation (stage 2), and the hybrid prompt (stage 3).

Deviations from the paper, each a setting or stated where it is made: MF has biases and they are part of what the
projection reads; records of the training part are added to the user and item tokens; semantic embeddings are centred
and scaled to a mean norm of 1; Eq. 8 is InfoNCE.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from sellarec.backbone.engine import cut_at_soft_tokens, embed_rows, log_odds, score_rows
from sellarec.backbone.language_model import LanguageModel, TokenRow
from sellarec.collab.alignment import info_nce
from sellarec.collab.fit import fit_collab
from sellarec.collab.mf import MatrixFactorization, Projection
from sellarec.collab.records import training_records
from sellarec.config import Config
from sellarec.data.dataset import sample_rows
from sellarec.prompts import SOFT_TOKENS, Prompt, PromptWriter, item_prompt
from sellarec.runs import Run
from sellarec.systems.base import System, Workspace, sigmoid
from sellarec.systems.mf import distinct_ids, mf_log_odds, new_mf
from sellarec.systems.tallrec import stage1_rows
from sellarec.training import load_trainable, train, trainable_state

# --- distillation ---------------------------------------------------------------------------------------------------


def _distil(work: Workspace, run: Run) -> None:
    """One vector per titled item: the tuned model's last hidden state of "Movie: TITLE" (paper Fig. 3)."""
    lm, dataset = work.tuned_model, work.dataset
    natural = work.config.prompt.natural_titles
    items = range(1, dataset.n_items + 1)
    rows = [lm.tokenize(Prompt("", item_prompt(dataset, i, natural))) for i in items]
    raw = embed_rows(lm, rows, label="distilling items")
    table = np.vstack([np.zeros(lm.width, dtype=np.float32), standardized(raw)])
    run.save_tensors("semantic", {"raw": raw, "semantic": table})


def standardized(raw: np.ndarray) -> np.ndarray:
    """Subtract the mean vector and divide by one number, so that the mean norm is 1.

    Last hidden states of a language model share one large direction; with it every cosine is near 1. The norm decides
    how far one optimiser step on the warm projection moves its output: at a root mean square of 1 (a norm of
    sqrt(d_L)), AdamW's step of 1e-3 moves it by more than a word embedding is long.
    """
    centred = raw - raw.mean(axis=0)
    return centred / np.linalg.norm(centred, axis=1).mean()


# --- stage 2 --------------------------------------------------------------------------------------------------------


def stage3_rows(work: Workspace) -> pd.DataFrame:
    """The training rows that stage 3 learns from; none of stage 1's while there are enough others.

    A language model is surer of rows that it was tuned on than of new ones.
    """
    train, config = work.dataset.part("train"), work.config
    fresh = train.drop(stage1_rows(work).index)
    return sample_rows(
        train if len(fresh) < (config.stage3.rows or len(train)) else fresh, config.stage3.rows, config.seed
    )


def stage2_rows(work: Workspace) -> pd.DataFrame:
    """The training rows that stage 2 learns from: without stage 3's if they are held out and not all there is."""
    train, held_out = work.dataset.part("train"), stage3_rows(work)
    if not work.config.stage2.hold_out or len(held_out) == len(train):
        return train
    return train.drop(held_out.index)


def _align(work: Workspace, run: Run) -> None:
    """MF and InfoNCE together (paper Eq. 6-9): user, item and semantic embeddings and the projection are trained."""
    config, dataset, rows = work.config.stage2, work.dataset, stage2_rows(work)
    mf = new_mf(dataset, config, work.config.seed)
    semantic = nn.Embedding.from_pretrained(_semantic_table(work), freeze=False)
    projection = Projection(mf.feature_dim, semantic.embedding_dim)

    def contrast(user: Tensor, item: Tensor) -> Tensor:
        unique = item.unique()
        projected = projection(mf.item_features(unique))
        loss = info_nce(projected, semantic(unique), config.temperature, symmetric=config.symmetric)
        return config.alignment * loss

    fit_collab(
        mf,
        dataset,
        config,
        work.config.seed,
        train_rows=rows,
        extra_loss=contrast,
        extra_parameters=[semantic.weight, *projection.parameters()],
        log=run.append_log,
        label="stage 2, MF + InfoNCE",
    )
    mf.forget_unseen(*distinct_ids(rows))
    tensors = {f"mf.{k}": v for k, v in mf.state_dict().items()}
    tensors |= {f"projection.{k}": v for k, v in projection.state_dict().items()}
    tensors["semantic.weight"] = semantic.weight.data
    run.save_tensors("aligned", {k: v.numpy() for k, v in tensors.items()})


def aligned_parts(work: Workspace) -> tuple[MatrixFactorization, Projection, nn.Embedding]:
    """What stage 2 learnt: the collaborative model, its projection, and the semantic embeddings, all trainable."""
    run = work.run("sella_collab")
    mf = new_mf(work.dataset, work.config.stage2, 0)
    mf.load_state_dict(_prefixed(run, "aligned", "mf."))
    semantic = nn.Embedding.from_pretrained(torch.from_numpy(run.tensors("aligned")["semantic.weight"]), freeze=False)
    projection = Projection(mf.feature_dim, semantic.embedding_dim)
    projection.load_state_dict(_prefixed(run, "aligned", "projection."))
    return mf, projection, semantic


def _score_aligned(work: Workspace, run: Run, rows: np.ndarray) -> np.ndarray:
    mf = new_mf(work.dataset, work.config.stage2, 0)
    mf.load_state_dict(_prefixed(run, "aligned", "mf."))
    return sigmoid(mf_log_odds(mf, work.dataset, rows))


# --- stage 3 --------------------------------------------------------------------------------------------------------


RECORD_HIDDEN = 64
"""Width of the hidden layer through which a record of two numbers reaches its token."""


class SoftTokens(nn.Module):
    """The trainable part of stage 3 (paper Table 1): embeddings, and the projections that make soft tokens of them.

    Ours: the records of user and item in the training part are projected too and added to their tokens.
    """

    def __init__(
        self, mf: MatrixFactorization, semantic: nn.Embedding, projection: Projection, *, records: bool = True
    ) -> None:
        super().__init__()
        self.mf, self.semantic, self.collab_projection = mf, semantic, projection
        width = semantic.embedding_dim
        self.warm_projection = nn.Linear(width, width)
        self.register_buffer("user_scale", torch.ones(()))
        columns = ("user", "item") if records else ()
        self.record_projections = nn.ModuleDict({c: Projection(2, width, RECORD_HIDDEN) for c in columns})

    def forward(self, user: Tensor, item: Tensor, user_record: Tensor, item_record: Tensor) -> dict[str, Tensor]:
        """Ids (B,), (B,) and records (B, 2), (B, 2) → for each soft token its vectors, shape (B, d_L)."""
        user_token = self.user_scale * self.collab_projection(self.mf.user_features(user))
        item_token = self.collab_projection(self.mf.item_features(item))
        if self.record_projections:
            user_token = user_token + self.record_projections["user"](user_record)
            item_token = item_token + self.record_projections["item"](item_record)
        return dict(zip(SOFT_TOKENS, (user_token, item_token, self.warm_projection(self.semantic(item))), strict=True))

    @torch.no_grad()
    def fit_scale(self, inputs: RowInputs, token_norm: float, vector_norm: float) -> None:
        """Start all parts at a fixed mean norm: records at `token_norm`, vectors at `vector_norm` times that.

        The factors go into the last layers rather than beside them, so that a step of the optimiser moves every token
        by about as much. Users share the items' projection and keep a factor of their own.
        """
        user, item, user_record, item_record = inputs
        users = self.collab_projection(self.mf.user_features(user.unique())).norm(dim=1).mean()
        items = self.collab_projection(self.mf.item_features(item.unique()))
        warm = self.warm_projection(self.semantic(item.unique()))
        _rescale(self.collab_projection.layers[-1], items, vector_norm * token_norm)
        _rescale(self.warm_projection, warm, vector_norm * token_norm)
        self.user_scale.copy_(items.norm(dim=1).mean() / users)
        for column, record in (("user", user_record), ("item", item_record)):
            if self.record_projections:
                projection = self.record_projections[column]
                _rescale(projection.layers[-1], projection(record), token_norm)


def _rescale(layer: nn.Linear, outputs: Tensor, norm: float) -> None:
    factor = norm / outputs.norm(dim=1).mean()
    layer.weight *= factor
    layer.bias *= factor


RowInputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of some interactions: users (n,), items (n,), and the records of both, (n, 2) each."""


def row_inputs(work: Workspace, rows: np.ndarray) -> RowInputs:
    """What `SoftTokens` reads of dataset rows."""
    part = work.dataset.interactions.iloc[rows]
    user, item = (torch.from_numpy(part[c].to_numpy().astype(np.int64)) for c in ("user", "item"))
    user_record, item_record = (training_records(work.dataset, c)[rows.tolist()] for c in ("user", "item"))
    return user, item, user_record, item_record


class HybridModel(nn.Module):
    """A frozen language model that is fed trainable soft tokens, as a map from row positions to log-odds."""

    def __init__(self, lm: LanguageModel, soft: SoftTokens, work: Workspace, rows: np.ndarray) -> None:
        super().__init__()
        self.soft = soft
        self._lm = lm
        writer = PromptWriter(work.dataset, work.config.prompt, SOFT_TOKENS)
        self.token_rows: list[TokenRow] = [lm.tokenize(writer.write(r), SOFT_TOKENS) for r in rows]
        self._short = [cut_at_soft_tokens(lm, r) for r in self.token_rows]
        self._inputs = [t.to(lm.placement.device) for t in row_inputs(work, rows)]

    def forward(self, positions: np.ndarray) -> Tensor:
        return log_odds(self._lm, [self._short[i] for i in positions], self.vectors(positions))

    def vectors(self, positions: np.ndarray) -> dict[str, Tensor]:
        return self.soft(*(t[positions] for t in self._inputs))

    def score(self, raw_yes: bool = False, label: str = "scoring", resume: Path | None = None) -> np.ndarray:
        """Log-odds of all rows, shape (n,)."""
        return score_rows(self._lm, self.token_rows, self.vectors, raw_yes=raw_yes, label=label, resume=resume)


def _new_soft_tokens(work: Workspace, lm: LanguageModel) -> SoftTokens:
    """Stage 3's starting point: what stage 2 learnt, a fresh warm projection, and the scale."""
    mf, projection, semantic = aligned_parts(work)
    torch.manual_seed(work.config.seed)
    soft = SoftTokens(mf, semantic, projection, records=work.config.stage3.records)
    soft.fit_scale(
        row_inputs(work, stage2_rows(work).index.to_numpy()), lm.token_norm(), work.config.stage3.vector_norm
    )
    return soft.to(lm.placement.device)


def _fit_stage3(work: Workspace, run: Run) -> None:
    config, lm = work.config, work.tuned_model
    chosen = stage3_rows(work)
    valid = work.part("valid")
    soft = _new_soft_tokens(work, lm)
    on_valid = HybridModel(lm, soft, work, valid.index.to_numpy())
    train(
        HybridModel(lm, soft, work, chosen.index.to_numpy()),
        chosen["label"].to_numpy(),
        chosen.index.to_numpy(),
        lambda: (valid["label"].to_numpy(), on_valid.score(label="stage 3, validation")),
        config.stage3,
        config.seed,
        run.folder,
        log=run.append_log,
        label="stage 3, soft tokens",
    )
    tensors = trainable_state(soft) | {"user_scale": soft.user_scale.cpu()}
    run.save_tensors("soft_tokens", {k: v.numpy() for k, v in tensors.items()})


def load_soft_tokens(work: Workspace, run: Run) -> SoftTokens:
    """The trained soft tokens of a stage-3 run."""
    lm = work.tuned_model
    soft = _new_soft_tokens(work, lm)
    state = {k: torch.from_numpy(v) for k, v in run.tensors("soft_tokens").items()}
    soft.user_scale.copy_(state.pop("user_scale"))
    load_trainable(soft, state)
    return soft.eval()


def _score_hybrid(work: Workspace, run: Run, rows: np.ndarray) -> np.ndarray:
    model = HybridModel(work.tuned_model, load_soft_tokens(work, run), work, rows)
    return sigmoid(model.score(work.config.evaluation.raw_yes, "SeLLa-Rec, scoring", run.partial_scores))


def _semantic_table(work: Workspace) -> Tensor:
    return torch.from_numpy(work.run("semantic").tensors("semantic")["semantic"])


def _prefixed(run: Run, file: str, prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): torch.from_numpy(v) for k, v in run.tensors(file).items() if k.startswith(prefix)}


def _stage2_settings(config: Config) -> dict:
    held_out = (config.stage1.rows, config.stage3.rows) if config.stage2.hold_out else None
    return {"stage2": config.stage2, "held_out": held_out}


def _stage3_settings(config: Config) -> dict:
    return {"prompt": config.prompt, "stage3": config.stage3}


SEMANTIC = System(
    "semantic",
    "Item distillation",
    lambda config: {"natural_titles": config.prompt.natural_titles},
    _distil,
    needs=("tallrec",),
    uses_backbone=True,
)
SELLA_COLLAB = System(
    "sella_collab",
    "Aligned MF (stage 2)",
    _stage2_settings,
    _align,
    _score_aligned,
    needs=("semantic",),
    uses_backbone=True,
)
SELLA = System(
    "sella",
    "SeLLa-Rec",
    _stage3_settings,
    _fit_stage3,
    _score_hybrid,
    needs=("tallrec", "sella_collab"),
    uses_backbone=True,
)
