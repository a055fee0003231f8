"""How well the projected collaborative item vectors and the semantic vectors agree (paper Fig. 6 and 7)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

from sellarec.runs import Run
from sellarec.systems.base import System, Workspace
from sellarec.systems.collaborative import distinct_ids
from sellarec.systems.rows import stage2_rows
from sellarec.systems.sella import load_soft_tokens
from sellarec.systems.sella_collab import aligned_parts, items_without_contrast

WITHOUT = {"stage2.alignment": 0.0}
"""What changes when stage 2 does without contrastive learning."""

LEFT_OUT = {"stage2.without_contrast": 0.1}
"""What changes when contrastive learning never sees a tenth of the items. Any item can be brought to any vector that it
is trained to meet; only with these does agreement say something about text and behaviour."""

NEIGHBOURS = 10

FOLDS = 5
"""Of the classifier that tells clouds apart."""

MOST_ITEMS = 5000
"""How many items are drawn of a larger catalogue: all pairs of them are compared, and a map shows no more."""


@dataclass(frozen=True)
class Clouds:
    """Two or three vectors of each of n items, float32.

    Attributes:
        items: Ids, (n,): those of stage 2's training rows, or `MOST_ITEMS` of them drawn at random.
        projected: Collaborative vectors in the language model's space, (n, d_L).
        semantic: Semantic vectors as trained so far, (n, d_L).
        distilled: Semantic vectors as the language model gave them, (n, d_L).
    """

    items: np.ndarray
    projected: np.ndarray
    semantic: np.ndarray
    distilled: np.ndarray

    @cached_property
    def cosines(self) -> dict[str, np.ndarray]:
        """Cosines of each item's projected vector, shape (n,) each.

        To its own semantic vector as trained; to its own as distilled, because targets that are trained along make
        alignment easy to fake; and to a random other item's as trained, the null.
        """
        shift = int(np.random.default_rng(0).integers(1, len(self.items)))
        projected, semantic, distilled = map(_unit, (self.projected, self.semantic, self.distilled))
        targets = {"own, trained": semantic, "own, as distilled": distilled}
        targets["another item's"] = np.roll(semantic, shift, axis=0)
        return {name: (projected * target).sum(axis=1) for name, target in targets.items()}


def after_stage_2(work: Workspace, most: int = MOST_ITEMS) -> Clouds:
    """Vectors after stage 2, of a draw of `most` items where there are more. Without contrastive learning the
    projection is as it was drawn."""
    mf, projection, semantic = aligned_parts(work)
    return _clouds(work, mf, projection, semantic, most)


def after_stage_3(work: Workspace, system: str = "sella") -> Clouds:
    """What stage 3 leaves of a system that is SeLLa-Rec or a variant of it."""
    from sellarec.systems.registry import find_system

    variant = work.variant(find_system(system).changes)
    soft = load_soft_tokens(variant, work.with_weights(system))
    return _clouds(variant, soft.mf, soft.collab_projection, soft.semantic)


def left_out(work: Workspace) -> Clouds:
    """The items that contrastive learning did not see, after a stage 2 that left them out."""
    variant = work.variant(LEFT_OUT)
    mf, projection, semantic = aligned_parts(variant)
    return _clouds_of(variant, mf, projection, semantic, torch.from_numpy(items_without_contrast(variant)))


def all_clouds(work: Workspace) -> dict[str, Clouds]:
    """With and without contrastive learning, before and after stage 3."""
    return {
        "with CL, before stage 3": after_stage_2(work),
        "without CL, before stage 3": after_stage_2(work.variant(WITHOUT)),
        "with CL, after stage 3": after_stage_3(work),
        "without CL, after stage 3": after_stage_3(work, "no_alignment"),
    }


def alignment_numbers(clouds: dict[str, Clouds]) -> pd.DataFrame:
    """What a t-SNE cannot tell, of the projected vectors against the semantic ones as distilled and as trained.

    Returns:
        Indexed by (clouds, target): `cosine` and `null`, means for the item's own and another's vector; `distance` of
        the centroids of the vectors scaled to length 1; `separability`, a linear classifier's cross-validated AUC at
        telling the clouds apart; `recall`, how often an item's two vectors are among each other's 10 nearest of the
        other cloud, both ways averaged; `chance` of that. Undefined (nan) of fewer than two items.
    """
    lines = {}
    for name, pair in clouds.items():
        if len(pair.items) < 2:
            names = ("cosine", "null", "distance", "separability", "recall", "chance")
            lines |= {(name, target): dict.fromkeys(names, np.nan) for target in ("as distilled", "as trained")}
            continue
        projected = _unit(pair.projected)
        for target, vectors in (("as distilled", _unit(pair.distilled)), ("as trained", _unit(pair.semantic))):
            cosine = cosines_between(projected, vectors)
            lines[name, target] = {
                "cosine": float(np.diag(cosine).mean()),
                "null": float((cosine.sum() - np.trace(cosine)) / (cosine.size - len(cosine))),
                "distance": float(np.linalg.norm(projected.mean(axis=0) - vectors.mean(axis=0))),
                "separability": separability(projected, vectors),
                "recall": hits_at(cosine).mean(),
                "chance": min(1.0, NEIGHBOURS / len(cosine)),
            }
    return pd.DataFrame.from_dict(lines, orient="index")


def separability(left: np.ndarray, right: np.ndarray) -> float:
    """Cross-validated AUC of a logistic regression that tells rows of two clouds apart: 0.5 mixed, 1 apart; nan for
    fewer rows than folds."""
    if len(left) < FOLDS:
        return float("nan")
    rows = np.concatenate([left, right])
    side = np.repeat([0, 1], [len(left), len(right)])
    found = cross_val_predict(LogisticRegression(max_iter=200), rows, side, cv=FOLDS, method="decision_function")
    return float(roc_auc_score(side, found))


def cosines_between(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cosines of all pairs of rows, (n, n)."""
    return _unit(left) @ _unit(right).T


def hits_at(similarity: np.ndarray, k: int = NEIGHBOURS) -> np.ndarray:
    """Whether the partner on the diagonal is among the k most similar of its row, averaged with the same of its
    column: 0, 0.5 or 1 for each of n items. Ties count against it."""
    own = np.diag(similarity)
    of_row = (similarity >= own[:, None]).sum(axis=1) <= k
    of_column = (similarity >= own).sum(axis=0) <= k
    return (of_row.astype(float) + of_column) / 2


def alignment_map(work: Workspace) -> pd.DataFrame:
    """t-SNE of the distilled vectors and the projected ones together, with and without contrastive learning.

    Returns:
        One line per item, cloud ("semantic" or "collaborative") and condition: `condition`, `cloud`, `item`, `x`, `y`.
    """
    return pd.read_parquet(work.run_of(MAP).folder / "map.parquet")


def has_map(work: Workspace) -> bool:
    """Whether the t-SNE is in the store."""
    return work.has(MAP)


def _map(work: Workspace, run: Run) -> None:
    from openTSNE import TSNE  # late: it compiles for a second

    frames = []
    for condition, variant in (("with contrastive learning", work), ("without", work.variant(WITHOUT))):
        clouds = after_stage_2(variant)
        both = np.concatenate([_unit(clouds.distilled), _unit(clouds.projected)])
        perplexity = min(30, (len(both) - 1) / 3)
        print(f"t-SNE of {len(both):,} vectors, {condition}", flush=True)
        at = TSNE(perplexity=perplexity, metric="cosine", random_state=work.config.seed, n_jobs=1).fit(both)
        frame = pd.DataFrame({"condition": condition, "item": np.tile(clouds.items, 2), "x": at[:, 0], "y": at[:, 1]})
        frames.append(frame.assign(cloud=np.repeat(["semantic", "collaborative"], len(clouds.items))))
    run.save_table("map", pd.concat(frames))


MAP = System(
    "alignment_map",
    "t-SNE of the alignment",
    lambda config: {"without": config.stage2},
    _map,
    needs=("sella_collab",),
    uses_backbone=True,
)


def _clouds(
    work: Workspace,
    mf: torch.nn.Module,
    projection: torch.nn.Module,
    semantic: torch.nn.Embedding,
    most: int = MOST_ITEMS,
) -> Clouds:
    _, items = distinct_ids(stage2_rows(work))
    if len(items) > most:
        items = items[np.sort(np.random.default_rng(0).choice(len(items), most, replace=False))]
    return _clouds_of(work, mf, projection, semantic, items)


def _clouds_of(
    work: Workspace, mf: torch.nn.Module, projection: torch.nn.Module, semantic: torch.nn.Embedding, items: torch.Tensor
) -> Clouds:
    distilled = work.with_weights("semantic").tensors("semantic")["semantic"]
    with torch.inference_mode():
        projected = projection(mf.item_features(items.to(semantic.weight.device))).cpu().numpy()
    chosen = items.numpy()
    return Clouds(chosen, projected, semantic.weight.detach().cpu().numpy()[chosen], distilled[chosen])


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
