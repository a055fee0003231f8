"""How fast prompts are scored and trained on this machine, as ratios within one run.

    python benchmarks/engine.py --dataset ml-100k --rows 128

Scoring: `score_rows` against the plain way (batches of 16 in file order, logits of the whole vocabulary at every
position). Training: one LoRA step with and without dropout. The floor is what a matrix product of the backbone's own
shape reaches here.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from sellarec.backbone.engine import log_odds, score_rows, without_prefix
from sellarec.backbone.language_model import LanguageModel, TokenRow
from sellarec.backbone.lora import LoraSettings, add_lora
from sellarec.config import make_config
from sellarec.systems.base import Workspace
from sellarec.systems.tallrec import text_rows


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """The fastest of some repetitions, after one that warms up."""
    work()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


@torch.inference_mode()
def plain_scores(lm: LanguageModel, rows: list[TokenRow], batch: int = 16) -> np.ndarray:
    """Scores as a first script would compute them."""
    yes, no = lm.answer_ids
    out = []
    for start in range(0, len(rows), batch):
        part = [r.prefix + r.suffix for r in rows[start : start + batch]]
        longest = max(map(len, part))
        ids = torch.tensor([list(p) + [0] * (longest - len(p)) for p in part])
        mask = torch.tensor([[1] * len(p) + [0] * (longest - len(p)) for p in part])
        logits = lm.model(input_ids=ids, attention_mask=mask).logits.float()
        last = logits[torch.arange(len(part)), mask.sum(dim=1) - 1]
        out.append(last[:, yes] - last[:, no])
    return torch.cat(out).numpy()


def matmul_rate(lm: LanguageModel, tokens: int = 2048) -> float:
    """Floating-point operations a second of the backbone's widest product."""
    weight = next(p for n, p in lm.model.named_parameters() if "gate_proj" in n).detach()
    x = torch.randn(tokens, weight.shape[1], dtype=weight.dtype)
    return 2 * tokens * weight.numel() / seconds(lambda: x @ weight.T, 10)


def training_step(work: Workspace, rows: list[TokenRow], dropout: float) -> float:
    lm = add_lora(work.fresh_model(), LoraSettings(dropout=dropout), 0)
    target = torch.ones(len(rows))

    def step() -> None:
        binary_cross_entropy_with_logits(log_odds(lm, [without_prefix(r) for r in rows]), target).backward()

    return seconds(step, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--rows", type=int, default=128)
    options = parser.parse_args()
    work = Workspace(make_config("quick", options.dataset), Path("runs"))
    lm = work.base_model
    rows = text_rows(work, lm, work.part("test").index.to_numpy()[: options.rows])
    tokens = sum(map(len, rows))
    weights = sum(p.numel() for n, p in lm.model.named_parameters() if "layers" in n)

    plain, ours = seconds(lambda: plain_scores(lm, rows), 1), seconds(lambda: score_rows(lm, rows, label="engine"), 1)
    gap = np.abs(plain_scores(lm, rows) - score_rows(lm, rows, label="engine")).max()
    floor = 2 * weights * tokens / matmul_rate(lm)
    with_dropout, without = (training_step(work, rows[:16], p) for p in (0.05, 0.0))

    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {work.base_dtype}")
    print(f"{len(rows)} rows, {tokens / len(rows):.0f} tokens each, of {work.dataset.name}")
    print(f"scoring, plain    {len(rows) / plain:6.1f} rows/s")
    print(f"scoring, engine   {len(rows) / ours:6.1f} rows/s   {plain / ours:.2f} times; scores differ by {gap:.3f}")
    print(f"scoring, floor    {len(rows) / floor:6.1f} rows/s   every token through every layer, at the product's rate")
    print(f"LoRA, dropout .05 {16 / with_dropout:6.1f} rows/s")
    print(f"LoRA, dropout 0   {16 / without:6.1f} rows/s   {with_dropout / without:.2f} times")


if __name__ == "__main__":
    main()
