"""Amazon-Book at its true size, without its data: files of the official form with planted counts, written and read.

    python benchmarks/amazon_book.py FOLDER [--reviews 27163817] [--books 2934949]

The counts that `sellarec fetch amazon-book` must find are known beforehand and compared. What is written to FOLDER
stays, so that the reading can be repeated.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import random
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from multiprocessing import Pool
from pathlib import Path

from sellarec.data import amazon_book, amazon_files
from sellarec.progress import track

YEAR_START, DAYS, DAY = 1483228800, 365, 86400  # 1 January 2017
PER_USER = 34
"""Reviews in 2017 of an active user, each of another active book."""
PARAGRAPHS, WORDS = 2000, 110
"""How many texts reviews take theirs from, longer together than what gzip looks back on."""


def shape(reviews: int, books: int) -> dict[str, int]:
    """The planted counts of a size, in the published proportions."""
    users = max(40, reviews // 1180)
    items = max(PER_USER, min(books // 80, users * PER_USER // (amazon_files.MORE_THAN + 2)))
    return {"users": users, "items": items, "rows": users * PER_USER, "idle in 2017": reviews // 9}


def texts(seed: int) -> list[str]:
    random_ = random.Random(seed)
    words = ["".join(random_.choices("etaoinshrdlucmfwypvbgk", k=random_.randint(2, 9))) for _ in range(8000)]
    return [json.dumps(" ".join(random_.choices(words, k=WORDS))) for _ in range(PARAGRAPHS)]


def review_lines(total: int, books: int) -> Iterator[str]:
    """Active users' reviews of 2017, spread among idle ones of 2017 and others of earlier years."""
    plan, paragraphs = shape(total, books), texts(0)
    rows, users, items = plan["rows"], plan["users"], plan["items"]
    idle = plan["idle in 2017"]
    every = max(1, total // rows)
    active = 0
    for n in range(total):
        text = paragraphs[n * 7919 % PARAGRAPHS]
        if n % every == 0 and active < rows:
            user, item = f"ACTIVE{active % users}", (active % users * PER_USER + active // users) % items
            when = YEAR_START + (active * 31 % DAYS) * DAY
            active += 1
        else:  # one review each in 2017 of the books behind the active ones, by users who come once
            user, item = f"A{n}", items + n % (books - items)
            when = YEAR_START + (n % DAYS) * DAY if n % 9 == 1 and idle > 0 else YEAR_START - (1 + n % 4000) * DAY
            idle -= n % 9 == 1
        yield (
            f'{{"overall": {1 + n * 17 % 5}.0, "verified": true, "reviewTime": "03 30, 2005", "reviewerID": "{user}", '
            f'"asin": "{item:010d}", "style": {{"Format:": " Hardcover"}}, "reviewerName": "A reader", '
            f'"reviewText": {text}, "summary": "Five Stars", "unixReviewTime": {when}}}\n'
        )


def book_lines(total: int) -> Iterator[str]:
    paragraphs = texts(1)
    for n in range(total):
        text = paragraphs[n * 7919 % PARAGRAPHS]
        others = ", ".join(f'"{n * 13 % total + k:010d}"' for k in range(60))
        yield (
            f'{{"category": ["Books", "Literature &amp; Fiction"], "tech1": "", "description": [{text}], "fit": "", '
            f'"title": "The book {n}", "also_buy": [{others}], "image": [], "tech2": "", "brand": "An author", '
            f'"rank": "{n} in Books (", "asin": "{n:010d}"}}\n'
        )


def write(path: Path, lines: Callable[..., Iterator[str]], arguments: tuple[int, ...]) -> None:
    if path.is_file():
        return
    part = path.with_suffix(".part")
    with gzip.open(part, "wt", compresslevel=1, encoding="utf-8") as out:
        for line in track(lines(*arguments), f"writing {path.name}", arguments[0], "lines"):
            out.write(line)
    part.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--reviews", type=int, default=27_163_817)
    parser.add_argument("--books", type=int, default=2_934_949)
    options = parser.parse_args()
    raw, target = options.folder / "raw", options.folder / "prepared"
    raw.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    jobs = [
        (raw / f"{amazon_files.REVIEWS}.gz", review_lines, (options.reviews, options.books)),
        (raw / f"{amazon_files.BOOKS}.gz", book_lines, (options.books,)),
    ]
    with Pool(2) as pool:
        pool.starmap(write, jobs)

    start = time.perf_counter()
    amazon_files.prepare(raw, target)
    seconds = time.perf_counter() - start
    ratings, books = amazon_book.read(target)
    found = {"rows": len(ratings), "users": ratings["user"].nunique(), "items": len(books)}
    wanted = {k: v for k, v in shape(options.reviews, options.books).items() if k in found}
    result = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "reviews": options.reviews,
        "books": options.books,
        "raw bytes": sum(p.stat().st_size for p in raw.iterdir()),
        "seconds": round(seconds, 1),
        "peak memory MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "found": found,
        "as planted": found == wanted,
    }
    print(json.dumps(result))
    if found != wanted:
        raise SystemExit(f"planted were {wanted}")


if __name__ == "__main__":
    main()
