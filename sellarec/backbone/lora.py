"""Low-rank adapters: add them, save them, and merge them into a backbone that stays frozen afterwards."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from sellarec.backbone.language_model import LanguageModel
from sellarec.distributed import is_main
from sellarec.errors import SellarecError, nearest
from sellarec.settings import LoraSettings

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

# peft asks transformers for an attribute under its old name.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
# It sees for itself that GPT-2 keeps weights transposed, and says so for each.
warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False but the target module is `Conv1D`")


def lora_config(settings: LoraSettings) -> LoraConfig:
    """The same settings as peft knows them."""
    from peft import LoraConfig  # late, see loading.py

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.targets if settings.targets == "all-linear" else _names(settings),
        task_type="CAUSAL_LM",
    )


def _names(settings: LoraSettings) -> list[str]:
    return [name.strip() for name in settings.targets.split(",")]


def _check_targets(lm: LanguageModel, settings: LoraSettings) -> None:
    """peft itself takes what it finds, and says nothing of the rest."""
    linear = [name for name, module in lm.model.named_modules() if isinstance(module, nn.Linear)]
    for target in _names(settings) if settings.targets != "all-linear" else ():
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            last = dict.fromkeys(name.rsplit(".", 1)[-1] for name in linear)
            raise SellarecError(f"lora.targets: this backbone has no linear '{target}'. {nearest(target, last)}")


def add_lora(lm: LanguageModel, settings: LoraSettings, seed: int) -> LanguageModel:
    """The language model with a fresh trainable adapter; the base weights stay frozen.

    The base is cast to the working dtype; adapter weights stay float32, so that small updates are not lost.

    Raises:
        SellarecError: the backbone has no linear module of a name in `settings.targets`.
    """
    from peft import get_peft_model

    _check_targets(lm, settings)
    torch.manual_seed(seed)
    adapted = get_peft_model(lm.placement.cast(lm.model), lora_config(settings))
    return _trainable(lm, adapted, settings.checkpointing)


def _trainable(lm: LanguageModel, adapted: PeftModel, checkpointing: bool) -> LanguageModel:
    from peft.tuners.lora import LoraLayer

    if checkpointing:
        adapted.gradient_checkpointing_enable({"use_reentrant": False})  # only this kind lets gradients reach adapters
    mixed = lm.placement.dtype != torch.float32
    for module in adapted.modules() if mixed else ():
        # peft would cast to float32, and autocast back at once; between them only dropout would know the difference
        if isinstance(module, LoraLayer) and all(isinstance(d, nn.Identity) for d in module.lora_dropout.values()):
            module.cast_input_dtype_enabled = False
    return lm.with_model(adapted, mixed=mixed)


def resume_lora(lm: LanguageModel, folder: Path, *, checkpointing: bool = False) -> LanguageModel:
    """The language model with a saved adapter that is trained further; otherwise as `add_lora`."""
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(lm.placement.cast(lm.model), folder, is_trainable=True)
    return _trainable(lm, adapted, checkpointing)


def save_lora(lm: LanguageModel, folder: Path) -> None:
    """Write the adapter as safetensors, without any copy of the embeddings, and without the path of the backbone."""
    if is_main():
        for config in lm.model.peft_config.values():
            config.base_model_name_or_path = Path(config.base_model_name_or_path or "").name
        lm.model.save_pretrained(folder, save_embedding_layers=False)


def merge_lora(lm: LanguageModel, folder: Path) -> LanguageModel:
    """Load a saved adapter, fold it into the weights, and cast to the working dtype.

    Each sum is taken in float32 and rounded once. Beside 4-bit weights, which could not hold it, the adapter stays as
    it is.

    Raises:
        SellarecError: the adapter changes nothing, which means that it did not load.
    """
    from peft import PeftModel

    model = PeftModel.from_pretrained(lm.model, folder)
    if not any(p.abs().sum() > 0 for n, p in model.named_parameters() if "lora_B" in n):
        raise SellarecError(f"{folder}: the adapter's B matrices are zero or missing; it would change nothing.")
    if lm.placement.nf4:
        return lm.with_model(model.requires_grad_(False).eval(), mixed=lm.placement.dtype != torch.float32)
    merged = model.merge_and_unload()
    merged.requires_grad_(False)
    return lm.with_model(lm.placement.cast(merged).eval())
