"""What the pages share: the chosen runs, the model that is loaded once, and the row that is looked at."""

from __future__ import annotations

import json
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from sellarec import tables
from sellarec.analysis import slices
from sellarec.analysis.attention import grouped
from sellarec.analysis.catalogue import score_candidates
from sellarec.analysis.what_if import Attention, Case, Explorer
from sellarec.config import PROFILES, Config, make_config
from sellarec.errors import SellarecError
from sellarec.progress import listening
from sellarec.systems.base import Workspace
from sellarec.systems.registry import TABLES, find_system

KEYS = {Workspace: lambda work: f"{work.root} {work.config}", Case: repr}
"""By what the caches tell these apart; an address in memory may come to be another one's."""


def options() -> dict:
    """What `sellarec app` was called with: dataset, backbone, profile, seed, changes, runs."""
    return json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}


def choose_work() -> Workspace:
    """The workspace that the sidebar names; it never computes a run."""
    given = options()
    root = Path(given.get("runs", "runs"))
    with st.sidebar:
        dataset = _choice("dataset", given.get("dataset", "ml-100k"), _folders(root))
        backbones = [b for b in _folders(root / dataset) if b != "no-llm"]
        backbone = _choice("backbone", given.get("backbone", "smollm2-135m"), backbones)
        profile = _choice("profile", given.get("profile", "quick"), list(PROFILES))
        seed = st.number_input("seed", 0, 99, int(given.get("seed", 0)), key="seed", bind="query-params")
    if dataset == Path(str(given.get("dataset", ""))).stem:
        dataset = given["dataset"]  # an own table is a path, its folder in the store the name
    if backbone == Path(str(given.get("backbone", ""))).name:
        backbone = given["backbone"]
    config = make_config(profile, dataset, backbone=backbone, seed=int(seed), **given.get("changes", {}))
    return open_work(config, str(root))


def _choice(label: str, default: str, found: list[str]) -> str:
    name = Path(default).stem if label == "dataset" else Path(default).name
    choices = list(dict.fromkeys([name, *found]))
    return st.selectbox(label, choices, key=label, bind="query-params")


def _folders(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")) if root.is_dir() else []


@st.cache_resource(show_spinner="Opening the run store", hash_funcs={Config: repr}, max_entries=4)
def open_work(config: Config, root: str) -> Workspace:
    return Workspace(config, Path(root), computes=False)


@st.cache_resource(show_spinner="Loading the language model, once", hash_funcs=KEYS, max_entries=2)
def _explorer(work: Workspace) -> Explorer:
    return Explorer(work)


@st.cache_resource(show_spinner=False, hash_funcs=KEYS)
def _turn(work: Workspace) -> threading.Lock:
    """Held by the session that uses the model, which is shared."""
    return threading.Lock()


def current_work() -> Workspace:
    return st.session_state["work"]


def needs(work: Workspace, *names: str) -> None:
    """Stop the page kindly if a run is missing."""
    missing = [n for n in names if not work.is_done(n)]
    if missing:
        config = work.config
        st.info(f"Not in the run store yet: {', '.join(find_system(n).label for n in missing)}.")
        for name in dict.fromkeys(b for n in missing for b in work.begun(n)):
            reason = work.failure(name)
            st.warning(
                f"{label_of(name)} was begun and is not finished"
                + (f"; its last try failed: {reason}" if reason else ": it is being computed, or was interrupted.")
            )
        st.write("The app shows runs and never trains. This command computes them, and goes on from what was begun:")
        words = ["--dataset", config.dataset, "--backbone", config.backbone, "--seed", str(config.seed)]
        words += ["--profile", st.session_state["profile"], "--runs", str(work.root)]
        for setting, value in options().get("changes", {}).items():
            words += [f"--{setting.replace('_', '-')}", str(value)]
        st.code("\n".join(shlex.join(["sellarec", "run", name, *words]) for name in missing), wrap_lines=True)
        st.stop()


def done_systems(work: Workspace) -> list[str]:
    """Systems of the overall table that are in the store."""
    return [n for n in TABLES["table3"] if work.is_done(n)]


def ask(work: Workspace, question: str, *arguments: object) -> object:
    """Call a method of the explorer; one session at a time."""
    with _turn(work):
        return getattr(_explorer(work), question)(*arguments)


@st.cache_data(show_spinner=False, hash_funcs=KEYS, max_entries=1000)
def answer(work: Workspace, case: Case) -> tuple[float, dict[str, float]]:
    """SeLLa-Rec's log-odds of a case, and where its answer looks: attention by segment, averaged over layers."""
    log_odds, attention = ask(work, "look", case)
    return log_odds, {s: float(of_layer.mean()) for s, of_layer in grouped(attention).items()}


@st.cache_data(show_spinner=False, hash_funcs=KEYS, max_entries=8)
def attention_of(work: Workspace, case: Case) -> Attention:
    return ask(work, "attention", case)


def effects_of(work: Workspace, case: Case) -> pd.DataFrame:
    """The change of the log-odds, `delta`, indexed by what was left out or swapped; with a progress bar."""
    asked = (str(work.root), work.config, case)
    if st.session_state.get("effects", (None,))[0] != asked:
        changed = ask(work, "interventions", case)
        with _taking_turns(work, "leaving parts out"):
            found = _explorer(work).log_odds([case, *changed.values()]).astype(float)
        st.session_state["effects"] = (asked, pd.DataFrame({"delta": found[1:] - found[0]}, index=list(changed)))
    return st.session_state["effects"][1]


def rank(work: Workspace, system: str, user: int, items: tuple[int, ...], liked: tuple[int, ...]) -> np.ndarray:
    """A system's probabilities of candidates, with a progress bar."""
    with _taking_turns(work, label_of(system)):
        return score_candidates(work, system, user, items, liked)


@contextmanager
def _taking_turns(work: Workspace, label: str) -> Iterator[None]:
    """Use the model for long: a progress bar shows, Stop cancels, and other sessions get turns in between."""
    bar = st.progress(0.0, f"{label}; Stop at the top right cancels")
    turn = _turn(work)

    def advance(_: str, done: int, total: int) -> None:
        turn.release()
        time.sleep(0.002)  # long enough for a waiting session to take its turn
        turn.acquire()
        bar.progress(done / total, f"{label}: {done:,} of {total:,}")

    with turn, listening(advance):
        yield
    bar.empty()


def label_of(name: str) -> str:
    return find_system(name).label


@st.cache_data(show_spinner="Counting scores", hash_funcs=KEYS)
def scored_rows(work: Workspace, systems: tuple[str, ...]) -> pd.DataFrame:
    """The scored test rows with title and every system's probability; indexed by row id."""
    rows = work.part("test")[["user", "item", "label", "warm"]].copy()
    rows["title"] = rows["item"].map(work.dataset.catalogue["title"])
    return rows.assign(**{name: work.test_scores(name) for name in systems})


@st.cache_data(show_spinner=False, hash_funcs=KEYS)
def centred_log_odds(work: Workspace, systems: tuple[str, ...]) -> pd.DataFrame:
    """Log-odds of the scored test rows, less each system's mean: one system may be surer of everything."""
    log_odds = scored_rows(work, systems)[list(systems)].clip(1e-6, 1 - 1e-6).apply(lambda p: np.log(p / (1 - p)))
    return log_odds - log_odds.mean()


@st.cache_data(show_spinner="Resampling users", hash_funcs=KEYS)
def warm_and_cold(work: Workspace, systems: tuple[str, ...]) -> pd.DataFrame:
    return slices.metrics_on(work, systems, {k: m for k, m in slices.warm_masks(work).items() if "3" not in k})


@st.cache_data(show_spinner="Resampling users", hash_funcs=KEYS)
def overall(work: Workspace, systems: tuple[str, ...]) -> pd.DataFrame:
    return tables.overall_table(work, systems)


def choose_case(work: Workspace) -> Case:
    """The user and the item that the URL, the widgets, or another page before this one name."""
    data, rows = work.dataset, work.part("test")
    counts = rows["user"].value_counts().sort_index()
    left, right, chance = st.columns([4, 4, 2], vertical_alignment="bottom")
    with chance.container(horizontal=True):
        if st.button("Random", help="another scored test row"):
            _go_to(rows.sample().iloc[0])
        if st.button("Disputed", help="the next of the scored test rows on which the systems disagree most"):
            at = st.session_state["disputed"] = st.session_state.get("disputed", -1) + 1
            log_odds = centred_log_odds(work, tuple(done_systems(work)))
            order = (log_odds.max(axis=1) - log_odds.min(axis=1)).sort_values(ascending=False, kind="stable").index
            _go_to(rows.loc[order[at % len(order)]])
    users = [int(u) for u in counts.index]
    user = left.selectbox(
        "user",
        users,
        index=_from_url("user", users, f"users with scored test rows are among {users[0]} to {users[-1]}"),
        format_func=lambda u: f"user {u}, {counts[u]} test rows",
        key="user",
    )
    own = [int(i) for i in rows[rows["user"] == user]["item"]]
    items = [*own, *(i for i in range(1, data.n_items + 1) if i not in set(own))]
    item = right.selectbox(
        "item, test rows first",
        items,
        help="type to search the catalogue; behind the user's scored test rows stands everything else",
        index=_from_url("item", items, f"ids go from 1 to {data.n_items}"),
        format_func=data.titles.__getitem__,
        key=f"item of {user}",
    )
    for name, value in (("user", user), ("item", item)):
        st.query_params[name] = str(value)
        st.session_state[f"last {name}"] = str(value)
    return ask(work, "case_of_pair", user, item)


def _go_to(row: pd.Series) -> None:
    st.session_state["user"], st.session_state[f"item of {row['user']}"] = int(row["user"]), int(row["item"])


def _from_url(name: str, valid: list[int], hint: str) -> int:
    """Where in `valid` the number stands that the URL names, or else the page before; 0, with a warning, if nowhere."""
    wanted = st.query_params.get(name) or st.session_state.get(f"last {name}", "")
    if wanted.isdigit() and int(wanted) in valid:
        return valid.index(int(wanted))
    if st.query_params.get(name):
        st.warning(
            f"'{wanted}' is not {'a user' if name == 'user' else 'an item'} to show; {hint}. The first is shown."
        )
    return 0


def show(figure: go.Figure, key: str | None = None) -> None:
    """A figure under its title as text of the page, which wraps on a narrow screen."""
    title, note = figure.layout.title.text, figure.layout.title.subtitle.text
    if title:
        st.subheader(title)
    if note:
        st.caption(note)
    figure.update_layout(title=None, margin_t=max(30, (figure.layout.margin.t or 90) - 40))
    st.plotly_chart(figure, theme=None, key=key)


def probability(log_odds: float) -> float:
    return float(1 / (1 + np.exp(-log_odds)))


def explain(error: SellarecError) -> None:
    """Show an error that a user can mend."""
    st.error(str(error))
    st.caption("A run that is damaged or half written stands as such; other pages and other runs are not touched.")
