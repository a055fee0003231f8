"""Tokenized prompts of dataset rows, and the prefixes that those of stage 1 and of every stage-3 system share.

A prefix is all up to the sentences of the soft tokens. Behind one frozen model its keys and values are always the same,
so they are computed once and kept (see backbone/prefixes.py).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from sellarec.backbone.language_model import LanguageModel
from sellarec.backbone.prefixes import PrefixCache, open_prefix_cache
from sellarec.backbone.token_rows import TokenRow, cut_where_they_part
from sellarec.distributed import world
from sellarec.prompts import SOFT_TOKENS, PromptWriter
from sellarec.systems.base import Workspace


def prompts_of(
    work: Workspace,
    lm: LanguageModel,
    rows: np.ndarray,
    tokens: tuple[str, ...] = (),
    new_user: np.ndarray | None = None,
) -> list[TokenRow]:
    """Tokenized prompts of dataset rows (n,), with these soft tokens.

    Args:
        new_user: Rows, as a mask (n,), that hide what is known of their user.
    """
    writer = PromptWriter(work.dataset, work.config.prompt, tokens)
    new_user = np.zeros(len(rows), dtype=bool) if new_user is None else new_user
    return lm.tokenize_all((writer.write(r, new) for r, new in zip(rows, new_user, strict=True)), tokens)


def cut_prompts(
    work: Workspace,
    lm: LanguageModel,
    rows: np.ndarray,
    prompts: list[TokenRow],
    tokens: tuple[str, ...] = (),
    new_user: np.ndarray | None = None,
) -> list[TokenRow]:
    """The prompts of `prompts_of`, cut where those with soft tokens and those without part.

    One that was too long has lost more of its front than its counterpart: it is cut at its first soft token, or left.
    """
    others = prompts_of(work, lm, rows, () if tokens else SOFT_TOKENS, new_user)
    soft = {lm.soft_ids[t] for t in tokens}

    def cut(own: TokenRow, other: TokenRow) -> TokenRow:
        if max(len(own), len(other)) < lm.max_tokens:
            return cut_where_they_part(own, other)
        ids = own.prefix + own.suffix
        first = next((n for n, token in enumerate(ids) if token in soft), len(own.prefix))
        return TokenRow(ids[:first], ids[first:])

    return [cut(own, other) for own, other in zip(prompts, others, strict=True)]


def caches_prefixes(work: Workspace, lm: LanguageModel) -> bool:
    """Whether the tuned model's keys and values are kept on disk.

    A GPU computes a prefix faster than it is read there (what it holds itself: backbone/held.py), and what only shows
    runs asks for rows that come once.
    """
    on_cpu = lm.placement.device.type == "cpu"
    return on_cpu and world() == 1 and work.computes and work.config.prefix_gib_on_disk > 0


def prefix_cache_of(work: Workspace, lm: LanguageModel, rows: np.ndarray, cut: list[TokenRow]) -> PrefixCache | None:
    """Keys and values of what comes before the cut, if `caches_prefixes`; None where there is no room for them.

    What validation and test need is kept in one file.
    """
    scored = pd.concat([work.part("valid"), work.part("test")]).index.to_numpy()
    whole = cut
    if np.isin(rows, scored).all() and not np.array_equal(rows, scored):
        whole = cut_prompts(work, lm, scored, prompts_of(work, lm, scored))
    prefixes = [r.prefix for r in whole]
    if not {r.prefix for r in cut} <= {*prefixes}:  # prompts that were too long are cut in other places
        prefixes = [r.prefix for r in cut]
    return open_prefix_cache(lm, prefixes, work.prefix_folder, work.config.prefix_gib_on_disk)
