"""LightGCN (He et al., SIGIR 2020), with CoLLM's settings for MovieLens-1M.

Trained on labelled rows with the binary cross-entropy, as CoLLM does, and not with BPR on sampled negatives. Ids that
the training part never shows keep their initial vector, shrunk by the weight decay.
"""

from __future__ import annotations

from sellarec.collab.fit import user_and_item
from sellarec.collab.lightgcn import LightGCN
from sellarec.data.dataset import Dataset
from sellarec.settings import LightGCNConfig
from sellarec.systems.collaborative import collaborative_system


def _build(dataset: Dataset, config: LightGCNConfig) -> LightGCN:
    train = dataset.part("train")
    likes = user_and_item(train[train["label"] == 1])
    return LightGCN(dataset.n_users, dataset.n_items, likes, config.dim, config.layers, config.init_std)


SYSTEM = collaborative_system("lightgcn", "LightGCN", lambda config: config.lightgcn, _build)
