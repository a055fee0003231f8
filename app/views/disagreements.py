"""The rows on which two systems differ most: where errors are found."""

from urllib.parse import urlencode

import streamlit as st
from shared import CHOSEN, centred_log_odds, current_work, label_of, scored_rows, shown_systems

work = current_work()
st.title("Disagreements")
systems = shown_systems(work)
if len(systems) < 2:
    st.info(f"Two systems are needed; the store has one. Compute more with: {work.command('run', 'table3')}")
    st.stop()
a, b, c, d = st.columns(4)
first = a.selectbox(
    "system", systems, index=len(systems) - 1, format_func=label_of, key="first", persist_state="session"
)
second = b.selectbox(
    "against", [s for s in systems if s != first], format_func=label_of, key="second", persist_state="session"
)
which = c.segmented_control(
    "rows", ["all", "warm", "cold"], default="all", required=True, key="rows", persist_state="session"
)
right = d.segmented_control(
    "the first system is",
    ["either", "right", "wrong"],
    default="either",
    required=True,
    key="right",
    persist_state="session",
)
rows = scored_rows(work, tuple(systems))
log_odds = centred_log_odds(work, tuple(systems))
rows = rows.assign(difference=log_odds[first] - log_odds[second])
if which != "all":
    rows = rows[rows["warm"] == (which == "warm")]
if right != "either":
    rows = rows[((rows["difference"] > 0) == (rows["label"] == 1)) == (right == "right")]
rows = rows.reindex(rows["difference"].abs().sort_values(ascending=False).index).head(200)
shown = rows[["user", "title", "label", "warm", first, second, "difference"]]
chosen = {name: st.query_params[name] for name in CHOSEN if name in st.query_params}
links = [urlencode(chosen | {"user": u, "item": i}) for u, i in rows[["user", "item"]].to_numpy()]
shown = shown.assign(open=[f"user_item?{link}" for link in links])
st.dataframe(
    shown,
    hide_index=True,
    column_config={
        "label": st.column_config.CheckboxColumn("liked"),
        first: st.column_config.NumberColumn(label_of(first), format="%.3f"),
        second: st.column_config.NumberColumn(label_of(second), format="%.3f"),
        "difference": st.column_config.NumberColumn("difference of log-odds", format="%+.2f"),
        "open": st.column_config.LinkColumn("", display_text="open"),
    },
)
st.caption(
    "Right: relative to its mean, the first system is above the second on a liked row, or below it on a disliked one."
)
