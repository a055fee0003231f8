"""One user and one item: every system's answer, and SeLLa-Rec's under what-if changes."""

import dataclasses

import pandas as pd
import streamlit as st
from shared import ask, choose_case, current_work, done_systems, label_of, needs, probability, scored_rows

from sellarec.prompts import ITEM, USER, WARM

work = current_work()
st.title("User and item")
needs(work, "sella")
case = choose_case(work)
titles = work.dataset.titles

systems = tuple(done_systems(work))
rows = scored_rows(work, systems)
user = st.session_state["user"]
row = rows[(rows["user"] == user) & (rows["item"] == case.item)]
left, right = st.columns(2)
with left:
    st.subheader("What the user liked before")
    history = [{"title": titles[i], "genres": work.dataset.catalogue["genres"][i]} for i in reversed(case.history)]
    st.dataframe(pd.DataFrame(history, columns=["title", "genres"]), hide_index=True, height=240)
with right:
    st.subheader("What the systems say")
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
        shown = {"probability": st.column_config.ProgressColumn(min_value=0.0, max_value=1.0, format="%.3f")}
        st.dataframe(pd.DataFrame(said), hide_index=True, column_config=shown)
        st.caption("Place: among this user's scored test rows, best first.")
    else:
        st.write("The user never rated this item in the scored test rows; only SeLLa-Rec, below, answers live.")

st.subheader("What if?")
listed = work.config.prompt.history
names = {"user": USER, "item": ITEM, "warm": WARM}
a, b, c = st.columns(3)
shown = a.pills(
    "soft tokens", list(names), selection_mode="multi", default=[n for n, t in names.items() if t in case.tokens]
)
removed = b.multiselect("take titles out of the history", sorted(set(case.history)), format_func=titles.__getitem__)
added = c.multiselect("add liked titles, the latest", range(1, len(titles)), format_func=titles.__getitem__)
d, e, f = st.columns(3)
target = d.selectbox(
    "another target", [None, *range(1, len(titles))], format_func=lambda i: titles[i] if i else "no change"
)
item_token = e.selectbox(
    "make the item token of", [None, *range(1, len(titles))], format_func=lambda i: titles[i] if i else "the target"
)
user_token = f.number_input("make the user token of user (0: the own user)", 0, work.dataset.n_users, 0)

history = (*(i for i in case.history if i not in removed), *added)
changed = dataclasses.replace(case, history=history, tokens=tuple(t for n, t in names.items() if n in shown))
if target:
    of_item = ask(work, "counts", "item", target)
    changed = dataclasses.replace(changed, item=target, of_item=of_item)
if item_token:
    of_item = ask(work, "counts", "item", item_token)
    changed = dataclasses.replace(changed, item_token=item_token, of_item_token=of_item)
if user_token:
    of_user = ask(work, "counts", "user", int(user_token))
    changed = dataclasses.replace(changed, user_token=int(user_token) if of_user[0] else 0, of_user_token=of_user)
before, after = ask(work, "log_odds", [case, changed])
st.session_state["case"] = changed
x, y = st.columns(2)
x.metric("probability as it is", f"{probability(before):.4f}")
y.metric(
    "probability after the changes",
    f"{probability(after):.4f}",
    delta=f"{after - before:+.4f} log-odds" if changed != case else None,
)
st.caption(f"The prompt lists the last {listed} liked titles. Made-up rows are scored and never stored.")
with st.expander("The prompt"):
    st.code(ask(work, "prompt", changed).text, language=None, wrap_lines=True)
