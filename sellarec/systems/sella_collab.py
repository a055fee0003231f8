"""Stage 2: matrix factorisation whose item vectors are aligned with the distilled ones (paper Eq. 6-9).

Deviations: MF has biases and does not see the rows that stage 3 is trained on (both settings); Eq. 8 is InfoNCE;
semantic vectors learn at a rate in proportion to their entries.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from sellarec.backbone.loading import choose_placement
from sellarec.collab.alignment import info_nce
from sellarec.collab.fit import fit_collab, predict, user_and_item
from sellarec.collab.mf import MatrixFactorization, Projection
from sellarec.runs import Run
from sellarec.settings import Config
from sellarec.systems.base import System, Workspace
from sellarec.systems.collaborative import distinct_ids
from sellarec.systems.mf import new_mf
from sellarec.systems.rows import stage2_rows
from sellarec.systems.scores import as_probability, scored_by
from sellarec.systems.semantic import semantic_embedding
from sellarec.systems.weights import save_state, saved_state


def _align(work: Workspace, run: Run) -> None:
    """MF and InfoNCE together (paper Eq. 6-9): user, item and semantic embeddings and the projection are trained."""
    config, dataset, rows = work.config.stage2, work.dataset, stage2_rows(work)
    torch.manual_seed(work.config.seed)
    mf = new_mf(dataset, config)
    semantic = semantic_embedding(work)
    projection = Projection(mf.feature_dim, semantic.embedding_dim)
    device = choose_placement(work.config.dtype).device
    for part in (mf, semantic, projection):
        part.to(device)
    # Adam moves every entry by the rate at each step, whatever its size; at the full rate the semantic vectors would
    # meet the projected ones halfway and forget the titles.
    semantic_rate = config.learning_rate * semantic.weight.detach().square().mean().sqrt().item()

    semantic_group = [] if config.frozen_semantic else [{"params": [semantic.weight], "lr": semantic_rate}]

    unseen = torch.from_numpy(items_without_contrast(work)).to(device)

    def contrast(user: Tensor, item: Tensor) -> Tensor:
        unique = item.unique()
        unique = unique[~torch.isin(unique, unseen)]
        if not len(unique):
            return torch.zeros((), device=device)
        projected = projection(mf.item_features(unique))
        loss = info_nce(projected, semantic(unique), config.temperature, symmetric=config.symmetric)
        return config.alignment * loss

    if config.hold_out and len(rows) == len(dataset.part("train")) and work.config.stage3.records:
        print(
            "Stage 3 takes nearly every training row, so that stage 2 can hold none out: beside its vectors, counts of "
            "user and item give labels away. --stage3.rows 0.5, half of them, is sounder (docs/protocol.md).",
            flush=True,
        )
    fit_collab(
        mf,
        dataset,
        config,
        work.config.seed,
        train_rows=rows,
        extra_loss=contrast if config.alignment else None,
        extra_groups=[*semantic_group, {"params": projection.parameters()}],
        checkpoint=run.scratch("fit") / "checkpoint.pt",
        log=run.append_log,
        label="stage 2, MF + InfoNCE",
    )
    mf.cpu().forget_unseen(*distinct_ids(rows))
    tensors = {f"mf.{k}": v for k, v in mf.state_dict().items()}
    tensors |= {f"projection.{k}": v for k, v in projection.state_dict().items()}
    tensors["semantic.weight"] = semantic.weight.data
    save_state(run, "aligned", tensors)


def items_without_contrast(work: Workspace) -> np.ndarray:
    """Ids of the items that InfoNCE does not see, int64, sorted; none by default."""
    items = np.sort(stage2_rows(work)["item"].unique()).astype(np.int64)
    left_out = round(work.config.stage2.without_contrast * len(items))
    return np.sort(np.random.default_rng(work.config.seed).choice(items, left_out, replace=False))


def aligned_parts(work: Workspace) -> tuple[MatrixFactorization, Projection, nn.Embedding]:
    """What stage 2 learnt: the collaborative model, its projection, and the semantic embeddings, all trainable."""
    run = work.with_weights("sella_collab")
    mf = new_mf(work.dataset, work.config.stage2)
    mf.load_state_dict(_prefixed(run, "aligned", "mf."))
    semantic = nn.Embedding.from_pretrained(
        torch.from_numpy(run.tensors("aligned")["semantic.weight"]), freeze=work.config.stage2.frozen_semantic
    )
    projection = Projection(mf.feature_dim, semantic.embedding_dim)
    projection.load_state_dict(_prefixed(run, "aligned", "projection."))
    return mf, projection, semantic


def _score_aligned(work: Workspace, run: Run, rows: np.ndarray) -> np.ndarray:
    mf = new_mf(work.dataset, work.config.stage2)
    mf.load_state_dict(_prefixed(run, "aligned", "mf."))
    output = predict(mf, user_and_item(work.dataset.interactions.iloc[rows]))
    return as_probability(output, work.config.stage2.loss)


def _prefixed(run: Run, file: str, prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in saved_state(run, file).items() if k.startswith(prefix)}


def _stage2_settings(config: Config) -> dict:
    held_out = (config.stage1.rows, config.stage3.rows) if config.stage2.hold_out else None
    return {"stage2": config.stage2, "held_out": held_out, **scored_by(config.stage2.loss)}


SYSTEM = System(
    "sella_collab",
    "Aligned MF (stage 2)",
    _stage2_settings,
    _align,
    _score_aligned,
    needs=("semantic",),
    uses_backbone=True,
)
