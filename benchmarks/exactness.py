"""Does speed move the metrics? A finished run's scores against a plain float32 pass over the same weights.

    python benchmarks/exactness.py --dataset ml-1m --system sella

The run was scored with the engine: working number format, packed batches, cached prefixes. The plain pass is `plain.py`
in float32: padded batches, the whole prompt, logits of the whole vocabulary. Which weights were trained is not asked;
both read the same, and so does the engine in each number format that `--formats` names. The last line is one JSON
document.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import plain

from sellarec.backbone.engine import score_rows
from sellarec.backbone.language_model import LanguageModel, open_language_model
from sellarec.backbone.lora import merge_lora
from sellarec.backbone.token_rows import TokenRow
from sellarec.cli import parse
from sellarec.data.dataset import sample_users
from sellarec.errors import SellarecError
from sellarec.evaluation import auc, uauc
from sellarec.options import Configured
from sellarec.progress import Progress
from sellarec.runs import code_version
from sellarec.systems.base import Workspace
from sellarec.systems.registry import find_system
from sellarec.systems.row_prompts import prompts_of
from sellarec.systems.rows import row_inputs
from sellarec.systems.sella import SYSTEM as SELLA
from sellarec.systems.sella import load_soft_tokens

TEXT_ONLY = ("zero_shot", "tallrec")

GOAL = 0.0005
"""The metrics may move by so much."""


@dataclass(frozen=True, kw_only=True)
class Options(Configured):
    """Score a finished run's test rows again, in float32 and without any of the engine's savings."""

    system: str = "sella"
    """zero_shot, tallrec, sella, or a variant of sella; its run must be in the store, with weights."""
    formats: tuple[str, ...] = ()
    """Number formats in which the engine scores the same weights too, such as float16."""
    rows: int | None = None
    """Whole users with about this many test rows; None takes all that were scored."""
    keep: Path | None = None
    """A .npy file for the scores so far; a second call with it goes on from there."""


def model_in(dtype: str, work: Workspace, system: str) -> LanguageModel:
    """The backbone in a number format, with the adapter of the runs except for zero-shot."""
    lm = open_language_model(work.config.backbone, dtype)
    if system == "zero_shot" or not work.config.lora.rank:
        return lm.with_model(lm.placement.cast(lm.model))
    return merge_lora(lm, work.with_weights("tallrec").weights("adapter"))


def rows_of(
    work: Workspace, system: str, lm: LanguageModel, rows: np.ndarray
) -> tuple[list[TokenRow], plain.Vectors | None]:
    """The prompts of a system's rows, and what makes their soft tokens."""
    if system in TEXT_ONLY:
        return prompts_of(work, lm, rows), None
    soft = load_soft_tokens(work, work.run(system))
    inputs = [t.to(lm.placement.device) for t in row_inputs(work, rows)]
    return prompts_of(work, lm, rows, soft.tokens), lambda at: soft(*(t[at] for t in inputs))


@torch.no_grad()
def plain_scores(
    lm: LanguageModel, rows: Sequence[TokenRow], vectors: plain.Vectors | None, keep: Path | None
) -> np.ndarray:
    """Log-odds of all rows, shape (n,)."""
    out = np.load(keep) if keep and keep.exists() else np.full(len(rows), np.nan, dtype=np.float32)
    if len(out) != len(rows):
        raise SellarecError(f"{keep} holds {len(out):,} scores, not {len(rows):,}: it is of other rows. Remove it.")
    with Progress("plain float32", len(rows), "rows", done=int(np.isfinite(out).sum())) as progress:
        for at in plain.chunks(np.arange(len(rows)), plain.BATCH[lm.placement.device.type]):
            if np.isnan(out[at]).any():
                out[at] = plain.log_odds(lm, rows, at, vectors).cpu().numpy()
                progress.advance(len(at))
                if keep:
                    np.save(keep, out)
    return out


def compare(
    work: Workspace, name: str, rows: int | None = None, keep: Path | None = None, formats: Sequence[str] = ()
) -> dict[str, Any]:
    """Metrics of a finished run's scores and of a plain float32 pass, and how far their log-odds are apart; the same of
    the engine in other number formats.

    Raises:
        SellarecError: the system is not made of a language model and SeLLa-Rec's tokens, or its run is missing.
    """
    system = find_system(name)
    if name not in TEXT_ONLY and system.fit is not SELLA.fit:
        raise SellarecError(f"'{name}' is neither {' nor '.join(TEXT_ONLY)}, nor sella or a variant of it.")
    run, place = work.run(name), work.variant(system.changes)
    part = work.part("test") if rows is None else sample_users(work.part("test"), rows, seed=0)
    user, label, chosen = part["user"].to_numpy(), part["label"].to_numpy(), part.index.to_numpy()
    lm = model_in("float32", place, name)
    exact = plain_scores(lm, *rows_of(place, name, lm, chosen), keep)

    def told(scores: np.ndarray) -> dict[str, float]:
        gap = np.abs(scores - exact)
        of = {"auc": auc(label, scores), "uauc": uauc(user, label, scores)}
        return of | {"mean_gap": float(gap.mean()), "max_gap": float(gap.max())}

    stored = run.scores.set_index("row")["score"].loc[part.index].to_numpy(dtype=np.float64)
    found: dict[str, Any] = {"system": name, "run": run.config["key"], "dtype": work.base_dtype, "rows": len(part)}
    found |= {"engine": told(np.log(stored / (1 - stored))), "plain": told(exact)}
    for dtype in formats:
        lm = model_in(dtype, place, name)
        found[f"engine in {dtype}"] = told(score_rows(lm, *rows_of(place, name, lm, chosen), label=dtype))
    return found | {"code": code_version()}


def main() -> None:
    options = parse(Options, sys.argv[1:], "exactness.py")
    work = Workspace(options.config, options.runs, computes=False)
    found = compare(work, options.system, options.rows, options.keep, options.formats)
    print(f"{find_system(options.system).label}, {found['rows']:,} rows: the run in {found['dtype']}, plain float32")
    for way in (w for w in found if w.startswith("engine")):
        print(way)
        for metric in ("auc", "uauc"):
            moved = found[way][metric] - found["plain"][metric]
            verdict = f"{moved:+.5f}, {'within' if abs(moved) <= GOAL else 'beyond'} {GOAL}"
            print(f"  {metric.upper():5} {found[way][metric]:.5f} against {found['plain'][metric]:.5f}: {verdict}")
        mean, most = found[way]["mean_gap"], found[way]["max_gap"]
        print(f"  log-odds differ by {mean:.4f} on average, by {most:.4f} at most")
    print(json.dumps(found | {"options": asdict(options)}, default=str))


if __name__ == "__main__":
    try:
        main()
    except SellarecError as error:
        sys.exit(f"error: {error}")
