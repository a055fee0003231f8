"""The prefix cache in a GPU's memory, here on a CPU: what it decides and returns does not depend on the device."""

import dataclasses
import weakref

import numpy as np
import pytest
import torch

from sellarec.backbone import engine, held
from sellarec.backbone.engine import log_odds, plan_batches, prefix_states, score_rows
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


@pytest.fixture(scope="module")
def size(lm):
    """Bytes that a token leaves behind."""
    sample = prefix_states(lm, [(0,)])
    return sample.numel() * sample.element_size()


@pytest.fixture
def asked(monkeypatch):
    """The prefixes that were computed, in this order."""
    computed = []

    def observed(lm, prefixes):
        computed.extend(p for p in prefixes if p != (0,))  # which only shows what a token leaves behind
        return prefix_states(lm, prefixes)

    monkeypatch.setattr(held, "prefix_states", observed)
    return computed


@pytest.fixture
def holding(lm, size, monkeypatch):
    """Makes a cache, where the memory has so many tokens to spare."""

    def make(tokens, gib=GIB):
        monkeypatch.setattr(held, "spare_memory", lambda device, least: tokens * size)
        return HeldPrefixes(lm, sum(map(len, PREFIXES)), gib)

    return make


@pytest.mark.parametrize("tokens", [3, 8, 13, 16])
def test_with_any_room_a_batch_is_what_its_prefixes_leave_behind(lm, holding, tokens):
    wanted = [r.prefix for r in ROWS]
    kept = holding(tokens).open()
    for batch in (wanted, wanted, wanted[::-1], wanted[1:2]):
        states, lengths = kept.batch(batch)
        assert lengths.tolist() == [len(p) for p in batch] and states.shape[1] == max(map(len, batch))
        for row, prefix in zip(states, batch, strict=True):
            if prefix:
                torch.testing.assert_close(row[: len(prefix)], prefix_states(lm, [prefix])[0], atol=1e-6, rtol=1e-5)
        assert states.isfinite().all(), "attention is told not to look there, but must find numbers"


def test_what_is_held_is_not_computed_again(holding, asked):
    kept = holding(16).open()
    for _ in range(3):
        kept.batch(PREFIXES)
    assert asked == PREFIXES


def test_without_room_for_all_the_first_are_held_and_the_others_computed_each_time(holding, asked, capsys):
    kept = holding(9).open()
    kept.batch(PREFIXES)
    asked.clear()
    kept.batch(PREFIXES)
    assert asked == [PREFIXES[1]], "five and three tokens fit, eight do not"
    assert "the rest is computed anew each time; batches leave " in capsys.readouterr().out


def test_half_of_what_is_spare_is_taken_or_what_is_named(holding, size, asked):
    for named, tokens in ((None, 8), (5.5 * size / GIB, 5), (100 * size / GIB, 16)):
        kept = holding(16, named).open()
        kept.batch(PREFIXES[1:2])
        kept.batch(PREFIXES[:1])
        kept.batch(PREFIXES[2:])
        assert sum(map(len, kept._starts)) <= tokens < sum(map(len, kept._starts)) + 3, named


def test_where_there_is_no_room_nothing_is_held_and_it_is_not_asked_again(lm, holding, asked, monkeypatch):
    kept = holding(0)
    assert kept.open() is None and not kept.is_open
    holding(16)
    assert kept.open() is None, "batches have been planned without it"

    def full(self, *shape):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "new_zeros", full)
        assert holding(16).open() is None, "another process took the memory"


def test_what_is_released_stays_so(holding):
    kept = holding(16)
    kept.open().batch(PREFIXES)
    data = weakref.ref(kept._data)
    kept.release()
    assert data() is None and kept.open() is None


def test_rows_are_scored_as_if_nothing_were_held(lm, holding):
    expected = score_rows(lm, ROWS)
    kept = holding(13).open()
    for _ in range(3):
        np.testing.assert_allclose(score_rows(lm, ROWS, kept=kept, token_budget=6), expected, atol=2e-6)


@pytest.mark.parametrize(("device", "batches"), [("cpu", [8]), ("cuda", [3, 3, 2])])
def test_on_a_gpu_a_batch_is_planned_with_a_copy_of_its_prefix_for_each_row(lm, monkeypatch, device, batches):
    shared, planned = [TokenRow(PREFIXES[1], (n, 30)) for n in range(8)], []
    monkeypatch.setattr(engine, "_for_all", lambda rows, score, shape, budget, *of, **more: planned.extend(rows))
    there = dataclasses.replace(lm, placement=dataclasses.replace(lm.placement, device=torch.device(device)))
    score_rows(there, shared, kept="a cache", label="")
    assert [len(b) for b in plan_batches(planned, 30)] == batches, "one prefix of eight tokens, suffixes of two"


def test_gradients_behind_held_prefixes_are_the_same(lm, holding):
    token, place = next(iter(lm.soft_ids.items()))
    rows = [TokenRow(r.prefix, (place, *r.suffix)) for r in ROWS]
    vectors = torch.randn(len(rows), lm.width, generator=torch.Generator().manual_seed(0)).to(lm.placement.device)

    def gradient(kept):
        read = vectors.clone().requires_grad_()
        log_odds(lm, rows, {token: read}, kept).sum().backward()
        return read.grad

    expected, kept = gradient(None), holding(13).open()
    assert expected.abs().max() > 0
    for _ in range(3):
        torch.testing.assert_close(gradient(kept), expected, atol=1e-6, rtol=1e-4)


def test_it_is_for_one_gpu_that_has_the_whole_model(lm, monkeypatch):
    monkeypatch.setattr(held, "forget_peaks", lambda device: None)

    def untouched():
        pytest.fail("a CPU has no use for the list")
        yield ()

    assert lm.placement.device.type == "cuda" or hold_prefixes(lm, untouched(), None) is None
    on_gpu = dataclasses.replace(lm, placement=dataclasses.replace(lm.placement, device=torch.device("cuda")))
    assert hold_prefixes(on_gpu, PREFIXES * 2, None)._wanted == 16
    assert hold_prefixes(on_gpu, PREFIXES, 0.0) is None
    assert hold_prefixes(on_gpu, [(), ()], 1.0) is None
    assert hold_prefixes(dataclasses.replace(on_gpu, split=True), PREFIXES, 1.0) is None


def test_memory_is_spare_that_batches_have_not_taken_and_scoring_will_not(monkeypatch):
    for name, amount in {"max_memory_reserved": 30, "memory_allocated": 10}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, amount=amount: amount)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80, 100))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert held.spare_memory(torch.device("cuda"), 29) == 80 - 1.5 * 20 - 5
    assert held.spare_memory(torch.device("cuda"), 40) == 80 - 40 - 5


@pytest.fixture
def on_gpu(monkeypatch):
    """Lets stage 3 hold prefixes here; gives the caches that it makes, each with the prefixes that it computed."""
    monkeypatch.setattr(hybrid, "caches_prefixes", lambda work, lm: False)
    monkeypatch.setattr(held, "spare_memory", lambda device, least: 2 * GIB)
    made = []

    class Observed(HeldPrefixes):
        def release(self):
            made.append((dict(self._starts), self.is_open))
            super().release()

    def here(lm, prefixes, gib):
        tokens = sum(map(len, set(prefixes)))
        return Observed(lm, tokens, gib) if tokens else None

    monkeypatch.setattr(hybrid, "hold_prefixes", here)
    return made


def test_stage_3_computes_what_it_holds_once_and_finds_the_same_scores(
    small_workspace, tmp_path, on_gpu, asked, monkeypatch
):
    config = change_config(small_workspace.config, {"stage3.epochs": 3, "stage3.evaluations": 3, "prefix_gib": None})
    with monkeypatch.context() as patch:
        patch.setattr(hybrid, "hold_prefixes", lambda lm, prefixes, gib: None)
        anew = Workspace(config, tmp_path / "anew")
        anew.run("sella")
    here = Workspace(config, tmp_path / "holding")
    np.testing.assert_allclose(here.test_scores("sella"), anew.test_scores("sella"), atol=2e-4)
    assert here.run("sella").config["computed_with"] == ["prefix cache"]
    ((starts, was_open),) = on_gpu
    assert was_open and len(starts) > config.stage3.rows // 2, "of validation and of training"
    assert sorted(asked) == sorted(starts), "each once"


@pytest.mark.parametrize(("epochs", "evaluations", "models"), [(1, 1, 0), (2, 1, 0), (1, 2, 1), (2, 2, 2)])
def test_only_rows_that_are_asked_for_again_are_held(small_workspace, tmp_path, on_gpu, epochs, evaluations, models):
    changes = {"stage3.epochs": epochs, "stage3.evaluations": evaluations, "stage3.order": "warm,user+item"}
    work = Workspace(change_config(small_workspace.config, changes), tmp_path)
    work.run("sella")
    assert len(on_gpu) == (2 if models else 0), "one in each of the two phases, given back at its end"
    valid = len(work.part("valid"))
    for starts, _ in on_gpu:
        assert (len(starts) > valid) == (models == 2)
