"""The named profiles: sets of settings by dotted name, as data."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from sellarec.errors import SellarecError, nearest

SIZES: dict[str, dict[str, Any]] = {
    "smoke": {
        "stage1.rows": 48,
        "stage3.rows": 64,
        "stage2.dim": 16,
        "stage2.epochs": 3,
        **{f"{name}.epochs": 1 for name in ("mf", "lightgcn", "sasrec", "din", "binllm")},
        "ctrl.epochs": 3,
        "analysis.attention_rows": 6,
        "analysis.step0_rows": 40,
        "evaluation.test_rows": 60,
        "evaluation.valid_rows": 32,
        "stage1.evaluations": 1,
        "stage3.evaluations": 1,
    },
    "quick": {
        "prompt.history": 3,
        "lora.dropout": 0.0,
        "stage1.rows": 2400,
        "stage3.rows": 3200,
        "evaluation.valid_rows": 400,
    },
    "full": {
        "stage1.epochs": 3,
        "stage1.evaluations": 10,
        "stage1.batch": 128,
        "stage1.accumulate": 8,
        "stage1.learning_rate": 1e-4,
        "stage3.rows": 0.5,
        "stage3.epochs": 3,
        "stage3.evaluations": 10,
        "stage3.batch": 128,
        "stage3.accumulate": 4,
        "stage3.learning_rate": 2e-4,
        "stage2.dim": 256,
        "stage2.patience": 50,
        "evaluation.valid_rows": None,
    },
}
"""How much is computed: `smoke` proves the plumbing, `quick` is for a laptop CPU, `full` is the paper's scale. There
stage 3 reads half of the rows, so that stage 2 can learn from the others."""

AS_IN_THE_PAPER: dict[str, Any] = {
    "prompt.genres": False,
    "prompt.user_profile": False,
    "prompt.item_profile": False,
    "prompt.expectation": False,
    "prompt.natural_titles": False,
    "stage1.cold_users": 0.0,
    "stage2.bias": False,
    "stage2.hold_out": False,
    "stage3.cold_users": 0.0,
    "stage3.records": False,
    "stage3.facts": False,
}
"""The method as its paper has it: what we add to it is off. docs/protocol.md says why we add it, and what remains."""


def without_additions(config: object) -> bool:
    """Whether a configuration has none of what we add to the method."""
    wanted = (attrgetter(name)(config) == value for name, value in AS_IN_THE_PAPER.items())
    return all(wanted)


def _paper(size: str) -> dict[str, Any]:
    """A size's settings with the method as in the paper, where all of stage 3 learns at one rate, and nothing is held
    out for it."""
    rate = SIZES[size].get("stage3.learning_rate", 1e-3)
    rates = {f"stage3.{part}_learning_rate": rate for part in ("embedding", "projection")}
    return SIZES[size] | AS_IN_THE_PAPER | rates | ({"stage3.rows": None} if size == "full" else {})


PROFILES: dict[str, dict[str, Any]] = {**SIZES, **{f"{size}-paper": _paper(size) for size in ("quick", "full")}}
"""Changes to the defaults by the profile's name."""

EVERY_PROFILE_ON: dict[str, dict[str, Any]] = {"amazon-book": {"data.like_above": 4.0}}
"""What every profile sets further, by dataset."""

QUICK_ON: dict[str, dict[str, Any]] = {
    "ml-100k": {
        "stage1.rows": 600,
        "stage2.learning_rate": 1e-2,
        "stage2.batch": 8192,
        "stage3.rows": 1200,
        "analysis.attention_rows": 24,
        "evaluation.test_rows": 1800,
        "evaluation.valid_rows": 200,
    },
    "ml-1m": {
        "stage1.rows": 8000,
        "stage3.rows": 12000,
        "stage3.evaluations": 2,
        "evaluation.valid_rows": 1000,
    },
    "amazon-book": {
        "stage1.rows": 8000,
        "stage3.rows": 8000,
        "evaluation.test_rows": 4000,
        "evaluation.valid_rows": 1000,
    },
}
"""What `quick` sets further, by dataset: ML-100K fits in twenty minutes, ML-1M is scored whole.

Nearly every batch of stage 2 holds most of ML-100K's items, so that InfoNCE costs by the step: fewer and longer steps
reach the same validation AUC sooner.
"""


def profile_on(dataset: str, profile: str) -> dict[str, Any]:
    """What a profile changes for a dataset, by dotted name.

    Raises:
        SellarecError: the profile is not known; the nearest valid one is named.
    """
    if profile not in PROFILES:
        raise SellarecError(f"profile '{profile}' is not known. {nearest(profile, PROFILES)}")
    of_size = QUICK_ON.get(dataset, {}) if profile.partition("-")[0] == "quick" else {}
    return PROFILES[profile] | EVERY_PROFILE_ON.get(dataset, {}) | of_size
