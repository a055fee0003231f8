"""Binary matrix factorisation (BinLLM): users and items as strings of bits, score = inner product."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BinaryMF(nn.Module):
    """Embeddings that are mapped, squashed and cut to signs; the cut passes gradients as if it were not there.

    In training an entry is read as its sign with probability `binary_share` and as it is otherwise; signs alone from
    the start leave little to follow. Row 0 of both tables is the unknown id.
    """

    def __init__(self, n_users: int, n_items: int, dim: int, *, init_std: float = 0.1) -> None:
        """
        Args:
            n_users, n_items: Largest ids; tables have one row more.
            dim: Length of the embeddings and bits of a code.
        """
        super().__init__()
        self.user_embedding, self.item_embedding = nn.Embedding(n_users + 1, dim), nn.Embedding(n_items + 1, dim)
        self.user_map, self.item_map = nn.Linear(dim, dim), nn.Linear(dim, dim)
        for table in (self.user_embedding, self.item_embedding):
            nn.init.normal_(table.weight, std=init_std)
        self.binary_share = 0.0

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Log-odds; ids (B,) int64 → (B,) float32."""
        return (self._binarized(self._user(user)) * self._binarized(self._item(item))).sum(dim=-1)

    @torch.no_grad()
    def user_bits(self, user: Tensor) -> Tensor:
        """Ids (B,) → (B, dim), bool."""
        return self._user(user) >= 0

    @torch.no_grad()
    def item_bits(self, item: Tensor) -> Tensor:
        """Ids (B,) → (B, dim), bool."""
        return self._item(item) >= 0

    def _user(self, user: Tensor) -> Tensor:
        return torch.tanh(self.user_map(self.user_embedding(user)))

    def _item(self, item: Tensor) -> Tensor:
        return torch.tanh(self.item_map(self.item_embedding(item)))

    def _binarized(self, values: Tensor) -> Tensor:
        sign = torch.where(values >= 0, 1.0, -1.0)
        sign = values + (sign - values).detach()
        if not self.training:
            return sign
        return torch.where(torch.rand_like(values) < self.binary_share, sign, values)


def bits_text(bits: Tensor) -> str:
    """One code (dim,) bool as ones and zeros: "0110…"."""
    return "".join("1" if b else "0" for b in bits.tolist())


def dotted_text(bits: Tensor) -> str:
    """One code as decimals of eight bits each, like an IP address: "172.16.254.1". `dim` must be a multiple of 8."""
    text = bits_text(bits)
    return ".".join(str(int(text[i : i + 8], 2)) for i in range(0, len(text), 8))
