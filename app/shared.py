"""What the pages share: the chosen runs, the model that is loaded once, and the row that is looked at."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from sellarec import tables
from sellarec.analysis import slices
from sellarec.analysis.attention import case_effects, grouped
from sellarec.analysis.catalogue import score_candidates, score_pair
from sellarec.analysis.what_if import Attention, Case, Explorer
from sellarec.config import as_parameters, make_config
from sellarec.data import sources
from sellarec.errors import SellarecError
from sellarec.evaluation import SLICES
from sellarec.profiles import PROFILES
from sellarec.progress import listening
from sellarec.settings import Config
from sellarec.systems.base import Workspace
from sellarec.systems.registry import TABLES, find_system
from sellarec.systems.scores import sigmoid

CHOSEN = ("dataset", "backbone", "profile", "seed")
"""What the sidebar chooses; where it is not what the app was started with, the URL says so."""

KEYS = {Workspace: lambda work: f"{work.root} {work.config} {work.dataset.hash}", Case: repr}
"""By what the caches tell these apart; an address in memory may come to be another one's."""


def options() -> dict:
    """What `sellarec app` was called with: dataset and whether it was named, backbone, profile, seed, changes, runs."""
    unnamed = as_parameters("quick", make_config()) | {"runs": "runs", "named": False}
    return unnamed | (json.loads(sys.argv[1]) if len(sys.argv) > 1 else {})


def choose_work() -> Workspace:
    """The workspace that the sidebar names; it never computes a run."""
    given = options()
    root = Path(given["runs"])
    start = _start(root, given)
    with st.sidebar:
        dataset = _choice("dataset", given, start, _names(root, "dataset"))
        backbone = _choice("backbone", given, start, _names(root, "backbone"))
        profile = _choice("profile", given, start, list(PROFILES))
        seed = st.number_input("seed", 0, None, int(given["seed"]), key="seed", bind="query-params")
    if dataset == start["dataset"] != given["dataset"]:
        st.caption(f"The run store has no runs of {given['dataset']}; these are of {dataset}.")
    config = _config(given, {"dataset": dataset, "backbone": backbone, "profile": profile, "seed": int(seed)})
    own = Path(config.dataset)
    return open_work(config, str(root), own.stat().st_mtime_ns if own.is_file() else 0)


@st.cache_data(show_spinner="Opening the run store", ttl=60)
def _start(root: Path, given: dict) -> dict:
    """What is chosen at first: what was given; but if no dataset was named and the default one has no runs, one that
    has, with a backbone and under a profile of which it has them."""
    datasets = _names(root, "dataset")
    if given["named"] or given["dataset"] != make_config().dataset or given["dataset"] in datasets:
        return given
    for dataset in datasets:
        backbones = _names(root, "backbone", dataset) or [given["backbone"]]
        backbone = given["backbone"] if given["backbone"] in backbones else backbones[0]
        for profile in (given["profile"], *PROFILES):
            start = given | {"dataset": dataset, "backbone": backbone, "profile": profile}
            with suppress(SellarecError):  # what cannot be opened is no place to start
                if done_systems(Workspace(_config(given, start), root, computes=False)):
                    return start
    return given


def _config(given: dict, chosen: dict) -> Config:
    """The configuration of what is chosen, under the changes that were given; those to the data only on their own."""
    own = chosen["dataset"] == given["dataset"]
    changes = {name: value for name, value in given["changes"].items() if own or not name.startswith("data.")}
    return make_config(**{name: chosen[name] for name in CHOSEN}, **changes)


def _choice(label: str, given: dict, start: dict, found: list[str]) -> str:
    """One of the names that can be opened; an own file or folder only if it was given, and shown without its path."""
    own = given[label]
    shown = {own: Path(own).name if Path(own).is_absolute() else own}
    shown |= {name: name for name in found if name not in shown.values()}
    first = list(shown).index(start[label])
    return st.selectbox(label, list(shown), first, format_func=shown.__getitem__, key=label, bind="query-params")


@st.cache_data(show_spinner=False, ttl=60)
def _names(root: Path, kind: str, dataset: str = "*") -> list[str]:
    """Datasets or backbones that the store has runs of, or that it has runs of one dataset with, and that a name alone
    opens: registered ones, and hub ids."""
    names = set()
    for path in root.glob(f"{dataset}/*/*/[!.]*/config.json"):
        with suppress(ValueError, KeyError):  # a damaged run is told of where it is opened
            names.add(json.loads(path.read_text())[kind])
    return sorted(n for n in names if n in sources.SOURCES or (kind == "backbone" and "/" in n))


@st.cache_resource(show_spinner="Opening the run store", hash_funcs={Config: repr}, max_entries=2)
def open_work(config: Config, root: str, version: int) -> Workspace:
    """`version` tells states of an own table apart. What a workspace has loaded, a language model too, goes with it."""
    return Workspace(config, Path(root), computes=False)


@st.cache_resource(show_spinner=False, hash_funcs=KEYS, max_entries=2)
def _explorer(work: Workspace) -> Explorer:
    return Explorer(work)


@st.cache_resource(show_spinner="Loading the language model, once", hash_funcs=KEYS, max_entries=2)
def load_model(work: Workspace) -> None:
    """Have the explorer load what answers; a run without weights is an error, with the command that computes them."""
    _explorer(work).load()


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
        st.info(f"Not in the run store yet: {', '.join(find_system(n).label for n in missing)}.")
        for name in dict.fromkeys(b for n in missing for b in work.begun(n)):
            reason = work.failure(name)
            st.warning(
                f"{label_of(name)} was begun and is not finished"
                + (f"; its last try failed: {reason}" if reason else ": it is being computed, or was interrupted.")
            )
        if dtype := next(filter(None, (work.other_format(find_system(n)) for n in missing)), None):
            st.info(f"It is there in {dtype}: open the app with --dtype {dtype}.")
        st.write("The app shows runs and never trains. This command computes them, and goes on from what was begun:")
        st.code("\n".join(work.command("run", name) for name in missing), wrap_lines=True)
        st.stop()


def done_systems(work: Workspace, table: str = "table3") -> list[str]:
    """Systems of a table that are in the store."""
    return [n for n in TABLES[table] if work.is_done(n)]


def shown_systems(work: Workspace, table: str = "table3") -> list[str]:
    """The same, where a page shows them: it says what is there in another number format, and stops if nothing is."""
    done = done_systems(work, table)
    formats = Counter(work.other_format(find_system(n)) for n in TABLES[table] if n not in done)
    for dtype in filter(None, formats):
        more = f"Systems that are here in {dtype}, and not shown: {formats[dtype]}."
        st.info(f"{more} Open the app with --dtype {dtype}.")
    if not done:
        needs(work, "counting")
    return done


def ask(work: Workspace, question: str, *arguments: object) -> object:
    """Call a method of the explorer; one session at a time."""
    with _turn(work):
        return getattr(_explorer(work), question)(*arguments)


@st.cache_data(show_spinner=False, hash_funcs=KEYS, max_entries=1000)
def answer(work: Workspace, case: Case) -> tuple[float, dict[str, float]]:
    """SeLLa-Rec's log-odds of a case, and where its answer looks: attention by segment, averaged over layers."""
    load_model(work)
    log_odds, attention = ask(work, "look", case)
    return log_odds, {s: float(of_layer.mean()) for s, of_layer in grouped(attention).items()}


@st.cache_data(show_spinner=False, hash_funcs=KEYS, max_entries=8)
def attention_of(work: Workspace, case: Case) -> Attention:
    load_model(work)
    return ask(work, "attention", case)


def effects_of(work: Workspace, case: Case) -> pd.DataFrame:
    """The change of the log-odds, `delta`, indexed by what was left out or swapped; with a progress bar."""
    asked = (str(work.root), work.config, case)
    if st.session_state.get("effects", (None,))[0] != asked:
        load_model(work)
        with _taking_turns(work, "leaving parts out"):
            explorer = _explorer(work)
            found = case_effects(explorer, case, *explorer.strangers(case))
        st.session_state["effects"] = (asked, found.iloc[1:])
    return st.session_state["effects"][1]


def rank(work: Workspace, system: str, user: int, items: tuple[int, ...], liked: tuple[int, ...]) -> np.ndarray:
    """A system's probabilities of candidates, with a progress bar."""
    with _taking_turns(work, label_of(system)):
        return score_candidates(work, system, user, items, liked)


def rank_pair(work: Workspace, system: str, user: int, item: int) -> float:
    """A system's probability of one pair, with a progress bar."""
    with _taking_turns(work, label_of(system)):
        return score_pair(work, system, user, item)


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

    try:
        with turn, listening(advance):
            yield
    finally:
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
    masks = slices.warm_masks(work)
    return slices.metrics_on(work, systems, {name: masks[name] for name in SLICES})


def overall(work: Workspace, systems: tuple[str, ...]) -> pd.DataFrame:
    return _overall(work, systems, tables.seeds_there(work, systems))


@st.cache_data(show_spinner="Resampling users", hash_funcs=KEYS)
def _overall(work: Workspace, systems: tuple[str, ...], seeds: tuple[int, ...]) -> pd.DataFrame:
    """`seeds`, how many of each system are there, tells states of the store apart."""
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
    items = list(dict.fromkeys([*own, *range(1, data.n_items + 1)]))
    item = right.selectbox(
        "item, test rows first",
        items,
        help="type to search the catalogue; behind the user's scored test rows stands everything else",
        index=_from_url("item", items, f"ids go from 1 to {data.n_items}"),
        format_func=data.distinct_titles.__getitem__,
        key=f"item of {user}",
    )
    for name, value in (("user", user), ("item", item)):
        st.query_params[name] = str(value)
        st.session_state[f"last {name}"] = str(value)
    return ask(work, "case_of_pair", user, item)


def _go_to(row: pd.Series) -> None:
    st.session_state["user"], st.session_state[f"item of {row['user']}"] = int(row["user"]), int(row["item"])


def _from_url(name: str, valid: list[int], hint: str) -> int:
    """Index in `valid` of the number in the URL, or else of the last one shown; 0, with a warning, if not valid."""
    wanted = st.query_params.get(name) or st.session_state.get(f"last {name}", "")
    if wanted in (known := [str(number) for number in valid]):
        return known.index(wanted)
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
        st.caption(note.replace("<br>", " "))
    figure.update_layout(title=None, margin_t=max(30, (figure.layout.margin.t or 90) - 40))
    st.plotly_chart(figure, theme=None, key=key)


def probability(log_odds: float) -> float:
    return float(sigmoid(np.array(log_odds)))


def explain(error: SellarecError) -> None:
    """Show an error that a user can mend."""
    st.error(str(error))
