"""A backbone of a given shape with random weights: what a large model costs can be measured without having it.

python benchmarks/shaped.py FOLDER --like qwen2-7b
sellarec bench --backbone FOLDER --no-plain
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from transformers import AutoModelForCausalLM, Qwen2Config

from sellarec.backbone.language_model import LanguageModel, wrap_language_model
from sellarec.backbone.loading import attention_on, choose_placement, load_shape, of_layers

SHAPES = {
    "qwen2-7b": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "tiny": {
        "vocab_size": 50000,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
"""Qwen2-7B's numbers as its configuration publishes them; and one to try the scripts with."""


def shallow(backbone: str, dtype: str) -> LanguageModel:
    """Two random layers of the backbone's shape with its tokenizer."""
    config, tokenizer = load_shape(backbone)
    placement = choose_placement(dtype)
    attention = attention_on(placement.device.type, config)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(of_layers(config, 2), dtype=placement.dtype, attn_implementation=attention)
    return wrap_language_model(model.requires_grad_(False).to(placement.device).eval(), tokenizer, placement)


@dataclass(frozen=True)
class Options:
    """Write a backbone of random weights in bfloat16."""

    folder: tyro.conf.Positional[Path]
    """Where to; nothing is done if it is there."""
    like: Literal["qwen2-7b", "tiny"] = "qwen2-7b"
    """Whose shape."""
    tokenizer: str = "smollm2-135m"
    """The backbone whose tokenizer is taken."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if (options.folder / "config.json").is_file():
        return
    _, tokenizer = load_shape(options.tokenizer)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # a GPU draws billions of numbers in a second
        model = AutoModelForCausalLM.from_config(Qwen2Config(**SHAPES[options.like]), dtype=torch.bfloat16)
    fresh = options.folder.with_name(f".writing-{options.folder.name}")  # a kill must not leave half a backbone
    shutil.rmtree(fresh, ignore_errors=True)
    model.save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    fresh.rename(options.folder)


if __name__ == "__main__":
    main()
