"""Figures of scores: systems, differences, parts of the rows, calibration, and training logs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sellarec.evaluation import FEWEST_USERS
from sellarec.figures.style import COLOURS, LAYOUT, LEGEND_BELOW, error_bars, titled
from sellarec.marks import MARK, UNFAIR, marked_labels


def overall_figure(table: pd.DataFrame, note: str = "") -> go.Figure:
    """AUC and UAUC as dots with their intervals, the best AUC first and SeLLa-Rec in bold.

    Args:
        table: As `tables.overall_table` gives it.
        note: Written under the title; say there what was trained and scored.
    """
    figure = make_subplots(cols=2, rows=1, shared_yaxes=True, horizontal_spacing=0.06)
    table = table.sort_values("auc", ascending=False, kind="stable")
    note += f" {UNFAIR}" if table.attrs.get("not_fair") else ""
    marked = zip(marked_labels(table), table["system"], strict=True)
    table.index = [f"<b>{label}</b>" if name == "sella" else label for label, name in marked]
    labels = list(table.index)[::-1]
    for col, metric in enumerate(("auc", "uauc"), start=1):
        for label, line in table.iterrows():
            figure.add_scatter(
                x=[line[metric]],
                y=[label],
                error_x=error_bars(table.loc[[label]], metric),
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
                name=f"paper ({table.attrs['paper']})",
                showlegend=col == 1,
                row=1,
                col=col,
            )
        figure.add_vline(x=0.5, line={"dash": "dot", "color": "#888888"}, row=1, col=col)
        figure.update_xaxes(title_text=metric.upper(), nticks=4, tickangle=0, row=1, col=col)
    figure.update_yaxes(categoryorder="array", categoryarray=labels, automargin=True, dtick=1)
    figure.update_layout(**LAYOUT, **LEGEND_BELOW, height=190 + 30 * len(labels))
    figure.update_layout(legend_y=-80 / (40 + 30 * len(labels)))  # below the axis titles
    return titled(figure, "How well each system tells likes from dislikes", note)


def difference_figure(table: pd.DataFrame, note: str = "") -> go.Figure:
    """Paired differences to the other systems with intervals, as `tables.difference_table` gives them."""
    of, minus, who = (table.attrs[k] for k in ("of", "minus", "who"))
    pair = f"{of} − %{{y}}" if who == of else f"%{{y}} − {minus}"
    labels = marked_labels(table) if "system" in table else list(table.index)
    note += f" {UNFAIR}" if table.attrs.get("not_fair") else ""
    figure = make_subplots(cols=2, rows=1, shared_yaxes=True, horizontal_spacing=0.06)
    for col, metric in enumerate(("auc", "uauc"), start=1):
        figure.add_scatter(
            x=table[metric],
            y=labels,
            error_x=error_bars(table, metric),
            mode="markers",
            marker={"size": 10, "color": COLOURS["sella"]},
            customdata=table[f"{metric}_verdict"],
            hovertemplate=pair + ": %{x:+.4f}<br>%{customdata}<extra></extra>",
            showlegend=False,
            row=1,
            col=col,
        )
        figure.add_vline(x=0, line={"dash": "dot", "color": "#888888"}, row=1, col=col)
        figure.update_xaxes(title_text=f"Δ{metric.upper()}", row=1, col=col)
    figure.update_yaxes(categoryorder="array", categoryarray=labels[::-1], automargin=True, dtick=1)
    figure.update_layout(**LAYOUT, height=190 + 30 * len(table))
    return titled(figure, f"{of[0].upper()}{of[1:]} minus {minus} (right of 0: {who} is better)", note)


METRIC_STYLE = {"auc": ("#D55E00", "circle", 0.16), "uauc": ("#0072B2", "diamond", -0.16)}
"""Colour, symbol and place within a system's line."""


def slices_figure(table: pd.DataFrame, title: str, note: str = "") -> go.Figure:
    """AUC and UAUC as dots with their intervals: a column for each part of the rows, a line for each system.

    UAUC of fewer than `FEWEST_USERS` users is left out.

    Args:
        table: As `analysis.slices.metrics_on` gives it.
    """
    if table.empty:
        return titled(go.Figure(), title, f"No part of the rows has both likes and dislikes. {note}")
    parts = dict(list(table.groupby("part", sort=False)))
    labels = list(table["label"].unique())[::-1]
    note += f" {UNFAIR}" if any(label.endswith(MARK) for label in labels) else ""
    figure = make_subplots(cols=len(parts), shared_yaxes=True, horizontal_spacing=0.02)
    for col, (part, lines) in enumerate(parts.items(), start=1):
        few = (lines["uauc_users"] < FEWEST_USERS).any()
        for metric, (colour, symbol, offset) in METRIC_STYLE.items():
            if metric == "uauc" and few:
                continue
            figure.add_scatter(
                x=lines[metric],
                y=lines["label"].map(labels.index) + offset,
                error_x=error_bars(lines, metric, thickness=1.5, width=3),
                mode="markers",
                marker={"size": 8, "color": colour, "symbol": symbol},
                name=metric.upper(),
                customdata=lines["label"],
                legendgroup=metric,
                showlegend=metric not in {t.legendgroup for t in figure.data},
                hovertemplate="%{customdata}<br>" + metric.upper() + " %{x:.4f}<extra></extra>",
                row=1,
                col=col,
            )
        figure.add_vline(x=0.5, line={"dash": "dot", "color": "#888888"}, row=1, col=col)
        rows, users, counted = lines[["rows", "users", "uauc_users"]].iloc[0]
        count = f"{rows:,} rows<br>{users:,} users<br>{counted:,} in UAUC{': too few' if few else ''}"
        figure.update_xaxes(title={"text": f"<b>{part}</b><br>{count}", "font": {"size": 12}}, row=1, col=col)
    figure.update_xaxes(matches="x", nticks=4, tickangle=0)
    figure.update_yaxes(tickvals=list(range(len(labels))), range=[-0.7, len(labels) - 0.3], zeroline=False)
    figure.update_yaxes(ticktext=labels, automargin=True, col=1)
    figure.update_layout(**LAYOUT, **LEGEND_BELOW, height=250 + 32 * len(labels))
    figure.update_layout(legend_y=-115 / (70 + 32 * len(labels)))  # below the axis titles
    return titled(figure, title, note)


MARKERS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star", "hexagon")
"""Lines that cross are told apart by more than their colours."""


def reliability_figure(curves: dict[str, pd.DataFrame], labels: dict[str, str], note: str = "") -> go.Figure:
    """Share of likes against predicted probability, a line for each system; on the diagonal they agree."""
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"dash": "dot", "color": "#888888"}, name="perfectly calibrated"
    )
    for n, (name, curve) in enumerate(curves.items()):
        figure.add_scatter(
            x=curve["probability"],
            y=curve["liked"],
            customdata=curve["rows"],
            mode="lines+markers",
            name=labels[name],
            line={"color": COLOURS.get(name, "#333333"), "dash": ("solid", "dash", "dashdot")[n % 3]},
            marker={"symbol": MARKERS[n % len(MARKERS)], "size": 8},
            hovertemplate="said %{x:.2f}, liked %{y:.2f}<br>%{customdata:,} rows<extra>%{fullData.name}</extra>",
        )
    figure.update_layout(**LAYOUT, **LEGEND_BELOW, height=520)
    figure.update_xaxes(title_text="predicted probability of a like", range=[0, 1])
    figure.update_yaxes(title_text="share of likes", range=[0, 1])
    return titled(figure, "Do the probabilities mean what they say?", note)


QUANTILES = 400


def scores_figure(
    scores: dict[str, np.ndarray], label: np.ndarray, labels: dict[str, str], note: str = ""
) -> go.Figure:
    """Distribution of predicted probabilities of liked and of disliked rows, a pair of violins for each system.

    A violin is drawn from `QUANTILES` even quantiles with the bandwidth of all rows: these would weigh megabytes.
    """
    figure = go.Figure()
    for name, values in scores.items():
        for value, side in ((0, "negative"), (1, "positive")):
            chosen = values[label == value].astype(float)
            if not len(chosen):
                continue
            figure.add_violin(
                y=np.round(np.quantile(chosen, np.linspace(0, 1, min(QUANTILES, len(chosen)))), 4),
                x0=labels[name],
                name=("disliked", "liked")[value],
                legendgroup=value,
                showlegend=name == next(iter(scores)),
                bandwidth=_bandwidth(chosen),
                side=side,
                line_color=("#E69F00", "#0072B2")[value],
                points=False,
                meanline_visible=True,
                spanmode="hard",
            )
    figure.update_layout(**LAYOUT, **LEGEND_BELOW, violinmode="overlay", violingap=0.1, height=460)
    figure.update_xaxes(range=[-0.6, len(scores) - 0.4])
    figure.update_yaxes(title_text="predicted probability", range=[0, 1])
    return titled(figure, "How the probabilities of liked and disliked rows spread", note)


def _bandwidth(values: np.ndarray) -> float:
    """Silverman's rule, as plotly applies it to the points that it is given."""
    spread = min(values.std(), np.subtract(*np.quantile(values, [0.75, 0.25])) / 1.349)
    return max(1.059 * spread * len(values) ** -0.2, 1e-3)


def training_figure(log: pd.DataFrame, title: str, x: str = "step", note: str = "") -> go.Figure:
    """Training loss (smoothed over 20 steps) and validation AUC of a run's log."""
    figure = make_subplots(specs=[[{"secondary_y": True}]])
    if log.empty:
        return titled(figure, f"{title}: nothing was trained", note)
    log = log.assign(**{x: _counted_on(log[x])})
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
    figure.update_layout(**LAYOUT, **LEGEND_BELOW, xaxis_title=x, height=400)
    figure.update_yaxes(title_text="loss", secondary_y=False)
    figure.update_yaxes(title_text="AUC", dtick=0.1, tickformat=".1f", secondary_y=True, showgrid=False)
    auc_range = [min(0.45, valid["valid_auc"].min() - 0.02), max(0.85, valid["valid_auc"].max() + 0.02)]
    figure.update_yaxes(range=auc_range, secondary_y=True)
    return titled(figure, title, note)


def _counted_on(steps: pd.Series) -> pd.Series:
    """Steps of one phase after the other, counted through."""
    return steps + steps.shift().where(steps.diff() < 0, 0).cumsum()
