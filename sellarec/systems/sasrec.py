"""SASRec (Kang and McAuley, ICDM 2018), with CoLLM's settings for MovieLens-1M.

Trained on labelled rows with the binary cross-entropy, as CoLLM does, and not on next items with sampled negatives.
Deviations: embeddings start at a standard deviation of 0.1; layer norms have PyTorch's epsilon of 1e-5, CoLLM's have
1e-8. As in CoLLM, padded places are zero but may be attended to.

On MovieLens-1M these settings leave no attention: Adam's coupled weight decay of 1e-2 drives the blocks' weights to
zero, and what is left ranks items, whatever the history (benchmarks/histories.py, docs/results.md).
"""

from __future__ import annotations

from sellarec.collab.sasrec import SASRec
from sellarec.data.dataset import Dataset
from sellarec.settings import SASRecConfig
from sellarec.systems.collaborative import collaborative_system, with_history


def _build(dataset: Dataset, config: SASRecConfig) -> SASRec:
    return SASRec(
        dataset.n_items,
        config.history,
        config.dim,
        blocks=config.blocks,
        heads=config.heads,
        dropout=config.dropout,
        init_std=config.init_std,
    )


SYSTEM = collaborative_system(
    "sasrec",
    "SASRec",
    lambda config: config.sasrec,
    _build,
    inputs=lambda dataset, config: with_history(dataset, config.history),
)
