"""All systems by name. Adding one is a file, a line here, and a name in its table; or an entry point, see `plugins`."""

from __future__ import annotations

from sellarec.errors import SellarecError, nearest
from sellarec.marks import MARK
from sellarec.settings import Config
from sellarec.systems import (
    binllm,
    counting,
    ctrl,
    din,
    lightgcn,
    mf,
    mlp_control,
    person_prompt,
    prompt4nr,
    sasrec,
    sella,
    sella_collab,
    semantic,
    tallrec,
    tuned_further,
    variants,
)
from sellarec.systems.base import System
from sellarec.systems.plugins import installed_systems

SYSTEMS: dict[str, System] = {
    s.name: s
    for s in (
        counting.SYSTEM,
        mf.MF,
        mf.MF_BIAS,
        lightgcn.SYSTEM,
        sasrec.SYSTEM,
        din.SYSTEM,
        tallrec.ZERO_SHOT,
        tallrec.TALLREC,
        semantic.SYSTEM,
        sella_collab.SYSTEM,
        mlp_control.SYSTEM,
        *mlp_control.FEWER_INPUTS,
        sella.SYSTEM,
        tuned_further.SYSTEM,
        prompt4nr.SYSTEM,
        ctrl.SYSTEM,
        person_prompt.SYSTEM,
        binllm.BINARY_MF,
        binllm.SYSTEM,
        binllm.HELD_OUT,
        variants.COLLM,
        *variants.CHECKS,
        *variants.ABLATIONS,
        *variants.OURS,
    )
}

OVERALL = ("counting", "mlp_records", "mf", "mf_bias", "sella_collab", "mlp_control", "zero_shot", "tallrec", "sella")
"""The rows of the overall table, in its order."""


TABLES = {
    "table3": (
        *("counting", "mlp_records", "mf", "mf_bias", "lightgcn", "sasrec", "din", "binary_mf"),
        *("sella_collab", "mlp_control"),
        *("zero_shot", "prompt4nr", "tallrec", "tallrec_further", "ctrl", "person_prompt", "collm"),
        *("collm_held_out", "binllm", "sella"),
    ),
    "table5": ("sella", *(v.name for v in (*variants.ABLATIONS, *variants.OURS))),
    "checks": ("sella", "binllm_held_out", *(v.name for v in variants.CHECKS)),
    "controls": ("mlp_control", *(v.name for v in mlp_control.FEWER_INPUTS)),
}
"""The paper's comparison and its ablation, in their order, each with rows of ours; what separates two
explanations of these; and the ablation of the control."""

MOVIELENS = ("ml-1m", "ml-100k")
"""Datasets of which is said what was measured on the first."""

_STARTS_AGAIN = "its tuning starts again at stage 1's rate, and does not regain stage 1's validation AUC"
_READS_LABELS = "its factorisation has learnt stage 3's rows, whose labels the prompt's counts then give away"


def not_fair(config: Config) -> dict[str, str]:
    """Baselines that a difference says little of under a configuration, and why (measured on MovieLens-1M,
    docs/results.md). What is said of one setting is not said of another; without counts in the prompt no label can be
    read off them, and with titles alone stage 1 has not learnt enough to lose it. Of data other than MovieLens nothing
    is said but that: it follows from what these baselines read."""
    usual, films = Config(), config.dataset in MOVIELENS
    counts = config.prompt.user_profile or config.prompt.item_profile
    lost = films and counts and config.stage1.learning_rate == usual.stage1.learning_rate
    no_history = "its published settings drive its attention to zero, so that it reads no history"
    rate = "its rate, CoLLM's, is a hundred times that of SeLLa-Rec's tables"
    reasons = [
        ("sasrec", no_history, films and config.sasrec.weight_decay == usual.sasrec.weight_decay),
        ("din", "its history does not help it; it is better without one", films),
        ("person_prompt", rate, films and config.person_prompt == usual.person_prompt),
        *((name, _STARTS_AGAIN, lost) for name in ("prompt4nr", "tallrec_further")),
        *((name, _READS_LABELS, counts) for name in ("collm", "binllm")),
    ]
    found: dict[str, str] = {}
    for name, why, applies in reasons:
        if applies:
            found[name] = f"{found[name]}; and {why}" if name in found else why
    return found


def find_system(name: str) -> System:
    if name not in SYSTEMS:
        raise SellarecError(f"system '{name}' is not known. {nearest(name, SYSTEMS)}")
    return SYSTEMS[name]


def marked_label(name: str, config: Config) -> str:
    """A system's label, with a † if it is no fair baseline under a configuration."""
    return find_system(name).label + (f" {MARK}" if name in not_fair(config) else "")


for _system in installed_systems(SYSTEMS):  # last: what they import may look here
    SYSTEMS[_system.name] = _system
    TABLES["table3"] += (_system.name,)
