"""Stage 3, SeLLa-Rec itself: the frozen language model reads three trainable soft tokens (paper Eq. 10-11).

Deviations, each a setting: MF has biases and they are part of what the projection reads; records of the training part
are added to the user and item token, genres and year to the warm token; vectors start at a fraction of a word
embedding's norm; tables have a rate of their own.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from sellarec.backbone.language_model import LanguageModel
from sellarec.collab.mf import MatrixFactorization, Projection
from sellarec.collab.records import item_facts
from sellarec.prompts import ITEM, SOFT_TOKENS, USER, WARM
from sellarec.runs import Run
from sellarec.settings import Stage3Config
from sellarec.systems.base import System, Workspace
from sellarec.systems.hybrid import HybridModel, train_tokens
from sellarec.systems.rows import RowInputs, row_inputs, stage2_rows
from sellarec.systems.scores import probabilities
from sellarec.systems.sella_collab import aligned_parts
from sellarec.systems.weights import save_state, saved_state

RECORD_HIDDEN = 64
"""Width of the hidden layer through which a record of two numbers, or an item's facts, reach their token."""


class SoftTokens(nn.Module):
    """The trainable part of stage 3 (paper Table 1): embeddings, and the projections that make soft tokens of them.

    Ours: the records of user and item in the training part are projected too and added to their tokens, and an item's
    facts, which need no rating, to the warm token.
    """

    def __init__(
        self,
        mf: MatrixFactorization,
        semantic: nn.Embedding,
        projection: Projection,
        *,
        records: bool = True,
        facts: Tensor | None = None,
    ) -> None:
        """
        Args:
            facts: By item id, shape (n_items + 1, facts); None leaves them out.
        """
        super().__init__()
        self.tokens = SOFT_TOKENS
        self.mf, self.semantic, self.collab_projection = mf, semantic, projection
        width = semantic.embedding_dim
        self.warm_projection = nn.Linear(width, width)
        self.register_buffer("user_scale", torch.ones(()))
        columns = ("user", "item") if records else ()
        self.record_projections = nn.ModuleDict({c: Projection(2, width, RECORD_HIDDEN) for c in columns})
        self.register_buffer("facts", facts, persistent=False)
        self.fact_projection = None if facts is None else Projection(facts.shape[1], width, RECORD_HIDDEN)
        self._learns = {n for n, p in self.named_parameters() if p.requires_grad}

    def show(self, tokens: tuple[str, ...], trained: tuple[str, ...]) -> SoftTokens:
        """Make these tokens, and train the parts of some of them only. User and item token share their parts."""
        self.tokens = tokens
        for name, parameter in self.named_parameters():
            of_warm_token = name.split(".")[0] in ("semantic", "warm_projection", "fact_projection")
            chosen = WARM in trained if of_warm_token else bool({USER, ITEM} & set(trained))
            parameter.requires_grad_(chosen and name in self._learns)
        return self

    def learnt(self) -> dict[str, Tensor]:
        """Copies of everything that stage 3 may change, by name."""
        state = self.state_dict()
        return {n: state[n].cpu().clone() for n in sorted(self._learns | {"user_scale"})}

    def restore(self, state: dict[str, Tensor]) -> SoftTokens:
        """Take over what `learnt` gave."""
        self.load_state_dict(self.state_dict() | state)
        return self

    def forward(self, user: Tensor, item: Tensor, user_record: Tensor, item_record: Tensor) -> dict[str, Tensor]:
        """Ids (B,), (B,) and records (B, 2), (B, 2) → for each soft token its vectors, shape (B, d_L)."""
        user_token = self.user_scale * self.collab_projection(self.mf.user_features(user))
        item_token = self.collab_projection(self.mf.item_features(item))
        if self.record_projections:
            user_token = user_token + self.record_projections["user"](user_record)
            item_token = item_token + self.record_projections["item"](item_record)
        made = {USER: user_token, ITEM: item_token, WARM: self.warm(item)}
        return {t: made[t] for t in self.tokens}

    def warm(self, item: Tensor) -> Tensor:
        """Ids (B,) → vectors of the warm token, shape (B, d_L)."""
        token = self.warm_projection(self.semantic(item))
        return token if self.fact_projection is None else token + self.fact_projection(self.facts[item])

    @torch.no_grad()
    def fit_scale(self, inputs: RowInputs, token_norm: float, vector_norm: float, fact_norm: float) -> None:
        """Start all parts at a fixed mean norm: records at `token_norm`, vectors and facts at a multiple of it.

        The factors go into the last layers rather than beside them, so that a step of the optimiser moves every token
        by about as much. Users share the items' projection and keep a factor of their own.
        """
        user, item, user_record, item_record = inputs
        users = self.collab_projection(self.mf.user_features(user.unique())).norm(dim=1).mean()
        items = self.collab_projection(self.mf.item_features(item.unique()))
        warm = self.warm_projection(self.semantic(item.unique()))
        _rescale(self.collab_projection.layers[-1], items, vector_norm * token_norm)
        _rescale(self.warm_projection, warm, vector_norm * token_norm)
        if self.fact_projection is not None:
            facts = self.fact_projection(self.facts[item.unique()])
            _rescale(self.fact_projection.layers[-1], facts, fact_norm * token_norm)
        self.user_scale.copy_(items.norm(dim=1).mean() / users)
        records = {"user": user_record, "item": item_record}
        for column, projection in self.record_projections.items():
            _rescale(projection.layers[-1], projection(records[column]), token_norm)


def _rescale(layer: nn.Linear, outputs: Tensor, norm: float) -> None:
    factor = norm / outputs.norm(dim=1).mean()
    layer.weight *= factor
    layer.bias *= factor


TOKEN_NAMES = {"user": USER, "item": ITEM, "warm": WARM}


def phases(config: Stage3Config) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """What stage 3 does in turn: the tokens that the prompt holds, and those among them that are trained."""
    tokens = tuple(token for name, token in TOKEN_NAMES.items() if name in config.token_names)
    if config.order == "together":
        return [(tokens, tokens)]
    first, second = ((WARM,), (USER, ITEM)) if config.order == "warm,user+item" else ((USER, ITEM), (WARM,))
    return [(first, first), (SOFT_TOKENS, second)]


def new_soft_tokens(work: Workspace, lm: LanguageModel, draw: int = 0) -> SoftTokens:
    """Stage 3's starting point: what stage 2 learnt, a fresh warm projection, and the scale.

    Args:
        draw: Of what is random, another draw than the seed's own.
    """
    config, soft = work.config.stage3, _unscaled(work, lm, draw)
    known = row_inputs(work, stage2_rows(work).index.to_numpy())
    soft.fit_scale(known, lm.token_norm(), config.vector_norm, config.fact_norm)
    return soft.to(lm.placement.device)


def _unscaled(work: Workspace, lm: LanguageModel, draw: int = 0) -> SoftTokens:
    config = work.config.stage3
    mf, projection, semantic = aligned_parts(work)
    torch.manual_seed(work.config.seed + draw)
    if config.projection == "random":
        projection = Projection(mf.feature_dim, lm.width)
    if not config.embedding_learning_rate:  # frozen tables should not take part in the clipping of gradients either
        mf.requires_grad_(False)
        semantic.requires_grad_(False)
    facts = item_facts(work.dataset) if config.facts else None
    return SoftTokens(mf, semantic, projection, records=config.records, facts=facts)


def _fit_stage3(work: Workspace, run: Run) -> None:
    lm, plan = work.tuned_model, phases(work.config.stage3)
    soft = new_soft_tokens(work, lm)
    for phase, (shown, trained) in enumerate(plan, start=1):
        label = "stage 3, soft tokens" + ("" if len(plan) == 1 else f", phase {phase} of {len(plan)}")
        train_tokens(work, run, soft.show(shown, trained), _rates(work.config.stage3), label, phase)
    save_state(run, "soft_tokens", soft.learnt())


def _rates(config: Stage3Config) -> dict[str, float]:
    tables = dict.fromkeys(("soft.mf.", "soft.semantic."), config.embedding_learning_rate)
    return tables | dict.fromkeys(("soft.collab_projection.", "soft.warm_projection."), config.projection_learning_rate)


def load_soft_tokens(work: Workspace, run: Run) -> SoftTokens:
    """The trained soft tokens of a stage-3 run."""
    lm = work.tuned_model
    soft = _unscaled(work, lm).to(lm.placement.device)
    soft.restore(saved_state(run, "soft_tokens"))
    shown, trained = phases(work.config.stage3)[-1]
    return soft.show(shown, trained).eval()


def _score_hybrid(work: Workspace, run: Run, rows: np.ndarray) -> np.ndarray:
    model = HybridModel(work.tuned_model, load_soft_tokens(work, run), work, rows)
    raw_yes = work.config.evaluation.raw_yes
    return probabilities(model.score(raw_yes, "SeLLa-Rec, scoring", run.partial_scores), raw_yes)


SYSTEM = System(
    "sella",
    "SeLLa-Rec",
    lambda config: {"prompt": config.prompt, "stage3": config.stage3},
    _fit_stage3,
    _score_hybrid,
    needs=("tallrec", "sella_collab"),
    uses_backbone=True,
)
