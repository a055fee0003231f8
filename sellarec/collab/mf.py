"""Matrix factorisation with biases: score = <e_u, e_i> + b_u + b_i + b."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MatrixFactorization(nn.Module):
    """Scores user-item pairs and hands out the collaborative vectors that the language model is given.

    Row 0 of every table is the unknown id. Ids that the training part never shows keep vectors of zero and a bias of
    zero, so that an unseen user is an average user rather than a random one.
    """

    def __init__(self, n_users: int, n_items: int, dim: int, *, bias: bool = True, init_std: float = 0.1) -> None:
        """
        Args:
            n_users, n_items: Largest ids; tables have one row more.
            dim: Length of the embeddings (paper d_C).
            bias: False for the published model, which has none.
            init_std: Standard deviation of the normal initialisation. The published 1.0 leaves some seeds at chance.
        """
        super().__init__()
        self.user_embedding = nn.Embedding(n_users + 1, dim)
        self.item_embedding = nn.Embedding(n_items + 1, dim)
        nn.init.normal_(self.user_embedding.weight, std=init_std)
        nn.init.normal_(self.item_embedding.weight, std=init_std)
        self.user_bias = nn.Parameter(torch.zeros(n_users + 1), requires_grad=bias)
        self.item_bias = nn.Parameter(torch.zeros(n_items + 1), requires_grad=bias)
        self.bias = nn.Parameter(torch.zeros(()), requires_grad=bias)

    @property
    def feature_dim(self) -> int:
        """Length of `user_features` and `item_features`: the vector and the bias side by side."""
        return self.user_embedding.embedding_dim + 1

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Log-odds that each user likes each item; ids (B,) int64 → (B,) float32."""
        dot = (self.user_embedding(user) * self.item_embedding(item)).sum(dim=-1)
        return dot + self.user_bias[user] + self.item_bias[item] + self.bias

    def user_features(self, user: Tensor) -> Tensor:
        """What the projection reads of users: (B,) → (B, dim + 1)."""
        return torch.cat([self.user_embedding(user), self.user_bias[user, None]], dim=-1)

    def item_features(self, item: Tensor) -> Tensor:
        """What the projection reads of items: (B,) → (B, dim + 1)."""
        return torch.cat([self.item_embedding(item), self.item_bias[item, None]], dim=-1)

    @torch.no_grad()
    def forget_unseen(self, users: Tensor, items: Tensor) -> None:
        """Zero the rows of all ids that are not among the given training ids."""
        for table, seen in (
            (self.user_embedding.weight, users),
            (self.user_bias, users),
            (self.item_embedding.weight, items),
            (self.item_bias, items),
        ):
            zero_unseen(table, seen)


@torch.no_grad()
def zero_unseen(table: Tensor, seen: Tensor) -> None:
    """Zero, in place, all rows of a table but the given ones."""
    unseen = torch.ones(len(table), dtype=torch.bool)
    unseen[seen] = False
    table[unseen] = 0


class Projection(nn.Module):
    """Collaborative features → the language model's space: two layers with GELU (paper Eq. 7, Proj^{C→L})."""

    def __init__(self, in_dim: int, out_dim: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or 4 * in_dim
        self.layers = nn.Sequential(nn.Linear(in_dim, hidden), nn.GELU(), nn.Linear(hidden, out_dim))

    def forward(self, features: Tensor) -> Tensor:
        """(..., in_dim) → (..., out_dim)."""
        return self.layers(features)
