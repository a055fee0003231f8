"""Load any causal language model, and choose device and dtype once, with the reason.

A backbone is named by a registry name (`smollm2-135m`), a folder, a GGUF file, or a Hugging Face hub id.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.util
import io
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock
from torch import Tensor

from sellarec.backbone import grouped
from sellarec.data import sources
from sellarec.errors import SellarecError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

WEIGHT_FILES = (".safetensors", ".bin", ".json", ".model", ".txt")
"""Of a local folder, the files that decide what a model answers: weights, configuration, tokenizer."""

MIB = 2**20

NF4 = "nf4"
"""Linear weights in 4 bits (QLoRA), everything else and the products in the dtype that "auto" chooses."""


@dataclass(frozen=True)
class Placement:
    """Where and in which number format the backbone computes."""

    device: torch.device
    dtype: torch.dtype
    reason: str
    nf4: bool = False

    @property
    def number_format(self) -> str:
        return NF4 if self.nf4 else str(self.dtype).removeprefix("torch.")

    @property
    def scales_loss(self) -> bool:
        """Whether small gradients vanish in the number format, so that the loss is scaled up for them."""
        return self.dtype == torch.float16

    def cast(self, model: nn.Module) -> nn.Module:
        """The model in the working dtype; one of 4-bit weights was loaded in it."""
        return model if self.nf4 else model.to(self.dtype)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU, on the device; nobody waits for a GPU to take it."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def choose_placement(dtype: str = "auto") -> Placement:
    """The fastest sound choice on this machine; `dtype` other than "auto" is obeyed.

    Raises:
        SellarecError: an unknown dtype, or one that this machine cannot work with.
    """
    check_dtype(dtype)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if dtype == NF4:
        if device.type == "cpu":
            raise SellarecError(f"--dtype {NF4} needs a GPU: on a CPU no gradient passes through 4-bit weights.")
        auto = choose_placement()
        return Placement(device, auto.dtype, f"4-bit weights as asked, products in {auto.reason}", nf4=True)
    if dtype != "auto":
        return Placement(device, DTYPES[dtype], f"{dtype} on {device.type}, as asked")
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        emulated = ", which only emulates it: --dtype float16 may be faster, where a model's values fit into it"
        return Placement(device, torch.bfloat16, f"bfloat16 on cuda: a GPU is there{'' if native else emulated}")
    for feature, there in cpu_features().items():
        if there:
            return Placement(device, torch.bfloat16, f"bfloat16 on cpu: it has {feature}")
    return Placement(device, torch.float32, "float32 on cpu: no bfloat16 instructions")


def check_dtype(dtype: str) -> None:
    if dtype not in ("auto", NF4, *DTYPES):
        raise SellarecError(f"dtype '{dtype}' is not known. Valid: auto, {', '.join(DTYPES)}, {NF4}.")


def cpu_features() -> dict[str, bool]:
    """The CPU's bfloat16 matrix instructions, by name."""
    return {
        "AMX-BF16": bool(torch.cpu._is_amx_tile_supported()),
        "AVX512-BF16": bool(torch.cpu._is_avx512_bf16_supported()),
    }


def load_backbone(
    name: str, placement: Placement, *, on_cpu: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load model and tokenizer from disk or the hub, as `reading_dtype` says; the caller casts after merging adapters.

    Args:
        on_cpu: Leave the model in the CPU's memory, whatever the placement says.

    Raises:
        SellarecError: nothing by that name can be loaded, or 4-bit weights need a package; says how to get it.
    """
    # Imported late: it takes seconds, and a report whose runs are all there never needs it.
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    how = _four_bits(placement) if placement.nf4 else {}
    try:
        folder = _resolve(name)
        tokenizer, config = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)
        how["attn_implementation"] = attention_on(placement.device.type, config)
        dtype = reading_dtype(config, placement.device.type, placement.dtype)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **how)
    except (OSError, ValueError) as error:
        raise _not_loadable(name, error) from error
    model.requires_grad_(False)
    return (model if placement.nf4 or on_cpu else model.to(placement.device)).eval(), tokenizer


def attention_on(device: str, config: PretrainedConfig) -> str:
    """Which implementation of attention is used. In bfloat16 on a CPU the backward pass of transformers' eager one was
    faster than that of SDPA (7.9 against 6.0 rows/s, SmolLM2-135M), and ours is faster still where it fits."""
    if device != "cpu":
        return "sdpa"
    return grouped.register() if grouped.fits(config) else "eager"


def reading_dtype(config: PretrainedConfig, device: str, dtype: torch.dtype) -> torch.dtype:
    """In what weights are read that will be cast to a working dtype: on a CPU float32, so that adapters are merged
    before anything is rounded, unless the model's configuration says that its files hold the working dtype already.
    """
    return dtype if device != "cpu" or config.dtype == dtype else torch.float32


def _four_bits(placement: Placement) -> dict[str, object]:
    """What `from_pretrained` is told so that it reads linear weights as 4 bits."""
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise SellarecError(f'--dtype {NF4} needs bitsandbytes: pip install -e ".[nf4]".')
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=placement.dtype,
    )
    return {"quantization_config": how, "device_map": {"": placement.device}}


def load_shape(name: str) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Configuration and tokenizer, without weights.

    Raises:
        SellarecError: as `load_backbone`.
    """
    from transformers import AutoConfig, AutoTokenizer

    try:
        folder = _resolve(name)
        return AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise _not_loadable(name, error) from error


def of_layers(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """The same shape with so many layers, the first ones."""
    fewer = copy.deepcopy(config)
    fewer.num_hidden_layers = layers
    if getattr(fewer, "layer_types", None):
        fewer.layer_types = fewer.layer_types[:layers]
    return fewer


def _not_loadable(name: str, error: Exception) -> SellarecError:
    return SellarecError(
        f"backbone '{name}' cannot be loaded: {str(error).splitlines()[0]} "
        f"Name a folder, a .gguf file, a hub id you can reach, or one of: {', '.join(sources.MODELS)}."
    )


def _resolve(name: str) -> str:
    """A registry name becomes its fetched folder, a GGUF file its converted folder; all else is left to the hub."""
    if name in sources.MODELS:
        return str(convert_gguf(sources.fetch(name) / sources.MODELS[name].gguf))
    if name.endswith(".gguf"):
        if not Path(name).is_file():
            raise SellarecError(f"backbone '{name}': no such file.")
        return str(convert_gguf(Path(name)))
    return name


def identity(name: str) -> tuple[str, str | None]:
    """What a backbone is called, and what tells its weights apart: the same folder or hub id may hold others tomorrow,
    and the same weights lie elsewhere on another machine. Of a local one that is a fingerprint of its files, of one on
    the hub the revision; registered ones are verified when fetched.

    Raises:
        SellarecError: a path at which there is nothing; a hub id that is neither reached nor in the hub's cache.
    """
    path = Path(name)
    if path.is_absolute() and not path.exists():
        raise SellarecError(f"backbone '{name}': no such file or folder.")
    if name in sources.MODELS:
        return name, None
    if not path.exists():
        return name, _revision(name)
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.suffix in WEIGHT_FILES)
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size}".encode())
        digest.update(_sampled(file))
    return path.name, digest.hexdigest()[:12]


def _revision(hub_id: str) -> str:
    """The commit that a hub id stands for: the hub's cache keeps each in a folder of that name."""
    from transformers.utils import cached_file

    try:
        return Path(cached_file(hub_id, "config.json")).parent.name
    except (OSError, ValueError) as error:
        raise _not_loadable(hub_id, error) from error


def _sampled(file: Path) -> bytes:
    """sha256 of a file of up to 64 MiB, and of 64 blocks spread over a larger one: training moves every weight."""
    digest, size = hashlib.sha256(), file.stat().st_size
    with file.open("rb") as stream:
        for n in range(64):
            if size > 64 * MIB:
                stream.seek((size - MIB) * n // 63)
            digest.update(stream.read(MIB))
    return digest.digest()


def convert_gguf(path: Path) -> Path:
    """Turn a GGUF file into a safetensors folder in the cache, once; returns the folder.

    Reading GGUF takes 20 s and the model it gives cannot be saved or trained; the copy loads in a second and can.
    """
    size = path.stat().st_size
    key = hashlib.sha256(f"{path.resolve()} {size} {path.stat().st_mtime_ns}".encode()).hexdigest()[:12]
    folder = sources.home() / "converted" / f"{path.stem}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if not folder.is_dir():  # it is renamed when it is whole
            _convert(path, folder)
    return folder


def _convert(path: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print(f"Converting {path.name} to safetensors (once, about 20 s) ...", flush=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".converting-") as scratch:
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that cannot be switched off
            loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        settings = {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
        plain = AutoModelForCausalLM.from_config(type(loaded.config)(**settings), dtype=torch.float32)
        plain.load_state_dict(loaded.state_dict())
        target = Path(scratch) / "model"
        plain.save_pretrained(target)
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(target)
        os.replace(target, folder)
