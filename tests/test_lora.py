"""Adapters: what they add, how they are merged, which are refused."""

import pytest
import torch

from sellarec.backbone.engine import log_odds
from sellarec.backbone.language_model import open_language_model
from sellarec.backbone.lora import add_lora, merge_lora, save_lora
from sellarec.backbone.token_rows import TokenRow, without_prefix
from sellarec.errors import SellarecError
from sellarec.prompts import Prompt
from sellarec.settings import LoraSettings


def test_merged_adapter_equals_base_plus_its_product(any_backbone, tmp_path):
    fresh = open_language_model(str(any_backbone), "float32")
    before = {n: p.clone() for n, p in fresh.model.named_parameters()}
    lm = add_lora(fresh, LoraSettings(rank=2, alpha=6, dropout=0.0), seed=0)
    with torch.no_grad():
        for name, p in lm.model.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))
    row = [TokenRow((), (5, 6, 7))]
    with torch.no_grad():
        tuned = log_odds(lm, row)
    save_lora(lm, tmp_path)
    weights = {n: p.clone() for n, p in lm.model.named_parameters() if "lora" in n}
    merged = merge_lora(open_language_model(str(any_backbone), "float32"), tmp_path)
    adapted = next(n for n in weights if "lora_A" in n)
    product = 3 * weights[adapted.replace("lora_A", "lora_B")] @ weights[adapted]
    name = adapted.removeprefix("base_model.model.").replace("lora_A.default.", "")
    product = product if product.shape == before[name].shape else product.T  # GPT-2 keeps its weights transposed
    torch.testing.assert_close(merged.model.state_dict()[name], before[name] + product)
    with torch.no_grad():
        torch.testing.assert_close(log_odds(merged, row), tuned, atol=1e-5, rtol=1e-4)
    assert not any(p.requires_grad for p in merged.model.parameters())
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 20_000


def test_an_adapter_is_merged_in_float32_and_rounded_once(any_backbone, tmp_path):
    start = open_language_model(str(any_backbone), "bfloat16")
    halves = start.placement.cast(start.model)
    halves.save_pretrained(tmp_path / "halves")
    start.tokenizer.save_pretrained(tmp_path / "halves")
    lm = add_lora(start, LoraSettings(rank=2), seed=0)
    with torch.no_grad():
        for name, p in lm.model.named_parameters():
            if "lora_B" in name:
                p.copy_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))
    save_lora(lm, tmp_path / "adapter")
    exact = merge_lora(open_language_model(str(tmp_path / "halves"), "float32"), tmp_path / "adapter")
    rounded = merge_lora(open_language_model(str(tmp_path / "halves"), "bfloat16"), tmp_path / "adapter")
    weights = dict(rounded.model.named_parameters())
    for name, weight in exact.model.named_parameters():
        assert weight.dtype == torch.float32 and torch.equal(weights[name], weight.bfloat16()), name


def test_an_adapter_that_changes_nothing_is_refused(any_backbone, tmp_path):
    lm = add_lora(open_language_model(str(any_backbone), "float32"), LoraSettings(), seed=0)
    save_lora(lm, tmp_path)
    with pytest.raises(SellarecError, match="would change nothing"):
        merge_lora(open_language_model(str(any_backbone), "float32"), tmp_path)


def test_dropout_is_drawn_in_float32(any_backbone):
    lm = add_lora(open_language_model(str(any_backbone), "bfloat16"), LoraSettings(dropout=0.5), seed=0)
    seen = set()
    for name, module in lm.model.named_modules():
        if name.endswith("lora_dropout.default"):
            module.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    log_odds(lm, [TokenRow((), (5, 6, 7))])
    assert seen == {torch.float32}


def test_adapters_keep_float32_and_are_multiplied_in_the_working_dtype(any_backbone):
    prompts = [Prompt("The user liked ruby song.", f' Will the user like "{t}"? Answer:') for t in ("storm", "lake")]

    def outcome(dtype):
        lm = add_lora(open_language_model(str(any_backbone), dtype), LoraSettings(dropout=0.0), seed=0)
        adapters = {n: p for n, p in lm.model.named_parameters() if p.requires_grad}
        dtypes = []
        layer = next(m for n, m in lm.model.named_modules() if n.endswith("lora_A.default"))
        layer.register_forward_hook(lambda module, inputs, output: dtypes.append({inputs[0].dtype, output.dtype}))
        odds = log_odds(lm, [without_prefix(lm.tokenize(p)) for p in prompts])
        odds.sum().backward()
        assert odds.dtype == torch.float32
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in adapters.values())
        return odds.detach(), dtypes[0]

    exact, full = outcome("float32")
    assert full == {torch.float32}
    for dtype, atol in ((torch.bfloat16, 0.02), (torch.float16, 0.0025)):
        close, half = outcome(str(dtype).removeprefix("torch."))
        assert half == {dtype}
        torch.testing.assert_close(close, exact, atol=atol, rtol=0.05)
