"""How what a model says becomes a score: a probability of a like."""

from __future__ import annotations

import numpy as np
from scipy.special import expit


def probabilities(found: np.ndarray, raw_yes: bool) -> np.ndarray:
    """What a language model's scores become, in [0, 1]. The raw logit of Yes is no log-odds: only its order means
    something, and it is mapped so slowly that logits of 20 or 200 are told apart."""
    found = found.astype(np.float64)
    return 0.5 + 0.5 * found / (20 + np.abs(found)) if raw_yes else sigmoid(found)


def as_probability(output: np.ndarray, loss: str) -> np.ndarray:
    """What a model says, as a probability: cross-entropy fits log-odds, squared error the labels themselves."""
    return into_unit_interval(output.astype(np.float64)) if loss == "mse" else sigmoid(output)


def into_unit_interval(rate: np.ndarray, margin: float = 0.05) -> np.ndarray:
    """Squash rates that lie outside [margin, 1 - margin] into (0, 1), keeping their order; others stay as they are."""
    near = np.minimum(rate, 1 - rate)  # distance from the nearer end, negative beyond it
    squashed = np.where(near < margin, margin * np.exp(np.minimum(near, margin) / margin - 1), near)
    return np.where(rate < 0.5, squashed, 1 - squashed)


def scored_by(loss: str) -> dict:
    """What tells runs of squared error from older ones, whose outputs were cut at 0 and 1; keys of others stay."""
    return {"scores": 3} if loss == "mse" else {}


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Log-odds → probability, float64: in float32 all log-odds above 17 would be 1."""
    return expit(x.astype(np.float64))
