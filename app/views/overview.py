"""Every system or ablation in the store: overall, and on warm and cold rows."""

import streamlit as st
from shared import current_work, done_systems, overall, show, shown_systems, warm_and_cold

from sellarec import figures, tables

work = current_work()
st.title("SeLLa-Rec, explored")
TABLES = {"table3": "systems", "table5": "ablations", "controls": "the MLP's ablations", "checks": "checks"}
there = [name for name in TABLES if name == "table3" or len(done_systems(work, name)) > 1]
table = st.segmented_control(
    "table", there, default="table3", required=True, format_func=TABLES.get, key="table", persist_state="session"
)
systems = tuple(shown_systems(work, table))
st.caption(tables.scope(work))
found = overall(work, systems)
show(figures.overall_figure(found))
st.dataframe(tables.pretty(found))
show(figures.slices_figure(warm_and_cold(work, systems), "Warm and cold rows"))
with st.expander("Where every number comes from"):
    st.dataframe(tables.provenance_table(work, systems))
