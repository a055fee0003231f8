"""Figures of the alignment: cosines and the map."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sellarec.figures.style import LAYOUT, titled


def cosine_figure(cosines: dict[str, dict[str, np.ndarray]], note: str = "") -> go.Figure:
    """Distributions of cosines as overlaid areas: a panel for each pair of clouds, an area for each kind of target."""
    columns = min(2, len(cosines))
    rows = -(-len(cosines) // columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=list(cosines) if len(cosines) > 1 else None,
        shared_xaxes=True,
        vertical_spacing=0.12,
        horizontal_spacing=0.08,
    )
    edges = np.linspace(-1, 1, 61)
    for n, groups in enumerate(cosines.values()):
        place = {"row": n // columns + 1, "col": n % columns + 1}
        for (name, values), colour in zip(groups.items(), ("#D55E00", "#0072B2", "#999999"), strict=False):
            share, _ = np.histogram(values, edges)
            figure.add_scatter(
                x=(edges[1:] + edges[:-1]) / 2,
                y=share / max(1, share.sum()),
                name=name,
                fill="tozeroy",
                line={"color": colour},
                legendgroup=name,
                showlegend=n == 0,
                **place,
            )
    figure.update_layout(**LAYOUT, height=200 + 260 * rows)
    figure.update_layout(margin_t=130, legend={"orientation": "h", "y": -0.35 / rows})
    for col in range(1, columns + 1):
        figure.update_xaxes(title_text="cosine", row=rows, col=col)
    figure.update_yaxes(title_text="share of items", col=1)
    return titled(figure, "Does an item's projected vector point where its title does?", note)


CLOUD_COLOURS = {"semantic": "#0072B2", "collaborative": "#D55E00"}


def map_figure(points: pd.DataFrame, note: str = "") -> go.Figure:
    """The alignment map, a panel for each condition; a menu colours it by cloud, by genre or by popularity.

    Args:
        points: `condition`, `cloud`, `x`, `y`, `title`, `genre` (one) and `ratings` (in the training part).
    """
    conditions = list(points["condition"].unique())
    figure = make_subplots(rows=1, cols=len(conditions), subplot_titles=conditions, horizontal_spacing=0.03)
    common = list(points["genre"].value_counts().index[:7])
    genre = points["genre"].where(points["genre"].isin(common), "other")
    palette = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442"]
    symbols = points["cloud"].map({"semantic": 0, "collaborative": 2}).astype(np.int8)  # circles and diamonds
    views: list[str] = []

    def draw(view: str, mask: pd.Series, name: str, marker: dict, legend: bool = True) -> None:
        for col, condition in enumerate(conditions, start=1):
            part = points[mask & (points["condition"] == condition)]
            figure.add_scattergl(
                x=part["x"].astype(np.float32),
                y=part["y"].astype(np.float32),
                mode="markers",
                name=name,
                legendgroup=name,
                showlegend=legend and col == 1,
                visible=view == "cloud",
                text=part["title"] + "<br>" + part["genre"] + ", " + part["ratings"].astype(str) + " ratings",
                hovertemplate="%{text}<extra></extra>",
                marker={"size": 5, "opacity": 0.7, "symbol": symbols[part.index], **marker(part)},
                row=1,
                col=col,
            )
            views.append(view)

    for cloud, colour in CLOUD_COLOURS.items():
        draw("cloud", points["cloud"] == cloud, f"{cloud} vectors", lambda part, c=colour: {"color": c})
    for name, colour in zip([*common, "other"], [*palette, "#BBBBBB"], strict=False):
        draw("genre", genre == name, name, lambda part, c=colour: {"color": c})
    draw("popularity", points["ratings"] >= 0, "ratings", _popularity, legend=False)
    menu = [
        {"label": f"colour by {v}", "method": "update", "args": [{"visible": [w == v for w in views]}]}
        for v in dict.fromkeys(views)
    ]
    reach = points[["x", "y"]].abs().to_numpy().max() * 1.05
    figure.update_xaxes(range=[-reach, reach], showticklabels=False, zeroline=False)
    figure.update_yaxes(range=[-reach, reach], showticklabels=False, zeroline=False)
    bar = {"title": "training<br>ratings", "tickvals": [0, 1, 2, 3], "ticktext": ["1", "10", "100", "1,000"]}
    figure.update_layout(**LAYOUT, height=660, coloraxis={"colorscale": "Cividis", "colorbar": bar})
    figure.update_layout(
        margin_t=140,
        legend={"orientation": "h", "y": -0.05},
        updatemenus=[{"buttons": menu, "x": 1, "xanchor": "right", "y": 1.2, "yanchor": "top"}],
    )
    return titled(figure, "Do titles and behaviour meet?", note)


def _popularity(part: pd.DataFrame) -> dict:
    return {"color": np.log10(part["ratings"].clip(lower=1)).astype(np.float32), "coloraxis": "coloraxis"}
