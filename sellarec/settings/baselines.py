"""Settings of the baselines, as CoLLM and their papers have them, and of the MLP that stands beside SeLLa-Rec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sellarec.errors import SellarecError, nearest
from sellarec.settings.checks import Settings, above_zero, at_least, late, share
from sellarec.settings.stages import FitConfig

MLP_INPUTS = ("vectors", "semantic", "score", "records", "facts")


@dataclass(frozen=True)
class BaselineConfig(FitConfig):
    """How CoLLM trains the baselines of its tables on MovieLens-1M."""

    epochs: int = 5000
    """Passes over the training part, at most."""
    patience: int = 100
    """Stop after this many epochs without a better validation AUC."""


@dataclass(frozen=True)
class MFConfig(BaselineConfig):
    """Matrix factorisation as published."""

    dim: int = 256
    """Length of user and item embeddings."""
    init_std: float = 0.1
    """Standard deviation of the initial embeddings; CoLLM's start at 1, where some seeds stay at chance."""
    bias: bool = False
    """User, item and global biases."""


@dataclass(frozen=True)
class LightGCNConfig(BaselineConfig):
    """LightGCN."""

    init_std: float = 0.1
    """Standard deviation of the initial embeddings."""
    learning_rate: float = 1e-2
    """Adam's step size."""
    layers: int = 2
    """How often neighbours are averaged."""

    def check(self, group: str) -> None:
        super().check(group)
        at_least(self, group, layers=0)


@dataclass(frozen=True)
class SASRecConfig(BaselineConfig):
    """SASRec."""

    init_std: float = 0.1
    """Standard deviation of the initial embeddings; CoLLM's start at 1."""
    learning_rate: float = 1e-2
    """Adam's step size."""
    weight_decay: float = 1e-2
    """Adam's coupled L2 on all parameters of the model."""
    history: int = 25
    """How many of the latest liked items are read."""
    blocks: int = 2
    """Transformer blocks."""
    heads: int = 1
    """Attention heads."""
    dropout: float = 0.2
    """Dropout after embeddings, in attention and in the blocks' networks."""

    def check(self, group: str) -> None:
        super().check(group)
        at_least(self, group, history=1, blocks=1, heads=1)
        share(self, group, "dropout")
        if self.dim % self.heads:
            raise SellarecError(f"{group}dim is {self.dim}; it must be a multiple of {group}heads, {self.heads}.")


@dataclass(frozen=True)
class DINConfig(BaselineConfig):
    """DIN."""

    learning_rate: float = 1e-4
    """Adam's step size."""
    history: int = 10
    """How many of the latest liked items are read."""
    dropout: float = 0.2
    """Dropout after each hidden layer."""

    def check(self, group: str) -> None:
        super().check(group)
        at_least(self, group, history=1, batch=2)  # batch normalisation needs two rows
        share(self, group, "dropout")


@dataclass(frozen=True)
class CTRLConfig(Settings):
    """CTRL's alignment of DIN with the language model; DIN's own settings are `din`."""

    width: int = 128
    """Length of the vectors that both sides are projected to."""
    spaces: int = 4
    """Into how many parts a vector is cut, each compared with the other side's nearest part; must divide `width`."""
    temperature: float = 0.7
    """Of the contrastive loss."""
    epochs: int = 20
    """Passes over the encoded rows."""
    batch: int = 512
    """Rows that are told apart at once."""
    learning_rate: float = 1e-3
    """Adam's step size."""

    def check(self, group: str) -> None:
        at_least(self, group, width=1, spaces=1, epochs=1, batch=2)  # batch normalisation needs two rows
        above_zero(self, group, "temperature", "learning_rate")
        if self.width % self.spaces:
            raise SellarecError(f"{group}spaces is {self.spaces}; it must divide {group}width, {self.width}.")


@dataclass(frozen=True)
class PersonPromptConfig(Settings):
    """PersonPrompt; all else of its training is `stage3`."""

    learning_rate: float = 1e-2
    """AdamW's step size, CoLLM's for MovieLens-1M: a hundred times what `quick` gives SeLLa-Rec's tables."""

    def check(self, group: str) -> None:
        above_zero(self, group, "learning_rate")


@dataclass(frozen=True)
class BinLLMConfig(BaselineConfig):
    """BinLLM's binary matrix factorisation, and how its codes are written into the prompt."""

    dim: int = 32
    """Length of the embeddings, and bits of a code."""
    learning_rate: float = 1e-2
    """Adam's step size."""
    weight_decay: float = 1e-3
    """Adam's coupled L2 on all parameters of the model."""
    init_std: float = 0.1
    """Standard deviation of the initial embeddings."""
    binary_growth: float = 5e-4
    """By how much the share of training entries that are read as bits rises with each epoch, from 0."""
    code: Literal["dotted", "bits"] = "dotted"
    """"dotted" writes groups of eight bits as decimals, like an IP address; "bits" writes ones and zeros."""
    hold_out: bool = late(False)
    """Leave stage 3's rows out of the factorisation: beside our counts its codes give their labels away."""

    def check(self, group: str) -> None:
        super().check(group)
        at_least(self, group, binary_growth=0)
        if self.code == "dotted" and self.dim % 8:
            raise SellarecError(
                f"{group}dim is {self.dim}; the code 'dotted' writes eight bits at a time: use 8, 16, …"
            )


@dataclass(frozen=True)
class MLPConfig(Settings):
    """The MLP that stands where SeLLa-Rec has a language model."""

    inputs: str = ",".join(MLP_INPUTS)
    """What it reads: collaborative vectors, the item's semantic vector, stage 2's log-odds, how much user and item are
    liked, genres and year. Records and facts only if the tokens have them (`stage3`)."""
    start: int = 0
    """Another one has other initial weights and another order of rows, over the same stages 1 and 2."""
    hidden: int = late(256)
    """Width of its hidden layer."""
    dropout: float = late(0.2)
    """Dropout after it."""
    epochs: int = late(20)
    """Passes over stage 3's rows; the one that is best on the validation part is kept."""
    batch: int = late(256)
    """Rows per step."""
    learning_rate: float = late(1e-3)
    """AdamW's step size."""
    weight_decay: float = late(1e-2)
    """AdamW's decoupled weight decay."""

    def check(self, group: str) -> None:
        at_least(self, group, hidden=1, epochs=1, batch=1, weight_decay=0)
        above_zero(self, group, "learning_rate")
        share(self, group, "dropout")
        for name in self.input_names:
            if name not in MLP_INPUTS:
                raise SellarecError(
                    f"{group}inputs '{self.inputs}': '{name}' is not known. {nearest(name, MLP_INPUTS)}"
                )

    @property
    def input_names(self) -> list[str]:
        return [name.strip() for name in self.inputs.split(",")]
