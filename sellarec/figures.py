"""Plotly figures from tables and runs. One pure function a figure; one visual style; nothing is computed here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

# Okabe and Ito's palette, then Tol's muted one: distinct for colour-blind readers; one colour per system everywhere.
COLOURS = {
    "counting": "#999999",
    "mf": "#56B4E9",
    "mf_bias": "#0072B2",
    "sella_collab": "#009E73",
    "mlp_control": "#CC79A7",
    "zero_shot": "#F0E442",
    "tallrec": "#E69F00",
    "sella": "#D55E00",
    "lightgcn": "#88CCEE",
    "sasrec": "#332288",
    "din": "#882255",
    "ctrl": "#AA4499",
    "binary_mf": "#44AA99",
    "prompt4nr": "#DDCC77",
    "person_prompt": "#999933",
    "collm": "#117733",
    "binllm": "#661100",
}
SPLIT_COLOURS = {"train": "#0072B2", "valid": "#E69F00", "test": "#D55E00"}
_LAYOUT = {
    "template": "plotly_white",
    "font": {"family": "system-ui, sans-serif", "size": 14},
    "margin": {"l": 70, "r": 40, "t": 90, "b": 60},
    "modebar": {"orientation": "v"},
}
_LEGEND_BELOW = {"legend": {"orientation": "h", "y": -0.25, "traceorder": "normal"}}
"""Beside the figure the mode bar, which touch screens always show, would lie over it."""


def overall_figure(table: pd.DataFrame, note: str = "") -> go.Figure:
    """AUC and UAUC as dots with their intervals, in the table's order.

    Args:
        table: As `tables.overall_table` gives it.
        note: Written under the title; say there what was trained and scored.
    """
    figure = make_subplots(cols=2, rows=1, shared_yaxes=True, horizontal_spacing=0.06)
    labels = list(table.index)[::-1]
    for col, metric in enumerate(("auc", "uauc"), start=1):
        for label, line in table.iterrows():
            figure.add_scatter(
                x=[line[metric]],
                y=[label],
                error_x={
                    "array": [line[f"{metric}_high"] - line[metric]],
                    "arrayminus": [line[metric] - line[f"{metric}_low"]],
                    "thickness": 2,
                },
                mode="markers",
                marker={"size": 11, "color": COLOURS.get(line["system"], "#333333")},
                name=label,
                showlegend=False,
                hovertemplate=f"{label}<br>{metric.upper()} %{{x:.4f}}<extra></extra>",
                row=1,
                col=col,
            )
        paper = table.get(f"{metric}_paper")
        if paper is not None and paper.notna().any():
            known = paper.dropna()
            figure.add_scatter(
                x=known,
                y=list(known.index),
                mode="markers",
                marker={"symbol": "diamond-open", "size": 10, "color": "#333333"},
                name="paper (Qwen2-7B, all rows)",
                showlegend=col == 1,
                row=1,
                col=col,
            )
        figure.add_vline(x=0.5, line={"dash": "dot", "color": "#888888"}, row=1, col=col)
        figure.update_xaxes(title_text=metric.upper(), row=1, col=col)
    figure.update_yaxes(categoryorder="array", categoryarray=labels, automargin=True)
    figure.update_layout(**_LAYOUT, **_LEGEND_BELOW, height=190 + 40 * len(labels))
    return _titled(figure, "How well each system tells likes from dislikes", note)


def difference_figure(table: pd.DataFrame, note: str = "") -> go.Figure:
    """Paired differences to the other systems with intervals, as `tables.difference_table` gives them."""
    label = table.attrs["label"]
    figure = make_subplots(cols=2, rows=1, shared_yaxes=True, horizontal_spacing=0.06)
    for col, metric in enumerate(("auc", "uauc"), start=1):
        figure.add_scatter(
            x=table[metric],
            y=list(table.index),
            error_x={
                "array": table[f"{metric}_high"] - table[metric],
                "arrayminus": table[metric] - table[f"{metric}_low"],
                "thickness": 2,
            },
            mode="markers",
            marker={"size": 10, "color": COLOURS["sella"]},
            customdata=table[f"{metric}_verdict"],
            hovertemplate=label + " − %{y}: %{x:+.4f}<br>%{customdata}<extra></extra>",
            showlegend=False,
            row=1,
            col=col,
        )
        figure.add_vline(x=0, line={"dash": "dot", "color": "#888888"}, row=1, col=col)
        figure.update_xaxes(title_text=f"Δ{metric.upper()}", row=1, col=col)
    figure.update_yaxes(categoryorder="array", categoryarray=list(table.index)[::-1], automargin=True)
    figure.update_layout(**_LAYOUT, height=190 + 40 * len(table))
    return _titled(figure, f"{label} minus each other system (right of 0: {label} is better)", note)


def timeline_figure(interactions: pd.DataFrame, note: str = "") -> go.Figure:
    """Interactions per week, coloured by the part of the split they fall into."""
    week = pd.to_datetime(interactions["timestamp"], unit="s").dt.to_period("W").dt.start_time
    counts = interactions.groupby([week.rename("week"), "split"], observed=True).size().reset_index(name="rows")
    figure = go.Figure()
    for split, colour in SPLIT_COLOURS.items():
        part = counts[counts["split"] == split]
        figure.add_bar(x=part["week"], y=part["rows"], name=split, marker_color=colour)
    layout = {"barmode": "stack", "xaxis_title": "week", "yaxis_title": "interactions", "height": 400}
    figure.update_layout(**_LAYOUT, **_LEGEND_BELOW, **layout)
    return _titled(figure, "The split is by time: models are judged on the future", note)


def history_figure(lengths: dict[str, np.ndarray], shown: int, note: str = "") -> go.Figure:
    """Share of rows that have at least so many liked titles before them, by split; prompts hold the last `shown`."""
    figure = go.Figure()
    for split, values in lengths.items():
        at = np.arange(0, 101)
        share = [(values >= n).mean() for n in at]
        figure.add_scatter(x=at, y=share, name=split, line={"color": SPLIT_COLOURS[split], "width": 3})
    said = {"annotation_text": f"{shown} shown in a prompt", "annotation_position": "bottom right"}
    figure.add_vline(x=shown, line={"dash": "dot", "color": "#888888"}, **said)
    figure.update_layout(
        **_LAYOUT, **_LEGEND_BELOW, xaxis_title="liked titles before the row", yaxis_title="share of rows", height=380
    )
    figure.update_yaxes(range=[0, 1.02], tickformat=".0%")
    return _titled(figure, "How full the histories are", note)


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
        **_LAYOUT, barmode="stack", xaxis_title="rows", height=300, legend={"orientation": "h", "y": -0.35}
    )
    return _titled(figure, "Which rows are cold, and why", note)


def training_figure(log: pd.DataFrame, title: str, x: str = "step", note: str = "") -> go.Figure:
    """Training loss (smoothed over 20 steps) and validation AUC of a run's log."""
    figure = make_subplots(specs=[[{"secondary_y": True}]])
    if "loss" in log:
        loss = log.dropna(subset=["loss"])
        smooth = loss["loss"].rolling(20 if x == "step" else 1, min_periods=1).mean()
        figure.add_scatter(x=loss[x], y=smooth, name="training loss", line={"color": "#0072B2"})
    valid = log.dropna(subset=["valid_auc"])
    figure.add_scatter(
        x=valid[x],
        y=valid["valid_auc"],
        name="validation AUC",
        mode="lines+markers",
        line={"color": "#D55E00"},
        secondary_y=True,
    )
    figure.update_layout(**_LAYOUT, **_LEGEND_BELOW, xaxis_title=x, height=400)
    figure.update_yaxes(title_text="loss", secondary_y=False)
    figure.update_yaxes(title_text="AUC", dtick=0.1, tickformat=".1f", secondary_y=True, showgrid=False)
    auc_range = [min(0.45, valid["valid_auc"].min() - 0.02), max(0.85, valid["valid_auc"].max() + 0.02)]
    figure.update_yaxes(range=auc_range, secondary_y=True)
    return _titled(figure, title, note)


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
    figure.update_layout(**_LAYOUT, height=200 + 260 * rows)
    figure.update_layout(margin_t=130, legend={"orientation": "h", "y": -0.35 / rows})
    for col in range(1, columns + 1):
        figure.update_xaxes(title_text="cosine", row=rows, col=col)
    figure.update_yaxes(title_text="share of items", col=1)
    return _titled(figure, "Does an item's projected vector point where its title does?", note)


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
    symbols = points["cloud"].map({"semantic": "circle", "collaborative": "diamond"})
    views: list[str] = []

    def draw(view: str, mask: pd.Series, name: str, marker: dict, legend: bool = True) -> None:
        for col, condition in enumerate(conditions, start=1):
            part = points[mask & (points["condition"] == condition)]
            figure.add_scattergl(
                x=part["x"].round(2),
                y=part["y"].round(2),
                mode="markers",
                name=name,
                legendgroup=name,
                showlegend=legend and col == 1,
                visible=view == "cloud",
                text=part["title"]
                + "<br>"
                + part["genre"]
                + ", "
                + part["ratings"].astype(str)
                + " ratings, "
                + part["cloud"],
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
    figure.update_layout(**_LAYOUT, height=660, coloraxis={"colorscale": "Cividis", "colorbar": bar})
    figure.update_layout(
        margin_t=140,
        legend={"orientation": "h", "y": -0.05},
        updatemenus=[{"buttons": menu, "x": 1, "xanchor": "right", "y": 1.2, "yanchor": "top"}],
    )
    return _titled(figure, "Do titles and behaviour meet?", note)


def _popularity(part: pd.DataFrame) -> dict:
    return {"color": np.log10(part["ratings"].clip(lower=1)), "coloraxis": "coloraxis"}


def slices_figure(table: pd.DataFrame, title: str, note: str = "") -> go.Figure:
    """Grouped bars with intervals: AUC above UAUC, a group for each part of the rows, a bar for each system.

    Args:
        table: As `analysis.slices.metrics_on` gives it.
    """
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    counts = table.drop_duplicates("part")
    names = [f"{p}<br>{r:,} rows, {u:,} users" for p, r, u in counts[["part", "rows", "users"]].to_numpy()]
    place = dict(zip(counts["part"], names, strict=True))
    for system, lines in table.groupby("system", sort=False):
        for row, metric in enumerate(("auc", "uauc"), start=1):
            figure.add_bar(
                x=lines["part"].map(place),
                y=lines[metric],
                error_y={
                    "array": lines[f"{metric}_high"] - lines[metric],
                    "arrayminus": lines[metric] - lines[f"{metric}_low"],
                    "thickness": 1,
                    "width": 2,
                },
                name=lines["label"].iloc[0],
                marker_color=COLOURS.get(system, "#333333"),
                legendgroup=system,
                showlegend=row == 1,
                hovertemplate="%{fullData.name}<br>%{x}<br>" + metric.upper() + " %{y:.4f}<extra></extra>",
                row=row,
                col=1,
            )
    low = np.nanmin(table[["auc_low", "uauc_low", "auc", "uauc"]].to_numpy(dtype=float))
    high = np.nanmax(table[["auc_high", "uauc_high", "auc", "uauc"]].to_numpy(dtype=float))
    for row, metric in enumerate(("AUC", "UAUC"), start=1):
        figure.update_yaxes(title_text=metric, range=[max(0, low - 0.02), min(1, high + 0.02)], row=row, col=1)
        figure.add_hline(y=0.5, line={"dash": "dot", "color": "#888888"}, row=row, col=1)
    figure.update_layout(**_LAYOUT, barmode="group", height=640, legend={"orientation": "h", "y": -0.15})
    return _titled(figure, title, note)


def reliability_figure(curves: dict[str, pd.DataFrame], labels: dict[str, str], note: str = "") -> go.Figure:
    """Share of likes against predicted probability, a line for each system; on the diagonal they agree."""
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"dash": "dot", "color": "#888888"}, name="perfectly calibrated"
    )
    for name, curve in curves.items():
        figure.add_scatter(
            x=curve["probability"],
            y=curve["liked"],
            customdata=curve["rows"],
            mode="lines+markers",
            name=labels[name],
            line={"color": COLOURS.get(name, "#333333")},
            hovertemplate="said %{x:.2f}, liked %{y:.2f}<br>%{customdata:,} rows<extra>%{fullData.name}</extra>",
        )
    figure.update_layout(**_LAYOUT, **_LEGEND_BELOW, height=520)
    figure.update_xaxes(title_text="predicted probability of a like", range=[0, 1])
    figure.update_yaxes(title_text="share of likes", range=[0, 1])
    return _titled(figure, "Do the probabilities mean what they say?", note)


def scores_figure(
    scores: dict[str, np.ndarray], label: np.ndarray, labels: dict[str, str], note: str = ""
) -> go.Figure:
    """Distribution of predicted probabilities of liked and of disliked rows, a pair of violins for each system."""
    figure = go.Figure()
    for value, name, colour, side in ((0, "disliked", "#E69F00", "negative"), (1, "liked", "#0072B2", "positive")):
        chosen = label == value
        figure.add_violin(
            x=np.concatenate([np.repeat(labels[n], chosen.sum()) for n in scores]),
            y=np.concatenate([np.round(s[chosen].astype(float), 4) for s in scores.values()]),
            name=name,
            side=side,
            line_color=colour,
            points=False,
            meanline_visible=True,
            spanmode="hard",
        )
    figure.update_layout(**_LAYOUT, **_LEGEND_BELOW, violinmode="overlay", violingap=0.1, height=460)
    figure.update_yaxes(title_text="predicted probability", range=[0, 1])
    return _titled(figure, "How the probabilities of liked and disliked rows spread", note)


SEGMENT_COLOURS = {
    "sink": "#CCCCCC",
    "instruction": "#999999",
    "history": "#E69F00",
    "user record": "#56B4E9",
    "target": "#009E73",
    "genres": "#44AA99",
    "item record": "#0072B2",
    "<User_ID>": "#CC79A7",
    "<Item_ID>": "#D55E00",
    "<Warm_ID>": "#882255",
}


def attention_layers_figure(table: pd.DataFrame, note: str = "") -> go.Figure:
    """Attention from the answer to each segment, layer by layer, stacked to 1, as `attention_by_layer` gives it."""
    figure = go.Figure()
    for segment, lines in table.groupby("segment", sort=False):
        figure.add_bar(
            x=lines["layer"],
            y=lines["share"],
            customdata=lines[["low", "high"]],
            name=segment,
            marker_color=SEGMENT_COLOURS.get(segment, "#333333"),
            hovertemplate="layer %{x}: %{y:.1%} [%{customdata[0]:.1%}, %{customdata[1]:.1%}]"
            "<extra>%{fullData.name}</extra>",
        )
    figure.update_layout(**_LAYOUT, barmode="stack", bargap=0.1, height=480, xaxis_title="layer")
    figure.update_layout(legend={"orientation": "h", "y": -0.2, "traceorder": "normal"})
    figure.update_yaxes(title_text="share of attention", tickformat=".0%", range=[0, 1])
    return _titled(figure, "Where the answer looks", note)


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
    ticks = {"tickvals": [m for m, _ in shown], "ticktext": [s for _, s in shown], "tickfont": {"size": 10}}
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
        figure.update_xaxes(**ticks, tickangle=90, showgrid=False, row=1, col=col)
        figure.update_yaxes(**ticks, autorange="reversed", showgrid=False, row=1, col=col)
    figure.update_layout(**_LAYOUT, height=760)
    figure.update_layout(margin={"l": 90, "r": 40, "t": 130, "b": 110})
    bar = {"title": "attention", "tickvals": [-4, -3, -2, -1, 0], "ticktext": [".0001", ".001", ".01", ".1", "1"]}
    figure.update_layout(coloraxis={"colorscale": "Cividis", "cmin": -4, "cmax": 0, "colorbar": bar})
    return _titled(figure, "Which token attends to which", note)


def effects_figure(table: pd.DataFrame, value: str, title: str, note: str = "") -> go.Figure:
    """Bars of the change in log-odds by change; with intervals where the table has them.

    Args:
        table: Indexed by change; `value`, and perhaps `value`_low and `value`_high, are its columns.
    """
    error = {}
    if f"{value}_low" in table:
        error = {
            "error_x": {
                "array": table[f"{value}_high"] - table[value],
                "arrayminus": table[value] - table[f"{value}_low"],
                "thickness": 2,
            }
        }
    figure = go.Figure()
    figure.add_bar(
        x=table[value],
        y=list(table.index),
        orientation="h",
        marker_color=np.where(table[value] < 0, "#0072B2", "#D55E00"),
        hovertemplate="%{y}: %{x:+.3f}<extra></extra>",
        **error,
    )
    figure.add_vline(x=0, line={"color": "#888888"})
    figure.update_layout(**_LAYOUT, height=170 + 34 * len(table), xaxis_title="change of the log-odds")
    figure.update_yaxes(categoryorder="array", categoryarray=list(table.index)[::-1], automargin=True)
    return _titled(figure, title, note)


def export_figure(figure: go.Figure, name: str, folder: str | Path | None) -> go.Figure:
    """Write a figure as JSON into the folder's `figures/`, from where the report makes pages and images; returns it."""
    if folder:
        target = Path(folder) / "figures"
        target.mkdir(parents=True, exist_ok=True)
        path, spec = target / f"{name}.json", figure.to_json()
        if not path.is_file() or path.read_text() != spec:  # an untouched file tells the report that its images stand
            path.write_text(spec)
    return figure


def _titled(figure: go.Figure, title: str, note: str) -> go.Figure:
    subtitle = {"subtitle": {"text": note, "font": {"size": 12, "color": "#666666"}}} if note else {}
    place = {"x": 0, "xref": "container", "xanchor": "left", "pad": {"l": 12}, "font": {"size": 17}}
    return figure.update_layout(title={"text": title, **place, **subtitle})
