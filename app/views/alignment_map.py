"""Where the items lie in both spaces, and who their neighbours are."""

import numpy as np
import pandas as pd
import streamlit as st
from shared import KEYS, current_work, needs, show

from sellarec import figures, tables
from sellarec.analysis import alignment
from sellarec.systems.base import Workspace

work = current_work()
st.title("Alignment map")
needs(work, "sella_collab")


@st.cache_resource(show_spinner=False, hash_funcs=KEYS, max_entries=2)
def clouds_of(work: Workspace) -> alignment.Clouds:
    return alignment.after_stage_2(work, most=work.dataset.n_items)


clouds = clouds_of(work)
titles = work.dataset.titles
item = st.selectbox(
    "where is …?",
    list(clouds.items),
    format_func=work.dataset.distinct_titles.__getitem__,
    key=f"item of {work.dataset.name} on map",
    persist_state="session",
)
at = int(np.flatnonzero(clouds.items == item)[0])


def neighbours(vectors: np.ndarray) -> pd.DataFrame:
    cosine = alignment.cosines_between(vectors[at : at + 1], vectors)[0]
    order = [n for n in np.argsort(-cosine) if n != at][:10]
    return pd.DataFrame({"title": [titles[clouds.items[n]] for n in order], "cosine": cosine[order].round(3)})


left, right = st.columns(2)
left.subheader("Nearest by behaviour")
left.dataframe(neighbours(clouds.projected), hide_index=True)
right.subheader("Nearest by title")
right.dataframe(neighbours(clouds.distilled), hide_index=True)
st.caption("By behaviour: projected collaborative vectors. By title: vectors that the language model gave.")
if not alignment.has_map(work):
    st.info(f"The t-SNE is not in the run store yet. The report computes it: {work.command('report')}")
    st.stop()
points = tables.with_titles(work, alignment.alignment_map(work))
figure = figures.map_figure(points)
if item not in set(points["item"]):
    st.caption(f"This title is not among the {points['item'].nunique():,} that were drawn for the map.")
for n, condition in enumerate(points["condition"].unique(), start=1):
    here = points[(points["item"] == item) & (points["condition"] == condition)]
    ring = {"size": 18, "symbol": "circle-open", "line": {"width": 3}, "color": "#000000"}
    figure.add_scatter(
        x=here["x"],
        y=here["y"],
        mode="markers",
        marker=ring,
        name=figures.as_text([titles[item]])[0],
        showlegend=n == 1,
        row=1,
        col=n,
    )
figure.for_each_annotation(lambda a: a.update(text=a.text.replace(" ", "<br>", 1)))  # side by side on a phone too
show(figure)
