"""Figures of the alignment: cosines and the map."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sellarec.figures.style import LAYOUT, as_text, titled


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


GENRE_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442")


def map_figure(points: pd.DataFrame, note: str = "") -> go.Figure:
    """The alignment map, a panel for each condition; a menu colours it by cloud, by genre or by popularity.

    Every point is there once, in a trace of its condition, cloud and genre; the menu changes colours and names only.

    Args:
        points: `condition`, `cloud`, `x`, `y`, `title`, `genre` (one) and `ratings` (in the training part).
    """
    conditions = list(points["condition"].unique())
    figure = make_subplots(rows=1, cols=len(conditions), subplot_titles=conditions, horizontal_spacing=0.03)
    common = list(points["genre"].value_counts().index[: len(GENRE_COLOURS)])
    colours = dict(zip([*common, "other"], [*GENRE_COLOURS[: len(common)], "#BBBBBB"], strict=True))
    genre = points["genre"].where(points["genre"].isin(common), "other")
    views: dict[str, list[tuple[str, object]]] = {"cloud": [], "genre": [], "popularity": []}  # name, colour by trace
    for (condition, cloud, kind), part in points.groupby(["condition", "cloud", genre], sort=False):
        figure.add_scattergl(
            x=part["x"].astype(np.float32),
            y=part["y"].astype(np.float32),
            mode="markers",
            text=[
                f"{title}<br>{genre}, {ratings} ratings"
                for title, genre, ratings in zip(
                    as_text(part["title"]), as_text(part["genre"]), part["ratings"], strict=True
                )
            ],
            hovertemplate="%{text}<extra></extra>",
            marker={"size": 5, "opacity": 0.7, "symbol": "circle" if cloud == "semantic" else "diamond"},
            row=1,
            col=conditions.index(condition) + 1,
        )
        views["cloud"].append((f"{cloud} vectors", CLOUD_COLOURS[cloud]))
        views["genre"].append((kind, colours[kind]))
        views["popularity"].append(("ratings", np.log10(part["ratings"].clip(lower=1)).round(2).tolist()))
    states = {view: _colouring(traces) for view, traces in views.items()}
    for trace, *first in zip(figure.data, *states["cloud"].values(), strict=True):
        trace.update(dict(zip((k.replace(".", "_") for k in states["cloud"]), first, strict=True)))
    whose = list(range(len(figure.data)))  # a caller may add traces of its own
    menu = [
        {
            "label": f"colour by {view}",
            "method": "update",
            "args": [state, {"coloraxis.showscale": view == "popularity"}, whose],
        }
        for view, state in states.items()
    ]
    reach = points[["x", "y"]].abs().to_numpy().max() * 1.05
    figure.update_xaxes(range=[-reach, reach], showticklabels=False, zeroline=False)
    figure.update_yaxes(range=[-reach, reach], showticklabels=False, zeroline=False)
    bar = {"title": "training<br>ratings", "tickvals": [0, 1, 2, 3], "ticktext": ["1", "10", "100", "1,000"]}
    bar |= {"y": 0.35, "len": 0.85}  # below the mode bar
    axis = {"colorscale": "Cividis", "colorbar": bar, "showscale": False}
    figure.update_layout(**LAYOUT, height=660, coloraxis=axis)
    figure.update_layout(
        margin_t=140,
        legend={"orientation": "h", "y": -0.05},
        updatemenus=[{"buttons": menu, "x": 1, "xanchor": "right", "y": -0.05, "yanchor": "top", "direction": "up"}],
    )
    return titled(figure, "Do titles and behaviour meet?", note)


def _colouring(traces: list[tuple[str, object]]) -> dict[str, list]:
    """What a view changes of each trace: one legend entry for every name, none where colours are numbers."""
    names = [name for name, _ in traces]
    numbers = [isinstance(colour, list) for _, colour in traces]
    return {
        "name": names,
        "legendgroup": names,
        "showlegend": [name not in names[:n] and not numbers[n] for n, name in enumerate(names)],
        "marker.color": [colour for _, colour in traces],
        "marker.coloraxis": ["coloraxis" if number else None for number in numbers],
    }
