"""SASRec (Kang and McAuley, ICDM 2018): self-attention over the liked items; score = <last state, target item>."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SASRec(nn.Module):
    """A causal transformer over a history, judged on labelled rows (CoLLM's use of it) and not on next items."""

    def __init__(
        self,
        n_items: int,
        length: int,
        dim: int,
        *,
        blocks: int = 2,
        heads: int = 1,
        dropout: float = 0.2,
        init_std: float = 0.1,
    ) -> None:
        """
        Args:
            n_items: Largest item id; row 0 is padding and the empty history.
            length: Items of a history that are read, the latest ones.
        """
        super().__init__()
        self.item_embedding = nn.Embedding(n_items + 1, dim, padding_idx=0)
        self.position_embedding = nn.Embedding(length, dim)
        nn.init.normal_(self.item_embedding.weight, std=init_std)
        nn.init.normal_(self.position_embedding.weight, std=init_std)
        with torch.no_grad():
            self.item_embedding.weight[0] = 0
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_Block(dim, heads, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(dim)

    def last_state(self, history: Tensor) -> Tensor:
        """The last position's state, (B, dim), of left-padded histories (B, length) int64.

        Nothing reads the other positions of the last block, so only the last one is computed there.
        """
        real = (history > 0)[..., None]
        places = torch.arange(history.shape[1], device=history.device)
        states = self.item_embedding(history) * self.item_embedding.embedding_dim**0.5
        states = self.dropout(states + self.position_embedding(places)) * real
        future = torch.ones(len(places), len(places), dtype=torch.bool, device=history.device).triu(1)
        for block in self.blocks[:-1]:
            states = block(states, states, future) * real
        return self.norm(self.blocks[-1](states[:, -1:], states, None) * real[:, -1:])[:, 0]

    def forward(self, user: Tensor, item: Tensor, history: Tensor) -> Tensor:
        """Ids (B,), (B,) and histories (B, length) → log-odds (B,). Users enter through their histories only."""
        return (self.last_state(history) * self.item_embedding(item)).sum(dim=-1)


class _Block(nn.Module):
    """Attention on normalized queries, then a two-layer network at each position, both with residuals."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.network_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.network = nn.Sequential(
            nn.Linear(dim, dim), nn.Dropout(dropout), nn.ReLU(), nn.Linear(dim, dim), nn.Dropout(dropout)
        )

    def forward(self, at: Tensor, states: Tensor, future: Tensor | None) -> Tensor:
        """Positions `at` (B, q, dim), attending to the `states` (B, length, dim) that `future` (q, length) leaves."""
        query = self.attention_norm(at)
        attended = query + self.attention(query, states, states, attn_mask=future, need_weights=False)[0]
        normalized = self.network_norm(attended)
        return normalized + self.network(normalized)
