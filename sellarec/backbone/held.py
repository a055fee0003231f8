"""The prefix cache of a GPU: keys and values stay in its memory for as long as one training or analysis lasts.

There a prefix is computed faster than it could be read from a disk, but not faster than it is found where it is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from sellarec.backbone.engine import prefix_states, tokens_at_once
from sellarec.backbone.language_model import LanguageModel
from sellarec.backbone.loading import sent
from sellarec.backbone.prefixes import GIB, Prefix
from sellarec.distributed import is_main
from sellarec.runs import record

SPARE_TRAINING, SPARE_SCORING, SPARE_CARD = 1.5, 3.0, 0.05
"""What stays free: so many times what batches took until now, or so many times the keys and values of a batch in
scoring, whichever is more; and such a share of all memory."""


def hold_prefixes(lm: LanguageModel, prefixes: Iterable[Prefix], gib: float | None) -> HeldPrefixes | None:
    """A cache in the GPU's memory for prefixes that will be asked for more than once.

    Args:
        gib: It takes this many GiB at most; None takes what batches leave free.

    Returns:
        None on a CPU, which keeps them on disk; where processes share the weights, and must compute equally often; and
        where nothing is to be kept or the model's cache is not one tensor a layer.
    """
    device = lm.placement.device
    if device.type == "cpu" or lm.split or gib == 0:
        return None
    tokens = sum(map(len, set(prefixes)))
    of_token = prefix_states(lm, [(0,)]) if tokens else None
    if of_token is None:
        return None
    torch.cuda.reset_peak_memory_stats(device)
    return HeldPrefixes(lm, of_token[0], tokens, math.inf if gib is None else gib)


class HeldPrefixes:
    """Keys and values by prefix: computed when they are first asked for, and held while there is room."""

    def __init__(self, lm: LanguageModel, of_token: Tensor, tokens: int, gib: float) -> None:
        """
        Args:
            of_token: Keys and values of some token, shape (1, layers, 2, heads, head size).
            tokens: How many all prefixes have together.
            gib: At most so many GiB are held.
        """
        self._lm, self._wanted, self._gib = lm, tokens, gib
        # prefixes one after the other; the first place is that of a prefix that is not held, and of an empty one
        self._data, self._used, self._starts = of_token, 1, dict[Prefix, int]()
        self._batches = 0

    def batch(self, prefixes: Sequence[Prefix]) -> tuple[Tensor, Tensor]:
        """As `KeptPrefixes.batch`, on the model's device."""
        self._batches += 1
        missing = [p for p in dict.fromkeys(prefixes) if p and p not in self._starts]
        fresh = prefix_states(self._lm, missing) if missing else self._data[:0, None]
        if self._batches == 2:  # the first has shown how much memory a batch takes, its backward pass included
            self._data = self._with_room()
        self._hold(missing, fresh)
        lengths = np.array([len(p) for p in prefixes])
        within = np.minimum(np.arange(lengths.max()), np.maximum(lengths, 1)[:, None] - 1)
        starts = np.array([self._starts.get(p, -1) for p in prefixes])
        states = self._data[self._sent(np.where(starts[:, None] < 0, 0, starts[:, None] + within))]
        place = {p: n for n, p in enumerate(missing) if p not in self._starts}
        if at := [i for i, p in enumerate(prefixes) if p in place]:
            of_row = self._sent([place[prefixes[i]] for i in at])
            states[self._sent(at), : fresh.shape[1]] = fresh[of_row]
        return states, torch.from_numpy(lengths)

    def _hold(self, prefixes: Sequence[Prefix], states: Tensor) -> None:
        """Take over as many as there is room for, of states as `prefix_states` gives them."""
        of_row, of_token, first = [], [], self._used
        for n, prefix in enumerate(prefixes):
            if self._used + len(prefix) <= len(self._data):
                self._starts[prefix] = self._used
                self._used += len(prefix)
                of_row += [n] * len(prefix)
                of_token += range(len(prefix))
        if of_row:
            self._data[first : self._used] = states[self._sent(of_row), self._sent(of_token)]

    def _with_room(self) -> Tensor:
        """The data, with as many places behind the first as are wanted and may be taken."""
        device, of_token = self._lm.placement.device, self._data.numel() * self._data.element_size()
        scoring = SPARE_SCORING * of_token * tokens_at_once(device.type, self._lm.width)
        free = max(0.0, room_on(device, scoring))
        places = min(self._wanted, int(min(free, self._gib * GIB)) // of_token)
        try:
            grown = self._data.new_zeros(1 + places, *self._data.shape[1:])
        except torch.OutOfMemoryError:  # another process was faster
            places, grown = 0, self._data
        if places:
            record("prefix cache")
        if is_main():
            print(self._said(places * of_token / GIB, self._wanted * of_token / GIB, free / GIB), flush=True)
        return grown

    def _said(self, held: float, wanted: float, free: float) -> str:
        """What a line says of so many GiB."""
        if held == wanted:
            return f"prefix cache: {held:.1f} GiB on the GPU."
        bound = "" if self._gib == math.inf else f", --prefix-gib is {self._gib:g}"
        return (
            f"prefix cache: {held:.1f} of {wanted:.1f} GiB on the GPU, the rest is computed anew each time "
            f"({free:.1f} GiB are to spare{bound})."
        )

    def _sent(self, numbers: np.ndarray | Sequence[int]) -> Tensor:
        return sent(torch.as_tensor(numbers), self._lm.placement.device)


def room_on(device: torch.device, scoring: float) -> float:
    """Bytes of a GPU's memory that batches will not need: to judge by those so far, or for `scoring` bytes if that is
    more."""
    torch.cuda.empty_cache()
    free, card = torch.cuda.mem_get_info(device)
    so_far = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
    return free - max(SPARE_TRAINING * so_far, scoring) - SPARE_CARD * card
