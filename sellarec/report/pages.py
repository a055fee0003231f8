"""The report's pages: an entry page over what the notebooks made, and a page for each notebook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from types import MappingProxyType

import plotly.io as pio
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from pygments.formatters import HtmlFormatter

from sellarec import tables
from sellarec.analysis.claims import claims
from sellarec.profiles import without_additions
from sellarec.report.notebooks import notebook_html, notebook_title
from sellarec.systems.base import Workspace
from sellarec.systems.registry import TABLES, find_system, not_fair

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


@dataclass(frozen=True)
class Page:
    file: str
    title: str


def write_pages(
    work: Workspace,
    folder: Path,
    executed: list[Path],
    profile: str,
    left_out: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """The entry page, and a page for each executed notebook.

    Args:
        left_out: Why other notebooks were not executed, by their names.
    """
    (folder / "plotly.min.js").write_text(get_plotlyjs())
    pages = [Page("index.html", "Report"), *(Page(f"{p.stem}.html", notebook_title(p)) for p in executed)]
    template = Environment(loader=PackageLoader("sellarec.report", "."), autoescape=True).get_template("page.html.j2")
    bodies = {"index.html": _entry(work, folder, pages, profile, left_out)}
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


def _entry(work: Workspace, folder: Path, pages: list[Page], profile: str, left_out: Mapping[str, str]) -> str:
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
<h2>{_asked(work)}</h2>
<p>A claim holds or does not if its 95 % interval in AUC lies on one side of 0, and neither that in UAUC nor the
difference with another seed in the store on the other; otherwise it is undecided. Intervals resample the users of one
training run of each system (items where a claim is about items) and are not adjusted for their number. Users rate
unevenly: "effectively" says how many of equally many rows would be as uneven a sample; fewer than 30 decide
nothing.{_ours(work)}</p>
<div class="scroll">{_claims_html(work)}</div>
<h2>Every system</h2>
<div class="scroll">{tables.pretty(overall).to_html(border=0)}</div>
{_not_fair(work, shown)}
{"".join(_chapter(folder, *chapter) for chapter in STORY if chapter[1] in made)}
<h2>Notebooks, executed</h2><ul>{links}</ul>
{_left_out_html(left_out)}
<h2>Tables for papers</h2><ul>{files}</ul>
<h2>Where every number comes from</h2>
<div class="scroll">{tables.provenance_table(work, list(shown)).to_html(border=0)}</div>
<p class="soft">Each run folder holds its settings, per-row scores and checksums. No rating is part of this report; its
notebooks show titles, and examples of what users liked, which belong to whoever made the data.</p>
"""


def _asked(work: Workspace) -> str:
    if without_additions(work.config):
        return "The paper's claims at this size"
    return "What the paper claims, asked of the method with our additions"


def _ours(work: Workspace) -> str:
    """What has to be said where the method is not the paper's."""
    if without_additions(work.config):
        return ""
    return (
        " <b>The method is not quite the paper's</b>: by our default its prompts and tokens also hold what "
        "the training part counts about user and item, genres and year; <code>--profile quick-paper</code> leaves "
        "that out."
    )


def _not_fair(work: Workspace, shown: Iterable[str]) -> str:
    """Of the systems in the table the ones that differences say little of."""
    reasons = {find_system(name).label: why for name, why in not_fair(work.config).items() if name in {*shown}}
    lines = "".join(f"<li>{escape(label)}: {escape(why)}</li>" for label, why in reasons.items())
    heading = (
        "<p>† On MovieLens-1M we found that these are no fair baselines; a difference to them says little of their "
        "methods:</p>"
    )
    return f"{heading}<ul>{lines}</ul>" if lines else ""


def _left_out_html(left_out: Mapping[str, str]) -> str:
    if not left_out:
        return ""
    reasons = "".join(f"<li>{escape(name)}: {escape(why)}</li>" for name, why in left_out.items())
    heading = "<h2>Notebooks, left out</h2><p>This report computes nothing (<code>--no-compute</code>).</p>"
    return f"{heading}<ul>{reasons}</ul>"


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
