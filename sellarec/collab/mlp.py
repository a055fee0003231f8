"""A small MLP over what the soft tokens are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from sellarec.errors import SellarecError, at_least, below_one, nearest

INPUTS = ("vectors", "semantic", "score", "records", "facts")


def _late(default: Any) -> Any:
    return field(default=default, metadata={"late": True})


@dataclass(frozen=True)
class MLPConfig:
    """The MLP that stands where SeLLa-Rec has a language model."""

    inputs: str = ",".join(INPUTS)
    """What it reads: collaborative vectors, the item's semantic vector, stage 2's log-odds, how much user and item are
    liked, genres and year. Records and facts only if the tokens have them (`stage3`)."""
    start: int = 0
    """Another one has other initial weights and another order of rows, over the same stages 1 and 2."""
    hidden: int = _late(256)
    """Width of its hidden layer."""
    dropout: float = _late(0.2)
    """Dropout after it."""
    epochs: int = _late(20)
    """Passes over stage 3's rows; the one that is best on the validation part is kept."""
    batch: int = _late(256)
    """Rows per step."""
    learning_rate: float = _late(1e-3)
    """AdamW's step size."""
    weight_decay: float = _late(1e-2)
    """AdamW's decoupled weight decay."""

    def __post_init__(self) -> None:
        at_least(self, hidden=1, epochs=1, batch=1)
        below_one(self, "dropout")
        for name in self.inputs.split(","):
            if name not in INPUTS:
                raise SellarecError(f"mlp.inputs '{self.inputs}': '{name}' is not known. {nearest(name, INPUTS)}")


def new_mlp(inputs: int, config: MLPConfig) -> nn.Module:
    """Inputs (n, inputs) → log-odds (n, 1), float32."""
    hidden = nn.Linear(inputs, config.hidden)
    return nn.Sequential(hidden, nn.GELU(), nn.Dropout(config.dropout), nn.Linear(config.hidden, 1))
