"""The analyses: hand-computed cases, planted alignments, and the steps on the small runs."""

import numpy as np
import pandas as pd
import pytest

from sellarec import figures, tables
from sellarec.analysis import alignment, attention, calibration, claims, slices, step0
from sellarec.analysis.alignment import Clouds
from sellarec.analysis.what_if import Explorer
from sellarec.config import make_config
from sellarec.errors import SellarecError
from sellarec.evaluation import UserBootstrap, auc, mean_interval, uauc
from sellarec.prompts import SOFT_TOKENS
from sellarec.runs import Run
from sellarec.systems.base import Workspace
from sellarec.systems.rows import stage2_rows
from sellarec.systems.sella_collab import aligned_parts
from tests.conftest import SMALL


def test_warm_masks_are_both_definitions(small_workspace):
    work = small_workspace
    train, test = work.dataset.part("train"), work.part("test")
    masks = slices.warm_masks(work)
    np.testing.assert_array_equal(masks["warm"], test["warm"])
    np.testing.assert_array_equal(masks["cold"], ~masks["warm"])
    strict = [
        (train["user"] == u).sum() > 3 and (train["item"] == i).sum() > 3 for u, i in test[["user", "item"]].to_numpy()
    ]
    np.testing.assert_array_equal(masks["warm, more than 3"], strict)
    np.testing.assert_array_equal(masks["not more than 3"], np.logical_not(strict))


@pytest.mark.parametrize("column", ["user", "item"])
def test_every_row_is_in_one_bin_of_how_often_it_was_seen(small_workspace, column):
    masks = slices.seen_masks(small_workspace, column)
    assert list(masks) == ["0", "1 to 3", "4 to 10", "11 to 30", "31 to 100", "more than 100"]
    assert (np.sum(list(masks.values()), axis=0) == 1).all()
    seen = slices.seen_in_training(small_workspace, column)
    assert masks["0"].sum() == (seen == 0).sum() and (seen[masks["4 to 10"]] >= 4).all()


def test_metrics_on_a_part_are_the_metrics_of_its_rows(small_workspace):
    work = small_workspace
    table = slices.metrics_on(work, ("counting", "mf"), slices.warm_masks(work))
    rows, score, warm = work.part("test"), work.test_scores("mf"), work.part("test")["warm"].to_numpy()
    line = table[(table["system"] == "mf") & (table["part"] == "warm")].iloc[0]
    assert line["auc"] == pytest.approx(auc(rows["label"][warm], score[warm]))
    assert line["uauc"] == pytest.approx(uauc(rows["user"][warm], rows["label"][warm], score[warm]), nan_ok=True)
    assert line["auc_low"] <= line["auc"] <= line["auc_high"] and line["rows"] == warm.sum()
    shown = tables.by_part(table, "auc")
    assert list(shown.index) == ["Counting (item + user mean)", "MF"]
    assert (
        shown.columns[1].startswith(f"warm: {warm.sum()} rows, ")
        and f"{line['auc']:.3f} [".lstrip("0") in shown.iloc[1, 1]
    )
    told = tables.levels(table)
    part = next(c for c in told.columns if c.startswith("warm: "))
    assert part == f"warm: {rows['label'][warm].mean():.3f} liked"
    assert told.loc["MF", part] == pytest.approx(score[warm].mean(dtype=float))
    figure = figures.slices_figure(table, "Warm and cold")
    assert "No fair baseline" not in str(figure)
    unfair = figures.slices_figure(table.assign(label=table["label"] + " †"), "Marked")
    assert unfair.layout.yaxis.ticktext[0] == "MF †" and "No fair baseline" in str(unfair)
    drawn = next(t for t in figure.data if t.name == "AUC" and t.xaxis == "x2")  # warm is the second part
    assert drawn.customdata[1] == "MF" and drawn.x[1] == line["auc"]
    assert figure.layout.yaxis.ticktext[round(drawn.y[1])] == "MF"
    assert figure.layout.xaxis2.title.text.startswith(f"<b>warm</b><br>{warm.sum()} rows<br>")
    users = np.where(table["part"] == "warm", 10, 9)
    again = figures.slices_figure(table.assign(uauc_users=users), "Nine users are too few")
    assert {t.xaxis for t in again.data if t.name == "UAUC"} == {"x2"}


def test_reliability_and_ece_by_hand():
    label, said = np.array([0, 1, 1, 1]), np.array([0.1, 0.3, 0.6, 0.8])
    curve = calibration.reliability(label, said, bins=2)
    assert curve["probability"].tolist() == pytest.approx([0.2, 0.7])
    assert curve["liked"].tolist() == [0.5, 1.0] and curve["rows"].tolist() == [2, 2]
    ece = calibration.ece_interval(UserBootstrap(np.array([1, 1, 2, 2]), label), said, bins=2)
    # of the first user's rows alone both gaps are within the first bin, of the second one's within the second
    assert (ece.value, ece.low, ece.high) == pytest.approx((0.3, 0.3, 0.3))


def test_ties_share_a_bin_and_honest_probabilities_are_calibrated():
    assert len(calibration.reliability(np.array([0, 1, 0, 1]), np.full(4, 0.5))) == 1
    random = np.random.default_rng(0)
    said = random.random(20_000)
    label = (random.random(20_000) < said).astype(int)
    honest, shifted = (
        calibration.ece_interval(UserBootstrap(np.arange(20_000) % 500, label), p) for p in (said, said**2)
    )
    assert honest.value < 0.015 and shifted.low > honest.high > honest.low > 0


def test_log_loss_of_a_system_is_the_mean_of_its_rows(small_workspace):
    from sklearn.metrics import log_loss

    table = calibration.calibration_table(small_workspace, ("mf",))
    expected = log_loss(small_workspace.part("test")["label"], small_workspace.test_scores("mf").astype(float))
    assert table["log_loss"].iloc[0] == pytest.approx(expected)


def test_a_mean_interval_resamples_users_and_not_rows():
    user, value = np.repeat([1, 2], 50), np.repeat([0.0, 1.0], 50)
    interval = mean_interval(user, value)
    assert (interval.value, interval.low, interval.high) == (0.5, 0.0, 1.0)  # two users: a resample may hold one twice
    assert mean_interval(np.arange(100), value).low > 0.35


def planted_clouds(noise):
    random = np.random.default_rng(0)
    text = random.normal(size=(60, 16)).astype(np.float32)
    return Clouds(np.arange(1, 61), text + noise * random.normal(size=text.shape).astype(np.float32), text, text)


def test_alignment_numbers_tell_aligned_clouds_from_strangers():
    numbers = alignment.alignment_numbers({"aligned": planted_clouds(0.1), "strangers": planted_clouds(100.0)})
    near, far = numbers.loc[("aligned", "as distilled")], numbers.loc[("strangers", "as distilled")]
    assert near["cosine"] > 0.98 and near["recall"] == 1.0 and near["separability"] < 0.6
    assert abs(far["cosine"]) < 0.15 and far["recall"] < 0.4 and far["chance"] == pytest.approx(10 / 60)
    assert abs(near["null"]) < 0.1


def test_hits_count_who_is_among_the_nearest_both_ways_and_ties_against_it():
    similarity = np.array([[3.0, 2.0, 1.0], [0.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
    # ranks in the rows 1, 2, 3 (a tie of three), in the columns 1, 3 (a tie behind 2), 3 (a tie behind 2)
    assert alignment.hits_at(similarity, 1).tolist() == [1, 0, 0]
    assert alignment.hits_at(similarity, 2).tolist() == [1, 0.5, 0]
    assert alignment.hits_at(similarity, 3).tolist() == [1, 1, 1]


def test_clouds_that_lie_apart_are_told_apart():
    random = np.random.default_rng(0)
    left = random.normal(size=(80, 4))
    assert alignment.separability(left, random.normal(size=(80, 4)) + 5) == 1.0


def test_the_map_holds_each_item_twice_and_draws_it(small_workspace):
    work = small_workspace
    points = tables.with_titles(work, alignment.alignment_map(work))
    items = alignment.after_stage_2(work).items
    counts = points.groupby(["condition", "cloud"]).size()
    assert len(counts) == 4 and (counts == len(items)).all() and np.isfinite(points[["x", "y"]]).all().all()
    assert (points["title"] == points["item"].map(work.dataset.catalogue["title"])).all()
    figure = figures.map_figure(points)
    assert sum(len(t.x) for t in figure.data) == len(points), "every point is there once"
    buttons = figure.layout.updatemenus[0].buttons
    assert [b.label for b in buttons] == ["colour by cloud", "colour by genre", "colour by popularity"]
    by_cloud, by_genre, by_popularity = (b.args[0] for b in buttons)
    assert [t.marker.color for t in figure.data] == list(by_cloud["marker.color"])
    assert {t.name for t in figure.data if t.showlegend} == {"semantic vectors", "collaborative vectors"}
    shown = [n for n, there in zip(by_genre["name"], by_genre["showlegend"], strict=True) if there]
    assert len(shown) == len(set(shown)) == len(set(by_genre["name"]))
    assert sum(map(len, by_popularity["marker.color"])) == len(points) and not any(by_popularity["showlegend"])
    again = alignment.alignment_map(work)
    pd.testing.assert_frame_equal(again.reset_index(drop=True), points[again.columns])


def test_without_contrastive_learning_the_projection_is_as_it_was_drawn(small_workspace):
    clouds = alignment.all_clouds(small_workspace)
    with_cl, without = clouds["with CL, before stage 3"], clouds["without CL, before stage 3"]
    np.testing.assert_array_equal(without.semantic, without.distilled)  # nothing pulled at them
    assert not np.array_equal(with_cl.semantic, with_cl.distilled)
    assert not np.array_equal(clouds["with CL, after stage 3"].projected, with_cl.projected)
    after = clouds["without CL, after stage 3"]
    np.testing.assert_array_equal(after.semantic, after.distilled)  # this variant shows no warm token
    assert not np.array_equal(after.projected, without.projected)


def test_step_0_scores_warm_rows_with_vectors_that_nothing_trained(small_workspace):
    work = small_workspace
    table = step0.step0_table(work)
    assert list(table.index) == [*step0.CONDITIONS, "text only (stage 1)"]
    frame = pd.read_parquet(work.run_of(step0.STEP0).folder / "step0.parquet")
    rows = work.dataset.interactions.loc[frame["row"]]
    assert rows["warm"].all() and (rows["split"] == "test").all()
    assert (table["users"] == rows["user"].nunique()).all()
    assert table["draws"].tolist() == [1, step0.DRAWS, step0.DRAWS, 1] and len(frame.columns) == 2 + 2 * step0.DRAWS
    aucs = frame.drop(columns="row").apply(lambda score: auc(rows["label"], score))
    assert not frame.drop(columns="row").T.duplicated().any(), "each draw is another one"
    assert table["auc"].iloc[0] == pytest.approx(aucs["CL + projection"]) and table["gain"].iloc[0] == 0
    second = aucs[[c for c in aucs.index if c.startswith("CL, random projection")]]
    assert len(second) == step0.DRAWS and table["auc"].iloc[1] == pytest.approx(second.mean())
    assert table["gain"].iloc[1] == pytest.approx(aucs["CL + projection"] - second.mean())


def test_step_0_goes_on_after_the_last_condition_that_was_finished(small_workspace, tmp_path, monkeypatch):
    whole = pd.read_parquet(small_workspace.run_of(step0.STEP0).folder / "step0.parquet")
    score, calls = step0.HybridModel.score, []

    def die_at_the_third(model, **options):
        calls.append(options["label"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score(model, **options)

    monkeypatch.setattr(step0.HybridModel, "score", die_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        step0.STEP0.fit(small_workspace, Run(tmp_path))
    step0.STEP0.fit(small_workspace, Run(tmp_path))
    assert len(calls) == 8 and calls[2] == calls[3]  # seven passes, of which the third was begun twice
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "step0.parquet"), whole)


def test_items_that_contrastive_learning_did_not_see_keep_their_vectors(small_workspace):
    clouds = alignment.left_out(small_workspace)
    place = small_workspace.variant(alignment.LEFT_OUT)
    known = np.unique(stage2_rows(place)["item"])
    assert len(clouds.items) == round(0.1 * len(known)) > 0 and np.isin(clouds.items, known).all()
    np.testing.assert_array_equal(clouds.semantic, clouds.distilled)  # nothing pulled at them
    _, _, semantic = aligned_parts(place)
    seen = np.setdiff1d(known, clouds.items)
    distilled = place.run("semantic").tensors("semantic")["semantic"]
    assert (semantic.weight.detach().numpy()[seen] != distilled[seen]).any(axis=1).all()


def test_average_attention_adds_up_and_effects_are_those_of_the_cases(small_workspace):
    work = small_workspace
    by_layer = attention.attention_by_layer(work)
    assert set(by_layer["layer"]) == {1, 2} and set(SOFT_TOKENS) <= set(by_layer["segment"])
    frame = pd.read_parquet(work.run_of(attention.ATTENTION).folder / "attention.parquet")
    np.testing.assert_allclose(frame.groupby(["row", "layer"])["share"].sum(), 1, atol=1e-5)
    assert frame.groupby(["row", "layer"]).size().nunique() > 1  # somebody has no history yet
    np.testing.assert_allclose(by_layer.groupby("layer")["share"].sum(), 1, atol=1e-5)

    found = attention.effects(work)
    assert {f"without {t}" for t in SOFT_TOKENS} | {"another user's token"} <= set(found.index)
    assert (found["size"] >= found["mean"].abs() - 1e-9).all()
    raw = pd.read_parquet(work.run_of(attention.ATTENTION).folder / "effects.parquet")
    one = raw[raw["change"] == "without <Warm_ID>"].iloc[0]
    explorer = Explorer(work)
    case = explorer.case_of_row(int(one["row"]))
    expected = np.diff(explorer.log_odds([case, case.without_token("<Warm_ID>")]))[0]
    assert one["delta"] == pytest.approx(expected, abs=2e-5)


def test_cases_are_found_by_user_and_title_and_unknown_ones_are_explained(small_workspace):
    explorer = Explorer(small_workspace)
    data = explorer.dataset
    default = explorer.find_case()
    assert len(default.history) >= explorer.work.config.prompt.history and default.user
    test = data.part("test").iloc[0]
    title = data.titles[test["item"]]
    named = explorer.find_case(int(test["user"]), title)
    assert named.item == test["item"] and named.history == tuple(data.history(test.name))
    assert explorer.find_case(int(test["user"]), title.upper()) == named
    for user, item, message in (
        (999, None, "user 999 is not in"),
        (None, "No Such Film", "no title of planted contains 'No Such Film'"),
        (None, "Film 1", "titles contain 'Film 1'"),
    ):
        with pytest.raises(SellarecError, match=message):
            explorer.find_case(user, item)
    with pytest.raises(SellarecError, match="layers 1 to 2"):
        explorer.attention(default).layer(3)


def test_strangers_are_others_and_always_the_same(small_workspace):
    explorer = Explorer(small_workspace)
    case = explorer.find_case()
    user, item = explorer.strangers(case)
    assert user != case.user and item != case.item and (user, item) == explorer.strangers(case)


def test_without_a_warm_row_there_is_nothing_to_carry_over(planted_table, llama, tmp_path):
    table = pd.read_csv(planted_table)
    when = table["timestamp"]
    table.loc[when > when.min() + 0.8 * (when.max() - when.min()), "user"] += 100  # all test users are new
    table.to_csv(tmp_path / "new.csv", index=False)
    config = make_config("smoke", str(tmp_path / "new.csv"), backbone=str(llama), **SMALL)
    work = Workspace(config, tmp_path / "runs")
    assert not work.part("test")["warm"].any()
    found = step0.step0_table(work)
    assert list(found.index) == [*step0.CONDITIONS, step0.TEXT_ONLY] and (found["rows"] == 0).all()
    assert found[["auc", "gain_low"]].isna().all(axis=None)
    assert list(claims._carries_over(work)) == []


def test_step_0_says_which_projection_each_condition_has(small_workspace):
    """Its key does not hold the projection: under settings of a random one it would be saved as the aligned one's."""
    random = small_workspace.variant({"stage3.projection": "random"})
    for changes in step0.CONDITIONS.values():
        assert random.variant(changes).config == small_workspace.variant(changes).config


def test_alignment_of_one_item_is_undefined():
    one = Clouds(np.array([3]), *(np.ones((1, 4), dtype=np.float32) for _ in range(3)))
    assert alignment.alignment_numbers({"one": one}).isna().all(axis=None)


def test_intervals_of_one_user_have_no_bounds():
    for value in ([0.2, 0.4], [0.3]):
        interval = mean_interval(np.full(len(value), 7), np.array(value))
        assert interval.value == pytest.approx(0.3) and np.isnan([interval.low, interval.high]).all()
    assert np.isnan(mean_interval(np.array([]), np.array([])).value)
    ece = calibration.ece_interval(UserBootstrap(np.array([7, 7]), np.array([0, 1])), np.array([0.2, 0.4]), bins=1)
    assert ece.value == pytest.approx(0.2) and np.isnan([ece.low, ece.high]).all()
