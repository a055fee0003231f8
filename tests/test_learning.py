"""Whether the stages learn what is there to be learnt: a taste that is planted in who likes what, and in no text."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sellarec.config import make_config
from sellarec.profiles import AS_IN_THE_PAPER
from sellarec.systems.base import Workspace
from tests.conftest import SMALL

LONG_ENOUGH = {
    "stage2.epochs": 100,
    "stage2.learning_rate": 1e-2,
    "stage3.epochs": 18,  # fewer rows than are worth compiling for
    "stage3.rows": None,
    "stage3.batch": 16,
    **{f"stage3.{part}learning_rate": 5e-3 for part in ("", "embedding_", "projection_")},
    "evaluation.test_rows": None,
    "evaluation.valid_rows": None,
}


@pytest.fixture(scope="module")
def work(planted_table, tokenizer, tmp_path_factory):
    """The paper's configuration over a random model whose weights are large enough to pass on what a token says."""
    folder = tmp_path_factory.mktemp("learning")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, initializer_range=0.2, **shape)
    LlamaForCausalLM(config).save_pretrained(folder / "lm")
    tokenizer.save_pretrained(folder / "lm")
    changes = {**SMALL, **AS_IN_THE_PAPER, **LONG_ENOUGH}
    return Workspace(make_config("smoke", str(planted_table), backbone=str(folder / "lm"), **changes), folder)


def warm_auc(work, name):
    return work.run(name).metrics["test"]["warm"]["auc"]


def test_soft_tokens_tell_a_frozen_model_the_taste_that_its_text_does_not(work):
    assert warm_auc(work, "sella_collab") > 0.8, "stage 2 has found it"
    assert warm_auc(work, "tallrec") < 0.65, "titles say nothing of it"
    assert warm_auc(work, "sella") > 0.8, "stage 3 passes it on"
    loss = work.run("sella").log["loss"].dropna()
    assert loss.tail(10).mean() < 0.4 < 0.6 < loss.head(10).mean()


def test_without_user_and_item_token_there_is_nothing_to_pass_on(work):
    assert warm_auc(work, "no_user_item_tokens") < 0.65
