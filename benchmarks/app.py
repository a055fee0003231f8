"""How long a visitor of the app waits, measured in a real browser: pages with a warm cache, and what-if changes.

    python benchmarks/app.py --dataset ml-1m --runs runs

All words but `--repeats` are those of `sellarec app`; the runs must be in the store. Needs playwright and Chromium.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from playwright.sync_api import Page, sync_playwright

PAGES = ("overview", "user_item", "why", "for_you", "alignment_map", "disagreements")
IDLE = "() => document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'"
WAIT = 300_000
"""Milliseconds after which a page is given up."""


@contextmanager
def served(words: list[str]) -> Iterator[str]:
    """The app on a free port; its address."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "sellarec.cli", "app", *words, "--port", str(port), "--headless"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while server.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("localhost", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://localhost:{port}"
    finally:
        server.terminate()
        server.wait()


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def visit(page: Page, address: str) -> None:
    """Open a page in a new session, until it stands and nothing runs."""
    page.goto(address, wait_until="commit")
    page.wait_for_selector("h1")
    page.wait_for_function(IDLE)
    if page.get_by_test_id("stException").count():
        raise SystemExit(f"{address} shows an exception: {page.get_by_test_id('stException').inner_text()[:300]}")


def change(page: Page, token: str) -> None:
    """Switch a soft token, until the answer has changed."""
    number = page.get_by_test_id("stMetricValue").nth(1)
    before = number.inner_text()
    page.get_by_role("button", name=token, exact=True).click()
    page.wait_for_function(
        "(before) => document.querySelectorAll('[data-testid=stMetricValue]')[1]?.innerText !== before", arg=before
    )


def rank(page: Page) -> None:
    page.get_by_role("button", name="Rank").click()
    page.get_by_role("button", name="Download CSV").wait_for()


def measure(page: Page, address: str, repeats: int) -> dict[str, list[float]]:
    """Seconds by what was done."""
    out = {"first page, cold": [seconds(lambda: visit(page, address))]}
    for name in PAGES:
        visit(page, f"{address}/{name}")  # fills the caches, and loads the model
        out[f"{name}, warm"] = [seconds(lambda n=name: visit(page, f"{address}/{n}")) for _ in range(repeats)]
    visit(page, f"{address}/user_item")
    out["a new what-if"] = []
    for token in ("user", "item", "warm", "user"):
        page.wait_for_timeout(1000)  # a visitor reads before the next click
        out["a new what-if"].append(seconds(lambda t=token: change(page, t)))
    visit(page, f"{address}/for_you")
    out["ranking 200 titles"] = [seconds(lambda: rank(page))]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    arguments, words = parser.parse_known_args()
    chromium = os.environ.get("BROWSER_PATH") or shutil.which("chromium") or shutil.which("google-chrome")
    with served(words) as address, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1400, "height": 1400})
        page.set_default_timeout(WAIT)
        taken = measure(page, address, arguments.repeats)
        browser.close()
    print(f"{'':24}{'median':>8}{'slowest':>9}  seconds")
    for name, found in taken.items():
        print(f"{name:24}{statistics.median(found):8.2f}{max(found):9.2f}")
    print(json.dumps({"machine": platform.machine(), "cores": os.cpu_count(), "app": words, "seconds": taken}))


if __name__ == "__main__":
    main()
