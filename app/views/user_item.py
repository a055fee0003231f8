"""One user and one item: every system's answer, and SeLLa-Rec's under what-if changes."""

import dataclasses

import pandas as pd
import streamlit as st
from shared import (
    answer,
    ask,
    choose_case,
    current_work,
    done_systems,
    label_of,
    load_model,
    needs,
    probability,
    rank_pair,
    scored_rows,
    show,
)

from sellarec import figures
from sellarec.analysis.catalogue import row_of_pair
from sellarec.analysis.what_if import Case
from sellarec.errors import NotComputed
from sellarec.prompts import ITEM, USER, WARM

work = current_work()
st.title("User and item")
needs(work, "sella")
case = choose_case(work)
titles = work.dataset.titles
title_of = work.dataset.distinct_titles.__getitem__

systems = tuple(done_systems(work))
rows = scored_rows(work, systems)
user = st.session_state["user"]
row = rows[(rows["user"] == user) & (rows["item"] == case.item)]


def line_of(system: str) -> dict:
    """A system's probability of the pair, or why it gives none."""
    try:
        return {"system": label_of(system), "probability": rank_pair(work, system, user, case.item)}
    except NotComputed:  # its own run is in the store
        return {"system": label_of(system), "why not": "published without weights"}


left, right = st.columns(2)
with left:
    st.subheader("What the user liked before")
    history = [{"title": titles[i], "genres": work.dataset.catalogue["genres"][i]} for i in reversed(case.history)]
    st.dataframe(pd.DataFrame(history, columns=["title", "genres"]), hide_index=True, height=240)
with right:
    st.subheader("What the systems say")
    probabilities = st.column_config.ProgressColumn(min_value=0.0, max_value=1.0, format="%.3f")
    if len(row):
        st.write(
            "In truth the user **liked** it." if row["label"].iloc[0] else "In truth the user **did not like** it."
        )
        own = rows[rows["user"] == user]
        said = [
            {
                "system": label_of(n),
                "probability": row[n].iloc[0],
                "place": f"{(own[n] > row[n].iloc[0]).sum() + 1} of {len(own)}",
            }
            for n in systems
        ]
        st.dataframe(pd.DataFrame(said), hide_index=True, column_config={"probability": probabilities})
        st.caption("Place: among this user's scored test rows, best first.")
    else:
        st.write("This pair is not among the scored test rows. SeLLa-Rec answers below.")
        rated = row_of_pair(work, user, case.item)
        if rated is not None and work.dataset.interactions["split"].iat[rated] == "train":
            st.caption(
                "It is a training row: systems may have learnt its label. What SeLLa-Rec's prompt and tokens count "
                "leaves this rating out, as in training."
            )
        met = "with the history before the rating, or, of a pair that is not rated, after everything in the data"
        if st.button("Ask every system", help=met):
            said = pd.DataFrame([line_of(n) for n in systems]).fillna({"why not": ""})
            st.dataframe(said, hide_index=True, column_config={"probability": probabilities})


@st.fragment
def what_if() -> None:
    """A fragment: a change in it runs nothing else again."""
    changed = edited(case)
    (before, looked), (after, looks) = answer(work, case), answer(work, changed)
    x, y = st.columns(2)
    x.metric("probability as it is", f"{probability(before):.4f}")
    y.metric(
        "probability after the changes",
        f"{probability(after):.4f}",
        delta=f"{after - before:+.4f} log-odds" if changed != case else None,
    )
    st.caption(
        f"The prompt lists the last {work.config.prompt.history} liked titles. "
        "Made-up rows are scored and never stored. Both answers are computed now; in bfloat16 they may be some "
        "hundredths of log-odds off the stored score, which was rounded elsewhere."
    )
    shares = {"as it is": looked} | ({"after the changes": looks} if changed != case else {})
    show(figures.attention_shares_figure(shares), key="shares")
    with st.expander("The prompt"):
        st.code(ask(work, "prompt", changed).text, language=None, wrap_lines=True)


def edited(case: Case) -> Case:
    """The case with the changes that the widgets name."""
    names = {n: t for n, t in {"user": USER, "item": ITEM, "warm": WARM}.items() if t in case.tokens}
    a, b, c = st.columns(3)
    shown = a.pills("soft tokens", list(names), selection_mode="multi", default=list(names))
    listed = case.listed(work.config.prompt.history)
    removed = b.multiselect("take titles out of the history", sorted(set(listed)), format_func=title_of)
    added = c.multiselect("add liked titles, the latest", range(1, len(titles)), format_func=title_of)
    d, e, f = st.columns(3)
    choices = [None, *range(1, len(titles))]
    target = d.selectbox("another target", choices, format_func=lambda i: title_of(i) if i else "no change")
    item_token = e.selectbox(
        "make the item token of", choices, format_func=lambda i: title_of(i) if i else "the target"
    )
    user_token = int(f.number_input("make the user token of user (0: the own user)", 0, work.dataset.n_users, 0))

    kept = [i for i in listed if i not in removed] if removed else case.history  # no earlier title moves up
    history = (*kept, *added)
    case = dataclasses.replace(case, history=history, tokens=tuple(t for n, t in names.items() if n in shown))
    if target and target != case.item:
        case = dataclasses.replace(case, item=target, of_item=ask(work, "counts", "item", target))
    if item_token and item_token != case.item:
        of_item = ask(work, "counts", "item", item_token)
        case = dataclasses.replace(case, item_token=item_token, of_item_token=of_item)
    if user_token and user_token != case.user:
        of_user = ask(work, "counts", "user", user_token)
        case = dataclasses.replace(case, user_token=user_token if of_user[0] else 0, of_user_token=of_user)
    return case


st.subheader("What if?")
load_model(work)
what_if()
