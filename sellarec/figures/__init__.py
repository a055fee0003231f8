"""Plotly figures from tables and runs. A pure function each, one visual style; nothing is trained or scored here."""

from sellarec.figures.alignment import cosine_figure, map_figure
from sellarec.figures.attention import (
    attention_layers_figure,
    attention_map_figure,
    attention_shares_figure,
    effects_figure,
)
from sellarec.figures.data import history_figure, timeline_figure, warm_cold_figure
from sellarec.figures.results import (
    difference_figure,
    overall_figure,
    reliability_figure,
    scores_figure,
    slices_figure,
    training_figure,
)
from sellarec.figures.style import as_text, export_figure

__all__ = [
    "as_text",
    "attention_layers_figure",
    "attention_map_figure",
    "attention_shares_figure",
    "cosine_figure",
    "difference_figure",
    "effects_figure",
    "export_figure",
    "history_figure",
    "map_figure",
    "overall_figure",
    "reliability_figure",
    "scores_figure",
    "slices_figure",
    "timeline_figure",
    "training_figure",
    "warm_cold_figure",
]
