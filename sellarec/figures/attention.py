"""Figures of attention, and of what changes when a part of the prompt is left out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sellarec.figures.style import LAYOUT, as_text, error_bars, titled

SEGMENT_COLOURS = {
    "sink": "#CCCCCC",
    "instruction": "#999999",
    "history": "#E69F00",
    "user record": "#56B4E9",
    "target": "#009E73",
    "genres": "#B8DE6F",
    "item record": "#0072B2",
    "expectation": "#332288",
    "<User_ID>": "#E377C2",
    "<Item_ID>": "#D55E00",
    "<Warm_ID>": "#882255",
}


def attention_layers_figure(table: pd.DataFrame, note: str = "") -> go.Figure:
    """Attention from the answer to each segment, layer by layer, stacked to 1.

    Args:
        table: As `analysis.attention.attention_by_layer` gives it; of a single case without `low` and `high`.
    """
    figure = go.Figure()
    interval = " [%{customdata[0]:.1%}, %{customdata[1]:.1%}]" if "low" in table else ""
    for segment, lines in table.groupby("segment", sort=False):
        figure.add_bar(
            x=lines["layer"],
            y=lines["share"],
            customdata=lines[["low", "high"]] if interval else None,
            name=segment,
            marker_color=SEGMENT_COLOURS.get(segment, "#333333"),
            hovertemplate="layer %{x}: %{y:.1%}" + interval + "<extra>%{fullData.name}</extra>",
        )
    figure.update_layout(**LAYOUT, barmode="stack", bargap=0.1, height=480, xaxis_title="layer")
    figure.update_layout(legend={"orientation": "h", "y": -0.2, "traceorder": "normal"})
    figure.update_yaxes(title_text="share of attention", tickformat=".0%", range=[0, 1])
    return titled(figure, "Where the answer looks", note)


def attention_shares_figure(shares: dict[str, dict[str, float]], note: str = "") -> go.Figure:
    """Attention from the answer to each segment, averaged over layers, for some prompts side by side.

    Args:
        shares: Share by segment, by the prompt's name; the first prompt is drawn paler, the others are seen against it.
    """
    segments = list(dict.fromkeys(s for of_one in shares.values() for s in of_one))
    figure = go.Figure()
    for n, (name, of_one) in enumerate(shares.items()):
        figure.add_bar(
            x=[of_one.get(s, 0.0) for s in segments],
            y=[s.strip("<>") for s in segments],
            orientation="h",
            name=name,
            marker_color="#BBBBBB" if n == 0 and len(shares) > 1 else "#D55E00",
            hovertemplate="%{y}: %{x:.1%}<extra>%{fullData.name}</extra>",
        )
    figure.update_layout(**LAYOUT, barmode="group", height=170 + 40 * len(segments), xaxis_title="share of attention")
    figure.update_layout(legend={"orientation": "h", "y": -0.25, "traceorder": "normal"})
    figure.update_xaxes(tickformat=".0%", rangemode="tozero")
    figure.update_yaxes(autorange="reversed", automargin=True)
    return titled(figure, "Where the answer looks, mean over layers", note)


def attention_map_figure(
    tokens: list[str], segments: list[str], weights: dict[str, np.ndarray], note: str = ""
) -> go.Figure:
    """Token-level maps side by side: rows attend to columns. Axes name the parts of the prompt, hovering the tokens.

    Args:
        tokens: The T tokens.
        segments: The part of the prompt that each belongs to.
        weights: Shape (T, T) by title, of one head or averaged over heads.
    """
    figure = make_subplots(rows=1, cols=len(weights), subplot_titles=list(weights), horizontal_spacing=0.14)
    names = [f"{n} {token.strip() or '␣'}" for n, token in enumerate(tokens, start=1)]
    starts = [n for n, s in enumerate(segments) if n == 0 or s != segments[n - 1]]
    ends = [*starts[1:], len(segments)]
    middles = [(a + b - 1) // 2 for a, b in zip(starts, ends, strict=True)]
    shown = [(m, segments[m]) for m in middles if segments[m] != "instruction"]
    places, labels = _set_apart(shown, len(tokens) / 40)
    ticks = {"tickvals": places, "ticktext": labels, "tickfont": {"size": 10}}
    for col, matrix in enumerate(weights.values(), start=1):
        seen = np.where(np.tri(len(tokens), dtype=bool), matrix, np.nan)
        figure.add_heatmap(
            x=names,
            y=names,
            z=np.round(np.log10(np.maximum(seen, 1e-4)), 2),
            hovertemplate="%{y} → %{x}<br>10 to the power of %{z}<extra></extra>",
            coloraxis="coloraxis",
            row=1,
            col=col,
        )
        figure.update_xaxes(**ticks, tickangle=-90, showgrid=False, row=1, col=col)
        figure.update_yaxes(**ticks, autorange="reversed", showgrid=False, row=1, col=col)
    figure.update_layout(**LAYOUT, height=760)
    figure.update_layout(margin={"l": 90, "r": 40, "t": 130, "b": 110})
    bar = {"title": "attention", "tickvals": [-4, -3, -2, -1, 0], "ticktext": [".0001", ".001", ".01", ".1", "1"]}
    figure.update_layout(coloraxis={"colorscale": "Cividis", "cmin": -4, "cmax": 0, "colorbar": bar})
    return titled(figure, "Which token attends to which", note)


def _set_apart(labels: list[tuple[int, str]], gap: float) -> tuple[list[float], list[str]]:
    """Places and texts of axis labels; neighbours closer than `gap` become one label of two lines between them."""
    places: list[float] = []
    texts: list[str] = []
    for place, text in labels:
        if places and place - places[-1] < gap:
            places[-1], texts[-1] = (places[-1] + place) / 2, f"{texts[-1]}<br>{text}"
        else:
            places.append(place)
            texts.append(text)
    return places, texts


def effects_figure(table: pd.DataFrame, value: str, title: str, note: str = "") -> go.Figure:
    """Bars of the change in log-odds by change; with intervals where the table has them.

    Args:
        table: Indexed by change; `value`, and perhaps `value`_low and `value`_high, are its columns.
    """
    figure = go.Figure()
    figure.add_bar(
        x=table[value],
        y=as_text(table.index),
        orientation="h",
        marker_color=np.where(table[value] < 0, "#0072B2", "#D55E00"),
        hovertemplate="%{y}: %{x:+.3f}<extra></extra>",
        error_x=error_bars(table, value) if f"{value}_low" in table else None,
    )
    figure.add_vline(x=0, line={"color": "#888888"})
    figure.update_layout(**LAYOUT, height=170 + 34 * len(table), xaxis_title="change of the log-odds")
    figure.update_yaxes(categoryorder="array", categoryarray=as_text(table.index)[::-1], automargin=True)
    return titled(figure, title, note)
