"""What one would write first with Hugging Face and peft alone; `engine.py` measures against it.

Batches in file order, padded to their longest row; logits of the whole vocabulary at every position; gradients through
the whole prompt. It reads the same token ids, so that its scores are the engine's reference too. Scoring is there with
care too: rows sorted by length, and logits at the last position alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, TensorDataset

from sellarec.backbone.language_model import LanguageModel
from sellarec.backbone.token_rows import TokenRow

BATCH = {"cpu": 16, "cuda": 128}
"""Rows at once, in scoring and in training; the engine trains with as many."""


def padded(rows: Sequence[TokenRow], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask, shape (B, T), int64."""
    ids = [torch.tensor(r.prefix + r.suffix, device=device) for r in rows]
    mask = [torch.ones_like(i) for i in ids]
    return tuple(nn.utils.rnn.pad_sequence(s, batch_first=True) for s in (ids, mask))


def answers(lm: LanguageModel, logits: Tensor, mask: Tensor) -> Tensor:
    """l_Yes − l_No behind each row's last token, shape (B,)."""
    last = logits[torch.arange(len(mask), device=mask.device), mask.sum(dim=1) - 1].float()
    yes, no = lm.answer_ids
    return last[:, yes] - last[:, no]


Vectors = Callable[[np.ndarray], dict[str, Tensor]]
"""Positions of rows (B,) → for each soft token its vectors, shape (B, d_L)."""


def log_odds(lm: LanguageModel, rows: Sequence[TokenRow], at: np.ndarray, vectors: Vectors | None = None) -> Tensor:
    """Of the rows at some positions (B,), with their soft tokens, shape (B,)."""
    ids, mask = padded([rows[i] for i in at], lm.placement.device)
    embeds = lm.embed(ids)
    for token, vector in vectors(at).items() if vectors else ():
        embeds = embeds.index_put(torch.nonzero(ids == lm.soft_ids[token], as_tuple=True), vector.to(embeds))
    return answers(lm, lm.model(inputs_embeds=embeds, attention_mask=mask).logits, mask)


def chunks(positions: np.ndarray, size: int) -> list[np.ndarray]:
    """Positions, so many at a time."""
    return [positions[start : start + size] for start in range(0, len(positions), size)]


@torch.no_grad()
def scores(lm: LanguageModel, rows: Sequence[TokenRow]) -> np.ndarray:
    """Log-odds of all rows, shape (n,)."""
    batches = chunks(np.arange(len(rows)), BATCH[lm.placement.device.type])
    return torch.cat([log_odds(lm, rows, at) for at in batches]).cpu().numpy()


@torch.no_grad()
def careful_scores(lm: LanguageModel, rows: Sequence[TokenRow]) -> np.ndarray:
    """The same of batches of like lengths, with logits at each row's last token alone."""
    order, found = np.argsort([len(r) for r in rows]), []
    for at in chunks(order, BATCH[lm.placement.device.type]):
        ids, mask = padded([rows[i] for i in at], lm.placement.device)
        hidden = lm.model.base_model(ids, attention_mask=mask).last_hidden_state
        last = hidden[torch.arange(len(at), device=ids.device), mask.sum(dim=1) - 1]
        logits = lm.model.get_output_embeddings()(last).float()
        found.append(logits[:, lm.answer_ids[0]] - logits[:, lm.answer_ids[1]])
    return torch.cat(found).cpu().numpy()[np.argsort(order)]


def llama_cpp_scores(gguf: Path, answer_ids: tuple[int, int]) -> Callable[[Sequence[TokenRow]], np.ndarray]:
    """What llama.cpp makes of the same file: a function that scores rows, one after the other."""
    import llama_cpp

    longest = 1024
    llm = llama_cpp.Llama(str(gguf), n_ctx=longest, n_batch=longest, n_ubatch=longest, verbose=False)
    yes, no = answer_ids

    def scores(rows: Sequence[TokenRow]) -> np.ndarray:
        out = []
        for row in rows:
            llm.reset()
            llm.eval(row.prefix + row.suffix)
            logits = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
            out.append(logits[yes] - logits[no])
        return np.array(out, dtype=np.float32)

    return scores


def lora_steps(lm: LanguageModel, rows: Sequence[TokenRow], label: Tensor) -> Callable[[], None]:
    """One pass of LoRA over the rows; the adapter is in float32, whatever the backbone is in."""
    adapter = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(copy.deepcopy(lm.model), adapter)
    return _steps(lm.with_model(model), model, rows, label)


def soft_token_steps(
    lm: LanguageModel, rows: Sequence[TokenRow], label: Tensor, soft: nn.Module, vectors: Vectors
) -> Callable[[], None]:
    """One pass of stage 3 over the rows."""
    return _steps(lm, soft, rows, label, vectors)


def _steps(
    lm: LanguageModel, trained: nn.Module, rows: Sequence[TokenRow], label: Tensor, vectors: Vectors | None = None
) -> Callable[[], None]:
    optimizer = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], lr=1e-4)

    def steps() -> None:
        for batch in chunks(np.arange(len(rows)), BATCH[lm.placement.device.type]):
            binary_cross_entropy_with_logits(log_odds(lm, rows, batch, vectors), label[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()

    return steps


def mf_epochs(
    model: nn.Module,
    beside: list[dict],
    contrast: Callable[[Tensor, Tensor], Tensor],
    user: Tensor,
    item: Tensor,
    label: Tensor,
    batch: int,
) -> Callable[[], None]:
    """One epoch of matrix factorisation with a contrastive loss, through a DataLoader."""
    loader = DataLoader(TensorDataset(user, item, label), batch_size=batch, shuffle=True)
    optimizer = torch.optim.Adam([{"params": model.parameters()}, *beside], lr=1e-3)

    def epoch() -> None:
        for users, items, liked in loader:
            optimizer.zero_grad()
            loss = binary_cross_entropy_with_logits(model(users, items), liked) + contrast(users, items)
            loss.backward()
            optimizer.step()

    return epoch


def bootstrap(user: np.ndarray, label: np.ndarray, score: np.ndarray, resamples: int) -> np.ndarray:
    """AUC and UAUC of resampled users, shape (resamples, 2)."""
    random = np.random.default_rng(0)
    rows_of = {u: np.flatnonzero(user == u) for u in np.unique(user)}
    out = []
    for _ in range(resamples):
        drawn = random.choice(list(rows_of), len(rows_of))
        rows = np.concatenate([rows_of[u] for u in drawn])
        per_user = [roc_auc_score(label[rows_of[u]], score[rows_of[u]]) for u in drawn if np.ptp(label[rows_of[u]])]
        out.append((roc_auc_score(label[rows], score[rows]), np.mean(per_user)))
    return np.array(out)
