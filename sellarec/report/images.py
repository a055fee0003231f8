"""Figures as images for papers and talks, through kaleido and a browser."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import plotly.io as pio
from PIL import Image


def write_images(folder: Path) -> str:
    """PNG, SVG and PDF of every exported figure; returns a sentence that says what happened."""
    sources = sorted((folder / "figures").glob("*.json"))
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            for kind in ("png", "svg", "pdf"):
                due = [s for s in sources if not _is_newer(s.with_suffix(f".{kind}"), s)]
                targets = [s.with_suffix(f".{kind}") for s in due]
                if due:
                    figs = [pio.read_json(s) for s in due]
                    for fig in figs:
                        fig.layout.updatemenus = ()  # paper has no menus
                    high = [fig.layout.height or 500 for fig in figs]  # without it, plotly makes all of them 500 high
                    pio.write_images(figs, targets, width=1000, height=high, scale=1.5 if kind == "png" else 1)
                if kind == "png":
                    for target in targets:
                        _shrink(target)
    except Exception as error:  # kaleido raises many kinds; a report without images is still whole
        return (
            f"No figure images: {type(error).__name__}: {error}\nIf no Chrome or Chromium was found: install one, or "
            "name it in BROWSER_PATH, and run the same command again. The interactive figures are in the pages."
        )
    return f"{len(sources)} figures as PNG, SVG and PDF in {folder / 'figures'}"


def _shrink(png: Path) -> None:
    """Rewrite with a palette of 256 colours: half the size, and no difference that one sees in a chart."""
    with Image.open(png) as image:
        smaller = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    smaller.save(png, optimize=True)


def _is_newer(made: Path, source: Path) -> bool:
    return made.is_file() and made.stat().st_mtime >= source.stat().st_mtime
