"""Small real things that the tests share: a planted dataset, two tiny language models, an empty cache folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from sellarec.data import sources

USERS_CACHE = sources.home()
"""Where tests find what the user has fetched."""

ML_1M = (Path(__file__).resolve().parents[2] / "shared" / "data" / "ml-1m", USERS_CACHE / "sources" / "ml-1m")
"""Where MovieLens-1M may lie."""

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """No test touches the user's cache."""
    os.environ["SELLAREC_HOME"] = str(tmp_path_factory.mktemp("home"))
    os.environ["IPYTHONDIR"] = str(tmp_path_factory.mktemp("ipython"))
    return Path(os.environ["SELLAREC_HOME"])


@pytest.fixture(scope="session")
def ml_1m_folder():
    for folder in ML_1M:
        if (folder / "ratings.dat").is_file():
            return folder
    pytest.skip("MovieLens-1M is not there, and its licence forbids shipping it; get it with: sellarec fetch ml-1m")


@pytest.fixture(scope="session")
def planted_table(tmp_path_factory):
    """An own dataset with a known answer: even users like even items, odd users like odd ones, 10 % noise."""
    random = np.random.default_rng(7)
    rows = []
    for user in range(24):
        late = user >= 20  # four users appear in the last part only: cold
        for n, item in enumerate(random.permutation(30)[:22]):
            likes = (user % 2 == item % 2) ^ (random.random() < 0.1)
            day = 860 + n * 5 if late else n * 45 + user
            rows.append(
                (user, item, f"Film {item}, The ({1960 + item})", 5 if likes else 2, 1_000_000_000 + day * 86400)
            )
    table = pd.DataFrame(rows, columns=["user", "item", "title", "rating", "timestamp"])
    table["genres"] = np.where(table["item"] % 2 == 0, "Drama|War", "Comedy")
    path = tmp_path_factory.mktemp("table") / "planted.csv"
    table.to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE that knows Yes and No as single words."""
    corpus = ["Answer: Yes", "Answer: No", "The user rated these movies highly", "Will the user like the movie"] * 20
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<eos>", "<spare_1>", "<spare_2>", "<spare_3>"]
    raw.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<eos>", pad_token="<eos>", additional_special_tokens=special[1:]
    )


def _tiny(kind: str, vocabulary: int):
    shape = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
    }
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True))
    if kind in ("gpt2", "gpt_neox"):
        rest = {"num_key_value_heads", "intermediate_size"} if kind == "gpt2" else {"num_key_value_heads"}
        of = {k: v for k, v in shape.items() if k not in rest}
        ends = {"bos_token_id": 0, "eos_token_id": 0}
        if kind == "gpt2":
            return GPT2LMHeadModel(GPT2Config(**of, **ends))
        return GPTNeoXForCausalLM(GPTNeoXConfig(**of, **ends))
    if kind == "gemma3":
        return Gemma3ForCausalLM(Gemma3TextConfig(**shape, head_dim=8, sliding_window=512))
    return Qwen2ForCausalLM(Qwen2Config(**shape))


@pytest.fixture(scope="session", params=["llama", "qwen2"])
def backbone(request, tmp_path_factory, tokenizer):
    """A folder with a random two-layer model of each family."""
    return save_backbone(tmp_path_factory, request.param, tokenizer)


@pytest.fixture(scope="session", params=["llama", "qwen2", "gemma3", "gpt2", "gpt_neox"])
def any_backbone(request, tmp_path_factory, tokenizer):
    """Families of other ways: Gemma scales its embeddings, and every other layer's attention slides; GPT-2 learns its
    positions and keeps weights transposed; GPT-NeoX has one matrix for queries, keys and values."""
    return save_backbone(tmp_path_factory, request.param, tokenizer)


@pytest.fixture(scope="session")
def llama(tmp_path_factory, tokenizer):
    return save_backbone(tmp_path_factory, "llama", tokenizer)


def save_backbone(tmp_path_factory, kind, tokenizer):
    folder = tmp_path_factory.mktemp(kind)
    _tiny(kind, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SMALL = {
    "dtype": "float32",
    "stage1.rows": 32,
    "stage1.batch": 8,
    "stage1.evaluations": 2,
    "stage2.dim": 8,
    "stage2.epochs": 4,
    "stage3.rows": 32,
    "stage3.batch": 8,
    "evaluation.valid_rows": 20,
    "evaluation.test_rows": 40,
}
"""Settings that bring any system about in seconds on the planted table."""


@pytest.fixture(scope="session")
def small_workspace(planted_table, backbone, tmp_path_factory):
    from sellarec.config import make_config
    from sellarec.systems.base import Workspace

    config = make_config("smoke", str(planted_table), backbone=str(backbone), **SMALL)
    return Workspace(config, tmp_path_factory.mktemp("runs"))


def words(app):
    kinds = (app.markdown, app.caption, app.info, app.error, app.warning, app.title, app.subheader, app.code)
    return "\n".join(str(e.value) for kind in kinds for e in kind)


def button(app, label):
    return next(b for b in app.button if b.label == label)


def selectbox(app, label):
    return next(s for s in app.selectbox if s.label == label)
