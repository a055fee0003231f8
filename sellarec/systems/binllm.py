"""BinLLM (Zhang et al., ACL 2024): a user's and an item's collaborative vectors as text that a language model reads.

Binary matrix factorisation gives each a string of bits, which stands in the prompt where SeLLa-Rec has soft tokens;
stage 1's adapter is tuned further on such prompts. Deviations: ids that training never shows have embeddings of zero,
so that all unknown users share a code, and rows that show their user as new have this code; embeddings start at 0.1 of
BinLLM's 1. As published, the factorisation has learnt from the rows that the adapter is tuned on, unless
`binllm.hold_out` leaves them out. BinLLM's paper writes codes like IP addresses, its released settings as bits:
`binllm.code`.

On MovieLens-1M these settings leave 16 codes for 740 users and 14 for 3,087 items, whose vectors lie on one line: the
factorisation is a counting baseline there. Of rows that it has not learnt its codes say little that our prompt does not
say in words; of training rows they give the label away beside our cross-fitted counts (docs/protocol.md). Starting
embeddings at 0.3, 0.5 or 1 leaves as few codes (13 to 21) and a validation AUC no higher.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sellarec.backbone.language_model import LanguageModel
from sellarec.backbone.token_rows import TokenRow
from sellarec.collab.binary import BinaryMF, bits_text, dotted_text
from sellarec.collab.mf import zero_unseen
from sellarec.data.dataset import Dataset
from sellarec.prompts import ITEM, USER, Prompt, PromptWriter
from sellarec.runs import Run
from sellarec.settings import BinLLMConfig, Config
from sellarec.systems.base import System, Workspace
from sellarec.systems.collaborative import collaborative_system, distinct_ids
from sellarec.systems.rows import beside_stage3
from sellarec.systems.tuned_further import score_tuned_further, settings, tune_further
from sellarec.systems.weights import saved_state

CODES = {"dotted": dotted_text, "bits": bits_text}


def _new(dataset: Dataset, config: BinLLMConfig) -> BinaryMF:
    return BinaryMF(dataset.n_users, dataset.n_items, config.dim, init_std=config.init_std)


def _grow(model: BinaryMF, config: BinLLMConfig, epoch: int) -> None:
    model.binary_share = min(1.0, config.binary_growth * epoch)


def _finish(model: BinaryMF, train: pd.DataFrame) -> None:
    users, items = distinct_ids(train)
    zero_unseen(model.user_embedding.weight, users)
    zero_unseen(model.item_embedding.weight, items)
    print(f"binary MF: {_codes(model.user_bits(users))} users, {_codes(model.item_bits(items))} items", flush=True)


def _codes(bits: Tensor) -> str:
    """How many codes tell how many apart: "16 codes for 740"."""
    return f"{len(bits.unique(dim=0)):,} codes for {len(bits):,}"


def _trained(work: Workspace) -> BinaryMF:
    model = _new(work.dataset, work.config.binllm).eval()
    model.load_state_dict(saved_state(work.with_weights("binary_mf"), "model"))
    return model


def _tokenizer(work: Workspace):
    model, text = _trained(work), CODES[work.config.binllm.code]
    of_user = [text(b) for b in model.user_bits(torch.arange(work.dataset.n_users + 1))]
    of_item = [text(b) for b in model.item_bits(torch.arange(work.dataset.n_items + 1))]
    writer = PromptWriter(work.dataset, work.config.prompt, (USER, ITEM))
    ids = work.dataset.interactions[["user", "item"]].to_numpy()

    def tokenize(lm: LanguageModel, rows: np.ndarray, new_user: np.ndarray) -> list[TokenRow]:
        prompts = []
        for row, new in zip(rows, new_user, strict=True):
            prompt, (user, item) = writer.write(row, new), ids[row]
            suffix = prompt.suffix.replace(USER, of_user[0 if new else user]).replace(ITEM, of_item[item])
            prompts.append(Prompt(prompt.prefix, suffix))
        return lm.tokenize_all(prompts)

    return tokenize


def _fit(work: Workspace, run: Run) -> None:
    tune_further(work, run, _tokenizer(work), "BinLLM")


def _score(work: Workspace, run: Run, rows: np.ndarray) -> np.ndarray:
    return score_tuned_further(work, run, rows, _tokenizer(work), "BinLLM")


def _binary_settings(config: Config) -> dict:
    learnt = {"binllm": dataclasses.replace(config.binllm, code="dotted")}  # how a code is written changes no code
    return learnt | ({"held_out": (config.stage1.rows, config.stage3.rows)} if config.binllm.hold_out else {})


def _settings(config: Config) -> dict:
    return settings(config) | {"code": config.binllm.code}


_FITTED = collaborative_system(
    "binary_mf",
    "Binary MF",
    lambda config: config.binllm,
    _new,
    rows=lambda work: beside_stage3(work) if work.config.binllm.hold_out else work.dataset.part("train"),
    each_epoch=_grow,
    finish=_finish,
)
BINARY_MF = dataclasses.replace(_FITTED, settings=_binary_settings, version=2)
SYSTEM = System("binllm", "BinLLM", _settings, _fit, _score, needs=("tallrec", "binary_mf"), uses_backbone=True)
HELD_OUT = dataclasses.replace(
    SYSTEM,
    name="binllm_held_out",
    label="BinLLM, stage 3's rows held out",
    changes={"binllm.hold_out": True},
)
