"""Every setting of the suite, with its meaning beneath it.

One frozen dataclass is the command line, the notebooks' overrides and the config file of a run. A setting is named
"stage1.rows"; profiles.py names sets of changes, and config.py makes them. No torch here: `--help` should not wait.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from sellarec.settings.baselines import (
    MLP_INPUTS,
    BaselineConfig,
    BinLLMConfig,
    CTRLConfig,
    DINConfig,
    LightGCNConfig,
    MFConfig,
    MLPConfig,
    PersonPromptConfig,
    SASRecConfig,
)
from sellarec.settings.checks import Settings, at_least, at_most
from sellarec.settings.stages import (
    AnalysisConfig,
    CollabConfig,
    DataConfig,
    EvaluationConfig,
    FitConfig,
    LoraSettings,
    PromptConfig,
    Stage3Config,
    TrainConfig,
)

__all__ = [
    "MLP_INPUTS",
    "AnalysisConfig",
    "BaselineConfig",
    "BinLLMConfig",
    "CTRLConfig",
    "CollabConfig",
    "Config",
    "DINConfig",
    "DataConfig",
    "EvaluationConfig",
    "FitConfig",
    "LightGCNConfig",
    "LoraSettings",
    "MFConfig",
    "MLPConfig",
    "PersonPromptConfig",
    "PromptConfig",
    "SASRecConfig",
    "Settings",
    "Stage3Config",
    "TrainConfig",
]


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
    """auto, bfloat16, float32, float16, or nf4: weights in 4 bits (QLoRA; needs bitsandbytes), products as with auto.
    float16 is for GPUs: nearer to float32 than bfloat16 is, but some families of models overflow in it."""
    split: bool = False
    """Several processes at one run share the frozen weights (FSDP) instead of each holding all: for a backbone that
    leaves one GPU no room."""
    prefix_gib: float | None = None
    """GiB for the prefix cache: keys and values of what prompts share, which stage 3 then need not compute again. On a
    CPU they stay in the run store, for its variants too: None takes 50 there, and at most 3/4 of what is free. A GPU
    holds them in its memory until the training is over: None takes half of what batches leave free. 0 keeps none;
    results then differ as after another rounding.
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
    person_prompt: PersonPromptConfig = field(default_factory=PersonPromptConfig)
    binllm: BinLLMConfig = field(default_factory=BinLLMConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)

    @property
    def prefix_gib_on_disk(self) -> float:
        return 50.0 if self.prefix_gib is None else self.prefix_gib

    def __post_init__(self) -> None:
        at_least(self, "", seed=0, prefix_gib=0)
        at_most(self, "", seed=2**32 - 1)
        for each in dataclasses.fields(self):
            if isinstance(group := getattr(self, each.name), Settings):
                group.check(f"{each.name}.")
