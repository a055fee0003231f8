"""A small MLP over what the soft tokens are made of, and its training."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from sellarec.checks import check_finite
from sellarec.evaluation import auc
from sellarec.settings import MLPConfig


def new_mlp(inputs: int, config: MLPConfig) -> nn.Module:
    """Inputs (n, inputs) → log-odds (n, 1), float32."""
    hidden = nn.Linear(inputs, config.hidden)
    return nn.Sequential(hidden, nn.GELU(), nn.Dropout(config.dropout), nn.Linear(config.hidden, 1))


def fit_mlp(
    train: tuple[Tensor, Tensor], valid: tuple[Tensor, np.ndarray], config: MLPConfig, log: Callable[[dict], None]
) -> dict[str, Tensor]:
    """Train a new one; the state of the epoch that is best on the validation rows.

    Args:
        train, valid: Inputs (n, inputs), float32, and labels (n,).
        log: Called with one dict per epoch.

    Raises:
        SellarecError: scores are not finite.
    """
    (x, y), (valid_x, valid_y) = train, valid
    network = new_mlp(x.shape[1], config)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    best, state = -1.0, {}
    for epoch in range(config.epochs):
        network.train()
        for batch in torch.randperm(len(x)).split(config.batch):
            loss = binary_cross_entropy_with_logits(network(x[batch])[:, 0], y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            said = network(valid_x)[:, 0].numpy()
        check_finite(said, f"MLP, scores of epoch {epoch}", "lower mlp.learning_rate")
        score = auc(valid_y, said)
        log({"epoch": epoch, "valid_auc": score})
        if score > best or not state:
            best, state = score, copy.deepcopy(network.state_dict())
    return state
