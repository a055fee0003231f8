"""The real entry points end to end: papermill executes every notebook, the report is built from what they made."""

import json
import os
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from PIL import Image

from sellarec import figures
from sellarec.config import make_config
from sellarec.data import sources
from sellarec.data.open import open_dataset
from sellarec.errors import SellarecError
from sellarec.figures.style import COLOURS
from sellarec.published import adopt, publish
from sellarec.report import images, make, notebooks, pages
from sellarec.settings import DataConfig
from sellarec.systems.base import Workspace
from sellarec.systems.registry import OVERALL
from tests.conftest import SMALL

NOTEBOOKS = sorted(notebooks.notebooks_folder().glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_thin_clean_and_parameterized(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert sum("parameters" in c.metadata.get("tags", []) for c in code) == 1
    assert all(not c.outputs and c.execution_count is None for c in code)
    lines = [line for c in code for line in c.source.splitlines()]
    assert len(lines) <= 120 and not [line for line in lines if line.lstrip().startswith(("def ", "class ", "for "))]
    assert notebook.cells[0].source.startswith("# ")


@pytest.fixture(scope="module")
def made(planted_table, llama, tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    config = make_config("smoke", str(planted_table), backbone=str(llama), **SMALL)
    index = make.make_report("smoke", config, runs=root / "runs", reports=root / "reports")
    return index.parent


def test_changed_settings_get_a_folder_of_their_own(made, small_workspace):
    assert re.search(r"-smoke-0-[0-9a-f]{6}$", made.name)
    names = [make._folder_name(small_workspace, "smoke", c) for c in ({}, {"stage3.rows": 5}, {"stage3.rows": 6})]
    assert names[0].endswith("-smoke-0") and len(set(names)) == 3
    registered = [make._short("ml-1m", "ml-1m", sources.DATASETS), make._short("smollm2-135m", "smollm2-135m", {})]
    assert registered[0] == "ml-1m" and re.fullmatch(r"smollm2-135m-[0-9a-f]{6}", registered[1])
    alike = [make._short("ratings", f"/{folder}/ratings.csv", sources.DATASETS) for folder in ("x", "y")]
    assert alike[0] != alike[1] and all(re.fullmatch(r"ratings-[0-9a-f]{6}", name) for name in alike)


def test_the_report_has_a_page_per_notebook_and_every_link_leads_somewhere(made):
    pages = {p.name for p in made.glob("*.html")}
    assert pages == {"index.html"} | {f"{n.stem}.html" for n in NOTEBOOKS}
    for page in made.glob("*.html"):
        for link in re.findall(r'(?:href|src)="([^"#]+)"', page.read_text()):
            assert (made / link).is_file(), f"{page.name} → {link}"


def test_the_entry_page_says_what_was_scored_how_it_came_out_and_where_from(made):
    text = (made / "index.html").read_text()
    assert "stages 1, 2 and 3 on 32, 269 and 32 of 301 training rows" in text and "scored on whole users with" in text
    headings = re.findall(r"<h2>(.+?)</h2>", text)
    told = [heading for heading, _, figure, _ in pages.STORY if (made / "figures" / f"{figure}.json").is_file()]
    assert len(told) == len(pages.STORY) and [h for h in headings if h in told] == told
    assert text.count("Plotly.newPlot") == len(told)
    claims = re.findall(r"<tr><td>(.+?)</td><td>(.+?)</td><td class=.+?>(.+?)</td><td>(.+?)</td></tr>", text)
    assert claims[0][:2] == (
        "SeLLa-Rec beats all fair baselines of the paper, and loses to no other",
        "after Table 3",
    )
    assert {v for _, _, v, _ in claims} <= {"holds", "does not hold", "undecided"}
    assert all(re.search(r"[+−-]\d\.\d{4} \[|too few", evidence) for *_, evidence in claims)
    assert "The method is not quite the paper's" in text
    for name in OVERALL:
        assert f"/{name}/0-" in text


def test_executed_notebooks_hold_results_figures_and_no_error(made):
    for source in NOTEBOOKS:
        notebook = nbformat.read(made / "notebooks" / source.name, as_version=4)
        outputs = [o for c in notebook.cells for o in c.get("outputs", [])]
        assert not [o for o in outputs if o.output_type == "error"]
        assert (made / f"{source.stem}.html").read_text().count("Plotly.newPlot") == sum(
            notebooks.PLOTLY_JSON in o.get("data", {}) for o in outputs
        )
    assert "stage 1, LoRA" not in (made / "10_overall.html").read_text()  # computed once, by an earlier notebook


def test_tables_are_there_as_csv_and_latex_and_agree_with_the_store(made):
    table = pd.read_csv(made / "tables" / "10_overall.csv", index_col="label")
    assert table["system"].tolist() == list(OVERALL)
    latex = (made / "tables" / "10_overall.tex").read_text()
    assert "\\toprule" in latex and "SeLLa-Rec" in latex
    run = next((made.parents[1] / "runs" / "planted").glob("*/sella/0-*"))
    metrics = json.loads((run / "metrics.json").read_text())["test"]["all"]
    assert table.loc["SeLLa-Rec", "auc"] == pytest.approx(metrics["auc"], abs=1e-6)


def test_every_exported_figure_has_data_and_its_scope(made):
    exported = sorted((made / "figures").glob("*.json"))
    assert len(exported) >= 9
    for path in exported:
        figure = json.loads(path.read_text())
        assert figure["data"], path.name
        assert "planted" in figure["layout"]["title"]["subtitle"]["text"], path.name


def test_a_second_report_reuses_every_run(made, planted_table, llama, monkeypatch):
    runs = made.parents[1] / "runs"
    before = {p: p.stat().st_mtime_ns for p in runs.rglob("manifest.json")}
    work = Workspace(make_config("smoke", str(planted_table), backbone=str(llama), **SMALL), runs)
    monkeypatch.setattr(Workspace, "_compute", lambda *a: pytest.fail("computed again"))
    executed = [made / "notebooks" / n.name for n in NOTEBOOKS]
    pages.write_pages(work, made, executed, "smoke")
    assert before == {p: p.stat().st_mtime_ns for p in runs.rglob("manifest.json")}


def test_a_second_report_executes_only_what_could_have_changed(made, planted_table, llama, monkeypatch):
    root, executed = made.parents[1], []
    monkeypatch.setattr(make, "execute_notebook", lambda notebook, target, parameters: executed.append(notebook.name))

    def again():
        executed.clear()
        config = make_config("smoke", str(planted_table), backbone=str(llama), **SMALL)
        make.make_report("smoke", config, runs=root / "runs", reports=root / "reports")
        return executed

    names = [n.name for n in NOTEBOOKS]
    assert again() == []
    other = root / "runs" / "planted" / "no-llm" / "other" / "0-abc"
    other.mkdir(parents=True)
    (other / "manifest.json").write_text("{}")
    assert again() == names  # a table may show the new run
    elsewhere = root / "runs" / "other-data" / "no-llm" / "mf" / "0-abc"
    elsewhere.mkdir(parents=True)
    (elsewhere / "manifest.json").write_text("{}")
    assert again() == []  # no table shows another dataset's
    shutil.rmtree(elsewhere.parents[2])
    shutil.rmtree(other.parent)
    assert again() == names and again() == []
    with monkeypatch.context() as patched:  # the same path with other ratings in it
        patched.setitem(vars(open_dataset(str(planted_table), DataConfig())), "hash", "another")
        patched.setattr(make, "write_pages", lambda *a: None)
        assert again() == names
    assert again() == names and again() == []
    with monkeypatch.context() as patched:  # the same path with another model in it
        patched.setattr("sellarec.systems.base.identity", lambda name: (Path(name).name, "other weights"))
        patched.setattr(make, "write_pages", lambda *a: None)
        assert again() == names
    assert again() == names and again() == []
    (made / "notebooks" / names[0]).rename(made / "notebooks" / "away")
    with pytest.raises(FileNotFoundError):  # the stand-in wrote nothing
        again()
    (made / "notebooks" / "away").rename(made / "notebooks" / names[0])
    assert executed == names[:1]


def test_what_a_failed_report_has_written_over_is_executed_again(made, planted_table, llama, monkeypatch):
    root, executed = made.parents[1], []

    def execute(notebook, target, parameters):
        executed.append(notebook.name)
        if fails and notebook.name == fails:
            raise SellarecError("no such luck")

    def again():
        executed.clear()
        where = {"runs": root / "runs", "reports": root / "reports"}
        make.make_report("smoke", make_config("smoke", str(planted_table), backbone=str(llama), **SMALL), **where)
        return executed

    names, fails = [n.name for n in NOTEBOOKS], None
    monkeypatch.setattr(make, "execute_notebook", execute)
    again()
    assert again() == []
    with monkeypatch.context() as patched:  # other code, with which the second one fails; then the code is as it was
        patched.setattr(make, "_fingerprint", lambda *a: "other code")
        fails = names[1]
        with pytest.raises(SellarecError, match="no such luck"):
            again()
    fails = None
    assert again() == names[:2]  # the others hold what they held
    manifest = next((root / "runs").rglob("manifest.json"))
    before = manifest.read_text()
    manifest.write_text(before + " ")  # a run that was computed again in its place
    monkeypatch.setattr(make, "write_pages", lambda *a: None)
    assert again() == names
    manifest.write_text(before)
    assert again() == names


def test_what_ifs_are_left_out_where_scores_are_no_log_odds(planted_table, llama, tmp_path, monkeypatch):
    executed = []
    monkeypatch.setattr(make, "execute_notebook", lambda notebook, *_: executed.append(notebook.stem))
    monkeypatch.setattr(make, "write_pages", lambda *_: None)
    settings = SMALL | {"evaluation.raw_yes": True}
    config = make_config("smoke", str(planted_table), backbone=str(llama), **settings)
    make.make_report("smoke", config, tmp_path / "runs", tmp_path / "reports")
    assert executed == [n.stem for n in NOTEBOOKS if n.stem != "15_attention"]


def test_a_report_that_computes_nothing_shows_what_was_published(made, planted_table, llama, tmp_path):
    """Adopted runs have scores without weights: tables stand, what opens a model is left out with its reason."""
    settings = {"backbone": str(llama), **SMALL}
    config = make_config("smoke", str(planted_table), **settings)
    publish(Workspace(config, made.parents[1] / "runs", computes=False), tmp_path / "published")
    runs, reports = tmp_path / "runs", tmp_path / "reports"
    with pytest.raises(
        SellarecError, match=r"(?s)not in the run store .+ sellarec run counting .+ sellarec run sella "
    ):
        make.make_report("smoke", config, runs, reports, compute=False)
    adopt(Workspace(config, runs), tmp_path / "published")
    shutil.rmtree(reports)
    shutil.copytree(made, reports / made.name)  # what an earlier report left there
    before = {p for p in runs.rglob("manifest.json")}
    folder = make.make_report("smoke", config, runs, reports, compute=False).parent
    assert {p for p in runs.rglob("manifest.json")} == before
    shown = {p.stem for p in folder.glob("[0-9]*.html")}
    assert {"00_data", "01_stage1_adapt", "03_stage3_project", "10_overall", "11_warm_cold"} <= shown
    assert {"02_stage2_align", "13_alignment_tsne", "15_attention"}.isdisjoint(shown)
    assert {p.stem for p in (folder / "notebooks").glob("*.ipynb")} == shown
    text = (folder / "index.html").read_text()
    assert text.count("<td>after Table 3</td>") >= 2 and "not asked" in text.split("</table>")[0]
    assert not list((folder / "figures").glob("1[345]_*")) and not list((folder / "tables").glob("02_*"))
    assert re.search(r"<li>15_attention: SeLLa-Rec was published without its weights\. .+ sella --weights", text)
    assert set(json.loads((folder / make.EXECUTED).read_text())) == {f"{name}.ipynb" for name in shown}


def test_an_unknown_notebook_parameter_is_an_error(tmp_path):
    with pytest.raises(SellarecError, match=r"00_data.ipynb has no parameter 'sead'. Did you mean 'seed'"):
        notebooks.execute_notebook(NOTEBOOKS[0], tmp_path / "out.ipynb", {"sead": 1})


def test_a_failing_cell_is_named_and_the_executed_notebook_kept(tmp_path, planted_table):
    with pytest.raises(SellarecError, match=r"00_data.ipynb failed in cell .*SellarecError: profile 'quik'"):
        notebooks.execute_notebook(NOTEBOOKS[0], tmp_path / "out.ipynb", {"profile": "quik"})
    assert (tmp_path / "out.ipynb").is_file()


def test_without_a_browser_the_report_says_how_to_get_images(made, monkeypatch, tmp_path):
    shutil.copytree(made / "figures", tmp_path / "figures", ignore=shutil.ignore_patterns("*.png", "*.svg", "*.pdf"))

    def no_browser(*args, **kwargs):
        raise RuntimeError("no Chrome")

    monkeypatch.setattr(images.pio, "write_images", no_browser)
    said = images.write_images(tmp_path)
    assert "no Chrome" in said and "install one, or name it in BROWSER_PATH" in said


def test_only_figures_that_changed_are_drawn_again_as_high_as_they_are_and_without_menus(monkeypatch, tmp_path):
    drawn, high = [], {}

    def draw(loaded, files, **options):
        assert not any(figure.layout.updatemenus for figure in loaded)
        drawn.extend(f.name for f in files)
        high.update(zip((f.name for f in files), options["height"], strict=True))
        for file in files:
            if file.suffix == ".png":
                Image.new("RGB", (2, 1), "#D55E00").save(file)
            file.touch()

    monkeypatch.setattr(images.pio, "write_images", draw)
    menus = [{"buttons": [{"label": "colours", "method": "update"}]}]
    first = go.Figure(layout={"updatemenus": menus, "height": 870})
    second = go.Figure(layout={"title": {"text": "other"}})
    for name in ("a", "b"):
        figures.export_figure(first, name, tmp_path)
    images.write_images(tmp_path)
    assert sorted(drawn) == ["a.pdf", "a.png", "a.svg", "b.pdf", "b.png", "b.svg"]
    with Image.open(tmp_path / "figures" / "a.png") as image:
        assert image.mode == "P" and image.convert("RGB").getpixel((1, 0)) == (0xD5, 0x5E, 0)
    drawn.clear()
    figures.export_figure(first, "a", tmp_path)
    figures.export_figure(second, "b", tmp_path)
    assert "other" in (tmp_path / "figures" / "b.json").read_text()
    stamp = (tmp_path / "figures" / "b.png").stat().st_mtime + 5
    os.utime(tmp_path / "figures" / "b.json", (stamp, stamp))
    images.write_images(tmp_path)
    assert sorted(drawn) == ["b.pdf", "b.png", "b.svg"]
    assert high["a.png"] == 870 and high["b.svg"] == 500  # plotly's own height where a figure has none


def test_figures_show_the_tables_numbers_the_best_first():
    spread = {"": 0, "_low": -0.1, "_high": 0.2}
    columns = {f"{m}{s}": [0.6 + d, 0.7 + d] for m in ("auc", "uauc") for s, d in spread.items()}
    table = pd.DataFrame({"system": ["mf", "sella"], **columns}, index=["MF", "SeLLa-Rec"])
    figure = figures.overall_figure(table, "note")
    assert [t.x[0] for t in figure.data] == pytest.approx([0.7, 0.6, 0.7, 0.6])
    assert list(figure.layout.yaxis.categoryarray) == ["MF", "<b>SeLLa-Rec</b>"]  # from the bottom up
    assert figure.data[0].error_x.array[0] == pytest.approx(0.2)
    assert figure.data[0].error_x.arrayminus[0] == pytest.approx(0.1)
    assert {t.marker.color for t in figure.data} == {COLOURS["mf"], COLOURS["sella"]}


def test_violins_are_drawn_from_as_many_quantiles_however_many_rows_there_are():
    label = np.repeat([0, 1], [5000, 3])
    scores = {"mf": np.concatenate([np.linspace(0.2, 0.6, 5000), [0.5, 0.7, 0.9]])}
    disliked, liked = figures.scores_figure(scores, label, {"mf": "MF"}).data
    assert len(disliked.y) == 400 and list(liked.y) == [0.5, 0.7, 0.9] and liked.x0 == "MF"
    spread = min(scores["mf"][:5000].std(), 0.2 / 1.349)
    assert disliked.bandwidth == pytest.approx(1.059 * spread * 5000**-0.2, rel=1e-3)
    assert disliked.y.min() == 0.2 and disliked.y.max() == 0.6 and np.median(disliked.y) == pytest.approx(0.4, abs=1e-3)
    only_likes = figures.scores_figure(scores, np.ones_like(label), {"mf": "MF"})
    assert [trace.name for trace in only_likes.data] == ["liked"]


def test_the_cosine_figure_is_a_share_of_the_items():
    figure = figures.cosine_figure({"stage 2": {"a": np.array([0.5, 0.5, -0.5, 0.9])}})
    assert sum(figure.data[0].y) == pytest.approx(1)


def test_the_history_figure_counts_rows_and_marks_what_prompts_show():
    figure = figures.history_figure({"train": np.array([0, 1, 5, 5])}, shown=3)
    share = dict(zip(figure.data[0].x, figure.data[0].y, strict=True))
    assert (share[0], share[1], share[2], share[5], share[6]) == (1.0, 0.75, 0.5, 0.5, 0.0)
    assert figure.layout.shapes[0].x0 == 3 and figure.layout.annotations[0].text == "3 shown in a prompt"


def test_the_training_figure_counts_on_over_phases_and_stands_without_any_training():
    log = pd.DataFrame(
        {"step": [1, 2, 2, 1, 2, 2], "loss": [1, 1, None, 1, 1, None], "valid_auc": [None, None, 0.6] * 2}
    )
    figure = figures.training_figure(log, "t")
    assert [list(trace.x) for trace in figure.data] == [[1, 2, 3, 4], [2, 4]]
    assert "nothing was trained" in figures.training_figure(pd.DataFrame(), "t").layout.title.text


def test_the_training_figure_holds_every_validation_point_inside_its_axis():
    log = pd.DataFrame({"step": [1, 2, 2], "loss": [0.7, 0.5, np.nan], "valid_auc": [np.nan, np.nan, 0.91]})
    figure = figures.training_figure(log, "t")
    low, high = figure.layout.yaxis2.range
    assert low < 0.91 < high and list(figure.data[1].y) == [0.91]


def test_a_cells_progress_lines_share_one_block(tmp_path):
    lines = [nbformat.v4.new_output("stream", name="stdout", text=f"step {n}\n") for n in range(5)]
    cells = [nbformat.v4.new_code_cell("train()", outputs=lines), nbformat.v4.new_code_cell("1", outputs=lines[:1])]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
    html = notebooks.notebook_html(tmp_path / "n.ipynb")
    assert html.count("output_stdout") == 2 and "step 4" in html
