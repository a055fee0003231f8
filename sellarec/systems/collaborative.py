"""What the collaborative baselines have in common: trained on labelled rows, saved whole, scored by row."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from sellarec.collab.fit import Inputs, fit_collab, predict, user_and_item
from sellarec.data.dataset import Dataset
from sellarec.runs import Run
from sellarec.settings import Config, FitConfig
from sellarec.systems.base import System, Workspace
from sellarec.systems.scores import as_probability, scored_by
from sellarec.systems.weights import save_state, saved_state


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
    rows: Callable[[Workspace], pd.DataFrame] = lambda work: work.dataset.part("train"),
    each_epoch: Callable[[nn.Module, Any, int], None] = lambda model, settings, epoch: None,
    finish: Callable[[nn.Module, pd.DataFrame], None] = lambda model, train: None,
) -> System:
    """A baseline of the tables.

    Args:
        settings: Its settings in the configuration.
        build: The untrained model for a dataset and these settings.
        inputs: What the model reads of interactions.
        rows: The training rows that it learns from.
        each_epoch: Called with the model before each epoch, with its number.
        finish: Applied to the trained model with these rows.
    """

    def fit(work: Workspace, run: Run) -> None:
        config, dataset, chosen = settings(work.config), work.dataset, rows(work)
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
            train_rows=chosen,
            each_epoch=partial(each_epoch, model, config),
            checkpoint=checkpoint,
            log=run.append_log,
            label=label,
        )
        finish(model, chosen)
        save_state(run, "model", model.state_dict())

    def score(work: Workspace, run: Run, rows: np.ndarray) -> np.ndarray:
        config, dataset = settings(work.config), work.dataset
        model = build(dataset, config)
        model.load_state_dict(saved_state(run, "model"))
        output = predict(model, inputs(dataset, config)(dataset.interactions.iloc[rows]))
        return as_probability(output, config.loss)

    def keyed(config: Config) -> dict:
        return {name: settings(config), **scored_by(settings(config).loss)}

    return System(name, label, keyed, fit, score)
