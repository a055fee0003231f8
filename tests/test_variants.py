"""Every variant runs, differs from SeLLa-Rec where it says so and nowhere else, and shares what it does not touch."""

import dataclasses

import numpy as np
import pytest
import torch

import sellarec.training as training
from sellarec.config import make_config
from sellarec.errors import SellarecError
from sellarec.prompts import ITEM, SOFT_TOKENS, USER, WARM
from sellarec.systems import person_prompt, registry, sella
from sellarec.systems.base import Workspace
from sellarec.systems.cold_users import hide_users
from sellarec.systems.hybrid import HybridModel
from sellarec.systems.rows import stage3_rows
from sellarec.systems.sella import SoftTokens, load_soft_tokens
from sellarec.systems.variants import ABLATIONS, CHECKS, COLLM, OURS
from tests.conftest import SMALL

VARIANTS = {v.name: v for v in (COLLM, *CHECKS, *ABLATIONS, *OURS)}


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


def test_binary_mf_learns_nothing_of_rows_that_are_held_out(planted_table, tmp_path):
    def learnt(place, **changes):
        config = make_config("smoke", str(planted_table), **SMALL, **{"binllm.epochs": 4, **changes})
        work = Workspace(config, tmp_path / place)
        if place != "as it is":  # the labels of stage 3's rows are the other way round
            rows = work.dataset.interactions.copy()
            rows.loc[stage3_rows(work).index, "label"] ^= 1
            vars(work)["dataset"] = dataclasses.replace(work.dataset, interactions=rows)
        return work.run("binary_mf").tensors("model")["item_embedding.weight"]

    held_out = {"binllm.hold_out": True}
    assert np.array_equal(learnt("as it is", **held_out), learnt("flipped", **held_out))
    assert not np.array_equal(learnt("as it is"), learnt("flipped"))


def moved(work, name, tensor):
    """Whether stage 3 of a variant changed one of the tables that stage 2 gave it."""
    place = work.variant(VARIANTS[name].changes)
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
    place = small_workspace.variant(VARIANTS[name].changes)
    lm = place.tuned_model
    soft = load_soft_tokens(place, small_workspace.run(name))
    model = HybridModel(lm, soft, place, np.arange(3))
    ids = model.token_rows[0].prefix + model.token_rows[0].suffix
    assert {t for t in SOFT_TOKENS if lm.soft_ids[t] in ids} == set(tokens)
    text = lm.tokenizer.decode(ids)
    assert ("collaborative feature is" in text) == (USER in tokens)


@pytest.mark.parametrize("name", ["warm_then_user_item", "user_item_then_warm"])
def test_each_phase_changes_its_own_group_only_and_a_kill_in_the_second_changes_nothing(
    small_workspace, tmp_path, monkeypatch, name
):
    """The run is killed at the end of phase 2, begun again, and compared with the one that nobody killed."""
    work = Workspace(small_workspace.config, small_workspace.root)
    killed = dataclasses.replace(VARIANTS[name], version=2)  # another key for the same computation
    monkeypatch.setitem(registry.SYSTEMS, name, killed)
    states, train, save = [], sella.train_tokens, training._save_checkpoint

    def observed(place, run, soft, *rest):
        train(place, run, soft, *rest)
        states.append({k: v.numpy().copy() for k, v in soft.learnt().items()})

    def dies(accelerator, checkpoint):
        if checkpoint.parent.name == "scratch-phase2" and len(states) == 1:
            raise KeyboardInterrupt
        save(accelerator, checkpoint)

    monkeypatch.setattr(sella, "train_tokens", observed)
    monkeypatch.setattr(training, "_save_checkpoint", dies)
    with pytest.raises(KeyboardInterrupt):
        work.run(name)
    run = Workspace(small_workspace.config, small_workspace.root).run(name)
    whole = small_workspace.run(name)
    assert run.folder != whole.folder and run.log.equals(whole.log) and set(run.log["phase"]) == {1, 2}
    assert not list(run.folder.glob("scratch-*"))
    after_first, after_second = states[-2:]
    first, second = ["semantic.weight"], ["mf.item_embedding.weight", "mf.user_embedding.weight"]
    if name == "user_item_then_warm":
        first, second = second, first
    aligned = work.variant(killed.changes).run("sella_collab").tensors("aligned")
    assert all(np.array_equal(aligned[k], after_first[k]) for k in second)
    assert all(np.array_equal(after_first[k], after_second[k]) for k in first)
    for key, value in whole.tensors("soft_tokens").items():
        assert np.array_equal(value, run.tensors("soft_tokens")[key]), key


def test_a_variant_without_stage_1_does_not_tune_the_model_that_it_does_not_use(planted_table, llama, tmp_path):
    Workspace(make_config("smoke", str(planted_table), backbone=str(llama), **SMALL), tmp_path).run("no_lora")
    assert len(list(tmp_path.glob("*/*/tallrec/*"))) == 1


def test_a_random_projection_starts_elsewhere_and_an_untuned_model_is_the_backbone(small_workspace):
    work = small_workspace
    place = work.variant(VARIANTS["no_lora"].changes)
    assert place.tuned_model is place.base_model
    aligned = work.run("sella").tensors("soft_tokens")["collab_projection.layers.0.weight"]
    random = work.run("random_projection").tensors("soft_tokens")["collab_projection.layers.0.weight"]
    assert np.abs(aligned - random).max() > 0.05


def test_variants_that_leave_stage_1_alone_share_the_tuned_model(small_workspace):
    work = small_workspace
    assert work.variant(VARIANTS["no_records"].changes).tuned_model is work.tuned_model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": "user,itme"}, r"stage3\.tokens 'user,itme' is not known\. Valid: some of user, item, warm"),
        ({"order": "warm"}, r"'stage3\.order' cannot be 'warm'.*Valid: together, warm,user\+item, user\+item,warm"),
        ({"projection": "wram"}, r"'stage3\.projection' cannot be 'wram'.*Valid: aligned, random"),
        ({"order": "warm,user+item", "tokens": "warm"}, r"needs all of stage3\.tokens, not 'warm'"),
    ],
)
def test_unknown_tokens_and_orders_name_the_valid_ones(changes, message):
    with pytest.raises(SellarecError, match=message):
        make_config(**{f"stage3.{name}": value for name, value in changes.items()})


def test_showing_some_tokens_trains_their_parts_only(small_workspace):
    soft = load_soft_tokens(small_workspace, small_workspace.run("sella"))

    def trained():
        return {n.split(".")[0] for n, p in soft.named_parameters() if p.requires_grad}

    assert isinstance(soft.show(SOFT_TOKENS, (WARM,)), SoftTokens)
    assert trained() == {"semantic", "warm_projection", "fact_projection"}
    soft.show((USER, ITEM), (USER, ITEM))
    assert trained() == {"mf", "collab_projection", "record_projections"}


def test_person_prompt_trains_the_vectors_of_its_rows(small_workspace):
    run = small_workspace.run("person_prompt")
    assert np.isfinite(run.scores["score"]).all()
    table = torch.from_numpy(run.tensors("tokens")["user_embedding.weight"])
    start = person_prompt._new(small_workspace).user_embedding.weight
    seen = sorted(set(stage3_rows(small_workspace)["user"]))
    moved = (table - start).abs().max(dim=1).values
    assert moved[seen].min() > 5 * np.delete(moved.detach().numpy(), seen).max()  # the rest only decays


def test_who_is_only_shown_as_new_has_no_vector_of_their_own(small_workspace):
    work = small_workspace.variant({"stage3.cold_users": 0.8})
    rows = stage3_rows(work)
    shown = ~hide_users(work, rows.index.to_numpy(), 0.8)
    assert 0 < rows["user"][shown].nunique() < rows["user"].nunique()
    soft = person_prompt._new(work)
    assert soft.seen_users.tolist() == sorted(set(rows["user"][shown]))
    assert soft.seen_items.tolist() == sorted(set(rows["item"]))


def test_person_prompt_gives_strangers_the_average_and_no_gradient():
    soft = person_prompt.FreeTokens((torch.tensor([1, 3]), torch.tensor([2])), (4, 3), width=2, norm=1.0)
    with torch.no_grad():
        soft.user_embedding.weight.copy_(torch.arange(10.0).reshape(5, 2))
    tokens = soft(torch.tensor([1, 2, 4]), torch.tensor([2, 2, 1]))
    assert tokens[USER].tolist() == [[2, 3], [4, 5], [4, 5]]
    assert torch.equal(tokens[ITEM][2], soft.item_embedding.weight[2])
    tokens[USER].sum().backward()
    assert soft.user_embedding.weight.grad.abs().sum(dim=1).tolist() == [0, 2, 0, 0, 0]
