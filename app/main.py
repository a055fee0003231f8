"""The Streamlit app: explore predictions and attention over the run store. Start it with `sellarec app`."""

from __future__ import annotations

import streamlit as st
from shared import choose_work, explain

from sellarec.errors import SellarecError

PAGES = (
    ("overview", "Overview"),
    ("user_item", "User and item"),
    ("why", "Why"),
    ("for_you", "For you"),
    ("alignment_map", "Alignment map"),
    ("disagreements", "Disagreements"),
)

st.set_page_config(page_title="SeLLa-Rec", page_icon=":material/movie:", layout="wide")
pages = [st.Page(f"views/{name}.py", title=title, url_path=name) for name, title in PAGES]
# Streamlit gives its default page no address of its own, so that is a door to the first one.
door = st.Page(
    lambda: st.switch_page(pages[0], query_params=st.query_params), title="SeLLa-Rec", default=True, visibility="hidden"
)
page = st.navigation([door, *pages])
if page is door:
    page.run()
try:
    st.session_state["work"] = choose_work()
    page.run()
except SellarecError as error:
    explain(error)
