"""Variants of SeLLa-Rec as data: what is switched off or changed. Adding one is one entry.

Each is computed like SeLLa-Rec under its changed settings and shares every run that these do not touch.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from sellarec.systems.base import System
from sellarec.systems.sella import SYSTEM as SELLA


def _variant(name: str, label: str, changes: dict[str, Any]) -> System:
    return dataclasses.replace(SELLA, name=name, label=label, changes=changes)


COLLM = _variant(
    "collm",
    "CoLLM-MF",
    {
        "stage2.bias": False,
        "stage2.alignment": 0.0,
        "stage2.hold_out": False,
        "stage3.tokens": "user,item",
        "stage3.projection": "random",
        "stage3.records": False,
        "stage3.facts": False,
        "stage3.embedding_learning_rate": 0.0,
        "stage3.projection_learning_rate": 1e-3,
    },
)
"""CoLLM-MF (Zhang et al., TKDE 2025): published MF without biases, frozen; only a fresh mapping into the language
model's space is trained.

Its MF has learnt from stage 3's rows too, as published, so that its vectors hold their labels; SeLLa-Rec's default
holds them out, and its MF has seen fewer rows for it.

Deviations: MF is of stage 2's length and patience (64 and 20 by default; `mf` has CoLLM's 256 and 100); rows that show
their user as new stay (`stage3.cold_users`); the mapping is SeLLa-Rec's (GELU, four times as wide inside) and starts at
`stage3.vector_norm`; ids that training never shows have vectors of zero; the prompt says what `prompt` says, which is
more than CoLLM's by default."""

CHECKS = (
    dataclasses.replace(
        COLLM,
        name="collm_held_out",
        label="CoLLM-MF, stage 3's rows held out",
        changes=COLLM.changes | {"stage2.hold_out": True},
    ),
)
"""What separates two explanations: CoLLM-MF whose vectors have not learnt the labels that our counts then give away."""

ABLATIONS = (
    _variant(
        "no_alignment",
        "SeLLa-w/o: no alignment, no warm token",
        {"stage2.alignment": 0.0, "stage3.tokens": "user,item", "stage3.projection": "random"},
    ),
    _variant("random_projection", "SeLLa-Proj: random projection", {"stage3.projection": "random"}),
    _variant("no_warm_token", "SeLLa-Warm: no warm token", {"stage3.tokens": "user,item"}),
    _variant("no_user_item_tokens", "SeLLa-UI: no user and item token", {"stage3.tokens": "warm"}),
    _variant("warm_then_user_item", "SeLLa-W-UI: warm token first", {"stage3.order": "warm,user+item"}),
    _variant("user_item_then_warm", "SeLLa-UI-W: user and item token first", {"stage3.order": "user+item,warm"}),
)
"""The paper's Table 5. Each keeps what the others of this repository's defaults add, such as biases and records; so the
first one is not CoLLM-MF, with which the paper identifies it."""

OURS = (
    _variant(
        "unaligned",
        "never aligned, with all three tokens",
        {"stage2.alignment": 0.0, "stage3.projection": "random"},
    ),
    _variant("no_records", "no records in the tokens", {"stage3.records": False}),
    _variant("no_facts", "no genres and year in the tokens", {"stage3.facts": False}),
    _variant("no_history", "no liked titles in the prompt", {"prompt.history": 0}),
    _variant("no_lora", "no stage 1: untuned language model", {"lora.rank": 0}),
    _variant("no_hold_out", "stage 3's rows in stage 2 too", {"stage2.hold_out": False}),
    _variant("no_bias", "over an MF without biases", {"stage2.bias": False}),
    _variant("frozen_semantic", "frozen semantic vectors", {"stage2.frozen_semantic": True}),
)
"""What the paper leaves open. The first is SeLLa-w/o with its warm token: only contrastive learning is gone."""
