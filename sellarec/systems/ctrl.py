"""CTRL(DIN) (Li et al., 2023): DIN first learns to recognise how a language model reads its row, then to predict.

The first step is contrastive: of a batch of rows, DIN's state of each has to be told apart from all others by the text
encoding of its own row, and the other way round; vectors are compared part by part. The second step trains DIN alone on
the labels, and DIN alone scores.

Deviations: the text encoder is this suite's backbone, untuned and frozen, and reads the prompt of the other systems
(CTRL trains a RoBERTa along, on a text of the row's features); only the rows of stages 1 and 3 are encoded.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sellarec.backbone.engine import embed_rows
from sellarec.collab.encodings import align_with_encodings
from sellarec.collab.fit import fit_collab, predict
from sellarec.runs import Run
from sellarec.settings import Config
from sellarec.systems.base import System, Workspace
from sellarec.systems.collaborative import with_history
from sellarec.systems.din import new_din
from sellarec.systems.row_prompts import prompts_of
from sellarec.systems.rows import stage1_rows, stage3_rows
from sellarec.systems.scores import as_probability, scored_by
from sellarec.systems.semantic import standardized
from sellarec.systems.weights import save_state, saved_state


def fit(work: Workspace, run: Run) -> None:
    config, dataset = work.config, work.dataset
    encodings = _encode(work, run)
    torch.manual_seed(config.seed)
    model = new_din(dataset, config.din)
    inputs = with_history(dataset, config.din.history)
    align_with_encodings(model, inputs(_encoded_rows(work)), encodings, config.ctrl, config.seed, run.append_log)
    fit_collab(
        model,
        dataset,
        config.din,
        config.seed,
        inputs=inputs,
        checkpoint=run.scratch("fit") / "checkpoint.pt",
        log=run.append_log,
        label="CTRL, DIN on labels",
    )
    save_state(run, "model", model.state_dict())


def _encoded_rows(work: Workspace) -> pd.DataFrame:
    """The training rows that the language models of the other systems read."""
    return work.dataset.interactions.loc[stage1_rows(work).index.union(stage3_rows(work).index)]


def _encode(work: Workspace, run: Run) -> Tensor:
    """The untuned language model's last state of each of these rows, standardized, shape (n, d_L)."""
    rows = prompts_of(work, work.base_model, _encoded_rows(work).index.to_numpy())
    kept = run.scratch("encodings")
    kept.mkdir(exist_ok=True)
    states = embed_rows(work.base_model, rows, label="CTRL, encoding rows", resume=kept / "encodings.npy")
    return torch.from_numpy(standardized(states))


def score(work: Workspace, run: Run, rows: np.ndarray) -> np.ndarray:
    model = new_din(work.dataset, work.config.din)
    model.load_state_dict(saved_state(run, "model"))
    inputs = with_history(work.dataset, work.config.din.history)
    return as_probability(predict(model, inputs(work.dataset.interactions.iloc[rows])), work.config.din.loss)


def _settings(config: Config) -> dict:
    rows = [config.stage1.rows, config.stage3.rows]
    settings = {"prompt": config.prompt, "din": config.din, "ctrl": config.ctrl, "rows": rows}
    return settings | scored_by(config.din.loss)


SYSTEM = System("ctrl", "CTRL(DIN)", _settings, fit, score, uses_backbone=True)
