import copy
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sellarec.backbone import compiled
from sellarec.backbone.compiled import compiled_layers, layers_for, worth_compiling
from sellarec.backbone.engine import log_odds, score_rows, without_prefix
from sellarec.backbone.grouped import FAMILIES
from sellarec.backbone.language_model import TokenRow, layers_of, open_language_model
from sellarec.backbone.lora import add_lora
from sellarec.backbone.prefixes import open_prefix_cache
from sellarec.settings import LoraSettings
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
    monkeypatch.setattr(compiled, "_compiled", lambda kind: torch.compile(kind.forward, dynamic=True, backend=keep))
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


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_the_same_and_training_is_one_form(lm, traced, checkpointing):
    settings = LoraSettings(dropout=0.0, checkpointing=checkpointing)
    tuned = add_lora(lm, settings, 0)
    tuned.model.train()
    trained = {n: p for n, p in tuned.model.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        torch.nn.init.normal_(parameter, std=0.1)  # B begins at zero, and A would have no gradient

    def gradients():
        tuned.model.zero_grad()
        log_odds(tuned, [without_prefix(r) for r in ROWS]).sum().backward()
        return {n: p.grad.clone() for n, p in trained.items()}

    expected = gradients()
    assert sum(g.abs().sum() > 0 for g in expected.values()) == len(expected)
    with compiled_layers(tuned):
        found = gradients()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-4)
    assert len(traced) == 1


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
        raise RuntimeError("in the middle")
    assert not any("forward" in vars(layer) for layer in layers_of(lm.model))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has a number of its own")
def test_only_long_work_of_a_known_model_is_compiled(lm, monkeypatch):
    asked = []
    monkeypatch.setattr(compiled, "_compiler_works", lambda device: not asked.append(device))
    enough = compiled.WORTH["cpu"]
    assert worth_compiling(lm, enough) and not worth_compiling(lm, enough - 1)
    assert asked == ["cpu"]  # nobody looks for a compiler before one is needed
    with layers_for(lm, enough):
        assert not worth_compiling(lm, enough)  # they are compiled already
    other = copy.deepcopy(lm.model)
    other.config.model_type = "gpt2"
    assert not worth_compiling(lm.with_model(other), enough)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not worth_compiling(lm, enough)


def test_without_a_compiler_layers_stay_as_they_are_and_it_is_said(lm, monkeypatch, capsys):
    def no_compiler(function):
        raise RuntimeError("InvalidCxxCompiler: none of g++, clang++ is there\nmore of it")

    monkeypatch.setattr(torch, "compile", no_compiler)
    compiled._compiler_works.cache_clear()
    monkeypatch.setitem(compiled.WORTH, lm.placement.device.type, 1)
    with layers_for(lm, 5):
        assert not any("forward" in vars(layer) for layer in layers_of(lm.model))
    said = capsys.readouterr().out
    assert "slower and no error: InvalidCxxCompiler: none of g++, clang++ is there" in said and "more of it" not in said
    compiled._compiler_works.cache_clear()


@needs_compiler
def test_long_scoring_compiles_and_gives_the_same_scores_and_bytes(lm, monkeypatch):
    expected = score_rows(lm, ROWS, label="")
    monkeypatch.setitem(compiled.WORTH, lm.placement.device.type, len(ROWS))
    once, again = (score_rows(lm, ROWS, label="") for _ in range(2))
    np.testing.assert_allclose(once, expected, atol=1e-5)
    assert once.tobytes() == again.tobytes()
