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
from torch import Tensor, nn

from sellarec.backbone.engine import embed_rows
from sellarec.collab.alignment import contrast, fine_grained_similarity
from sellarec.collab.din import DIN
from sellarec.collab.fit import batches, fit_collab, predict
from sellarec.evaluation import check_finite
from sellarec.progress import Progress
from sellarec.runs import Run
from sellarec.settings import Config, CTRLConfig
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
    _align(model, inputs(_encoded_rows(work)), encodings, config.ctrl, config.seed, run)
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


def _align(model: DIN, rows: tuple[Tensor, ...], encodings: Tensor, config: CTRLConfig, seed: int, run: Run) -> None:
    """Train DIN, and two projections that are then thrown away, to match states and encodings of the same rows."""
    of_state, of_text = (nn.Linear(n, config.width) for n in (model.head[-1].in_features, encodings.shape[1]))
    parameters = [p for module in (model, of_state, of_text) for p in module.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate)
    random = torch.Generator().manual_seed(seed)
    model.train()
    with Progress("CTRL, alignment", config.epochs, "epochs") as progress:
        for epoch in range(config.epochs):
            losses = []
            for batch in batches(torch.randperm(len(encodings), generator=random), config.batch):
                states = of_state(model.states(*(t[batch] for t in rows)))
                similarity = fine_grained_similarity(states, of_text(encodings[batch]), config.spaces)
                loss = contrast(similarity / config.temperature)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            check_finite(np.mean(losses), f"CTRL, alignment, loss of epoch {epoch}", "lower ctrl.learning_rate")
            run.append_log({"alignment_epoch": epoch, "alignment_loss": float(np.mean(losses))})
            progress.advance(1, f"loss {np.mean(losses):.3f}")


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
