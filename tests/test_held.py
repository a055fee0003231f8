"""The prefix cache in a GPU's memory, here on a CPU: what it decides and returns does not depend on the device."""

import dataclasses

import numpy as np
import pytest
import torch

from sellarec.backbone import held
from sellarec.backbone.engine import log_odds, prefix_states, score_rows
from sellarec.backbone.held import HeldPrefixes, hold_prefixes
from sellarec.backbone.language_model import open_language_model
from sellarec.backbone.prefixes import GIB
from sellarec.backbone.token_rows import TokenRow
from sellarec.config import change_config
from sellarec.systems import hybrid
from sellarec.systems.base import Workspace

PREFIXES = [tuple(range(1, n)) for n in (6, 9, 4)]
"""Of five, eight and three tokens."""

ROWS = [TokenRow(p, (20 + n, 30)) for n, p in enumerate([*PREFIXES, (), PREFIXES[0]])]


@pytest.fixture(scope="module")
def lm(any_backbone):
    return open_language_model(str(any_backbone), "float32")


@pytest.fixture
def asked(lm, monkeypatch):
    """The prefixes that were computed, in this order."""
    computed = []

    def observed(lm, prefixes):
        computed.extend(prefixes)
        return prefix_states(lm, prefixes)

    monkeypatch.setattr(held, "prefix_states", observed)
    return computed


@pytest.fixture
def holding(lm, monkeypatch):
    """Makes a cache of these prefixes, where the memory has room for so many tokens."""

    def make(tokens, prefixes=PREFIXES, **more):
        of_token = prefix_states(lm, [(0,)])[0]
        size = of_token.numel() * of_token.element_size()
        monkeypatch.setattr(held, "room_on", lambda device, scoring: tokens * size)
        return HeldPrefixes(lm, of_token, sum(map(len, prefixes)), **{"gib": 1.0, **more})

    return make


def twice(kept, prefixes):
    """The second batch of some prefixes; before it nothing is held."""
    kept.batch(prefixes[:1])
    return kept.batch(prefixes)


@pytest.mark.parametrize("tokens", [0, 3, 8, 13, 16])
def test_with_any_room_a_batch_is_what_its_prefixes_leave_behind(lm, holding, tokens):
    wanted = [r.prefix for r in ROWS]
    kept = holding(tokens)
    for batch in (wanted, wanted, wanted[::-1], wanted[1:2]):
        states, lengths = kept.batch(batch)
        assert lengths.tolist() == [len(p) for p in batch] and states.shape[1] == max(map(len, batch))
        for row, prefix in zip(states, batch, strict=True):
            if prefix:
                torch.testing.assert_close(row[: len(prefix)], prefix_states(lm, [prefix])[0], atol=1e-6, rtol=1e-5)
        assert states.isfinite().all(), "attention is told not to look there, but must find numbers"


def test_what_is_held_is_not_computed_again(holding, asked):
    kept = holding(16)
    kept.batch(PREFIXES[:1])
    assert asked == PREFIXES[:1], "the first batch shows what a batch takes, and is not held"
    kept.batch(PREFIXES)
    assert asked == PREFIXES[:1] + PREFIXES
    for _ in range(3):
        kept.batch(PREFIXES)
    assert asked == PREFIXES[:1] + PREFIXES


def test_without_room_for_all_the_first_are_held_and_the_others_computed_each_time(holding, asked, capsys):
    kept = holding(9)
    twice(kept, PREFIXES)
    asked.clear()
    kept.batch(PREFIXES)
    assert asked == [PREFIXES[1]], "five and three tokens fit, eight do not"
    said = capsys.readouterr().out
    assert "of 0.0 GiB on the GPU, the rest is computed anew each time" in said and "--prefix-gib is 1)" in said


def test_a_bound_below_the_room_is_kept(holding, asked):
    kept = holding(16)
    size = kept._data.numel() * kept._data.element_size()
    bound = holding(16, gib=5.5 * size / GIB)
    twice(bound, PREFIXES)
    asked.clear()
    bound.batch(PREFIXES)
    assert asked == PREFIXES[1:], "five tokens fit, and then nothing"


def test_where_another_process_took_the_memory_nothing_is_held(lm, holding, asked, monkeypatch):
    kept = holding(16)

    def full(self, *shape):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.Tensor, "new_zeros", full)
    twice(kept, PREFIXES)
    monkeypatch.undo()
    states, _ = kept.batch(PREFIXES[:1])
    torch.testing.assert_close(states, prefix_states(lm, PREFIXES[:1]))


def test_rows_are_scored_as_if_nothing_were_held(lm, holding):
    expected = score_rows(lm, ROWS)
    kept = holding(16)
    for _ in range(3):
        np.testing.assert_allclose(score_rows(lm, ROWS, kept=kept, token_budget=6), expected, atol=2e-6)


def test_gradients_behind_held_prefixes_are_the_same(lm, holding):
    token, place = next(iter(lm.soft_ids.items()))
    rows = [TokenRow(r.prefix, (place, *r.suffix)) for r in ROWS]
    vectors = torch.randn(len(rows), lm.width, generator=torch.Generator().manual_seed(0)).to(lm.placement.device)

    def gradient(kept):
        read = vectors.clone().requires_grad_()
        log_odds(lm, rows, {token: read}, kept).sum().backward()
        return read.grad

    expected, kept = gradient(None), holding(13)
    assert expected.abs().max() > 0
    for _ in range(3):
        torch.testing.assert_close(gradient(kept), expected, atol=1e-6, rtol=1e-4)


def test_it_is_for_one_gpu_that_has_the_whole_model(lm):
    assert hold_prefixes(lm, PREFIXES, 1.0) is None or lm.placement.device.type == "cuda"
    on_gpu = dataclasses.replace(lm, placement=dataclasses.replace(lm.placement, device=torch.device("cuda")))
    assert hold_prefixes(on_gpu, PREFIXES, 0.0) is None
    assert hold_prefixes(on_gpu, [(), ()], 1.0) is None
    assert hold_prefixes(dataclasses.replace(on_gpu, split=True), PREFIXES, 1.0) is None


def test_room_is_what_is_free_without_what_a_batch_takes(monkeypatch):
    memory = {"max_memory_allocated": 30, "memory_allocated": 10}
    for name, amount in memory.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, amount=amount: amount)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80, 100))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert held.room_on(torch.device("cuda"), 29) == 80 - 1.5 * 20 - 5
    assert held.room_on(torch.device("cuda"), 40) == 80 - 40 - 5


def test_stage_3_computes_each_prefix_once_and_finds_the_same_scores(small_workspace, tmp_path, monkeypatch, capsys):
    several = {"stage3.epochs": 3, "stage3.evaluations": 3, "prefix_gib": None}
    config = change_config(small_workspace.config, several)
    monkeypatch.setattr(hybrid, "caches_prefixes", lambda work, lm: False)
    monkeypatch.setattr(held, "room_on", lambda device, scoring: GIB)
    computed, caches, first = [], [], []

    class Observed(HeldPrefixes):
        def batch(self, prefixes):
            if not self._batches:
                caches.append(self)
                first.extend({p for p in prefixes if p})
            return super().batch(prefixes)

    def here(lm, prefixes, gib):
        return Observed(lm, prefix_states(lm, [(0,)])[0], sum(map(len, set(prefixes))), np.inf)

    def observed(lm, prefixes):
        computed.extend(prefixes)
        return prefix_states(lm, prefixes)

    anew = Workspace(config, tmp_path / "anew")
    anew.run("sella")
    monkeypatch.setattr(hybrid, "hold_prefixes", here)
    monkeypatch.setattr(held, "prefix_states", observed)
    holding = Workspace(config, tmp_path / "holding")
    np.testing.assert_allclose(holding.test_scores("sella"), anew.test_scores("sella"), atol=2e-4)
    assert capsys.readouterr().out.count("prefix cache: 0.0 GiB on the GPU.") == 1
    assert holding.run("sella").config["computed_with"] == ["prefix cache"]
    (cache,) = caches
    assert len(first) < len(cache._starts) > config.stage3.batch
    assert sorted(computed) == sorted([*cache._starts, *first]), "those of the first batch again, and no other"
