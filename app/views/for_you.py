"""The catalogue in one or two systems' order for a user, real or made up."""

import pandas as pd
import streamlit as st
from shared import current_work, label_of, rank, shown_systems

work = current_work()
data = work.dataset
st.title("For you")
TOP = 20

done = shown_systems(work)[::-1]
systems = [n for n in done if work.run(n).has_weights]
if without := [n for n in done if n not in systems]:
    st.info(f"Published without the weights that a ranking needs: {', '.join(label_of(n) for n in without)}.")
    st.write(f"This command computes those of {label_of(without[-1])}; any other system's name can stand in its place:")
    st.code(work.command("run", without[-1], "--weights"), wrap_lines=True)
if not systems:
    st.stop()

ratings = data.part("train")["item"].value_counts()
catalogue = data.catalogue.assign(ratings=ratings).fillna({"ratings": 0}).astype({"ratings": int})
made_up = st.toggle("a new user, made up of liked titles", key="new", persist_state="session")
if made_up:
    liked = st.multiselect(
        "titles that the new user likes",
        list(catalogue.index),
        format_func=data.distinct_titles.__getitem__,
        key=f"liked of {data.name}",
        persist_state="session",
    )
    user, liked = 0, tuple(liked)
else:
    users = sorted(work.part("test")["user"].unique())
    user = st.selectbox(
        "user", users, format_func=lambda u: f"user {u}", key=f"for user of {data.name}", persist_state="session"
    )
    user, liked = int(user), ()
a, b = st.columns(2)
first = a.selectbox("system", systems, format_func=label_of, key="ranked by", persist_state="session")
second = b.selectbox(
    "beside",
    [None, *(s for s in systems if s != first)],
    format_func=lambda s: label_of(s) if s else "no other",
    key="beside",
    persist_state="session",
)
a, b, c = st.columns(3)
known = sorted({g for s in catalogue["genres"] for g in s.split("|") if g})
genres = a.multiselect("genres", known, key=f"genres of {data.name}", persist_state="session")
years = pd.to_numeric(catalogue["year"], errors="coerce")
span = (int(years.min()), int(years.max())) if years.notna().any() else (0, 0)
between = (
    b.slider("years", *span, span, key=f"years of {data.name}", persist_state="session") if span[0] < span[1] else span
)
most = c.slider(
    "how many of the most rated titles",
    20,
    max(40, len(catalogue)),
    min(200, len(catalogue)),
    step=20,
    key=f"most of {data.name}",
    persist_state="session",
)
unseen = st.toggle("only titles that the user has not rated", value=True, key="unseen", persist_state="session")
if not unseen:
    st.caption(
        "A title that the user has liked is then in the history before it: a system that reads histories sees it."
    )

chosen = catalogue[(years.isna() | years.between(*between)).to_numpy()]
if genres:
    chosen = chosen[[bool(set(s.split("|")) & set(genres)) for s in chosen["genres"]]]
if unseen:
    rated = set(data.interactions.loc[data.interactions["user"] == user, "item"]) | set(liked)
    chosen = chosen[~chosen.index.isin(rated)]
chosen = chosen.nlargest(most, "ratings")
items = tuple(int(i) for i in chosen.index)
asked = (str(work.root), work.config, first, second, user, liked, items)
st.caption(f"{len(items):,} titles to rank, as if the user met them after everything in the data.")
if st.button("Rank", type="primary", disabled=chosen.empty):
    scores = {n: rank(work, n, user, items, liked) for n in (first, second) if n}
    st.session_state["ranking"] = (asked, scores)
answered, scores = st.session_state.get("ranking", (None, {}))
if answered != asked:
    st.stop()

columns = ["title", "genres", "year", "ratings"]
ranked = chosen[columns].assign(**{label_of(n): s for n, s in scores.items()})
places = {n: ranked[label_of(n)].rank(ascending=False, method="first").astype(int) for n in scores}
number = {label_of(n): st.column_config.NumberColumn(format="%.4f") for n in scores}
if second:
    both = int(((places[first] <= TOP) & (places[second] <= TOP)).sum())
    st.write(f"**{both}** of {min(TOP, len(items))} titles stand in the top {TOP} of both.")
    for side, one, other in zip(st.columns(2), (first, second), (second, first), strict=True):
        side.subheader(label_of(one))
        top = pd.DataFrame({"title": ranked["title"], "place": places[one], "in the other": places[other]})
        top = top.assign(**{label_of(one): ranked[label_of(one)]}).sort_values("place").head(TOP)
        side.dataframe(top.set_index("place"), column_config=number)
    st.subheader("All of them")
ranked = ranked.assign(place=places[first]).sort_values("place").set_index("place")
st.dataframe(ranked, column_config=number)
st.download_button("Download CSV", ranked.to_csv(), "ranking.csv", "text/csv", on_click="ignore")
