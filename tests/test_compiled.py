import copy
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sellarec.backbone import compiled, engine, prefixes
from sellarec.backbone.attention import attention_weights
from sellarec.backbone.compiled import _compiled, _compiler_works, compiled_layers, worth_compiling
from sellarec.backbone.engine import log_odds, score_rows
from sellarec.backbone.grouped import FAMILIES
from sellarec.backbone.language_model import layers_of, open_language_model
from sellarec.backbone.lora import add_lora
from sellarec.backbone.prefixes import open_prefix_cache
from sellarec.backbone.token_rows import TokenRow, without_prefix
from sellarec.settings import LoraSettings
from sellarec.systems import hybrid, tallrec
from tests.test_grouped import SHAPE

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="torch compiles for a CPU with g++")

ROWS = [  # the first ids stand for soft tokens
    *(TokenRow((25, 26, 27, 28), (29, last)) for last in (23, 24)),
    TokenRow((25, 26), (27, 28, 29)),
    TokenRow((), (24, 25, 26, 27, 28, 29, 30)),
    TokenRow((31, 32, 33, 34, 35, 36), (37,)),
]


@pytest.fixture
def traced(monkeypatch):
    """The forms of a layer that torch has traced, each left as it was: not what C++ makes of them is tested."""
    forms = []

    def keep(graph, inputs):
        forms.append(graph)
        return graph.forward

    torch._dynamo.reset()
    traces = cache(lambda kind, device: torch.compile(kind.forward, dynamic=True, backend=keep))
    monkeypatch.setattr(compiled, "_compiled", traces)
    monkeypatch.setattr(compiled, "_compiler_works", lambda device: True)
    yield forms
    torch._dynamo.reset()


@pytest.fixture
def lm(llama):
    return open_language_model(str(llama), "float32")


def test_all_layers_share_what_is_compiled(lm, traced):
    """Three forms: prefixes, suffixes behind them, and rows without one; each would be one a layer otherwise."""
    assert len(layers_of(lm.model)) > 1
    with compiled_layers(lm):
        for again in range(2):
            score_rows(lm, ROWS, label="", token_budget=16)
            assert 2 <= len(traced) <= 4, again


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_compiled(lm, family, traced):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SHAPE | {"vocab_size": lm.model.config.vocab_size, "num_hidden_layers": 4})
    other = lm.with_model(AutoModelForCausalLM.from_config(config).to(lm.placement.device).eval())
    expected = score_rows(other, ROWS, label="")
    with compiled_layers(other):
        found = score_rows(other, ROWS, label="")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    kinds = len({*(getattr(config, "layer_types", None) or ["full_attention"])})
    assert 2 <= len(traced) <= 4 * kinds


def test_gradients_are_the_same_and_training_is_one_form(lm, traced):
    tuned = add_lora(lm, LoraSettings(dropout=0.0), 0)
    tuned.model.train()
    trained = {n: p for n, p in tuned.model.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        torch.nn.init.normal_(parameter, std=0.1)  # B begins at zero, and A would have no gradient

    def gradients(layers):
        tuned.model.zero_grad()
        with layers:
            answers = log_odds(tuned, [without_prefix(r) for r in ROWS])
        answers.sum().backward()
        return {n: p.grad.clone() for n, p in trained.items()}

    expected = gradients(nullcontext())
    assert sum(g.abs().sum() > 0 for g in expected.values()) == len(expected)
    found = gradients(compiled_layers(tuned))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-4)
    assert len(traced) == 1


def test_an_adapter_in_the_last_layer_alone_asks_no_gradient_of_those_before(lm, traced):
    last = len(layers_of(lm.model)) - 1
    tuned = add_lora(lm, LoraSettings(dropout=0.0, targets=f"layers.{last}.self_attn.q_proj"), 0)
    tuned.model.train()
    seen = []
    layers_of(tuned.model)[last].register_forward_pre_hook(lambda layer, args: seen.append(args[0].requires_grad))
    with compiled_layers(tuned):
        log_odds(tuned, [without_prefix(ROWS[0])]).sum().backward()
    assert seen == [False]


def test_soft_vectors_and_a_prefix_cache_reach_compiled_layers(lm, traced, tmp_path):
    token, place = next(iter(lm.soft_ids.items()))
    rows = [TokenRow(r.prefix, (*r.suffix, place, 23)) for r in ROWS if r.prefix]
    vectors = torch.randn(len(rows), lm.width, device=lm.placement.device)

    def found():
        kept = open_prefix_cache(lm, [r.prefix for r in rows], tmp_path / str(len(traced)), 1.0, label="")
        read = vectors.clone().requires_grad_()
        out = log_odds(lm, rows, {token: read}, kept)
        out.sum().backward()
        return out.detach(), read.grad

    expected = found()
    with compiled_layers(lm):
        got = found()
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert traced


def test_a_model_is_as_before_when_the_work_is_done_or_breaks_off(lm, traced):
    with pytest.raises(RuntimeError, match="in the middle"), compiled_layers(lm):
        assert all("forward" in vars(layer) for layer in layers_of(lm.model))
        with compiled_layers(lm):  # one within another changes nothing
            pass
        assert all("forward" in vars(layer) for layer in layers_of(lm.model))
        raise RuntimeError("in the middle")
    assert not any("forward" in vars(layer) for layer in layers_of(lm.model))


def looks_for_a_compiler_anew(monkeypatch):
    for function in (_compiled, _compiler_works):
        monkeypatch.setattr(compiled, function.__name__, cache(function.__wrapped__))


def test_compiling_can_be_switched_off(lm, monkeypatch, capsys):
    expected = score_rows(lm, ROWS, label="")
    looks_for_a_compiler_anew(monkeypatch)
    with torch._dynamo.config.patch(disable=True), compiled_layers(lm):
        assert score_rows(lm, ROWS, label="").tobytes() == expected.tobytes()
    assert "ompil" not in capsys.readouterr().out


def test_only_long_work_of_a_known_model_is_compiled(lm, monkeypatch):
    enough = compiled.WORTH[lm.placement.device.type]
    assert worth_compiling(lm, enough) and not worth_compiling(lm, enough - 1)
    other = copy.deepcopy(lm.model)
    other.config.model_type = "gpt2"
    assert not worth_compiling(lm.with_model(other), enough)
    again = copy.deepcopy(lm)
    assert not worth_compiling(add_lora(again, LoraSettings(checkpointing=True), 0), enough)
    with ThreadPoolExecutor() as threads:  # the app's sessions share a model
        assert not threads.submit(worth_compiling, lm, enough).result()
    attention_weights(copied := lm.with_model(copy.deepcopy(lm.model)), ROWS[0])
    assert not worth_compiling(copied, enough)  # transformers leaves hooks behind
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not worth_compiling(lm, enough)


def test_training_counts_the_rows_of_all_epochs(small_workspace, monkeypatch):
    asked = {}

    def spy(name):
        return lambda lm, rows: asked.setdefault(name, set()).add(rows) or nullcontext()

    for module in (tallrec, hybrid):
        monkeypatch.setattr(module, "layers_for", spy(module.__name__))
    work = small_workspace.variant({"stage1.epochs": 2, "stage3.epochs": 3})
    work.run("sella")
    stages = work.config.stage1, work.config.stage3
    assert list(asked.values()) == [{stage.rows * stage.epochs} for stage in stages]


def test_scoring_counts_its_rows_but_not_those_behind_a_cache(lm, monkeypatch):
    asked = []
    monkeypatch.setattr(engine, "layers_for", lambda lm, rows: asked.append(rows) or nullcontext())
    monkeypatch.setattr(engine, "_for_all", lambda *of, **more: None)
    score_rows(lm, ROWS, label="")
    engine.embed_rows(lm, ROWS[:2], label="")
    score_rows(lm, ROWS, label="", kept="a cache")
    assert asked == [len(ROWS), 2, 0]


def test_without_a_compiler_layers_stay_as_they_are_and_it_is_said_once(lm, monkeypatch, capsys):
    def no_compiler(function):
        raise RuntimeError("InvalidCxxCompiler: none of g++, clang++ is there\nmore of it")

    expected = score_rows(lm, ROWS, label="")
    monkeypatch.setattr(torch, "compile", no_compiler)
    looks_for_a_compiler_anew(monkeypatch)
    with compiled_layers(lm):
        assert not capsys.readouterr().out  # nobody looks for a compiler before a layer computes
        found = score_rows(lm, ROWS, label="")
        score_rows(lm, ROWS, label="")
    assert found.tobytes() == expected.tobytes()
    said = capsys.readouterr().out
    assert said.count("slower and no error: InvalidCxxCompiler: none of g++, clang++ is there\n") == 1
    assert "more of it" not in said


def test_kept_prefixes_of_compiled_layers_are_others(lm, monkeypatch, tmp_path):
    folder, wanted = tmp_path / "kept", [r.prefix for r in ROWS]
    open_prefix_cache(lm, wanted, folder, 1.0, label="")
    monkeypatch.setitem(compiled.WORTH, lm.placement.device.type, 1)
    monkeypatch.setattr(prefixes, "layers_for", lambda lm, rows: nullcontext())
    for works, files in ((False, 1), (True, 2), (True, 2)):
        monkeypatch.setattr(compiled, "_compiler_works", lambda device, works=works: works)
        open_prefix_cache(lm, wanted, folder, 1.0, label="")
        assert len(list(folder.glob("*.bin"))) == files


@pytest.mark.parametrize("works", [True, False])
def test_a_run_says_that_its_layers_were_compiled(small_workspace, traced, monkeypatch, works):
    """Also one that finds its prefixes computed by another."""
    if not works:
        looks_for_a_compiler_anew(monkeypatch)
        monkeypatch.setattr(compiled, "_compiler_works", lambda device: False)
    monkeypatch.setitem(compiled.WORTH, "cpu", 1)
    work = small_workspace.variant({"stage1.learning_rate": 2e-3 if works else 3e-3})
    layers = ["compiled layers"] if works else []
    assert work.run("tallrec").config["computed_with"] == [*layers, "prefix cache"]
    again = work.variant({"stage3.learning_rate": 2e-3})
    monkeypatch.setattr(prefixes, "layers_for", lambda lm, rows: nullcontext())
    assert again.run("mf").config["computed_with"] == []
    assert again.run("sella").config["computed_with"] == [*layers, "prefix cache"]


@needs_compiler
def test_scoring_that_was_killed_ends_with_the_same_bytes(lm, monkeypatch, tmp_path):
    """In the working number format, and with layers compiled anew, for whichever shapes are left."""
    half = lm.with_model(copy.deepcopy(lm.model).to(torch.bfloat16))
    random = np.random.default_rng(0)
    rows = [TokenRow((), tuple(random.integers(20, 300, n).tolist())) for n in random.permutation(range(2, 42))]
    monkeypatch.setitem(compiled.WORTH, lm.placement.device.type, len(rows))
    plain = score_rows(half, rows, label="", token_budget=10**6)

    def scores(resume):
        torch._dynamo.reset()
        return score_rows(half, rows, label="", token_budget=64, resume=resume)

    whole = scores(None)
    assert 0 < np.abs(whole - plain).max() < 0.1
    resume = tmp_path / "scores.npy"
    done = np.concatenate(engine.plan_batches(rows, 64)[:6])
    partial = np.full(len(rows), np.nan, dtype=np.float32)
    partial[done] = whole[done]
    np.save(resume, partial)
    assert scores(resume).tobytes() == whole.tobytes()
