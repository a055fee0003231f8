"""Every system or ablation in the store: overall, and on warm and cold rows."""

import streamlit as st
from shared import current_work, done_systems, overall, show, shown_systems, warm_and_cold

from sellarec import figures, tables
from sellarec.systems.registry import find_system, not_fair

WORDS = """
AUC is how often a liked row is ranked above a disliked one, over all test rows; UAUC is the mean of each user's
own AUC. Warm rows are those whose user and item the training part knows; the others are cold. Brackets are 95 %
intervals over test users, without the variation between seeds.
"""

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
with st.expander("How to read it"):
    st.markdown(WORDS)
    for name in found.attrs["not_fair"]:
        st.markdown(f"- † {find_system(name).label} is no fair baseline: {not_fair(work.config)[name]}.")
show(figures.slices_figure(warm_and_cold(work, systems), "Warm and cold rows"))
with st.expander("Where every number comes from"):
    st.dataframe(tables.provenance_table(work, systems))
