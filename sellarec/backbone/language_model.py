"""The frozen or LoRA-tuned language model as this suite uses it: token ids in, Yes/No log-odds out."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sellarec.backbone.loading import Placement, choose_placement, load_backbone
from sellarec.backbone.token_rows import TokenRow
from sellarec.distributed import split_frozen_weights, world
from sellarec.errors import SellarecError
from sellarec.prompts import SOFT_TOKENS, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


MAX_TOKENS = 1024

TOGETHER = 1024
"""Prompts that are tokenized in one call: one after the other takes longer, all at once more memory."""

NO_SPLIT_IN_4_BITS = "--split and --dtype nf4 do not go together: 4-bit weights cannot be cut."


@dataclass(frozen=True)
class LanguageModel:
    """A causal LM with what the suite needs to know of its vocabulary.

    Attributes:
        model: The Hugging Face causal LM (possibly with a peft adapter inside).
        answer_ids: Token ids of "Yes" and "No" as they continue "Answer:".
        soft_ids: Vocabulary id that stands for each soft token; its own embedding is never read.
        max_tokens: Prompts longer than this lose their oldest text.
        sliding_window: Tokens that some layers see, padding counted; None if all see everything.
        mixed: Some weights are float32 beside those of the working dtype and are multiplied in the working dtype.
        split: Each of several processes holds a part of the frozen weights of the models that `with_model` is given.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    placement: Placement
    answer_ids: tuple[int, int]
    soft_ids: dict[str, int]
    max_tokens: int = MAX_TOKENS
    sliding_window: int | None = None
    mixed: bool = False
    split: bool = False

    @property
    def width(self) -> int:
        """d_L, the size of token embeddings and hidden states."""
        return self.model.config.hidden_size

    @property
    def embedding(self) -> nn.Embedding:
        return self.model.get_input_embeddings()

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings of token ids; one beyond the table stands for a soft token and gets a row that is overwritten."""
        return self.embedding(ids.clamp(max=self.embedding.num_embeddings - 1))

    def answer_head(self) -> Tensor:
        """The two rows of the output head for Yes and No, float32, shape (2, d_L)."""
        head = self.model.get_output_embeddings().weight
        return torch.stack([head[i] for i in self.answer_ids]).detach().float()  # a list of ids would halt a GPU

    def token_norm(self) -> float:
        """Mean norm of the token embeddings: the scale that the first layer is used to."""
        ids = torch.arange(self.embedding.num_embeddings, device=self.placement.device)
        with torch.inference_mode():  # not the weight itself: some families scale what they look up
            # in parts: a vocabulary of 150,000 in float32 would be the peak of a whole run
            norms = [self.embedding(part).float().norm(dim=1) for part in ids.split(4096)]
            return torch.cat(norms).mean().item()

    def tokenize(self, prompt: Prompt, soft_tokens: tuple[str, ...] = (), times: int = 1) -> TokenRow:
        """Token ids of one prompt, see `tokenize_all`."""
        return self.tokenize_all([prompt], soft_tokens, times)[0]

    def tokenize_all(
        self, prompts: Iterable[Prompt], soft_tokens: tuple[str, ...] = (), times: int = 1
    ) -> list[TokenRow]:
        """Token ids of prompts, each cut to `max_tokens` from the front of its prefix.

        Prefix and suffix are tokenized apart, so that equal histories give equal prefixes.

        Raises:
            SellarecError: a suffix does not fit, or a soft token does not occur exactly `times` times.
        """
        rows: list[TokenRow] = []
        left = iter(prompts)
        while together := list(itertools.islice(left, TOGETHER)):
            rows += (self._checked(row, soft_tokens, times) for row in self._rows(together, soft_tokens))
        return rows

    def _rows(self, prompts: list[Prompt], soft_tokens: tuple[str, ...]) -> Iterator[TokenRow]:
        pieces = [_split_at(p.suffix, soft_tokens) for p in prompts]
        plain = (piece for piece in itertools.chain.from_iterable(pieces) if piece not in soft_tokens)
        ids = self._ids_of({p.prefix for p in prompts}.union(plain))
        in_suffix = ids | {t: [self.soft_ids[t]] for t in soft_tokens}
        for prompt, of_prompt in zip(prompts, pieces, strict=True):
            yield self._fitted(ids[prompt.prefix], [i for piece in of_prompt for i in in_suffix[piece]])

    def _fitted(self, prefix: list[int], suffix: list[int]) -> TokenRow:
        start = [self.tokenizer.bos_token_id] if self._adds_bos else []
        spare = self.max_tokens - len(suffix) - len(start)
        if spare < 0:
            raise SellarecError(f"A prompt's question alone has {len(suffix)} tokens; max_tokens is {self.max_tokens}.")
        return TokenRow((*start, *prefix[max(0, len(prefix) - spare) :]), tuple(suffix))

    def _checked(self, row: TokenRow, soft_tokens: tuple[str, ...], times: int) -> TokenRow:
        ids = row.prefix + row.suffix
        counts = {t: ids.count(self.soft_ids[t]) for t in soft_tokens}
        if any(n != times for n in counts.values()):
            often = "exactly once" if times == 1 else f"{times} times"
            raise SellarecError(f"Each soft token must occur {often} in a prompt; found {counts}.")
        return row

    def token_ends(self, prompt: Prompt, soft_tokens: tuple[str, ...] = ()) -> list[int]:
        """For each token of the prompt's `TokenRow` the character of the prompt with which it ends; -1 without one."""
        kept = len(self.tokenize(prompt, soft_tokens))
        ends, at = self._ends(prompt.prefix, 0), len(prompt.prefix)
        for piece in _split_at(prompt.suffix, soft_tokens):
            ends += [at + len(piece) - 1] if piece in soft_tokens else self._ends(piece, at)
            at += len(piece)
        start = [-1] if self._adds_bos else []
        return start + ends[len(ends) - (kept - len(start)) :]

    def _ends(self, text: str, at: int) -> list[int]:
        if not text:
            return []
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [at + end - 1 for _, end in found["offset_mapping"]]

    def _ids_of(self, texts: Collection[str]) -> dict[str, list[int]]:
        listed = [text for text in texts if text]
        ids = self.tokenizer(listed, add_special_tokens=False)["input_ids"] if listed else []
        return {"": []} | dict(zip(listed, ids, strict=True))

    @cached_property
    def _adds_bos(self) -> bool:
        ids = self.tokenizer("a")["input_ids"]
        return self.tokenizer.bos_token_id is not None and ids[0] == self.tokenizer.bos_token_id

    def with_model(self, model: nn.Module, *, mixed: bool = False) -> LanguageModel:
        """The same vocabulary over a model that is ready to compute.

        Raises:
            SellarecError: the model is to be split and cannot be.
        """
        if self.split:
            split_frozen_weights(layers_of(model))
            model.to(self.placement.device)  # what is not split; it was loaded on the CPU
        return replace(self, model=model, mixed=mixed)

    def precision(self) -> torch.autocast:
        """The context in which the model runs."""
        # not accelerate's mixed precision: that is one setting for all of a process, and the stages differ
        return torch.autocast(self.placement.device.type, self.placement.dtype, enabled=self.mixed)


def open_language_model(name: str, dtype: str = "auto", *, split: bool = False) -> LanguageModel:
    """Load a backbone by name and look up its answer and soft-token ids.

    Args:
        split: As in `LanguageModel`; has no effect on one process.
    """
    placement, split = choose_placement(dtype), split and world() > 1
    if split and placement.nf4:
        raise SellarecError(NO_SPLIT_IN_4_BITS)
    model, tokenizer = load_backbone(name, placement, on_cpu=split)
    return replace(wrap_language_model(model, tokenizer, placement), split=split)


def beneath_adapter(model: nn.Module) -> nn.Module:
    """The causal LM itself, where peft has wrapped one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def body_of(model: nn.Module) -> nn.Module:
    """The transformer without its output head, beneath an adapter if there is one."""
    return beneath_adapter(model).base_model


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The model's layers, beneath an adapter if there is one."""
    base = beneath_adapter(model)
    layers = [m for m in base.modules() if type(m).__name__ in (base._no_split_modules or ())]
    if not layers:
        raise SellarecError("--split: transformers does not say what this backbone's layers are.")
    return layers


def wrap_language_model(model: nn.Module, tokenizer: PreTrainedTokenizerBase, placement: Placement) -> LanguageModel:
    """The `LanguageModel` of an already loaded model.

    Raises:
        SellarecError: the model is no plain transformer, or its tokenizer no good for Yes and No.
    """
    kinds = {*(getattr(model.config, "layer_types", None) or ())}
    if getattr(model, "_is_stateful", False) or not kinds <= {"full_attention", "sliding_attention"}:
        raise SellarecError(
            "This backbone has layers other than attention, or attention of another kind: they would read the padding "
            "of shorter prompts. Use one whose layers all have full or sliding attention."
        )
    return LanguageModel(
        model,
        tokenizer,
        placement,
        answer_ids=answer_token_ids(tokenizer),
        soft_ids=dict(zip(SOFT_TOKENS, reserved_token_ids(model, tokenizer, len(SOFT_TOKENS)), strict=True)),
        max_tokens=_window(model.config),
        sliding_window=model.config.sliding_window if "sliding_attention" in kinds else None,
    )


def _window(config: object) -> int:
    """Tokens that a prompt may have: positions that the model knows, and those within which sliding attention is full
    attention; beyond it padding before a token would count."""
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    known = getattr(config, "max_position_embeddings", None) or MAX_TOKENS
    return min(MAX_TOKENS, known, config.sliding_window if slides else MAX_TOKENS)


def answer_token_ids(tokenizer: PreTrainedTokenizerBase, cue: str = "Answer:") -> tuple[int, int]:
    """The first tokens of " Yes" and " No" as exact continuations of the cue.

    Raises:
        SellarecError: the cue's tokens change with the answer, or both answers begin with the same token.
    """
    base = tokenizer(cue, add_special_tokens=False)["input_ids"]
    found = []
    for answer in (" Yes", " No"):
        ids = tokenizer(cue + answer, add_special_tokens=False)["input_ids"]
        if ids[: len(base)] != base or len(ids) != len(base) + 1:
            raise SellarecError(
                f"This tokenizer does not continue '{cue}' with {answer!r} as one token; use another backbone."
            )
        found.append(ids[len(base)])
    if found[0] == found[1]:
        raise SellarecError("This tokenizer gives Yes and No the same first token; use another backbone.")
    return found[0], found[1]


def reserved_token_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase, n: int) -> list[int]:
    """`n` vocabulary ids that no text uses: rows beyond the tokenizer first, then unused special tokens, then ids
    beyond the table (see `LanguageModel.embed`).

    The embedding matrix stays as it is; new rows would make every adapter file carry a copy of it.
    """
    rows = model.get_input_embeddings().num_embeddings
    in_use = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    added = tokenizer.added_tokens_decoder
    special = [i for i, token in sorted(added.items(), reverse=True) if token.special and i not in in_use and i < rows]
    beyond = max(rows, len(tokenizer))
    return [*range(len(tokenizer), rows), *special, *range(beyond, beyond + n)][:n]


def _split_at(text: str, markers: tuple[str, ...]) -> list[str]:
    """The text cut into plain pieces and markers, in order, none empty."""
    pieces = [text]
    for marker in markers:
        cut = []
        for piece in pieces:
            parts = [piece] if piece in markers else piece.split(marker)
            for n, part in enumerate(parts):
                cut += ([marker] if n else []) + ([part] if part else [])
        pieces = cut
    return pieces
