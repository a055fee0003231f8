"""Weights of modules in runs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sellarec.runs import Run


def save_state(run: Run, name: str, state: Mapping[str, Tensor]) -> None:
    """Save what a module's `state_dict` gives, from whatever device."""
    run.save_tensors(name, {k: v.detach().cpu().numpy() for k, v in state.items()})


def saved_state(run: Run, name: str) -> dict[str, Tensor]:
    """What `save_state` saved, for `load_state_dict`."""
    return {k: torch.from_numpy(v) for k, v in run.tensors(name).items()}
