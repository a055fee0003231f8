"""Every variant runs, differs from SeLLa-Rec where it says so and nowhere else, and shares what it does not touch."""

import numpy as np
import pytest

from sellarec.errors import SellarecError
from sellarec.prompts import ITEM, SOFT_TOKENS, USER, WARM
from sellarec.systems.base import Workspace
from sellarec.systems.sella import HybridModel, SoftTokens, load_soft_tokens, phases
from sellarec.systems.sella_collab import stage3_rows
from sellarec.systems.variants import ABLATIONS, COLLM, OURS

VARIANTS = {v.name: v for v in (COLLM, *ABLATIONS, *OURS)}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_computed_under_its_changes_and_scored_on_the_same_rows(small_workspace, name):
    run, whole = small_workspace.run(name), small_workspace.run("sella")
    assert run.scores["row"].tolist() == whole.scores["row"].tolist()
    assert np.isfinite(run.scores["score"]).all()
    assert not np.array_equal(run.scores["score"], whole.scores["score"])
    again = Workspace(small_workspace.config, small_workspace.root)
    assert again.is_done(name)
    shares_stage_1 = not any(k.startswith(("prompt", "lora", "stage1")) for k in VARIANTS[name].changes)
    assert (run.config["upstream"]["tallrec"] == whole.config["upstream"]["tallrec"]) == shares_stage_1


def moved(work, name, tensor):
    """Whether stage 3 of a variant changed one of the tables that stage 2 gave it."""
    place = work._changed(VARIANTS[name].changes)
    before = place.run("sella_collab").tensors("aligned")[tensor]
    return not np.array_equal(before, work.run(name).tensors("soft_tokens").get(tensor, before))


@pytest.mark.parametrize(
    ("name", "items", "semantic"),
    [
        ("collm", False, False),
        ("no_warm_token", True, False),
        ("no_user_item_tokens", False, True),
        ("frozen_semantic", True, False),
        ("warm_then_user_item", True, True),
        ("user_item_then_warm", True, True),
    ],
)
def test_only_the_tables_of_the_tokens_that_are_there_are_trained(small_workspace, name, items, semantic):
    assert moved(small_workspace, name, "mf.item_embedding.weight") == items
    assert moved(small_workspace, name, "semantic.weight") == semantic


@pytest.mark.parametrize(
    ("name", "tokens"),
    [("no_warm_token", (USER, ITEM)), ("no_user_item_tokens", (WARM,)), ("random_projection", SOFT_TOKENS)],
)
def test_a_token_that_is_left_out_takes_its_sentence_with_it(small_workspace, name, tokens):
    place = small_workspace._changed(VARIANTS[name].changes)
    lm = place.tuned_model
    soft = load_soft_tokens(place, small_workspace.run(name))
    model = HybridModel(lm, soft, place, np.arange(3))
    ids = model.token_rows[0].prefix + model.token_rows[0].suffix
    assert {t for t in SOFT_TOKENS if lm.soft_ids[t] in ids} == set(tokens)
    text = lm.tokenizer.decode(ids)
    assert ("collaborative feature is" in text) == (USER in tokens)


def test_the_second_phase_leaves_what_the_first_one_learnt(small_workspace):
    for name, kept in (("warm_then_user_item", "semantic.weight"), ("user_item_then_warm", "mf.item_embedding.weight")):
        assert np.array_equal(
            small_workspace.run(name).tensors("phase1")[kept], small_workspace.run(name).tensors("soft_tokens")[kept]
        )


def test_a_random_projection_starts_elsewhere_and_an_untuned_model_is_the_backbone(small_workspace):
    work = small_workspace
    place = work._changed(VARIANTS["no_lora"].changes)
    assert place.tuned_model is place.base_model
    aligned = work.run("sella").tensors("soft_tokens")["collab_projection.layers.0.weight"]
    random = work.run("random_projection").tensors("soft_tokens")["collab_projection.layers.0.weight"]
    assert np.abs(aligned - random).max() > 0.05


def test_variants_that_leave_stage_1_alone_share_the_tuned_model(small_workspace):
    work = small_workspace
    assert work._changed(VARIANTS["no_records"].changes).tuned_model is work.tuned_model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": "user,itme"}, r"stage3\.tokens 'user,itme' is not known\. Valid: some of user, item, warm"),
        ({"order": "warm"}, r"stage3\.order 'warm' is not known.*Valid: together; warm,user\+item; user\+item,warm"),
        ({"order": "warm,user+item", "tokens": "warm"}, r"needs all of stage3\.tokens, not 'warm'"),
    ],
)
def test_unknown_tokens_and_orders_name_the_valid_ones(changes, message):
    from sellarec.config import Stage3Config

    with pytest.raises(SellarecError, match=message):
        phases(Stage3Config(**changes))


def test_showing_some_tokens_trains_their_parts_only(small_workspace):
    soft = load_soft_tokens(small_workspace, small_workspace.run("sella"))

    def trained():
        return {n.split(".")[0] for n, p in soft.named_parameters() if p.requires_grad}

    assert isinstance(soft.show(SOFT_TOKENS, (WARM,)), SoftTokens)
    assert trained() == {"semantic", "warm_projection"}
    soft.show((USER, ITEM), (USER, ITEM))
    assert trained() == {"mf", "collab_projection", "record_projections"}


def test_person_prompt_trains_free_vectors_and_gives_strangers_the_average(small_workspace):
    run = small_workspace.run("person_prompt")
    seen = set(stage3_rows(small_workspace)["user"])
    table = run.tensors("tokens")["user_embedding.weight"]
    strangers = [u for u in range(1, len(table)) if u not in seen]
    assert strangers and all(np.array_equal(table[u], table[strangers[0]]) for u in strangers)
    np.testing.assert_allclose(table[strangers[0]], table[sorted(seen)].mean(axis=0), atol=1e-5)
    assert np.isfinite(run.scores["score"]).all()
