"""Notebooks: executed through papermill with parameters, and turned into HTML."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import nbformat
import papermill
import plotly.graph_objects as go
from nbconvert import HTMLExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

from sellarec.errors import NotComputed, SellarecError, nearest

PLOTLY_JSON = "application/vnd.plotly.v1+json"


class NotebookError(SellarecError):
    """A cell failed.

    Attributes:
        missing: What the cell said, if it asked for something that is not in the store and may not be computed.
    """

    def __init__(self, message: str, missing: str | None) -> None:
        super().__init__(message)
        self.missing = missing


def notebooks_folder() -> Path:
    """The repository's notebooks; they travel with a checkout, not with an installed wheel."""
    folder = Path(__file__).resolve().parents[2] / "notebooks"
    if not folder.is_dir():
        raise SellarecError(f"{folder}: no notebooks there. Reports are made from a checkout: install with pip -e.")
    return folder


def execute_notebook(notebook: Path, output: Path, parameters: dict[str, Any]) -> None:
    """Run one notebook with parameters; unknown ones are refused before anything runs.

    Raises:
        SellarecError: an unknown parameter.
        NotebookError: a cell failed; the executed notebook shows where.
    """
    known = papermill.inspect_notebook(str(notebook))
    unknown = [name for name in parameters if name not in known]
    if unknown:
        raise SellarecError(f"{notebook.name} has no parameter '{unknown[0]}'. {nearest(unknown[0], known)}")
    output.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        papermill.execute_notebook(
            str(notebook),
            str(output),
            parameters=parameters,
            cwd=str(notebook.parent),
            progress_bar=False,
            log_output=True,
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # a cell's errors come back in its outputs
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
        )
    except papermill.PapermillExecutionError as error:
        raise NotebookError(
            f"{notebook.name} failed in cell {error.exec_count}: {error.ename}: {error.evalue}. See {output}",
            error.evalue if error.ename == NotComputed.__name__ else None,
        ) from error


def notebook_html(path: Path) -> str:
    """An executed notebook as an HTML fragment; its plotly figures stay interactive."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if PLOTLY_JSON in data:
                spec = data.pop(PLOTLY_JSON)
                figure = go.Figure(data=spec["data"], layout=spec["layout"])
                data["text/html"] = figure.to_html(full_html=False, include_plotlyjs=False)
    exporter = HTMLExporter(template_name="basic", preprocessors=[CoalesceStreamsPreprocessor])
    html, _ = exporter.from_notebook_node(notebook)
    return html


def notebook_title(notebook: Path) -> str:
    first = nbformat.read(notebook, as_version=4).cells[0].source
    return first.splitlines()[0].lstrip("# ").split(":")[0].strip()
