import copy
import dataclasses
import time

import numpy as np
import pytest
import torch
from filelock import FileLock

from sellarec.backbone import engine, language_model, prefixes
from sellarec.backbone.engine import embed_rows, final_hidden, log_odds, score_rows
from sellarec.backbone.language_model import (
    _window,
    answer_token_ids,
    open_language_model,
    reserved_token_ids,
    wrap_language_model,
)
from sellarec.backbone.loading import choose_placement
from sellarec.backbone.lora import add_lora
from sellarec.backbone.prefixes import open_prefix_cache
from sellarec.backbone.token_rows import (
    TokenRow,
    cut_where_they_part,
    plan_batches,
    without_prefix,
)
from sellarec.errors import SellarecError
from sellarec.prompts import ITEM, SOFT_TOKENS, USER, WARM, Prompt
from sellarec.settings import LoraSettings


@pytest.fixture(scope="module")
def lm(any_backbone):
    return open_language_model(str(any_backbone), "float32")


HISTORIES = ["The user likes A.", "The user likes B, C and D.", "", "The user likes a much longer list of films."]


@pytest.fixture(scope="module")
def rows(lm):
    suffix = " Film {}? Features " + USER + " and " + ITEM + ", " + WARM + ". Answer:"
    return [lm.tokenize(Prompt(HISTORIES[n % 4], suffix.format("x" * (n % 5 + 1))), SOFT_TOKENS) for n in range(17)]


@pytest.fixture(scope="module")
def cut(lm, rows):
    """The rows, cut where prompts without soft tokens take another way."""
    plain = [lm.tokenize(Prompt(HISTORIES[n % 4], f" Film {'x' * (n % 5 + 1)}? Answer:")) for n in range(len(rows))]
    return [cut_where_they_part(row, other) for row, other in zip(rows, plain, strict=True)]


@pytest.fixture(scope="module")
def soft(lm):
    table = torch.randn(17, 3, lm.width, generator=torch.Generator().manual_seed(1)).to(lm.placement.device)
    return lambda at: {t: table[at, n] for n, t in enumerate(SOFT_TOKENS)}


def plain_log_odds(lm, row, vectors):
    """One row, no cache, full logits: what the engine must equal."""
    ids = torch.tensor([row.prefix + row.suffix], device=lm.placement.device)
    embeds = lm.embedding(ids).clone()
    for token, vector in vectors.items():
        embeds[0, (ids[0] == lm.soft_ids[token]).nonzero().item()] = vector
    logits = lm.model(inputs_embeds=embeds).logits[0, -1]
    return (logits[lm.answer_ids[0]] - logits[lm.answer_ids[1]]).item()


def test_scores_equal_the_plain_forward_of_one_row(lm, rows, soft):
    scores = score_rows(lm, rows, soft, token_budget=200)
    with torch.no_grad():
        for n, row in enumerate(rows):
            vectors = {t: v[0] for t, v in soft(np.array([n])).items()}
            assert scores[n] == pytest.approx(plain_log_odds(lm, row, vectors), abs=2e-6)


def test_a_catalogue_costs_what_its_questions_do_not_share(lm, monkeypatch):
    ask = " Will the user like the film {}? Answer:"
    rows = [lm.tokenize(Prompt(HISTORIES[1], ask.format(name))) for name in ("A", "B", "C C", "D")]
    with torch.no_grad():
        alone = [plain_log_odds(lm, row, {}) for row in rows]
    read, pad = [], engine._pad
    monkeypatch.setattr(engine, "_pad", lambda sequences: read.append(sequences) or pad(sequences))
    scores = score_rows(lm, rows, token_budget=1)
    np.testing.assert_allclose(scores, alone, atol=2e-6)
    (shared,), *batches = read
    ids = [r.prefix + r.suffix for r in rows]
    assert sorted(shared + s for batch in batches for s in batch) == sorted(ids)
    assert len(batches) == len(rows), "each is a batch of its own"
    assert len({i[: len(shared) + 1] for i in ids}) > 1, "all that they share is read once"
    monkeypatch.setattr(engine, "_common_prefix", lambda lm, rows: None)
    assert score_rows(lm, rows, token_budget=1).tobytes() == scores.tobytes(), "as if each batch had read it"


def test_a_narrow_model_is_given_more_tokens_at_once_on_a_gpu():
    assert engine.tokens_at_once("cuda", 576) == 65_536, "SmolLM2-135M"
    assert engine.tokens_at_once("cuda", 64) == 131_072, "more has not been measured"
    assert engine.tokens_at_once("cuda", 3584) == 32_768, "Qwen2-7B"
    assert engine.tokens_at_once("cpu", 576) == engine.tokens_at_once("cpu", 3584) == 1536


def test_prefix_cache_budget_and_cut_change_nothing(lm, rows, cut, soft):
    reference = score_rows(lm, rows, soft)
    for budget in (1, 64, 10_000):
        np.testing.assert_allclose(score_rows(lm, rows, soft, token_budget=budget), reference, atol=2e-6)
    for changed in (cut, [without_prefix(r) for r in rows]):
        np.testing.assert_allclose(score_rows(lm, changed, soft), reference, atol=2e-6)


def test_kept_prefixes_change_nothing_and_are_computed_once(lm, cut, soft, tmp_path, monkeypatch):
    kept = open_prefix_cache(lm, [r.prefix for r in cut], tmp_path, 1.0, token_budget=64)
    np.testing.assert_allclose(score_rows(lm, cut, soft, kept=kept), score_rows(lm, cut, soft), atol=2e-6)
    assert np.abs(kept.data).max() > 0
    monkeypatch.setattr(prefixes, "_compute", lambda *a: pytest.fail("computed again"))
    again = open_prefix_cache(lm, [r.prefix for r in cut], tmp_path, 1.0, token_budget=64)
    np.testing.assert_array_equal(score_rows(lm, cut, soft, kept=again), score_rows(lm, cut, soft, kept=kept))


def test_kept_prefixes_of_a_killed_computation_have_the_same_bytes(lm, cut, tmp_path, monkeypatch):
    wanted = [r.prefix for r in cut]
    whole = open_prefix_cache(lm, wanted, tmp_path / "whole", 1.0, token_budget=64)
    monkeypatch.setattr(prefixes, "SAVE_SECONDS", 0.0)
    asked, states = [], engine.prefix_states

    def dying(lm, group):
        asked.append(len(group))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return states(lm, group)

    monkeypatch.setattr(prefixes, "prefix_states", dying)
    with pytest.raises(KeyboardInterrupt):
        open_prefix_cache(lm, wanted, tmp_path / "killed", 1.0, token_budget=64)
    before = len(asked)
    killed = open_prefix_cache(lm, wanted, tmp_path / "killed", 1.0, token_budget=64)
    np.testing.assert_array_equal(killed.data, whole.data)
    assert killed.starts == whole.starts
    assert len(asked) - before < sum(1 for _ in prefixes._groups(list(whole.starts), 64)), "it began from nothing"


def test_prefixes_in_bfloat16_are_kept_bit_by_bit(lm, cut, tmp_path):
    half = dataclasses.replace(lm, model=copy.deepcopy(lm.model).to(torch.bfloat16))
    prefix = max((r.prefix for r in cut), key=len)
    kept = open_prefix_cache(half, [prefix], tmp_path, 1.0)
    stored, lengths = kept.batch([prefix])
    assert stored.dtype == torch.bfloat16 and lengths.tolist() == [len(prefix)]
    assert torch.equal(stored, engine.prefix_states(half, [prefix]).cpu())


def test_prefixes_of_other_weights_are_others(lm, cut, tmp_path):
    wanted = [r.prefix for r in cut]
    changed = dataclasses.replace(lm, model=copy.deepcopy(lm.model))
    with torch.no_grad():
        next(changed.model.parameters())[0] += 1
    a, b = (open_prefix_cache(model, wanted, tmp_path, 1.0) for model in (lm, changed))
    assert len(list(tmp_path.glob("*.bin"))) == 2 and a.starts == b.starts


def test_prefixes_of_the_same_weights_in_another_model_are_others_and_of_another_file_the_same(lm, cut):
    wanted = [r.prefix for r in cut]
    other, moved = (dataclasses.replace(lm, model=copy.deepcopy(lm.model)) for _ in range(2))
    other.model.config.rms_norm_eps = 0.1
    moved.model.config._name_or_path = "elsewhere"
    names = [prefixes._digest(model, wanted, 2048) for model in (lm, other, moved)]
    assert names[0] != names[1] and names[0] == names[2]


def test_prefixes_that_were_used_longest_ago_make_room(lm, cut, tmp_path, capsys):
    lists = [[r.prefix for r in cut[n : n + 3]] for n in (0, 5, 10)]
    names = [prefixes._digest(lm, list(dict.fromkeys(p)), prefixes.CPU_TOKENS) for p in lists]
    sizes = [open_prefix_cache(lm, p, tmp_path / "size", 1.0).data.nbytes for p in lists]
    room = (sizes[0] + max(sizes[1:])) / prefixes.GIB
    for n in (0, 1):
        open_prefix_cache(lm, lists[n], tmp_path, room)
        time.sleep(0.02)
    open_prefix_cache(lm, lists[0], tmp_path, room)  # used again
    open_prefix_cache(lm, lists[2], tmp_path, room)
    assert {f.stem for f in tmp_path.glob("*.bin")} == {names[0], names[2]}
    assert open_prefix_cache(lm, lists[0] * 2 + lists[1], tmp_path, sizes[0] / prefixes.GIB) is None
    assert "--prefix-gib" in capsys.readouterr().out
    assert len(list(tmp_path.glob("*.bin"))) == 2  # for what has no room anyway nothing is removed


def test_what_this_process_reads_or_another_writes_does_not_make_room(lm, cut, tmp_path):
    first, second = [cut[0].prefix], [cut[1].prefix]
    read = open_prefix_cache(lm, first, tmp_path, 1.0)
    size = read.data.nbytes
    room = 1.2 * max(size, len(second[0]) * size / len(first[0])) / prefixes.GIB
    assert open_prefix_cache(lm, second, tmp_path, room) is None, (
        "it would never be read again before it is computed again"
    )
    del read
    kept = next(tmp_path.glob("*.bin"))
    with FileLock(kept.with_suffix(".lock")):
        assert open_prefix_cache(lm, second, tmp_path, room) is None
    assert open_prefix_cache(lm, second, tmp_path, room) is not None and not kept.exists()


def test_a_disk_that_fills_up_leaves_nothing(lm, cut, tmp_path, monkeypatch):
    def full(*where):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prefixes.os, "posix_fallocate", full, raising=False)
    assert open_prefix_cache(lm, [cut[0].prefix], tmp_path, 1.0) is None
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob("*.bin"))


def test_killed_scoring_goes_on_with_the_same_bytes(lm, rows, soft, tmp_path, monkeypatch):
    whole = score_rows(lm, rows, soft, token_budget=100)
    monkeypatch.setattr(engine, "SAVE_SECONDS", 0.0)
    asked = []

    def dying(at):
        asked.append(at)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return soft(at)

    with pytest.raises(KeyboardInterrupt):
        score_rows(lm, rows, dying, token_budget=100, resume=tmp_path / "partial.npy")
    resumed = []
    again = score_rows(
        lm, rows, lambda at: (resumed.append(at), soft(at))[1], token_budget=100, resume=tmp_path / "partial.npy"
    )
    np.testing.assert_array_equal(again, whole)
    assert len(resumed) == len(plan_batches(rows, 100)) - 3
    assert not list(tmp_path.iterdir())


def test_permuting_rows_permutes_scores(lm, rows, soft):
    order = np.random.default_rng(0).permutation(len(rows))
    permuted = score_rows(lm, [rows[i] for i in order], lambda at: soft(order[at]))
    np.testing.assert_allclose(permuted, score_rows(lm, rows, soft)[order], atol=2e-6)


def test_gradients_of_soft_tokens_are_the_same_with_and_without_a_cached_prefix(lm, rows, cut, soft, tmp_path):
    def gradient(rows, kept=None):
        vectors = {t: v.clone().requires_grad_() for t, v in soft(np.arange(4)).items()}
        log_odds(lm, rows[:4], vectors, kept).sum().backward()
        return torch.stack([v.grad for v in vectors.values()])

    full = gradient([without_prefix(r) for r in rows])
    assert full.abs().min(dim=-1).values.max() > 0
    torch.testing.assert_close(gradient(cut), full, atol=1e-6, rtol=1e-4)
    kept = open_prefix_cache(lm, [r.prefix for r in cut], tmp_path, 1.0)
    torch.testing.assert_close(gradient(cut, kept), full, atol=1e-6, rtol=1e-4)


def test_raw_yes_is_the_yes_logit(lm, rows, soft):
    raw = score_rows(lm, rows[:1], soft, raw_yes=True)
    with torch.no_grad():
        hidden = final_hidden(lm, rows[:1], soft(np.array([0])))
    assert raw[0] == pytest.approx((hidden @ lm.answer_head()[0]).item(), abs=1e-6)


def test_distillation_is_the_post_norm_state_of_the_last_token(lm):
    rows = [lm.tokenize(Prompt("", f"Movie: {'abc' * n}")) for n in (1, 4, 2)]
    found = embed_rows(lm, rows, label="test")
    with torch.no_grad():
        for row, vector in zip(rows, found, strict=True):
            ids = torch.tensor([row.suffix], device=lm.placement.device)
            states = lm.model(ids, output_hidden_states=True).hidden_states[-1][0, -1]
            np.testing.assert_allclose(vector, states.cpu().numpy(), atol=2e-6)


def test_answers_are_the_exact_continuations(lm, tokenizer):
    yes, no = answer_token_ids(tokenizer)
    assert tokenizer.decode([yes]) == " Yes" and tokenizer.decode([no]) == " No"
    assert lm.answer_ids == (yes, no)


class Confused:
    """A tokenizer for which both answers begin alike."""

    def __call__(self, text, add_special_tokens=False):
        return {"input_ids": [1] if text == "Answer:" else [1, 5]}


def test_a_tokenizer_that_cannot_tell_yes_from_no_is_refused():
    with pytest.raises(SellarecError, match="same first token"):
        answer_token_ids(Confused())


def test_soft_tokens_sit_on_reserved_ids_that_no_text_uses(lm):
    assert len(set(lm.soft_ids.values())) == 3
    assert {lm.tokenizer.decode([i]) for i in lm.soft_ids.values()} == {"<spare_1>", "<spare_2>", "<spare_3>"}
    size = max(lm.embedding.num_embeddings, len(lm.tokenizer))
    assert reserved_token_ids(lm.model, lm.tokenizer, 5)[3:] == [size, size + 1]


def test_a_vocabulary_without_spare_ids_scores_the_same(lm, rows, soft):
    beyond = {token: lm.embedding.num_embeddings + n for n, token in enumerate(lm.soft_ids)}
    crowded, moved = dataclasses.replace(lm, soft_ids=beyond), {lm.soft_ids[t]: i for t, i in beyond.items()}
    there = [TokenRow(r.prefix, tuple(moved.get(i, i) for i in r.suffix)) for r in rows]
    np.testing.assert_allclose(score_rows(crowded, there, soft), score_rows(lm, rows, soft), atol=1e-6)


def test_the_norm_of_a_token_is_that_of_what_the_first_layer_reads(lm):
    looked_up = lm.embedding(torch.arange(50, 60, device=lm.placement.device)).norm(dim=1)
    assert looked_up.min() < lm.token_norm() < looked_up.max()


def test_rows_as_long_as_the_window_do_not_push_each_other_out_of_it(lm, soft):
    """Of rows that were cut to the same length, the longest prefix and the longest suffix together are longer."""
    random = np.random.default_rng(0)
    ids = [tuple(int(i) for i in random.integers(40, 90, lm.max_tokens)) for _ in range(4)]
    rows = [TokenRow(row[:-cut], row[-cut:]) for row, cut in zip(ids, (20, 60, 30, 45), strict=True)]
    alone = [score_rows(lm, [row])[0] for row in rows]
    np.testing.assert_allclose(score_rows(lm, rows, token_budget=10_000), alone, atol=5e-6)


@pytest.mark.parametrize("model", [{"_is_stateful": True}, {"layer_types": ["conv", "full_attention"]}])
def test_layers_that_would_read_the_padding_are_refused(lm, model):
    changed = copy.deepcopy(lm.model)
    if "layer_types" in model:
        changed.config.layer_types = model["layer_types"]
    else:
        changed._is_stateful = True
    with pytest.raises(SellarecError, match="would read the padding"):
        wrap_language_model(changed, lm.tokenizer, lm.placement)


def test_prompts_stay_within_known_positions_and_the_window_of_sliding_attention(lm):
    slides = lm.model.config.model_type.startswith("gemma3")
    assert lm.max_tokens == (512 if slides else 1024)
    shorter = copy.copy(lm.model.config)
    shorter.max_position_embeddings = 300
    assert _window(shorter) == 300


def test_long_prompts_lose_their_oldest_text_and_keep_the_soft_tokens(lm, rows):
    short = dataclasses.replace(lm, max_tokens=len(rows[3].suffix) + 5)
    suffix = " Features " + USER + ITEM + WARM + "."
    row = short.tokenize(Prompt("history " * 50, suffix), SOFT_TOKENS)
    assert len(row) == short.max_tokens
    assert [row.suffix.count(i) for i in lm.soft_ids.values()] == [1, 1, 1]
    with pytest.raises(SellarecError, match="exactly once"):
        lm.tokenize(Prompt("", suffix + USER), SOFT_TOKENS)
    with pytest.raises(SellarecError, match="max_tokens is 3"):
        dataclasses.replace(lm, max_tokens=3).tokenize(Prompt("", suffix), SOFT_TOKENS)


@pytest.mark.parametrize("bos", [False, True])
def test_prompts_are_tokenized_together_as_their_parts_are_alone(lm, monkeypatch, bos):
    monkeypatch.setattr(language_model, "TOGETHER", 2)
    lm = dataclasses.replace(lm, max_tokens=30)
    vars(lm)["_adds_bos"] = bos
    alone = lambda text: tuple(lm.tokenizer(text, add_special_tokens=False)["input_ids"])  # noqa: E731
    soft, start = lm.soft_ids, (lm.tokenizer.bos_token_id,) * bos
    starts = ["", "Liked: Heat.", "Liked: Heat.", "Liked: " + "Heat, " * 50, USER]
    rows = lm.tokenize_all((Prompt(s, f" Is it {ITEM}{USER} and {WARM}?") for s in starts), SOFT_TOKENS)
    suffix = (*alone(" Is it "), soft[ITEM], soft[USER], *alone(" and "), soft[WARM], *alone("?"))
    kept = lm.max_tokens - len(suffix) - bos
    assert rows == [TokenRow(start + (alone(s)[-kept:] if s else ()), suffix) for s in starts]
    assert len(rows[3]) == lm.max_tokens and lm.tokenize_all([]) == []


def test_a_soft_token_typed_into_a_title_is_refused_not_scattered(lm):
    marker = lm.tokenizer.decode([lm.soft_ids[USER]])
    with pytest.raises(SellarecError, match="exactly once"):
        lm.tokenize(Prompt(f"likes {marker}", f" {USER} {ITEM} {WARM}"), SOFT_TOKENS)


def test_numbers_that_do_not_fit_into_float16_are_told_not_scored(llama):
    lm = open_language_model(str(llama), "float16")
    lm = lm.with_model(lm.placement.cast(lm.model))
    lm.embedding.weight.data.fill_(float("inf"))
    with pytest.raises(SellarecError, match=r"zero-shot: not every value is finite .+ \(--dtype bfloat16 or float32"):
        score_rows(lm, [TokenRow((5, 6), (7,))], label="zero-shot")


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_that_emulates_bfloat16_is_told_of_float16(monkeypatch, native):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert choose_placement().dtype == torch.bfloat16 and not choose_placement().scales_loss
    assert ("--dtype float16" in choose_placement().reason) == (not native)
    assert choose_placement("float16").scales_loss


def test_unknown_backbones_dtypes_and_targets_say_what_is_valid(llama, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SellarecError, match=r"cannot be loaded.*smollm2-135m"):
        open_language_model(str(tmp_path / "nothing-here"))
    with pytest.raises(SellarecError, match="no such file"):
        open_language_model("missing.gguf")
    with pytest.raises(SellarecError, match="Valid: auto, float32, bfloat16"):
        choose_placement("fp8")
    with pytest.raises(SellarecError, match=r"this backbone has no linear 'v_porj'\. Did you mean 'v_proj'"):
        add_lora(open_language_model(str(llama), "float32"), LoraSettings(targets="q_proj, v_porj"), 0)


def test_the_chosen_number_format_comes_with_its_reason():
    placement = choose_placement()
    assert placement.device.type in placement.reason and str(placement.dtype).removeprefix("torch.") in placement.reason
