"""The catalogue in SeLLa-Rec's order for a user, real or made up."""

import dataclasses

import numpy as np
import pandas as pd
import streamlit as st
from shared import ask, current_work, needs

work = current_work()
data = work.dataset
st.title("For you")
needs(work, "sella")
CHUNK = 64

ratings = data.part("train")["item"].value_counts()
catalogue = data.catalogue.assign(ratings=ratings).fillna({"ratings": 0}).astype({"ratings": int})
made_up = st.toggle("a new user, made up of liked titles", key="new")
if made_up:
    liked = st.multiselect("titles that the new user likes", list(catalogue.index), format_func=data.titles.__getitem__)
    user, history = 0, tuple(liked)
else:
    users = sorted(work.part("test")["user"].unique())
    user = st.selectbox("user", users, format_func=lambda u: f"user {u}")
    rows = data.interactions[(data.interactions["user"] == user) & (data.interactions["label"] == 1)]
    history = tuple(int(i) for i in rows["item"])
a, b, c = st.columns(3)
genres = a.multiselect("genres", sorted({g for s in catalogue["genres"] for g in s.split("|") if g}))
years = pd.to_numeric(catalogue["year"], errors="coerce")
span = (int(years.min()), int(years.max())) if years.notna().any() else (0, 0)
between = b.slider("years", *span, span) if span[0] < span[1] else span
most = c.slider("how many of the most rated titles", 20, max(40, len(catalogue)), min(200, len(catalogue)), step=20)
unseen = st.toggle("only titles that the user has not rated", value=True)

chosen = catalogue[(years.isna() | years.between(*between)).to_numpy()]
if genres:
    chosen = chosen[[bool(set(s.split("|")) & set(genres)) for s in chosen["genres"]]]
if unseen:
    rated = set(data.interactions.loc[data.interactions["user"] == user, "item"]) | set(history)
    chosen = chosen[~chosen.index.isin(rated)]
chosen = chosen.nlargest(most, "ratings")
st.caption(f"{len(chosen):,} titles to rank. The history is computed once for each {CHUNK} of them.")
if st.button("Rank", type="primary", disabled=chosen.empty):
    base = ask(work, "case", user, 1, history)
    cases = [dataclasses.replace(base, item=int(i), of_item=ask(work, "counts", "item", int(i))) for i in chosen.index]
    progress, found = st.progress(0.0, "ranking; Stop at the top right cancels"), []
    for start in range(0, len(cases), CHUNK):
        found.append(ask(work, "log_odds", cases[start : start + CHUNK]))
        done = min(len(cases), start + CHUNK)
        progress.progress(done / len(cases), f"{done} of {len(cases)}")
    progress.empty()
    score = 1 / (1 + np.exp(-np.concatenate(found).astype(float)))
    ranked = chosen.assign(probability=score).sort_values("probability", ascending=False)
    ranked = ranked[["title", "genres", "year", "ratings", "probability"]].reset_index(drop=True)
    ranked.index += 1
    st.dataframe(ranked, column_config={"probability": st.column_config.NumberColumn(format="%.4f")})
    st.download_button("Download CSV", ranked.to_csv(index_label="place"), "ranking.csv", "text/csv")
