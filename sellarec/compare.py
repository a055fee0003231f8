"""Runs side by side from their scores alone: what each one has, and what the first has over each other one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t

from sellarec.errors import SellarecError
from sellarec.evaluation import Interval, UserBootstrap, auc, slice_masks, uauc
from sellarec.published import SCORES
from sellarec.runs import Run, open_run
from sellarec.systems.base import System, Workspace
from sellarec.systems.registry import SYSTEMS, find_system, not_fair
from sellarec.tables import differences


def runs_named(work: Workspace, names: Sequence[str], seeds: int = 1) -> dict[str, list[Run]]:
    """The finished runs that words stand for, by label.

    Args:
        names: Systems under the workspace's settings, or folders of runs, whatever their settings.
        seeds: Of a system, how many seeds from the workspace's on; those in the store are taken.

    Raises:
        SellarecError: there is no name, a system is not known or has no such run, a folder holds none, or a run has no
            scores.
    """
    if not names:
        raise SellarecError(f"name systems, or the folders of runs, to compare. Valid: {', '.join(SYSTEMS)}.")
    found = {}
    for name in names:
        if name not in SYSTEMS and Path(name).is_dir():
            runs = [open_run(Path(name), "Name a system, or the folder of one run, as `sellarec run` prints it.")]
            system = SYSTEMS.get(runs[0].config["system"])
            label = f"{system.label if system else runs[0].config['system']} ({Path(name).name})"
        else:
            runs, label = _of_seeds(work, name, seeds), find_system(name).label
            of = [run.config["seed"] for run in runs]
            label += f", mean of seeds {', '.join(map(str, of))}" if len(of) > 1 else ""
            label += f", seed {of[0]}" if len(of) == 1 and of[0] != work.config.seed and seeds > 1 else ""
            label += " †" if name in not_fair(work.config) else ""
        for run in runs:
            if (run.folder / SCORES).exists():
                raise SellarecError(f"{run.folder} is a published run, without rows: sellarec adopt gives it yours.")
            if not (run.folder / "scores.parquet").exists():
                raise SellarecError(f"{label} is a step that others grow from; it scores no rows ({run.folder}).")
        found[f"{label} in {name}" if label in found else label] = runs
    return found


def _of_seeds(work: Workspace, name: str, seeds: int) -> list[Run]:
    system = find_system(name)
    if not (runs := [w.run(name) for w in _places(work, system, seeds) if w.is_done(name)]):
        raise SellarecError(f"{system.label} is not in the run store {work.root}. {work.way_to(system)}")
    return runs


def _places(work: Workspace, system: System, seeds: int) -> list[Workspace]:
    return [work.variant({"seed": work.config.seed + n}) for n in range(seeds if system.uses_seed else 1)]


def compare(
    runs: Mapping[str, Sequence[Run]], split: str = "test", part: str = "all", *, items: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """AUC and UAUC of each, and how much better the first is than each other, with 95 % bootstrap intervals.

    Args:
        runs: By label; of several under one label the mean metric is taken, whose interval holds no variance of seeds.
            A difference takes the seeds that both have, where there are such, and says so if that leaves some out.
        split: "test", or "valid" for the validation rows that language models' checkpoints were chosen on.
        part: "all", "warm" or "cold".
        items: Resample items as well as users.

    Returns:
        Two tables: as `tables.overall_table` without its other columns but with the mean `probability`, and as
        `tables.difference_table`. `attrs["rests_on"]` of the first says what rows and users there are.

    Raises:
        SellarecError: two runs score other rows, or rows of other data; or there are none of that part.
    """
    base = next(iter(runs.values()))[0]
    rows = _rows(base, split)
    rows = rows[slice_masks(rows)[part]]
    if not len(rows):
        raise SellarecError(f"There are no {part} rows among the scored {split} rows.")
    scores = {label: np.stack([_scores(run, base, rows, split, part) for run in of]) for label, of in runs.items()}
    user, label, item = (rows[c].to_numpy() for c in ("user", "label", "item"))
    bootstrap = UserBootstrap(user, label, item=item if items else None)
    lines = {}
    for name, score in scores.items():
        columns = [bootstrap.interval(m, score).columns(m) for m in ("auc", "uauc")]
        lines[name] = columns[0] | columns[1] | {"probability": score.mean(dtype=np.float64)}
    overall = pd.DataFrame.from_dict(lines, orient="index").rename_axis("label")
    effective = {metric: f"{n:.0f}" for metric, n in bootstrap.effective_users.items()}
    overall.attrs["rests_on"] = (
        f"{len(rows):,}, of {bootstrap.users:,} users, effectively {effective['auc']} ({effective['uauc']} in UAUC), "
        f"{label.mean():.1%} liked"
    )
    first, *others = scores
    pairs = {}
    for other in others:
        seeds, both = _seeds_of_both(runs[first], runs[other]), (first, other)
        chosen = [[n for n, run in enumerate(runs[name]) if _is_of(run, seeds)] for name in both]
        left_out = any(len(taken) < len(runs[name]) for taken, name in zip(chosen, both, strict=True))
        told = f"{other} (seeds of both: {', '.join(map(str, seeds))})" if left_out else other
        pairs[told] = tuple(scores[name][taken] for taken, name in zip(chosen, both, strict=True))
    found = differences(bootstrap, pairs, of=first, minus="each other", who=first) if pairs else pd.DataFrame()
    return overall, found


def by_seed(runs: Mapping[str, Sequence[Run]], split: str = "test", part: str = "all") -> pd.DataFrame:
    """How much better the first is than each other, seed by seed, and the 95 % t interval of the mean over seeds: the
    variation between seeds, where `compare` has that between users. Of a system that draws nothing its one run stands
    for each.

    Returns:
        Indexed by the other's label, as people read it: the seeds that both have, and for each metric the differences
        and the interval. Without those that have fewer than two seeds in common with the first.
    """
    (_, first), *others = runs.items()
    lines = {}
    for label, of in others:
        if len(seeds := _seeds_of_both(first, of)) < 2:
            continue
        line = {"seeds": ", ".join(map(str, seeds))}
        for metric in ("auc", "uauc"):
            gains = np.array([_metric(_of_seed(first, n), metric, split, part) for n in seeds])
            gains -= [_metric(_of_seed(of, n), metric, split, part) for n in seeds]
            far = t.ppf(0.975, len(seeds) - 1) * gains.std(ddof=1) / np.sqrt(len(seeds))
            each, mean = "  ".join(f"{gain:+.4f}" for gain in gains), gains.mean()
            line |= {metric.upper(): each if np.isfinite(mean) else "undefined"}
            line |= {f"mean {metric.upper()}": f"{Interval(mean, mean - far, mean + far):+.4f}"}
        lines[label] = line
    return pd.DataFrame.from_dict(lines, orient="index")


def _draws(run: Run) -> bool:
    """Whether another seed would give another run."""
    system = SYSTEMS.get(run.config["system"])
    return system is None or system.uses_seed


def _seeds_of_both(first: Sequence[Run], other: Sequence[Run]) -> list[int]:
    """The seeds that both have, or those of the one if the other draws nothing; none where they share none."""
    drawn = [{run.config["seed"] for run in runs} for runs in (first, other) if _draws(runs[0])]
    return sorted(set.intersection(*drawn)) if drawn else []


def _is_of(run: Run, seeds: Sequence[int]) -> bool:
    """Whether a run is one of these seeds: any is, if there are none or it draws nothing."""
    return not seeds or not _draws(run) or run.config["seed"] in seeds


def _of_seed(runs: Sequence[Run], seed: int) -> Run:
    return next(run for run in runs if _is_of(run, [seed]))


def _metric(run: Run, metric: str, split: str, part: str) -> float:
    rows = _rows(run, split)
    rows = rows[slice_masks(rows)[part]]
    user, label, score = (rows[c].to_numpy() for c in ("user", "label", "score"))
    return auc(label, score) if metric == "auc" else uauc(user, label, score)


def grown_apart(runs: Mapping[str, Sequence[Run]]) -> list[str]:
    """A sentence for each run that grew from another computation of a run that it is compared with, which has rounded
    otherwise: a part of the difference is then of rounding."""
    every = [(label, run) for label, of in runs.items() for run in of]
    by_key = {run.config["key"]: (label, run) for label, run in every}
    found = []
    for label, run in every:
        for need, key in run.config["upstream"].items():
            if key not in by_key:
                continue
            beneath, upstream = by_key[key]
            made = run.config.get("grew_from", {}).get(need)
            if made and made != upstream.fingerprint:
                found.append(f"{label} grew from another computation of {beneath}, which has rounded otherwise.")
            elif not made and upstream.has_weights and not run.has_weights:
                found.append(f"{beneath} was computed here; the one that {label} grew from may have rounded otherwise.")
    return list(dict.fromkeys(found))


def _rows(run: Run, split: str) -> pd.DataFrame:
    """The rows that a run scores of a split, by row id."""
    return run.scores.set_index("row").loc[lambda scores: scores["split"] == split]


def _scores(run: Run, first: Run, rows: pd.DataFrame, split: str, part: str) -> np.ndarray:
    """A run's scores of the first run's rows, shape (n,)."""
    found = _rows(run, split)
    found = found[slice_masks(found)[part]]
    if run.config["data_hash"] != first.config["data_hash"] or set(found.index) != set(rows.index):
        raise SellarecError(
            f"{run.folder} scores other rows than {first.folder}; only runs over the same rows of the same data can "
            "be compared. Their config.json says what they were computed from."
        )
    return found.loc[rows.index, "score"].to_numpy()
