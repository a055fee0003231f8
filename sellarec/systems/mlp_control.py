"""Control: what SeLLa-Rec's soft tokens are made of, through a small MLP instead of the language model.

Not in the paper. What SeLLa-Rec gains over it is what a language model that answers, and its text, add; the semantic
vectors that it reads come from the language model of stage 1. The control also gets the stage-2 log-odds, a product
that an MLP cannot form by itself, and is selected on the whole validation part.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from sellarec.checks import check_selectable
from sellarec.collab.mlp import fit_mlp, new_mlp
from sellarec.collab.records import item_facts
from sellarec.errors import SellarecError
from sellarec.runs import Run
from sellarec.settings import MLP_INPUTS, Config
from sellarec.systems.base import System, Workspace
from sellarec.systems.cold_users import hide_users
from sellarec.systems.rows import row_inputs, stage3_rows
from sellarec.systems.scores import sigmoid
from sellarec.systems.sella_collab import aligned_parts
from sellarec.systems.weights import save_state, saved_state

LEARNT = {"vectors", "semantic", "score"}
"""The inputs that come from stages 1 and 2."""


def _inputs(work: Workspace, rows: np.ndarray, new_user: np.ndarray | None = None) -> Tensor:
    """What `mlp.inputs` names, side by side, shape (n, inputs), float32."""
    read = work.config.mlp.input_names
    user, item, *records = row_inputs(work, rows, new_user)
    known = {"records": records if work.config.stage3.records else []}
    known["facts"] = [item_facts(work.dataset)[item]] if work.config.stage3.facts else []
    if not LEARNT.isdisjoint(read):
        mf, _, semantic = aligned_parts(work)
        with torch.no_grad():
            known["vectors"] = [mf.user_features(user), mf.item_features(item)]
            known["semantic"], known["score"] = [semantic(item)], [mf(user, item)[:, None]]
    return torch.cat([part for name in MLP_INPUTS if name in read for part in known[name]], dim=1)


def fit(work: Workspace, run: Run) -> None:
    """Train on the same rows as stage 3, keep the epoch that is best on the validation part."""
    config = work.config.mlp
    torch.manual_seed(work.config.seed + config.start)
    chosen, valid = stage3_rows(work), work.dataset.part("valid")
    check_selectable(work.dataset.name, valid["label"], "the MLP")
    rows = chosen.index.to_numpy()
    x = _inputs(work, rows, hide_users(work, rows, work.config.stage3.cold_users))
    valid_x = _inputs(work, valid.index.to_numpy())
    y = torch.from_numpy(chosen["label"].to_numpy().astype(np.float32))
    state = fit_mlp((x, y), (valid_x, valid["label"].to_numpy()), config, run.append_log)
    save_state(run, "mlp", state)


def score(work: Workspace, run: Run, rows: np.ndarray) -> np.ndarray:
    x = _inputs(work, rows)
    network = new_mlp(x.shape[1], work.config.mlp).eval()
    network.load_state_dict(saved_state(run, "mlp"))
    with torch.inference_mode():
        return sigmoid(network(x)[:, 0].numpy())


def _settings(config: Config) -> dict:
    shape = {name: getattr(config.mlp, name) for name in ("hidden", "epochs", "batch", "learning_rate")}
    read = {name: getattr(config.stage3, name) for name in ("rows", "cold_users", "records", "facts")}
    if not any(read.get(name, True) for name in config.mlp.input_names):
        raise SellarecError(f"mlp.inputs '{config.mlp.inputs}' leaves the MLP nothing to read: stage3 has none of it.")
    # `shape` says again what `mlp` says: keys of earlier runs hold it
    return {"shape": shape, "mlp": config.mlp, "stage1_rows": config.stage1.rows, **read}


SYSTEM = System(
    "mlp_control",
    "MLP over the tokens' inputs",
    _settings,
    fit,
    score,
    needs=("sella_collab",),
    uses_backbone=True,
)


def _reading(name: str, label: str, inputs: str) -> System:
    return dataclasses.replace(SYSTEM, name=name, label=label, changes={"mlp.inputs": inputs})


FEWER_INPUTS = (
    _reading("mlp_no_score", "MLP without stage 2's log-odds", "vectors,semantic,records,facts"),
    _reading("mlp_no_vectors", "MLP without collaborative vectors", "semantic,records,facts"),
    _reading("mlp_no_semantic", "MLP without the title's vector", "vectors,score,records,facts"),
    dataclasses.replace(
        SYSTEM,
        name="mlp_records",
        label="MLP on counts, genres and year",
        changes={"mlp.inputs": "records,facts", "stage3.records": True, "stage3.facts": True},
        needs=(),
        uses_backbone=False,
    ),
)
"""The control with less to read: which of the inputs its answers rest on. The last one needs no language model, and is
the same whatever the tokens hold."""
