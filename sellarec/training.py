"""The one training loop of the language-model stages: resumable (on a CPU to the byte), selected on validation AUC."""

from __future__ import annotations

import hashlib
import math
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from sellarec.backbone.loading import sent
from sellarec.checks import check_finite
from sellarec.distributed import agreed, is_main, rank, summed, wait, world
from sellarec.errors import SellarecError
from sellarec.evaluation import auc
from sellarec.progress import Progress
from sellarec.settings import TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

Log = Callable[[dict], None]

ADVICE = "lower the learning rate, or compute in float32 (--dtype float32)"
"""For whoever trains what has come to infinite values."""

OTHER_FORMATS = "Compute in bfloat16 or float32 (--dtype)."
"""For whom float16 is too narrow."""

READ_TOGETHER = {"cpu": 1, "cuda": 16}
"""Steps whose losses are read together, by device: a GPU halts for each reading."""

POOL = 16
"""Batches that are drawn together and sorted by length, so that little of a batch is padding."""


@dataclass
class _Position:
    """Where training stands; saved with every checkpoint.

    Attributes:
        plan: Digest of the rows of every step.
    """

    plan: str = ""
    step: int = 0
    best: float = -1.0
    best_step: int = -1
    log: list = field(default_factory=list)

    def state_dict(self) -> dict:
        return dict(vars(self))

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


def train(
    model: nn.Module,
    labels: np.ndarray,
    row_ids: np.ndarray,
    validate: Callable[[Path], tuple[np.ndarray, np.ndarray]],
    config: TrainConfig,
    seed: int,
    folder: Path,
    *,
    lengths: np.ndarray | None = None,
    rates: Mapping[str, float] = MappingProxyType({}),
    log: Log = lambda entry: None,
    scales_loss: bool = False,
    label: str = "training",
) -> float:
    """Train the model's trainable parameters and leave the best ones in it.

    Args:
        model: Maps positions of training rows (B,) to log-odds (B,); only parameters with gradient are trained,
            saved and restored.
        labels, row_ids: 0/1 labels and dataset row ids of the training rows, shape (n,).
        validate: Returns labels and scores of the validation rows under the current weights. It may keep the scores
            so far in the file that it is given: after a kill the same weights are asked again.
        lengths: Tokens of the training rows, shape (n,); rows of similar length then share a batch.
        rates: Peaks of parameters whose names begin so, where they are not `config.learning_rate`.
        folder: Checkpoints and best weights live here, and stay when training is done: a second call then returns at
            once with the same result. The caller removes the folder when it has saved what it needs.
        scales_loss: Scale the loss up before the backward pass, as gradients in float16 need it. A step whose gradients
            are too large then is left out, which its entry of the log says, and the scale halved. A GPU halts for it.
        log: Called when training is done, with one dict per step and per evaluation.

    Returns:
        The best validation AUC.

    Raises:
        SellarecError: a loss is not finite; names the step and its rows, on a GPU up to `READ_TOGETHER` steps later
            but before anything is validated or saved. No scale lets the gradients be finite. The checkpoint is of other
            rows or batches.
    """
    schedule = _batches(np.zeros(len(labels)) if lengths is None else np.asarray(lengths), config, seed)
    steps = len(schedule)
    eval_steps = {round(steps * (n + 1) / config.evaluations) for n in range(config.evaluations)}
    folder.mkdir(exist_ok=True)
    checkpoint = folder / "checkpoint"
    accelerator = _new_accelerator(model, config, seed)
    optimizer, scheduler = _optimizer(model, config, rates, steps)
    shared, optimizer = accelerator.prepare(model, optimizer)
    position = _Position(plan=hashlib.sha256(b"".join(np.asarray(row_ids)[b].tobytes() for b in schedule)).hexdigest())
    if scales_loss:  # to torch a first step that is left out is none; the rate goes by the schedule's
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step", category=UserWarning)
    scaler = torch.amp.GradScaler(accelerator.device.type, enabled=scales_loss)
    accelerator.register_for_checkpointing(scheduler, position, *([scaler] if scales_loss else []))
    if _resume(accelerator, position, checkpoint) and position.step < steps:
        print(f"{label}: going on from step {position.step} of {steps}", flush=True)
    target = torch.from_numpy(np.asarray(labels, dtype=np.float32))
    parameters = [p for p in model.parameters() if p.requires_grad]

    unread: list[tuple[dict, np.ndarray, Tensor]] = []
    saved = time.monotonic()
    with Progress(label, steps * config.batch, done=position.step * config.batch) as progress:
        while position.step < steps:
            batch = schedule[position.step]
            model.train()
            loss = _backward(accelerator, shared, target, batch, config.accumulate, scaler)
            scaler.unscale_(optimizer)
            accelerator.clip_grad_norm_(parameters, 1.0)
            taken = _take_step(optimizer, scaler)
            optimizer.zero_grad()
            scheduler.step()
            position.step += 1
            entry = {"step": position.step, "loss": None, "learning_rate": scheduler.get_last_lr()[0]}
            if not taken:
                entry["left_out"] = True
            position.log.append(entry)
            unread.append((entry, batch, loss))
            evaluates, ends = position.step in eval_steps, position.step == steps
            reads = evaluates or ends or len(unread) == READ_TOGETHER[accelerator.device.type]
            if reads:
                _read_losses(unread, row_ids, label)
            if scaler.get_scale() < 1 or (ends and not any(_taken(position.log))):
                raise SellarecError(f"{label}: gradients in float16 are not finite. {OTHER_FORMATS}")
            if evaluates:
                model.eval()
                true, said = validate(folder / f"validation-{position.step}.npy")
                check_finite(said, f"{label}, scores after step {position.step}", ADVICE)
                _select(model, position, auc(true, said), folder)
            progress.advance(config.batch, _note(position))
            if reads and (ends or agreed(time.monotonic() - saved > config.checkpoint_seconds)):
                _save_checkpoint(accelerator, checkpoint)
                _forget_others(folder, position.best_step)
                saved = time.monotonic()
    model.eval()
    load_trainable(model, load_file(_best_file(folder, position.best_step)))
    for entry in position.log:
        log(entry)
    return position.best


def _new_accelerator(model: nn.Module, config: TrainConfig, seed: int) -> Accelerator:
    from accelerate import Accelerator  # late, see backbone/loading.py
    from accelerate.utils import DistributedDataParallelKwargs, set_seed

    set_seed(seed)
    accelerator = Accelerator(
        gradient_accumulation_steps=config.accumulate,
        cpu=_on_cpu(model),
        mixed_precision="no",  # `accelerate launch` would bring a setting of its own; see LanguageModel.precision
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],  # MF's bias reaches no token
    )
    _save_trainable_only(accelerator)
    return accelerator


def _optimizer(
    model: nn.Module, config: TrainConfig, rates: Mapping[str, float], steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW, and a rate that rises linearly and falls as a cosine."""
    groups = _parameter_groups(model, config.learning_rate, rates)
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    rising = max(1, round(config.warmup * steps))
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / rising, 0.5 * (1 + math.cos(math.pi * min(1.0, s / steps))))
    )


def _resume(accelerator: Accelerator, position: _Position, checkpoint: Path) -> bool:
    """Go to where an interrupted training stood, if there was one."""
    if is_main() and not checkpoint.exists() and _old(checkpoint).exists():
        _old(checkpoint).rename(checkpoint)
    wait()
    if not checkpoint.exists():
        return False
    plan = position.plan
    accelerator.load_state(str(checkpoint))
    best = _best_file(checkpoint.parent, position.best_step)
    if position.plan != plan or (position.best_step >= 0 and not best.exists()):
        raise SellarecError(
            f"{checkpoint.parent} holds a checkpoint of other rows or batches, from another version of this code. "
            "Remove it."
        )
    return True


def _backward(
    accelerator: Accelerator,
    model: nn.Module,
    target: Tensor,
    batch: np.ndarray,
    accumulate: int,
    scaler: torch.amp.GradScaler,
) -> Tensor:
    """Leave the gradients of a batch's mean loss, taken in parts and shared among processes; this process's loss."""
    loss = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    for part in np.array_split(batch, min(max(1, accumulate // world()), len(batch))):
        mine = part[rank() :: world()]
        rows = mine if len(mine) else part[:1]  # every process must take part in every step
        wanted = sent(target[rows], accelerator.device)
        losses = binary_cross_entropy_with_logits(model(rows), wanted, reduction="none")
        part_loss = losses[: len(mine)].sum() / len(batch)
        # accelerate divides by the number of parts, and gradients are averaged over processes
        accelerator.backward(scaler.scale(part_loss * accumulate * world()))
        loss += part_loss.detach()
    return loss


def _take_step(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> bool:
    """Whether the step was taken: not if scaled gradients are too large for their format."""
    before = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    return scaler.get_scale() >= before


def _taken(log: list[dict]) -> list[bool]:
    return [not entry.get("left_out", False) for entry in log if "loss" in entry]


def _read_losses(losses: list[tuple[dict, np.ndarray, Tensor]], row_ids: np.ndarray, label: str) -> None:
    """Write the losses of steps, of all processes together, into their entries of the log.

    Raises:
        SellarecError: one is not finite.
    """
    values = summed(torch.stack([loss for _, _, loss in losses]).cpu().numpy())
    for (entry, batch, _), value in zip(losses, values, strict=True):
        check_finite(value, f"{label}, loss of step {entry['step'] - 1}, rows {row_ids[batch].tolist()}", ADVICE)
        entry["loss"] = float(value)
    losses.clear()


def _best_file(folder: Path, step: int) -> Path:
    return folder / f"best-{step}.safetensors"


def _forget_others(folder: Path, step: int) -> None:
    """Remove best weights to which no checkpoint refers any more."""
    for file in folder.glob("best-*.safetensors") if is_main() else ():
        if file != _best_file(folder, step):
            file.unlink()


def _select(model: nn.Module, position: _Position, score: float, folder: Path) -> None:
    """Log a validation AUC, and keep the weights if it is the best so far: beside those of the checkpoint's best, to
    which a killed training goes back."""
    position.log.append({"step": position.step, "valid_auc": score})
    if score > position.best or position.best_step < 0:
        position.best, position.best_step = score, position.step
        if is_main():
            save_file(trainable_state(model), _best_file(folder, position.step))


def _parameter_groups(model: nn.Module, rate: float, rates: Mapping[str, float]) -> list[dict]:
    groups: dict[float, list[nn.Parameter]] = {}
    names = [name for name, _ in model.named_parameters()]
    if idle := [prefix for prefix in rates if not any(name.startswith(prefix) for name in names)]:
        raise ValueError(f"no parameter's name begins with {', '.join(idle)}")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own = next((r for prefix, r in rates.items() if name.startswith(prefix)), rate)
            groups.setdefault(own, []).append(parameter)
    return [{"params": parameters, "lr": own} for own, parameters in groups.items()]


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters with gradient, by name."""
    return {n: p.detach().cpu().clone().contiguous() for n, p in model.named_parameters() if p.requires_grad}


def load_trainable(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Write saved parameters back; every name must be there."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in state.items():
            parameters[name].copy_(value)


def _note(position: _Position) -> str:
    loss = next((e["loss"] for e in reversed(position.log) if e.get("loss") is not None), None)
    said = [] if loss is None else [f"loss {loss:.3f}"]
    return ", ".join(said + [f"best valid AUC {position.best:.3f}"] * (position.best_step >= 0))


def _batches(lengths: np.ndarray, config: TrainConfig, seed: int) -> list[np.ndarray]:
    """The rows of every step, fixed in advance, so that a resumed run sees the same ones.

    In each epoch a random order is cut into pools of `POOL` batches, each pool is sorted by length and cut into
    batches, and all full batches are shuffled; a short last batch stays last.
    """
    random = np.random.default_rng(seed)
    schedule: list[np.ndarray] = []
    for _ in range(config.epochs):
        order = random.permutation(len(lengths))
        pools = [order[i : i + POOL * config.batch] for i in range(0, len(order), POOL * config.batch)]
        order = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
        batches = [order[i : i + config.batch] for i in range(0, len(order), config.batch)]
        full = len(order) // config.batch
        schedule += [batches[i] for i in random.permutation(full)] + batches[full:]
    return schedule


def _on_cpu(model: nn.Module) -> bool:
    return next(model.parameters()).device.type == "cpu"


def _save_trainable_only(accelerator: Accelerator) -> None:
    """Keep accelerate from writing the frozen backbone into every checkpoint."""

    def save(models: list[nn.Module], weights: list, output: str) -> None:
        weights.clear()
        if is_main():
            save_file(trainable_state(accelerator.unwrap_model(models[0])), Path(output) / "trainable.safetensors")

    def load(models: list[nn.Module], source: str) -> None:
        load_trainable(accelerator.unwrap_model(models.pop()), load_file(Path(source) / "trainable.safetensors"))

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def _old(checkpoint: Path) -> Path:
    return checkpoint.with_name("checkpoint.old")


def _save_checkpoint(accelerator: Accelerator, checkpoint: Path) -> None:
    """Write beside the old checkpoint, then swap: a kill in between leaves one of the two whole."""
    fresh, old = checkpoint.with_name("checkpoint.new"), _old(checkpoint)
    if is_main():
        shutil.rmtree(fresh, ignore_errors=True)
    wait()
    accelerator.save_state(str(fresh))
    wait()
    if is_main():
        if checkpoint.exists():
            shutil.rmtree(old, ignore_errors=True)
            checkpoint.rename(old)
        fresh.rename(checkpoint)
        shutil.rmtree(old, ignore_errors=True)
    wait()
