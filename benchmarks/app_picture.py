"""Draw the README's picture of the app over a made-up table: no licensed data may be in a picture of this repository.

    python benchmarks/app_picture.py

Computes SeLLa-Rec and some baselines on silent films with the `smoke` profile (minutes on a CPU), serves the app
and photographs a page. Needs playwright and a Chromium.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from playwright.sync_api import sync_playwright

from app import IDLE, WAIT, change, served, visit

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "app-user-item.png"
SYSTEMS = ("counting", "mlp_records", "mf", "mf_bias", "mlp_control", "sella")
FILMS = {
    "Comedy": ("The General (1926)", "Sherlock Jr. (1924)", "Safety Last! (1923)", "The Gold Rush (1925)"),
    "Drama": ("Sunrise (1927)", "The Crowd (1928)", "Battleship Potemkin (1925)", "Greed (1924)", "City Lights (1931)"),
    "Horror": ("Nosferatu (1922)", "The Cabinet of Dr. Caligari (1920)", "Vampyr (1932)", "The Golem (1920)"),
    "Sci-Fi": ("Metropolis (1927)", "A Trip to the Moon (1902)", "Woman in the Moon (1929)", "The Lost World (1925)"),
}
USERS, RATED, DAY = 24, 15, 86400


def made_up_ratings() -> pd.DataFrame:
    """Ratings of users who each prefer two genres."""
    random = np.random.default_rng(3)
    films = [(title, genre) for genre, titles in FILMS.items() for title in titles]
    rows = []
    for user in range(1, USERS + 1):
        preferred = set(random.choice(list(FILMS), 2, replace=False))
        for n, item in enumerate(random.permutation(len(films))[:RATED]):
            title, genre = films[item]
            rating = int(np.clip(round(random.normal(4.2 if genre in preferred else 2.6, 0.8)), 1, 5))
            rows.append((user, item + 1, title, genre, rating, (20 * n + user) * DAY))
    return pd.DataFrame(rows, columns=["user", "item", "title", "genres", "rating", "timestamp"])


def photograph(address: str) -> None:
    """Take the user token away from the answer that the page opens with."""
    chromium = os.environ.get("BROWSER_PATH") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1300})
        page.set_default_timeout(WAIT)
        visit(page, f"{address}/user_item")
        change(page, "user")
        page.wait_for_function(IDLE)
        page.wait_for_timeout(3000)  # charts move into place
        page.screenshot(path=PICTURE)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        table = Path(scratch) / "silent-films.csv"
        made_up_ratings().to_csv(table, index=False)
        settings = ["--dataset", str(table), "--profile", "smoke", "--prompt.history", "3", "--runs", f"{scratch}/runs"]
        for system in SYSTEMS:
            subprocess.run([sys.executable, "-m", "sellarec.cli", "run", system, *settings], check=True)
        with served(settings) as address:
            photograph(address)


if __name__ == "__main__":
    main()
