"""Low-rank adapters: add them, save them, and merge them into a backbone that stays frozen afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from sellarec.backbone.language_model import LanguageModel
from sellarec.errors import SellarecError


@dataclass(frozen=True)
class LoraSettings:
    """The adapter of stage 1."""

    rank: int = 8
    """Rank of the update (protocol: 8); 0 leaves the backbone as it is."""
    alpha: int = 16
    """Scale; the update is multiplied by alpha / rank."""
    dropout: float = 0.05
    """Dropout before the adapter."""
    targets: str = "all-linear"
    """Comma-separated linear modules, or "all-linear". CoLLM adapts q_proj,v_proj; SeLLa-Rec's code adapts all."""


def add_lora(lm: LanguageModel, settings: LoraSettings, seed: int) -> LanguageModel:
    """The language model with a fresh trainable adapter; the base weights stay frozen.

    The base is cast to the working dtype; adapter weights stay float32, so that small updates are not lost.
    """
    from peft import LoraConfig, get_peft_model  # late, see loading.py

    torch.manual_seed(seed)
    targets = settings.targets if settings.targets == "all-linear" else settings.targets.split(",")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(lm.model.to(lm.placement.dtype), config)
        return lm.with_model(adapted, mixed=lm.placement.dtype != torch.float32)
    except ValueError as error:
        raise SellarecError(f"lora.targets '{settings.targets}' does not fit this backbone: {error}") from error


def resume_lora(lm: LanguageModel, folder: Path) -> LanguageModel:
    """The language model with a saved adapter that is trained further; otherwise as `add_lora`."""
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(lm.model.to(lm.placement.dtype), folder, is_trainable=True)
    return lm.with_model(adapted, mixed=lm.placement.dtype != torch.float32)


def save_lora(lm: LanguageModel, folder: Path) -> None:
    """Write the adapter as safetensors, without any copy of the embeddings."""
    lm.model.save_pretrained(folder, save_embedding_layers=False)


def merge_lora(lm: LanguageModel, folder: Path) -> LanguageModel:
    """Load a saved adapter, fold it into the float32 weights, and cast to the working dtype.

    Raises:
        SellarecError: the adapter changes nothing, which means that it did not load.
    """
    from peft import PeftModel

    model = PeftModel.from_pretrained(lm.model, folder)
    if not any(p.abs().sum() > 0 for n, p in model.named_parameters() if "lora_B" in n):
        raise SellarecError(f"{folder}: the adapter's B matrices are zero or missing; it would change nothing.")
    merged = model.merge_and_unload()
    merged.requires_grad_(False)
    return lm.with_model(merged.to(lm.placement.dtype).eval())
