"""LightGCN (He et al., SIGIR 2020): embeddings smoothed over the graph of liked pairs; score = inner product."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LightGCN(nn.Module):
    """Users and items as nodes, training likes as edges, no other parameters than the embeddings.

    A node's final vector is the mean over layers 0..L of its embedding propagated with symmetric normalisation. A node
    without edges keeps a share of its own embedding only.
    """

    def __init__(
        self, n_users: int, n_items: int, likes: tuple[Tensor, Tensor], dim: int, layers: int, init_std: float = 0.1
    ) -> None:
        """
        Args:
            n_users, n_items: Largest ids; tables have one row more.
            likes: Users and items of the training positives, int64, shape (E,) each.
            dim: Length of the embeddings.
            layers: How often neighbours are averaged.
        """
        super().__init__()
        self.layers, self.n_users = layers, n_users + 1
        self.embedding = nn.Embedding(self.n_users + n_items + 1, dim)
        nn.init.normal_(self.embedding.weight, std=init_std)
        self.register_buffer(
            "graph", _normalized(likes[0], likes[1] + self.n_users, len(self.embedding.weight)), persistent=False
        )

    def node_vectors(self) -> Tensor:
        """Final vectors of all users, then all items, shape (n_users + n_items + 2, dim)."""
        layer = total = self.embedding.weight
        for _ in range(self.layers):
            layer = torch.sparse.mm(self.graph, layer)
            total = total + layer
        return total / (self.layers + 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Log-odds that each user likes each item; ids (B,) int64 → (B,) float32."""
        nodes = self.node_vectors()
        return (nodes[user] * nodes[item + self.n_users]).sum(dim=-1)


def _normalized(source: Tensor, target: Tensor, n: int) -> Tensor:
    """Both directions of the edges with weights 1 / sqrt(degree x degree), as a sparse (n, n) matrix."""
    ends = torch.stack([torch.cat([source, target]), torch.cat([target, source])])
    adjacency = torch.sparse_coo_tensor(ends, torch.ones(ends.shape[1]), (n, n), check_invariants=True).coalesce()
    ends, weight = adjacency.indices(), adjacency.values()
    degree = torch.zeros(n).index_add_(0, ends[0], weight).clamp(min=1)
    weight = weight * (degree[ends[0]] * degree[ends[1]]).rsqrt()
    return torch.sparse_coo_tensor(ends, weight, (n, n), check_invariants=True).coalesce()
