"""The app in a real browser: user → what-if → why. Needs Chromium; skipped, with the reason, without one."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sellarec.systems.base import Workspace
from tests.conftest import SMALL

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = os.environ.get("BROWSER_PATH") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install one or name it in BROWSER_PATH")
SECONDS = 120


@pytest.fixture(scope="module")
def served(planted_table, llama, tmp_path_factory):
    """The app over small runs, served as `sellarec app` does: its address, and the workspace that it shows."""
    from sellarec.config import make_config

    runs = tmp_path_factory.mktemp("runs")
    config = make_config("smoke", str(planted_table), backbone=str(llama), **SMALL)
    work = Workspace(config, runs)
    for name in ("counting", "sella"):
        work.run(name)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    words = ["app", "--profile", "smoke", "--dataset", str(planted_table), "--backbone", str(llama)]
    words += ["--runs", str(runs), "--port", str(port), "--headless"]
    words += [w for k, v in SMALL.items() for w in (f"--{k.replace('_', '-')}", json.dumps(v).strip('"'))]
    server = subprocess.Popen([sys.executable, "-m", "sellarec.cli", *words])
    try:
        _wait_for(port)
        yield f"http://localhost:{port}", work
    finally:
        server.terminate()
        server.wait()


def _wait_for(port):
    for _ in range(SECONDS * 2):
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", port)) == 0:
                return
        time.sleep(0.5)
    pytest.fail("the app did not start")


@pytest.fixture(scope="module")
def tab():
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1400, "height": 1400})
        page.set_default_timeout(SECONDS * 1000)
        sync_api.expect.set_options(timeout=SECONDS * 1000)
        yield page
        browser.close()


def test_a_visitor_changes_a_row_sees_the_number_move_and_asks_why(served, tab):
    tab.goto(served[0])
    tab.get_by_role("link", name="User and item").click()
    metrics = tab.get_by_test_id("stMetricValue")
    sync_api.expect(metrics).to_have_count(2)
    before = metrics.nth(0).inner_text()
    assert metrics.nth(1).inner_text() == before and 0 < float(before) < 1

    tab.get_by_role("button", name="user", exact=True).click()  # takes the user token away
    delta = tab.get_by_test_id("stMetricDelta")
    sync_api.expect(delta).to_contain_text("log-odds")
    assert delta.inner_text().strip().split()[-2] != "+0.0000" and metrics.nth(0).inner_text() == before

    tab.get_by_role("link", name="Why").click()
    sync_api.expect(tab.get_by_role("heading", name="Where the answer looks")).to_be_visible()
    sync_api.expect(tab.locator(".js-plotly-plot")).to_have_count(3)
    assert tab.get_by_test_id("stException").count() == 0


def test_a_page_is_reached_by_its_url_with_its_row(served, tab):
    address, work = served
    row = work.part("test").iloc[-1]
    tab.goto(f"{address}/user_item?user={row['user']}&item={row['item']}")
    sync_api.expect(tab.get_by_test_id("stMetricValue")).to_have_count(2)
    sync_api.expect(tab.get_by_label("user", exact=True)).to_have_value(re.compile(f"user {row['user']}, "))
    sync_api.expect(tab.get_by_label(re.compile("^item, test rows first"))).to_have_value(
        work.dataset.titles[row["item"]]
    )


def test_every_page_has_an_address_and_the_bare_one_leads_to_the_first(served, tab):
    for name in ("", "overview", "user_item", "why", "for_you", "alignment_map", "disagreements"):
        tab.goto(f"{served[0]}/{name}")
        sync_api.expect(tab.locator("h1")).to_be_visible()
        sync_api.expect(tab).to_have_url(re.compile(f"/{name or 'overview'}([?]|$)"))
        assert tab.get_by_text("Page not found").count() == 0


def test_ten_sessions_at_once_keep_their_own_rows_and_changes(served, tab):
    address, work = served
    rows = work.part("test").assign(score=work.test_scores("sella")).drop_duplicates("user").head(10)
    sessions = []
    for row in rows.itertuples():
        page = tab.context.browser.new_context().new_page()
        page.set_default_timeout(SECONDS * 1000)
        page.goto(f"{address}/user_item?user={row.user}&item={row.item}", wait_until="commit")
        sessions.append((page, row))
    for page, row in sessions:
        sync_api.expect(page.get_by_test_id("stMetricValue").first).to_have_text(f"{row.score:.4f}")
    for page, _ in sessions[::2]:  # one after the other, without waiting for answers
        page.get_by_role("button", name="user", exact=True).click()
    for n, (page, row) in enumerate(sessions):
        sync_api.expect(page.get_by_test_id("stMetricDelta")).to_have_count((n + 1) % 2)
        sync_api.expect(page.get_by_test_id("stMetricValue").first).to_have_text(f"{row.score:.4f}")
        sync_api.expect(page.get_by_label("user", exact=True)).to_have_value(re.compile(f"user {row.user}, "))
        assert page.get_by_test_id("stException").count() == 0
        page.context.close()


def test_it_listens_on_localhost_only(served):
    port = int(served[0].rsplit(":", 1)[1])
    tables = [Path("/proc/net") / name for name in ("tcp", "tcp6")]
    if not tables[0].exists():
        pytest.skip("there is no /proc/net here to look into")
    lines = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    listening = [line[1].split(":")[0] for line in lines if line[3] == "0A" and int(line[1].split(":")[1], 16) == port]
    assert listening and set(listening) <= {"0100007F", "00000000000000000000000001000000"}  # 127.0.0.1 and ::1
