"""The training loop of the collaborative models: full passes with Adam, early stopping on validation AUC, resumable."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from sellarec.checks import check_finite, check_selectable
from sellarec.data.dataset import Dataset
from sellarec.distributed import is_main
from sellarec.errors import SellarecError
from sellarec.evaluation import auc
from sellarec.progress import Progress
from sellarec.settings import FitConfig

Log = Callable[[dict], None]
Inputs = Callable[[pd.DataFrame], tuple[Tensor, ...]]

CHECKPOINT_SECONDS = 30.0
"""Seconds of work that a killed training loses at most, and one epoch."""


def user_and_item(rows: pd.DataFrame) -> tuple[Tensor, ...]:
    """What a model without histories reads of some interactions: users and items, int64, shape (n,) each."""
    return tuple(torch.from_numpy(rows[c].to_numpy().astype(np.int64)) for c in ("user", "item"))


def fit_collab(
    model: nn.Module,
    dataset: Dataset,
    config: FitConfig,
    seed: int,
    *,
    inputs: Inputs = user_and_item,
    train_rows: pd.DataFrame | None = None,
    extra_loss: Callable[..., Tensor] | None = None,
    extra_groups: Sequence[dict] = (),
    each_epoch: Callable[[int], None] = lambda epoch: None,
    checkpoint: Path | None = None,
    log: Log = lambda entry: None,
    label: str = "MF",
) -> float:
    """Train in place and leave the weights of the best epoch in the model.

    Args:
        model: Maps a batch of `inputs` to log-odds (B,). Training runs on the device that it is on.
        inputs: What the model reads of some interactions, tensors of shape (n, ...); users and items come first.
        train_rows: Interactions to train on; None takes the whole training part.
        extra_loss: Added to each batch's loss, given its inputs; reads the parameters of `extra_groups`.
        extra_groups: Parameter groups of the optimiser ("params", and "lr" if it differs) that are trained alongside,
            without weight decay.
        each_epoch: Called before each epoch with its number, from 0.
        checkpoint: File from which a second call goes on, to the same bytes; the caller removes it. None keeps none.
        log: Called when training is done, with one dict per epoch.

    Returns:
        The best validation AUC.

    Raises:
        SellarecError: a loss is not finite, all validation labels are the same, or the checkpoint is damaged or of
            another model.
    """
    train_rows = dataset.part("train") if train_rows is None else train_rows
    valid_rows = dataset.part("valid")
    check_selectable(dataset.name, valid_rows["label"], label)
    device = next(model.parameters()).device
    train, valid = ([t.to(device) for t in inputs(rows)] for rows in (train_rows, valid_rows))
    labels = torch.from_numpy(train_rows["label"].to_numpy().astype(np.float32)).to(device)
    loss_of = {"bce": binary_cross_entropy_with_logits, "mse": mse_loss}[config.loss]
    groups = [{"params": [p for p in model.parameters() if p.requires_grad], "weight_decay": config.weight_decay}]
    groups += [{"weight_decay": 0.0, **g, "params": list(g["params"])} for g in extra_groups]
    optimizer = torch.optim.Adam(groups, lr=config.learning_rate)
    trained = nn.ModuleList([model, nn.ParameterList(p for g in groups[1:] for p in g["params"])])
    state = _State(trained, optimizer, seed)
    if checkpoint and checkpoint.exists():
        state.load(checkpoint)
        print(f"{label}: going on from epoch {state.epoch}", flush=True)

    saved = time.monotonic()
    with Progress(label, config.epochs, "epochs", done=state.epoch) as progress:
        while state.epoch < config.epochs and state.epoch - state.best_epoch <= config.patience:
            total = torch.zeros((), dtype=torch.float64, device=device)  # not asked in between: a GPU would halt
            each_epoch(state.epoch)
            model.train()
            order = torch.randperm(len(labels), generator=state.random).to(device)
            for batch in batches(order, config.batch):
                read = [t[batch] for t in train]
                loss = loss_of(model(*read), labels[batch])
                if extra_loss:
                    loss = loss + extra_loss(*read)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach().double() * len(batch)
            loss, found = total.item() / len(labels), predict(model, valid)
            for what, values in (("loss", loss), ("scores", found)):
                check_finite(values, f"{label}, {what} of epoch {state.epoch}", "lower its learning_rate")
            state.end_epoch(loss, auc(valid_rows["label"].to_numpy(), found))
            progress.advance(1, f"valid AUC {state.best:.4f}")
            if checkpoint and is_main() and time.monotonic() - saved > CHECKPOINT_SECONDS:
                state.save(checkpoint)
                saved = time.monotonic()
    state.trained.load_state_dict(state.best_weights)
    for entry in state.log:
        log(entry)
    return state.best


class _State:
    """Where a training stands.

    Attributes:
        trained: All that is trained.
        epoch: Epochs done.
        best, best_epoch, best_weights: The highest validation AUC, the epoch that had it, from 0, and its weights.
        log: One dict per epoch.
    """

    def __init__(self, trained: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        self.trained, self.optimizer = trained, optimizer
        self.random = torch.Generator().manual_seed(seed)
        self.epoch, self.best, self.best_epoch = 0, -1.0, 0
        self.best_weights: dict[str, Tensor] = {}
        self.log: list[dict] = []

    def end_epoch(self, loss: float, score: float) -> None:
        self.log.append({"epoch": self.epoch, "loss": loss, "valid_auc": score})
        if score > self.best:
            self.best, self.best_epoch = score, self.epoch
            self.best_weights = copy.deepcopy(self.trained.state_dict())
        self.epoch += 1

    def save(self, file: Path) -> None:
        """Write beside the old file, then swap: a kill in between leaves the old one."""
        plain = {n: getattr(self, n) for n in ("epoch", "best", "best_epoch", "best_weights", "log")}
        parts = {"trained": self.trained.state_dict(), "optimizer": self.optimizer.state_dict()}
        drawn = {"order": self.random.get_state(), "dropout": torch.get_rng_state()}
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_name(f"{file.name}.new")
        torch.save({"plain": plain, **parts, **drawn}, fresh)
        os.replace(fresh, file)

    def load(self, file: Path) -> None:
        try:
            found = torch.load(file, weights_only=True, map_location="cpu")  # each part copies it to where it is
            self.trained.load_state_dict(found["trained"])
            self.optimizer.load_state_dict(found["optimizer"])
        except (RuntimeError, ValueError, KeyError, EOFError, UnpicklingError) as error:
            raise SellarecError(f"{file} is damaged, or of another model or version of the code. Remove it.") from error
        self.random.set_state(found["order"])
        torch.set_rng_state(found["dropout"])
        vars(self).update(found["plain"])


def batches(order: Tensor, size: int) -> list[Tensor]:
    """Consecutive pieces; a last piece of one row, of which batch norm makes nothing, joins the one before it."""
    pieces = list(order.split(size))
    if len(pieces) > 1 and len(pieces[-1]) == 1:
        pieces[-2:] = [torch.cat(pieces[-2:])]
    return pieces


@torch.inference_mode()
def predict(model: nn.Module, inputs: Sequence[Tensor], batch: int = 8192) -> np.ndarray:
    """The model's log-odds, shape (n,), float32; in pieces, so that memory stays bounded. Inputs are where it is."""
    model.eval()
    pieces = [model(*(t[i : i + batch] for t in inputs)) for i in range(0, len(inputs[0]), batch)]
    return torch.cat(pieces).cpu().numpy()
