"""CTRL, Prompt4NR and BinLLM: hand-computed cases, what is trained, and runs through the real entry point."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from sellarec.backbone.engine import log_odds
from sellarec.backbone.token_rows import without_prefix
from sellarec.collab.alignment import contrast, fine_grained_similarity
from sellarec.collab.binary import BinaryMF, bits_text, dotted_text
from sellarec.collab.fit import fit_collab
from sellarec.config import make_config
from sellarec.data.open import open_dataset
from sellarec.errors import SellarecError
from sellarec.prompts import ITEM, USER, Prompt
from sellarec.runs import Run
from sellarec.settings import FitConfig
from sellarec.systems import binllm, person_prompt, prompt4nr
from sellarec.systems.base import Workspace
from sellarec.systems.registry import TABLES, find_system
from sellarec.systems.rows import stage3_rows

NAMES = ("ctrl", "prompt4nr", "tallrec_further", "binary_mf", "binllm")


@pytest.mark.parametrize("name", NAMES)
def test_each_scores_the_same_rows_and_a_row_alone_and_strangers_get_finite_scores(small_workspace, name):
    run, system = small_workspace.run(name), find_system(name)
    assert run.scores["row"].tolist() == small_workspace.run("sella").scores["row"].tolist()
    assert run.scores["score"].between(0, 1).all()
    test = small_workspace.dataset.part("test")
    cold = test.index[~test["warm"]].to_numpy()[:3]
    together = system.score(small_workspace, run, cold)
    alone = [system.score(small_workspace, run, cold[n : n + 1])[0] for n in range(3)]
    np.testing.assert_allclose(together, alone, atol=2e-6)
    assert not list(run.folder.glob("scratch-*"))
    assert name in TABLES["table3"]


def test_parts_are_compared_with_the_nearest_part_of_the_other_side():
    left = torch.tensor([[1.0, 0.0, 0.0, 2.0]])  # parts (1, 0) and (0, 2)
    right = torch.tensor([[0.0, 3.0, 0.0, 1.0], [-1.0, 0.0, 1.0, 1.0]])
    # first pair: (1,0) is at right angles to both parts, (0,2) equals them; second: 1/sqrt2 is the best of both
    torch.testing.assert_close(fine_grained_similarity(left, right, 2), torch.tensor([[1.0, math.sqrt(2)]]))
    torch.testing.assert_close(
        fine_grained_similarity(left, right, 1)[0, 1], torch.tensor(1 / math.sqrt(5 * 3)).float()
    )


def test_contrast_is_chance_for_equal_similarities_and_averages_both_directions():
    assert contrast(torch.zeros(5, 5)).item() == pytest.approx(math.log(5))
    similarity = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    rows = (math.log(1 + math.exp(-2)) + math.log(2)) / 2
    columns = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-1))) / 2
    assert contrast(similarity).item() == pytest.approx((rows + columns) / 2)
    assert contrast(similarity, symmetric=False).item() == pytest.approx(rows)


def test_ctrl_learns_to_match_rows_with_their_texts(small_workspace):
    log = small_workspace.run("ctrl").log
    losses = log["alignment_loss"].dropna()
    assert len(losses) == small_workspace.config.ctrl.epochs and losses.iloc[-1] < losses.iloc[0]
    assert log["valid_auc"].notna().sum() > 0


def test_a_code_is_written_as_bits_or_like_an_address():
    bits = torch.tensor([1, 0, 1, 0, 1, 1, 0, 0] + [0] * 7 + [1]).bool()
    assert bits_text(bits) == "1010110000000001"
    assert dotted_text(bits) == "172.1"


def test_the_sign_passes_gradients_and_scoring_reads_bits_only():
    torch.manual_seed(0)
    model = BinaryMF(3, 4, 8)
    user, item = torch.tensor([1, 2]), torch.tensor([3, 4])
    model.eval()
    agree = (model.user_bits(user) == model.item_bits(item)).sum(dim=1)
    assert model(user, item).tolist() == (2 * agree - 8).tolist()
    model.train()
    model.binary_share = 1.0
    model(user, item).sum().backward()
    assert model.user_embedding.weight.grad[1].abs().sum() > 0 and model.user_map.weight.grad.abs().sum() > 0


def test_binary_factorisation_finds_planted_taste_and_its_share_of_bits_grows(planted_table):
    data = open_dataset(str(planted_table))
    torch.manual_seed(0)
    model, shares = BinaryMF(data.n_users, data.n_items, 16), []

    def grow(epoch):
        model.binary_share = min(1.0, 0.02 * epoch)
        shares.append(model.binary_share)

    settings = FitConfig(learning_rate=1e-2, weight_decay=1e-4, epochs=60, patience=60, batch=64)
    assert fit_collab(model, data, settings, 0, each_epoch=grow) > 0.8
    assert shares[0] == 0 and shares[-1] == 1 and shares == sorted(shares)


def test_codes_that_tell_users_apart_are_counted():
    bits = torch.tensor([[1, 0], [1, 0], [0, 0]]).bool()
    assert binllm._codes(bits) == "2 codes for 3"


def test_codes_stand_where_the_soft_tokens_stand_and_a_hidden_user_has_the_strangers_code(small_workspace):
    work = small_workspace
    model, lm = binllm._trained(work), work.base_model
    row = int(work.dataset.part("train").index[0])
    user, item = work.dataset.interactions.loc[row, ["user", "item"]]
    codes = [dotted_text(model.user_bits(torch.tensor([u]))[0]) for u in (user, 0)]
    known, hidden = (
        lm.tokenizer.decode(r.prefix + r.suffix)
        for r in binllm._tokenizer(work)(lm, np.array([row, row]), np.array([False, True]))
    )
    of_item = dotted_text(model.item_bits(torch.tensor([item]))[0])
    assert f"collaborative feature is {codes[0]}. The target movie's feature is {of_item}." in known
    assert f"collaborative feature is {codes[1]}." in hidden and USER not in hidden and ITEM not in hidden


def test_prompt4nr_writes_three_vectors_into_each_slot_and_trains_them_with_the_adapter(small_workspace):
    work, lm = small_workspace, small_workspace.base_model
    (row,) = prompt4nr.tokenize_with_slots(lm, [Prompt("History.", " Question? Answer:")])
    assert [(row.prefix + row.suffix).count(lm.soft_ids[t]) for t in (USER, ITEM)] == [3, 3]
    text = [i for i in row.prefix + row.suffix if i not in lm.soft_ids.values()]
    plain = lm.tokenize(Prompt("History.", " Question? Answer:"))
    assert tuple(text) == plain.prefix + plain.suffix
    with pytest.raises(SellarecError, match="occur 2 times"):
        lm.tokenize(Prompt("History.", ITEM * 3), (ITEM,), 2)

    soft = prompt4nr._new(work)
    rows = [row, *prompt4nr.tokenize_with_slots(lm, [Prompt("Other.", " Why? Answer:")])]
    rows = [without_prefix(r) for r in rows]
    both = log_odds(lm, rows, soft(np.arange(2)))
    torch.testing.assert_close(both[1:], log_odds(lm, rows[1:], soft(np.arange(1))), atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        soft.user[2] += 1.0  # only the third vector of one slot
    assert not torch.allclose(both, log_odds(lm, rows, soft(np.arange(2))))

    trained = work.run("prompt4nr").tensors("virtual_tokens")
    fresh = prompt4nr._new(work).state_dict()
    assert all(not np.array_equal(trained[k], fresh[k].numpy()) for k in ("user", "item"))


def test_prompt4nr_cuts_a_long_history_like_every_other_system(small_workspace):
    lm = dataclasses.replace(small_workspace.base_model, max_tokens=60)
    prompt = Prompt("An old title. " * 40 + "The latest one.", " Question? Answer:")
    (row,), plain = prompt4nr.tokenize_with_slots(lm, [prompt]), lm.tokenize(prompt)
    assert len(row) == len(plain) == 60 and row.suffix[3:] == plain.suffix
    assert row.prefix[-10:] == plain.prefix[-10:]  # the oldest text went


def test_free_tokens_of_nobody_are_the_mean_of_all(small_workspace):
    work = small_workspace.variant({"stage3.cold_users": 1.0})  # every training row hides its user
    soft = person_prompt._new(work)
    vectors = soft(torch.tensor([1, 2]), torch.tensor([1, 2]))[USER]
    torch.testing.assert_close(vectors, soft.user_embedding.weight.mean(dim=0).expand(2, -1).detach())


@pytest.mark.parametrize("name", ["prompt4nr", "binllm"])
def test_the_adapter_goes_on_from_stage_1_and_ends_elsewhere(small_workspace, name, tmp_path, monkeypatch):
    def weights(run):
        return load_file(run.folder / "adapter" / "adapter_model.safetensors")

    before, after = weights(small_workspace.run("tallrec")), weights(small_workspace.run(name))
    assert before.keys() == after.keys()
    moved = max(np.abs(after[k] - before[k]).max() for k in before)
    config = small_workspace.config.stage1
    steps = math.ceil(len(stage3_rows(small_workspace)) / config.batch)
    assert 0 < moved <= 1.1 * config.learning_rate * steps

    monkeypatch.setattr("sellarec.systems.tallrec.train", lambda *args, **kwargs: None)
    find_system(name).fit(small_workspace, Run(tmp_path))
    untrained = weights(Run(tmp_path))
    assert all(np.array_equal(untrained[k], before[k]) for k in before)


def test_settings_that_cannot_work_are_refused_before_anything_is_computed(planted_table, llama, tmp_path):
    for change, message in (
        ({"binllm.code": "octal"}, r"'binllm\.code' cannot be 'octal'\. Valid: dotted, bits"),
        ({"binllm.dim": 12}, r"binllm\.dim is 12; the code 'dotted' writes eight bits at a time"),
        ({"ctrl.spaces": 3}, r"ctrl\.spaces is 3; it must divide ctrl\.width, 128"),
    ):
        with pytest.raises(SellarecError, match=message):
            make_config("smoke", **change)
    config = make_config("smoke", str(planted_table), backbone=str(llama), **{"lora.rank": 0})
    with pytest.raises(SellarecError, match=r"lora\.rank must not be 0"):
        Workspace(config, tmp_path).run("prompt4nr")
    assert not list(tmp_path.glob("*/*/*"))


def test_how_codes_are_written_does_not_train_them_again(small_workspace):
    other = dataclasses.replace(
        small_workspace.config, binllm=dataclasses.replace(small_workspace.config.binllm, code="bits")
    )
    small_workspace.run("binary_mf")
    assert Workspace(other, small_workspace.root).is_done("binary_mf")
    changed = dataclasses.replace(
        small_workspace.config, binllm=dataclasses.replace(small_workspace.config.binllm, dim=16)
    )
    assert not Workspace(changed, small_workspace.root).is_done("binary_mf")
