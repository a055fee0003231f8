"""The contrastive loss of stage 2 (paper Eq. 8, with the logarithm and the denominator that InfoNCE has)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


def info_nce(projected: Tensor, semantic: Tensor, temperature: float, *, symmetric: bool = True) -> Tensor:
    """InfoNCE over unique items: each projected vector should be nearest to its own semantic vector.

    Args:
        projected: Projected collaborative item vectors, shape (n, d_L).
        semantic: The same items' semantic vectors, shape (n, d_L). Items must be distinct: a repeated item would be
            its own false negative.
        temperature: Divides the cosine similarities (paper tau).
        symmetric: Average both directions; False keeps only projected → semantic.

    Returns:
        Scalar loss; log(n) at chance.
    """
    cosine = normalize(projected, dim=1) @ normalize(semantic, dim=1).T
    return contrast(cosine / temperature, symmetric=symmetric)


def contrast(similarity: Tensor, *, symmetric: bool = True) -> Tensor:
    """Cross-entropy of telling each row's own partner, on the diagonal of similarities (n, n), from all others."""
    target = torch.arange(len(similarity), device=similarity.device)
    loss = cross_entropy(similarity, target)
    return (loss + cross_entropy(similarity.T, target)) / 2 if symmetric else loss


def fine_grained_similarity(left: Tensor, right: Tensor, spaces: int) -> Tensor:
    """CTRL's similarity: each part of the left vector with the right vector's nearest part, summed.

    Args:
        left, right: Shape (n, d) and (m, d); d must be a multiple of `spaces`.

    Returns:
        Shape (n, m), within ±spaces: parts are scaled to length 1.
    """
    left, right = (normalize(t.unflatten(1, (spaces, -1)), dim=2) for t in (left, right))
    return torch.einsum("nsd,mtd->nmst", left, right).amax(dim=3).sum(dim=2)
