"""CTRL's first step: DIN learns to recognise how a language model reads its row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from sellarec.checks import check_finite
from sellarec.collab.alignment import contrast, fine_grained_similarity
from sellarec.collab.din import DIN
from sellarec.collab.fit import batches
from sellarec.progress import Progress
from sellarec.settings import CTRLConfig


def align_with_encodings(
    model: DIN,
    rows: tuple[Tensor, ...],
    encodings: Tensor,
    config: CTRLConfig,
    seed: int,
    log: Callable[[dict], None],
) -> None:
    """Train DIN in place, and two projections that are then thrown away, to match states and encodings of its rows.

    Args:
        rows: What DIN reads of the rows, (n, ...) each.
        encodings: Of the same rows, (n, d_L).
        log: Called with one dict per epoch.

    Raises:
        SellarecError: a loss is not finite.
    """
    of_state, of_text = (nn.Linear(n, config.width) for n in (model.head[-1].in_features, encodings.shape[1]))
    parameters = [p for module in (model, of_state, of_text) for p in module.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate)
    random = torch.Generator().manual_seed(seed)
    model.train()
    with Progress("CTRL, alignment", config.epochs, "epochs") as progress:
        for epoch in range(config.epochs):
            losses = []
            for batch in batches(torch.randperm(len(encodings), generator=random), config.batch):
                states = of_state(model.states(*(t[batch] for t in rows)))
                similarity = fine_grained_similarity(states, of_text(encodings[batch]), config.spaces)
                loss = contrast(similarity / config.temperature)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            mean = float(np.mean(losses))
            check_finite(mean, f"CTRL, alignment, loss of epoch {epoch}", "lower ctrl.learning_rate")
            log({"alignment_epoch": epoch, "alignment_loss": mean})
            progress.advance(1, f"loss {mean:.3f}")
