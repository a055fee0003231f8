"""The report: notebooks executed in order through papermill, and one entry page over what they made."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import sys
import time
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import nbformat
import papermill
import plotly.graph_objects as go
import plotly.io as pio
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from plotly.offline import get_plotlyjs
from pygments.formatters import HtmlFormatter

from sellarec import figures, tables
from sellarec.config import make_config
from sellarec.errors import SellarecError, nearest
from sellarec.systems.base import Workspace

PLOTLY_JSON = "application/vnd.plotly.v1+json"


@dataclass(frozen=True)
class Page:
    file: str
    title: str


def notebooks_folder() -> Path:
    """The repository's notebooks; they travel with a checkout, not with an installed wheel."""
    folder = Path(__file__).resolve().parent.parent / "notebooks"
    if not folder.is_dir():
        raise SellarecError(f"{folder}: no notebooks there. Reports are made from a checkout: install with pip -e.")
    return folder


def execute_notebook(notebook: Path, output: Path, parameters: dict[str, Any]) -> None:
    """Run one notebook with parameters; unknown ones are refused before anything runs.

    Raises:
        SellarecError: an unknown parameter, or a cell failed; the executed notebook shows where.
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
            extra_arguments=["--IPKernelApp.log_level=ERROR"],  # it warns that it listens on localhost
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
        )
    except papermill.PapermillExecutionError as error:
        raise SellarecError(
            f"{notebook.name} failed in cell {error.exec_count}: {error.ename}: {error.evalue}. See {output}"
        ) from error


def make_report(
    dataset: str,
    backbone: str,
    profile: str,
    seed: int,
    changes: dict[str, Any],
    runs: Path,
    reports: Path,
) -> Path:
    """Execute every notebook and write the entry page; returns its path."""
    started = time.monotonic()
    work = Workspace(make_config(profile, dataset, backbone=backbone, seed=seed, **changes), runs.resolve())
    folder = reports.resolve() / _folder_name(work, profile, changes)
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {
        "dataset": dataset,
        "backbone": backbone,
        "profile": profile,
        "seed": seed,
        "changes": changes,
        "runs": str(runs.resolve()),
        "output": str(folder),
    }
    executed = []
    for notebook in sorted(notebooks_folder().glob("[0-9]*.ipynb")):
        begun = time.monotonic()
        print(f"== {notebook.name}", flush=True)
        target = folder / "notebooks" / notebook.name
        execute_notebook(notebook, target, parameters)
        executed.append(target)
        print(f"== {notebook.name} done in {time.monotonic() - begun:.0f} s", flush=True)
    write_pages(work, folder, executed, profile)
    print(f"Report in {(time.monotonic() - started) / 60:.1f} minutes: {folder / 'index.html'}", flush=True)
    return folder / "index.html"


def write_pages(work: Workspace, folder: Path, executed: list[Path], profile: str) -> None:
    """The entry page, a page per executed notebook, and the figures as images where a browser is found."""
    (folder / "plotly.min.js").write_text(get_plotlyjs())
    pages = [Page("index.html", "Report"), *(Page(f"{p.stem}.html", _title(p)) for p in executed)]
    template = Environment(loader=PackageLoader("sellarec", "."), autoescape=True).get_template("page.html.j2")
    bodies = {"index.html": _entry(work, folder, pages, profile)}
    bodies |= {f"{p.stem}.html": notebook_html(p) for p in executed}
    css = Markup(HtmlFormatter().get_style_defs(".highlight"))
    for page in pages:
        html = template.render(
            title=f"{page.title} · {work.dataset.name}",
            pages=pages,
            here=page.file,
            body=Markup(bodies[page.file]),
            css=css,
        )
        (folder / page.file).write_text(html)
    print(write_images(folder), flush=True)


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


def write_images(folder: Path) -> str:
    """PNG and SVG of every exported figure; returns a sentence that says what happened."""
    sources = sorted((folder / "figures").glob("*.json"))
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            for kind in ("png", "svg"):
                due = [s for s in sources if not _is_newer(s.with_suffix(f".{kind}"), s)]
                targets = [s.with_suffix(f".{kind}") for s in due]
                if due:
                    figs = [pio.read_json(s) for s in due]
                    pio.write_images(figs, targets, width=1000, scale=2 if kind == "png" else 1)
    except Exception as error:  # kaleido raises many kinds; a report without images is still whole
        return (
            f"No figure images ({type(error).__name__}): kaleido needs a Chrome or Chromium. Install one, or name it "
            "in BROWSER_PATH, and run the same command again. The interactive figures are in the pages."
        )
    return f"{len(sources)} figures as PNG and SVG in {folder / 'figures'}"


def _is_newer(made: Path, source: Path) -> bool:
    return made.is_file() and made.stat().st_mtime >= source.stat().st_mtime


def _entry(work: Workspace, folder: Path, pages: list[Page], profile: str) -> str:
    """What a reader should see first: what was done, how it came out, and how sure we are."""
    overall, differences = tables.overall_table(work), tables.difference_table(work)
    note = tables.scope(work)
    figure = figures.overall_figure(overall, note)
    against = figures.difference_figure(differences, note)
    links = "".join(f'<li><a href="{p.file}">{escape(p.title)}</a></li>' for p in pages[1:])
    files = "".join(
        f'<li><a href="{f.relative_to(folder).as_posix()}">{f.relative_to(folder).as_posix()}</a></li>'
        for f in sorted((folder / "tables").glob("*"))
    )
    systems = [*tables.OVERALL, "semantic"]
    return f"""
<h1>SeLLa-Rec on {escape(work.dataset.name)}</h1>
<p class="soft">{escape(note)} Profile <code>{escape(profile)}</code>.</p>
<h2>What came out</h2>
<ul>{"".join(f"<li>{escape(s)}</li>" for s in findings(overall, differences))}</ul>
<div class="scroll">{figure.to_html(full_html=False, include_plotlyjs=False)}</div>
<div class="scroll">{tables.pretty(overall).to_html(border=0)}</div>
<h2>SeLLa-Rec against each other system</h2>
<p>Differences on the same rows; intervals from resampling users, the same resamples for both systems.
"Undecided" means that the interval holds 0.</p>
<div class="scroll">{against.to_html(full_html=False, include_plotlyjs=False)}</div>
<div class="scroll">{tables.pretty(differences).to_html(border=0)}</div>
<h2>Notebooks, executed</h2><ul>{links}</ul>
<h2>Tables for papers</h2><ul>{files}</ul>
<h2>Where every number comes from</h2>
<div class="scroll">{tables.provenance_table(work, systems).to_html(border=0)}</div>
<p class="soft">Each run folder holds its settings, per-row scores and checksums. MovieLens data belongs to
GroupLens and is not part of this report.</p>
"""


def findings(overall: Any, differences: Any) -> list[str]:
    """Plain sentences on the main comparisons, worded by their intervals."""
    sella = overall.loc[overall["system"] == "sella"].iloc[0]
    out = [
        f"SeLLa-Rec: AUC {sella['auc']:.4f} [{sella['auc_low']:.4f}, {sella['auc_high']:.4f}], "
        f"UAUC {sella['uauc']:.4f} [{sella['uauc_low']:.4f}, {sella['uauc_high']:.4f}]."
    ]
    for label, line in differences.iterrows():
        out.append(
            f"Against {label}: AUC {line['auc']:+.4f} ({line['auc_verdict']}), "
            f"UAUC {line['uauc']:+.4f} ({line['uauc_verdict']})."
        )
    return out


def _folder_name(work: Workspace, profile: str, changes: dict[str, Any]) -> str:
    """One folder per settings, so that a changed one does not overwrite the profile's own report."""
    name = f"{work.dataset.name}-{Path(work.config.backbone).name}-{profile}-{work.config.seed}"
    if not changes:
        return name
    return f"{name}-{hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:6]}"


def _title(notebook: Path) -> str:
    first = nbformat.read(notebook, as_version=4).cells[0].source
    return first.splitlines()[0].lstrip("# ").strip()
