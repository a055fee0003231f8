"""A small MLP over what the soft tokens are made of."""

from __future__ import annotations

from torch import nn

from sellarec.settings import MLPConfig


def new_mlp(inputs: int, config: MLPConfig) -> nn.Module:
    """Inputs (n, inputs) → log-odds (n, 1), float32."""
    hidden = nn.Linear(inputs, config.hidden)
    return nn.Sequential(hidden, nn.GELU(), nn.Dropout(config.dropout), nn.Linear(config.hidden, 1))
