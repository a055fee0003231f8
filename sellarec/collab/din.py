"""DIN (Zhou et al., KDD 2018): the history is weighted by its relevance to the target item."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Dice(nn.Module):
    """DIN's activation: a leaky unit whose switching point follows the batch's distribution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dim, affine=False)
        self.alpha = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        gate = self.norm(x.reshape(-1, x.shape[-1])).reshape(x.shape).sigmoid()
        return gate * x + (1 - gate) * self.alpha * x


class DIN(nn.Module):
    """Target item, attended history and user through a small network.

    As in CoLLM: the history has a table of its own, attention weights are not softmaxed, padded places weigh 0.
    """

    def __init__(self, n_users: int, n_items: int, dim: int, *, dropout: float = 0.2) -> None:
        """
        Args:
            n_users, n_items: Largest ids; tables have one row more, row 0 is padding.
        """
        super().__init__()
        self.user_embedding = nn.Embedding(n_users + 1, dim)
        self.item_embedding = nn.Embedding(n_items + 1, dim)
        self.history_embedding = nn.Embedding(n_items + 1, dim, padding_idx=0)
        self.relevance = nn.Sequential(nn.Linear(4 * dim, 64), Dice(64), nn.Linear(64, 16), nn.Linear(16, 1))
        self.head = nn.Sequential(
            *(nn.Linear(3 * dim, 200), Dice(200), nn.Dropout(dropout)),
            *(nn.Linear(200, 80), Dice(80), nn.Dropout(dropout)),
            nn.Linear(80, 1),
        )
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.xavier_normal_(module.weight)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            self.history_embedding.weight[0] = 0

    def forward(self, user: Tensor, item: Tensor, history: Tensor) -> Tensor:
        """Ids (B,), (B,) and padded histories (B, length) int64 → log-odds (B,)."""
        return self.head[-1](self.states(user, item, history))[:, 0]

    def states(self, user: Tensor, item: Tensor, history: Tensor) -> Tensor:
        """What the last layer reads of the same inputs, shape (B, 80)."""
        target, liked = self.item_embedding(item), self.history_embedding(history)
        query = target[:, None].expand_as(liked)
        weight = self.relevance(torch.cat([query, liked, query - liked, query * liked], dim=-1))
        interest = (weight * (history > 0)[..., None] * liked).sum(dim=1)
        return self.head[:-1](torch.cat([target, interest, self.user_embedding(user)], dim=-1))
