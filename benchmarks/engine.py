"""What a user of `sellarec` waits for, against the plain way, side by side in one run.

    sellarec bench --dataset ml-100k
    python benchmarks/engine.py --dataset ml-1m --rows 512 --curve

(a) scoring test rows, (b) ranking the catalogue for one user, (c) stage-3 steps, (d) stage-1 steps, (e) stage-2 epochs,
(f) the bootstrap. The plain way, and scoring with some care, are in `plain.py`; llama.cpp scores too, if it is there
(pip install -e '.[llama-cpp]'). "of peak" is the time that the plain way's matrix products would take at the rate of a
large one in the working number format; more than 100 % means that work was saved, not done faster. "computed" is the
share of all tokens that the engine computes. Cached prefixes are in a GPU's memory, and on a CPU in files that the
system holds in memory because they were just written; a file larger than the memory comes from the disk. The last line
is one JSON document.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parent))
import plain
from measuring import Table, processor
from shaped import shallow

from sellarec.backbone.attention import using_attention
from sellarec.backbone.compiled import compiled_layers
from sellarec.backbone.engine import log_odds, score_rows, tokens_at_once
from sellarec.backbone.held import hold_prefixes
from sellarec.backbone.language_model import LanguageModel
from sellarec.backbone.loading import sent
from sellarec.backbone.lora import add_lora
from sellarec.backbone.prefixes import open_prefix_cache
from sellarec.backbone.token_rows import TokenRow, plan_batches, share_starts, without_prefix
from sellarec.collab.alignment import info_nce
from sellarec.collab.fit import fit_collab
from sellarec.collab.mf import MatrixFactorization, Projection
from sellarec.config import make_config
from sellarec.data import sources
from sellarec.errors import SellarecError, nearest
from sellarec.evaluation import UserBootstrap, auc, uauc
from sellarec.machine import matmul_rate
from sellarec.prompts import SOFT_TOKENS, PromptWriter
from sellarec.runs import code_version
from sellarec.settings import FitConfig, LoraSettings
from sellarec.systems.base import Workspace
from sellarec.systems.row_prompts import cut_prompts, prompts_of
from sellarec.systems.rows import row_inputs
from sellarec.systems.sella import SoftTokens

TASKS = ("scoring", "operations", "ranking", "stage3", "stage1", "stage2", "bootstrap")


@dataclass(frozen=True)
class Options:
    """Measure the engine against the plain way on this machine."""

    dataset: str = "ml-100k"
    """A registered dataset or an own table."""
    profile: str = "quick"
    """Whose prompts: `quick` lists three titles, `full` ten."""
    backbone: str = "smollm2-135m"
    """As for `sellarec run`."""
    dtype: str = "auto"
    """As for `sellarec run`: of the engine, and of the plain way beside float32."""
    rows: int = 128
    """Rows that are scored; a quarter of them is trained on."""
    candidates: int = 256
    """Titles that are ranked for one user; the plain way gets a quarter of them."""
    repeats: int = 3
    """Each figure is the median of this many, after one that warms up."""
    plain: bool = True
    """Measure the plain way too; without it a backbone may be twice as large."""
    accumulate: int = 1
    """Parts in which the engine takes the batch of a training step; the plain way takes it whole."""
    budgets: tuple[int, ...] = ()
    """Also score and rank with so many padded tokens at once, instead of the device's number."""
    attentions: tuple[str, ...] = ()
    """Also measure the engine with these implementations of attention instead of its own: eager, sdpa."""
    compiled: bool = False
    """Also measure the engine with its layers compiled (needs a C++ compiler)."""
    tasks: tuple[str, ...] = tuple(t for t in TASKS if t != "operations")
    """What is measured, of: scoring, ranking, stage3, stage1, stage2, bootstrap; and only if asked for: operations, in
    which of torch's operations a batch of scoring spends its time."""
    curve: bool = False
    """Also score 1,000 to 100,000 rows with two layers of the backbone: time must grow with them, memory not."""


@dataclass
class Bench:
    """The rows and models that are measured."""

    options: Options
    work: Workspace
    table: Table

    def __post_init__(self) -> None:
        self.lm = self.work.base_model
        self.part = self.work.part("test").iloc[: self.options.rows]
        self.rows = self.part.index.to_numpy()
        self.label = torch.from_numpy(self.part["label"].to_numpy().astype(np.float32)).to(self.lm.placement.device)
        self.texts = prompts_of(self.work, self.lm, self.rows)
        self.budget = tokens_at_once(self.lm.placement.device.type, self.lm.width)
        self.plain_ways: dict[str, LanguageModel] = {}
        if self.options.plain:
            exact = self.work.fresh_model()
            self.plain_ways["plain float32"] = exact.with_model(exact.model.float())
            if self.work.base_dtype != "float32":
                self.plain_ways[f"plain {self.work.base_dtype}"] = self.lm
        self.scorers = {way: partial(plain.scores, lm) for way, lm in self.plain_ways.items()}
        if self.options.plain:
            self.scorers[f"careful {self.work.base_dtype}"] = partial(plain.careful_scores, self.lm)

    def engine(
        self,
        task: str,
        way: str,
        work: Callable[[], Any],
        amount: int,
        *rest: float,
        gaps: Callable[[np.ndarray], dict[str, float]] = lambda found: {},
        **more: float,
    ) -> None:
        """Measure the engine, and its variants that are asked for: other attentions, compiled layers.

        Args:
            gaps: How far scores are from those of the plain way.
        """
        own = work()
        self.table.measure(task, way, work, amount, *rest, warm=False, **more, **gaps(own))
        variants = {name: using_attention(self.lm, name) for name in self.options.attentions}
        variants |= {"compiled": compiled_layers(self.lm)} if self.options.compiled else {}
        for name, context in variants.items():
            with context:
                start = time.perf_counter()
                found = work()
                first = {"first_pass_s": time.perf_counter() - start}
                gap = {"gap_to_engine": float(np.abs(found - own).max())} if isinstance(own, np.ndarray) else {}
                self.table.measure(
                    task, f"{way}, {name}", work, amount, *rest, warm=False, **first, **gap, **gaps(found)
                )

    def scored(self, task: str, rows: Sequence[TokenRow], **gaps: Callable[[np.ndarray], dict[str, float]]) -> None:
        """The engine over rows of which nothing is cached, in batches of its own size and of those asked for."""
        for budget in (self.budget, *self.options.budgets):
            way = "engine" if budget == self.budget else f"engine, {budget:,} at once"
            score = lambda budget=budget: score_rows(self.lm, rows, token_budget=budget, label="")  # noqa: E731
            share = self.computed(rows, budget)
            self.engine(task, way, score, len(rows), sum(map(len, rows)), computed=share, **gaps)

    def computed(self, rows: Sequence[TokenRow], budget: int) -> float:
        """Of the tokens of some rows, the share that the engine computes: beginnings once, and padding."""
        shared = share_starts(rows, self.lm.soft_ids.values())
        common = len({r.prefix for r in shared}) == 1  # then it is computed once, and not in each batch
        tokens = len(shared[0].prefix) * common
        for at in plan_batches(shared, budget):
            batch = [shared[i] for i in at]
            tokens += len({r.prefix for r in batch}) * max(len(r.prefix) for r in batch) * (not common)
            tokens += len(batch) * max(len(r.suffix) for r in batch)
        return tokens / sum(map(len, rows))

    def kept(self, rows: Sequence[TokenRow], folder: str) -> Any:
        """The rows' prefix cache, filled: in a folder, or in a GPU's memory."""
        prefixes = [r.prefix for r in rows]
        if self.lm.placement.device.type == "cpu":
            return open_prefix_cache(self.lm, prefixes, Path(folder), 50.0, label="")
        held = hold_prefixes(self.lm, prefixes, None)
        for at in plan_batches(rows, self.budget) if held and held.open() else []:
            held.batch([prefixes[i] for i in at])
        return held if held and held.is_open else None

    def scoring(self) -> None:
        rows, task = self.texts, "score test rows"
        tokens, user, label = sum(map(len, rows)), self.part["user"].to_numpy(), self.part["label"].to_numpy()
        exact = plain.scores(self.plain_ways["plain float32"], rows) if self.plain_ways else None

        def gaps(found: np.ndarray) -> dict[str, float]:
            if exact is None:
                return {}
            return {
                "max_gap": float(np.abs(found - exact).max()),
                "auc_gap": auc(label, found) - auc(label, exact),
                "uauc_gap": uauc(user, label, found) - uauc(user, label, exact),
            }

        for way, scores in self.scorers.items():
            self.table.measure(task, way, partial(scores, rows), len(rows), tokens, **gaps(scores(rows)))
        if importlib.util.find_spec("llama_cpp") and self.options.backbone in sources.MODELS:
            source = sources.MODELS[self.options.backbone]
            by_llama_cpp = plain.llama_cpp_scores(sources.fetch(source.name) / source.gguf, self.lm.answer_ids)
            found = by_llama_cpp(rows)
            self.table.measure(
                task, "llama.cpp, same GGUF", lambda: by_llama_cpp(rows), len(rows), tokens, **gaps(found)
            )
        self.scored(task, rows, gaps=gaps)
        with tempfile.TemporaryDirectory() as folder:
            cut = cut_prompts(self.work, self.lm, self.rows, rows)
            kept = self.kept(cut, folder)
            if kept:
                fresh = (self.kept(cut, f"{folder}/{n}") for n in itertools.count())
                self.table.measure(
                    task, "prefix cache, filled", lambda: next(fresh), len(rows), sum(len(r.prefix) for r in cut)
                )
                again = lambda: score_rows(self.lm, cut, kept=kept, label="")  # noqa: E731
                self.engine(task, "engine, prefixes cached", again, len(rows), tokens, gaps=gaps)

    def ranking(self) -> None:
        writer = PromptWriter(self.work.dataset, self.work.config.prompt)
        history = self.work.dataset.history(int(self.rows[-1]))
        items = range(1, min(self.options.candidates, self.work.dataset.n_items) + 1)
        rows = self.lm.tokenize_all(writer.compose(history, i, (20, 10), (30, 20)) for i in items)
        few = rows[::4]
        for way, scores in self.scorers.items():
            self.table.measure("rank the catalogue", way, partial(scores, few), len(few), sum(map(len, few)))
        self.scored("rank the catalogue", rows)

    def stage3(self) -> None:
        few = self.rows[: max(16, len(self.rows) // 4)]
        work, lm, label = self.work, self.lm, self.label[: len(few)]
        rows = prompts_of(work, lm, few, SOFT_TOKENS)
        tokens, inputs = sum(map(len, rows)), row_inputs(work, few)
        mf = MatrixFactorization(work.dataset.n_users, work.dataset.n_items, 64, bias=True, init_std=0.1)
        semantic = torch.nn.Embedding(work.dataset.n_items + 1, lm.width)
        soft = SoftTokens(mf, semantic, Projection(mf.feature_dim, lm.width)).to(lm.placement.device)
        vectors = lambda at: soft(*(sent(t[at], lm.placement.device) for t in inputs))  # noqa: E731
        for way, model in self.plain_ways.items():
            steps = plain.soft_token_steps(model, rows, label, soft, vectors)
            self.table.measure("train stage 3", way, steps, len(few), tokens, 2)
        cut = cut_prompts(work, lm, few, rows, SOFT_TOKENS)
        optimizer = torch.optim.AdamW(soft.parameters(), lr=1e-4)

        def ours(kept: Any) -> None:
            self.steps(
                np.arange(len(cut)), label, optimizer, lambda at: log_odds(lm, [cut[i] for i in at], vectors(at), kept)
            )

        self.engine("train stage 3", "engine, first epoch", lambda: ours(None), len(few), tokens, 2)
        with tempfile.TemporaryDirectory() as folder:
            kept = self.kept(cut, folder)
            if kept:
                self.engine("train stage 3", "engine, prefixes cached", lambda: ours(kept), len(few), tokens, 2)

    def stage1(self) -> None:
        rows = self.texts[: max(16, len(self.texts) // 4)]
        label, tokens = self.label[: len(rows)], sum(map(len, rows))
        for way, lm in self.plain_ways.items():
            self.table.measure("train stage 1", way, plain.lora_steps(lm, rows, label), len(rows), tokens, 2)
        # the last task of the model: the adapter goes into the one that is there, a second one may not fit
        lm = add_lora(self.lm, LoraSettings(dropout=0.0), 0)
        optimizer = torch.optim.AdamW([p for p in lm.model.parameters() if p.requires_grad], lr=1e-4)
        order = np.argsort([len(r) for r in rows])

        def ours() -> None:
            self.steps(order, label, optimizer, lambda at: log_odds(lm, [without_prefix(rows[i]) for i in at]))

        self.engine("train stage 1", "engine", ours, len(rows), tokens, 2)

    def steps(
        self,
        order: np.ndarray,
        label: torch.Tensor,
        optimizer: torch.optim.Optimizer,
        of_rows: Callable[[np.ndarray], torch.Tensor],
    ) -> None:
        """The engine's training steps over rows in this order, each in as many parts as the options say."""
        for batch in plain.chunks(order, plain.BATCH[self.lm.placement.device.type]):
            for at in np.array_split(batch, min(self.options.accumulate, len(batch))):
                loss = binary_cross_entropy_with_logits(of_rows(at), label[at], reduction="sum") / len(batch)
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    def stage2(self) -> None:
        data, train, width = self.work.dataset, self.work.dataset.part("train"), self.lm.width
        user, item = (torch.from_numpy(train[c].to_numpy().astype(np.int64)) for c in ("user", "item"))
        label = torch.from_numpy(train["label"].to_numpy().astype(np.float32))

        def parts(device: torch.device) -> tuple[MatrixFactorization, list[dict], Callable[..., torch.Tensor]]:
            """MF, what is trained beside it, and the contrastive loss of a batch's items."""
            mf = MatrixFactorization(data.n_users, data.n_items, 64, bias=True, init_std=0.1).to(device)
            beside = Projection(mf.feature_dim, width), torch.nn.Embedding(data.n_items + 1, width)
            projection, semantic = (part.to(device) for part in beside)

            def contrast(_: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
                unique = items.unique()
                return info_nce(projection(mf.item_features(unique)), semantic(unique), 0.1)

            return mf, [{"params": [*projection.parameters(), *semantic.parameters()]}], contrast

        plain_way = plain.mf_epochs(*parts(torch.device("cpu")), user, item, label, 2048)
        self.table.measure("stage-2 epochs", "plain DataLoader", plain_way, 1)

        def epochs() -> None:
            mf, beside, contrast = parts(self.lm.placement.device)
            fit_collab(mf, data, FitConfig(epochs=5), 0, extra_loss=contrast, extra_groups=beside, label="")

        self.table.measure("stage-2 epochs", "engine, with validation", epochs, 5)

    def bootstrap(self) -> None:
        part = self.work.dataset.part("test")
        user, label = part["user"].to_numpy(), part["label"].to_numpy()
        score = np.random.default_rng(0).random(len(part))
        self.table.measure(
            "bootstrap resamples", "plain, scikit-learn", lambda: plain.bootstrap(user, label, score, 10), 10
        )

        def ours() -> None:
            resampled = UserBootstrap(user, label, 2000)
            resampled.auc(score)
            resampled.uauc(score)

        self.table.measure("bootstrap resamples", "vectorised, 2,000", ours, 2000)

    def operations(self) -> None:
        on_gpu = torch.cuda.is_available()
        batch = [self.texts[i] for i in plan_batches(self.texts, self.budget)[0]]
        score_rows(self.lm, batch, label="")
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with profile(activities=kinds) as seen:
            score_rows(self.lm, batch, label="")
        print(f"\none batch of {len(batch)} rows")
        order = f"self_{'cuda' if on_gpu else 'cpu'}_time_total"
        print(seen.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=50))

    def curve(self) -> None:
        lm = shallow(self.options.backbone, self.options.dtype)
        data = self.work.dataset
        writer = PromptWriter(data, self.work.config.prompt)
        real = lm.tokenize_all(writer.write(r) for r in range(min(len(data.interactions), 50_000)))
        for amount in (1_000, 3_000, 10_000, 30_000, 100_000):
            # a second copy of a row gets another prefix, so that nothing is shared that would not be
            rows = [
                TokenRow((n // len(real) + 1, *real[n % len(real)].prefix), real[n % len(real)].suffix)
                for n in range(amount)
            ]
            self.table.repeats = 1
            work = lambda rows=rows: score_rows(lm, rows, label="")  # noqa: E731
            self.table.measure("two layers, score", f"{amount:,} rows", work, amount, warm=amount == 1_000)


def main() -> None:
    options = tyro.cli(Options, prog="sellarec bench", description=__doc__)
    for task in options.tasks:
        if task not in TASKS:
            raise SellarecError(f"task '{task}' is not known. {nearest(task, TASKS)}")
    if min(options.rows, options.candidates, options.repeats, options.accumulate, *options.budgets, 1) < 1:
        raise SellarecError("--rows, --candidates, --repeats, --accumulate and --budgets must be at least 1.")
    work = Workspace(
        make_config(options.profile, options.dataset, backbone=options.backbone, dtype=options.dtype), Path("runs")
    )
    lm = work.base_model
    weights = sum(p.numel() for n, p in lm.model.named_parameters() if "layers" in n)
    weights += lm.model.get_output_embeddings().weight.numel()  # the plain way makes all logits at every position
    rate = matmul_rate(lm.placement.device, lm.placement.dtype)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores, {processor()}"
    print(f"{where}, {work.base_dtype}; a large matrix product reaches {rate / 1e12:.2f} TFLOP/s")
    bench = Bench(options, work, Table(options.repeats, 2 * weights, rate))
    print(f"{len(bench.texts)} rows of {work.dataset.name}, {np.mean([len(r) for r in bench.texts]):.0f} tokens each\n")
    for task in (t for t in TASKS if t in options.tasks):
        getattr(bench, task)()
    if options.curve:
        bench.curve()
    print(
        json.dumps(
            {
                "machine": where,
                "dtype": work.base_dtype,
                "matmul_tflops": rate / 1e12,
                "code": code_version(),
                "torch": torch.__version__,
                "python": platform.python_version(),
                "options": dataclasses.asdict(options),
                "measured": bench.table.lines,
            }
        )
    )


if __name__ == "__main__":
    try:
        main()
    except SellarecError as error:
        sys.exit(f"sellarec bench: {error}")
