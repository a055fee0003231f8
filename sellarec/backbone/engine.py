"""The forward pass, without the work that does not matter.

Scoring is done under no_grad rather than inference_mode: weights that several processes share are gathered into tensors
that a later training step must be able to save.

Only the last position and two rows of the output head decide a score, so no vocabulary logits are made. Rows that
share a prefix share its computation; the prefix needs no gradient, because nothing trainable stands in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sellarec.backbone.compiled import layers_for
from sellarec.backbone.language_model import LanguageModel, body_of
from sellarec.backbone.loading import sent
from sellarec.backbone.token_rows import TokenRow, plan_batches, share_starts, without_prefix
from sellarec.checks import check_finite
from sellarec.distributed import is_main, most, rank, summed, world
from sellarec.progress import Progress

CPU_TOKENS = 1536
"""Padded tokens in one batch on a CPU. With 2 cores (bf16, 135M) 2,048 scored 1.4 times as many rows a second as 8,192,
and 1,024 to 2,048 were not told apart."""

GPU_TOKENS, GPU_HIDDEN = (32768, 131072), 65536 * 576
"""On a GPU: as many tokens as have so many hidden numbers together, within these bounds. A host launches the operations
of a small batch no faster than those of a large one: of SmolLM2-135M, compiled, an H200 scored 8,314, 11,567 and 12,277
rows a second with 32,768, 65,536 and 131,072 tokens, in 2.1, 3.5 and 5.0 GiB."""

SETTLED = 64
"""How many batches may be under way before their results are asked for: each such question halts a GPU."""

KEPT_BUDGET = {"cpu": 4, "cuda": 1}
"""A batch whose prefixes are cached takes so many times the tokens: these need no computation. On a GPU its memory is
what bounds a batch, and they take as much of that as others."""

SAVE_SECONDS = 30.0
"""Partial scores are written this often."""

TOO_NARROW = "compute in another number format (--dtype bfloat16 or float32), or, in training, at a lower rate"
"""For whom a model's numbers do not fit into theirs."""


class KeptPrefixes(Protocol):
    """Knows the keys and values of prefixes, which are not computed with each batch then."""

    def batch(self, prefixes: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
        """Keys and values of some prefixes, padded on the right, (B, T, layers, 2, heads, size); and lengths (B,)."""


SoftVectors = Callable[[np.ndarray], dict[str, Tensor]]
"""Positions of rows (B,) → for each soft token its vectors, shape (B, d_L), float32."""


def tokens_at_once(device: str, width: int) -> int:
    """Padded tokens in one batch on a kind of device, for hidden states of so many numbers."""
    least, most_measured = GPU_TOKENS
    return CPU_TOKENS if device == "cpu" else min(max(least, GPU_HIDDEN // width), most_measured)


def final_hidden(
    lm: LanguageModel,
    rows: Sequence[TokenRow],
    soft: dict[str, Tensor] | None = None,
    kept: KeptPrefixes | None = None,
) -> Tensor:
    """Post-norm hidden state at each row's last token.

    Gradients flow through the suffix and the soft vectors; prefixes are computed once each, without gradient.

    Args:
        rows: B token rows; the suffix must not be empty.
        soft: For each soft token its vectors, shape (B, d_L), written over the placeholder's embedding; (B, k, d_L)
            for a token that stands k times in each row.
        kept: Holds the keys and values of all prefixes, which are not computed then.

    Returns:
        Shape (B, d_L), float32.
    """
    device = lm.placement.device
    if lm.sliding_window and _slots(rows) > lm.sliding_window:  # padding between would push tokens out of sight
        rows, kept = [without_prefix(r) for r in rows], None
    ids, lengths = _pad([r.suffix for r in rows])
    embeds, lengths = embed(lm, ids, soft), sent(lengths, device)
    past, past_lengths = prefixes_of(lm, rows, kept)
    with lm.precision():
        if past is None:
            out = _from_the_left(lm, inputs_embeds=embeds)
        else:
            at, held = torch.arange(ids.shape[1], device=device), past.get_seq_length()
            behind = torch.arange(held, device=device) < past_lengths[:, None]
            mask = torch.cat([behind, at < lengths[:, None]], dim=1).long()
            positions = (past_lengths[:, None] + at).clamp(max=lm.max_tokens - 1)  # only padding stands farther out
            out = body_of(lm.model)(
                inputs_embeds=embeds, attention_mask=mask, position_ids=positions, past_key_values=past, use_cache=True
            )
    return out.last_hidden_state[torch.arange(len(rows), device=device), lengths - 1].float()  # of (B, S, d_L)


def _slots(rows: Sequence[TokenRow]) -> int:
    """How many tokens a row takes up where prefixes and suffixes are padded apart."""
    return max(len(r.prefix) for r in rows) + max(len(r.suffix) for r in rows)


def _from_the_left(lm: LanguageModel, *, use_cache: bool = False, **inputs: Tensor) -> Any:
    """A pass over rows that begin at position 0. Nothing need hide what they are padded with on the right: attention
    does not look there. Without a mask a GPU takes a faster kernel."""
    return body_of(lm.model)(**inputs, use_cache=use_cache)


def embed(lm: LanguageModel, ids: Tensor, soft: dict[str, Tensor] | None) -> Tensor:
    """Embeddings of ids (B, T) on the model's device, soft vectors over their placeholders'. Ids come on the CPU."""
    device = lm.placement.device
    places = {t: torch.nonzero(ids == lm.soft_ids[t], as_tuple=True) for t in soft or {}}  # a GPU would have to halt
    embeds = lm.embed(sent(ids, device))
    for token, vectors in (soft or {}).items():
        at = tuple(sent(i, device) for i in places[token])
        embeds = embeds.index_put(at, vectors.to(embeds.dtype).flatten(0, -2))
    return embeds


def log_odds(
    lm: LanguageModel,
    rows: Sequence[TokenRow],
    soft: dict[str, Tensor] | None = None,
    kept: KeptPrefixes | None = None,
) -> Tensor:
    """l_Yes − l_No at the answer position, shape (B,), float32 (paper Eq. 2-3 before the softmax)."""
    yes, no = lm.answer_head()
    return final_hidden(lm, rows, soft, kept) @ (yes - no)


@torch.no_grad()
def score_rows(
    lm: LanguageModel,
    rows: Sequence[TokenRow],
    soft: SoftVectors | None = None,
    *,
    kept: KeptPrefixes | None = None,
    token_budget: int | None = None,
    raw_yes: bool = False,
    label: str = "scoring",
    resume: Path | None = None,
) -> np.ndarray:
    """Score every row: log-odds of Yes against No, or the raw Yes logit (CoLLM's rule) if `raw_yes`.

    Args:
        soft: Gives the soft vectors of the rows at the given positions.
        kept: As in `final_hidden`.
        token_budget: Upper bound of padded tokens in one batch, `KEPT_BUDGET` times that with `kept`; it bounds the
            memory. None takes the device's.
        resume: A file that keeps the scores so far, every half minute; a second call with it goes on from there.

    Returns:
        Shape (n,), float32, in the order of `rows`.

    Raises:
        SellarecError: a score is not finite.
    """
    direction = lm.answer_head()[0] if raw_yes else lm.answer_head()[0] - lm.answer_head()[1]
    device = lm.placement.device.type
    budget = (token_budget or tokens_at_once(device, lm.width)) * (KEPT_BUDGET[device] if kept else 1)
    rows = rows if kept else share_starts(rows, lm.soft_ids.values())
    with layers_for(lm, 0 if kept else len(rows)):  # behind a cache there is little to gain
        prefixes = kept or _common_prefix(lm, rows)

        def score(batch: np.ndarray) -> Tensor:
            return final_hidden(lm, [rows[i] for i in batch], soft(batch) if soft else None, prefixes) @ direction

        # on a GPU, where memory bounds a batch, each row has a copy of its kept prefix
        planned = [without_prefix(r) for r in rows] if kept and device != "cpu" else rows
        scores = _for_all(planned, score, (), budget, label, "rows", resume, together=lm.split)
    for partial in resume.parent.glob(f"*{resume.name}") if resume and is_main() else ():
        partial.unlink()
    return scores


@torch.no_grad()
def embed_rows(
    lm: LanguageModel,
    rows: Sequence[TokenRow],
    *,
    label: str,
    unit: str = "rows",
    resume: Path | None = None,
) -> np.ndarray:
    """The final hidden state of every row, shape (n, d_L), float32.

    Arguments are as those of `score_rows`, but the file `resume` stays and makes a second call return at once.
    """

    def embed(batch: np.ndarray) -> Tensor:
        return final_hidden(lm, [rows[i] for i in batch])

    budget = tokens_at_once(lm.placement.device.type, lm.width)
    with layers_for(lm, len(rows)):
        return _for_all(rows, embed, (lm.width,), budget, label, unit, resume, together=lm.split)


def _for_all(
    rows: Sequence[TokenRow],
    compute: Callable[[np.ndarray], Tensor],
    shape: tuple[int, ...],
    token_budget: int,
    label: str,
    unit: str,
    resume: Path | None,
    *,
    together: bool = False,
) -> np.ndarray:
    """What `compute` gives for all rows, batch by batch, shape (n, *shape), float32; processes share the batches.

    Args:
        together: Each process must compute equally often, because the others need its part of the weights.
    """
    batches = plan_batches(rows, token_budget)
    mine = batches[rank() :: world()]
    if resume and rank():
        resume = resume.with_name(f"{rank()}-{resume.name}")
    out = np.full((len(rows), *shape), np.nan, dtype=np.float32)
    if resume and resume.exists():
        out = np.load(resume)
    done = np.isfinite(out.reshape(len(rows), -1)).all(axis=1)
    to_do = sum(not done[batch].all() for batch in mine)
    spare = most(to_do) - to_do if together else 0  # asked before the first batch: in between, it would be waited for
    under_way: list[tuple[np.ndarray, Tensor]] = []

    def settle() -> None:
        for batch, found in under_way:
            out[batch] = found.cpu().numpy()
        under_way.clear()

    saved = time.monotonic()
    with Progress(label, sum(map(len, mine)), unit, done=sum(int(done[b].sum()) for b in mine)) as progress:
        for batch in mine:
            if done[batch].all():
                continue
            under_way.append((batch, compute(batch)))
            progress.advance(len(batch))
            due = resume and time.monotonic() - saved > SAVE_SECONDS
            if due or len(under_way) == SETTLED:
                settle()
            if due:
                _save_whole(out, resume)
                saved = time.monotonic()
        settle()
    for _ in range(spare):
        compute(batches[0])
    if resume:
        _save_whole(out, resume)
    if world() > 1:
        others = np.setdiff1d(np.arange(len(rows)), np.concatenate([*mine, np.array([], dtype=int)]))
        out[others] = 0
    out = summed(out)
    check_finite(out, label or "the language model", TOO_NARROW)
    return out


def _save_whole(array: np.ndarray, path: Path) -> None:
    """Write beside the old file, then swap: a kill never leaves a half-written one."""
    fresh = path.with_suffix(".new.npy")
    np.save(fresh, array)
    fresh.replace(path)


@torch.no_grad()
def prefix_states(lm: LanguageModel, prefixes: Sequence[tuple[int, ...]]) -> Tensor | None:
    """Keys and values that prefixes leave behind, padded on the right, shape (B, T, layers, 2, heads, head size).

    None if the layers of this backbone do not all keep tensors of one shape.
    """
    ids, _ = _pad(prefixes)
    with lm.precision():
        layers = _from_the_left(lm, input_ids=sent(ids, lm.placement.device), use_cache=True).past_key_values.layers
    held = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
    if any(t is None or t.ndim != 4 or t.shape != held[0].shape for t in held):
        return None
    batch, heads, tokens, size = held[0].shape
    states = held[0].new_empty(batch, tokens, len(layers), 2, heads, size)
    for n, layer in enumerate(layers):  # one copy of each; stacking them first would take two
        states[:, :, n, 0], states[:, :, n, 1] = layer.keys.transpose(1, 2), layer.values.transpose(1, 2)
    return states


@dataclass(frozen=True)
class CommonPrefix:
    """Keys and values of the one prefix that all rows have, for as many batches as they make.

    Attributes:
        states: As `prefix_states` gives them of one prefix, shape (1, T, layers, 2, heads, head size).
    """

    states: Tensor

    def batch(self, prefixes: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
        """As `KeptPrefixes.batch`, on the model's device."""
        tokens, *rest = self.states.shape[1:]
        return self.states.expand(len(prefixes), tokens, *rest), torch.full((len(prefixes),), tokens)


def _common_prefix(lm: LanguageModel, rows: Sequence[TokenRow]) -> CommonPrefix | None:
    """None where rows have several prefixes or none, or the model's cache is not one tensor a layer."""
    distinct = {r.prefix for r in rows}
    states = prefix_states(lm, [*distinct]) if len(distinct) == 1 and distinct != {()} else None
    return None if states is None else CommonPrefix(states)


def prefixes_of(
    lm: LanguageModel, rows: Sequence[TokenRow], kept: KeptPrefixes | None = None
) -> tuple[Any, Tensor | None]:
    """Keys and values of the rows' prefixes, each distinct one computed once and handed to its rows, and the prefixes'
    lengths, shape (B,); None of both if no row has one."""
    device = lm.placement.device
    if not any(r.prefix for r in rows):
        if lm.split:  # other processes may have prefixes
            with torch.no_grad(), lm.precision():
                _from_the_left(lm, input_ids=torch.zeros(1, 1, dtype=torch.long, device=device))
        return None, None
    if kept:
        return _filled_cache(lm, *kept.batch([r.prefix for r in rows]))
    distinct = list(dict.fromkeys(r.prefix for r in rows))
    place = {prefix: n for n, prefix in enumerate(distinct)}
    ids, lengths = _pad(distinct)
    with torch.no_grad(), lm.precision():
        cache = _from_the_left(lm, input_ids=sent(ids, device), use_cache=True).past_key_values
    if len(distinct) < len(rows):
        of_row = torch.tensor([place[r.prefix] for r in rows])
        cache.batch_select_indices(sent(of_row, device))
        lengths = lengths[of_row]
    return cache, sent(lengths, device)


def _filled_cache(lm: LanguageModel, states: Tensor, lengths: Tensor) -> tuple[Any, Tensor]:
    """The same of keys and values that are there already, as `prefix_states` gives them."""
    from transformers import DynamicCache  # late, see loading.py

    states, lengths = states.to(lm.placement.device), sent(lengths, lm.placement.device)
    cache = DynamicCache(config=body_of(lm.model).config)
    for layer in range(states.shape[2]):
        cache.update(states[:, :, layer, 0].transpose(1, 2), states[:, :, layer, 1].transpose(1, 2), layer)
    return cache, lengths


def _pad(sequences: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """Ids padded on the right, shape (B, T), and lengths, shape (B,), both int64."""
    lengths = np.array([len(s) for s in sequences])
    ids = np.zeros((len(sequences), lengths.max()), dtype=np.int64)
    for n, sequence in enumerate(sequences):
        ids[n, : len(sequence)] = sequence
    return torch.from_numpy(ids), torch.from_numpy(lengths)
