"""Several processes at one run, as `accelerate launch` or `torchrun` starts them; one process alone notices nothing.

All processes take the same path through the program. Training shares each batch among them and scoring each list of
rows; what needs no language model is computed by the first process alone, and only that one writes and prints.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from accelerate import PartialState
    from torch import nn

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


def leave() -> None:
    """End each of several processes when all have come here; one process alone goes on.

    Taken down with the interpreter, torch's threads abort it now and then, after all work is done.
    """
    if world() > 1:
        wait()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


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


def most(count: int) -> int:
    """The largest number that a process came with."""
    counts = np.zeros(world())
    counts[rank()] = count
    return int(summed(counts).max())


def split_frozen_weights(layers: Iterable[nn.Module]) -> None:
    """Leave each process a part of the layers' frozen weights; a layer has them whole only while it computes (FSDP2).

    What is trained stays whole in every process. From here on all of them must compute equally often.
    """
    from torch.distributed import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(_state().device.type, (world(),))
    for layer in layers:
        trained = {p for p in layer.parameters() if p.requires_grad}
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=trained)


@cache
def _state() -> PartialState:
    """Joins the processes at the first call: gloo between CPUs, NCCL between GPUs."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
