"""Every system in the store: overall, and on warm and cold rows."""

import streamlit as st
from shared import current_work, done_systems, needs, overall, show, warm_and_cold

from sellarec import figures, tables

work = current_work()
st.title("SeLLa-Rec, explored")
needs(work, "counting")
systems = tuple(done_systems(work))
st.caption(tables.scope(work))
table = overall(work, systems)
show(figures.overall_figure(table))
st.dataframe(tables.pretty(table))
show(figures.slices_figure(warm_and_cold(work, systems), "Warm and cold rows"))
with st.expander("Where every number comes from"):
    st.dataframe(tables.provenance_table(work, systems))
