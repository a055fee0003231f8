"""The prefix cache of a GPU: keys and values stay in its memory for as long as one training of soft tokens lasts.

There a prefix is computed faster than it could be read from a disk, but not faster than it is found where it is used.
How many are held depends on the memory that is free at that moment, and in which batch a prefix is first computed on
when a run was interrupted: on a GPU, a run that is repeated or gone on with is the same up to rounding.
"""

from __future__ import annotations

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

SHARE = 0.5
"""Of what batches leave free, this is taken where no bound is named: others may use the GPU, or come to."""

SPARE_BATCHES, SPARE_COPIES, SPARE_CARD = 1.5, 3, 0.05
"""What batches need: so many times what they have taken until now, or so many copies of the keys and values of the
largest batch in scoring (`HeldPrefixes.batch` makes as many), whichever is more; and such a share of all memory."""


def hold_prefixes(lm: LanguageModel, prefixes: Iterable[Prefix], gib: float | None) -> HeldPrefixes | None:
    """A cache in the GPU's memory for prefixes that will be asked for more than once.

    Args:
        gib: It takes this many GiB at most; None takes a `SHARE` of what batches leave free.

    Returns:
        None on a CPU, which keeps them on disk; where processes share the weights, and must compute equally often; and
        where nothing is to be kept.
    """
    if lm.placement.device.type == "cpu" or lm.split or gib == 0:
        return None
    tokens = sum(map(len, set(prefixes)))
    return HeldPrefixes(lm, tokens, gib) if tokens else None


class HeldPrefixes:
    """Keys and values by prefix: computed when they are first asked for, and held while there is room."""

    def __init__(self, lm: LanguageModel, tokens: int, gib: float | None) -> None:
        """
        Args:
            tokens: How many all prefixes have together.
            gib: As for `hold_prefixes`.
        """
        self._lm, self._wanted, self._gib = lm, tokens, gib
        self._data: Tensor | None = None  # prefixes one after the other, behind a place for what is not held
        self._starts: dict[Prefix, int] = {}
        self._used, self._asked_for_room = 1, False
        forget_peaks(lm.placement.device)

    @property
    def is_open(self) -> bool:
        return self._data is not None

    def open(self) -> HeldPrefixes | None:
        """Take the memory, if that was not tried before: as late as can be, when batches have shown what they need.

        Returns:
            Itself; None where there is no room, or the model's cache is not one tensor a layer.
        """
        if not self._asked_for_room:
            self._asked_for_room, self._data = True, self._room()
        return self if self.is_open else None

    def release(self) -> None:
        """Give the memory back, for good."""
        self._data, self._asked_for_room = None, True
        self._starts.clear()

    def batch(self, prefixes: Sequence[Prefix]) -> tuple[Tensor, Tensor]:
        """As `KeptPrefixes.batch`, on the model's device; for a cache that is open."""
        missing = [p for p in dict.fromkeys(prefixes) if p and p not in self._starts]
        fresh = prefix_states(self._lm, missing) if missing else None
        if fresh is not None:
            self._hold(missing, fresh)
        lengths = np.array([len(p) for p in prefixes])
        within = np.minimum(np.arange(lengths.max()), np.maximum(lengths, 1)[:, None] - 1)
        starts = np.array([self._starts.get(p, -1) for p in prefixes])
        states = self._data[self._sent(np.where(starts[:, None] < 0, 0, starts[:, None] + within))]
        place = {p: n for n, p in enumerate(missing) if p not in self._starts}
        if rows := [n for n, p in enumerate(prefixes) if p in place]:
            of_row = self._sent([place[prefixes[n]] for n in rows])
            states[self._sent(rows), : fresh.shape[1]] = fresh[of_row]
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

    def _room(self) -> Tensor | None:
        """Places for as many tokens as are wanted and may be held, behind one for what is not; says how many."""
        sample = prefix_states(self._lm, [(0,)])
        if sample is None:
            return None
        device, size = self._lm.placement.device, sample.numel() * sample.element_size()
        free = max(0.0, spare_memory(device, SPARE_COPIES * size * tokens_at_once(device.type, self._lm.width)))
        allowed = SHARE * free if self._gib is None else min(free, self._gib * GIB)
        places = min(self._wanted, int(allowed) // size)
        try:
            room = sample.new_zeros(1 + places, *sample.shape[2:]) if places else None
        except torch.OutOfMemoryError:  # another process was faster
            room, places = None, 0
        if room is not None:
            record("prefix cache")
        if is_main():
            held, wanted = (n * size / GIB for n in (places, self._wanted))
            rest = "" if places == self._wanted else f" of {wanted:.1f}, the rest is computed anew each time"
            bound = f"; batches leave {free / GIB:.1f} free, see --prefix-gib" if rest else ""
            print(f"prefix cache: {held:.1f} GiB on the GPU{rest}{bound}", flush=True)
        return room

    def _sent(self, numbers: np.ndarray | Sequence[int]) -> Tensor:
        return sent(torch.as_tensor(numbers), self._lm.placement.device)


def forget_peaks(device: torch.device) -> None:
    """From now on count how much of a GPU's memory is taken at once."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def spare_memory(device: torch.device, least: float) -> float:
    """Bytes of a GPU's memory that batches will not need, to judge by those since `forget_peaks`.

    Args:
        least: Bytes that batches need in any case.
    """
    so_far = torch.cuda.max_memory_reserved(device) - torch.cuda.memory_allocated(device)
    torch.cuda.empty_cache()
    free, card = torch.cuda.mem_get_info(device)
    return free - max(SPARE_BATCHES * so_far, least) - SPARE_CARD * card
