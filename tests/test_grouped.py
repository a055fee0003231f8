import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sellarec.backbone import grouped
from sellarec.backbone.attention import using_attention
from sellarec.backbone.engine import log_odds
from sellarec.backbone.language_model import open_language_model
from sellarec.backbone.loading import attention_on
from sellarec.backbone.token_rows import TokenRow

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def of_family(family, attention, **more):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SHAPE | more)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


@pytest.mark.parametrize("head_dim", [8, 12, 16])  # only with 16 is the scale a power of two
@pytest.mark.parametrize("family", grouped.FAMILIES)
def test_every_family_says_the_same_as_with_its_own_attention(family, head_dim):
    eager = of_family(family, "eager", head_dim=head_dim)
    ours = of_family(family, grouped.register(), head_dim=head_dim)
    ours.load_state_dict(eager.state_dict())
    embeds = torch.randn(3, 9, SHAPE["hidden_size"], generator=torch.Generator().manual_seed(1))
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, 6:] = 0
    found = []
    for model in (eager, ours):
        read = embeds.clone().requires_grad_()
        out = model.base_model(inputs_embeds=read, attention_mask=mask).last_hidden_state
        out[mask.bool()].square().sum().backward()
        found.append((out[mask.bool()].detach(), read.grad))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)
    assert ours.config._attn_implementation == grouped.NAME


def test_only_backbones_that_share_keys_and_values_as_usual_get_it():
    assert attention_on("cpu", of_family("llama", "eager").config) == grouped.NAME
    assert attention_on("cuda", of_family("llama", "eager").config) == "sdpa"
    assert attention_on("cpu", of_family("llama", "eager", num_key_value_heads=6).config) == "eager"
    assert attention_on("cpu", of_family("gemma3_text", "eager", attn_logit_softcapping=30.0).config) == "eager"
    for other in ("gpt2", "gemma2"):  # Gemma 2 caps its scores
        assert attention_on("cpu", AutoConfig.for_model(other)) == "eager"


def test_the_engine_uses_it_and_goes_back_to_it_after_another(llama):
    lm = open_language_model(str(llama), "float32")
    usual = attention_on(lm.placement.device.type, lm.model.config)
    assert lm.model.config._attn_implementation == usual
    with using_attention(lm, "eager"):
        assert lm.model.config._attn_implementation == "eager"
    assert lm.model.config._attn_implementation == usual


def test_rows_behind_prefixes_of_other_lengths_score_the_same(llama):
    lm = open_language_model(str(llama), "float32")
    eager = lm.with_model(copy.deepcopy(lm.model))
    eager.model.set_attn_implementation("eager")
    rows = [TokenRow(tuple(range(20, 20 + n)), tuple(range(60, 63 + n % 3))) for n in (1, 4, 9)]
    torch.testing.assert_close(log_odds(lm, rows), log_odds(eager, rows), atol=2e-6, rtol=0)
