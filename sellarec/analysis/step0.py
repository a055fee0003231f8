"""Does the aligned projection carry over before stage 3 has learnt anything? (Paper Table 6.)

The frozen tuned model reads the user and item token of warm test rows at step 0. Records and the warm token, whose
projections are random then, are left out.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from sellarec.data.dataset import sample_users
from sellarec.distributed import agreed, is_main, wait
from sellarec.evaluation import UserBootstrap
from sellarec.prompts import ITEM, USER
from sellarec.runs import Run
from sellarec.systems.base import System, Workspace
from sellarec.systems.hybrid import HybridModel
from sellarec.systems.sella import new_soft_tokens

_BARE = {"stage3.records": False, "stage3.facts": False}
CONDITIONS = {
    "CL + projection": {**_BARE, "stage3.projection": "aligned"},
    "CL, random projection": {**_BARE, "stage3.projection": "random"},
    "no CL, random projection": {**_BARE, "stage3.projection": "random", "stage2.alignment": 0.0},
}
TEXT_ONLY = "text only (stage 1)"

DRAWS = 3
"""Random projections that are drawn: one alone may point anywhere."""


def step0_table(work: Workspace) -> pd.DataFrame:
    """AUC of warm test rows at step 0, and how much better the first condition is than each other one.

    Returns:
        Indexed by condition: `rows`, `users`, `effective_users` (of AUC), `draws`, `auc`, `auc_low`, `auc_high`,
        and `gain`, `gain_low`, `gain_high`: the first condition minus this one, paired; means over the draws of a
        random projection. Undefined (nan) if no scored test row is warm.
    """
    frame = pd.read_parquet(work.run_of(STEP0).folder / "step0.parquet")
    if frame.empty:
        columns = ["draws", *(m + end for m in ("auc", "gain") for end in ("", "_low", "_high"))]
        return pd.DataFrame(
            {"rows": 0, "users": 0, "effective_users": 0.0, **dict.fromkeys(columns, np.nan)}, [*CONDITIONS, TEXT_ONLY]
        )
    rows = work.dataset.interactions.loc[frame["row"]]
    frame[TEXT_ONLY] = work.run("tallrec").scores.set_index("row")["score"].loc[frame["row"]].to_numpy()
    bootstrap = UserBootstrap(rows["user"].to_numpy(), rows["label"].to_numpy())
    scores = {name: frame.filter(regex=f"^{re.escape(name)}").to_numpy().T for name in (*CONDITIONS, TEXT_ONLY)}
    first, lines = scores[next(iter(CONDITIONS))], {}
    for name, score in scores.items():
        own = bootstrap.interval("auc", score)
        gain = bootstrap.interval("auc", first, score)
        lines[name] = {
            "rows": len(frame),
            "users": bootstrap.users,
            "effective_users": bootstrap.effective_users["auc"],
            "draws": len(score),
        }
        lines[name] |= own.columns("auc") | gain.columns("gain")
    return pd.DataFrame.from_dict(lines, orient="index")


def _score(work: Workspace, run: Run) -> None:
    test = work.part("test")
    rows = sample_users(test[test["warm"]], work.config.analysis.step0_rows, seed=0).index.to_numpy()
    if not len(rows):
        return run.save_table("step0", pd.DataFrame({"row": rows.astype(np.int64)}))
    lm, scores, model = work.tuned_model, {}, None
    for number, (name, changes) in enumerate(CONDITIONS.items()):
        variant = work.variant(changes)
        for draw in range(DRAWS if variant.config.stage3.projection == "random" else 1):
            label = f"{name}, draw {draw + 1}" if draw else name
            kept = run.scratch(f"{number}-{draw}")
            if not agreed((kept / "done.npy").exists()):
                soft = new_soft_tokens(variant, lm, draw).show((USER, ITEM), ()).eval()
                model = model or HybridModel(lm, soft, variant, rows)
                model.soft = soft
                kept.mkdir(exist_ok=True)
                raw_yes = work.config.evaluation.raw_yes
                found = model.score(raw_yes=raw_yes, label=f"step 0, {label}", resume=kept / "partial.npy")
                if is_main():
                    np.save(kept / "part.npy", found)
                    (kept / "part.npy").rename(kept / "done.npy")
                wait()
            scores[label] = np.load(kept / "done.npy")
    run.save_table("step0", pd.DataFrame({"row": rows.astype(np.int64), **scores}))


STEP0 = System(
    "step0",
    "Step 0",
    # once, raw logits were compared with log-odds; keys of other runs stay
    lambda config: (
        ({"raw_yes": 2} if config.evaluation.raw_yes else {})
        | {
            "rows": config.analysis.step0_rows,
            "scored": config.evaluation,
            "stage2": config.stage2,
            "prompt": config.prompt,
            "vector_norm": config.stage3.vector_norm,
        }
    ),
    _score,
    needs=("tallrec", "sella_collab"),
    uses_backbone=True,
    version=2,
)
