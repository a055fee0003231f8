"""Every setting of the suite, with its meaning beneath it; profiles.py names sets of them.

One frozen dataclass is the command line, the notebooks' overrides and the config file of a run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sellarec.backbone.lora import LoraSettings
from sellarec.collab.fit import CollabConfig, FitConfig
from sellarec.collab.mlp import MLPConfig
from sellarec.data import sources
from sellarec.data.open import DataConfig
from sellarec.errors import SellarecError, above_zero, at_least, below_one, nearest
from sellarec.profiles import PROFILES, profile_on
from sellarec.prompts import PromptConfig
from sellarec.training import TrainConfig


@dataclass(frozen=True)
class EvaluationConfig:
    """Which rows are scored, and how."""

    test_rows: int | None = None
    """Score whole users up to about this many test rows; None scores all. Every system scores the same rows."""
    valid_rows: int | None = 500
    """Validation rows, drawn at random, on which the language-model stages are selected."""
    raw_yes: bool = False
    """Score and select with the raw Yes logit (CoLLM) instead of the log-odds of Yes against No."""

    def __post_init__(self) -> None:
        at_least(self, test_rows=1, valid_rows=1)


@dataclass(frozen=True)
class AnalysisConfig:
    """How much the analyses look at."""

    attention_rows: int = 48
    """Test rows, drawn at random, over which attention and the effects of interventions are averaged."""
    step0_rows: int = 1500
    """Warm test rows, of whole users, that are scored before stage 3 has learnt anything."""

    def __post_init__(self) -> None:
        at_least(self, attention_rows=1, step0_rows=1)


@dataclass(frozen=True)
class Stage3Config(TrainConfig):
    """How stage 3 is trained, and what its soft tokens are made of."""

    embedding_learning_rate: float = 1e-4
    """Peak for embeddings and biases. AdamW moves every entry of a row by several times this each time the row is seen
    (its momentum goes on in later steps), however little the row says, and the entries of a table are small."""
    projection_learning_rate: float = 1e-4
    """Peak for the projections of collaborative and semantic vectors; `learning_rate` is that of the records'. A few
    thousand rows cannot steer half a million weights, and at a high rate these wander."""
    records: bool = True
    """Ours: add to the user and item token how much of their training ratings were likes, and how many there were."""
    facts: bool = True
    """Ours: add genres and year to the warm token."""
    fact_norm: float = 1.0
    """Mean norm at which projected facts start, in norms of a token embedding; records start at 1."""
    vector_norm: float = 0.25
    """Mean norm at which projected collaborative and semantic vectors start, in norms of a token embedding."""
    tokens: str = "user,item,warm"
    """The soft tokens that the prompt holds; a token that is left out takes its sentence with it."""
    projection: str = "aligned"
    """"aligned" starts from stage 2's projection (paper), "random" from a fresh one."""
    order: str = "together"
    """"together" (paper), or one group of tokens after the other, the first one frozen then: "warm,user+item" or
    "user+item,warm"."""


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

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, layers=0)


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

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, history=1, blocks=1, heads=1)
        below_one(self, "dropout")
        if self.dim % self.heads:
            raise SellarecError(f"sasrec.dim is {self.dim}; it must be a multiple of sasrec.heads, {self.heads}.")


@dataclass(frozen=True)
class DINConfig(BaselineConfig):
    """DIN."""

    learning_rate: float = 1e-4
    """Adam's step size."""
    history: int = 10
    """How many of the latest liked items are read."""
    dropout: float = 0.2
    """Dropout after each hidden layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, history=1, batch=2)  # batch normalisation needs two rows
        below_one(self, "dropout")


@dataclass(frozen=True)
class CTRLConfig:
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

    def __post_init__(self) -> None:
        at_least(self, width=1, spaces=1, epochs=1, batch=2)  # batch normalisation needs two rows
        above_zero(self, "temperature", "learning_rate")


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
    code: str = "dotted"
    """"dotted" writes groups of eight bits as decimals, like an IP address; "bits" writes ones and zeros."""


@dataclass(frozen=True)
class Config:
    """All settings of one run."""

    dataset: str = "ml-100k"
    """A registered dataset (ml-100k, ml-1m, amazon-book), or the path of an own parquet or CSV table."""
    backbone: str = "smollm2-135m"
    """A registered backbone, a folder, a .gguf file, or a Hugging Face hub id."""
    seed: int = 0
    """Seeds sampling, initialisation and batch order."""
    dtype: str = "auto"
    """auto, bfloat16, float32, or nf4: weights in 4 bits (QLoRA; needs bitsandbytes), products as with auto."""
    split: bool = False
    """Several processes at one run share the frozen weights (FSDP) instead of each holding all: for a backbone that
    leaves one GPU no room."""
    prefix_gib: float = 50.0
    """On a CPU: GiB of disk in the run store, and at most 3/4 of what is free, for the prefix cache: keys and values
    of what prompts share, which stage 3 and its variants then need not compute again. 0 keeps none; results then differ
    as after another rounding.
    """
    data: DataConfig = field(default_factory=DataConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    stage1: TrainConfig = field(default_factory=lambda: TrainConfig(batch=16))
    stage2: CollabConfig = field(default_factory=CollabConfig)
    stage3: Stage3Config = field(default_factory=Stage3Config)
    mlp: MLPConfig = field(default_factory=MLPConfig)
    mf: MFConfig = field(default_factory=MFConfig)
    lightgcn: LightGCNConfig = field(default_factory=LightGCNConfig)
    sasrec: SASRecConfig = field(default_factory=SASRecConfig)
    din: DINConfig = field(default_factory=DINConfig)
    ctrl: CTRLConfig = field(default_factory=CTRLConfig)
    binllm: BinLLMConfig = field(default_factory=BinLLMConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)

    def __post_init__(self) -> None:
        at_least(self, seed=0, prefix_gib=0)


def make_config(profile: str = "quick", dataset: str = "ml-100k", **changes: Any) -> Config:
    """A profile's settings for a dataset, with further changes by dotted name.

    >>> make_config("smoke", "ml-1m", **{"stage3.rows": 128}).stage3.rows
    128

    Raises:
        SellarecError: an unknown profile, name or value type; the nearest valid one is named.
    """
    return located(change_config(Config(), {"dataset": dataset, **profile_on(dataset, profile), **changes}))


def located(config: Config) -> Config:
    """The configuration with dataset and backbone as absolute paths if they are files: notebooks run elsewhere."""
    named = {"dataset": sources.DATASETS, "backbone": sources.MODELS}
    paths = {k: Path(getattr(config, k)) for k, known in named.items() if getattr(config, k) not in known}
    return dataclasses.replace(config, **{k: str(p.resolve()) for k, p in paths.items() if p.exists()})


def change_config(config: Config, changes: Mapping[str, Any]) -> Config:
    """The configuration with some settings changed, by dotted name.

    Raises:
        SellarecError: an unknown name or value type; the nearest valid one is named.
    """
    for name, value in changes.items():
        config = _replace(config, name, name.split("."), value)
    return config


def settings_of(config: Any, prefix: str = "") -> dict[str, Any]:
    """All settings by dotted name."""
    out: dict[str, Any] = {}
    for each in dataclasses.fields(config):
        value, name = getattr(config, each.name), prefix + each.name
        out |= settings_of(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}
    return out


def changes_from(profile: str, config: Config) -> dict[str, Any]:
    """The settings in which a configuration differs from a profile on its dataset, by dotted name."""
    default = settings_of(make_config(profile, config.dataset))
    return {name: value for name, value in settings_of(config).items() if value != default[name]}


def as_options(changes: Mapping[str, Any]) -> list[str]:
    """Settings by dotted name as words of the command line.

    >>> as_options({"stage1.rows": 64, "stage3.records": False})
    ['--stage1.rows', '64', '--stage3.no-records']
    """
    words = []
    for name, value in changes.items():
        group, dot, leaf = name.rpartition(".")
        words.append(f"--{group}{dot}{'no-' if value is False else ''}{leaf}".replace("_", "-"))
        words += [] if isinstance(value, bool) else [str(value)]
    return words


def words_of(config: Config) -> list[str]:
    """Options that give this configuration again, from the profile that needs the fewest."""
    changes = {profile: changes_from(profile, config) for profile in PROFILES}
    profile = min(changes, key=lambda p: (len(changes[p]), p != "quick"))
    named = {"dataset": config.dataset, "backbone": config.backbone, "profile": profile}
    return as_options(named | {k: v for k, v in changes[profile].items() if k not in named})


def _replace(config: Any, full_name: str, path: list[str], value: Any) -> Any:
    fields = {f.name: f for f in dataclasses.fields(config)}
    head, *rest = path
    if head not in fields:
        raise SellarecError(f"setting '{full_name}' is not known. {nearest(head, fields)}")
    current = getattr(config, head)
    if dataclasses.is_dataclass(current):
        if not rest:
            raise SellarecError(
                f"setting '{full_name}' is a group. {nearest('', [f.name for f in dataclasses.fields(current)])}"
            )
        value = _replace(current, full_name, rest, value)
    elif rest:
        raise SellarecError(f"setting '{full_name}': '{head}' has no parts.")
    else:
        value = _coerced(full_name, value, str(fields[head].type))
    return dataclasses.replace(config, **{head: value})


def _coerced(name: str, value: Any, kind: str) -> Any:
    """Check a value against the field's annotation; whole numbers serve as floats."""
    if value is None and "None" in kind:
        return None
    wanted = {"int": int, "float": float, "bool": bool, "str": str}[kind.split(" ")[0]]
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise SellarecError(f"setting '{name}' needs {kind}, not {value!r}.")
    return value
