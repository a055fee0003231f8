"""DIN (Zhou et al., KDD 2018), in the shape and with the settings of CoLLM for MovieLens-1M.

CoLLM published no training script for it; the training is that of its other baselines. Deviation: the batch norm inside
Dice has no scale and shift of its own.
"""

from __future__ import annotations

from sellarec.collab.din import DIN
from sellarec.data.dataset import Dataset
from sellarec.settings import DINConfig
from sellarec.systems.collaborative import collaborative_system, with_history


def new_din(dataset: Dataset, config: DINConfig) -> DIN:
    """An untrained model of the dataset's size."""
    return DIN(dataset.n_users, dataset.n_items, config.dim, dropout=config.dropout)


SYSTEM = collaborative_system(
    "din",
    "DIN",
    lambda config: config.din,
    new_din,
    inputs=lambda dataset, config: with_history(dataset, config.history),
)
