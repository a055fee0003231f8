"""Weights in 4 bits, as far as a CPU can carry them: loading, tuning, saving and scoring."""

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from sellarec.backbone.engine import log_odds, score_rows
from sellarec.backbone.language_model import open_language_model, wrap_language_model
from sellarec.backbone.loading import Placement, choose_placement, load_backbone
from sellarec.backbone.lora import add_lora, merge_lora, save_lora
from sellarec.backbone.token_rows import TokenRow
from sellarec.errors import SellarecError
from sellarec.machine import describe_machine
from sellarec.settings import LoraSettings


def test_4_bit_weights_keep_the_adapter_beside_them_and_answer_nearly_the_same(tokenizer, tmp_path):
    pytest.importorskip("bitsandbytes", reason="4-bit weights need bitsandbytes: pip install -e '.[nf4]'")
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)  # wider than elsewhere: a block of 4-bit weights is 64 long
    backbone = tmp_path / "backbone"
    Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, **shape)).save_pretrained(backbone)
    tokenizer.save_pretrained(backbone)
    placement = Placement(torch.device("cpu"), torch.float32, "4 bits, here only to be scored and tuned", nf4=True)

    def load():
        return wrap_language_model(*load_backbone(str(backbone), placement), placement)

    lm = load()
    rows = [TokenRow((5, 6, 7), (8, 9, n)) for n in range(10, 20)]
    packed = [m for m in lm.model.modules() if type(m).__name__ == "Linear4bit"]
    assert len(packed) == 2 * 7 and all(m.weight.dtype == torch.uint8 for m in packed)
    adapted = add_lora(lm, LoraSettings(dropout=0.0), seed=0)
    adapted.model.train()  # on a CPU, bitsandbytes repacks what is in eval mode and then has no gradients
    trained = [p for p in adapted.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.05)
    for _ in range(3):
        torch.nn.functional.softplus(-log_odds(adapted, rows)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.model.eval()
    learnt = score_rows(adapted, rows)
    save_lora(adapted, tmp_path / "adapter")
    assert max(f.stat().st_size for f in (tmp_path / "adapter").iterdir()) < 200_000, "the adapter only"
    again = merge_lora(load(), tmp_path / "adapter")
    np.testing.assert_allclose(score_rows(again, rows), learnt, atol=1e-6)
    whole = score_rows(open_language_model(str(backbone), "float32"), rows)
    assert np.corrcoef(whole, score_rows(load(), rows))[0, 1] > 0.8


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_4_bit_weights_are_refused_on_a_cpu():
    with pytest.raises(SellarecError, match="needs a GPU"):
        choose_placement("nf4")
    with pytest.raises(SellarecError, match="needs a GPU"):
        describe_machine("nf4", device="cpu", memory=8, tflops=1)
