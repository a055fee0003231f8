"""What the answer looks at, and what it depends on, averaged over test rows (paper Fig. 8 shows single ones).

Attention describes where the model looks; only leaving a part out shows whether the answer depends on it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from sellarec.analysis.what_if import Case, Explorer, interventions
from sellarec.data.dataset import sample_rows
from sellarec.evaluation import mean_interval
from sellarec.progress import track
from sellarec.runs import Run
from sellarec.systems.base import System, Workspace

SEGMENTS = ("sink", "instruction", "history", "user record", "target", "genres", "item record", "expectation")
"""Segments in the order of the prompt, before the soft tokens; the titles of the history together."""


def attention_by_layer(work: Workspace) -> pd.DataFrame:
    """Mean attention of the answer position to each segment with 95 % user-bootstrap intervals.

    Returns:
        One line per layer (from 1) and segment: `layer`, `segment`, `share`, `low`, `high`.
    """
    frame = _with_absent(pd.read_parquet(work.run_of(ATTENTION).folder / "attention.parquet"))
    lines = []
    for (layer, segment), part in frame.groupby(["layer", "segment"], sort=False):
        interval = mean_interval(part["user"].to_numpy(), part["share"].to_numpy(), resamples=1000)
        lines.append({"layer": layer, "segment": segment, "share": interval.value})
        lines[-1] |= {"low": interval.low, "high": interval.high}
    return pd.DataFrame(lines)


def _with_absent(frame: pd.DataFrame) -> pd.DataFrame:
    """A line for each row, layer and segment: one that a prompt does not have, such as an empty history, gets 0."""
    segments = frame["segment"].unique()
    wide = frame.pivot(index=["row", "user", "layer"], columns="segment", values="share")[segments].fillna(0.0)
    return wide.stack().rename("share").reset_index()


def effects(work: Workspace) -> pd.DataFrame:
    """How far the log-odds move when a part of the prompt is left out or swapped, over the same rows.

    Returns:
        Indexed by change: `rows`, mean absolute change `size` with `size_low` and `size_high`, and mean change `mean`
        with `mean_low` and `mean_high`; in log-odds, changed minus unchanged.
    """
    frame = pd.read_parquet(work.run_of(ATTENTION).folder / "effects.parquet")
    lines = {}
    for change, part in frame.groupby("change", sort=False):
        user, delta = part["user"].to_numpy(), part["delta"].to_numpy()
        line: dict[str, float] = {"rows": part["row"].nunique()}
        for name, values in (("size", np.abs(delta)), ("mean", delta)):
            interval = mean_interval(user, values)
            line |= interval.columns(name)
        lines[change] = line
    return pd.DataFrame.from_dict(lines, orient="index")


def case_effects(explorer: Explorer, case: Case, swap_user: int, swap_item: int) -> pd.DataFrame:
    """The log-odds of one case and of its interventions.

    Returns:
        Indexed by change, the unchanged case first: `log_odds`, `probability`, `delta`.
    """
    changed = interventions(explorer, case, swap_user, swap_item)
    found = explorer.log_odds([case, *changed.values()]).astype(np.float64)
    frame = pd.DataFrame({"log_odds": found}, index=["as it is", *changed])
    return frame.assign(probability=1 / (1 + np.exp(-found)), delta=found - found[0])


def _average(work: Workspace, run: Run) -> None:
    explorer = Explorer(work)
    rows = sample_rows(work.part("test"), work.config.analysis.attention_rows, seed=0)
    attention, changes = [], []
    for row, user in track(rows["user"].items(), "attention and interventions", len(rows)):
        case = explorer.case_of_row(int(row))
        for segment, shares in grouped(explorer.attention(case).by_segment()).items():
            attention += [
                {"row": row, "user": user, "layer": n, "segment": segment, "share": share}
                for n, share in enumerate(shares.tolist(), start=1)
            ]
        found = case_effects(explorer, case, *explorer.strangers(case))
        listed = min(len(case.history), work.config.prompt.history)  # their changes come first
        for n, (change, delta) in enumerate(found["delta"].iloc[1:].items()):
            kind = "without one title" if n < listed else change
            changes.append({"row": row, "user": user, "change": kind, "delta": delta})
        if listed:
            unread = explorer.log_odds([dataclasses.replace(case, history=())]).astype(np.float64)[0]
            delta = unread - found["log_odds"].iloc[0]
            changes.append({"row": row, "user": user, "change": "without all titles", "delta": delta})
    run.save_table("attention", pd.DataFrame(attention))
    run.save_table("effects", pd.DataFrame(changes))


def rows_averaged(work: Workspace) -> str:
    """Over how many rows the means are, for a note."""
    scored = len(work.part("test"))
    return f"means over {min(work.config.analysis.attention_rows, scored):,} of {scored:,} scored test rows"


def grouped(parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The segments in the order of the prompt, with the titles of the history as one."""
    history = [v for name, v in parts.items() if name.startswith("title ")]
    out = {n: v for n, v in parts.items() if not n.startswith("title ")}
    if history:
        out["history"] = np.sum(history, axis=0)
    return {n: out[n] for n in [*SEGMENTS, *out] if n in out}


ATTENTION = System(
    "attention",
    "Attention and interventions",
    lambda config: {"rows": config.analysis.attention_rows, "scored": config.evaluation},
    _average,
    needs=("sella",),
    uses_backbone=True,
    version=3,
)
