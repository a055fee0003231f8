"""Figures: colours, labels, and what they say of missing parts."""

import itertools

import numpy as np
import pandas as pd
import pytest

from sellarec import figures, tables
from sellarec.analysis import slices
from sellarec.figures.attention import SEGMENT_COLOURS
from sellarec.figures.style import COLOURS
from sellarec.systems.registry import OVERALL


def test_parts_of_one_class_leave_an_empty_figure_that_says_so(small_workspace):
    rows = small_workspace.part("test")
    liked = {"liked": (rows["label"] == 1).to_numpy()}
    found = slices.metrics_on(small_workspace, ("counting",), liked)
    assert found.empty and {"label", "part", "auc_low", "uauc_high"} <= set(found)
    figure = figures.slices_figure(found, "Liked rows", "A note.")
    assert not figure.data
    assert figure.layout.title.subtitle.text.startswith("No part of the rows has both likes and dislikes. A note.")
    assert tables.by_part(found, "auc").empty


def test_titles_are_text_and_no_markup():
    effects = pd.DataFrame({"delta": [0.1, -0.2]}, index=["without <b>Heat</b>", "without <Warm_ID>"])
    drawn = figures.effects_figure(effects, "delta", "").data[0]
    assert list(drawn.y) == ["without &lt;b&gt;Heat&lt;/b&gt;", "without &lt;Warm_ID&gt;"]
    points = pd.DataFrame({"condition": "c", "cloud": ["semantic", "collaborative"], "x": [0.0, 1.0], "y": 0.5})
    points = points.assign(title="A <br> & B", genre="Drama", ratings=3, item=1)
    text = figures.map_figure(points).data[0].text[0]
    assert text == "A &lt;br&gt; &amp; B<br>Drama, 3 ratings"


def test_every_systems_colour_can_be_seen_on_white():
    def luminance(colour):
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return np.dot([0.2126, 0.7152, 0.0722], linear)

    assert {name: c for name, c in COLOURS.items() if 1.05 / (luminance(c) + 0.05) < 3} == {}
    assert len(set(COLOURS.values())) == len(COLOURS)


def seen(colour: str, by: np.ndarray) -> np.ndarray:
    """A colour as CIELAB, seen by an eye that this matrix describes (Machado et al., 2009)."""
    parts = np.array([int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)])
    linear = by @ np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ linear.clip(0, 1) / (0.9505, 1, 1.089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize(
    "eye",
    [
        np.eye(3),
        np.array([[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]]),
        np.array([[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]]),
    ],
    ids=["usual", "deuteranopia", "protanopia"],
)
@pytest.mark.parametrize("together", [{n: COLOURS[n] for n in OVERALL}, SEGMENT_COLOURS], ids=["systems", "segments"])
def test_colours_that_stand_together_are_told_apart_by_every_eye(together, eye):
    places = {name: seen(colour, eye) for name, colour in together.items()}
    near = [(a, b) for a, b in itertools.combinations(places, 2) if np.linalg.norm(places[a] - places[b]) < 11]
    assert near == []


def test_axis_labels_that_would_touch_share_a_place():
    tokens, segments = [f"t{n}" for n in range(80)], ["instruction"] * 80
    for place, name in ((5, "history"), (40, "<Item_ID>"), (41, "<Warm_ID>"), (50, "target")):
        segments[place] = name
    figure = figures.attention_map_figure(tokens, segments, {"layer 1": np.eye(80)})
    for axis in (figure.layout.xaxis, figure.layout.yaxis):
        assert list(axis.ticktext) == ["history", "<Item_ID><br><Warm_ID>", "target"]
        assert list(axis.tickvals) == [5, 40.5, 50]
