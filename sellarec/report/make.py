"""The report: notebooks executed in order through papermill, and one entry page over what they made."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import sys
import time
from collections.abc import Mapping
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
from PIL import Image
from plotly.offline import get_plotlyjs
from pygments.formatters import HtmlFormatter

from sellarec import tables
from sellarec.analysis.claims import claims
from sellarec.config import make_config
from sellarec.data import sources
from sellarec.errors import SellarecError, nearest
from sellarec.profiles import as_in_the_paper
from sellarec.systems.base import Workspace
from sellarec.systems.registry import TABLES

PLOTLY_JSON = "application/vnd.plotly.v1+json"
EXECUTED = ".executed.json"


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
    notebooks = sorted(notebooks_folder().glob("[0-9]*.ipynb"))
    if work.config.evaluation.raw_yes:
        print("== without 15_attention.ipynb: what-ifs are told in log-odds, not in raw logits of Yes", flush=True)
        notebooks = [n for n in notebooks if n.stem != "15_attention"]
    kept = _executed_before(folder)
    for notebook in notebooks:
        target = folder / "notebooks" / notebook.name
        if target.is_file() and kept.get(notebook.name) == _fingerprint(notebook, parameters, work):
            print(f"== {notebook.name} stands: neither it, nor the code, nor the runs have changed", flush=True)
            continue
        begun = time.monotonic()
        print(f"== {notebook.name}", flush=True)
        kept.pop(notebook.name, None)  # what is written from here on is not what was recorded
        (folder / EXECUTED).write_text(json.dumps(kept, indent=2))
        execute_notebook(notebook, target, parameters)
        print(f"== {notebook.name} done in {time.monotonic() - begun:.0f} s", flush=True)
    write_pages(work, folder, [folder / "notebooks" / n.name for n in notebooks], profile)
    record = {n.name: _fingerprint(n, parameters, work) for n in notebooks}  # now that all runs are there
    (folder / EXECUTED).write_text(json.dumps(record, indent=2))
    print(f"Report in {(time.monotonic() - started) / 60:.1f} minutes: {folder / 'index.html'}", flush=True)
    return folder / "index.html"


def _fingerprint(notebook: Path, parameters: dict[str, Any], work: Workspace) -> str:
    """A hash of everything that an executed notebook shows: its source, parameters, data, code, and the runs there."""
    code = sorted(Path(__file__).parent.rglob("*.py"))
    runs = sorted(p for place in work.places for p in place.rglob("manifest.json"))
    names = [p.relative_to(work.root).as_posix() for p in runs]
    model = [work.backbone_identity, work.base_dtype]
    digest = hashlib.sha256(json.dumps([parameters, names, work.dataset.hash, model], sort_keys=True).encode())
    for path in (notebook, *code, *runs):  # a manifest holds the hashes of all that a run holds
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _executed_before(folder: Path) -> dict[str, str]:
    try:
        return json.loads((folder / EXECUTED).read_text())
    except (OSError, ValueError):
        return {}


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


STORY = (
    ("The data", "00_data", "00_timeline", "Split by time: training, then validation, then test."),
    ("What came out", "10_overall", "10_overall", ""),
    (
        "SeLLa-Rec against each other system",
        "10_overall",
        "10_differences",
        "Differences on the same rows; intervals from resampling users, the same resamples for both systems.",
    ),
    ("Warm and cold", "11_warm_cold", "11_warm_cold", "Warm: the training part knows the user and the item."),
    ("What each part is worth", "12_ablation", "12_losses", "Right of 0 SeLLa-Rec is better than the variant."),
    ("Do titles and behaviour meet?", "14_alignment_cosine", "14_cosine", "The map of both clouds is in notebook 13."),
    ("Where the answer looks", "15_attention", "15_layers", "Attention describes; the next figure tests."),
    ("What the answer depends on", "15_attention", "15_effects", "Parts of the prompt left out or swapped."),
)
"""The entry page in order: heading, the notebook behind it, its figure, one sentence."""


def _entry(work: Workspace, folder: Path, pages: list[Page], profile: str) -> str:
    """What a reader should see first: what was done, how it came out, how sure we are, and where it comes from."""
    note = tables.scope(work)
    overall = tables.overall_table(work, [n for n in TABLES["table3"] if n in tables.OVERALL or work.is_done(n)])
    links = "".join(f'<li><a href="{p.file}">{escape(p.title)}</a></li>' for p in pages[1:])
    files = "".join(
        f'<li>{f.stem}: <a href="tables/{f.name}">CSV</a>, <a href="tables/{f.stem}.tex">LaTeX</a></li>'
        for f in sorted((folder / "tables").glob("*.csv"))
    )
    shown = dict.fromkeys([*overall["system"], "semantic", *(n for n in TABLES["table5"] if work.is_done(n))])
    made = {p.file.removesuffix(".html") for p in pages}
    return f"""
<h1>SeLLa-Rec on {escape(work.dataset.name)}</h1>
<p class="soft">{escape(note)} Profile <code>{escape(profile)}</code>.</p>
<h2>The paper's claims at this size</h2>
<p>A claim holds or does not if its 95 % interval lies on one side of 0; otherwise it is undecided. Intervals resample
the users of one training run of each system (items where a claim is about items) and are not adjusted for their number;
another seed would move the values too.{_ours(work)}</p>
<div class="scroll">{_claims_html(work)}</div>
<h2>Every system</h2>
<div class="scroll">{tables.pretty(overall).to_html(border=0)}</div>
{"".join(_chapter(folder, *chapter) for chapter in STORY if chapter[1] in made)}
<h2>Notebooks, executed</h2><ul>{links}</ul>
<h2>Tables for papers</h2><ul>{files}</ul>
<h2>Where every number comes from</h2>
<div class="scroll">{tables.provenance_table(work, list(shown)).to_html(border=0)}</div>
<p class="soft">Each run folder holds its settings, per-row scores and checksums. No rating is part of this report; its
notebooks show titles, and examples of what users liked, which belong to whoever made the data.</p>
"""


def _ours(work: Workspace) -> str:
    """What has to be said where the method is not the paper's."""
    if as_in_the_paper(work.config):
        return ""
    return (
        " <b>The method is not quite the paper's</b>: by our default its prompts and tokens also hold what the "
        "training part counts about user and item, genres and year. <code>--profile quick-paper</code> leaves that out."
    )


def _chapter(folder: Path, heading: str, notebook: str, figure: str, sentence: str) -> str:
    """A heading, a figure that the notebook exported, and the way to the rest of it."""
    source = folder / "figures" / f"{figure}.json"
    if not source.is_file():
        return ""
    drawn = pio.read_json(source).to_html(full_html=False, include_plotlyjs=False)
    more = f'<a href="{notebook}.html">More in the notebook.</a>'
    return f'<h2>{escape(heading)}</h2><p>{escape(sentence)} {more}</p><div class="scroll">{drawn}</div>'


def _claims_html(work: Workspace) -> str:
    rows = "".join(
        f'<tr><td>{escape(c.text)}</td><td>{escape(c.source)}</td><td class="{c.verdict.split()[0]}">'
        f"{escape(c.verdict)}</td><td>{escape(c.evidence)}</td></tr>"
        for c in claims(work)
    )
    return f'<table class="claims"><tr><th>claim</th><th>paper</th><th>here</th><th>evidence</th></tr>{rows}</table>'


def _folder_name(work: Workspace, profile: str, changes: dict[str, Any]) -> str:
    """One folder per settings, so that a changed one does not overwrite the profile's own report."""
    of = work.config
    data = _short(work.dataset.name, of.dataset, sources.DATASETS)
    model = _short(Path(of.backbone).name, of.backbone, sources.MODELS)
    settings = f"-{_digest(json.dumps(changes, sort_keys=True))}" if changes else ""
    return f"{data}-{model}-{profile}-{of.seed}{settings}"


def _short(name: str, whole: str, registered: Mapping[str, object]) -> str:
    """A name for a folder; files and hub ids that end alike are told apart by a digest of the whole."""
    return name if whole in registered else f"{name}-{_digest(whole)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _title(notebook: Path) -> str:
    first = nbformat.read(notebook, as_version=4).cells[0].source
    return first.splitlines()[0].lstrip("# ").split(":")[0].strip()
