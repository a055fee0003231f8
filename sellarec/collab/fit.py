"""The training loop of the collaborative models: full passes with Adam, early stopping on validation AUC."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from sellarec.data.dataset import Dataset
from sellarec.errors import SellarecError
from sellarec.evaluation import auc
from sellarec.progress import Progress

Log = Callable[[dict], None]


@dataclass(frozen=True)
class CollabConfig:
    """Matrix factorisation and its alignment with the language model (stage 2)."""

    dim: int = 64
    """Length of user and item embeddings (paper d_C)."""
    bias: bool = True
    """User, item and global biases; the paper's model has none."""
    init_std: float = 0.1
    """Standard deviation of the initial embeddings."""
    loss: str = "bce"
    """"bce" or "mse" (Eq. 6 with its sign corrected)."""
    learning_rate: float = 1e-3
    """Adam's step size."""
    weight_decay: float = 1e-4
    """Adam's coupled L2 on all collaborative parameters."""
    batch: int = 2048
    """Rows per step."""
    epochs: int = 500
    """At most so many passes over the training part."""
    patience: int = 20
    """Stop after so many epochs without a better validation AUC."""
    alignment: float = 1.0
    """Weight of the InfoNCE loss (paper lambda); 0 trains plain MF."""
    temperature: float = 0.2
    """InfoNCE temperature (paper tau)."""
    symmetric: bool = True
    """Align in both directions."""
    hold_out: bool = True
    """Ours: leave the rows on which stage 3 is trained out of stage 2. Vectors that have memorised a row's label teach
    stage 3 to trust them too much. Has no effect when stage 3 takes all rows (paper)."""


def fit_collab(
    model: nn.Module,
    dataset: Dataset,
    config: CollabConfig,
    seed: int,
    *,
    train_rows: pd.DataFrame | None = None,
    extra_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    extra_groups: Sequence[dict] = (),
    log: Log = lambda entry: None,
    label: str = "MF",
) -> float:
    """Train in place and leave the weights of the best epoch in the model.

    Args:
        model: Maps ids (B,), (B,) to log-odds (B,).
        train_rows: Interactions to train on; None takes the whole training part.
        extra_loss: Added to each batch's loss, given its users and items; reads the parameters of `extra_groups`.
        extra_groups: Parameter groups of the optimiser ("params", and "lr" if it differs) that are trained alongside,
            without weight decay.
        log: Called with one dict per epoch.

    Returns:
        The best validation AUC.

    Raises:
        SellarecError: a loss is not finite.
    """
    train_rows = dataset.part("train") if train_rows is None else train_rows
    train, valid = _tensors(train_rows), _tensors(dataset.part("valid"))
    loss_of = {"bce": binary_cross_entropy_with_logits, "mse": mse_loss}.get(config.loss)
    if loss_of is None:
        raise SellarecError(f"stage2.loss '{config.loss}' is not known. Valid: bce, mse.")
    groups = [{"params": [p for p in model.parameters() if p.requires_grad], "weight_decay": config.weight_decay}]
    groups += [{"weight_decay": 0.0, **g, "params": list(g["params"])} for g in extra_groups]
    optimizer = torch.optim.Adam(groups, lr=config.learning_rate)
    random = torch.Generator().manual_seed(seed)
    best, best_epoch, best_state = -1.0, 0, []
    trained = [model, *(p for g in groups[1:] for p in g["params"])]
    with Progress(label, config.epochs, "epochs") as progress:
        for epoch in range(config.epochs):
            total = 0.0
            for batch in torch.randperm(len(train[0]), generator=random).split(config.batch):
                user, item, target = (t[batch] for t in train)
                loss = loss_of(model(user, item), target)
                if extra_loss:
                    loss = loss + extra_loss(user, item)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(batch)
            if not np.isfinite(total):
                raise SellarecError(f"{label}: the loss became {total} in epoch {epoch}; lower stage2.learning_rate.")
            with torch.no_grad():
                score = auc(valid[2].numpy(), model(valid[0], valid[1]).numpy())
            log({"epoch": epoch, "loss": total / len(train[0]), "valid_auc": score})
            progress.advance(1, f"valid AUC {max(best, score):.4f}")
            if score > best:
                best, best_epoch = score, epoch
                best_state = [copy.deepcopy(m.state_dict() if isinstance(m, nn.Module) else m.data) for m in trained]
            elif epoch - best_epoch >= config.patience:
                break
    model.load_state_dict(best_state[0])
    for parameter, value in zip(trained[1:], best_state[1:], strict=True):
        parameter.data.copy_(value)
    return best


def _tensors(part: pd.DataFrame) -> tuple[Tensor, Tensor, Tensor]:
    user, item = (torch.from_numpy(part[c].to_numpy().astype(np.int64)) for c in ("user", "item"))
    return user, item, torch.from_numpy(part["label"].to_numpy().astype(np.float32))
