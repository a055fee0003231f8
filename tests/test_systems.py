"""The systems on the small runs: what they score, and what each stage trains."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sellarec.analysis.alignment import after_stage_2
from sellarec.collab.fit import fit_collab
from sellarec.collab.mf import MatrixFactorization
from sellarec.collab.records import item_facts, training_records
from sellarec.config import change_config, make_config
from sellarec.data.open import open_dataset
from sellarec.errors import SellarecError
from sellarec.evaluation import auc, uauc
from sellarec.prompts import PromptWriter
from sellarec.settings import DataConfig, FitConfig, PromptConfig
from sellarec.systems import counting, hybrid, registry, tallrec
from sellarec.systems.base import Workspace
from sellarec.systems.hybrid import HybridModel
from sellarec.systems.registry import OVERALL, find_system
from sellarec.systems.rows import row_inputs, stage2_rows
from sellarec.systems.scores import into_unit_interval, probabilities, sigmoid
from sellarec.systems.sella import load_soft_tokens, new_soft_tokens
from sellarec.systems.semantic import standardized
from tests.conftest import SMALL


@pytest.mark.parametrize("name", OVERALL)
def test_every_system_scores_the_same_rows_in_the_unit_interval(small_workspace, name):
    run = small_workspace.run(name)
    expected = pd.concat([small_workspace.part("valid"), small_workspace.part("test")])
    scores = run.scores
    assert scores["row"].tolist() == expected.index.tolist()
    assert scores["score"].dtype.kind == "f" and scores["score"].between(0, 1).all()
    test = scores[scores["split"] == "test"]
    assert run.metrics["test"]["all"]["auc"] == pytest.approx(auc(test["label"], test["score"]))


@pytest.mark.parametrize("name", OVERALL)
def test_one_row_alone_and_unknown_ids_get_the_same_finite_scores(small_workspace, name):
    system, run = find_system(name), small_workspace.run(name)
    data = small_workspace.dataset
    cold = data.part("test").index[~data.part("test")["warm"]].to_numpy()[:3]
    assert len(cold) == 3
    work = small_workspace.variant(system.changes)
    together = system.score(work, run, cold)
    alone = [system.score(work, run, cold[n : n + 1])[0] for n in range(3)]
    assert np.isfinite(together).all()
    np.testing.assert_allclose(together, alone, atol=2e-6)


def test_counting_is_the_hand_computed_mean(small_workspace):
    data = small_workspace.dataset
    train, row = data.part("train"), data.part("test").index[0]
    user, item = data.interactions.loc[row, ["user", "item"]]
    prior = train["label"].mean()
    means = [
        (train.loc[train[c] == i, "label"].sum() + 5 * prior) / ((train[c] == i).sum() + 5)
        for c, i in (("user", user), ("item", item))
    ]
    found = counting.score(small_workspace, small_workspace.run("counting"), np.array([row]))
    assert 0.05 < sum(means) - prior < 0.95  # beyond, scores are squashed
    assert found[0] == pytest.approx(sum(means) - prior)


@given(st.lists(st.floats(-0.9, 1.9), min_size=2, max_size=30))
def test_rates_beyond_the_unit_interval_are_squashed_and_keep_their_order(rates):
    rate = np.sort(np.array(rates, dtype=np.float64))
    found = into_unit_interval(rate)
    assert ((found > 0) & (found < 1)).all() and (np.diff(found)[np.diff(rate) > 1e-6] > 0).all()
    middle = (rate >= 0.05) & (rate <= 0.95)
    np.testing.assert_array_equal(found[middle], rate[middle])


def test_counting_on_movielens_1m_is_the_documented_figure(ml_1m_folder, tmp_path, cache_folder):
    from sellarec.data import sources

    sources.fetch("ml-1m", ml_1m_folder)
    found = Workspace(make_config("quick", "ml-1m"), tmp_path).run("counting").metrics["test"]["all"]
    assert (round(found["auc"], 4), round(found["uauc"], 4)) == (0.7317, 0.6816)
    assert found["users"] == 224


def test_published_mf_finds_the_planted_taste(planted_table, tmp_path):
    changes = {**SMALL, "mf.epochs": 150, "mf.learning_rate": 1e-2, "evaluation.test_rows": None}
    work = Workspace(make_config("smoke", str(planted_table), **changes), tmp_path)
    assert work.run("mf").metrics["test"]["warm"]["auc"] > 0.75


def test_stage_3_trains_what_table_1_says_and_nothing_else(small_workspace):
    """Table 1: embeddings and both projections are trained; the language model and its adapter are frozen."""
    work = small_workspace
    lm = work.tuned_model
    before = {n: p.clone() for n, p in lm.model.named_parameters()}
    soft = load_soft_tokens(work, work.run("sella"))
    rows = work.part("valid").index.to_numpy()[:6]
    model = HybridModel(lm, soft, work, rows)
    model(np.arange(6)).sum().backward()
    trained = {n.split(".")[1] for n, p in model.named_parameters() if p.requires_grad}
    projections = {"collab_projection", "warm_projection", "record_projections", "fact_projection"}
    assert trained == {"mf", "semantic", *projections}
    for name in ("mf.user_embedding", "mf.item_embedding", "semantic", "warm_projection"):
        assert model.get_parameter(f"soft.{name}.weight").grad.abs().sum() > 0, name
    assert model.soft.mf.user_bias.grad.abs().sum() > 0 and model.soft.mf.item_bias.grad.abs().sum() > 0
    assert not any(p.requires_grad or p.grad is not None for p in lm.model.parameters())
    assert all(torch.equal(p, before[n]) for n, p in lm.model.named_parameters())


def test_a_prefix_cache_is_used_and_changes_scores_by_rounding_only(small_workspace, tmp_path):
    keeping = Workspace(small_workspace.config, tmp_path / "keeping")
    keeping.run("sella")
    kept = set((keeping.root / ".prefixes").glob("*.bin"))
    assert len(kept) == 2, "one for what is scored, one for stage 3's rows"
    keeping.run("random_projection")
    assert set((keeping.root / ".prefixes").glob("*.bin")) == kept, "a variant needs no others"
    anew = Workspace(change_config(keeping.config, {"prefix_gib": 0.0}), tmp_path / "anew")
    for name in ("tallrec", "sella"):
        np.testing.assert_allclose(anew.test_scores(name), keeping.test_scores(name), atol=2e-4)
    assert not (anew.root / ".prefixes").exists()


def test_stage_2_moves_semantic_vectors_in_proportion_to_their_entries(small_workspace):
    work, config = small_workspace, small_workspace.config.stage2
    distilled = work.run("semantic").tensors("semantic")["semantic"]
    moved = np.abs(work.run("sella_collab").tensors("aligned")["semantic.weight"] - distilled).max()
    steps = config.epochs * -(-len(stage2_rows(work)) // config.batch)
    assert 0 < moved <= 1.1 * config.learning_rate * steps * np.sqrt((distilled**2).mean())


def test_stage_3_moved_every_trainable_table(small_workspace):
    aligned = small_workspace.run("sella_collab").tensors("aligned")
    final = small_workspace.run("sella").tensors("soft_tokens")
    for before, after in (
        ("mf.item_embedding.weight", "mf.item_embedding.weight"),
        ("mf.item_bias", "mf.item_bias"),
        ("semantic.weight", "semantic.weight"),
        ("projection.layers.0.weight", "collab_projection.layers.0.weight"),
    ):
        assert not np.array_equal(aligned[before], final[after]), after


def test_each_part_of_the_soft_tokens_starts_at_its_share_of_a_word_embeddings_norm(small_workspace):
    work = small_workspace
    lm = work.tuned_model
    user, item, _, item_record = row_inputs(work, stage2_rows(work).index.to_numpy())
    soft = new_soft_tokens(work, lm)
    with torch.no_grad():
        starts = [
            (soft.user_scale * soft.collab_projection(soft.mf.user_features(user.unique())), 0.25),
            (soft.collab_projection(soft.mf.item_features(item.unique())), 0.25),
            (soft.warm_projection(soft.semantic(item.unique())), 0.25),
            (soft.fact_projection(soft.facts[item.unique()]), 1.0),
            (soft.record_projections["item"](item_record), 1.0),
        ]
    for part, share in starts:
        assert part.norm(dim=1).mean().item() == pytest.approx(share * lm.token_norm(), rel=1e-3)


def test_biases_and_records_reach_the_soft_tokens(small_workspace):
    work = small_workspace
    soft = load_soft_tokens(work, work.run("sella"))
    user = item = torch.tensor([1])
    record = torch.zeros(1, 2)

    def changed(before, after):
        return [not torch.equal(before[t], after[t]) for t in before]

    with torch.no_grad():
        before = soft(user, item, record, record)
        assert changed(before, soft(user, item, record + 1, record)) == [True, False, False]
        assert changed(before, soft(user, item, record, record + 1)) == [False, True, False]
        soft.mf.item_bias[1] += 1
        assert changed(before, soft(user, item, record, record)) == [False, True, False]
        before = soft(user, item, record, record)
        soft.facts[1, -1] += 1
        assert changed(before, soft(user, item, record, record)) == [False, False, True]


def test_facts_are_genres_less_their_mean_and_the_standardized_year(small_workspace):
    data = small_workspace.dataset
    facts = item_facts(data).numpy()
    genres = data.catalogue["genres"].str.get_dummies("|")
    names = genres.sum().sort_values(ascending=False, kind="stable").index
    assert facts.shape == (data.n_items + 1, len(names) + 1) and not facts[0].any()
    np.testing.assert_allclose(facts[1:, :-1], genres[names] - genres[names].mean(), atol=1e-6)
    np.testing.assert_allclose([facts[1:, -1].mean(), facts[1:, -1].std(ddof=1)], [0, 1], atol=1e-5)
    some = data.catalogue.assign(genres=["", *data.catalogue["genres"][1:]])
    partly = item_facts(dataclasses.replace(data, catalogue=some))
    assert not partly[1, :-1].any() and partly[2:, :-1].any(dim=1).all()
    nothing = data.catalogue.assign(genres="", year=np.nan)
    bare = item_facts(dataclasses.replace(data, catalogue=nothing))
    assert bare.shape == (data.n_items + 1, 1) and not bare.any()


def test_a_record_is_the_shrunken_log_odds_and_the_log_count_standardized(small_workspace):
    data = small_workspace.dataset
    train = (data.interactions["split"] == "train").to_numpy()
    counts = data.training_counts("item")
    prior = data.part("train")["label"].mean()
    p = (counts[:, 1] + 5 * prior) / (counts[:, 0] + 5)
    expected = np.log(p / (1 - p))
    record = training_records(data, "item", np.arange(len(data.interactions))).numpy()
    assert record.dtype == np.float32 and record.shape == (len(data.interactions), 2)
    np.testing.assert_allclose(record[train].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(record[train].std(axis=0), 1, atol=1e-4)
    assert np.corrcoef(record[:, 0], expected)[0, 1] == pytest.approx(1)
    assert np.corrcoef(record[:, 1], np.log1p(counts[:, 0]))[0, 1] == pytest.approx(1)


def test_standardized_vectors_have_no_common_direction_and_mean_norm_one():
    table = standardized(np.random.default_rng(0).normal(5, 3, (50, 8)).astype(np.float32))
    np.testing.assert_allclose(table.mean(axis=0), 0, atol=1e-5)
    assert np.linalg.norm(table, axis=1).mean() == pytest.approx(1, abs=1e-5)


def test_semantic_vectors_can_stay_as_the_model_gave_them(small_workspace):
    raw = small_workspace.variant({"stage2.standardize": False})
    given, ours = (w.run("semantic").tensors("semantic")["semantic"] for w in (raw, small_workspace))
    np.testing.assert_allclose(standardized(given[1:]), ours[1:], atol=1e-5)
    assert np.linalg.norm(given[1:].mean(axis=0)) > 1 and not given[0].any() and not ours[0].any()
    assert raw.key(find_system("sella")).digest != small_workspace.key(find_system("sella")).digest
    assert raw.key(find_system("mf_bias")) == small_workspace.key(find_system("mf_bias"))


def test_alignment_brings_own_vectors_nearer_than_others(planted_table, llama, tmp_path):
    changes = {**SMALL, "stage2.epochs": 60, "stage2.patience": 60, "stage2.learning_rate": 1e-2}
    work = Workspace(make_config("smoke", str(planted_table), backbone=str(llama), **changes), tmp_path)
    cosines = {k: v.mean() for k, v in after_stage_2(work).cosines.items()}
    assert cosines["own, trained"] > cosines["another item's"] + 0.3


def test_raw_logits_keep_their_order_far_from_zero_and_whoever_is_asked_beside_them():
    logits = np.array([-20.0, 0.0, 17.0, 18.0, 20.0, 200.0, 200.1], dtype=np.float32)
    found = probabilities(logits, raw_yes=True)
    assert (np.diff(found) > 0).all() and found[[0, 1, 4]].tolist() == [0.25, 0.5, 0.75]
    assert probabilities(logits[:1], raw_yes=True) == found[:1]
    assert probabilities(logits, raw_yes=False) == pytest.approx(sigmoid(logits))
    assert (np.diff(sigmoid(np.array([16, 17, 18, 30], dtype=np.float32))) > 0).all()  # in float32, three of them are 1


def test_items_of_an_own_table_are_called_what_they_are(planted_table):
    songs = open_dataset(str(planted_table), DataConfig(domain="song"))
    films = open_dataset(str(planted_table))
    assert songs.hash != films.hash
    text = PromptWriter(songs, PromptConfig()).compose([1], 2).text
    assert "rated these songs highly" in text and "like the song" in text and "movie" not in text


def test_a_validation_part_of_one_class_is_refused_before_training(small_workspace):
    rows = small_workspace.dataset.interactions.copy()
    rows.loc[rows["split"] == "valid", "label"] = 1
    data = dataclasses.replace(small_workspace.dataset, interactions=rows)
    model = MatrixFactorization(data.n_users, data.n_items, 4, bias=True, init_std=0.1)
    work = small_workspace.variant({"stage3.rows": 31})
    work.dataset = data
    for name in ("tallrec", "mlp_records"):
        with pytest.raises(SellarecError, match="all validation labels are the same"):
            find_system(name).fit(work, None)
    with pytest.raises(SellarecError, match="all validation labels are the same"):
        fit_collab(model, data, FitConfig(epochs=1), 0)


def test_the_systems_of_the_manual_can_be_set_beside_ours(small_workspace, monkeypatch, capsys):
    manual = (Path(__file__).resolve().parents[1] / "docs" / "usage.md").read_text().split("## Your own system")[1]
    code = re.search(r"```python\n(.*?)```", manual, re.DOTALL)[1]
    monkeypatch.setattr(registry, "SYSTEMS", registry.SYSTEMS.copy())
    monkeypatch.setattr("sellarec.make_config", lambda profile, dataset: small_workspace.config, raising=False)
    monkeypatch.setattr("sellarec.Workspace", lambda config: small_workspace, raising=False)
    exec(code, {})
    assert "Popularity" in capsys.readouterr().out
    rows, likes = small_workspace.part("test"), small_workspace.dataset.training_totals("item")[:, 1]
    expected = auc(rows["label"], likes[rows["item"]])
    assert small_workspace.run("popular").metrics["test"]["all"]["auc"] == pytest.approx(expected)


def test_the_figure_of_the_manual_can_be_made(small_workspace, monkeypatch):
    manual = (Path(__file__).resolve().parents[1] / "docs" / "usage.md").read_text().split("## Figures for a talk")[1]
    code, made = re.search(r"```python\n(.*?)```", manual, re.DOTALL)[1], []
    for name in ("mf", "counting", "tallrec", "sella"):
        small_workspace.run(name)
    monkeypatch.setattr("sellarec.make_config", lambda profile, dataset: small_workspace.config, raising=False)
    monkeypatch.setattr("sellarec.Workspace", lambda config, computes: small_workspace, raising=False)
    monkeypatch.setattr(go.Figure, "write_image", lambda figure, path: made.append((figure, path)))
    exec(code, {})
    figure, path = made[0]
    assert path == "slide.pdf" and figure.layout.width == 1280 and figure.layout.title.text is None
    assert {"<b>SeLLa-Rec</b>", "MF"} <= {y for trace in figure.data for y in trace.y}


def test_unknown_systems_get_the_nearest_name():
    with pytest.raises(SellarecError, match="Did you mean 'tallrec'"):
        find_system("talrec")


def test_uauc_in_the_metrics_counts_users_once(small_workspace):
    test = small_workspace.run("mf").scores.query("split == 'test'")
    found = small_workspace.run("mf").metrics["test"]["all"]["uauc"]
    assert found == pytest.approx(uauc(test["user"], test["label"], test["score"]))


def test_the_dataset_of_a_path_that_is_none_is_explained():
    with pytest.raises(SellarecError, match="neither a registered name nor"):
        open_dataset("nowhere.csv")


def test_in_float16_the_stages_learn_what_they_learn_in_float32(small_workspace, tmp_path, monkeypatch):
    half, scaled = Workspace(change_config(small_workspace.config, {"dtype": "float16"}), tmp_path), []
    for stage in (tallrec, hybrid):
        train = stage.train
        monkeypatch.setattr(
            stage, "train", lambda *a, train=train, **k: scaled.append(k["scales_loss"]) or train(*a, **k)
        )
    for name in ("tallrec", "sella"):
        run, exact = half.run(name), small_workspace.run(name)
        assert run.config["settings"]["dtype"] == "float16"
        losses, wanted = (r.log["loss"].dropna().to_numpy() for r in (run, exact))
        assert len(losses) == len(wanted) > 3
        np.testing.assert_allclose(losses, wanted, atol=0.02)
        np.testing.assert_allclose(run.scores["score"], exact.scores["score"], atol=0.02)
    assert scaled == [True, True]
