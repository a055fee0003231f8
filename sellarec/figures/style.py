"""What all figures share: colours, layout, titles, and how they are exported."""

from __future__ import annotations

import textwrap
from html import escape
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

# After Okabe and Ito's palette and Tol's muted one; pale tones are darker here, so that each has a contrast of 3
# against white. The overall table's rows are distinct for colour-blind readers too. One colour per system everywhere.
COLOURS = {
    "counting": "#666666",
    "mlp_records": "#000000",
    "mf": "#3E9BC8",
    "mf_bias": "#0072B2",
    "sella_collab": "#009E73",
    "mlp_control": "#CC79A7",
    "zero_shot": "#8F9A30",
    "tallrec": "#7A4B00",
    "tallrec_further": "#B07D2B",
    "sella": "#D55E00",
    "lightgcn": "#6C8EBF",
    "sasrec": "#332288",
    "din": "#882255",
    "ctrl": "#AA4499",
    "binary_mf": "#3A9988",
    "prompt4nr": "#5E7D2C",
    "person_prompt": "#999933",
    "collm": "#117733",
    "collm_held_out": "#2E8B57",
    "binllm": "#661100",
}

SPLIT_COLOURS = {"train": "#0072B2", "valid": "#C47F00", "test": "#D55E00"}

LAYOUT = {
    "template": "plotly_white",
    "font": {"family": "system-ui, sans-serif", "size": 14},
    "margin": {"l": 70, "r": 40, "t": 90, "b": 60},
    "modebar": {"orientation": "v"},
}

LEGEND_BELOW = {"legend": {"orientation": "h", "y": -0.25, "traceorder": "normal"}}
"""Beside the figure the mode bar, which touch screens always show, would lie over it."""


def export_figure(figure: go.Figure, name: str, folder: str | Path | None) -> go.Figure:
    """Write a figure as JSON into the folder's `figures/`, from where the report makes pages and images; returns it."""
    if folder:
        target = Path(folder) / "figures"
        target.mkdir(parents=True, exist_ok=True)
        path, spec = target / f"{name}.json", figure.to_json()
        if not path.is_file() or path.read_text() != spec:  # an untouched file tells the report that its images stand
            path.write_text(spec)
    return figure


def error_bars(table: pd.DataFrame, name: str, **style: float) -> dict:
    """A plotly error bar from the columns `name`, `name`_low and `name`_high."""
    above, below = table[f"{name}_high"] - table[name], table[name] - table[f"{name}_low"]
    return {"array": above, "arrayminus": below, "thickness": 2, **style}


def as_text(words: pd.Index | pd.Series | list[str]) -> list[str]:
    """Words of data as plotly should show them: it reads "<" as the start of markup."""
    return [escape(str(word), quote=False) for word in words]


def titled(figure: go.Figure, title: str, note: str) -> go.Figure:
    """Title and note above a figure whose layout is set; a long note takes more lines, for which room is made."""
    lines = textwrap.wrap(note, 135, break_long_words=False)
    figure.update_layout(margin_t=(figure.layout.margin.t or 0) + 18 * max(0, len(lines) - 1))
    subtitle = {"subtitle": {"text": "<br>".join(lines), "font": {"size": 12, "color": "#666666"}}} if note else {}
    place = {"x": 0, "xref": "container", "xanchor": "left", "pad": {"l": 12}, "font": {"size": 17}}
    return figure.update_layout(title={"text": title, **place, **subtitle})
