"""Prompts as token ids: what they share, and in which batches they are computed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TokenRow:
    """One prompt as token ids; `prefix` is the part that other rows may share."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prefix) + len(self.suffix)


def without_prefix(row: TokenRow) -> TokenRow:
    """The same prompt with everything in the suffix, so that gradients reach all of it."""
    return TokenRow((), row.prefix + row.suffix)


def cut_where_they_part(row: TokenRow, other: TokenRow) -> TokenRow:
    """The same prompt with the prefix extended to what another prompt begins with too."""
    ids, others = row.prefix + row.suffix, other.prefix + other.suffix
    common = min(_alike(ids, others), len(ids) - 1)  # a suffix must not be empty
    return TokenRow(ids[:common], ids[common:])


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids the two have in common before they part."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def share_starts(rows: Sequence[TokenRow], soft: Collection[int]) -> list[TokenRow]:
    """The same prompts; where several have one prefix, it goes on for as long as they are alike, up to a soft token.

    All questions about a user begin with the same words, which are then computed once for a whole catalogue.

    Args:
        soft: Ids of the soft tokens, for which each row has vectors of its own.
    """
    out = list(rows)
    places: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        places.setdefault(row.prefix, []).append(i)
    for prefix, group in places.items():
        if not prefix or len(group) == 1:
            continue
        suffixes = [rows[i].suffix for i in group]
        first = min(suffixes)
        shared = min(_alike(first, max(suffixes)), *(len(s) - 1 for s in suffixes))  # a suffix must not be empty
        shared = next((n for n in range(shared) if first[n] in soft), shared)
        for i in group:
            out[i] = TokenRow(prefix + rows[i].suffix[:shared], rows[i].suffix[shared:])
    return out


def plan_batches(rows: Sequence[TokenRow], token_budget: int) -> list[np.ndarray]:
    """Group rows into batches of similar length that keep equal prefixes together.

    A batch costs (distinct prefixes x longest prefix) + (rows x longest suffix) padded tokens and stays within the
    budget; a single row may exceed it.

    Returns:
        Arrays of row positions that together hold every row once.
    """
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].prefix), rows[i].prefix, len(rows[i].suffix)))
    batches: list[list[int]] = [[]]
    prefixes, longest_prefix, longest_suffix = 0, 0, 0
    for i in order:
        new = not batches[-1] or rows[i].prefix != rows[batches[-1][-1]].prefix
        p, s = max(longest_prefix, len(rows[i].prefix)), max(longest_suffix, len(rows[i].suffix))
        cost = (prefixes + new) * p + (len(batches[-1]) + 1) * s
        if batches[-1] and cost > token_budget:
            batches.append([])
            prefixes, new = 0, True
            p, s = len(rows[i].prefix), len(rows[i].suffix)
        batches[-1].append(i)
        prefixes, longest_prefix, longest_suffix = prefixes + new, p, s
    return [np.array(b) for b in batches if b]
