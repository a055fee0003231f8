"""Figures of the dataset."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sellarec.figures.style import LAYOUT, LEGEND_BELOW, SPLIT_COLOURS, titled


def timeline_figure(interactions: pd.DataFrame, note: str = "") -> go.Figure:
    """Interactions per week, coloured by the part of the split they fall into."""
    week = pd.to_datetime(interactions["timestamp"], unit="s").dt.to_period("W").dt.start_time
    counts = interactions.groupby([week.rename("week"), "split"], observed=True).size().reset_index(name="rows")
    figure = go.Figure()
    for split, colour in SPLIT_COLOURS.items():
        part = counts[counts["split"] == split]
        figure.add_bar(x=part["week"], y=part["rows"], name=split, marker_color=colour)
    layout = {"barmode": "stack", "xaxis_title": "week", "yaxis_title": "interactions", "height": 400}
    figure.update_layout(**LAYOUT, **LEGEND_BELOW, **layout)
    return titled(figure, "The split is by time: models are judged on the future", note)


def history_figure(lengths: dict[str, np.ndarray], shown: int, note: str = "") -> go.Figure:
    """Share of rows with at least n liked titles before them, by split; prompts hold the last `shown`."""
    figure = go.Figure()
    for split, values in lengths.items():
        at = np.arange(0, 101)
        share = [(values >= n).mean() for n in at]
        figure.add_scatter(x=at, y=share, name=split, line={"color": SPLIT_COLOURS[split], "width": 3})
    said = {"annotation_text": f"{shown} shown in a prompt", "annotation_position": "bottom right"}
    figure.add_vline(x=shown, line={"dash": "dot", "color": "#888888"}, **said)
    figure.update_layout(
        **LAYOUT, **LEGEND_BELOW, xaxis_title="liked titles before the row", yaxis_title="share of rows", height=380
    )
    figure.update_yaxes(range=[0, 1.02], tickformat=".0%")
    return titled(figure, "How full the histories are", note)


def warm_cold_figure(interactions: pd.DataFrame, note: str = "") -> go.Figure:
    """Test and validation rows by whether their user and their item occur in the training part."""
    train = interactions[interactions["split"] == "train"]
    known_user = interactions["user"].isin(train["user"])
    known_item = interactions["item"].isin(train["item"])
    groups = {
        "warm: user and item known": (known_user & known_item, "#009E73"),
        "cold: user unknown": (~known_user & known_item, "#E69F00"),
        "cold: item unknown": (known_user & ~known_item, "#56B4E9"),
        "cold: both unknown": (~known_user & ~known_item, "#999999"),
    }
    figure = go.Figure()
    for name, (mask, colour) in groups.items():
        counts = interactions.loc[mask, "split"].value_counts()
        splits = ["test", "valid"]
        figure.add_bar(y=splits, x=[counts[s] for s in splits], name=name, marker_color=colour, orientation="h")
    figure.update_layout(
        **LAYOUT, barmode="stack", xaxis_title="rows", height=300, legend={"orientation": "h", "y": -0.35}
    )
    return titled(figure, "Which rows are cold, and why", note)
