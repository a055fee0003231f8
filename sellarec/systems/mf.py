"""Matrix factorisation: as published, without biases; and stage 2's, with biases but without its alignment.

Deviations of the first from CoLLM's: embeddings start at a standard deviation of 0.1 (with 1.0 some seeds stay at
chance), and ids that the training part never shows get vectors of zero.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from sellarec.collab.mf import MatrixFactorization
from sellarec.data.dataset import Dataset
from sellarec.settings import CollabConfig, Config, MFConfig
from sellarec.systems.base import System
from sellarec.systems.collaborative import collaborative_system, distinct_ids


def new_mf(dataset: Dataset, config: MFConfig | CollabConfig) -> MatrixFactorization:
    """An untrained model of the dataset's size."""
    return MatrixFactorization(dataset.n_users, dataset.n_items, config.dim, bias=config.bias, init_std=config.init_std)


def _unaligned(config: Config) -> CollabConfig:
    """Stage-2 settings without the alignment. What it does not use is reset, so that equal runs stay one."""
    unused = {
        f: CollabConfig.__dataclass_fields__[f].default
        for f in ("temperature", "symmetric", "hold_out", "standardize", "frozen_semantic", "without_contrast")
    }
    return dataclasses.replace(config.stage2, bias=True, alignment=0.0, **unused)


def _system(name: str, label: str, settings: Callable[[Config], MFConfig | CollabConfig]) -> System:
    return collaborative_system(
        name, label, settings, new_mf, finish=lambda model, train: model.forget_unseen(*distinct_ids(train))
    )


MF = _system("mf", "MF", lambda config: config.mf)
MF_BIAS = _system("mf_bias", "MF + biases", _unaligned)
