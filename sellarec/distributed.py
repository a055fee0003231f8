"""Several processes at one run, as `accelerate launch` or `torchrun` starts them; one process alone notices nothing.

All processes take the same path through the program. Training shares each batch among them and scoring each list of
rows; what needs no language model is computed by the first process alone, and only that one writes and prints.
"""

from __future__ import annotations

import os
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from accelerate import PartialState

PATIENCE = timedelta(days=7)
"""How long processes wait for one that works alone, or for another job's lock."""


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This one's number, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    return rank() == 0


def wait() -> None:
    """Go on when all have come here."""
    if world() > 1:
        _state().wait_for_everyone()


def agreed(value: bool) -> bool:
    """The first process's answer, for all: files may appear between two processes' looks."""
    return bool(summed(np.array([float(value and is_main())]))[0]) if world() > 1 else value


def summed(array: np.ndarray) -> np.ndarray:
    """The sum over all processes; each has filled its own places and left the others 0."""
    if world() == 1:
        return array
    import torch

    tensor = torch.from_numpy(array).to(_state().device)
    torch.distributed.all_reduce(tensor)
    return tensor.cpu().numpy()


@cache
def _state() -> PartialState:
    """Joins the processes at the first call: gloo between CPUs, NCCL between GPUs."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
