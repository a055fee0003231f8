"""The README's figure: every system with our additions, and those of both configurations without them too.

    python benchmarks/overall_picture.py

It reads runs of MovieLens-1M that are in the store (`sellarec adopt --dataset ml-1m`) and computes none; it needs a
browser, as every image does.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import tyro

from sellarec import figures, tables
from sellarec.config import make_config
from sellarec.errors import SellarecError
from sellarec.systems.base import Workspace
from sellarec.systems.registry import find_system
from sellarec.systems.rows import stage2_rows

BOTH = ("sella", "mlp_control", "tallrec", "zero_shot")
"""Systems that are shown in both configurations."""


@dataclass(frozen=True)
class Options:
    """Draw it."""

    to: Path = Path("docs/overall-ml-1m.png")
    """Where it is written."""
    runs: Path = Path("runs")
    """The run store."""


def draw(ours: Workspace, paper: Workspace) -> go.Figure:
    """The overall figure of two workspaces; the paper's figures stand where its method has nothing added to it: what
    reads a prompt has, in the first."""
    table = tables.overall_table(ours, tables.systems_of(ours, "table3", tables.OVERALL))
    plain = tables.overall_table(paper, BOTH)
    plain.index = [f"{label}, as in the paper" for label in plain.index]
    reads_a_prompt = [find_system(name).uses_backbone for name in table["system"]]
    table.loc[reads_a_prompt, ["auc_paper", "uauc_paper"]] = np.nan
    together = pd.concat([table, plain])
    together.attrs |= table.attrs
    read = len(stage2_rows(paper))
    note = f"{tables.scope(ours).removesuffix('.')}; “as in the paper”: without, and stage 2 on {read:,} rows."
    return figures.overall_figure(together, note)


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    works = [
        Workspace(make_config(p, "ml-1m", dtype="bfloat16"), options.runs, computes=False)
        for p in ("quick", "quick-paper")
    ]
    figure = draw(*works)
    figure.write_image(options.to, width=1000, height=figure.layout.height, scale=1.5)
    print(options.to)


if __name__ == "__main__":
    try:
        main()
    except SellarecError as error:
        sys.exit(f"error: {error}")
