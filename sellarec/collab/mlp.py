"""A small MLP over what the soft tokens are made of."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from sellarec.errors import SellarecError, nearest

INPUTS = ("vectors", "semantic", "score", "records", "facts")

HIDDEN = 256


@dataclass(frozen=True)
class MLPConfig:
    """The MLP that stands where SeLLa-Rec has a language model."""

    inputs: str = ",".join(INPUTS)
    """What it reads: collaborative vectors, the item's semantic vector, stage 2's log-odds, how much user and item are
    liked, genres and year. Records and facts only if the tokens have them (`stage3`)."""
    start: int = 0
    """Another one has other initial weights and another order of rows, over the same stages 1 and 2."""

    def __post_init__(self) -> None:
        for name in self.inputs.split(","):
            if name not in INPUTS:
                raise SellarecError(f"mlp.inputs '{self.inputs}': '{name}' is not known. {nearest(name, INPUTS)}")


def new_mlp(inputs: int) -> nn.Module:
    """Inputs (n, inputs) → log-odds (n, 1), float32."""
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.GELU(), nn.Dropout(0.2), nn.Linear(HIDDEN, 1))
