"""Tables for notebooks and reports: what the runs hold, as DataFrames. What is missing is computed, if the workspace
computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler
from scipy.stats import rankdata

from sellarec.evaluation import FEWEST_TO_DECIDE, FEWEST_USERS, Interval, UserBootstrap
from sellarec.marks import marked_labels
from sellarec.profiles import without_additions
from sellarec.systems.base import Workspace
from sellarec.systems.registry import OVERALL, TABLES, find_system, not_fair
from sellarec.systems.rows import stage1_rows, stage2_rows, stage3_rows

PUBLISHED_ML_1M = {
    "mf": (0.6473, 0.6264),
    "lightgcn": (0.6139, 0.6276),
    "sasrec": (0.7058, 0.6818),
    "din": (0.7138, 0.6595),
    "zero_shot": (0.5718, 0.5145),
    "prompt4nr": (0.7191, 0.6839),
    "tallrec": (0.7268, 0.6989),
    "ctrl": (0.7155, 0.6681),
    "person_prompt": (0.7223, 0.6991),
    "collm": (0.7357, 0.7179),
    "binllm": (0.7417, 0.7239),
    "sella": (0.7606, 0.7464),
    "no_alignment": (0.7357, 0.7179),
    "random_projection": (0.7511, 0.7333),
    "no_warm_token": (0.7521, 0.7371),
    "no_user_item_tokens": (0.7305, 0.7076),
    "warm_then_user_item": (0.7576, 0.7458),
    "user_item_then_warm": (0.7539, 0.7410),
}
"""AUC and UAUC that SeLLa-Rec's paper prints for ML-1M with Qwen2-7B, all training rows."""


def systems_of(work: Workspace, table: str, needed: Sequence[str]) -> tuple[str, ...]:
    """The systems of "table3" or "table5" that are in the store, and those that are needed in any case.

    What is left out is printed with the command that computes it: a table of language models takes hours.
    """
    wanted = list(dict.fromkeys([*TABLES[table], *needed]))
    missing = [n for n in wanted if n not in needed and not work.is_done(n)]
    if missing:
        print(f"Not in the store: {', '.join(missing)}. To compute them: {work.command('run', table)}")
    for name in missing:
        if reason := work.failure(name):
            print(f"{name} failed: {reason}")
    return tuple(n for n in wanted if n not in missing)


def overall_table(work: Workspace, systems: Sequence[str] = OVERALL) -> pd.DataFrame:
    """AUC and UAUC of every system on the scored test rows, with 95 % user-bootstrap intervals.

    Returns:
        Indexed by label: `system`; for each metric m: `m`, `m_low`, `m_high`; `seeds`, how many of them are in the
        store, and `m_mean` and `m_spread`, mean and largest distance from it over these; and `m_paper` (ML-1M only);
        `attrs["paper"]` says how these were made, and `attrs["not_fair"]` which systems are no fair baselines.
    """
    bootstrap = _bootstrap(work)
    others = [work.variant({"seed": s}) for s in work.seeds() if s != work.config.seed]
    lines = []
    for name in systems:
        score = work.test_scores(name)
        line: dict[str, object] = {"label": find_system(name).label, "system": name}
        line |= _over_seeds([work, *(o for o in others if _has_seed(o, name))], name)
        for n, metric in enumerate(("auc", "uauc")):
            interval = bootstrap.interval(metric, score)
            line |= interval.columns(metric)
            if work.dataset.name == "ml-1m":
                line[f"{metric}_paper"] = PUBLISHED_ML_1M.get(name, (np.nan, np.nan))[n]
        lines.append(line)
    table = pd.DataFrame(lines).set_index("label")
    table.attrs["not_fair"] = [name for name in systems if name in not_fair(work.config)]
    table.attrs["paper"] = "Qwen2-7B, all rows" + ("" if without_additions(work.config) else ", without our additions")
    return table


def _has_seed(other: Workspace, name: str) -> bool:
    return find_system(name).uses_seed and other.is_done(name)


def seeds_there(work: Workspace, systems: Sequence[str]) -> tuple[int, ...]:
    """How many seeds the store has of each system."""
    places = [work.variant({"seed": s}) for s in work.seeds()]
    return tuple(sum(_has_seed(place, name) for place in places) for name in systems)


def _over_seeds(works: Sequence[Workspace], name: str) -> dict[str, float]:
    """The columns of `overall_table` that tell how a system's metrics vary with the seed."""
    line: dict[str, float] = {"seeds": len(works)}
    for metric in ("auc", "uauc"):
        values = np.array([w.run(name).metrics["test"]["all"][metric] for w in works], dtype=float)
        line |= {f"{metric}_mean": values.mean(), f"{metric}_spread": np.abs(values - values.mean()).max()}
    return line


def difference_table(
    work: Workspace,
    system: str = "sella",
    systems: Sequence[str] = OVERALL,
    *,
    gains: bool = False,
) -> pd.DataFrame:
    """How much better one system is than each other one, with paired 95 % user-bootstrap intervals.

    Args:
        gains: How much better each other one is than this one instead.

    Returns:
        Indexed by the other system's label: `system`; for each metric m: `m`, `m_low`, `m_high`, `m_verdict`. `attrs`
        say what was taken from what (`of`, `minus`), whom the verdict is about (`who`), and as in `overall_table`
        which systems are no fair baselines.
    """
    score = work.test_scores(system)
    pairs, names = {}, [n for n in systems if n != system]
    for name in names:
        other = work.test_scores(name)
        pairs[find_system(name).label] = (other, score) if gains else (score, other)
    label, others = find_system(system).label, "each other system"
    of, minus, who = (others, label, "it") if gains else (label, others, label)
    table = differences(_bootstrap(work), pairs, of=of, minus=minus, who=who)
    table.insert(0, "system", names)
    table.attrs["not_fair"] = [name for name in names if name in not_fair(work.config)]
    return table


def blend_table(work: Workspace, system: str, systems: Sequence[str]) -> pd.DataFrame:
    """What each other system's answer adds to one's: the mean of both ranks among the rows, minus the one's alone.

    The first line is the null: the system with itself, trained from the next seed. To average two trainings helps by
    itself.

    Returns:
        As `difference_table`.
    """
    label, again = find_system(system).label, work.config.seed + 1
    scores = {f"with itself, seed {again}": work.variant({"seed": again}).test_scores(system)}
    scores |= {f"with {find_system(n).label}": work.test_scores(n) for n in systems if n != system}
    own = rankdata(work.test_scores(system))
    pairs = {name: (own + rankdata(score), own) for name, score in scores.items()}
    return differences(_bootstrap(work), pairs, of="the mean of two rankings", minus=label, who="the mean")


def differences(
    bootstrap: UserBootstrap, pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], **attrs: str
) -> pd.DataFrame:
    """How much better the first scores of each pair are than the second, by label, as `difference_table` gives it."""
    lines = []
    for label, (score, other) in pairs.items():
        line: dict[str, object] = {"against": label}
        for metric in ("auc", "uauc"):
            interval = bootstrap.interval(metric, score, other)
            line |= interval.columns(metric)
            enough = bootstrap.effective_users[metric] >= FEWEST_TO_DECIDE
            line[f"{metric}_verdict"] = verdict(interval) if enough else "too few users"
        lines.append(line)
    table = pd.DataFrame(lines).set_index("against")
    table.attrs |= attrs
    return table


def verdict(difference: Interval) -> str:
    """ "better", "worse", or "undecided" when the interval of a difference holds 0."""
    if not difference.excludes_zero:
        return "undecided"
    return "better" if difference.value > 0 else "worse"


def by_part(lines: pd.DataFrame, metric: str) -> pd.DataFrame:
    """`analysis.slices.metrics_on` as people read it: ".731 [.712, .750]" by system and part of the rows."""
    users = "uauc_users" if metric == "uauc" else "users"
    shown = lines.assign(
        said=[
            f"{Interval(*bounds):.3f}".replace("0.", ".")
            for bounds in lines[[metric, f"{metric}_low", f"{metric}_high"]].to_numpy(dtype=float)
        ],
        column=[
            f"{p}: {r:,} rows, {u:,} users{' (too few)' if u < FEWEST_USERS else ''}"
            for p, r, u in lines[["part", "rows", users]].itertuples(index=False)
        ],
    )
    wide = shown.pivot(index="label", columns="column", values="said")
    return wide.loc[shown["label"].unique(), shown["column"].unique()].rename_axis(index=None, columns=metric.upper())


def levels(lines: pd.DataFrame) -> pd.DataFrame:
    """The mean probability that each system gives to each part of the rows, of `analysis.slices.metrics_on`; the share
    of likes is in the column's name."""
    named = lines.assign(column=[f"{p}: {liked:.3f} liked" for p, liked in lines[["part", "liked"]].to_numpy()])
    wide = named.pivot(index="label", columns="column", values="probability")
    return wide.loc[named["label"].unique(), named["column"].unique()].rename_axis(index=None, columns=None)


def plain(table: pd.DataFrame, precision: int = 4) -> Styler:
    """A table of numbers for a notebook; what looks like HTML in it is shown as it is."""
    shown = table.style.format(precision=precision, na_rep="undefined", escape="html")
    return shown.format_index(escape="html")


def in_words(table: pd.DataFrame) -> Styler:
    """A table of sentences for a notebook, broken into lines."""
    shown = plain(table).set_properties(**{"text-align": "left", "white-space": "normal"})
    return shown.set_table_styles([{"selector": "th", "props": "text-align: left"}])


def with_titles(work: Workspace, points: pd.DataFrame) -> pd.DataFrame:
    """Lines that name an `item`, with its `title`, first `genre` and number of `ratings` in the training part."""
    catalogue = work.dataset.catalogue
    ratings = work.dataset.part("train")["item"].value_counts()
    item = points["item"]
    return points.assign(
        title=item.map(catalogue["title"]),
        genre=item.map(catalogue["genres"].str.split("|").str[0]).replace("", "none"),
        ratings=item.map(ratings).fillna(0).astype(int),
    ).reset_index(drop=True)


def provenance_table(work: Workspace, systems: Sequence[str]) -> pd.DataFrame:
    """Where each number comes from: the run's folder, key, data hash and code version; what it was computed with that
    changes rounding, and which runs that it grew from were computed again since; and if its weights are there."""
    lines = []
    for name in systems:
        run = work.run(name)
        lines.append(
            {
                "system": find_system(name).label,
                "run": run.folder.relative_to(work.root).as_posix(),
                "data": run.config["data_hash"][:12],
                "code": run.config["code"],
                "torch": run.config["versions"]["torch"],
                "computed with": ", ".join(run.config.get("computed_with", ["not recorded"])),
                "grew from": ", ".join(f"another {need}" for need in work.computed_since(name)),
                "weights": "" if run.has_weights else "not published",
            }
        )
    return pd.DataFrame(lines).set_index("system").rename_axis(None)


def scope(work: Workspace, shown: str = "") -> str:
    """One sentence that every table and figure carries: how much was trained on, what is shown, and whether the method
    is the paper's.

    Args:
        shown: What stands there, if it is not all scored test rows: "user 3 and Heat (1995)".
    """
    config, train = work.config, len(work.dataset.part("train"))
    test, scored = len(work.dataset.part("test")), len(work.part("test"))
    stages = [stage1_rows(work), stage2_rows(work), stage3_rows(work)]
    twice = len(stages[0].index.intersection(stages[2].index))
    which = "all" if scored == test else f"whole users with {scored:,} of"
    return (
        f"{work.dataset.name}, {Path(config.backbone).name}: stages 1, 2 and 3 on "
        f"{len(stages[0]):,}, {len(stages[1]):,} and {len(stages[2]):,} of {train:,} training rows"
        f"{f', {twice:,} of them in both 1 and 3' if twice else ''}; "
        f"{shown or f'scored on {which} {test:,} test rows'}; seed {config.seed}; prompt and tokens "
        f"{'without our additions' if without_additions(config) else 'with our additions'}."
    )


def pretty(table: pd.DataFrame) -> pd.DataFrame:
    """An overall table, or one of differences, as people read it: "0.731 [0.712, 0.750]", without the technical
    columns; bounds that there are none of are left out, and what is no fair baseline has a †."""
    out = pd.DataFrame(index=marked_labels(table) if "system" in table else table.index.rename(None))
    for metric in ("auc", "uauc"):
        signed = "+.4f" if f"{metric}_verdict" in table else ".4f"
        out[metric.upper()] = [
            format(Interval(*bounds), signed)
            for bounds in table[[metric, f"{metric}_low", f"{metric}_high"]].to_numpy(dtype=float)
        ]
        if f"{metric}_verdict" in table:
            out[f"{metric.upper()}, {table.attrs['who']} is"] = table[f"{metric}_verdict"].to_numpy()
        if f"{metric}_paper" in table:
            paper = table[f"{metric}_paper"].astype(float)
            out[f"{metric.upper()}, paper (7B)"] = ["" if np.isnan(v) else f"{v:.4f}" for v in paper]
            out[f"{metric.upper()}, ours − paper"] = [
                "" if np.isnan(v) else f"{v:+.4f}" for v in table[metric].astype(float) - paper
            ]
    if "seeds" in table and (table["seeds"] > 1).any():
        for metric in ("auc", "uauc"):
            out[f"{metric.upper()} over seeds"] = [
                f"{mean:.4f} ± {spread:.4f} ({n:.0f})" if n > 1 else ""
                for mean, spread, n in table[[f"{metric}_mean", f"{metric}_spread", "seeds"]].to_numpy(dtype=float)
            ]
    return out


def export_table(table: pd.DataFrame, name: str, folder: str | Path | None, caption: str = "") -> None:
    """Write a table into the folder's `tables/`: all columns as CSV, and LaTeX (booktabs), in which tables of systems
    are as people read them. Nothing if there is no folder."""
    if folder:
        target = Path(folder) / "tables"
        target.mkdir(parents=True, exist_ok=True)
        table.to_csv(target / f"{name}.csv", float_format="%.6f")
        shown = pretty(table) if {"auc_low", "uauc_low"} <= set(table) and "part" not in table else table
        latex = shown.to_latex(
            float_format="%.4f", na_rep="", escape=True, caption=_for_latex(caption) or None, label=f"tab:{name}"
        )
        (target / f"{name}.tex").write_text(latex.replace("−", "$-$").replace("†", r"$^\dagger$"))


def _for_latex(text: str) -> str:
    special = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
    special |= {"^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}"}
    return text.translate(str.maketrans(special))


def _bootstrap(work: Workspace) -> UserBootstrap:
    rows = work.part("test")
    return UserBootstrap(rows["user"].to_numpy(), rows["label"].to_numpy())
