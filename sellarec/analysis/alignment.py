"""How well the projected collaborative item vectors and the semantic vectors agree."""

from __future__ import annotations

import numpy as np
import torch

from sellarec.systems.base import Workspace
from sellarec.systems.mf import distinct_ids
from sellarec.systems.sella_collab import aligned_parts, stage2_rows


def alignment_cosines(work: Workspace, seed: int = 0) -> dict[str, np.ndarray]:
    """Cosines of each training item's projected vector, shape (n_items_in_train,) each.

    Returns:
        "own, trained": to the semantic vector as stage 2 left it; "own, as distilled": to the vector that the
        language model gave; "another item's": to a random other item's trained vector, the null.
    """
    mf, projection, semantic = aligned_parts(work)
    _, items = distinct_ids(stage2_rows(work))
    distilled = torch.from_numpy(work.run("semantic").tensors("semantic")["semantic"])
    shift = int(np.random.default_rng(seed).integers(1, len(items)))
    with torch.inference_mode():
        projected = projection(mf.item_features(items))
        targets = {
            "own, trained": semantic.weight[items],
            "own, as distilled": distilled[items],
            "another item's": semantic.weight[items.roll(shift)],
        }
        return {k: torch.cosine_similarity(projected, v).numpy() for k, v in targets.items()}
