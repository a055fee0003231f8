"""Matrix factorisation, as published (no biases) and with biases."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import torch

from sellarec.collab.fit import CollabConfig, fit_collab
from sellarec.collab.mf import MatrixFactorization
from sellarec.config import Config
from sellarec.data.dataset import Dataset
from sellarec.runs import Run
from sellarec.systems.base import System, Workspace, sigmoid


def new_mf(dataset: Dataset, config: CollabConfig, seed: int) -> MatrixFactorization:
    """An untrained model of the dataset's size."""
    torch.manual_seed(seed)
    return MatrixFactorization(dataset.n_users, dataset.n_items, config.dim, bias=config.bias, init_std=config.init_std)


def distinct_ids(rows: pd.DataFrame) -> tuple[torch.Tensor, torch.Tensor]:
    """The distinct users and items of some interactions, int64."""
    return tuple(torch.from_numpy(np.unique(rows[c]).astype(np.int64)) for c in ("user", "item"))


def mf_log_odds(model: MatrixFactorization, dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """The model's log-odds for dataset rows, shape (n,)."""
    part = dataset.interactions.iloc[rows]
    user, item = (torch.from_numpy(part[c].to_numpy().astype(np.int64)) for c in ("user", "item"))
    with torch.inference_mode():
        return model(user, item).numpy()


def _plain(config: Config, bias: bool) -> CollabConfig:
    """Stage-2 settings without the alignment. What it does not use is reset, so that equal runs stay one."""
    unused = {f: CollabConfig.__dataclass_fields__[f].default for f in ("temperature", "symmetric", "hold_out")}
    return dataclasses.replace(config.stage2, bias=bias, alignment=0.0, **unused)


def _system(name: str, label: str, bias: bool) -> System:
    def fit(work: Workspace, run: Run) -> None:
        settings = _plain(work.config, bias)
        model = new_mf(work.dataset, settings, work.config.seed)
        fit_collab(model, work.dataset, settings, work.config.seed, log=run.append_log, label=label)
        model.forget_unseen(*distinct_ids(work.dataset.part("train")))
        run.save_tensors("mf", {k: v.numpy() for k, v in model.state_dict().items()})

    def score(work: Workspace, run: Run, rows: np.ndarray) -> np.ndarray:
        model = new_mf(work.dataset, _plain(work.config, bias), 0)
        model.load_state_dict({k: torch.from_numpy(v) for k, v in run.tensors("mf").items()})
        return sigmoid(mf_log_odds(model, work.dataset, rows))

    return System(name, label, lambda config: {"mf": _plain(config, bias)}, fit, score)


MF = _system("mf", "MF", bias=False)
MF_BIAS = _system("mf_bias", "MF + biases", bias=True)
