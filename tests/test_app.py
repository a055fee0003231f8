"""The app's pages through streamlit's own harness, over the small runs and a live tiny model."""

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from sellarec.analysis import alignment
from sellarec.config import as_parameters, make_config
from sellarec.published import adopt, publish
from sellarec.systems.base import Workspace
from tests.conftest import SMALL, button, selectbox, words

APP = Path(__file__).resolve().parents[1] / "app"
TITLES = {"overview": "SeLLa-Rec, explored", "user_item": "User and item", "why": "Why", "for_you": "For you"}
TITLES |= {"alignment_map": "Alignment map", "disagreements": "Disagreements"}


@pytest.fixture(scope="module")
def store(small_workspace):
    for name in ("counting", "mf", "tallrec", "sella"):
        small_workspace.run(name)
    alignment.alignment_map(small_workspace)
    return small_workspace


@pytest.fixture
def page(store, monkeypatch):
    """Opens a page by name, with query parameters, over the small runs or another store."""

    def open_page(name="overview", runs=None, work=None, other_settings=None, given=None, **query):
        config = (work or store).config
        usual = {"dataset": config.dataset, "backbone": config.backbone, "profile": "smoke", "seed": 0}
        changes = SMALL | {"evaluation.test_rows": config.evaluation.test_rows, "dtype": config.dtype}
        usual |= {"changes": changes | (other_settings or {}), "runs": str(runs or (work or store).root)}
        monkeypatch.setattr(sys, "argv", ["main.py", json.dumps(given or usual)])
        monkeypatch.syspath_prepend(str(APP))
        app = AppTest.from_file(str(APP / "main.py"), default_timeout=120)
        for key, value in query.items():
            app.query_params[key] = str(value)
        if name != "overview":
            app = app.switch_page(f"views/{name}.py")
        return app.run()

    return open_page


@pytest.mark.parametrize(("name", "title"), TITLES.items())
def test_every_page_opens_without_an_error(page, name, title):
    app = page(name)
    assert not app.exception and not app.error
    assert [t.value for t in app.title] == [title]


@pytest.fixture
def adopted(store, tmp_path):
    """The small runs as somebody else has them: without weights."""
    publish(store, tmp_path / "published")
    adopt(work := Workspace(store.config, tmp_path / "runs"), tmp_path / "published")
    return work


def test_the_overview_says_how_to_read_it_and_why_a_baseline_is_not_fair(page, adopted, monkeypatch):
    monkeypatch.setattr("sellarec.systems.registry.MOVIELENS", (adopted.config.dataset,))
    adopted.run("din")
    said = words(page("overview", work=adopted))
    assert "UAUC is the mean of each user's" in said and "† DIN is no fair baseline: its history" in said


def test_over_published_runs_tables_stand_and_the_model_is_named_with_what_to_do(page, adopted):
    for name in ("overview", "disagreements"):
        app = page(name, work=adopted)
        assert not app.exception and not app.error
    for name in ("user_item", "why"):
        app = page(name, work=adopted)
        assert not app.exception and "sellarec run sella --weights" in words(app)
        assert (name == "user_item") == ("What the systems say" in words(app))  # stored scores need no model


def test_a_system_without_weights_keeps_no_other_from_answering(page, adopted):
    adopted.with_weights("mf")
    said = ask_every_system(page("user_item", work=adopted, **never_rated(adopted)))
    assert 0 < said.loc["MF", "probability"] < 1 and not said.loc["MF", "why not"]
    assert set(said["why not"].drop("MF")) == {"published without weights"} and "SeLLa-Rec" in said.index


def test_only_systems_with_weights_are_offered_for_a_ranking(page, adopted):
    app = page("for_you", work=adopted)
    assert not app.exception and not app.error and not app.button
    assert "sellarec run counting --weights" in words(app) and "SeLLa-Rec" in words(app)
    adopted.with_weights("counting")
    assert selectbox(app.run(), "system").options == ["Counting (item + user mean)"]
    assert "sellarec run mf --weights" in words(app)
    button(app, "Rank").click().run()
    assert not app.exception and len(app.dataframe[0].value)


def test_a_dataset_that_has_runs_stands_in_for_the_default_one_that_has_none(page, store, tmp_path, monkeypatch):
    known = {n: dataclasses.replace(store.dataset, name=n) for n in ("ml-100k", "ml-1m", store.config.dataset)}
    monkeypatch.setattr("sellarec.data.open._open", lambda name, *_: known[name])
    Workspace(make_config("smoke", "ml-1m"), tmp_path).run("counting")
    unnamed = as_parameters("quick", make_config()) | {"runs": str(tmp_path)}  # as `sellarec app` gives it on
    app = page(given=unnamed)
    assert not app.exception and "Counting" in app.dataframe[0].value.index[0]
    assert "The run store has no runs of ml-100k; these are of ml-1m." in words(app)
    assert [selectbox(app, label).value for label in ("dataset", "profile")] == ["ml-1m", "smoke"]
    named, other = unnamed | {"named": True}, unnamed | {"dataset": store.config.dataset}
    for settings, in_url in ((unnamed, {"dataset": "ml-100k"}), (named, {}), (other, {})):
        app = page("disagreements", given=settings, **in_url)  # what is named stays
        assert "Not in the run store yet" in words(app) and "no runs of" not in words(app)
    Workspace(make_config("smoke", "ml-100k"), tmp_path).run("counting")
    st.cache_data.clear()
    assert selectbox(page(given=unnamed), "dataset").value == "ml-100k"


def test_runs_in_another_number_format_are_pointed_to(page, store):
    there = store.base_dtype
    work = store.variant({"dtype": {"float32": "bfloat16", "bfloat16": "float32"}[there]})
    app = page("why", work=work)
    assert not app.exception and f"It is there in {there}: open the app with --dtype {there}" in words(app)
    app = page(work=work)
    assert not app.exception and list(app.dataframe[0].value.index) == ["Counting (item + user mean)", "MF"]
    assert f"Systems that are here in {there}, and not shown: 3. Open the app with --dtype {there}" in words(app)


def test_what_is_there_is_shown_without_the_simplest_baseline(page, store, tmp_path):
    shutil.copytree(store.root, tmp_path / "runs", ignore=shutil.ignore_patterns("counting"))
    for name in ("overview", "for_you", "disagreements"):
        app = page(name, runs=tmp_path / "runs")
        assert not app.exception and "Not in the run store yet" not in words(app)
        assert app.dataframe or button(app, "Rank")


def test_ablations_have_a_table_where_some_are_there(page, store):
    store.run("no_warm_token")
    app = page().segmented_control(key="table").set_value("table5").run()
    assert list(app.dataframe[0].value.index) == ["SeLLa-Rec", "SeLLa-Warm: no warm token"] and not app.exception


def test_an_empty_store_is_explained_with_the_command_and_nothing_is_computed(page, tmp_path):
    for name in TITLES:
        app = page(name, runs=tmp_path)
        assert not app.exception and "Not in the run store yet" in words(app) and "sellarec run" in words(app)
    assert not list(tmp_path.rglob("config.json"))


def test_the_probability_is_the_runs_and_moves_with_a_what_if(page, store):
    row = store.part("test").iloc[-1]
    app = page("user_item", user=row["user"], item=row["item"])
    assert not app.exception
    stored = store.run("sella").scores.set_index("row").loc[row.name, "score"]
    before, after = (float(m.value) for m in app.metric)
    assert before == after == pytest.approx(stored, abs=1e-4)
    selectbox(app, "make the item token of").select(1 if row["item"] != 1 else 2).run()
    assert float(app.metric[0].value) == before
    assert re.fullmatch(r"[+-]\d\.\d{4} log-odds", app.metric[1].delta) and app.metric[1].delta != "+0.0000 log-odds"


def test_a_model_without_the_warm_token_offers_no_such_token_to_take_away(page, store):
    settings = {"stage3.tokens": "user,item"}
    store.variant(settings).run("sella")
    app = page("user_item", other_settings=settings)
    (tokens,) = (g for g in app.button_group if g.label == "soft tokens")
    assert not app.exception and tokens.options == ["user", "item"]
    assert app.metric[0].value == app.metric[1].value


def test_bad_ids_in_the_url_get_a_kind_answer(page):
    for name, query, answer in (
        ("user_item", {"user": "²"}, "'²' is not a user to show"),
        ("user_item", {"user": "nobody"}, "'nobody' is not a user to show; users with scored test rows are among"),
        ("why", {"user": 999}, "'999' is not a user to show"),
        ("user_item", {"user": "9" * 5000}, "999' is not a user to show"),
        ("user_item", {"item": -3}, "'-3' is not an item to show; ids go from 1 to 30"),
    ):
        app = page(name, **query)
        assert answer in words(app) and not app.exception


def test_a_random_row_is_one_of_the_scored_ones(page, store):
    app, rows = button(page("user_item"), "Random").click().run(), store.part("test")
    user, item = (int("".join(app.query_params[name])) for name in ("user", "item"))
    assert not app.exception and ((rows["user"] == user) & (rows["item"] == item)).any()


def test_a_disputed_row_is_the_one_that_systems_disagree_on_and_the_next_click_shows_another(page, store):
    app = page("user_item")
    seen = []
    for _ in range(2):
        button(app, "Disputed").click().run()
        seen.append(tuple(int("".join(app.query_params[name])) for name in ("user", "item")))
    assert not app.exception and seen[0] != seen[1]
    log_odds = pd.DataFrame({n: store.test_scores(n) for n in ("counting", "mf", "tallrec", "sella")}).clip(1e-6, 1)
    log_odds = np.log(log_odds / (1 - log_odds)) - np.log(log_odds / (1 - log_odds)).mean()
    most = (log_odds.max(axis=1) - log_odds.min(axis=1)).argmax()
    assert seen[0] == tuple(store.part("test").iloc[most][["user", "item"]])


def never_rated(work):
    """A user with scored test rows, and an item that they have not rated."""
    rated, user = work.dataset.interactions, int(work.part("test").iloc[0]["user"])
    return {"user": user, "item": next(i for i in range(1, 31) if i not in set(rated[rated["user"] == user]["item"]))}


def ask_every_system(app):
    button(app, "Ask every system").click().run()
    assert not app.exception
    return app.dataframe[1].value.set_index("system")


def test_of_a_pair_that_was_never_rated_or_trained_on_every_system_gives_one_answer(page, store):
    train = store.dataset.part("train")
    trained = train.loc[train["user"].isin(store.part("test")["user"]), ["user", "item"]].iloc[0].to_dict()
    for pair in (never_rated(store), trained):
        app = page("user_item", **pair)
        said = ask_every_system(app)["probability"]
        assert set(said.index) >= {"MF", "TALLRec (stage 1)", "SeLLa-Rec"}
        assert said["SeLLa-Rec"] == pytest.approx(float(app.metric[0].value), abs=1e-4)
        assert ("leaves this rating out" in words(app)) == (pair is trained)
    for label in ("another target", "make the item token of"):  # to name what is there changes nothing
        selectbox(app, label).select(trained["item"]).run()
    next(n for n in app.number_input if "user token" in n.label).set_value(trained["user"]).run()
    assert not app.exception and not app.metric[1].delta


def test_of_items_with_one_title_each_can_be_chosen(page, store, monkeypatch):
    catalogue = store.dataset.catalogue
    alike = catalogue.assign(title=["Twins (1988)"] * 2 + list(catalogue["title"][2:]))
    twins = dataclasses.replace(store.dataset, catalogue=alike)
    for name in ("titles", "distinct_titles"):
        monkeypatch.setitem(vars(store.dataset), name, getattr(twins, name))
    user = int(store.part("test").iloc[0]["user"])
    for item in (1, 2):
        app = page("user_item", user=user, item=item).run()
        assert not app.exception and "".join(app.query_params["item"]) == str(item)
        assert app.session_state[f"item of {user}"] == item
        box = next(s for s in app.selectbox if s.key == f"item of {user}")
        assert {"Twins (1988) (item 1)", "Twins (1988) (item 2)"} <= set(box.options)


def test_seeds_that_come_into_the_store_are_shown(page, store, tmp_path):
    """The pages' caches outlive a run that another process finishes."""
    work = Workspace(store.config, tmp_path)
    for name in ("counting", "mf"):
        work.run(name)
    app = page(work=work)
    assert "AUC over seeds" not in app.dataframe[0].value
    work.variant({"seed": 1}).run("mf")
    app.run()
    assert "(2)" in app.dataframe[0].value.loc["MF", "AUC over seeds"]


def test_the_catalogue_ranked_for_a_made_up_user_is_still_there_after_a_look_at_another_page(page, store):
    app = page("for_you")
    app.toggle(key="new").set_value(True).run()
    app.multiselect[0].select(2).run()
    button(app, "Rank").click().run()
    assert not app.exception
    ranked = app.dataframe[0].value
    assert len(ranked) == min(200, store.dataset.n_items - 1) and ranked["SeLLa-Rec"].is_monotonic_decreasing
    assert store.dataset.titles[2] not in set(ranked["title"])
    app.switch_page("views/overview.py").run()
    app.switch_page("views/for_you.py").run()
    assert app.toggle(key="new").value and app.multiselect[0].value == [2]
    pd.testing.assert_frame_equal(app.dataframe[0].value, ranked)


def test_two_systems_top_twenty_stand_side_by_side(page, store):
    app = page("for_you")
    selectbox(app, "beside").select("mf").run()
    assert not app.dataframe  # nothing is ranked before it is asked for
    button(app, "Rank").click().run()
    assert not app.exception
    left, right, whole = (d.value for d in app.dataframe)
    assert left["SeLLa-Rec"].is_monotonic_decreasing and right["MF"].is_monotonic_decreasing
    assert len(left) == len(right) == min(20, len(whole))
    place_of = whole.reset_index().set_index("title")["place"]
    assert list(place_of[right["title"]]) == list(right["in the other"])
    both = len(set(left["title"]) & set(right["title"]))
    assert f"**{both}** of {len(left)} titles" in words(app)


def test_disagreements_are_sorted_and_filtered(page, store):
    app = page("disagreements")
    found = app.dataframe[0].value
    assert found["difference"].abs().is_monotonic_decreasing and set(found["user"]) <= set(store.part("test")["user"])
    assert found["open"].str.fullmatch(r"user_item\?user=\d+&item=\d+").all()
    app.segmented_control[0].set_value("cold").run()
    assert not app.dataframe[0].value["warm"].any()


def test_settings_of_an_own_table_stay_with_it(page, store, tmp_path, monkeypatch):
    shutil.copytree(store.root, tmp_path / "runs")
    other = tmp_path / "runs/ml-100k/no-llm/mf/0-abc"
    other.mkdir(parents=True)
    (other / "config.json").write_text(json.dumps({"dataset": "ml-100k", "backbone": "b"}))
    monkeypatch.setenv("SELLAREC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    app = page(runs=tmp_path / "runs", other_settings={"data.domain": "song"})
    selectbox(app, "dataset").select("ml-100k").run()
    assert "data.domain" not in words(app) and "sellarec fetch ml-100k" in words(app)


def test_taking_a_listed_title_away_lets_no_earlier_one_in(page, store):
    rows, listed = store.part("test"), store.config.prompt.history
    row = next(r for r in rows.index[::-1] if len(store.dataset.history(r)) > listed)
    app = page("user_item", user=rows.loc[row, "user"], item=rows.loc[row, "item"])
    assert not app.metric[1].delta and prompt(app).count('"') == 2 * (listed + 1)
    removal = next(m for m in app.multiselect if m.label == "take titles out of the history")
    assert len(removal.options) == listed
    removal.select(removal.options[0]).run()
    assert prompt(app).count('"') == 2 * listed


def prompt(app):
    return next(c.value for c in app.code if c.value.startswith("The user rated"))


def test_the_way_from_a_disagreement_stays_with_what_the_sidebar_chose(page, store):
    store.variant({"seed": 7}).run("mf")
    links = page("disagreements", seed=7).dataframe[0].value["open"]
    assert links.str.fullmatch(r"user_item\?seed=7&user=\d+&item=\d+").all()


@pytest.mark.parametrize(("damaged", "seen_on"), [("mf/*/scores", "overview"), ("*_map/*/map", "alignment_map")])
def test_a_damaged_run_is_named_and_the_other_pages_stand(page, store, tmp_path, damaged, seen_on):
    shutil.copytree(store.root, tmp_path / "runs", dirs_exist_ok=True)
    table = next((tmp_path / "runs").glob(f"*/*/{damaged}.parquet"))
    table.write_bytes(table.read_bytes()[:-10])
    app = page(seen_on, runs=tmp_path / "runs")
    assert not app.exception and "was changed or added" in words(app) and table.name in words(app)
    assert not page("user_item", runs=store.root).error


def test_a_map_that_is_not_there_yet_is_asked_for_beside_its_neighbours(page, store, tmp_path):
    shutil.copytree(store.root, tmp_path / "runs", ignore=shutil.ignore_patterns("alignment_map"))
    app = page("alignment_map", runs=tmp_path / "runs")
    assert not app.exception and not app.error and len(app.dataframe) == 2
    assert "The t-SNE is not in the run store yet" in words(app) and "sellarec report" in words(app)


def test_a_run_that_was_begun_shows_as_such(page, store, tmp_path):
    shutil.copytree(store.root, tmp_path / "runs")
    folder = tmp_path / "runs" / store.run("sella").folder.relative_to(store.root)
    work = folder.rename(folder.with_name(f".work-{folder.name}"))
    assert "SeLLa-Rec was begun and is not finished: it is being computed" in words(page("why", tmp_path / "runs"))
    (work / "failure.txt").write_text("the disk is full")
    assert "its last try failed: the disk is full" in words(page("why", tmp_path / "runs"))


def test_a_missing_backbone_is_named_with_what_to_do(page, store, tmp_path):
    """The runs are there, but the folder of the model that they need is not."""
    folder = Path(store.config.backbone)
    kept = shutil.move(folder, tmp_path / "elsewhere")
    st.cache_resource.clear()
    st.cache_data.clear()
    try:
        app = page("user_item")
    finally:
        shutil.move(kept, folder)
    assert not app.exception and str(folder.name) in words(app) and app.error


def test_a_history_may_be_empty_or_hold_500_titles(page, tmp_path, llama):
    """A user without a past, and one with more likes than any prompt can list."""
    days = pd.Timestamp("2001-01-01").timestamp() + 86400 * np.arange(1100)
    table = pd.DataFrame({"user": np.arange(1100) % 2, "item": np.arange(1100) // 2, "timestamp": days.astype(int)})
    table["rating"] = np.where((table["user"] == 1) | (table["item"] % 7 == 0), 5, 2)
    late = pd.DataFrame({"user": 2, "item": range(8), "timestamp": int(days[-1]) + np.arange(8), "rating": [2, 5] * 4})
    table = pd.concat([table, late]).assign(title=lambda t: "Film " + t["item"].astype(str), genres="Drama")
    table.to_csv(tmp_path / "many.csv", index=False)
    settings = SMALL | {"evaluation.test_rows": None, "backbone": str(llama)}
    work = Workspace(make_config("smoke", str(tmp_path / "many.csv"), **settings), tmp_path / "runs")
    work.run("sella")
    rows = work.part("test")
    lengths = work.dataset.history_lengths(rows.index.to_numpy())
    assert lengths.min() == 0 and lengths.max() > 500
    for row in (rows.iloc[lengths.argmin()], rows.iloc[lengths.argmax()]):
        for name in ("user_item", "why"):
            app = page(name, work=work, user=row["user"], item=row["item"])
            assert not app.exception and not app.error and not app.warning


def test_titles_stand_only_where_text_is_shown_as_text(page, store):
    """Markdown would give a title like "[a](b)" or "$x$" a meaning; tables, menus and code blocks do not."""
    for name in ("user_item", "why", "for_you", "alignment_map"):
        app = page(name)
        texts = [e.value for kind in (app.markdown, app.caption, app.subheader, app.title) for e in kind]
        assert not any(title in text for text in texts for title in store.dataset.titles[1:])
        assert not any(m.allow_html for m in app.markdown)
