"""What the collaborative baselines have in common: trained on labelled rows, saved whole, scored by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from sellarec.collab.fit import Inputs, fit_collab, predict, user_and_item
from sellarec.data.dataset import Dataset
from sellarec.runs import Run
from sellarec.settings import Config, FitConfig
from sellarec.systems.base import System, Workspace, sigmoid


def distinct_ids(rows: pd.DataFrame) -> tuple[Tensor, Tensor]:
    """The distinct users and items of some interactions, int64."""
    return tuple(torch.from_numpy(np.unique(rows[c]).astype(np.int64)) for c in ("user", "item"))


def with_history(dataset: Dataset, length: int) -> Inputs:
    """Inputs of a model that reads users, items and the last `length` liked items."""

    def inputs(rows: pd.DataFrame) -> tuple[Tensor, ...]:
        return *user_and_item(rows), torch.from_numpy(dataset.padded_histories(rows.index.to_numpy(), length))

    return inputs


def collaborative_system(
    name: str,
    label: str,
    settings: Callable[[Config], FitConfig],
    build: Callable[[Dataset, Any], nn.Module],
    *,
    inputs: Callable[[Dataset, Any], Inputs] = lambda dataset, settings: user_and_item,
    finish: Callable[[nn.Module, pd.DataFrame], None] = lambda model, train: None,
) -> System:
    """A baseline of the tables.

    Args:
        settings: Its settings in the configuration.
        build: The untrained model for a dataset and these settings.
        inputs: What the model reads of interactions.
        finish: Applied to the trained model with the training part.
    """

    def fit(work: Workspace, run: Run) -> None:
        config, dataset = settings(work.config), work.dataset
        torch.manual_seed(work.config.seed)
        model = build(dataset, config)
        read = inputs(dataset, config)
        checkpoint = run.scratch("fit") / "checkpoint.pt"
        fit_collab(
            model,
            dataset,
            config,
            work.config.seed,
            inputs=read,
            checkpoint=checkpoint,
            log=run.append_log,
            label=label,
        )
        finish(model, dataset.part("train"))
        run.save_tensors("model", {k: v.numpy() for k, v in model.state_dict().items()})

    def score(work: Workspace, run: Run, rows: np.ndarray) -> np.ndarray:
        config, dataset = settings(work.config), work.dataset
        model = build(dataset, config)
        model.load_state_dict({k: torch.from_numpy(v) for k, v in run.tensors("model").items()})
        return sigmoid(predict(model, inputs(dataset, config)(dataset.interactions.iloc[rows])))

    return System(name, label, lambda config: {name: settings(config)}, fit, score)
