"""A plan in words: the table, and the refusal of what cannot fit."""

from __future__ import annotations

from tqdm import tqdm

from sellarec.config import as_options
from sellarec.errors import SellarecError
from sellarec.machine import GIB
from sellarec.plan.make import SHARE, Plan
from sellarec.plan.shape import RUNTIME

SMALL = 1e9
"""Parameters below which a plan for a GPU says that it is too low. Measured with 135 M only."""

TOO_SMALL = "Small models do not keep a GPU busy: one of 135 M parameters took ten times as long in stage 1 on an H100."


def described(plan: Plan, backbone: str) -> str:
    """The plan as a table."""
    of = plan.machine
    lines = [
        f"{backbone}: {plan.parameters / 1e6:,.0f} M parameters, adapter {plan.adapter / 1e6:,.1f} M, "
        f"{'4-bit weights, ' if of.nf4 else ''}{str(of.dtype).removeprefix('torch.')} on {of.device}",
        f"{'machine' if of.processes == 1 else f'each of {of.processes} processes'}: {of.memory / GIB:.1f} GiB free, "
        f"{of.rate / 1e12:.3g} x 10^12 operations/s in large matrix products; "
        f"{SHARE:.0%} of that is expected",
        "",
        f"{'':22}{'rows':>8}{'tokens':>12}{'10^12 op.':>12}{'time':>10}{'GiB':>8}"
        f"{'weights':>9}{'trained':>9}{'batch':>8}",
    ]
    for step in plan.steps:
        parts = _gib(step.weights, 9) + _gib(step.trained, 9) + _gib(step.activations, 8)
        counts = (f"{n:,}" if n else "" for n in (step.rows, step.tokens))
        lines.append(_line(step.name, *counts, step.operations, plan.seconds(step), step.memory) + parts)
    operations = sum(step.operations for step in plan.steps)
    lines += [
        _line("together", "", "", operations, sum(map(plan.seconds, plan.steps)), plan.memory),
        "",
        "Stage 2 and systems without a language model are not counted.",
        f"GiB: the peak of each process. Weights of the backbone; what is trained, its gradients and the optimizer's "
        f"moments; what a\nbatch keeps and works with; and {RUNTIME / GIB:.1f} of the interpreter and its libraries.",
        *([plan.prefixes] if plan.prefixes else []),
        *([TOO_SMALL] if of.device == "cuda" and plan.parameters < SMALL else []),
    ]
    return "\n".join(lines)


def _line(name: str, rows: str, tokens: str, operations: float, seconds: float, memory: float) -> str:
    work, clock = (f"{operations / 1e12:,.1f}", tqdm.format_interval(seconds)) if operations else ("", "")
    return f"{name:22}{rows:>8}{tokens:>12}{work:>12}{clock:>10}{_gib(memory, 8)}"


def _gib(size: float, width: int) -> str:
    return f"{size / GIB:{width}.2f}"


def refusal(plan: Plan, change: dict[str, object] | None) -> SellarecError:
    """The error that says what is missing, and which setting would do."""
    worst = max(plan.steps, key=lambda s: s.memory)
    way = "No setting makes it fit: a machine with more memory is needed."
    if change:
        way = f"This would fit: {' '.join(as_options(change))}"
    return SellarecError(
        f"{worst.name} needs {worst.memory / GIB:.1f} GiB, {plan.machine.memory / GIB:.1f} are free. {way}"
    )
