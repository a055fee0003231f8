"""LLM-free control: the vectors that SeLLa-Rec hands to the language model, through a small MLP instead.

Not in the paper. What SeLLa-Rec gains over it is what the language model itself adds.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from sellarec.config import Config
from sellarec.evaluation import auc
from sellarec.runs import Run
from sellarec.systems.base import System, Workspace, sigmoid
from sellarec.systems.sella import stage3_rows

HIDDEN, EPOCHS, BATCH, LEARNING_RATE = 256, 20, 256, 1e-3


def _vectors(work: Workspace) -> tuple[Tensor, Tensor]:
    """What stage 2 knows of each user, (n_users + 1, a), and of each item, (n_items + 1, b)."""
    t = {k: torch.from_numpy(v) for k, v in work.run("sella_collab").tensors("aligned").items()}
    user = torch.cat([t["mf.user_embedding.weight"], t["mf.user_bias"][:, None]], dim=1)
    item = torch.cat([t["mf.item_embedding.weight"], t["mf.item_bias"][:, None], t["semantic.weight"]], dim=1)
    return user, item


def _network(work: Workspace) -> nn.Module:
    user, item = _vectors(work)
    return nn.Sequential(
        nn.Linear(user.shape[1] + item.shape[1], HIDDEN), nn.GELU(), nn.Dropout(0.2), nn.Linear(HIDDEN, 1)
    )


def _inputs(work: Workspace, rows: np.ndarray) -> Tensor:
    user, item = _vectors(work)
    part = work.dataset.interactions.iloc[rows]
    return torch.cat([user[part["user"].tolist()], item[part["item"].tolist()]], dim=1)


def fit(work: Workspace, run: Run) -> None:
    """Train on the same rows as stage 3, keep the epoch that is best on the same validation rows."""
    torch.manual_seed(work.config.seed)
    chosen = stage3_rows(work)
    valid = work.part("valid")
    x, valid_x = (_inputs(work, part.index.to_numpy()) for part in (chosen, valid))
    y = torch.from_numpy(chosen["label"].to_numpy().astype(np.float32))
    network = _network(work)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    best, state = -1.0, None
    for epoch in range(EPOCHS):
        network.train()
        for batch in torch.randperm(len(x)).split(BATCH):
            loss = nn.functional.binary_cross_entropy_with_logits(network(x[batch])[:, 0], y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            score = auc(valid["label"], network(valid_x)[:, 0].numpy())
        run.append_log({"epoch": epoch, "valid_auc": score})
        if score > best or state is None:
            best, state = score, {k: v.numpy().copy() for k, v in network.state_dict().items()}
    run.save_tensors("mlp", state)


def score(work: Workspace, run: Run, rows: np.ndarray) -> np.ndarray:
    network = _network(work).eval()
    network.load_state_dict({k: torch.from_numpy(v) for k, v in run.tensors("mlp").items()})
    with torch.inference_mode():
        return sigmoid(network(_inputs(work, rows))[:, 0].numpy())


def _settings(config: Config) -> dict:
    shape = {"hidden": HIDDEN, "epochs": EPOCHS, "batch": BATCH, "learning_rate": LEARNING_RATE}
    return {"mlp": shape, "rows": config.stage3.rows}


SYSTEM = System(
    "mlp_control", "LLM-free control (MLP)", _settings, fit, score, needs=("sella_collab",), uses_backbone=True
)
